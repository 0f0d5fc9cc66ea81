package providertest

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// Scenarios about payment methods and debts.
func init() {
	maps.Copy(scenarios, map[string]func(*scene){
		"methods/of every type":                    methodTypes,
		"methods/bank account entered":             methodEntered,
		"methods/default of one subscription":      methodDefaultOfOne,
		"methods/default of what is over":          methodDefaultEnded,
		"methods/added for one subscription":       methodAddedForOne,
		"methods/added and kept":                   methodKept,
		"methods/added and debts paid":             inEach(methodPays),
		"methods/use that cannot be":               methodBadUse,
		"methods/bank account added, change waits": methodDebitForWaiting,
		"methods/removed":                          methodRemoved,
		"methods/removed while in use":             methodInUse,
		"methods/removed while it pays a debt":     methodInUseByDebt,
		"methods/last one removed":                 methodLast,
		"methods/another customer's removed":       methodOfAnother,
		"methods/removed twice":                    methodRemovedTwice,
		"pay/debts as they stand":                  payDebts,
		"pay/one":                                  inEach(payOne),
		"pay/all":                                  inEach(payAll),
		"pay/all, one declined":                    payPartly,
		"pay/declined for a reason":                payReasons,
		"pay/confirmed":                            payConfirmed,
		"pay/not confirmed":                        payNotConfirmed,
		"pay/never confirmed":                      payNeverConfirmed,
		"pay/bank asks at each renewal":            payAskedAtRenewal,
		"pay/by debit that works":                  inEach(payDebit),
		"pay/by debit that comes back":             payDebitBack,
		"pay/while a debit is on its way":          payDebitBlocks,
		"pay/same key twice":                       payTwice,
		"pay/paid meanwhile":                       payPaid,
		"pay/another customer's":                   payOfAnother,
		"pay/what a change waits for":              payWaiting,
		"pay/by hand, past due":                    payByHand,
		"pay/nothing to pay with":                  payNoMethod,
		"pay/bad list":                             payBadList,
		"pay/by bank transfer":                     payByTransfer,
		"pay/page grows stale":                     payStale,
		"change/paid by debit":                     changeDebit,
		"change/debit comes back":                  changeDebitBack,
		"renewal/by debit":                         renewalDebit,
		"fault/payment":                            faultPay,
		"fault/declined payment and timeout after": faultPayDeclined,
		"fault/payment to confirm, timeout after":  faultPayAsks,
		"fault/removal":                            faultRemove,
		"fault/waiting change dropped":             faultDrop,
	})
}

// currencies are those that count their minor unit in different ways at Stripe,
// with a price that can be charged: in whole units where the currency has none
// of its own, with a last digit of 0 where three decimals are counted. step is
// what a charge must be a multiple of. Stripe does not say how an invoice gets
// there whose lines are no such multiples, so where step is not 1 the scenarios
// change at moments at which they are.
var currencies = []struct {
	currency   string
	exponent   int
	unit, step int64
}{
	{"usd", 2, 1999, 1}, {"eur", 2, 1850, 1}, {"jpy", 0, 1200, 1}, {"kwd", 3, 6000, 10}, {"isk", 2, 160000, 100}, {"ugx", 2, 3000000, 100}, {"mga", 0, 45000, 1},
}

// inEach runs a scenario in each of the currencies. There are monthly prices of
// it: one of a unit, "more" of three, "half" of the half and "fraction" of a
// fraction of the minor unit; and "year", which is ten times "more" a year.
func inEach(fn func(s *scene, currency string, unit int64)) func(*scene) {
	return func(s *scene) {
		for _, c := range currencies {
			if e := s.Provider.Capabilities().Exponent(c.currency); e != c.exponent {
				s.Errorf("%s has the exponent %d, want %d", c.currency, e, c.exponent)
			}
			s.World.Price("price_"+c.currency, c.currency, fmt.Sprint(c.unit), billing.Month)
			s.World.Price(in(c.currency, "more"), c.currency, fmt.Sprint(3*c.unit), billing.Month)
			s.World.Price(in(c.currency, "half"), c.currency, fmt.Sprint(c.unit/2), billing.Month)
			s.World.Price(in(c.currency, "year"), c.currency, fmt.Sprint(30*c.unit), billing.Year)
			s.World.Price(in(c.currency, "fraction"), c.currency, fractionOf(c.currency), billing.Month)
			fn(s, c.currency, c.unit)
		}
	}
}

// step is what a charge in a currency must be a multiple of.
func step(currency string) int64 {
	for _, c := range currencies {
		if c.currency == currency {
			return c.step
		}
	}
	return 1
}

// fractionOf is the unit price of "fraction".
func fractionOf(currency string) string {
	if step(currency) > 1 {
		return "2.125"
	}
	return "0.123456789"
}

const back = "https://billing.example.com/back"

// afterRenewal is a day after the first renewal.
const afterRenewal = 29 * 24 * time.Hour

// debtor is a customer whose renewals were declined: one debt for each
// quantity, at price, in this order.
func debtor(s *scene, price string, quantities ...int64) (Made, []billing.Invoice) {
	s.Helper()
	m := s.World.Customer(Customer{Card: CardWorks, Price: price, Quantity: quantities[0]})
	last := m.Subscription
	for _, q := range quantities[1:] {
		s.World.Advance(time.Minute) // so that one debt is older than the next
		last = s.World.Subscribe(m.ID, price, q)
	}
	m.Card = s.World.Method(m.ID, CardDeclines)
	s.World.Default(m.ID, m.Card)
	a, err := s.Provider.Account(s.ctx, m.ID)
	s.must(err)
	sub, _ := a.Subscription(last)
	s.World.Advance(sub.PeriodEnd().Add(24 * time.Hour).Sub(s.World.Now()))
	a = s.account(m.ID)
	if len(a.Debts) != len(quantities) {
		s.Fatalf("%d debts, want %d", len(a.Debts), len(quantities))
	}
	return m, a.Debts
}

func ids(invoices []billing.Invoice) []string {
	var out []string
	for _, v := range invoices {
		out = append(out, v.ID)
	}
	return out
}

// pay carries out a preview of payments, each by itself, and notes what came of
// each: "" for one that is done.
func (s *scene) pay(customer string, p billing.Preview, refs map[string]string) []string {
	s.Helper()
	var out []string
	for _, st := range p.Steps {
		st.Refs = refs
		r, err := s.Provider.Execute(s.ctx, customer, st, s.key())
		if err != nil {
			s.noteErr("refused", err)
			if billing.FaultOf(err) != billing.Refused {
				s.Errorf("a payment that did not work: %v", err)
			}
			out = append(out, billing.CodeOf(err))
			continue
		}
		s.result("paid", r)
		if r.State == billing.Done {
			out = append(out, "")
		} else {
			out = append(out, string(r.State))
		}
	}
	return out
}

// sum checks a preview against the plain sum of what is owed.
func sum(s *scene, p billing.Preview, currency string, want ...int64) {
	s.Helper()
	var total int64
	for i, n := range want {
		total += n
		if i < len(p.Lines) && p.Lines[i].Amount != (billing.Money{Amount: n, Currency: currency}) {
			s.Errorf("line %d is %v, want %d", i, p.Lines[i].Amount, n)
		}
	}
	if len(p.Lines) != len(want) || p.DueNow != (billing.Money{Amount: total, Currency: currency}) || p.Total != p.DueNow {
		s.Errorf("%d lines, due %v of %v; want %d lines, %d %s", len(p.Lines), p.DueNow, p.Total, len(want), total, currency)
	}
	if total%step(currency) != 0 {
		s.Errorf("%d %s cannot be charged", total, currency)
	}
}

// refuses previews an action that cannot be.
func (s *scene) refusesAction(customer string, a billing.Action, code string) {
	s.Helper()
	_, err := s.Provider.Preview(s.ctx, customer, a, time.Time{})
	s.noteErr("preview", err)
	if want := billing.Refused; billing.FaultOf(err) != want || billing.CodeOf(err) != code {
		s.Errorf("%s: %v, want %s", a.Kind, err, code)
	}
}

// paidUp checks that nothing is owed any more and every subscription is active.
func paidUp(s *scene, customer string) billing.Account {
	s.Helper()
	a := s.account(customer)
	if len(a.Debts) != 0 {
		s.Errorf("still owed: %+v", a.Debts)
	}
	for _, sub := range a.Subscriptions {
		if sub.Status != billing.Active {
			s.Errorf("subscription is %s", sub.Status)
		}
	}
	return a
}

func methodTypes(s *scene) {
	m := s.World.Customer(Customer{})
	want := []billing.PaymentMethod{
		{Type: "card", Brand: "visa", Last4: "4242", Country: "US", ExpMonth: 12, ExpYear: 2030},
		{Type: "card", Brand: "visa", Last4: "4242", Country: "US", ExpMonth: 12, ExpYear: 2030, Wallet: "apple_pay"},
		{Type: "card", Brand: "mastercard", Last4: "4242", Country: "US", ExpMonth: 12, ExpYear: 2030, Wallet: "google_pay"},
		{Type: "sepa_debit", Last4: "3000", Bank: "37040044", Country: "DE"},
		{Type: "us_bank_account", Last4: "6789", Bank: "STRIPE TEST BANK", Country: "US"},
		{Type: "link", Email: "wallet@example.com"},
		{Type: "paypal", Email: "wallet@example.com", Country: "US"},
		{Type: "customer_balance"},
	}
	for i, number := range []string{CardWorks, "apple_pay", "google_pay", SEPAWorks, BankWorks, "link", "paypal", "bank_transfer"} {
		want[i].ID = s.World.Method(m.ID, number)
		s.World.Advance(time.Minute)
	}
	a := s.account(m.ID)
	slices.Reverse(want) // newest first
	if !slices.Equal(a.PaymentMethods, want) {
		s.Errorf("methods %+v\nwant    %+v", a.PaymentMethods, want)
	}
}

func methodEntered(s *scene) {
	m := s.World.Customer(on(basic))
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: back})
	s.carry(m.ID, p, func(r billing.Result) { s.World.EnterCard(r.GoTo, SEPAWorks) })
	a := s.account(m.ID)
	if pm, ok := a.Pays(&a.Subscriptions[0]); !ok || pm.Type != "sepa_debit" || pm.Last4 != "3000" || !pm.Debit() {
		s.Errorf("it is paid with %+v", pm)
	}
}

func methodDefaultOfOne(s *scene) {
	m := s.World.Customer(on(basic))
	second := s.World.Subscribe(m.ID, team, 1)
	other := s.World.Method(m.ID, CardOther)
	before := s.effects(m.ID)
	p := s.preview(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, Subscription: second, PaymentMethod: other})
	if len(p.Steps) != 1 {
		s.Errorf("%d steps for one subscription", len(p.Steps))
	}
	s.carry(m.ID, p, nil)
	a := s.account(m.ID)
	one, _ := a.Subscription(m.Subscription)
	two, _ := a.Subscription(second)
	if a.Customer.DefaultPaymentMethod != m.Card || one.DefaultPaymentMethod != "" || two.DefaultPaymentMethod != other || s.effects(m.ID) != before+1 {
		s.Errorf("defaults: customer %s, %q and %q", a.Customer.DefaultPaymentMethod, one.DefaultPaymentMethod, two.DefaultPaymentMethod)
	}
	if p.ObjectVersion == two.Version {
		s.Error("the subscription's version did not move with its default")
	}
}

func methodDefaultEnded(s *scene) {
	m := s.World.Customer(on(basic))
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.Cancel, Subscription: m.Subscription}), nil)
	s.World.Advance(35 * 24 * time.Hour)
	s.refusesAction(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, Subscription: m.Subscription, PaymentMethod: m.Card}, "not_changeable")
	s.refusesAction(m.ID, billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: m.Subscription, ReturnURL: back}, "not_changeable")
}

func methodAddedForOne(s *scene) {
	m := s.World.Customer(on(basic))
	second := s.World.Subscribe(m.ID, team, 1)
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: second, ReturnURL: back})
	s.carry(m.ID, p, func(r billing.Result) { s.World.EnterCard(r.GoTo, CardOther) })
	a := s.account(m.ID)
	one, _ := a.Subscription(m.Subscription)
	two, _ := a.Subscription(second)
	if pm, ok := a.Pays(two); !ok || pm.Last4 != "4444" || a.Customer.DefaultPaymentMethod != m.Card || one.DefaultPaymentMethod != "" {
		s.Errorf("the second is paid with %+v; defaults %s, %q", pm, a.Customer.DefaultPaymentMethod, one.DefaultPaymentMethod)
	}
}

func methodKept(s *scene) {
	m := s.World.Customer(on(basic))
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseNothing, ReturnURL: back})
	s.carry(m.ID, p, func(r billing.Result) { s.World.EnterCard(r.GoTo, CardOther) })
	a := s.account(m.ID)
	if len(p.Steps) != 1 || len(a.PaymentMethods) != 2 || a.Customer.DefaultPaymentMethod != m.Card || a.Subscriptions[0].DefaultPaymentMethod != "" {
		s.Errorf("%d steps, methods %+v, default %s", len(p.Steps), a.PaymentMethods, a.Customer.DefaultPaymentMethod)
	}
}

// methodPays fixes the payment method and pays what is owed, in one.
func methodPays(s *scene, currency string, unit int64) {
	m, debts := debtor(s, "price_"+currency, 1, 3)
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: back, Invoices: ids(debts)})
	sum(s, p, currency, unit, 3*unit)
	independent := 0
	for _, st := range p.Steps {
		if st.Independent {
			independent++
		}
	}
	last := s.carry(m.ID, p, func(r billing.Result) { s.World.EnterCard(r.GoTo, CardOther) })
	a := paidUp(s, m.ID)
	if pm, ok := a.Pays(&a.Subscriptions[0]); independent != 2 || !ok || pm.Last4 != "4444" || last.Invoice == nil || last.Invoice.Status != billing.InvoicePaid {
		s.Errorf("%d payments, then paid with %+v, %+v", independent, pm, last)
	}
}

func methodBadUse(s *scene) {
	m := s.World.Customer(on(basic))
	for _, a := range []billing.Action{
		{Use: billing.UseSubscription},
		{Use: billing.UseNothing, Subscription: m.Subscription},
		{Use: billing.UseEverything, Subscription: m.Subscription},
		{Use: "something"},
	} {
		a.Kind, a.ReturnURL = billing.AddPaymentMethod, back
		s.refusesAction(m.ID, a, "invalid_request")
	}
	s.refusesAction(m.ID, billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseNothing}, "invalid_request")
	s.refusesAction(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod}, "invalid_request")
	_, err := s.Provider.Preview(s.ctx, m.ID, billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: "sub_none", ReturnURL: back}, time.Time{})
	s.fails("no such subscription", err, billing.NotFound)
}

// methodDebitForWaiting adds a bank account while a change waits for a day: it
// becomes the default, and the change is not paid with it.
func methodDebitForWaiting(s *scene) {
	m, st, key, r := declined(s)
	bank := s.World.Method(m.ID, SEPAWorks)
	set := s.preview(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: bank})
	s.carry(m.ID, set, nil)
	now(s, m, st, key, r, billing.Applied, billing.AwaitingCustomer)
	p := s.preview(m.ID, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: back})
	pay := p.Steps[len(p.Steps)-1]
	pay.Refs = map[string]string{"payment_method": bank}
	before := s.effects(m.ID)
	_, err := s.Provider.Execute(s.ctx, m.ID, pay, s.key())
	s.fails("pay", err, billing.Refused)
	s.noteErr("code", err)
	if billing.CodeOf(err) != "not_changeable" || s.effects(m.ID) != before {
		s.Errorf("a debit for what waits a day: %v", err)
	}
}

func methodRemoved(s *scene) {
	m := s.World.Customer(on(basic))
	other := s.World.Method(m.ID, CardOther)
	p := s.preview(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: other})
	before := s.effects(m.ID)
	s.carry(m.ID, p, nil)
	a := s.account(m.ID)
	if len(a.PaymentMethods) != 1 || a.PaymentMethods[0].ID != m.Card || a.Customer.DefaultPaymentMethod != m.Card || s.effects(m.ID) != before+1 {
		s.Errorf("methods %+v", a.PaymentMethods)
	}
	// The default of a customer with no subscription goes as well.
	bare := s.World.Customer(Customer{Card: CardWorks})
	s.carry(bare.ID, s.preview(bare.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: bare.Card}), nil)
	if a := s.account(bare.ID); len(a.PaymentMethods) != 0 || a.Customer.DefaultPaymentMethod != "" {
		s.Errorf("methods %+v, default %q", a.PaymentMethods, a.Customer.DefaultPaymentMethod)
	}
}

func methodInUse(s *scene) {
	remove := func(m Made, pm string) {
		s.Helper()
		s.refusesAction(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: pm}, "in_use")
	}
	m := s.World.Customer(on(basic))
	other := s.World.Method(m.ID, CardOther)
	remove(m, m.Card) // the customer's default
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, Subscription: m.Subscription, PaymentMethod: other}), nil)
	remove(m, other)                                                                                              // the subscription's own
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: m.Card}), nil) // nothing needs it now
	trial := s.World.Customer(Customer{Card: CardWorks, Price: team, Quantity: 1, Trial: 14 * 24 * time.Hour})
	s.World.Method(trial.ID, CardOther)
	remove(trial, trial.Card)
	due, _ := debtor(s, basic, 1)
	remove(due, due.Card) // past due
}

// methodInUseByDebt removes what an ended subscription's debt is paid with.
func methodInUseByDebt(s *scene) {
	m, _ := debtor(s, basic, 1)
	s.World.Advance(10 * 24 * time.Hour) // given up, and cancelled
	a := s.account(m.ID)
	if len(a.Debts) != 1 || a.Subscriptions[0].Status != billing.Canceled {
		s.Fatalf("%d debts, subscription %s", len(a.Debts), a.Subscriptions[0].Status)
	}
	s.refusesAction(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: m.Card}, "in_use")
	bank := s.World.Method(m.ID, SEPAWorks)
	s.pay(m.ID, s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(a.Debts), PaymentMethod: bank}), nil)
	s.refusesAction(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: bank}, "in_use") // its payment is on its way
	s.World.Advance(6 * 24 * time.Hour)
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: m.Card}), nil)
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: bank}), nil)
}

func methodLast(s *scene) {
	m := s.World.Customer(on(basic))
	other := s.World.Method(m.ID, CardOther)
	s.World.Default(m.ID, "")
	s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: other}), nil)
	s.refusesAction(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: m.Card}, "last_payment_method")
	hand := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 1, SendInvoice: true})
	s.carry(hand.ID, s.preview(hand.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: hand.Card}), nil)
}

func methodOfAnother(s *scene) {
	mine, other := s.World.Customer(on(basic)), s.World.Customer(on(basic))
	spare := s.World.Method(other.ID, CardOther)
	before := s.effects(other.ID)
	for _, pm := range []string{spare, "pm_none", ""} {
		_, err := s.Provider.Preview(s.ctx, mine.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: pm}, time.Time{})
		s.fails("preview", err, billing.NotFound)
	}
	st := s.preview(other.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: spare}).Steps[0]
	_, err := s.Provider.Execute(s.ctx, mine.ID, st, s.key())
	s.fails("execute", err, billing.NotFound)
	_, _, err = s.Provider.Outcome(s.ctx, mine.ID, st, s.key(), nil)
	s.fails("outcome", err, billing.NotFound)
	if s.effects(other.ID) != before {
		s.Error("the other customer saw an effect")
	}
}

func methodRemovedTwice(s *scene) {
	m := s.World.Customer(on(basic))
	other := s.World.Method(m.ID, CardOther)
	act := billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: other}
	st := s.preview(m.ID, act).Steps[0]
	before, key := s.effects(m.ID), s.key()
	for range 2 {
		r, err := s.Provider.Execute(s.ctx, m.ID, st, key)
		s.must(err)
		s.result("removed", r)
	}
	_, err := s.Provider.Execute(s.ctx, m.ID, st, s.key())
	s.fails("another key", err, billing.Refused)
	if billing.CodeOf(err) != "not_changeable" || s.effects(m.ID) != before+1 {
		s.Errorf("removed once more: %v", err)
	}
	_, err = s.Provider.Preview(s.ctx, m.ID, act, time.Time{})
	s.fails("preview", err, billing.NotFound)
}

func payDebts(s *scene) {
	m, debts := debtor(s, basic, 1, 2)
	a := s.account(m.ID)
	for i, v := range debts {
		if !v.Debt() || !v.PastDue(a.AsOf) || v.Failure != "card_declined" || v.Method == nil || v.Method.ID != m.Card || v.PaymentPage == "" || v.SendInvoice || v.Processing || v.NextAttempt.IsZero() {
			s.Errorf("debt %d is %+v", i, v)
		}
		j := slices.IndexFunc(a.Invoices, func(w billing.Invoice) bool { return w.ID == v.ID })
		if j < 0 || a.Invoices[j].Failure != v.Failure || a.Invoices[j].Method == nil {
			s.Error("the latest invoices do not say of a debt what the debts say")
		}
	}
	if v := a.Invoices[len(a.Invoices)-1]; v.Status != billing.InvoicePaid || v.PaymentPage != "" || v.Failure != "" || v.Method != nil {
		s.Errorf("a paid one is %+v", v)
	}
	s.World.Advance(28 * 24 * time.Hour)
	if a := s.account(m.ID); len(a.Debts) != 2 || !a.Debts[0].NextAttempt.IsZero() || a.Subscriptions[0].Status != billing.Canceled {
		s.Errorf("given up: %+v", a.Debts)
	}
}

func payOne(s *scene, currency string, unit int64) {
	m, debts := debtor(s, "price_"+currency, 3)
	works := s.World.Method(m.ID, CardOther)
	p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: works, ReturnURL: back})
	sum(s, p, currency, 3*unit)
	if !p.Steps[0].Independent || p.Lines[0].Description != debts[0].Number {
		s.Errorf("step %+v, line %+v", p.Steps[0], p.Lines[0])
	}
	before := s.effects(m.ID)
	if got := s.pay(m.ID, p, nil); !slices.Equal(got, []string{""}) || s.effects(m.ID) != before+1 {
		s.Errorf("paying gives %q", got)
	}
	a := paidUp(s, m.ID)
	if v := a.Invoices[0]; v.ID != debts[0].ID || v.AmountPaid.Amount != 3*unit || v.AmountRemaining.Amount != 0 || a.Customer.DefaultPaymentMethod != m.Card {
		s.Errorf("paid: %+v", v)
	}
}

func payAll(s *scene, currency string, unit int64) {
	m, debts := debtor(s, "price_"+currency, 1, 3, 2)
	s.World.Default(m.ID, s.World.Method(m.ID, CardWorks))
	act := billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts)}
	p := s.preview(m.ID, act)
	sum(s, p, currency, unit, 3*unit, 2*unit)
	if got := s.pay(m.ID, p, nil); !slices.Equal(got, []string{"", "", ""}) {
		s.Errorf("paying gives %q", got)
	}
	paidUp(s, m.ID)
	s.refusesAction(m.ID, act, "not_changeable")
}

// payPartly pays three debts, each with its own method: the second is declined.
func payPartly(s *scene) {
	m, debts := debtor(s, basic, 1, 2, 3)
	works := s.World.Method(m.ID, CardOther)
	for _, i := range []int{0, 2} {
		s.carry(m.ID, s.preview(m.ID, billing.Action{Kind: billing.SetDefaultPaymentMethod, Subscription: debts[i].Subscription, PaymentMethod: works}), nil)
	}
	p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts)})
	sum(s, p, "usd", 1000, 2000, 3000)
	if got := s.pay(m.ID, p, nil); !slices.Equal(got, []string{"", "card_declined", ""}) {
		s.Errorf("paying gives %q", got)
	}
	a := s.account(m.ID)
	if len(a.Debts) != 1 || a.Debts[0].ID != debts[1].ID || a.Debts[0].AmountRemaining.Amount != 2000 {
		s.Errorf("left: %+v", a.Debts)
	}
	for i, want := range []billing.SubscriptionStatus{billing.Active, billing.PastDue, billing.Active} {
		if sub, _ := a.Subscription(debts[i].Subscription); sub.Status != want {
			s.Errorf("subscription %d is %s", i, sub.Status)
		}
	}
}

func payReasons(s *scene) {
	m, debts := debtor(s, basic, 1)
	for _, c := range [][2]string{
		{CardDeclines, "card_declined"}, {"4000000000009995", "insufficient_funds"}, {"4000000000000069", "expired_card"}, {"4000000000009987", "card_declined"},
	} {
		pm := s.World.Method(m.ID, c[0])
		p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: pm})
		if got := s.pay(m.ID, p, nil); got[0] != c[1] {
			s.Errorf("card %s: %q, want %q", c[0], got, c[1])
		}
		if v := s.account(m.ID).Debts[0]; v.Failure != c[1] || v.Method == nil || v.Method.ID != pm {
			s.Errorf("card %s: the debt says %q, %+v", c[0], v.Failure, v.Method)
		}
	}
}

// payAsked pays a debt with a card whose bank asks.
func payAsked(s *scene) (Made, billing.Step, string, billing.Result) {
	s.Helper()
	m, debts := debtor(s, basic, 2)
	p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: s.World.Method(m.ID, CardAsks), ReturnURL: back})
	key := s.key()
	r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	s.result("result", r)
	if r.State != billing.AwaitingCustomer || r.Reason != "authentication_required" || r.GoTo == "" || !r.Until.Equal(s.World.Now().Add(time.Hour)) {
		s.Fatalf("a card that asks gives %+v", r)
	}
	if to := s.World.LeadsBack(r.GoTo); to != back {
		s.Errorf("the page leads back to %q", to)
	}
	if v := s.account(m.ID).Debts[0]; v.Failure != "authentication_required" {
		s.Errorf("the debt says %q", v.Failure)
	}
	return m, p.Steps[0], key, r
}

func payConfirmed(s *scene) {
	m, st, key, r := payAsked(s)
	now(s, m, st, key, r, billing.Applied, billing.AwaitingCustomer)
	// Sent again, it is the same page still.
	again, err := s.Provider.Execute(s.ctx, m.ID, st, key)
	s.must(err)
	if again.GoTo != r.GoTo || !again.Until.Equal(r.Until) {
		s.Errorf("sent again: %+v", again)
	}
	s.World.Confirm(r.GoTo, true)
	now(s, m, st, key, r, billing.Applied, billing.Done)
	paidUp(s, m.ID)
}

func payNotConfirmed(s *scene) {
	m, st, key, r := payAsked(s)
	s.World.Confirm(r.GoTo, false)
	now(s, m, st, key, r, billing.NotApplied, "")
	if v := s.account(m.ID).Debts[0]; v.Failure != "authentication_required" || !v.PastDue(s.World.Now()) {
		s.Errorf("the debt is %+v", v)
	}
}

func payNeverConfirmed(s *scene) {
	m, st, key, r := payAsked(s)
	s.World.Advance(59 * time.Minute)
	now(s, m, st, key, r, billing.Applied, billing.AwaitingCustomer)
	s.World.Advance(time.Minute)
	now(s, m, st, key, r, billing.NotApplied, "")
	if a := s.account(m.ID); len(a.Debts) != 1 {
		s.Errorf("debts %+v", a.Debts)
	}
}

// payAskedAtRenewal is past due because the bank wants to be asked each time.
func payAskedAtRenewal(s *scene) {
	m := s.World.Customer(Customer{Card: "4000002760003184", Price: basic, Quantity: 2})
	s.World.Advance(afterRenewal)
	a := s.account(m.ID)
	if len(a.Debts) != 1 || a.Debts[0].Failure != "authentication_required" || a.Subscriptions[0].Status != billing.PastDue {
		s.Fatalf("debts %+v", a.Debts)
	}
	p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(a.Debts), ReturnURL: back})
	s.carry(m.ID, p, func(r billing.Result) { s.World.Confirm(r.GoTo, true) })
	paidUp(s, m.ID)
}

// debit pays one debt by bank debit and returns while it is on its way.
func debit(s *scene, price, number string) (Made, []billing.Invoice, billing.Step, string, billing.Result) {
	s.Helper()
	m, debts := debtor(s, price, 2)
	p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: s.World.Method(m.ID, number)})
	key := s.key()
	r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	s.result("result", r)
	a := s.account(m.ID)
	if v := a.Debts[0]; r.State != billing.Processing || !v.Processing || v.Failure != "" || v.PastDue(a.AsOf) || v.Method == nil || !v.Method.Debit() {
		s.Fatalf("a debit gives %+v, the debt is %+v", r, v)
	}
	s.World.Advance(4 * 24 * time.Hour)
	now(s, m, p.Steps[0], key, r, billing.Applied, billing.Processing)
	return m, debts, p.Steps[0], key, r
}

func payDebit(s *scene, currency string, unit int64) {
	m, debts, st, key, r := debit(s, "price_"+currency, SEPAWorks)
	s.World.Advance(24 * time.Hour)
	now(s, m, st, key, r, billing.Applied, billing.Done)
	a := paidUp(s, m.ID)
	if v := a.Invoices[0]; v.ID != debts[0].ID || v.AmountPaid != (billing.Money{Amount: 2 * unit, Currency: currency}) {
		s.Errorf("paid: %+v", v)
	}
}

func payDebitBack(s *scene) {
	// In one order: both providers' accounts are compared as they are noted.
	for _, c := range [][2]string{{BankFails, "insufficient_funds"}, {SEPAFails, "card_declined"}} {
		number, code := c[0], c[1]
		m, _, st, key, r := debit(s, basic, number)
		s.World.Advance(24 * time.Hour)
		o, _, err := s.Provider.Outcome(s.ctx, m.ID, st, key, &r)
		s.must(err)
		a, err := s.Provider.Account(s.ctx, m.ID)
		s.must(err)
		if v := a.Debts[0]; o != billing.NotApplied || v.Processing || v.Failure != code || !v.PastDue(a.AsOf) || a.Subscriptions[0].Status != billing.PastDue {
			s.Errorf("sent back: %s, %+v", o, v)
		}
	}
	s.note("came back", true)
}

func payDebitBlocks(s *scene) {
	m, debts, st, _, _ := debit(s, basic, BankWorks)
	works := s.World.Method(m.ID, CardWorks)
	s.refusesAction(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: works}, "not_changeable")
	before := s.effects(m.ID)
	_, err := s.Provider.Execute(s.ctx, m.ID, st, s.key())
	s.fails("pay again", err, billing.Refused)
	if billing.CodeOf(err) != "not_changeable" || s.effects(m.ID) != before {
		s.Errorf("paid while a debit is on its way: %v", err)
	}
}

func payTwice(s *scene) {
	m, debts := debtor(s, basic, 2)
	p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: s.World.Method(m.ID, CardWorks)})
	before, key := s.effects(m.ID), s.key()
	for range 3 {
		r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
		s.must(err)
		s.result("result", r)
		if r.State != billing.Done || r.Invoice == nil || r.Invoice.Status != billing.InvoicePaid {
			s.Errorf("paid: %+v", r)
		}
	}
	if n := s.effects(m.ID) - before; n != 1 {
		s.Errorf("one key, three times: %d effects", n)
	}
	// A decline is kept under its key as well.
	bad, owed := debtor(s, basic, 1)
	st, key := s.preview(bad.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(owed)}).Steps[0], s.key()
	for range 2 {
		_, err := s.Provider.Execute(s.ctx, bad.ID, st, key)
		s.fails("declined", err, billing.Refused)
		s.noteErr("code", err)
	}
}

func payPaid(s *scene) {
	m, debts := debtor(s, basic, 2)
	act := billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: s.World.Method(m.ID, CardWorks)}
	stale := s.preview(m.ID, act)
	s.pay(m.ID, s.preview(m.ID, act), nil)
	before := s.effects(m.ID)
	_, err := s.Provider.Execute(s.ctx, m.ID, stale.Steps[0], s.key())
	s.fails("pay what is paid", err, billing.Refused)
	if billing.CodeOf(err) != "not_changeable" || s.effects(m.ID) != before {
		s.Errorf("paid twice: %v", err)
	}
	s.refusesAction(m.ID, act, "not_changeable")
}

func payOfAnother(s *scene) {
	mine := s.World.Customer(on(basic))
	other, debts := debtor(s, basic, 2)
	before := s.effects(other.ID)
	for _, a := range []billing.Action{
		{Kind: billing.PayInvoices, Invoices: ids(debts)},
		{Kind: billing.PayInvoices, Invoices: []string{"in_none"}},
		{Kind: billing.AddPaymentMethod, Invoices: ids(debts), ReturnURL: back},
	} {
		_, err := s.Provider.Preview(s.ctx, mine.ID, a, time.Time{})
		s.fails("preview", err, billing.NotFound)
	}
	_, err := s.Provider.Preview(s.ctx, other.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: mine.Card}, time.Time{})
	s.fails("with another's card", err, billing.NotFound)
	st := s.preview(other.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts)}).Steps[0]
	_, err = s.Provider.Execute(s.ctx, mine.ID, st, s.key())
	s.fails("execute", err, billing.NotFound)
	if s.effects(other.ID) != before {
		s.Error("the other customer saw an effect")
	}
}

// payWaiting: what a change waits for is no debt.
func payWaiting(s *scene) {
	m, _, _, _ := declined(s)
	a := s.account(m.ID)
	if len(a.Debts) != 0 {
		s.Errorf("debts %+v", a.Debts)
	}
	s.refusesAction(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: []string{a.Subscriptions[0].Pending.InvoiceID}}, "not_changeable")
}

func payByHand(s *scene) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 3, SendInvoice: true})
	a := s.account(m.ID)
	if len(a.Debts) != 1 || !a.Debts[0].SendInvoice || a.Debts[0].PastDue(a.AsOf) || a.Debts[0].PaymentPage == "" {
		s.Fatalf("debts %+v", a.Debts)
	}
	s.World.Advance(40 * 24 * time.Hour)
	a = s.account(m.ID)
	if len(a.Debts) != 2 || !a.Debts[0].PastDue(a.AsOf) || a.Debts[1].PastDue(a.AsOf) || !a.Debts[0].Created.Before(a.Debts[1].Created) {
		s.Fatalf("debts %+v", a.Debts)
	}
	p := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(a.Debts)})
	sum(s, p, "usd", 3000, 3000)
	if got := s.pay(m.ID, p, nil); !slices.Equal(got, []string{"", ""}) {
		s.Errorf("paying gives %q", got)
	}
	paidUp(s, m.ID)
}

func payNoMethod(s *scene) {
	m := s.World.Customer(Customer{Price: basic, Quantity: 1, SendInvoice: true})
	a := s.account(m.ID)
	s.refusesAction(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(a.Debts)}, "payment_method_required")
}

func payBadList(s *scene) {
	m, debts := debtor(s, basic, 1)
	for _, list := range [][]string{nil, {debts[0].ID, debts[0].ID}, slices.Repeat(ids(debts), billing.MaxPay+1)} {
		s.refusesAction(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: list}, "invalid_request")
	}
}

func payByTransfer(s *scene) {
	m, debts := debtor(s, basic, 1)
	s.refusesAction(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: s.World.Method(m.ID, "bank_transfer")}, "invalid_request")
}

// payStale: a page that shows a sum is found out when a debt in it moves.
func payStale(s *scene) {
	m, debts := debtor(s, basic, 1, 2)
	act := billing.Action{Kind: billing.AddPaymentMethod, Invoices: ids(debts), ReturnURL: back}
	p, again := s.preview(m.ID, act), s.preview(m.ID, act)
	if !p.SameTerms(again) {
		s.Error("nothing moved and the terms are others")
	}
	one := act
	one.Invoices = ids(debts[:1])
	q := s.preview(m.ID, one)
	if q.ObjectVersion == p.ObjectVersion || q.SameTerms(p) {
		s.Error("other debts have the same version")
	}
}

// debited makes an upgrade that is paid by bank debit.
func debited(s *scene, number string) (Made, billing.Step, string, billing.Result) {
	s.Helper()
	m := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 2})
	m.Card = s.World.Method(m.ID, number)
	s.World.Default(m.ID, m.Card)
	s.World.Advance(by)
	p := s.preview(m.ID, change(m, team, 2))
	key := s.key()
	r, err := s.Provider.Execute(s.ctx, m.ID, p.Steps[0], key)
	s.must(err)
	s.result("result", r)
	if r.State != billing.Processing || r.Invoice == nil || r.Invoice.Status != billing.InvoiceOpen || r.Invoice.AmountDue != p.DueNow {
		s.Fatalf("paid by debit, the change gives %+v", r)
	}
	a := s.account(m.ID)
	if sub := a.Subscriptions[0]; sub.Pending != nil || sub.Items[0].Price.ID != team || sub.Status != billing.Active || !a.Debts[0].Processing {
		s.Errorf("meanwhile: %+v", sub)
	}
	now(s, m, p.Steps[0], key, r, billing.Applied, billing.Processing)
	s.World.Advance(5 * 24 * time.Hour)
	now(s, m, p.Steps[0], key, r, billing.Applied, billing.Done)
	return m, p.Steps[0], key, r
}

func changeDebit(s *scene) {
	m, _, _, _ := debited(s, SEPAWorks)
	paidUp(s, m.ID)
}

func changeDebitBack(s *scene) {
	m, _, _, _ := debited(s, BankFails)
	a := s.account(m.ID)
	if len(a.Debts) != 1 || a.Debts[0].Failure != "insufficient_funds" || a.Subscriptions[0].Status != billing.PastDue || a.Subscriptions[0].Items[0].Price.ID != team {
		s.Errorf("sent back: %+v", a.Debts)
	}
}

// renewalDebit renews by bank debit: active while it is on its way, past due
// when it comes back, and given up in the end.
func renewalDebit(s *scene) {
	m := s.World.Customer(Customer{Card: CardWorks, Price: basic, Quantity: 1})
	s.World.Default(m.ID, s.World.Method(m.ID, SEPAFails))
	s.World.Advance(afterRenewal)
	a := s.account(m.ID)
	if a.Subscriptions[0].Status != billing.Active || len(a.Debts) != 1 || !a.Debts[0].Processing {
		s.Errorf("on its way: %s, %+v", a.Subscriptions[0].Status, a.Debts)
	}
	s.World.Advance(5 * 24 * time.Hour)
	a = s.account(m.ID)
	if a.Subscriptions[0].Status != billing.PastDue || a.Debts[0].Processing || a.Debts[0].Failure != "card_declined" || a.Debts[0].NextAttempt.IsZero() {
		s.Errorf("sent back: %s, %+v", a.Subscriptions[0].Status, a.Debts)
	}
	s.World.Advance(8 * 24 * time.Hour)
	if a = s.account(m.ID); a.Subscriptions[0].Status != billing.Canceled || a.Debts[0].Processing {
		s.Errorf("in the end: %s, %+v", a.Subscriptions[0].Status, a.Debts)
	}
}

// lost sends a step into a lost request and a lost answer, reads what came of
// it, and sends it again with the same key.
func lost(s *scene, customer string, st billing.Step) {
	s.Helper()
	before, key := s.effects(customer), s.key()
	for _, k := range []sandbox.FaultKind{sandbox.FaultTimeoutBefore, sandbox.FaultTimeoutAfter} {
		s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: k})
		_, err := s.Provider.Execute(s.ctx, customer, st, key)
		s.fails(string(k), err, billing.Unknown)
		o, r, err := s.Provider.Outcome(s.ctx, customer, st, key, nil)
		s.must(err)
		s.note("outcome", o)
		s.result("result", r)
		if (o == billing.Applied) != (k == sandbox.FaultTimeoutAfter) {
			s.Errorf("%s: outcome %s", k, o)
		}
	}
	if r, err := s.Provider.Execute(s.ctx, customer, st, key); err != nil || r.State != billing.Done {
		s.Errorf("the same key again: %+v, %v", r, err)
	}
	if n := s.effects(customer) - before; n != 1 {
		s.Errorf("%d effects in the end", n)
	}
}

func faultPay(s *scene) {
	m, debts := debtor(s, basic, 2)
	lost(s, m.ID, s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: s.World.Method(m.ID, CardWorks)}).Steps[0])
	paidUp(s, m.ID)
}

func faultRemove(s *scene) {
	m := s.World.Customer(on(basic))
	lost(s, m.ID, s.preview(m.ID, billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: s.World.Method(m.ID, CardOther)}).Steps[0])
}

func faultDrop(s *scene) {
	m, _, _, _ := declined(s)
	lost(s, m.ID, s.preview(m.ID, billing.Action{Kind: billing.DropPending, Subscription: m.Subscription}).Steps[0])
}

func faultPayDeclined(s *scene) {
	m, debts := debtor(s, basic, 2)
	st, key := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts)}).Steps[0], s.key()
	s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: sandbox.FaultTimeoutAfter})
	_, err := s.Provider.Execute(s.ctx, m.ID, st, key)
	s.fails("execute", err, billing.Unknown)
	now(s, m, st, key, billing.Result{}, billing.NotApplied, "")
	_, err = s.Provider.Execute(s.ctx, m.ID, st, key)
	s.fails("again", err, billing.Refused)
	s.noteErr("code", err)
}

// faultPayAsks loses the answer that says that the bank asks.
func faultPayAsks(s *scene) {
	m, debts := debtor(s, basic, 2)
	st, key := s.preview(m.ID, billing.Action{Kind: billing.PayInvoices, Invoices: ids(debts), PaymentMethod: s.World.Method(m.ID, CardAsks), ReturnURL: back}).Steps[0], s.key()
	s.World.Fault(sandbox.Fault{On: "execute", Times: 1, Kind: sandbox.FaultTimeoutAfter})
	_, err := s.Provider.Execute(s.ctx, m.ID, st, key)
	s.fails("execute", err, billing.Unknown)
	o, r, err := s.Provider.Outcome(s.ctx, m.ID, st, key, nil)
	s.must(err)
	s.note("outcome", o)
	s.result("result", r)
	if o != billing.Applied || r.State != billing.AwaitingCustomer || r.GoTo == "" || r.Until.IsZero() {
		s.Fatalf("outcome %s, %+v", o, r)
	}
	s.World.Confirm(r.GoTo, true)
	now(s, m, st, key, r, billing.Applied, billing.Done)
}
