package pages

import (
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// banner is the most urgent thing to say, or nil.
func (l *look) banner() *templates.Banner {
	subs := l.going()
	if b := l.pastDue(subs); b != nil {
		return b
	}
	for _, s := range subs {
		if s.Pending != nil {
			return l.waitingBanner(s)
		}
	}
	for _, object := range l.objects(subs) {
		if id := l.busy[object]; id != "" {
			return l.checking(id)
		}
	}
	if b := l.onItsWay(); b != nil {
		return b
	}
	if l.snap.Stale {
		return &templates.Banner{Kind: "stale", Date: l.acct.AsOf, Provider: l.Corridor.Provider.Capabilities().Name, Href: l.page.RefreshHref}
	}
	for _, s := range subs {
		if l.status(s) == "ending" {
			b := &templates.Banner{Kind: "ending", Date: s.Ends(), Plan: l.planName(s.Items)}
			if l.page.Section != "overview" {
				b.Href = templates.PathOverview
			}
			return b
		}
	}
	for _, s := range subs {
		if l.status(s) == "trial" {
			b := &templates.Banner{Kind: "trial", Date: s.TrialEnd, Plan: l.planName(s.Items), Method: l.pays(s)}
			if b.Method == nil && l.permitCustomer(policy.UpdatePaymentMethod).Allowed {
				b.Href = templates.PathAddMethod
			}
			return b
		}
	}
	return nil
}

// objects are what a change can hold: the customer, what they owe and their
// subscriptions.
func (l *look) objects(subs []*billing.Subscription) []string {
	out := append(make([]string, 0, 1+len(l.acct.Debts)+len(subs)), l.sess.Customer)
	for i := range l.acct.Debts {
		out = append(out, l.acct.Debts[i].ID)
	}
	for _, s := range subs {
		out = append(out, s.ID)
	}
	return out
}

// owedElsewhere is what a decision page says beside its decision: what is past
// due, and nothing else. Pages about paying it say it themselves.
func (l *look) owedElsewhere() *templates.Banner {
	switch b := l.page.Body.(type) {
	case *templates.Pay:
		return nil
	case *templates.AddMethod:
		if b.Pays != nil {
			return nil
		}
	case *templates.Receipt:
		if len(b.Payments) > 0 {
			return nil
		}
	}
	return beside(l.pastDue(l.going()))
}

// knownBanner is what is past due, on pages that are not drawn from the account:
// as the account was last known.
func (v *visit) knownBanner() *templates.Banner {
	s, ok := v.Corridor.Accounts.Peek(v.sess.Customer)
	if !ok || !v.signedIn {
		return nil
	}
	l := &look{visit: v, snap: s, acct: &s.Account, cat: v.catalogue()}
	return beside(l.pastDue(l.going()))
}

// beside leaves the page's primary button to the page.
func beside(b *templates.Banner) *templates.Banner {
	if b != nil {
		b.Beside = true
	}
	return b
}

// pastDue says what is overdue, of which more can be in another currency, and
// why the oldest of it is.
func (l *look) pastDue(subs []*billing.Subscription) *templates.Banner {
	b := &templates.Banner{Kind: "past_due", May: l.decide(policy.Request{Action: policy.PayInvoices}).Allowed()}
	if l.looksAtDebts().Allowed() {
		b.Href = templates.PathPay
	}
	onItsWay, oldest := false, ""
	for i := range l.acct.Debts {
		d := &l.acct.Debts[i]
		onItsWay = onItsWay || d.Processing || l.busy[d.ID] != ""
		if !d.PastDue(l.acct.AsOf) || l.busy[d.ID] != "" {
			continue
		}
		b.Sums, b.Count = addTo(b.Sums, d.AmountRemaining), b.Count+1
		if b.Count > 1 {
			continue
		}
		oldest = d.ID
		b.Date, b.Reason, b.Retry, b.ByHand = since(d), d.Failure, d.NextAttempt, d.SendInvoice
		if b.Method = d.Method; b.Method == nil {
			b.Method = l.paysFor(d)
		}
	}
	if b.Count > 0 {
		b.Amount = b.Sums[0]
		if b.Count == 1 && b.Href != "" {
			b.Href += "/" + oldest
		}
		return b
	}
	// The provider says that something is overdue, and not what.
	for _, s := range subs {
		if (s.Status == billing.PastDue || s.Status == billing.Unpaid) && !onItsWay {
			b.Method, b.ByHand = l.pays(s), s.SendInvoice
			return b
		}
	}
	return nil
}

// onItsWay is about payments that take days.
func (l *look) onItsWay() *templates.Banner {
	b := &templates.Banner{Kind: "processing"}
	if l.looksAtDebts().Allowed() {
		b.Href = templates.PathPay
	}
	for i := range l.acct.Debts {
		if d := &l.acct.Debts[i]; d.Processing {
			b.Sums, b.Count = addTo(b.Sums, d.AmountRemaining), b.Count+1
		}
	}
	if b.Count == 0 {
		return nil
	}
	return b
}

// addTo adds m to the sum of its currency.
func addTo(sums []billing.Money, m billing.Money) []billing.Money {
	for i := range sums {
		if sums[i].Currency == m.Currency {
			sums[i].Amount += m.Amount
			return sums
		}
	}
	return append(sums, m)
}

// since is when a debt is, or was, due.
func since(d *billing.Invoice) time.Time {
	if d.DueDate.IsZero() && !d.SendInvoice {
		return d.Created
	}
	return d.DueDate
}

// paysFor is what an invoice is paid with by itself.
func (l *look) paysFor(d *billing.Invoice) *billing.PaymentMethod {
	if s, ok := l.acct.Subscription(d.Subscription); ok {
		return l.pays(s)
	}
	return l.pays(nil)
}

// waitingBanner is about a change that waits for its payment.
func (l *look) waitingBanner(s *billing.Subscription) *templates.Banner {
	p := s.Pending
	b := &templates.Banner{
		Kind: "action_needed", Amount: p.AmountDue, Date: p.ExpiresAt, Plan: l.planName(p.Items),
		Method: l.pays(s), Href: l.waitingHref(s.ID),
	}
	if l.permitCustomer(policy.UpdatePaymentMethod).Allowed {
		b.AddHref = templates.PathAddMethod
	}
	if l.permitSubscription(policy.Request{Action: policy.ChangePlan, AnyDirection: true}, s).Allowed {
		f, err := l.newForm(pathDrop, s.Version, templates.Field{Name: fieldSubscription, Value: s.ID})
		if err != nil {
			l.Log.Warn("could not make a form", zap.String("request_id", l.id), zap.Error(err))
			return b
		}
		b.Drop = &f
	}
	return b
}

func (l *look) checking(intent string) *templates.Banner {
	b := &templates.Banner{Kind: "checking", Href: pathDone + intent}
	if i, err := l.Corridor.Journal.Get(l.r.Context(), l.sess.Customer, intent); err == nil {
		b.Amount, b.Date, b.Plan = i.Preview.DueNow, i.Created, i.ToPlan
	}
	return b
}
