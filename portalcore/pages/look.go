package pages

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/shopspring/decimal"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// pageKey names a rendered page: everything that a page is a function of.
// The minute is in it because pages speak of time.
type pageKey struct {
	session   string
	version   uint64
	read      int64
	stale     bool
	minute    int64
	locale    string
	path      string
	catalogue *billing.Catalogue
}

// look is one page in the making.
type look struct {
	*visit
	snap account.Snapshot
	acct *billing.Account
	cat  *billing.Catalogue
	// busy is the intent that holds an object, by object.
	busy map[string]string
	page *templates.Page
}

// account reads the customer's account for a page. Where it cannot, it
// answers itself.
func (v *visit) account() (account.Snapshot, bool) {
	s, err := v.snapshot()
	switch {
	case err == nil:
		return s, true
	case billing.FaultOf(err) == billing.NotFound:
		v.Log.Warn("customer is not at the provider", zap.String("request_id", v.id), zap.String("customer", v.sess.Customer), zap.Error(err))
		v.message(http.StatusNotFound, templates.Message{Kind: "not_found", Href: v.backURL(), Link: linkVendor})
	default:
		v.providerDown(err)
	}
	return account.Snapshot{}, false
}

func (v *visit) snapshot() (account.Snapshot, error) {
	ctx, accounts := v.r.Context(), v.Corridor.Accounts
	if _, ok := accounts.Peek(v.sess.Customer); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	return accounts.Cached(ctx, v.sess.Customer, v.rec.Version)
}

func (v *visit) providerDown(err error) {
	if v.r.Context().Err() == nil {
		v.Log.Warn("provider does not answer", zap.String("request_id", v.id), zap.Error(err))
	}
	v.w.Header().Set("Retry-After", "30")
	m := templates.Message{Kind: "provider_down", Href: v.r.URL.Path, Link: linkRetry}
	if v.r.Method == http.MethodPost {
		m = templates.Message{Kind: "provider_down_nothing_sent"}
	}
	v.message(http.StatusServiceUnavailable, m)
}

// look starts a page of the account.
func (v *visit) look(section string, snap account.Snapshot) (*look, bool) {
	l := &look{visit: v, snap: snap, acct: &snap.Account, cat: v.catalogue()}
	objects := []string{v.sess.Customer}
	for i := range l.acct.Debts {
		objects = append(objects, l.acct.Debts[i].ID)
	}
	for i := range l.acct.Subscriptions {
		if s := &l.acct.Subscriptions[i]; !s.Ended() {
			objects = append(objects, s.ID)
		}
	}
	var err error
	if l.busy, err = v.Corridor.Journal.Busy(v.r.Context(), v.sess.Customer, objects...); err != nil {
		v.unavailable("reading locks", err)
		return nil, false
	}
	l.page = &templates.Page{
		Section: section, SignedIn: true, Customer: customerName(l.acct), ReturnURL: v.backURL(),
		CancelURL: cancelURL(l.acct), AsOf: l.acct.AsOf, Stale: snap.Stale, Failed: l.acct.Failed,
		RefreshHref: v.r.URL.Path + "?" + refreshField + "=1",
		Usage:       hasUsage(l.acct) && v.views(policy.ViewUsage).Allowed(),
		Balance:     v.views(policy.ViewBalance).Allowed(),
	}
	if !l.page.Balance {
		// The account is a copy: nobody else sees it without.
		l.acct.Customer.Balance.Amount = 0
	}
	return l, true
}

func (v *visit) catalogue() *billing.Catalogue {
	if c := v.Corridor.Catalogue(); c != nil {
		return c
	}
	return &noCatalogue
}

var noCatalogue billing.Catalogue

// refreshField in a page's query reads the account anew. That changes nothing
// anywhere, so a link may do it.
const refreshField = "fresh"

// refreshed answers a page's Refresh link: it reads the account, at most every
// few seconds, and leads to the page's clean URL.
func (v *visit) refreshed() bool {
	if v.form[refreshField] == "" {
		return false
	}
	v.readAnew()
	v.redirect(v.r.URL.Path)
	return true
}

func (v *visit) readAnew() {
	accounts := v.Corridor.Accounts
	if s, ok := accounts.Peek(v.sess.Customer); ok && v.now.Sub(s.Read) < refreshEvery {
		return
	}
	ctx, cancel := context.WithTimeout(v.r.Context(), patience)
	defer cancel()
	if _, err := accounts.Fresh(ctx, v.sess.Customer, v.rec.Version); err != nil {
		v.Log.Warn("could not read an account anew", zap.String("request_id", v.id), zap.Error(err))
	}
}

// refresh is POST /refresh: like the link, and for every other node too.
func (v *visit) refresh() {
	if s, ok := v.Corridor.Accounts.Peek(v.sess.Customer); !ok || v.now.Sub(s.Read) >= refreshEvery {
		if err := v.Sessions.Refresh(v.r.Context(), v.sess.Customer); err != nil {
			v.unavailable("asking for a refresh", err)
			return
		}
	}
	v.redirect(templates.PathOverview)
}

// kept answers with a page that is kept rendered. build makes it where it is
// not at hand. A form's nonce is kept with it: however often the page is shown
// or its button pressed, it stands for one intent, until something changed.
func (v *visit) kept(section string, build func(*look) error) {
	if v.refreshed() {
		return
	}
	snap, ok := v.account()
	if !ok {
		return
	}
	key := pageKey{
		session: v.sess.Hash, version: v.rec.Version, read: snap.Read.UnixNano(), stale: snap.Stale,
		minute: v.now.Unix() / 60, locale: v.locale(snap.Account.Customer.Locale), path: v.r.URL.Path,
		catalogue: v.Corridor.Catalogue(),
	}
	if body, ok := v.cache.GetIfPresent(key); ok {
		v.send(http.StatusOK, htmlType, body)
		return
	}
	l, ok := v.look(section, snap)
	if !ok {
		return
	}
	l.page.Banner, l.page.Support = l.banner(), v.support()
	if err := build(l); err != nil {
		v.failed(err)
		return
	}
	var b bytes.Buffer
	if err := v.Renderer.Render(&b, key.locale, l.page); err != nil {
		v.failed(err)
		return
	}
	v.cache.Set(key, b.Bytes())
	v.send(http.StatusOK, htmlType, b.Bytes())
}

// undated leaves out the time of the account where the page is not about how
// it stands. From before an outage it stays.
func (l *look) undated() {
	l.page.RefreshHref = ""
	if !l.page.Stale {
		l.page.AsOf = time.Time{}
	}
}

// show sends a page that is not kept.
func (l *look) show(status int) {
	if l.page.BackTo == "" {
		l.page.Banner = l.banner()
	} else {
		l.page.Banner = l.owedElsewhere()
	}
	l.visit.page(status, l.locale(l.acct.Customer.Locale), l.page)
}

// failed is for what should not fail: the source of randomness, a template
// that was tried at the start.
func (v *visit) failed(err error) {
	v.Log.Error("could not make a page", zap.String("request_id", v.id), zap.Error(err))
	v.message(http.StatusInternalServerError, templates.Message{Kind: "error"})
}

func customerName(a *billing.Account) string {
	return cmp.Or(a.Customer.Name, a.Customer.Email, a.Customer.ID)
}

// newForm makes a form with a nonce of its own.
func (v *visit) newForm(action, version string, hidden ...templates.Field) (templates.Form, error) {
	nonce, err := act.NewNonce(v.Rand)
	return templates.Form{Action: action, Nonce: nonce, Version: version, Hidden: hidden}, err
}

// Names of the fields in a Form's Hidden.
const (
	fieldSubscription = "subscription"
	fieldInterval     = "interval"
)

func (l *look) decide(r policy.Request) policy.Decision {
	r.Role, r.Permissions = l.sess.Role, l.sess.Permissions
	return l.Corridor.Policy(l.sess.Configuration).Decide(r)
}

// permit is a decision, and what else may be in the way on an object.
func (l *look) permit(d policy.Decision, object string) templates.Permit {
	switch {
	case !d.Allowed():
		return templates.Permit{Why: d.Why, Text: d.Text}
	case l.busy[object] != "":
		return templates.Permit{Why: "busy"}
	}
	return templates.Permit{Allowed: true}
}

func (l *look) permitCustomer(action string) templates.Permit {
	return l.permit(l.decide(policy.Request{Action: action}), l.sess.Customer)
}

func (l *look) permitSubscription(r policy.Request, s *billing.Subscription) templates.Permit {
	r.From = l.planKey(s)
	p := l.permit(l.decide(r), s.ID)
	switch {
	case !p.Allowed:
	case s.Scheduled:
		p = templates.Permit{Why: "scheduled"}
	case s.Ended() || len(s.Items) == 0:
		p = templates.Permit{Why: "none"}
	}
	return p
}

// mainItem is the item that a change of plan is about: the first one of a plan
// that is offered, else the first. The subscription has one.
func (l *look) mainItem(items []billing.Item) billing.Item {
	for _, it := range items {
		if _, ok := l.cat.PlanOf(it.Price.ID); ok {
			return it
		}
	}
	// What is billed by usage comes beside a plan.
	for _, it := range items {
		if !it.Price.Metered {
			return it
		}
	}
	if len(items) == 0 {
		return billing.Item{}
	}
	return items[0]
}

func (l *look) planOf(items []billing.Item) *billing.Plan {
	p, _ := l.cat.PlanOf(l.mainItem(items).Price.ID)
	return p
}

func (l *look) planKey(s *billing.Subscription) string {
	if p := l.planOf(s.Items); p != nil {
		return p.Key
	}
	return ""
}

// planName is the plan's name; for a price that is not offered the provider's.
func (l *look) planName(items []billing.Item) string {
	if p := l.planOf(items); p != nil {
		return p.Name
	}
	return l.mainItem(items).Price.ProductName
}

func times(p billing.Price, n int64) billing.Money { return p.Cost(decimal.NewFromInt(n)) }

func withSubscription(path, id string) string {
	return path + "?" + fieldSubscription + "=" + url.QueryEscape(id)
}

func (l *look) status(s *billing.Subscription) string {
	switch {
	case s.Ended():
		return "ended"
	case s.Status == billing.Incomplete:
		return "incomplete"
	case s.Status == billing.PastDue:
		return "past_due"
	case s.Status == billing.Unpaid:
		return "unpaid"
	case s.Status == billing.Paused:
		return "paused"
	case s.Pending != nil:
		return "waiting"
	case l.busy[s.ID] != "":
		return "checking"
	case !s.Ends().IsZero():
		return "ending"
	case s.Status == billing.Trialing:
		return "trial"
	}
	return "active"
}

// moreItems counts the items besides the main one. What is billed by usage is
// not among them: the page says so in other words.
func moreItems(s *billing.Subscription) int {
	n := 0
	for _, it := range s.Items {
		if !it.Price.Metered {
			n++
		}
	}
	return max(n-1, 0)
}

func (l *look) subscription(s *billing.Subscription) (templates.Subscription, error) {
	it := l.mainItem(s.Items)
	out := templates.Subscription{
		ID: s.ID, PlanName: l.planName(s.Items), Status: l.status(s), Price: it.Price, Quantity: it.Quantity,
		Total: times(it.Price, it.Quantity), Metered: metered(s), MoreItems: moreItems(s),
		PeriodEnd: s.PeriodEnd(), TrialEnd: s.TrialEnd, Ends: s.Ends(), Pending: s.Pending,
		PlanHref: withSubscription(templates.PathPlan, s.ID), CancelHref: withSubscription(pathCancel, s.ID),
		Change: l.permitSubscription(policy.Request{Action: policy.ChangePlan, AnyDirection: true}, s),
		Cancel: l.permitSubscription(policy.Request{Action: policy.Cancel}, s),
		Resume: l.permitSubscription(policy.Request{Action: policy.Resume}, s),
	}
	if p := l.planOf(s.Items); p != nil {
		out.Features, out.Limits = p.Features, p.Limits
	}
	if s.Pending != nil {
		out.PendingPlan = l.planName(s.Pending.Items)
	}
	// One of the two has no object: a plan that ends cannot be cancelled again.
	if s.Ends().IsZero() {
		out.Resume = templates.Permit{Why: "none"}
	} else if out.CancelHref = ""; out.Cancel.Allowed {
		out.Cancel = templates.Permit{Why: "none"}
	}
	var err error
	if out.Resume.Allowed {
		out.ResumeForm, err = l.newForm(pathResume, s.Version, templates.Field{Name: fieldSubscription, Value: s.ID})
	}
	return out, err
}

// going are the subscriptions that are not ended.
func (l *look) going() []*billing.Subscription {
	var out []*billing.Subscription
	for i := range l.acct.Subscriptions {
		if s := &l.acct.Subscriptions[i]; !s.Ended() {
			out = append(out, s)
		}
	}
	return out
}

// cancellable are the subscriptions that go on.
func cancellable(acct *billing.Account) []*billing.Subscription {
	var out []*billing.Subscription
	for i := range acct.Subscriptions {
		if s := &acct.Subscriptions[i]; !s.Ended() && s.Ends().IsZero() {
			out = append(out, s)
		}
	}
	return out
}

// cancelURL is the footer's way out. It is there for those who may not cancel
// too: the page says why.
func cancelURL(acct *billing.Account) string {
	switch subs := cancellable(acct); len(subs) {
	case 0:
		return ""
	case 1:
		return withSubscription(pathCancel, subs[0].ID)
	}
	return templates.PathOverview
}

// knownCancelURL is the footer's way out on pages that are not drawn from the
// account: as the account was last known.
func (v *visit) knownCancelURL() string {
	if s, ok := v.Corridor.Accounts.Peek(v.sess.Customer); ok && v.signedIn {
		return cancelURL(&s.Account)
	}
	return ""
}

// pays is what pays for s, or nil where nothing does. Where the payment methods
// could not be read, one without details stands for the one that is named.
func (l *look) pays(s *billing.Subscription) *billing.PaymentMethod {
	m, ok := l.acct.Pays(s)
	if !ok && l.acct.Missing(billing.SectionPaymentMethods) {
		if id := cmp.Or(subscriptionMethod(s), l.acct.Customer.DefaultPaymentMethod); id != "" {
			return &billing.PaymentMethod{ID: id}
		}
	}
	return m
}

func subscriptionMethod(s *billing.Subscription) string {
	if s == nil {
		return ""
	}
	return s.DefaultPaymentMethod
}

// waitingHref leads to the receipt of the change that waits, where the portal
// made it, else to the payment methods.
func (l *look) waitingHref(subscription string) string {
	if i, ok := l.waiting(subscription); ok {
		return pathDone + i.ID
	}
	return templates.PathPayment
}

func (l *look) waiting(subscription string) (journal.Intent, bool) {
	list, err := l.Corridor.Journal.List(l.r.Context(), l.sess.Customer, 1000)
	if err != nil {
		l.Log.Warn("could not list intents", zap.String("request_id", l.id), zap.Error(err))
	}
	var latest journal.Intent
	for _, i := range list {
		if i.State == journal.AwaitingCustomer && i.Action.Kind == billing.ChangePlan &&
			i.Action.Subscription == subscription && i.Created.After(latest.Created) {
			latest = i
		}
	}
	return latest, latest.ID != ""
}

func (v *visit) overview() {
	v.kept("overview", func(l *look) error {
		body := &templates.Overview{
			Customer: l.acct.Customer, SeeInvoices: l.views(policy.ViewInvoices).Allowed(),
			SeePlans:     len(l.cat.Plans) > 0,
			UpdateMethod: l.permitCustomer(policy.UpdatePaymentMethod), UpdateDetails: l.permitCustomer(policy.UpdateDetails),
		}
		if body.SeeInvoices {
			body.Invoices = l.acct.Invoices[:min(len(l.acct.Invoices), 3)]
		}
		subs := l.going()
		shown := l.byUrgency(subs)
		if len(subs) > maxCards {
			shown, body.All = shown[:maxCards], len(subs)
		}
		var err error
		if body.Subscriptions, err = l.cards(shown); err != nil {
			return err
		}
		body.Method = l.pays(nil)
		if len(subs) > 0 {
			body.Method = l.pays(subs[0])
		}
		for _, u := range l.acct.Upcoming {
			next := templates.NextPayment{Upcoming: u, Kind: "next"}
			if s, ok := l.acct.Subscription(u.Subscription); ok {
				next.PlanName, next.Method = l.planName(s.Items), l.pays(s)
				switch {
				case s.SendInvoice:
					next.Kind, next.Method = "invoice", nil
				case s.Status == billing.Trialing:
					next.Kind = "first"
				}
			}
			body.Next = append(body.Next, next)
		}
		l.page.Body = body
		return nil
	})
}

// intervalKey names an interval in a URL: "month", "3month".
func intervalKey(i billing.Interval, count int) string {
	if count <= 1 {
		return string(i)
	}
	return strconv.Itoa(count) + string(i)
}

func (v *visit) plan() {
	if v.refreshed() {
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
	l.showPlan(http.StatusOK, v.form, nil)
}

// subscriptionOf finds the subscription that a request names, or the first one
// where it names none. It reports false where the customer has no such one.
func (l *look) subscriptionOf(id string) (*billing.Subscription, bool) {
	subs := l.going()
	if id == "" {
		if len(subs) == 0 {
			return nil, true
		}
		return subs[0], true
	}
	for _, s := range subs {
		if s.ID == id {
			return s, true
		}
	}
	return nil, false
}

// showPlan draws /plan, for the subscription and interval that f names, with
// the entries of f.
func (l *look) showPlan(status int, f form, errs []templates.FieldError) {
	sub, ok := l.subscriptionOf(f[fieldSubscription])
	if !ok {
		l.notFound()
		return
	}
	body, err := l.planBody(sub, f)
	if err != nil {
		l.failed(err)
		return
	}
	body.Errors = errs
	if len(errs) > 0 {
		l.page.RefreshHref = ""
	}
	l.page.Body = body
	l.show(status)
}

func (l *look) planBody(sub *billing.Subscription, f form) (*templates.Plan, error) {
	body := &templates.Plan{Change: templates.Permit{Why: "none"}}
	currency, current := "", billing.Item{}
	if sub != nil {
		card, err := l.subscription(sub)
		if err != nil {
			return nil, err
		}
		body.Subscription, body.Change = &card, card.Change
		for _, other := range l.going() {
			if other != sub {
				if card, err = l.subscription(other); err != nil {
					return nil, err
				}
				body.Others = append(body.Others, card)
			}
		}
		currency, current = sub.Currency, l.mainItem(sub.Items)
		current.Quantity = max(current.Quantity, 1) // usage has none, plans do
	}
	if currency == "" {
		currency = cmp.Or(l.acct.Customer.Balance.Currency, firstCurrency(l.cat))
	}
	shown := l.intervals(body, sub, currency, current, f[fieldInterval])
	l.offers(body, sub, currency, current, shown)

	if sub != nil {
		choose, err := l.newForm(templates.PathPlan, sub.Version,
			templates.Field{Name: fieldSubscription, Value: sub.ID}, templates.Field{Name: fieldInterval, Value: shown})
		if err != nil {
			return nil, err
		}
		body.Choose = choose
		body.Quantity = l.quantity(body.Offers, current)
		body.Quantity.Price = l.quantityPrice(body.Offers, current, shown)
		if entered, ok := f[templates.FieldQuantity]; ok {
			body.Quantity.Value = entered
		}
	}
	return body, nil
}

func firstCurrency(cat *billing.Catalogue) string {
	for _, p := range cat.Plans {
		for _, pr := range p.Prices {
			return pr.Currency
		}
	}
	return ""
}

// intervals fills the switch and returns the key of the interval to show: the
// one asked for, else the current one, else the first.
func (l *look) intervals(body *templates.Plan, sub *billing.Subscription, currency string, current billing.Item, asked string) string {
	now := intervalKey(current.Price.Interval, current.Price.IntervalCount)
	shown := ""
	for _, p := range l.cat.Plans {
		for _, pr := range p.Prices {
			key := intervalKey(pr.Interval, pr.IntervalCount)
			known := slices.ContainsFunc(body.Intervals, func(i templates.PlanInterval) bool { return intervalKey(i.Interval, i.Count) == key })
			if pr.Currency != currency || known {
				continue
			}
			href := templates.PathPlan + "?" + fieldInterval + "=" + key
			if sub != nil {
				href = withSubscription(templates.PathPlan, sub.ID) + "&" + fieldInterval + "=" + key
			}
			body.Intervals = append(body.Intervals, templates.PlanInterval{Interval: pr.Interval, Count: max(pr.IntervalCount, 1), Href: href})
			if shown == "" || key == asked || key == now && shown != asked {
				shown = key
			}
		}
	}
	days := map[billing.Interval]int{billing.Day: 1, billing.Week: 7, billing.Month: 30, billing.Year: 365}
	slices.SortFunc(body.Intervals, func(a, b templates.PlanInterval) int {
		return cmp.Compare(days[a.Interval]*a.Count, days[b.Interval]*b.Count)
	})
	for i := range body.Intervals {
		body.Intervals[i].Current = intervalKey(body.Intervals[i].Interval, body.Intervals[i].Count) == shown
	}
	return shown
}

// offers fills the plan cards of one interval, cheapest first.
func (l *look) offers(body *templates.Plan, sub *billing.Subscription, currency string, current billing.Item, shown string) {
	var from *billing.Plan
	if sub != nil {
		from = l.planOf(sub.Items)
	}
	for i := range l.cat.Plans {
		p := &l.cat.Plans[i]
		for _, pr := range p.Prices {
			if pr.Currency != currency || intervalKey(pr.Interval, pr.IntervalCount) != shown {
				continue
			}
			o := templates.Offer{Key: p.Key, Name: p.Name, Text: p.Text, Price: pr, Features: p.Features, Limits: p.Limits}
			o.PerUnit = p.MaxQuantity != 1
			if sub == nil {
				o.Permit = templates.Permit{Why: "none"}
			} else {
				o.Quantity, o.Total, o.Current = current.Quantity, times(pr, current.Quantity), pr.ID == current.Price.ID
				o.Permit, o.Direction = l.permitOffer(sub, current, pr.ID)
				if !o.Current {
					o.Gains, o.Losses, o.Changes = compare(from, p)
				}
			}
			body.Offers = append(body.Offers, o)
		}
	}
	slices.SortStableFunc(body.Offers, func(a, b templates.Offer) int { return a.Price.UnitAmount.Cmp(b.Price.UnitAmount) })
}

// permitOffer says whether the change to a price at the current quantity may be
// made. For the current price it is whether more or fewer may.
func (l *look) permitOffer(sub *billing.Subscription, current billing.Item, price string) (templates.Permit, string) {
	change := billing.ItemChange{Item: current.ID, Price: price, Quantity: current.Quantity}
	parts, ok := policy.PartsOf(l.cat, sub, []billing.ItemChange{change})
	if !ok {
		return templates.Permit{Why: "none"}, ""
	}
	if len(parts) > 0 {
		return l.permitSubscription(policy.Request{Action: policy.ChangePlan, Parts: parts}, sub), string(policy.Overall(parts))
	}
	key := l.planKey(sub)
	var p templates.Permit
	for _, d := range []policy.Direction{policy.Downgrade, policy.Upgrade} {
		p = l.permitSubscription(policy.Request{Action: policy.ChangePlan, Parts: []policy.Part{{Direction: d, From: key, To: key}}}, sub)
		if p.Allowed {
			break
		}
	}
	return p, ""
}

// compare lists the features that only one of two plans has, and the limits
// that are not the same.
func compare(from, to *billing.Plan) (gains, losses []string, changes []templates.LimitChange) {
	if from == nil || to == nil || from.Key == to.Key {
		return nil, nil, nil
	}
	for _, f := range to.Features {
		if !slices.Contains(from.Features, f) {
			gains = append(gains, f)
		}
	}
	for _, f := range from.Features {
		if !slices.Contains(to.Features, f) {
			losses = append(losses, f)
		}
	}
	limit := func(p *billing.Plan, name string) (int64, bool) {
		for _, l := range p.Limits {
			if l.Name == name {
				return l.Value, true
			}
		}
		return 0, false
	}
	for _, l := range to.Limits {
		before, ok := limit(from, l.Name)
		if !ok || before != l.Value {
			changes = append(changes, templates.LimitChange{Name: l.Name, From: before, To: l.Value, Added: !ok})
		}
	}
	for _, l := range from.Limits {
		if _, ok := limit(to, l.Name); !ok {
			changes = append(changes, templates.LimitChange{Name: l.Name, From: l.Value, Removed: true})
		}
	}
	return gains, losses, changes
}

// quantityPrice is the price that another quantity is asked for at: the current
// one, or under another interval the same plan's price there. Usage has none.
func (l *look) quantityPrice(offers []templates.Offer, current billing.Item, shown string) string {
	if current.Price.Metered {
		return ""
	}
	if shown == "" || shown == intervalKey(current.Price.Interval, current.Price.IntervalCount) {
		return current.Price.ID
	}
	plan, ok := l.cat.PlanOf(current.Price.ID)
	for _, o := range offers {
		if ok && o.Key == plan.Key && o.Permit.Allowed {
			return o.Price.ID
		}
	}
	return ""
}

// quantity bounds the field by all that is offered; the plan chosen has the
// last word.
func (l *look) quantity(offers []templates.Offer, current billing.Item) templates.QuantityField {
	q := templates.QuantityField{Value: strconv.FormatInt(current.Quantity, 10), Min: 1}
	if len(offers) == 0 {
		q.Show = current.Quantity > 1
		return q
	}
	q.Min = 0
	bounded := true
	for _, o := range offers {
		p, _ := l.cat.PlanOf(o.Price.ID)
		lo := max(p.MinQuantity, 1)
		if q.Min == 0 || lo < q.Min {
			q.Min = lo
		}
		bounded = bounded && p.MaxQuantity > 0
		q.Max = max(q.Max, p.MaxQuantity)
	}
	if !bounded {
		q.Max = 0
	}
	q.Show = q.Max != 1 || current.Quantity > 1
	return q
}
