package pages

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// payPage is GET /pay and GET /pay/{invoice}.
func (v *visit) payPage() {
	if v.refreshed() {
		return
	}
	l, ok := v.lookAtDebts()
	if !ok {
		return
	}
	if d := l.looksAtDebts(); !d.Allowed() {
		v.denied(d, "", "")
		return
	}
	l.showPay(http.StatusOK, v.arg, nil)
}

// looksAtDebts says whether this person sees the page about what is owed: who
// may pay does, and who may see the invoices.
func (l *look) looksAtDebts() policy.Decision {
	if d := l.decide(policy.Request{Action: policy.PayInvoices}); d.Allowed() {
		return d
	}
	return l.decide(policy.Request{Action: policy.ViewInvoices})
}

func (v *visit) lookAtDebts() (*look, bool) {
	snap, ok := v.account()
	if !ok {
		return nil, false
	}
	return v.look("payment", snap)
}

// showPay draws the page, of one debt or of all. moved is the sum that was agreed
// to, where it is another one now.
func (l *look) showPay(status int, one string, moved *billing.Money) {
	body := &templates.Pay{Permit: l.permit(l.decide(policy.Request{Action: policy.PayInvoices}), "")}
	l.page.BackTo, l.page.Body = "overview", body
	if l.acct.Missing(billing.SectionDebts) {
		l.show(http.StatusServiceUnavailable)
		return
	}
	if one != "" {
		if _, ok := l.acct.Debt(one); !ok {
			l.notPayable([]string{one})
			return
		}
		body.One = true
	}
	body.Add = l.permitCustomer(policy.UpdatePaymentMethod)
	for i := range l.acct.Debts {
		d := &l.acct.Debts[i]
		if one != "" && d.ID != one {
			continue
		}
		out := l.debt(d, body.Permit)
		if d.Processing || out.CheckingHref != "" || one == "" && !out.Late {
			body.Later = append(body.Later, out)
			continue
		}
		body.Debts = append(body.Debts, out)
	}
	// One that stands alone needs no page of its own.
	if len(body.Debts) == 1 && len(body.Later) == 0 {
		body.One, body.Debts[0].Href = true, ""
	}
	if moved != nil {
		body.Moved, body.Before = true, *moved
	}
	if body.Permit.Allowed && len(body.Debts) > 0 {
		if err := l.offerToPay(body); err != nil {
			l.failed(err)
			return
		}
		body.Started = l.started(body.Debts)
	}
	l.show(status)
}

func (l *look) debt(d *billing.Invoice, may templates.Permit) templates.Debt {
	out := templates.Debt{Invoice: *d, Since: since(d), Late: d.PastDue(l.acct.AsOf)}
	out.HasDocument = d.HasDocument && l.decide(policy.Request{Action: policy.ViewInvoices}).Allowed()
	if s, ok := l.acct.Subscription(d.Subscription); ok {
		out.Plan = l.planName(s.Items)
	}
	if id := l.busy[d.ID]; id != "" {
		out.CheckingHref = pathDone + id
	}
	if !may.Allowed || d.Processing || out.CheckingHref != "" {
		return out
	}
	if l.arg == "" {
		out.Href = templates.PathPay + "/" + d.ID
	}
	if _, ok := webURL(d.PaymentPage); ok && d.SendInvoice {
		out.TransferHref = templates.PathTransfer + d.ID
	}
	return out
}

// offerToPay fills what the buttons pay and with what.
func (l *look) offerToPay(body *templates.Pay) error {
	for _, m := range l.methods() {
		// A transfer is made at the bank, not from here.
		if m.Type != "customer_balance" {
			body.Methods = append(body.Methods, l.method(m))
		}
	}
	chosen := l.pays(nil)
	if body.One {
		chosen = l.paysFor(&body.Debts[0].Invoice)
	}
	for i, m := range body.Methods {
		if i == 0 || chosen != nil && m.ID == chosen.ID {
			body.Chosen = m.ID
		}
	}
	body.Form.Action = templates.PathPay
	if body.One {
		body.Form.Action += "/" + body.Debts[0].ID
	}
	if len(body.Methods) == 1 {
		body.Form.Hidden = append(body.Form.Hidden, templates.Field{Name: templates.FieldMethod, Value: body.Chosen})
	}
	var currencies []string
	ids := map[string][]string{}
	for i := range body.Debts {
		cur := body.Debts[i].AmountRemaining.Currency
		if !slices.Contains(currencies, cur) {
			currencies = append(currencies, cur)
		}
		ids[cur] = append(ids[cur], body.Debts[i].ID)
	}
	for _, cur := range currencies {
		list := ids[cur][:min(len(ids[cur]), billing.MaxPay)]
		sum, ok := l.payable(list)
		if !ok {
			continue
		}
		out := templates.PaySum{Amount: sum, Count: len(list), Whole: len(list) == len(ids[cur])}
		if len(body.Methods) == 1 {
			out.Method = &body.Methods[0].PaymentMethod
		}
		if body.Add.Allowed {
			out.NewCardHref = templates.PathAddMethod + "?" + addPays + "=" + url.QueryEscape(strings.Join(list, ","))
		}
		// Each button is good for one payment of its own.
		nonce, err := act.NewNonce(l.Rand)
		if err != nil {
			return err
		}
		body.Sums = append(body.Sums, out)
		body.Form.Hidden = append(body.Form.Hidden, templates.Field{Name: templates.FieldAgreed + cur, Value: nonce})
		body.Form.Hidden = append(body.Form.Hidden, agreement(sum, list)...)
	}
	return nil
}

// agreement are the fields that say what a button stands for: these invoices,
// this sum.
func agreement(sum billing.Money, invoices []string) []templates.Field {
	return []templates.Field{
		{Name: templates.FieldAmount + sum.Currency, Value: strconv.FormatInt(sum.Amount, 10)},
		{Name: templates.FieldInvoices + sum.Currency, Value: strings.Join(invoices, ",")},
	}
}

// agreed reads what the button that was pressed stood for.
func (v *visit) agreed() (invoices []string, shown billing.Money, ok bool) {
	cur := v.form[templates.FieldCurrency]
	if !currencyCode(cur) {
		return nil, billing.Money{}, false
	}
	amount, err := strconv.ParseInt(v.form[templates.FieldAmount+cur], 10, 64)
	if err != nil || amount <= 0 {
		return nil, billing.Money{}, false
	}
	invoices, ok = invoiceIDs(v.form[templates.FieldInvoices+cur])
	return invoices, billing.Money{Amount: amount, Currency: cur}, ok
}

// currencyCode reports whether s can stand in the name of a field.
func currencyCode(s string) bool {
	return len(s) == 3 && !strings.ContainsFunc(s, func(r rune) bool { return r < 'a' || r > 'z' })
}

// payable adds up debts of one currency that can be paid now.
func (l *look) payable(invoices []string) (billing.Money, bool) {
	var sums []billing.Money
	for _, id := range invoices {
		d, ok := l.acct.Debt(id)
		if !ok || d.Processing || l.busy[id] != "" || !currencyCode(d.AmountRemaining.Currency) {
			return billing.Money{}, false
		}
		sums = addTo(sums, d.AmountRemaining)
	}
	if len(sums) != 1 {
		return billing.Money{}, false
	}
	return sums[0], true
}

// notPayable answers where invoices are not, or no longer, to be paid. Those
// that are the customer's lead to what is.
func (l *look) notPayable(invoices []string) {
	for _, id := range invoices {
		known := slices.ContainsFunc(l.acct.Invoices, func(v billing.Invoice) bool { return v.ID == id })
		if _, debt := l.acct.Debt(id); !known && !debt && !l.acct.Missing(billing.SectionDebts) {
			l.notFound()
			return
		}
	}
	l.redirect(templates.PathPay)
}

// started is a payment of some of these debts that waits for the customer.
func (l *look) started(debts []templates.Debt) *templates.Started {
	list, err := l.Corridor.Journal.List(l.r.Context(), l.sess.Customer, 1000)
	if err != nil {
		l.Log.Warn("could not list intents", zap.String("request_id", l.id), zap.Error(err))
	}
	var out *templates.Started
	for i := range list {
		in := &list[i]
		mine := slices.ContainsFunc(debts, func(d templates.Debt) bool { return slices.Contains(in.Action.Invoices, d.ID) })
		if in.State == journal.AwaitingCustomer && in.Action.Kind == billing.PayInvoices && mine && (out == nil || in.Created.After(out.Time)) {
			out = &templates.Started{Time: in.Created, Href: pathDone + in.ID}
		}
	}
	return out
}

// pay is POST /pay and POST /pay/{invoice}.
func (v *visit) pay() {
	invoices, shown, ok := v.agreed()
	method := v.form[templates.FieldMethod]
	if !ok || method != "" && !validID(method) || v.arg != "" && !slices.Equal(invoices, []string{v.arg}) {
		v.badRequest()
		return
	}
	were := v.knew(invoices, method)
	i, err := v.Corridor.Agree(v.r.Context(), v.who(), v.form[templates.FieldAgreed+shown.Currency], shown, billing.Action{
		Kind: billing.PayInvoices, Invoices: invoices, PaymentMethod: method,
	})
	var moved *act.MovedError
	var invalid *act.InvalidError
	var refused *act.RefusedError
	gone := were && (errors.Is(err, act.ErrNotFound) || errors.Is(err, act.ErrChanged) || errors.As(err, &invalid) ||
		errors.As(err, &refused) && refused.Code == "not_changeable")
	if i.ID == "" && (gone || errors.As(err, &moved)) {
		// Not what the page said any more: it is shown anew.
		if l, ok := v.lookAtDebts(); ok {
			one := v.arg
			if _, still := l.acct.Debt(one); !still {
				l.arg, one = "", ""
			}
			l.showPay(http.StatusConflict, one, &shown)
		}
		return
	}
	v.settled(i, err, v.r.URL.Path)
}

// knew reports whether all of these were debts, and the method was there, when
// the account was last read.
func (v *visit) knew(invoices []string, method string) bool {
	s, ok := v.Corridor.Accounts.Peek(v.sess.Customer)
	if ok && method != "" {
		_, ok = s.Account.PaymentMethod(method)
	}
	return ok && !slices.ContainsFunc(invoices, func(id string) bool {
		_, ok := s.Account.Debt(id)
		return !ok
	})
}

// transfer leaves for the provider's page about an invoice that is paid by hand,
// with the bank details.
func (v *visit) transfer() {
	l, ok := v.lookAtDebts()
	if !ok {
		return
	}
	if d := l.decide(policy.Request{Action: policy.PayInvoices}); !d.Allowed() {
		v.denied(d, templates.PathPay, linkContinue)
		return
	}
	d, ok := l.acct.Debt(v.arg)
	if !ok {
		l.notPayable([]string{v.arg})
		return
	}
	u, ok := webURL(d.PaymentPage)
	if !ok || !d.SendInvoice {
		v.notFound()
		return
	}
	v.w.Header().Set("Refresh", "0; url="+u.String())
	v.page(http.StatusOK, v.locale(l.acct.Customer.Locale), &templates.Page{
		SignedIn: true, Customer: customerName(l.acct), ReturnURL: v.backURL(), BackTo: "payment",
		Body: &templates.Leave{Provider: v.Corridor.Provider.Capabilities().Name, Href: u.String()},
	})
}

// payments are the invoices of an intent, with what became of each.
func (l *look) payments(body *templates.Receipt, i *journal.Intent) {
	steps := true // all that are about something else took effect
	paid := billing.Money{Currency: i.Preview.DueNow.Currency}
	for n := range i.Steps {
		s := &i.Steps[n]
		if !slices.Contains(i.Action.Invoices, s.Object) {
			steps = steps && s.Done
			continue
		}
		p := templates.PaidInvoice{ID: s.Object, State: paymentWord(i.StateOf(n)), Reason: s.Code}
		// The preview has a line for each, in their order.
		if at := slices.Index(i.Action.Invoices, p.ID); at < len(i.Preview.Lines) {
			p.Number, p.Amount = i.Preview.Lines[at].Description, i.Preview.Lines[at].Amount
		}
		_, owed := l.acct.Debt(p.ID)
		switch p.State {
		case "paid":
			body.PaidCount++
			paid.Amount += p.Amount.Amount
			l.paidInvoice(body, &p, s.Result)
		case "declined", "not_sent":
			if !owed && i.State.Terminal() && l.acct.Customer.ID != "" && !l.acct.Missing(billing.SectionDebts) {
				// Another payment, or a confirmation after its time, was faster.
				p.State, body.Closed = "closed", true
			} else if owed && l.decide(policy.Request{Action: policy.PayInvoices}).Allowed() {
				p.Href = templates.PathPay + "/" + p.ID
			}
		}
		body.Payments = append(body.Payments, p)
	}
	if i.State == journal.Partial && steps {
		body.State = "partly"
	}
	if paid.Amount > 0 {
		body.Paid = &paid
	}
}

// paidInvoice adds what the provider said about an invoice when it was paid.
func (l *look) paidInvoice(body *templates.Receipt, p *templates.PaidInvoice, r *billing.Result) {
	if r == nil || r.Invoice == nil {
		return
	}
	p.HasDocument = r.Invoice.HasDocument && l.decide(policy.Request{Action: policy.ViewInvoices}).Allowed()
	if s, ok := l.acct.Subscription(r.Invoice.Subscription); ok && s.Status == billing.Active {
		body.Active = l.planName(s.Items)
	}
}

func paymentWord(s journal.State) string {
	switch s {
	case journal.Succeeded:
		return "paid"
	case journal.Refused, journal.NotApplied:
		return "declined"
	case journal.AwaitingCustomer:
		return "waiting"
	case journal.Processing:
		return "processing"
	case journal.Planned, journal.Cancelled:
		return "not_sent"
	}
	return "checking"
}

// stillOwed are the invoices of an intent that are to be paid still.
func (l *look) stillOwed(i *journal.Intent) []string {
	return slices.DeleteFunc(slices.Clone(i.Action.Invoices), func(id string) bool {
		_, ok := l.payable([]string{id})
		return !ok
	})
}
