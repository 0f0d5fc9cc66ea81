package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// What the provider may take, by the world's clock. Together they stay below
// the time after which the portal believes that a step was not applied.
const (
	callTimeout = 40 * time.Second // the portal's own: it hangs up
	slowest     = 20 * time.Second // a request's way to the provider
	latest      = 60 * time.Second // a request's time in a queue there
	stalest     = 20 * time.Second // how old a read may be
	keptFor     = 24 * time.Hour   // a key, at least
	pageLife    = time.Hour        // a page where the customer must do something
)

// stripe is the payment provider: subscriptions and cards, with Stripe's
// idempotency (docs.stripe.com/api/idempotent_requests): the first result under
// a key is kept, a refusal and a 500 too, for 24 hours; another request with the
// key is compared with the first; a key in use is a 409; a 429 and a 401 come
// before any of that; a DELETE has no key.
type stripe struct {
	w         *world
	customers []*payer
	subs      map[string]*subscription
	debts     map[string]*debt
	methods   map[string]string // customer by payment method
	keys      map[string]*kept
	pages     map[string]*page
	// effects counts, by intent and step, how often a step took effect; when
	// says when it last did, and made which version of the customer that was.
	effects map[string]int
	when    map[string]time.Duration
	made    map[string]int
	events  int
	down    time.Duration // nobody gets an answer until then
}

type payer struct {
	id, method string
	version    int // goes up with everything that changes
	subs       []*subscription
	debts      []*debt
}

// debt is an open invoice. An even one is paid by a card that the bank may ask
// about, an odd one by a bank debit.
type debt struct {
	id       string
	n        int
	owner    *payer
	paid     bool
	underway int // debits that are being processed
}

const owed = 700 // on each invoice

type subscription struct {
	id, item string
	owner    *payer
	price    int
	cancel   bool
	pending  bool
	version  int
}

// kept is a key and what is kept under it.
type kept struct {
	at     time.Duration
	params string
	busy   bool
	result billing.Result
	err    error
}

// page waits for the customer: 3-D Secure, or the entry of a card.
type page struct {
	until         time.Duration
	done, dropped bool
	debit         *debt // a bank is at it, not the customer
	apply         func()
	refs          map[string]string
	reason        string
}

// params is what a step does, in the provider's own words.
type params struct {
	Price   int    `json:"price,omitempty"`
	Cancel  *bool  `json:"cancel,omitempty"`
	Method  string `json:"method,omitempty"`
	Confirm bool   `json:"confirm,omitempty"` // the bank asks the customer first
	Debit   bool   `json:"debit,omitempty"`   // the bank takes hours
}

const (
	priceBasic = 1000
	priceTeam  = 2500
	priceGrand = 9000
)

func priceOf(p int) billing.Price {
	return billing.Price{
		ID: "price_" + strconv.Itoa(p), Currency: "usd", UnitAmount: decimal.NewFromInt(int64(p)),
		Interval: billing.Month, IntervalCount: 1, Active: true,
	}
}

func newStripe(w *world) *stripe {
	return &stripe{
		w: w, subs: map[string]*subscription{}, debts: map[string]*debt{}, methods: map[string]string{}, keys: map[string]*kept{},
		pages: map[string]*page{}, effects: map[string]int{}, when: map[string]time.Duration{}, made: map[string]int{},
	}
}

func (s *stripe) add(n, subs int) *payer {
	c := &payer{id: fmt.Sprintf("cus_%d", n), version: 1}
	for m := range 2 {
		s.methods[fmt.Sprintf("pm_%d%d", n, m)] = c.id
	}
	c.method = fmt.Sprintf("pm_%d0", n)
	for m := range subs {
		sub := &subscription{id: fmt.Sprintf("sub_%d%c", n, 'a'+m), item: fmt.Sprintf("si_%d%c", n, 'a'+m), owner: c, price: priceBasic, pending: true, version: 1}
		s.subs[sub.id] = sub
		c.subs = append(c.subs, sub)
	}
	for m := range 6 {
		v := &debt{id: fmt.Sprintf("in_%d%c", n, 'a'+m), n: m, owner: c}
		s.debts[v.id] = v
		c.debts = append(c.debts, v)
	}
	s.customers = append(s.customers, c)
	return c
}

func (s *stripe) payer(id string) *payer {
	n := slices.IndexFunc(s.customers, func(c *payer) bool { return c.id == id })
	if n < 0 {
		return nil
	}
	return s.customers[n]
}

// wire is the provider as one portal sees it, over a network.
type wire struct {
	s      *stripe
	portal *portal
}

func unavailable(code string) error {
	return &billing.Error{Fault: billing.Unavailable, Code: code, Err: errors.New(code)}
}

func (p *wire) dead() bool { return p.portal.proc.dead || p.s.w.over }

// reading is the way of a request that changes nothing, there and back.
func (p *wire) reading(ctx context.Context, what string) error {
	s, w := p.s, p.s.w
	if p.dead() || ctx.Err() != nil {
		return unavailable("closed")
	}
	w.boundary("before the provider is asked for " + what)
	w.sleep(w.between(5*time.Millisecond, 2*time.Second))
	switch {
	case p.dead():
		return unavailable("closed")
	case s.down > w.now, w.faulty(w.plan.provider / 4):
		w.count("fault: provider does not answer a read")
		return unavailable("timeout")
	}
	return nil
}

func (p *wire) Capabilities() billing.Capabilities {
	return billing.Capabilities{Name: "Stripe", KeyWindow: 23 * time.Hour, Exponent: func(string) int { return 2 }}
}

func (p *wire) Prices(context.Context) ([]billing.Price, error) { panic("not asked for here") }

func (p *wire) Find(context.Context, string) (billing.Customer, error) { panic("not asked for here") }

func (p *wire) Invoices(context.Context, string, string, int) (billing.InvoicePage, error) {
	panic("not asked for here")
}

func (p *wire) Search(context.Context, billing.CustomerQuery) ([]billing.Customer, error) {
	panic("not asked for here")
}

func (p *wire) Invoice(context.Context, string, string) (billing.InvoiceDetail, error) {
	panic("not asked for here")
}

func (p *wire) Usage(context.Context, string, billing.UsageQuery) (billing.Usage, error) {
	panic("not asked for here")
}

func (p *wire) Balance(context.Context, string, string, int) (billing.BalancePage, error) {
	panic("not asked for here")
}

func (p *wire) Document(context.Context, string, billing.DocumentRef) (billing.Document, error) {
	panic("not asked for here")
}

// ParseEvent reads an event of this world; signatures are the adapters' tests'.
func (p *wire) ParseEvent(_ http.Header, body []byte, _ time.Time) (billing.Event, error) {
	var e billing.Event
	if err := json.Unmarshal(body, &e); err != nil {
		return billing.Event{}, billing.ErrEvent
	}
	return e, nil
}

func (p *wire) Account(ctx context.Context, customer string) (billing.Account, error) {
	if err := p.reading(ctx, "an account"); err != nil {
		return billing.Account{}, err
	}
	c := p.s.payer(customer)
	if c == nil {
		return billing.Account{}, &billing.Error{Fault: billing.NotFound}
	}
	a := billing.Account{
		Customer: billing.Customer{ID: c.id, DefaultPaymentMethod: c.method, Version: strconv.Itoa(c.version)},
		AsOf:     p.s.w.time(),
	}
	for _, sub := range c.subs {
		a.Subscriptions = append(a.Subscriptions, billing.Subscription{
			ID: sub.id, Status: billing.Active, Currency: "usd", Version: strconv.Itoa(sub.version), CancelAtPeriodEnd: sub.cancel,
			Items: []billing.Item{{ID: sub.item, Price: priceOf(sub.price), Quantity: 1}},
		})
	}
	for _, v := range c.debts {
		if !v.paid {
			a.Debts = append(a.Debts, billing.Invoice{
				ID: v.id, Status: billing.InvoiceOpen, Attempted: true, Processing: v.underway > 0,
				AmountRemaining: billing.Money{Amount: owed, Currency: "usd"},
			})
		}
	}
	for m := range 2 {
		a.PaymentMethods = append(a.PaymentMethods, billing.PaymentMethod{ID: fmt.Sprintf("pm_%s%d", strings.TrimPrefix(c.id, "cus_"), m), Type: "card"})
	}
	p.s.w.sleep(p.s.w.between(time.Millisecond, time.Second)) // the answer may be old when it arrives
	return a, nil
}

func (p *wire) Preview(ctx context.Context, customer string, a billing.Action, at time.Time) (billing.Preview, error) {
	s := p.s
	if err := s.owns(customer, append([]string{a.Subscription, a.PaymentMethod}, a.Invoices...)...); err != nil {
		s.w.broken("INV7", "a preview for %s names %s %s, which are not theirs", customer, a.Subscription, a.PaymentMethod)
	}
	if err := p.reading(ctx, "a preview"); err != nil {
		return billing.Preview{}, err
	}
	c, sub := s.payer(customer), s.subs[a.Subscription]
	out := billing.Preview{Action: a, At: at, ObjectVersion: strconv.Itoa(c.version)}
	if at.IsZero() {
		out.At = s.w.time()
	}
	if sub != nil {
		out.ObjectVersion = strconv.Itoa(sub.version)
		out.Items = []billing.Item{{ID: sub.item, Price: priceOf(sub.price), Quantity: 1}}
	}
	step := func(kind, object string, p params, needs ...string) {
		raw, err := json.Marshal(p)
		if err != nil {
			s.w.broken("SIM", "%v", err)
		}
		out.Steps = append(out.Steps, billing.Step{Kind: kind, Object: object, Params: raw, Needs: needs})
	}
	pay := func(needs ...string) {
		for _, id := range a.Invoices {
			v := s.debts[id]
			step("invoice.pay", id, params{Confirm: v.n%3 == 0 && s.w.plan.confirm, Debit: v.n%2 == 1}, needs...)
			out.Steps[len(out.Steps)-1].Independent = true
		}
	}
	switch a.Kind {
	case billing.ChangePlan:
		var to int
		if _, err := fmt.Sscanf(a.Items[0].Price, "price_%d", &to); err != nil {
			return billing.Preview{}, &billing.Error{Fault: billing.Refused, Code: "invalid_request"}
		}
		out.Items[0].Price = priceOf(to)
		out.DueNow = billing.Money{Amount: int64(max(0, to-sub.price)), Currency: "usd"}
		out.Total = out.DueNow
		if sub.cancel {
			no := false
			step("subscription.uncancel", sub.id, params{Cancel: &no})
		}
		if to == priceGrand { // three calls: each can be the last
			step("subscription.release", sub.id, params{})
		}
		step("subscription.update", sub.id, params{Price: to, Confirm: to == priceTeam && s.w.plan.confirm})
	case billing.DropPending:
		if !sub.pending {
			return billing.Preview{}, &billing.Error{Fault: billing.Refused, Code: "not_changeable"}
		}
		step("pending.delete", sub.id, params{})
	case billing.Cancel, billing.Resume:
		yes := a.Kind == billing.Cancel
		if sub.cancel == yes {
			return out, nil // nothing to do
		}
		step("subscription.update", sub.id, params{Cancel: &yes})
	case billing.AddPaymentMethod:
		step("page.create", c.id, params{Confirm: true})
		step("customer.attach", c.id, params{}, "payment_method")
		pay("payment_method")
	case billing.PayInvoices:
		pay()
		out.DueNow = billing.Money{Amount: owed * int64(len(a.Invoices)), Currency: "usd"}
		out.Total = out.DueNow
	case billing.SetDefaultPaymentMethod:
		step("customer.update", c.id, params{Method: a.PaymentMethod})
		for _, sub := range c.subs {
			step("subscription.method", sub.id, params{Method: a.PaymentMethod})
		}
	default:
		return billing.Preview{}, &billing.Error{Fault: billing.Refused, Code: "invalid_request"}
	}
	return out, nil
}

// owns tells whether all of the objects are the customer's; "" is no object.
func (s *stripe) owns(customer string, objects ...string) error {
	for _, o := range objects {
		sub, ok := s.subs[o]
		if v := s.debts[o]; v != nil && v.owner.id == customer {
			continue
		}
		if o != "" && o != customer && (!ok || sub.owner.id != customer) && s.methods[o] != customer {
			return &billing.Error{Fault: billing.NotFound, Param: o}
		}
	}
	return nil
}

// fault is what goes wrong with one call.
type fault string

const (
	fine            fault = ""
	refusedToTalk   fault = "connection refused"
	resetBefore     fault = "reset before it arrived"
	tooMany         fault = "429"
	keyRevoked      fault = "401"
	declined        fault = "402"
	broken500       fault = "500, not applied"
	broken500After  fault = "500, applied"
	broken500Rolled fault = "500, rolled forward later"
	inUse           fault = "409"
	lostBefore      fault = "timeout, not applied"
	lostAfter       fault = "timeout, applied"
	resetAfter      fault = "reset, applied"
	garbage         fault = "garbage, applied"
	lateEffect      fault = "timeout, applied later"
	gatewayBefore   fault = "502, not applied"
	gatewayAfter    fault = "502, applied"
)

var faults = []fault{
	refusedToTalk, resetBefore, tooMany, keyRevoked, declined, broken500, broken500After, broken500Rolled, inUse,
	lostBefore, lostAfter, resetAfter, garbage, lateEffect, gatewayBefore, gatewayAfter,
}

func unknown(f fault) error {
	return &billing.Error{Fault: billing.Unknown, Code: "unreachable", Err: errors.New(string(f))}
}

// call is a request on its way. It goes on when the portal that sent it is
// killed, or hangs up.
type call struct {
	answered bool
	result   billing.Result
	err      error
}

func (p *wire) Execute(ctx context.Context, customer string, step billing.Step, key string) (billing.Result, error) {
	s, w := p.s, p.s.w
	if p.dead() {
		return billing.Result{}, unknown("closed")
	}
	w.boundary("before a step is sent")
	if p.dead() {
		return billing.Result{}, unknown("closed")
	}
	w.leaves(customer, step, key)
	f := fine
	if w.faulty(w.plan.provider) {
		f = faults[w.rng.IntN(len(faults))]
		w.count("fault: provider, " + string(f))
	}
	if s.down > w.now {
		f = lostBefore
	}
	w.note("execute %s %s %s [%s]", key, step.Kind, step.Object, f)
	switch f {
	case refusedToTalk:
		w.sleep(time.Millisecond)
		return billing.Result{}, &billing.Error{Fault: billing.Retryable, Code: "unreachable", Err: errors.New("connection refused")}
	case lostBefore, resetBefore:
		w.sleep(w.between(time.Second, callTimeout))
		return billing.Result{}, unknown(f)
	}
	caller, c := w.cur, &call{}
	w.spawn("call", nil, w.between(5*time.Millisecond, slowest), func() {
		c.result, c.err = s.serve(customer, step, key, f)
		w.sleep(w.between(5*time.Millisecond, 15*time.Second))
		c.answered = true
		w.rouse(caller)
	})
	w.wait(callTimeout, func() bool { return c.answered })
	w.boundary("after a step was answered")
	switch {
	case p.dead() || !c.answered:
		return billing.Result{}, unknown("hung up")
	case f == lostAfter, f == resetAfter, f == lateEffect, f == gatewayAfter, f == gatewayBefore:
		return billing.Result{}, unknown(f)
	case f == garbage:
		return billing.Result{}, errors.New("invalid character '<' looking for beginning of value")
	}
	return c.result, c.err
}

// serve answers a request that arrived.
func (s *stripe) serve(customer string, step billing.Step, key string, f fault) (billing.Result, error) {
	w := s.w
	switch f {
	case tooMany:
		return billing.Result{}, &billing.Error{Fault: billing.Retryable, Code: "rate_limit"}
	case keyRevoked:
		return billing.Result{}, &billing.Error{Fault: billing.Refused, Code: "authentication"}
	case inUse:
		return billing.Result{}, &billing.Error{Fault: billing.Retryable, Code: "idempotency_key_in_use"}
	case gatewayBefore:
		return billing.Result{}, unknown(f)
	}
	if step.Kind == "pending.delete" {
		return s.deletePending(customer, step, key, f)
	}
	raw, err := json.Marshal(step)
	if err != nil {
		w.broken("SIM", "%v", err)
	}
	if k := s.keys[key]; k != nil && w.now-k.at < keptFor {
		switch {
		case k.busy:
			w.count("provider: key in use")
			return billing.Result{}, &billing.Error{Fault: billing.Retryable, Code: "idempotency_key_in_use"}
		case k.params != string(raw):
			w.count("provider: parameters differ")
			return billing.Result{}, &billing.Error{Fault: billing.Unknown, Code: "idempotency_error"}
		}
		w.count("provider: replayed")
		w.note("replay %s", key)
		return k.result, k.err
	}
	if err := s.owns(customer, step.Object); err != nil {
		w.broken("INV7", "%s was sent for %s, whose it is not", step.Object, customer)
		return billing.Result{}, err
	}
	k := &kept{at: w.now, params: string(raw), busy: true}
	s.keys[key] = k
	if f == lateEffect {
		w.sleep(w.between(time.Second, latest))
	}
	k.busy = false
	switch f {
	case declined:
		k.err = &billing.Error{Fault: billing.Refused, Code: "card_declined"}
	case broken500, broken500Rolled:
		k.err = unknown(f)
		if f == broken500Rolled {
			w.spawn("rolled forward", nil, w.between(time.Second, latest), func() { _, _ = s.execute(customer, step, key) })
		}
	case broken500After:
		_, _ = s.execute(customer, step, key)
		k.err = unknown(f)
	default:
		k.result, k.err = s.execute(customer, step, key)
	}
	return k.result, k.err
}

// deletePending is a DELETE: no key, and the second finds nothing.
func (s *stripe) deletePending(customer string, step billing.Step, key string, f fault) (billing.Result, error) {
	if f == lateEffect {
		s.w.sleep(s.w.between(time.Second, latest))
	}
	sub := s.subs[step.Object]
	switch {
	case f == broken500:
		return billing.Result{}, unknown(f)
	case !sub.pending || s.owns(customer, step.Object) != nil:
		return billing.Result{}, &billing.Error{Fault: billing.NotFound}
	}
	sub.pending = false
	s.effect(key, sub.owner, sub)
	if f == broken500After || f == broken500Rolled {
		return billing.Result{}, unknown(f)
	}
	return billing.Result{State: billing.Done, Object: sub.id}, nil
}

// execute carries a step out, whatever else was: keys are looked at before.
func (s *stripe) execute(customer string, step billing.Step, key string) (billing.Result, error) {
	if s.w.over {
		return billing.Result{}, unknown("over")
	}
	var p params
	if err := json.Unmarshal(step.Params, &p); err != nil {
		s.w.broken("SIM", "%v", err)
	}
	c, sub, v := s.payer(customer), s.subs[step.Object], s.debts[step.Object]
	if v != nil && v.paid {
		return billing.Result{}, &billing.Error{Fault: billing.Refused, Code: "not_changeable"}
	}
	do := func() {
		switch step.Kind {
		case "invoice.pay":
			if v.paid { // by another payment meanwhile
				return
			}
			v.paid = true
			s.w.count("invoices paid")
		case "subscription.update", "subscription.uncancel":
			if p.Price != 0 {
				sub.price = p.Price
			}
			if p.Cancel != nil {
				sub.cancel = *p.Cancel
			}
		case "customer.update":
			c.method = p.Method
		case "customer.attach":
			c.method = step.Refs["payment_method"]
		}
		s.effect(key, c, sub)
	}
	if p.Debit {
		pg := &page{until: 1 << 62, apply: do, debit: v}
		s.pages[key] = pg
		v.underway++
		s.w.spawn("debit", nil, s.w.between(time.Minute, 6*time.Hour), func() {
			v.underway--
			c.version++
			if pg.done = s.w.chance(0.7); !pg.done {
				pg.dropped = true
				return
			}
			pg.apply()
		})
		return s.waiting(pg), nil
	}
	if p.Confirm {
		pg := &page{until: s.w.now + pageLife, apply: do, reason: "authentication_required"}
		if step.Kind == "page.create" {
			pg.reason, pg.refs = "enter_card", map[string]string{"payment_method": fmt.Sprintf("pm_%s1", strings.TrimPrefix(c.id, "cus_"))}
		}
		if v != nil {
			pg.until = s.w.now + 6*pageLife
		}
		s.pages[key] = pg
		s.w.note("page %s", key)
		return s.waiting(pg), nil
	}
	do()
	return billing.Result{State: billing.Done, Object: step.Object}, nil
}

func (s *stripe) waiting(pg *page) billing.Result {
	if pg.debit != nil {
		return billing.Result{State: billing.Processing}
	}
	return billing.Result{
		State: billing.AwaitingCustomer, GoTo: "https://provider.example/page", Reason: pg.reason, Until: epoch.Add(pg.until),
	}
}

// effect is where something changes for a customer. It is what all of this is
// about: at most once for a step of an intent.
func (s *stripe) effect(key string, c *payer, sub *subscription) {
	c.version++
	if sub != nil {
		sub.version++
	}
	step := stepOf(key)
	s.effects[step]++
	s.when[step], s.made[step] = s.w.now, c.version
	s.w.count("effects")
	s.w.note("effect %s (%d)", step, s.effects[step])
	s.w.took(step, s.effects[step])
	s.tell(c.id)
}

// stepOf is the intent and step that a key is of.
func stepOf(key string) string {
	if parts := strings.SplitN(key, ".", 3); len(parts) > 1 {
		return parts[0] + "." + parts[1]
	}
	return key
}

// visit is the customer doing their part on a page, or giving it up.
func (s *stripe) visit(key string, done bool) {
	pg := s.pages[key]
	if pg == nil || pg.debit != nil || pg.done || pg.dropped || s.w.now >= pg.until {
		return
	}
	if !done {
		pg.dropped = true
		return
	}
	pg.done = true
	s.w.count("customer did their part")
	pg.apply()
}

func (p *wire) Outcome(ctx context.Context, customer string, step billing.Step, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	s, w := p.s, p.s.w
	if err := p.reading(ctx, "an outcome"); err != nil {
		return billing.OutcomeUnsure, billing.Result{}, err
	}
	if w.faulty(w.plan.provider) {
		w.count("fault: an outcome is not certain")
		return billing.OutcomeUnsure, billing.Result{}, nil
	}
	name := stepOf(key)
	n, pg := s.effects[name], s.pages[key]
	if n > 0 && w.faulty(0.3) && w.now-s.when[name] < stalest {
		w.count("fault: a read does not see what was written")
		if pg != nil {
			return billing.OutcomeUnsure, billing.Result{}, nil
		}
		n = 0
	}
	w.note("outcome of %s: %d", key, n)
	switch {
	case n > 0:
		r := billing.Result{State: billing.Done, Object: step.Object}
		if pg != nil {
			r.Refs = pg.refs
		}
		return billing.Applied, r, nil
	case pg == nil, pg.dropped, pg.done, w.now >= pg.until:
		return billing.NotApplied, billing.Result{}, nil
	case last == nil:
		return billing.Applied, s.waiting(pg), nil
	}
	return billing.OutcomeUnsure, billing.Result{}, nil
}

// tell sends the vendor's webhook: late, twice, in any order, or never.
func (s *stripe) tell(customer string) {
	w := s.w
	s.events++
	body, err := json.Marshal(billing.Event{ID: fmt.Sprintf("evt_%d", s.events), Type: "customer.subscription.updated", Customer: customer})
	if err != nil {
		w.broken("SIM", "%v", err)
	}
	times := 1
	switch {
	case w.chance(0.2):
		w.count("webhook: never comes")
		return
	case w.chance(0.2):
		w.count("webhook: comes twice")
		times = 2
	}
	for range times {
		w.spawn("webhook", nil, w.between(10*time.Millisecond, 10*time.Minute), func() { w.deliver(body) })
	}
}

// leaves is called when a byte is about to leave for the provider: what the
// store holds at that moment is what a restart would find.
func (w *world) leaves(customer string, step billing.Step, key string) {
	id, num, _ := strings.Cut(stepOf(key), ".")
	n, err := strconv.Atoi(num)
	i := w.intents[id]
	switch {
	case err != nil:
		w.broken("INV4", "%s was sent under a key that no intent has", key)
		return
	case i == nil:
		w.broken("INV4", "%s was sent and no intent is written down", key)
		return
	case n >= len(i.Steps) || i.Steps[n].SentAt.IsZero():
		w.broken("INV4", "step %s was sent before the store knew: a crash now would forget it", key)
		return
	case i.Customer != customer || w.prov.owns(customer, step.Object) != nil:
		w.broken("INV7", "step %s of %s was sent for %s with %s", key, i.Customer, customer, step.Object)
	case !permitted(i.Role, i.Action.Kind):
		w.broken("INV4", "%s was sent for a %s, who may not %s", key, i.Role, i.Action.Kind)
	case i.ReadOnly || !i.Restored.Equal(w.guard().Restored):
		w.broken("INV4", "%s was sent again from a restored store", key)
	}
	for m := range n {
		before, alone := i.Steps[m], i.Steps[n].Independent
		if !before.Done && (!alone || before.Ended == "" && (before.Result == nil || before.Result.State != billing.Processing)) {
			w.broken("INV4", "step %s was sent before step %d was done", key, m)
		}
	}
	if late := w.time().Sub(i.Created); i.Steps[n].Independent && i.Steps[n].Attempts == 1 && !w.plan.jumps && late > time.Hour+20*time.Minute {
		w.broken("INV4", "step %s was sent for the first time %s after the click", key, late)
	}
	w.secrets("the parameters of "+key, step.Kind+step.Object+string(step.Params)+fmt.Sprint(step.Refs)+key)
}
