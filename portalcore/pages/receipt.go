package pages

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// intent reads the customer's intent that the path names.
func (v *visit) intent() (journal.Intent, bool) {
	i, err := v.Corridor.Journal.Get(v.r.Context(), v.sess.Customer, v.arg)
	switch {
	case err == nil:
		return i, true
	case errors.Is(err, store.ErrNotFound):
		v.notFound()
	default:
		v.unavailable("reading an intent", err)
	}
	return journal.Intent{}, false
}

// receipt is /done/{intent}: how an action went, or stands.
func (v *visit) receipt() {
	i, ok := v.intent()
	if !ok {
		return
	}
	// The receipt stands without the account, which the provider may be unable
	// to give right now.
	var l *look
	if snap, err := v.snapshot(); err == nil {
		if l, ok = v.look(sectionOf(i.Action.Kind), snap); !ok {
			return
		}
	} else {
		l = &look{visit: v, acct: &billing.Account{}, cat: v.catalogue(), busy: map[string]string{}}
		l.page = &templates.Page{Section: sectionOf(i.Action.Kind), SignedIn: true, Customer: v.knownName(), ReturnURL: v.backURL(), CancelURL: v.knownCancelURL()}
	}
	body, err := l.receiptBody(&i)
	if err != nil {
		v.failed(err)
		return
	}
	l.undated()
	l.page.Body, l.page.Banner = body, l.owedElsewhere()
	if body.StateHref != "" {
		v.w.Header()["Content-Security-Policy"] = []string{templates.ScriptCSP}
	}
	v.page(http.StatusOK, v.locale(l.acct.Customer.Locale), l.page)
}

func sectionOf(k billing.ActionKind) string {
	switch k {
	case billing.ChangePlan, billing.DropPending:
		return "plan"
	case billing.AddPaymentMethod, billing.SetDefaultPaymentMethod, billing.RemovePaymentMethod, billing.PayInvoices, billing.UpdateDetails, billing.UpdateTaxID:
		return "payment"
	}
	return "overview"
}

func stateWord(s journal.State) string {
	switch s {
	case journal.Succeeded:
		return "done"
	case journal.AwaitingCustomer:
		return "waiting"
	case journal.Processing:
		return "processing"
	case journal.Refused:
		return "refused"
	case journal.NotApplied, journal.Cancelled:
		return "not_applied"
	case journal.Partial, journal.Manual:
		return "manual"
	}
	return "checking"
}

func (l *look) receiptBody(i *journal.Intent) (*templates.Receipt, error) {
	a := i.Action
	body := &templates.Receipt{
		State: stateWord(i.State), Kind: a.Kind, Reference: i.Reference(), Time: i.Updated,
		PlanName: i.ToPlan, FromPlan: i.FromPlan, SamePlan: i.FromPlan == i.ToPlan,
		Effective: i.Preview.Effective, Next: i.Preview.Next, Differs: i.Differs, Expected: i.Preview.DueNow,
		Reason: i.Code, Until: i.Until, Provider: l.Corridor.Provider.Capabilities().Name,
	}
	for _, ch := range a.Items {
		body.Quantity = ch.Quantity
	}
	if body.State == "checking" {
		body.StateHref = pathState + i.ID
	}
	if len(i.Steps) > 0 {
		body.Sent = i.Steps[0].SentAt
	}
	if i.Preview.DueNow.Amount != 0 {
		due := i.Preview.DueNow
		body.Amount = &due
	}
	sub, hasSub := l.acct.Subscription(a.Subscription)
	switch {
	case a.PaymentMethod != "":
		body.Method, _ = l.acct.PaymentMethod(a.PaymentMethod)
	case a.Kind == billing.PayInvoices:
	case hasSub:
		body.Method = l.pays(sub)
	default:
		body.Method = l.pays(nil)
	}
	switch a.Kind {
	case billing.AddPaymentMethod, billing.SetDefaultPaymentMethod:
		// The plan is what it pays for, not what is changed.
		body.FromPlan, body.Use = "", a.Use
	}
	if len(a.Invoices) > 0 {
		l.payments(body, i)
	}
	if i.State == journal.Succeeded && a.Kind != billing.PayInvoices {
		if l.paysOtherwise(i) {
			body.Method = nil
		}
		l.sums(body, i)
		if body.Invoice != nil && !l.views(policy.ViewInvoices).Allowed() {
			inv := *body.Invoice
			inv.HasDocument, body.Invoice = false, &inv
		}
	}
	// Everybody of the account may look; to go on takes the right to begin.
	if d := l.decideOn(i); d.Allowed() {
		l.goesOn(body, i)
	} else if i.State != journal.Succeeded {
		body.Permit = templates.Permit{Why: d.Why, Text: d.Text}
	}
	return body, l.ways(body, i, sub)
}

// goesOn offers what moves the change itself on, or begins it again.
func (l *look) goesOn(body *templates.Receipt, i *journal.Intent) {
	body.Permit = templates.Permit{Allowed: true}
	if _, ok := goTo(i); ok {
		body.GoHref = pathLeave + i.ID
	}
	if !i.State.Terminal() {
		body.Check = &templates.Form{Action: pathDone + i.ID}
	}
	body.RetryHref = retryHref(i.Action, i.State)
	if body.Closed && len(l.stillOwed(i)) == 0 {
		body.RetryHref = ""
	}
	if !l.permitCustomer(policy.UpdatePaymentMethod).Allowed {
		return
	}
	switch i.Action.Kind {
	case billing.ChangePlan:
		body.AddMethodHref = templates.PathAddMethod
	case billing.PayInvoices:
		if owed := l.stillOwed(i); len(owed) > 0 {
			body.AddMethodHref = templates.PathAddMethod + "?" + addPays + "=" + url.QueryEscape(strings.Join(owed, ","))
		}
	}
}

// paysOtherwise reports whether another payment method was chosen after i was
// done: the one that pays now is then not the one that its receipt is about.
func (l *look) paysOtherwise(i *journal.Intent) bool {
	list, err := l.Corridor.Journal.List(l.r.Context(), l.sess.Customer, 1000)
	if err != nil {
		l.Log.Warn("could not list intents", zap.String("request_id", l.id), zap.Error(err))
		return true
	}
	return slices.ContainsFunc(list, func(o journal.Intent) bool {
		chosen := o.Action.Kind == billing.AddPaymentMethod || o.Action.Kind == billing.SetDefaultPaymentMethod
		return chosen && o.State == journal.Succeeded && o.ID != i.ID && o.Updated.After(i.Updated)
	})
}

// sums says what was really paid and credited, and what comes next as things
// stand now.
func (l *look) sums(body *templates.Receipt, i *journal.Intent) {
	for n := range i.Steps {
		// The invoice of a change that is dropped is dropped with it.
		if r := i.Steps[n].Result; r != nil && r.Invoice != nil && i.Action.Kind != billing.DropPending {
			body.Invoice = r.Invoice
		}
	}
	if paid := i.Preview.DueNow; body.Invoice != nil && body.Invoice.AmountPaid.Amount > 0 {
		body.Paid = &body.Invoice.AmountPaid
	} else if body.Invoice == nil && paid.Amount > 0 {
		body.Paid = &paid
	}
	if credit := i.Preview.ToBalance; credit.Amount > 0 {
		body.Credited = &credit
	}
	for n := range l.acct.Upcoming {
		if u := &l.acct.Upcoming[n]; u.Subscription == i.Action.Subscription && i.Action.Subscription != "" {
			body.Next = u
		}
	}
}

// ways are what the customer can do about it: drop what waits, take back a
// cancellation. Both are decided again when their form comes.
func (l *look) ways(body *templates.Receipt, i *journal.Intent, sub *billing.Subscription) error {
	if sub == nil || sub.Ended() {
		return nil
	}
	field := templates.Field{Name: fieldSubscription, Value: sub.ID}
	switch {
	case i.State == journal.AwaitingCustomer && i.Action.Kind == billing.ChangePlan && sub.Pending != nil &&
		l.permitSubscription(policy.Request{Action: policy.ChangePlan, AnyDirection: true}, sub).Allowed:
		f, err := l.newForm(pathDrop, sub.Version, field)
		body.Drop = &f
		return err
	case i.State == journal.Succeeded && i.Action.Kind == billing.Cancel && !sub.Ends().IsZero() &&
		l.permitSubscription(policy.Request{Action: policy.Resume}, sub).Allowed:
		f, err := l.newForm(pathResume, sub.Version, field)
		body.Undo, body.UndoUntil = &f, sub.Ends()
		return err
	}
	return nil
}

// retryHref is where the customer can ask for the same again: a new intent.
func retryHref(a billing.Action, s journal.State) string {
	if a.Kind == billing.PayInvoices {
		switch {
		case s == journal.Succeeded || s == journal.Processing || s.Locks() || s == journal.Manual:
			return ""
		case len(a.Invoices) == 1:
			return templates.PathPay + "/" + a.Invoices[0]
		}
		return templates.PathPay
	}
	switch s {
	case journal.Refused, journal.NotApplied, journal.Cancelled:
	default:
		return ""
	}
	switch a.Kind {
	case billing.ChangePlan:
		return withSubscription(templates.PathPlan, a.Subscription)
	case billing.Cancel:
		return withSubscription(pathCancel, a.Subscription)
	case billing.AddPaymentMethod:
		return templates.PathAddMethod
	case billing.SetDefaultPaymentMethod, billing.RemovePaymentMethod, billing.UpdateDetails, billing.UpdateTaxID:
		return templates.PathPayment
	}
	return templates.PathOverview
}
