package pages

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// payment is GET /payment.
func (v *visit) payment() {
	v.kept("payment", func(l *look) error {
		may := l.permitCustomer(policy.UpdatePaymentMethod)
		body := &templates.Payment{
			Customer: l.acct.Customer, Add: may, AddHref: templates.PathAddMethod,
			UpdateDetails: l.permitCustomer(policy.UpdateDetails), UpdateTaxIDs: l.permitCustomer(policy.UpdateTaxIDs), Waits: l.waits(),
		}
		for _, m := range l.methods() {
			out := l.method(m)
			all := true
			for _, s := range l.charged() {
				by := l.pays(s)
				all = all && by != nil && by.ID == m.ID
			}
			if may.Allowed && (!out.Default || !all) {
				f, err := l.newForm(pathDefault, l.acct.Customer.Version, templates.Field{Name: templates.FieldMethod, Value: m.ID})
				if err != nil {
					return err
				}
				out.MakeDefault = &f
			}
			if may.Allowed && len(l.charged()) > 1 {
				out.UseHref = templates.PathUseMethod + m.ID
			}
			// Where a rule forbids it, its page says so.
			if l.decide(policy.Request{Action: policy.RemovePaymentMethod}).Why != "role" {
				out.RemoveHref = templates.PathRemoveMethod + m.ID
			}
			body.Methods = append(body.Methods, out)
		}
		if len(body.Methods) == 0 {
			for _, s := range l.charged() {
				if end := s.PeriodEnd(); s.Ends().IsZero() && !end.IsZero() && (body.Renews.IsZero() || end.Before(body.Renews)) {
					body.Renews = end
				}
			}
		}
		l.page.Body = body
		return nil
	})
}

// methods are the payment methods, the default first.
func (l *look) methods() []billing.PaymentMethod {
	out := slices.Clone(l.acct.PaymentMethods)
	slices.SortStableFunc(out, func(a, b billing.PaymentMethod) int {
		switch def := l.acct.Customer.DefaultPaymentMethod; {
		case a.ID == b.ID:
			return 0
		case a.ID == def:
			return -1
		case b.ID == def:
			return 1
		}
		return 0
	})
	return out
}

// waits are the sums that changes wait for: to make a payment method the
// default pays them, so the pages where that is done name them.
func (l *look) waits() []billing.Money {
	var out []billing.Money
	for _, s := range l.going() {
		if s.Pending != nil && s.Pending.AmountDue.Amount > 0 {
			out = append(out, s.Pending.AmountDue)
		}
	}
	return out
}

// charged are the subscriptions that a payment method pays for.
func (l *look) charged() []*billing.Subscription {
	return slices.DeleteFunc(l.going(), func(s *billing.Subscription) bool { return s.SendInvoice })
}

// method is a payment method with what it pays for and how long it can.
func (l *look) method(m billing.PaymentMethod) templates.Method {
	out := templates.Method{PaymentMethod: m, Default: m.ID == l.acct.Customer.DefaultPaymentMethod, Expiry: expiry(m, l.acct.AsOf)}
	gone := time.Date(m.ExpYear, time.Month(m.ExpMonth)+1, 1, 0, 0, 0, 0, time.UTC)
	var last time.Time // of the next invoices that are known
	for _, u := range l.acct.Upcoming {
		if u.Due.After(last) {
			last = u.Due
		}
	}
	for _, s := range l.byUrgency(l.charged()) {
		if by := l.pays(s); by == nil || by.ID != m.ID {
			continue
		}
		p := templates.PaysFor{Plan: l.planName(s.Items), Own: s.DefaultPaymentMethod != "" && !out.Default}
		for _, u := range l.acct.Upcoming {
			if u.Subscription == s.ID && (p.Next.IsZero() || u.Due.Before(p.Next)) {
				p.Next = u.Due
			}
		}
		// Only the first few next invoices are looked up; the others come at
		// the end of their period.
		if end := s.PeriodEnd(); p.Next.IsZero() && !last.IsZero() && end.After(last) && s.Status == billing.Active && s.Ends().IsZero() {
			p.Next = end
		}
		out.BeforeNext = out.BeforeNext || !p.Next.IsZero() && !p.Next.Before(gone)
		out.PaysFor = append(out.PaysFor, p)
	}
	return out
}

// expiry says whether a card is good to the end of next month. Cards are good
// through the last day of their month.
func expiry(m billing.PaymentMethod, now time.Time) string {
	if m.ExpYear == 0 || m.ExpMonth == 0 || now.IsZero() {
		return ""
	}
	now = now.UTC()
	switch left := (m.ExpYear*12 + m.ExpMonth) - (now.Year()*12 + int(now.Month())); {
	case left < 0:
		return "expired"
	case left == 0:
		return "this_month"
	case left == 1:
		return "next_month"
	}
	return ""
}

func (v *visit) makeDefault() {
	id := v.form[templates.FieldMethod]
	if !validID(id) {
		v.notFound()
		return
	}
	i, err := v.do(billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: id})
	v.settled(i, err, templates.PathPayment)
}

// lookAtMethod starts a page about the payment method that the path names. Where
// it cannot, it answers itself.
func (v *visit) lookAtMethod() (*look, billing.PaymentMethod, bool) {
	snap, ok := v.account()
	if !ok {
		return nil, billing.PaymentMethod{}, false
	}
	l, ok := v.look("payment", snap)
	if !ok {
		return nil, billing.PaymentMethod{}, false
	}
	if l.acct.Missing(billing.SectionPaymentMethods) {
		v.redirect(templates.PathPayment) // which says that they cannot be read
		return nil, billing.PaymentMethod{}, false
	}
	m, ok := l.acct.PaymentMethod(v.arg)
	if !ok {
		v.notFound()
		return nil, billing.PaymentMethod{}, false
	}
	l.undated()
	l.page.BackTo = "payment"
	return l, *m, true
}

// usePage is GET /payment/use/{method}.
func (v *visit) usePage() {
	if l, m, ok := v.lookAtMethod(); ok {
		l.showUse(http.StatusOK, m, nil)
	}
}

func (l *look) showUse(status int, m billing.PaymentMethod, errs []templates.FieldError) {
	f, err := l.newForm(templates.PathUseMethod+m.ID, "")
	if err != nil {
		l.failed(err)
		return
	}
	l.page.Body = &templates.UseMethod{
		Waits:  l.waits(),
		Method: m, Plans: l.planChoices(), Confirm: f, Permit: l.permitCustomer(policy.UpdatePaymentMethod), Errors: errs,
	}
	l.show(status)
}

func (l *look) planChoices() []templates.PlanChoice {
	charged := l.charged()
	out := make([]templates.PlanChoice, 0, len(charged))
	for _, s := range charged {
		out = append(out, templates.PlanChoice{ID: s.ID, Name: l.planName(s.Items), Method: l.pays(s)})
	}
	return out
}

// use is POST /payment/use/{method}.
func (v *visit) use() {
	a := billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: v.arg}
	switch use := v.form[templates.FieldUse]; {
	case use == "":
		if l, m, ok := v.lookAtMethod(); ok {
			l.showUse(http.StatusUnprocessableEntity, m, []templates.FieldError{{Field: templates.FieldUse, Key: "use"}})
		}
		return
	case use == templates.UseAll:
	case !validID(use):
		v.notFound()
		return
	default:
		a.Subscription = use
	}
	i, err := v.do(a)
	v.settled(i, err, templates.PathPayment)
}

// removePage is GET /payment/remove/{method}: the one step before it is gone,
// or why it cannot go.
func (v *visit) removePage() {
	if l, m, ok := v.lookAtMethod(); ok {
		l.showRemove(http.StatusOK, m, "")
	}
}

// showRemove draws the page. refused is the provider's reason not to remove it.
func (l *look) showRemove(status int, m billing.PaymentMethod, refused string) {
	body := &templates.RemoveMethod{Method: m, Permit: l.permitCustomer(policy.RemovePaymentMethod)}
	for _, p := range l.method(m).PaysFor {
		body.Plans = append(body.Plans, p.Plan)
	}
	code := cmp.Or(refused, billing.CodeOf(l.acct.Removable(m.ID)))
	switch {
	case code == "":
	case code == "last_payment_method", len(l.acct.PaymentMethods) == 1:
		body.Why = "last"
	default:
		body.Why = "in_use"
	}
	f, err := l.newForm(templates.PathRemoveMethod+m.ID, l.acct.Customer.Version)
	if err != nil {
		l.failed(err)
		return
	}
	body.Confirm, l.page.Body = f, body
	l.show(status)
}

// remove is POST /payment/remove/{method}.
func (v *visit) remove() {
	i, err := v.do(billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: v.arg})
	var refused *act.RefusedError
	if errors.As(err, &refused) && (refused.Code == "in_use" || refused.Code == "last_payment_method") {
		if l, m, ok := v.lookAtMethod(); ok {
			l.showRemove(http.StatusConflict, m, refused.Code)
		}
		return
	}
	v.settled(i, err, templates.PathPayment)
}

// addPays in the query of /payment/add names open invoices that are paid with
// the new method as soon as it is there.
const addPays = "pay"

// addMethodPage says where the customer is about to go.
func (v *visit) addMethodPage() {
	var invoices []string
	if s, ok := v.form[addPays]; ok {
		if invoices, ok = invoiceIDs(s); !ok {
			v.notFound()
			return
		}
	}
	v.showAddMethod(http.StatusOK, invoices, templates.UseAll, nil)
}

// showAddMethod draws the page. moved is the sum that was agreed to, where it is
// another one now.
func (v *visit) showAddMethod(status int, invoices []string, use string, moved *billing.Money) {
	snap, ok := v.account()
	if !ok {
		return
	}
	l, ok := v.look("payment", snap)
	if !ok {
		return
	}
	p := l.permitCustomer(policy.UpdatePaymentMethod)
	if len(invoices) > 0 && p.Allowed {
		p = l.permit(l.decide(policy.Request{Action: policy.PayInvoices}), l.sess.Customer)
	}
	switch {
	case p.Why == "busy":
		v.message(http.StatusConflict, templates.Message{Kind: "busy", Href: pathDone + l.busy[v.sess.Customer], Link: linkReceipt})
		return
	case !p.Allowed:
		kind := "denied"
		if p.Why == "role" {
			kind = "forbidden"
		}
		v.message(http.StatusForbidden, templates.Message{Kind: kind, Text: p.Text, Href: templates.PathPayment, Link: linkPayment})
		return
	}
	body := &templates.AddMethod{
		Waits:    l.waits(),
		Provider: v.Corridor.Provider.Capabilities().Name, Use: cmp.Or(use, templates.UseAll),
		Plans: l.planChoices(), Choose: len(l.charged()) > 0,
	}
	var hidden []templates.Field
	if len(invoices) > 0 {
		sum, ok := l.payable(invoices)
		if !ok {
			l.notPayable(invoices)
			return
		}
		body.Pays, body.Count, body.StayHref = &sum, len(invoices), templates.PathPay
		if len(invoices) == 1 {
			body.StayHref += "/" + invoices[0]
		}
		hidden = append(agreement(sum, invoices), templates.Field{Name: templates.FieldCurrency, Value: sum.Currency})
		if moved != nil {
			body.Moved, body.Before = true, *moved
		}
	}
	f, err := v.newForm(templates.PathAddMethod, "", hidden...)
	if err != nil {
		v.failed(err)
		return
	}
	body.Confirm = f
	l.undated()
	l.page.BackTo, l.page.Body = "payment", body
	l.show(status)
}

// addMethod asks the provider for its page and leads there over one of ours: a
// form's answer must not redirect to another origin.
func (v *visit) addMethod() {
	id := act.IntentID(v.Corridor.Tenant, v.sess.Hash, v.form[templates.FieldNonce])
	a := billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: ReturnURL(v.Origin, id)}
	switch use := v.form[templates.FieldUse]; use {
	case "", templates.UseAll:
	case templates.UseNone:
		a.Use = billing.UseNothing
	default:
		if !validID(use) {
			v.notFound()
			return
		}
		a.Use, a.Subscription = billing.UseSubscription, use
	}
	var shown billing.Money
	if v.form[templates.FieldCurrency] != "" {
		var ok bool
		if a.Invoices, shown, ok = v.agreed(); !ok {
			v.badRequest()
			return
		}
	}
	i, err := v.Corridor.Agree(v.r.Context(), v.who(), v.form[templates.FieldNonce], shown, a)
	if _, ok := errors.AsType[*act.MovedError](err); ok {
		v.showAddMethod(http.StatusConflict, a.Invoices, v.form[templates.FieldUse], &shown)
		return
	}
	if _, ok := goTo(&i); err == nil && ok {
		v.redirect(pathLeave + i.ID)
		return
	}
	v.settled(i, err, templates.PathPayment)
}

// invoiceIDs reads a list of invoice ids: each once, no more than can be paid in
// one go.
func invoiceIDs(s string) ([]string, bool) {
	if len(s) > (maxID+1)*billing.MaxPay {
		return nil, false
	}
	ids := strings.Split(s, ",")
	if len(ids) > billing.MaxPay {
		return nil, false
	}
	for n, id := range ids {
		if !validID(id) || slices.Contains(ids[:n], id) {
			return nil, false
		}
	}
	return ids, true
}
