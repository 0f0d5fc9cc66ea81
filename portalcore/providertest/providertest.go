// Package providertest is the suite that every billing.Provider passes: named
// scenarios that read, preview, carry out and look again, with faults. What a
// customer could tell about each scenario is kept as a transcript, so that two
// providers over the same world can be compared word for word.
package providertest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// Env is what a scenario runs in. Every scenario opens a new one.
type Env struct {
	Provider billing.Provider
	// World is the other side of Provider: it makes customers, moves the clock
	// and knows what was changed.
	World World
	// Secrets are the signing secrets that the provider's events are checked
	// with, two of them. Events are of test mode.
	Secrets []string
}

// World is the control over what is behind a provider. Its methods fail the
// test when they cannot do what they say.
type World interface {
	// Now is the provider's time. It moves by Advance only.
	Now() time.Time
	Advance(d time.Duration)
	Fault(f sandbox.Fault)
	ClearFaults()
	// Effects are the changes of a customer so far.
	Effects(customer string) []sandbox.Effect
	// Customer makes a customer as told.
	Customer(c Customer) Made
	// Price makes a recurring price, with a product of its own.
	Price(id, currency, amount string, interval billing.Interval)
	// EnterCard fills in the card page behind goTo.
	EnterCard(goTo, number string)
	// Confirm answers the confirmation page behind goTo.
	Confirm(goTo string, yes bool)
	// LeadsBack is where the confirmation page behind goTo leads back to.
	LeadsBack(goTo string) string
	// Method stores a payment method by its test number, and makes it nobody's
	// default.
	Method(customer, number string) string
	// Default makes a payment method the customer's default, "" for none.
	Default(customer, method string)
	// Subscribe makes another subscription.
	Subscribe(customer, price string, quantity int64) string
	// Details changes a customer as the vendor would.
	Details(customer string, p sandbox.CustomerParams)
	// CreditNote takes an amount with tax off an invoice, and returns the note's
	// id: off what an open one asks for, back to the card that paid it, or to the
	// balance.
	CreditNote(invoice string, amount int64, toBalance bool) string
	VoidCreditNote(id string)
	UsageWorld
}

// Customer says what customer to make.
type Customer struct {
	// Card is the number of the default card, or of another test payment method,
	// "" for none.
	Card string
	// Price and Quantity are the subscription's; "" for no subscription.
	Price    string
	Quantity int64
	// More are further items, price to quantity.
	More map[string]int64
	// OwnDefault makes the card the subscription's default as well.
	OwnDefault  bool
	Trial       time.Duration
	SendInvoice bool
	// Credit is given on the balance, in minor units of the price's currency.
	Credit int64
	// TaxPercent, such as "19".
	TaxPercent string
	// Metered are the metered prices that are billed for usage as well.
	Metered []string
}

// Made is a customer that was made. Ids are "" where there is no such object.
type Made struct {
	ID, Subscription, Card string
	Items                  []string // item ids, in the order of the subscription
}

// Test cards.
const (
	CardWorks    = "4242424242424242"
	CardOther    = "5555555555554444"
	CardDeclines = "4000000000000341"
	CardAsks     = "4000002500003155"
)

// Test bank accounts: those that fail do so days later.
const (
	SEPAWorks = "DE89370400440532013000"
	SEPAFails = "DE62370400440532013001"
	BankWorks = "000123456789"
	BankFails = "000222222227"
)

// Transcripts are what the scenarios saw, by name.
type Transcripts map[string][]string

// scene is one scenario being run.
type scene struct {
	*testing.T
	ctx context.Context
	Env
	notes []string
	keys  int
}

// Run runs every scenario as a parallel subtest. The transcripts are complete
// when t's function has returned.
func Run(t *testing.T, open func(t *testing.T) Env) Transcripts {
	t.Helper()
	out := Transcripts{}
	var mu sync.Mutex
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scene{T: t, ctx: context.Background(), Env: open(t)}
			s.catalogue()
			scenarios[name](s)
			if len(s.notes) == 0 {
				t.Error("the scenario noted nothing, so there is nothing to compare")
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = normal(s.notes)
		})
	}
	return out
}

// Compare fails the test where two providers' transcripts differ.
func Compare(t *testing.T, nameA string, a Transcripts, nameB string, b Transcripts) {
	t.Helper()
	for name := range scenarios {
		x, y := a[name], b[name]
		if len(x) == 0 || len(y) == 0 {
			t.Errorf("%s: %d lines over %s, %d over %s", name, len(x), nameA, len(y), nameB)
		}
		for i := range max(len(x), len(y)) {
			var l, r string
			if i < len(x) {
				l = x[i]
			}
			if i < len(y) {
				r = y[i]
			}
			if l != r {
				// The beginning of a long line is the same: show where it ends.
				at := 0
				for at < len(l) && at < len(r) && l[at] == r[at] {
					at++
				}
				from := max(0, at-120)
				cut := func(x string) string { return x[min(from, len(x)):min(at+240, len(x))] }
				what, _, _ := strings.Cut(l+r, " ")
				t.Errorf("%s, line %d (%s)\n%s: … %s\n%s: … %s", name, i+1, what, nameA, cut(l), nameB, cut(r))
			}
		}
	}
}

var (
	idPattern     = regexp.MustCompile(`"(cus|sub|si|in|pm|cs_test|pi|prod|credgr|cbtxn|cbtxn_test|ch|cn|txi)_[A-Za-z0-9]+"`)
	numberPattern = regexp.MustCompile(`"[0-9A-Z]{6,}-(\d{4}(?:-CN-\d+)?)"`)
)

// normal replaces ids by the order in which they were seen.
func normal(notes []string) []string {
	seen := map[string]string{}
	out := make([]string, len(notes))
	for i, n := range notes {
		n = idPattern.ReplaceAllStringFunc(n, func(id string) string {
			if seen[id] == "" {
				kind, _, _ := strings.Cut(id, "_")
				seen[id] = fmt.Sprintf("%s#%d\"", kind, len(seen)+1)
			}
			return seen[id]
		})
		out[i] = numberPattern.ReplaceAllString(n, `"NUMBER-$1"`)
	}
	return out
}

// note adds a line to the transcript.
func (s *scene) note(what string, v any) {
	s.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		s.Fatal(err)
	}
	s.notes = append(s.notes, what+" "+string(b))
}

// noteErr notes what an error means.
func (s *scene) noteErr(what string, err error) {
	s.note(what, [2]string{string(billing.FaultOf(err)), billing.CodeOf(err)})
}

// must fails the scenario on an error.
func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// fails checks that err has the fault and notes it.
func (s *scene) fails(what string, err error, fault billing.Fault) {
	s.Helper()
	if billing.FaultOf(err) != fault {
		s.Errorf("%s: error %v, want fault %s", what, err, fault)
	}
	s.note(what, fault)
}

// seen is an account without what may differ from one provider to another.
func seen(a billing.Account) billing.Account {
	a.Customer.Version = ""
	a.Subscriptions = slices.Clone(a.Subscriptions)
	for i := range a.Subscriptions {
		sub := &a.Subscriptions[i]
		// Stripe sets cancel_at together with the flag.
		sub.CancelAt, sub.Version = sub.Ends(), ""
		if sub.Pending != nil {
			p := *sub.Pending
			p.ConfirmURL = present(p.ConfirmURL)
			sub.Pending = &p
		}
	}
	for _, list := range []*[]billing.Invoice{&a.Invoices, &a.Debts} {
		*list = slices.Clone(*list)
		for i := range *list {
			(*list)[i] = seenInvoice((*list)[i])
		}
	}
	return a
}

// seenInvoice is an invoice without what may differ: which line describes it,
// and whether one that is settled was once for a change that waited, which
// Stripe does not say.
func seenInvoice(v billing.Invoice) billing.Invoice {
	v.Description, v.PaymentPage = present(v.Description), present(v.PaymentPage)
	v.ForPendingUpdate = v.ForPendingUpdate && v.Status == billing.InvoiceOpen
	return v
}

func present(url string) string {
	if url == "" {
		return ""
	}
	return "there"
}

func (s *scene) account(customer string) billing.Account {
	s.Helper()
	a, err := s.Provider.Account(s.ctx, customer)
	s.must(err)
	s.note("account", seen(a))
	return a
}

// preview previews and notes what the customer would read.
func (s *scene) preview(customer string, a billing.Action) billing.Preview {
	s.Helper()
	p, err := s.Provider.Preview(s.ctx, customer, a, time.Time{})
	s.must(err)
	q := p
	q.ObjectVersion, q.Steps = "", nil
	s.note("preview", q)
	s.note("steps", len(p.Steps))
	if p.ObjectVersion == "" || len(p.Steps) == 0 {
		s.Error("the preview has no object version or no step")
	}
	return p
}

// result notes a result.
func (s *scene) result(what string, r billing.Result) billing.Result {
	s.Helper()
	q := r
	q.GoTo, q.Refs, q.Object = present(q.GoTo), nil, ""
	if q.Invoice != nil {
		// Its lines and sums are in the account too; here it is that there is
		// one and what it comes to.
		v := seenInvoice(billing.Invoice{Status: q.Invoice.Status, Total: q.Invoice.Total, AmountDue: q.Invoice.AmountDue, ForPendingUpdate: q.Invoice.ForPendingUpdate})
		q.Invoice = &v
	}
	s.note(what, q)
	return r
}

// key is a new idempotency key.
func (s *scene) key() string {
	s.keys++
	return fmt.Sprintf("intent-%d.0", s.keys)
}

// carry sends a preview's steps in order. answer is what the customer does
// where a step waits for it; with nil the scenario stops there. It returns the
// last result.
func (s *scene) carry(customer string, p billing.Preview, answer func(billing.Result)) billing.Result {
	s.Helper()
	refs := map[string]string{}
	var last billing.Result
	for _, st := range p.Steps {
		for _, n := range st.Needs {
			if refs[n] == "" {
				s.Fatalf("step %s needs %q, which no earlier step brought", st.Kind, n)
			}
		}
		st.Refs = refs
		key := s.key()
		r, err := s.Provider.Execute(s.ctx, customer, st, key)
		s.must(err)
		s.result("result", r)
		if r.State == billing.AwaitingCustomer {
			if answer == nil {
				return r
			}
			answer(r)
			o, after, err := s.Provider.Outcome(s.ctx, customer, st, key, &r)
			s.must(err)
			s.note("outcome", o)
			r = s.result("result", after)
			if o != billing.Applied || r.State != billing.Done {
				s.Fatalf("after the customer's part the step is %s, %s", o, r.State)
			}
		}
		maps.Copy(refs, r.Refs)
		last = r
	}
	return last
}

// change is a ChangePlan of a customer's first item.
func change(m Made, price string, quantity int64) billing.Action {
	return billing.Action{Kind: billing.ChangePlan, Subscription: m.Subscription, Items: []billing.ItemChange{{Item: m.Items[0], Price: price, Quantity: quantity}}}
}

// charged checks that what was invoiced is what the preview said.
func (s *scene) charged(p billing.Preview, r billing.Result) {
	s.Helper()
	if r.State != billing.Done || r.Invoice == nil {
		s.Fatalf("no invoice came of the change: %+v", r)
	}
	if r.Invoice.Total != p.Total || r.Invoice.AmountDue != p.DueNow || r.Invoice.Tax != p.Tax {
		s.Errorf("invoiced %v, due %v, tax %v; the preview said %v, %v, %v", r.Invoice.Total, r.Invoice.AmountDue, r.Invoice.Tax, p.Total, p.DueNow, p.Tax)
	}
}

// effects notes how many changes customer saw, and returns the number.
func (s *scene) effects(customer string) int {
	n := len(s.World.Effects(customer))
	s.note("effects", n)
	return n
}

// Ledger is the World of a sandbox ledger, which is behind the sandbox's
// provider and behind Stripe's as stripetest serves it.
type Ledger struct {
	T      testing.TB
	Ledger *sandbox.Ledger
	Faults *sandbox.Faults
}

func (l Ledger) check(err error) {
	l.T.Helper()
	if err != nil {
		l.T.Fatal(err)
	}
}

// Now implements World.
func (l Ledger) Now() time.Time {
	now, err := l.Ledger.Now(context.Background())
	l.check(err)
	return now
}

// Advance implements World.
func (l Ledger) Advance(d time.Duration) {
	_, err := l.Ledger.Advance(context.Background(), d)
	l.check(err)
}

// Fault implements World.
func (l Ledger) Fault(f sandbox.Fault) { l.check(l.Faults.Set(f)) }

// ClearFaults implements World.
func (l Ledger) ClearFaults() { l.Faults.Clear() }

// Effects implements World.
func (l Ledger) Effects(customer string) []sandbox.Effect {
	all, err := l.Ledger.Effects(context.Background(), 0)
	l.check(err)
	return slices.DeleteFunc(all, func(e sandbox.Effect) bool { return e.Customer != customer })
}

// Price implements World.
func (l Ledger) Price(id, currency, amount string, interval billing.Interval) {
	ctx := context.Background()
	p, err := l.Ledger.CreateProduct(ctx, sandbox.Call{}, sandbox.ProductParams{Name: "Product of " + id, Metadata: map[string]string{billing.MetaPlan: id}})
	l.check(err)
	_, err = l.Ledger.CreatePrice(ctx, sandbox.Call{}, sandbox.PriceParams{
		ID: id, Product: p.ID, Currency: currency, UnitAmount: decimal.RequireFromString(amount), Interval: interval, LookupKey: "key_" + id,
	})
	l.check(err)
}

// Customer implements World.
func (l Ledger) Customer(c Customer) Made {
	ctx := context.Background()
	name, email := "Acme", "billing@acme.example.com"
	p := sandbox.CustomerParams{Name: &name, Email: &email, Address: &billing.Address{Line1: "1 Main St", City: "Springfield", PostalCode: "97403", Country: "US"}}
	if c.TaxPercent != "" {
		d := decimal.RequireFromString(c.TaxPercent)
		p.TaxPercent = &d
	}
	cus, err := l.Ledger.CreateCustomer(ctx, sandbox.Call{}, p)
	l.check(err)
	m := Made{ID: cus.ID}
	if c.Card != "" {
		// A card that declines or asks cannot pay for the beginning.
		start, err := l.Ledger.AddCard(ctx, sandbox.Call{}, cus.ID, sandbox.CardParams{Number: CardWorks})
		l.check(err)
		_, err = l.Ledger.UpdateCustomer(ctx, sandbox.Call{}, cus.ID, sandbox.CustomerParams{DefaultPaymentMethod: &start.ID})
		l.check(err)
		m.Card = start.ID
	}
	if c.Price != "" {
		create := sandbox.SubscriptionCreate{Customer: cus.ID, Items: []sandbox.ItemParams{{Price: c.Price, Quantity: &c.Quantity}}}
		for _, price := range slices.Sorted(maps.Keys(c.More)) {
			q := c.More[price]
			create.Items = append(create.Items, sandbox.ItemParams{Price: price, Quantity: &q})
		}
		for _, price := range c.Metered {
			create.Items = append(create.Items, sandbox.ItemParams{Price: price})
		}
		if c.Trial > 0 {
			create.TrialEnd = l.Now().Add(c.Trial)
		}
		if c.SendInvoice {
			create.CollectionMethod = sandbox.SendInvoice
		}
		sub, err := l.Ledger.CreateSubscription(ctx, sandbox.Call{}, create)
		l.check(err)
		m.Subscription = sub.ID
		for _, it := range sub.Items {
			m.Items = append(m.Items, it.ID)
		}
		if c.Credit != 0 {
			_, err := l.Ledger.AdjustBalance(ctx, sandbox.Call{}, cus.ID, -c.Credit, sub.Currency)
			l.check(err)
		}
	}
	if c.Card != "" && c.Card != CardWorks {
		card, err := l.Ledger.AddCard(ctx, sandbox.Call{}, cus.ID, sandbox.CardParams{Number: c.Card})
		l.check(err)
		_, err = l.Ledger.UpdateCustomer(ctx, sandbox.Call{}, cus.ID, sandbox.CustomerParams{DefaultPaymentMethod: &card.ID})
		l.check(err)
		m.Card = card.ID
	}
	if c.OwnDefault {
		_, err := l.Ledger.UpdateSubscription(ctx, sandbox.Call{}, m.Subscription, sandbox.SubscriptionUpdate{DefaultPaymentMethod: &m.Card})
		l.check(err)
	}
	return m
}

// EnterCard implements World.
func (l Ledger) EnterCard(goTo, number string) {
	_, err := l.Ledger.CompleteSession(context.Background(), sandbox.Call{}, path.Base(goTo), sandbox.CardParams{Number: number})
	l.check(err)
}

// Confirm implements World.
func (l Ledger) Confirm(goTo string, yes bool) {
	_, err := l.Ledger.ConfirmPayment(context.Background(), sandbox.Call{}, path.Base(goTo), yes)
	l.check(err)
}

// LeadsBack implements World.
func (l Ledger) LeadsBack(goTo string) string {
	pi, err := l.Ledger.PaymentIntent(context.Background(), path.Base(goTo))
	l.check(err)
	return pi.ReturnURL
}

// Method implements World.
func (l Ledger) Method(customer, number string) string {
	pm, err := l.Ledger.AddCard(context.Background(), sandbox.Call{}, customer, sandbox.CardParams{Number: number})
	l.check(err)
	return pm.ID
}

// Default implements World.
func (l Ledger) Default(customer, method string) {
	_, err := l.Ledger.UpdateCustomer(context.Background(), sandbox.Call{}, customer, sandbox.CustomerParams{DefaultPaymentMethod: &method})
	l.check(err)
}

// Subscribe implements World.
func (l Ledger) Subscribe(customer, price string, quantity int64) string {
	sub, err := l.Ledger.CreateSubscription(context.Background(), sandbox.Call{}, sandbox.SubscriptionCreate{Customer: customer, Items: []sandbox.ItemParams{{Price: price, Quantity: &quantity}}})
	l.check(err)
	return sub.ID
}

// Details implements World.
func (l Ledger) Details(customer string, p sandbox.CustomerParams) {
	_, err := l.Ledger.UpdateCustomer(context.Background(), sandbox.Call{}, customer, p)
	l.check(err)
}

// CreditNote implements World.
func (l Ledger) CreditNote(invoice string, amount int64, toBalance bool) string {
	n, err := l.Ledger.CreateCreditNote(context.Background(), sandbox.Call{}, sandbox.CreditNoteParams{
		Invoice: invoice, Amount: amount, Reason: "order_change", ToBalance: toBalance,
	})
	l.check(err)
	return n.ID
}

// VoidCreditNote implements World.
func (l Ledger) VoidCreditNote(id string) {
	_, err := l.Ledger.VoidCreditNote(context.Background(), sandbox.Call{}, id)
	l.check(err)
}

var _ World = Ledger{}
