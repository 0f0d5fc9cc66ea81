package pages

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// failedAction answers where the corridor did not begin an action. href is
// where the customer can look at how things stand.
func (v *visit) failedAction(err error, href string) {
	var (
		denied  *act.DeniedError
		invalid *act.InvalidError
		refused *act.RefusedError
		busy    *journal.BusyError
	)
	switch {
	case errors.Is(err, act.ErrNotFound), billing.FaultOf(err) == billing.NotFound:
		v.notFound()
	case errors.As(err, &denied):
		v.denied(denied.Decision, "", "")
	case errors.As(err, &busy):
		v.message(http.StatusConflict, templates.Message{Kind: "busy", Href: pathDone + busy.Intent, Link: linkReceipt})
	case errors.Is(err, act.ErrChanged), errors.Is(err, act.ErrNoPin), errors.As(err, &invalid):
		// Wrong only now: what was drawn was right.
		v.message(http.StatusConflict, templates.Message{Kind: "changed", Href: href, Link: linkRetry})
	case errors.Is(err, act.ErrNonce):
		v.badRequest()
	case errors.As(err, &refused):
		v.Log.Info("provider refused a preview", zap.String("request_id", v.id), zap.String("code", refused.Code), zap.Error(err))
		v.message(http.StatusConflict, templates.Message{Kind: refusedKind(refused.Code), Seconds: 30, Href: href, Link: linkRetry})
	case errors.Is(err, store.ErrUnavailable): // ours, not the provider's
		v.unavailable("an action", err)
	case errors.Is(err, act.ErrNothingSent):
		if v.r.Context().Err() == nil {
			v.Log.Warn("nothing was sent", zap.String("request_id", v.id), zap.Error(err))
		}
		v.w.Header().Set("Retry-After", "30")
		v.message(http.StatusServiceUnavailable, templates.Message{Kind: "provider_down_nothing_sent", Href: href, Link: linkRetry})
	default:
		v.unavailable("an action", err)
	}
}

// denied answers where this session may not do a thing: its role, or a rule of
// the vendor's.
func (v *visit) denied(d policy.Decision, href, link string) {
	v.Log.Info("denied", zap.String("request_id", v.id), zap.String("why", d.Why), zap.String("role", v.sess.Role), zap.String("session", v.sess.Hash))
	kind := "denied"
	if d.Why == "role" {
		kind = "forbidden"
	}
	v.message(http.StatusForbidden, templates.Message{Kind: kind, Text: d.Text, Href: href, Link: link})
}

// decideOn says whether this session may go on with an intent, which somebody
// with another role may have begun: what moves a change on takes the same right
// as beginning it.
func (v *visit) decideOn(i *journal.Intent) policy.Decision {
	a := i.Action
	r := policy.Request{
		Action: policy.ActionOf(a.Kind), Role: v.sess.Role, Permissions: v.sess.Permissions,
		// Where the account is not at hand, or has the change already, its
		// directions cannot be told any more; role and permissions still count.
		AnyDirection: true,
	}
	if snap, err := v.snapshot(); err == nil {
		l := look{visit: v, acct: &snap.Account, cat: v.catalogue()}
		if sub, ok := l.acct.Subscription(a.Subscription); ok {
			r.From = l.planKey(sub)
			if parts, ok := policy.PartsOf(l.cat, sub, a.Items); ok && len(parts) > 0 {
				r.Parts, r.AnyDirection = parts, false
			}
		}
	}
	return v.Corridor.Policy(v.sess.Configuration).Decide(r)
}

// fieldError is a problem with an action, in the words of the pages.
func fieldError(field, code string, args map[string]any) templates.FieldError {
	switch code {
	case "price_unknown":
		code = "price"
	case "nothing_changes":
		code = "same"
	case "quantity_whole":
		code = "quantity"
	case "required":
		code = field
	}
	e := templates.FieldError{Field: field, Key: code}
	for name, value := range args {
		if e.Args == nil {
			e.Args = map[string]any{}
		}
		e.Args[strings.ToLower(name)] = value
	}
	return e
}

// refusedKind is the message for a provider's no to a preview: nothing was
// tried.
func refusedKind(code string) string {
	if code == "rate_limit" {
		return "too_many"
	}
	return "refused"
}

// settled leads to the receipt of what the corridor did.
func (v *visit) settled(i journal.Intent, err error, href string) {
	if err != nil && (i.ID == "" || errors.Is(err, act.ErrNothingSent)) {
		v.failedAction(err, href)
		return
	}
	if err != nil {
		// Something may have been sent: the receipt says how it stands.
		v.Log.Error("an action went on without being written down", zap.String("request_id", v.id), zap.String("intent", i.ID), zap.Error(err))
	}
	v.redirect(pathDone + i.ID)
}

// choose takes a plan, an interval and a quantity and leads to the preview of
// the change.
func (v *visit) choose() {
	pin, ok := v.prepare(v.form, true)
	if ok {
		v.redirect(pathCheck + pin.Nonce)
	}
}

// prepare pins the preview of the change that a form asks for. Where it cannot,
// it answers itself: with the form and a message at the field where redraw is
// set.
func (v *visit) prepare(f form, redraw bool) (act.Pin, bool) {
	snap, ok := v.account()
	if !ok {
		return act.Pin{}, false
	}
	l, ok := v.look("plan", snap)
	if !ok {
		return act.Pin{}, false
	}
	wrong := func(field, key string, args map[string]any) (act.Pin, bool) {
		if redraw {
			l.showPlan(http.StatusUnprocessableEntity, f, []templates.FieldError{fieldError(field, key, args)})
		} else {
			v.message(http.StatusConflict, templates.Message{Kind: "changed", Href: templates.PathPlan, Link: linkPlan})
		}
		return act.Pin{}, false
	}
	if f[fieldSubscription] == "" {
		v.badRequest()
		return act.Pin{}, false
	}
	// Not in the account that the page was drawn from: the corridor looks at
	// the fresh one and decides. Without an item there is nothing to ask for.
	sub, ok := l.subscriptionOf(f[fieldSubscription])
	if !ok || len(sub.Items) == 0 {
		v.notFound()
		return act.Pin{}, false
	}
	price := f[templates.FieldPrice]
	if !validID(price) {
		return wrong(templates.FieldPrice, "price_unknown", nil)
	}
	current := l.mainItem(sub.Items)
	quantity := current.Quantity
	if p, ok := l.cat.PlanOf(price); ok && price != current.Price.ID {
		quantity = max(quantity, p.MinQuantity, 1)
		if p.MaxQuantity > 0 {
			quantity = min(quantity, p.MaxQuantity)
		}
	}
	if entered, ok := f[templates.FieldQuantity]; ok {
		if quantity, ok = parseQuantity(entered); !ok {
			return wrong(templates.FieldQuantity, "quantity_whole", nil)
		}
	}
	pin, err := v.Corridor.Prepare(v.r.Context(), v.who(), billing.Action{
		Kind: billing.ChangePlan, Subscription: sub.ID,
		Items: []billing.ItemChange{{Item: current.ID, Price: price, Quantity: quantity}},
	})
	var invalid *act.InvalidError
	switch {
	case err == nil:
		return pin, true
	case errors.As(err, &invalid):
		return wrong(invalid.Field, invalid.Code, invalid.Args)
	}
	v.failedAction(err, templates.PathPlan)
	return act.Pin{}, false
}

// preview is /check/{nonce}: what a change costs.
func (v *visit) preview() {
	pin, err := v.Corridor.ReadPin(v.r.Context(), v.who(), v.arg)
	switch {
	case errors.Is(err, act.ErrNoPin):
		kind, href := "changed", templates.PathPlan
		if pin.Nonce != "" {
			kind, href = "form_aged", withSubscription(href, pin.Preview.Action.Subscription)
		}
		v.message(http.StatusConflict, templates.Message{Kind: kind, Href: href, Link: linkPlan})
		return
	case err != nil:
		v.unavailable("reading a preview", err)
		return
	}
	// Confirmed already: "back" in the browser does not offer it again.
	id := act.IntentID(v.Corridor.Tenant, v.sess.Hash, v.arg)
	if _, err := v.Corridor.Journal.Get(v.r.Context(), v.sess.Customer, id); err == nil {
		v.redirect(pathDone + id)
		return
	}
	snap, ok := v.account()
	if !ok {
		return
	}
	l, ok := v.look("plan", snap)
	if !ok {
		return
	}
	l.showPreview(pin)
}

func (l *look) showPreview(pin act.Pin) {
	a := pin.Preview.Action
	sub, ok := l.acct.Subscription(a.Subscription)
	if !ok || len(a.Items) != 1 {
		l.notFound()
		return
	}
	change := a.Items[0]
	find := func(items []billing.Item) (billing.Item, bool) {
		for _, it := range items {
			if it.ID == change.Item {
				return it, true
			}
		}
		return billing.Item{}, false
	}
	from, ok := find(sub.Items)
	if !ok {
		l.message(http.StatusConflict, templates.Message{Kind: "changed", Href: withSubscription(templates.PathPlan, sub.ID), Link: linkPlan})
		return
	}
	to, ok := find(pin.Preview.Items)
	if !ok {
		to = from
		to.Quantity = change.Quantity
		if p, ok := l.cat.Price(change.Price); ok {
			to.Price = *p
		}
	}
	fromPlan, toPlan := l.planOf([]billing.Item{from}), l.planOf([]billing.Item{to})
	back := withSubscription(templates.PathPlan, sub.ID) + "&" + fieldInterval + "=" + intervalKey(to.Price.Interval, to.Price.IntervalCount)
	body := &templates.Preview{
		Preview: pin.Preview, FromPlan: l.planName([]billing.Item{from}), ToPlan: l.planName([]billing.Item{to}),
		From: templates.PriceQuantity{Price: from.Price, Quantity: from.Quantity, Total: times(from.Price, from.Quantity)},
		To:   templates.PriceQuantity{Price: to.Price, Quantity: to.Quantity, Total: times(to.Price, to.Quantity)},
		Confirm: templates.Form{
			Action: pathCheck + pin.Nonce, Nonce: pin.Nonce,
			// With these a preview that is too old is made anew.
			Hidden: []templates.Field{
				{Name: fieldSubscription, Value: sub.ID},
				{Name: templates.FieldPrice, Value: change.Price},
				{Name: templates.FieldQuantity, Value: strconv.FormatInt(change.Quantity, 10)},
			},
		},
		BackHref: back, Moved: pin.Moved, Before: pin.Before, AddMethodHref: templates.PathAddMethod,
		Method: l.pays(sub), Invoiced: sub.SendInvoice,
	}
	body.SamePlan = body.FromPlan == body.ToPlan
	body.Gains, body.Losses, body.Changes = compare(fromPlan, toPlan)
	body.Names = map[string]string{from.Price.ID: body.FromPlan, to.Price.ID: body.ToPlan}
	body.NeedsMethod = pin.Preview.DueNow.Amount > 0 && body.Method == nil && !sub.SendInvoice
	if parts, ok := policy.PartsOf(l.cat, sub, a.Items); ok {
		body.Permit = l.permitSubscription(policy.Request{Action: policy.ChangePlan, Parts: parts}, sub)
	} else {
		body.Permit = templates.Permit{Why: "none"}
	}
	l.page.BackTo, l.page.RefreshHref, l.page.AsOf = "plan", "", pin.Preview.At
	l.page.Body = body
	l.show(http.StatusOK)
}

// confirm carries a preview out, or shows a fresh one.
func (v *visit) confirm() {
	if nonce, ok := v.form[templates.FieldNonce]; ok && nonce != v.arg {
		v.badRequest()
		return
	}
	done, err := v.Corridor.Confirm(v.r.Context(), v.who(), v.arg)
	switch {
	case errors.Is(err, act.ErrNoPin) && v.form[fieldSubscription] != "" && v.form[templates.FieldPrice] != "":
		if pin, ok := v.prepare(v.form, false); ok {
			v.redirect(pathCheck + pin.Nonce)
		}
	case err == nil && done.Fresh != nil:
		v.redirect(pathCheck + done.Fresh.Nonce)
	default:
		v.settled(done.Intent, err, templates.PathPlan)
	}
}

// formSubscription is the subscription id of a form.
func (v *visit) formSubscription() (string, bool) {
	id := v.form[fieldSubscription]
	if !validID(id) {
		v.notFound()
		return "", false
	}
	return id, true
}

// cancelPage is GET /cancel: one page, and no step before it.
func (v *visit) cancelPage() {
	snap, ok := v.account()
	if !ok {
		return
	}
	l, ok := v.look("overview", snap)
	if !ok {
		return
	}
	subs := cancellable(l.acct)
	id := v.form[fieldSubscription]
	var sub *billing.Subscription
	switch {
	case id == "" && len(subs) == 1:
		sub = subs[0]
	case id == "" && len(subs) > 1:
		v.redirect(templates.PathOverview)
		return
	default:
		if sub, ok = l.acct.Subscription(id); !ok {
			v.notFound()
			return
		}
	}
	if sub.Ended() || !sub.Ends().IsZero() {
		// Cancelled already; the overview says until when it runs.
		v.redirect(templates.PathOverview)
		return
	}
	card, err := l.subscription(sub)
	if err != nil {
		v.failed(err)
		return
	}
	body := &templates.Cancel{Subscription: card, KeepHref: templates.PathOverview, Permit: card.Cancel}
	if body.Confirm, err = v.newForm(pathCancel, sub.Version, templates.Field{Name: fieldSubscription, Value: sub.ID}); err != nil {
		v.failed(err)
		return
	}
	l.undated()
	l.page.BackTo, l.page.Body = "overview", body
	l.show(http.StatusOK)
}

func (v *visit) onSubscription(kind billing.ActionKind, href func(id string) string) {
	id, ok := v.formSubscription()
	if !ok {
		return
	}
	i, err := v.do(billing.Action{Kind: kind, Subscription: id})
	v.settled(i, err, href(id))
}

func (v *visit) do(a billing.Action) (journal.Intent, error) {
	return v.Corridor.Do(v.r.Context(), v.who(), v.form[templates.FieldNonce], v.form[templates.FieldVersion], a)
}

func (v *visit) cancel() {
	v.onSubscription(billing.Cancel, func(id string) string { return withSubscription(pathCancel, id) })
}

func (v *visit) resume() {
	v.onSubscription(billing.Resume, func(string) string { return templates.PathOverview })
}

func (v *visit) drop() {
	v.onSubscription(billing.DropPending, func(string) string { return templates.PathOverview })
}

// goTo is the page at the provider that an intent waits for, where it waits
// for one that a browser may be sent to.
func goTo(i *journal.Intent) (*url.URL, bool) {
	n := i.Next()
	if i.State != journal.AwaitingCustomer || n >= len(i.Steps) || i.Steps[n].Result == nil {
		return nil, false
	}
	return webURL(i.Steps[n].Result.GoTo)
}

// leave forwards to the provider: at once by header, and by a link that can be
// seen.
func (v *visit) leave() {
	i, ok := v.intent()
	if !ok {
		return
	}
	u, ok := goTo(&i)
	if !ok {
		v.redirect(pathDone + i.ID)
		return
	}
	if d := v.decideOn(&i); !d.Allowed() {
		v.denied(d, pathDone+i.ID, linkReceipt)
		return
	}
	v.w.Header().Set("Refresh", "0; url="+u.String())
	v.page(http.StatusOK, v.locale(""), &templates.Page{
		SignedIn: true, Customer: v.knownName(), ReturnURL: v.backURL(), BackTo: "payment",
		Body: &templates.Leave{Provider: v.Corridor.Provider.Capabilities().Name, Href: u.String()},
	})
}

func (v *visit) knownName() string {
	if s, ok := v.Corridor.Accounts.Peek(v.sess.Customer); ok {
		return customerName(&s.Account)
	}
	return v.sess.Customer
}

// back is where the provider's page leads to. Whether the customer did
// anything there is the provider's to say. For somebody who may not go on with
// the change it only leads to the receipt.
func (v *visit) back() {
	i, ok := v.intent()
	if !ok {
		return
	}
	if v.r.Method == http.MethodGet && v.decideOn(&i).Allowed() {
		if _, err := v.Corridor.Check(v.r.Context(), v.sess.Customer, v.arg); err != nil {
			v.Log.Warn("could not look at an intent on the way back", zap.String("request_id", v.id), zap.String("intent", v.arg), zap.Error(err))
		}
	}
	v.redirect(pathDone + v.arg)
}

// checkAgain is the receipt's button.
func (v *visit) checkAgain() {
	i, ok := v.intent()
	if !ok {
		return
	}
	if d := v.decideOn(&i); !d.Allowed() {
		v.denied(d, pathDone+i.ID, linkReceipt)
		return
	}
	switch _, err := v.Corridor.Check(v.r.Context(), v.sess.Customer, v.arg); {
	case errors.Is(err, act.ErrNotFound):
		v.notFound()
	case err != nil && !errors.Is(err, context.Canceled):
		v.unavailable("checking an intent", err)
	default:
		v.redirect(pathDone + v.arg)
	}
}
