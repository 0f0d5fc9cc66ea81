package act

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shopspring/decimal"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// clock is the one clock of a test.
type clock struct{ ns atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(0, c.ns.Load()).UTC() }
func (c *clock) Advance(d time.Duration) { c.ns.Add(int64(d)) }

// memory is a store in memory: serializable because one runs after another.
type memory struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (m *memory) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return fn(&memTx{data: m.data, readOnly: true})
}

func (m *memory) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// Closures may run again: they always do here, and the second run counts.
	_ = fn(&memTx{data: maps.Clone(m.data)})
	tx := &memTx{data: maps.Clone(m.data)}
	if err := fn(tx); err != nil {
		return err
	}
	m.data = tx.data
	return nil
}

func (m *memory) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	values := make([][]byte, len(keys))
	for i, k := range keys {
		values[i] = m.data[string(k)]
	}
	return values, nil
}

func (m *memory) snapshot() map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.data)
}

type memTx struct {
	data     map[string][]byte
	readOnly bool
}

func (t *memTx) Get(key []byte) ([]byte, error) {
	v, ok := t.data[string(key)]
	if !ok {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(v), nil
}

func (t *memTx) Put(key, value []byte) error {
	switch {
	case t.readOnly:
		return store.ErrReadOnly
	case len(value) > store.MaxValue:
		return store.ErrTooLarge
	}
	t.data[string(key)] = append([]byte{}, value...)
	return nil
}

func (t *memTx) Delete(key []byte) error {
	if t.readOnly {
		return store.ErrReadOnly
	}
	delete(t.data, string(key))
	return nil
}

func (t *memTx) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	var keys []string
	for k := range t.data {
		if bytes.HasPrefix([]byte(k), prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if reverse {
		slices.Reverse(keys)
	}
	if limit <= 0 {
		limit = 1000
	}
	var out []store.Entry
	for _, k := range keys {
		if from != nil && (!reverse && k < string(from) || reverse && k > string(from)) {
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, store.Entry{Key: []byte(k), Value: bytes.Clone(t.data[k])})
	}
	return out, nil
}

// fault is what the fake does with one Execute instead of answering.
type fault int

const (
	none           fault = iota
	refuse               // executed and refused: saved under the key
	refuseEarly          // refused before the key is looked at: a revoked API key
	retry                // not executed
	unknownBefore        // the request was lost
	unknownAfter         // the answer was lost
	hang                 // no answer until the caller goes; never executed
	hangAfter            // executed, no answer until the caller goes
	late                 // no answer now, executed a minute later
	foreignError         // an error that is no billing.Error, after the effect
	keyMismatch          // the provider knows the key with other parameters
	refuseNotFound       // the object is gone
)

type saved struct {
	step   string
	at     time.Time
	result billing.Result
	err    error
}

type cardPage struct {
	done    bool
	dropped bool
	until   time.Time
}

// fake is a provider with Stripe's idempotency: the first result under a key
// is saved, a refusal too, and given again for 24 hours. After that the key is
// a new one.
type fake struct {
	now func() time.Time

	mu       sync.Mutex
	subs     map[string]map[string]*billing.Subscription // customer -> id
	methods  map[string][]string
	debts    map[string][]billing.Invoice
	invoices []billing.Invoice // of everybody
	failed   []billing.Section
	saved    map[string]saved
	effects  map[string]int // by key
	pages    map[string]*cardPage
	pending  map[string]func() // late effects
	sent     []string          // keys, in order
	accounts int
	previews int
	outcomes int

	// steps are those of every preview; nil: one that does it.
	steps func(customer string, a billing.Action) []billing.Step
	// script says what goes wrong with the n-th Execute, from 0.
	script func(n int, step billing.Step) fault
	// before runs at the beginning of every Execute.
	before func(customer string, step billing.Step, key string)
	// whenRead runs once, before the next Account.
	whenRead func()
	// due changes the sum of every preview.
	due         int64
	previewErr  error
	accountErr  error
	outcomeErr  error
	outcomeSays billing.Outcome
	// mute says nothing definite of what waits.
	mute    bool
	invoice *billing.Invoice
}

func newFake(now func() time.Time) *fake {
	f := &fake{
		now: now, subs: map[string]map[string]*billing.Subscription{}, methods: map[string][]string{}, debts: map[string][]billing.Invoice{}, saved: map[string]saved{},
		effects: map[string]int{}, pages: map[string]*cardPage{}, pending: map[string]func(){}, due: 1000,
	}
	for _, c := range []string{"cus_1", "cus_2"} {
		n := c[len(c)-1:]
		f.methods[c] = []string{"pm_" + n}
		for _, v := range []string{"a", "b", "c"} {
			f.debts[c] = append(f.debts[c], billing.Invoice{
				ID: "in_" + n + v, Status: billing.InvoiceOpen, Attempted: true, AmountRemaining: billing.Money{Amount: 700, Currency: "usd"},
			})
		}
		f.subs[c] = map[string]*billing.Subscription{}
		for _, s := range []string{"a", "b"} {
			id := "sub_" + n + s
			f.subs[c][id] = &billing.Subscription{
				ID: id, Status: billing.Active, Currency: "usd", Version: "v1",
				Items: []billing.Item{{ID: "si_" + n + s, Price: basic, Quantity: 3}},
			}
		}
	}
	return f
}

var (
	basic  = billing.Price{ID: "p_basic", Currency: "usd", UnitAmount: decimal.NewFromInt(1000), Interval: billing.Month, IntervalCount: 1, Active: true}
	team   = billing.Price{ID: "p_team", Currency: "usd", UnitAmount: decimal.NewFromInt(2000), Interval: billing.Month, IntervalCount: 1, Active: true}
	euro   = billing.Price{ID: "p_team_eur", Currency: "eur", UnitAmount: decimal.NewFromInt(2000), Interval: billing.Month, IntervalCount: 1, Active: true}
	prices = map[string]billing.Price{basic.ID: basic, team.ID: team, euro.ID: euro}
)

func (f *fake) Capabilities() billing.Capabilities {
	return billing.Capabilities{Name: "Fake", KeyWindow: 23 * time.Hour, Exponent: func(string) int { return 2 }}
}

func (f *fake) Prices(context.Context) ([]billing.Price, error) {
	return []billing.Price{basic, team}, nil
}

func (f *fake) Find(context.Context, string) (billing.Customer, error) {
	return billing.Customer{}, errors.New("not asked for here")
}

func (f *fake) Invoices(context.Context, string, string, int) (billing.InvoicePage, error) {
	return billing.InvoicePage{}, errors.New("not asked for here")
}

func (f *fake) Search(context.Context, billing.CustomerQuery) ([]billing.Customer, error) {
	return nil, errors.New("not asked for here")
}

func (f *fake) Invoice(context.Context, string, string) (billing.InvoiceDetail, error) {
	return billing.InvoiceDetail{}, errors.New("not asked for here")
}

func (f *fake) Usage(context.Context, string, billing.UsageQuery) (billing.Usage, error) {
	return billing.Usage{}, errors.New("not asked for here")
}

func (f *fake) Balance(context.Context, string, string, int) (billing.BalancePage, error) {
	return billing.BalancePage{}, errors.New("not asked for here")
}

func (f *fake) Document(context.Context, string, billing.DocumentRef) (billing.Document, error) {
	return billing.Document{}, errors.New("not asked for here")
}

func (f *fake) Account(ctx context.Context, customer string) (billing.Account, error) {
	f.mu.Lock()
	if fn := f.whenRead; fn != nil {
		f.whenRead = nil
		f.mu.Unlock()
		fn()
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	f.accounts++
	if err := cmpErr(ctx.Err(), f.accountErr); err != nil {
		return billing.Account{}, err
	}
	subs, ok := f.subs[customer]
	if !ok {
		return billing.Account{}, &billing.Error{Fault: billing.NotFound}
	}
	a := billing.Account{Customer: billing.Customer{ID: customer, TaxIDs: []billing.TaxID{{ID: "txi" + customer[3:]}}}, AsOf: f.now(), Failed: f.failed}
	a.Debts, a.Invoices = slices.Clone(f.debts[customer]), f.invoices
	for _, id := range slices.Sorted(maps.Keys(subs)) {
		s := *subs[id]
		s.Items = slices.Clone(s.Items)
		a.Subscriptions = append(a.Subscriptions, s)
	}
	for _, m := range f.methods[customer] {
		a.PaymentMethods = append(a.PaymentMethods, billing.PaymentMethod{ID: m, Type: "card"})
	}
	return a, nil
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Preview(_ context.Context, customer string, a billing.Action, at time.Time) (billing.Preview, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.previews++
	if f.previewErr != nil {
		return billing.Preview{}, f.previewErr
	}
	p := billing.Preview{Action: a, At: at, ObjectVersion: "cv1"}
	if at.IsZero() {
		p.At = f.now()
	}
	if a.Subscription != "" {
		s, ok := f.subs[customer][a.Subscription]
		if !ok {
			return billing.Preview{}, &billing.Error{Fault: billing.NotFound}
		}
		p.ObjectVersion, p.Items = s.Version, slices.Clone(s.Items)
	}
	for _, v := range f.debts[customer] {
		if slices.Contains(a.Invoices, v.ID) {
			p.DueNow = billing.Money{Amount: p.DueNow.Amount + v.AmountRemaining.Amount, Currency: "usd"}
		}
	}
	if a.Kind == billing.ChangePlan {
		p.DueNow = billing.Money{Amount: f.due, Currency: "usd"}
		p.Total = p.DueNow
		for _, ch := range a.Items {
			for i := range p.Items {
				if p.Items[i].ID == ch.Item {
					p.Items[i].Price, p.Items[i].Quantity = prices[ch.Price], ch.Quantity
				}
			}
		}
	}
	if f.steps != nil {
		p.Steps = f.steps(customer, a)
		return p, nil
	}
	params, err := json.Marshal(a.Items)
	p.Steps = []billing.Step{{Kind: "change", Object: a.Object(customer), Params: params}}
	return p, err
}

func answerLost(ctx context.Context) error {
	return &billing.Error{Fault: billing.Unknown, Code: "unreachable", Err: ctx.Err()}
}

func (f *fake) Execute(ctx context.Context, customer string, step billing.Step, key string) (billing.Result, error) {
	if f.before != nil {
		f.before(customer, step, key)
	}
	f.mu.Lock()
	n := len(f.sent)
	f.sent = append(f.sent, key)
	what := none
	if f.script != nil {
		what = f.script(n, step)
	}
	f.mu.Unlock()
	if ctx.Err() != nil {
		return billing.Result{}, answerLost(ctx)
	}
	switch what {
	case refuseEarly:
		return billing.Result{}, &billing.Error{Fault: billing.Refused, Code: "authentication"}
	case refuseNotFound:
		return billing.Result{}, &billing.Error{Fault: billing.NotFound}
	case retry:
		return billing.Result{}, &billing.Error{Fault: billing.Retryable, Code: "rate_limit"}
	case unknownBefore:
		return billing.Result{}, answerLost(ctx)
	case keyMismatch:
		return billing.Result{}, &billing.Error{Fault: billing.Unknown, Code: "idempotency_error"}
	case hang:
		<-ctx.Done()
		return billing.Result{}, answerLost(ctx)
	case late:
		f.mu.Lock()
		f.pending[key] = func() { _, _ = f.apply(customer, step, key, none) }
		f.mu.Unlock()
		return billing.Result{}, answerLost(ctx)
	}
	f.mu.Lock()
	r, err := f.apply(customer, step, key, what)
	f.mu.Unlock()
	switch what {
	case unknownAfter:
		return billing.Result{}, answerLost(ctx)
	case foreignError:
		return billing.Result{}, errors.New("unexpected EOF")
	case hangAfter:
		<-ctx.Done()
		return billing.Result{}, answerLost(ctx)
	}
	return r, err
}

// apply carries a step out, or gives the saved answer.
func (f *fake) apply(customer string, step billing.Step, key string, what fault) (billing.Result, error) {
	body, err := json.Marshal(step)
	if err != nil {
		return billing.Result{}, err
	}
	if s, ok := f.saved[key]; ok && f.now().Sub(s.at) < 24*time.Hour {
		if s.step != string(body) {
			return billing.Result{}, &billing.Error{Fault: billing.Unknown, Code: "idempotency_error"}
		}
		return s.result, s.err
	}
	_, own := f.subs[customer][step.Object]
	own = own || slices.ContainsFunc(f.debts[customer], func(v billing.Invoice) bool { return v.ID == step.Object })
	if step.Object != customer && !own {
		return billing.Result{}, &billing.Error{Fault: billing.NotFound}
	}
	var r billing.Result
	if what == refuse || step.Kind == "decline" {
		err = &billing.Error{Fault: billing.Refused, Code: "card_declined"}
	} else {
		for _, name := range step.Needs {
			if step.Refs[name] == "" {
				panic("a step was sent without the values it needs")
			}
		}
		f.effects[key]++
		r = f.result(customer, step, key)
	}
	f.saved[key] = saved{step: string(body), at: f.now(), result: r, err: err}
	return r, err
}

func (f *fake) result(customer string, step billing.Step, key string) billing.Result {
	switch step.Kind {
	case "await", "process":
		life := 24 * time.Hour
		if step.Kind == "process" {
			life = 1000 * time.Hour
		}
		f.pages[key] = &cardPage{until: f.now().Add(life)}
		return f.waiting(step, key)
	case "change":
		if s := f.subs[customer][step.Object]; s != nil {
			var items []billing.ItemChange
			_ = json.Unmarshal(step.Params, &items)
			for _, ch := range items {
				for i := range s.Items {
					if s.Items[i].ID == ch.Item {
						s.Items[i].Price, s.Items[i].Quantity = prices[ch.Price], ch.Quantity
					}
				}
			}
			s.Version += "+"
		}
	}
	return billing.Result{State: billing.Done, Object: step.Object, Invoice: f.invoice}
}

func (f *fake) waiting(step billing.Step, key string) billing.Result {
	if step.Kind == "process" {
		return billing.Result{State: billing.Processing}
	}
	return billing.Result{State: billing.AwaitingCustomer, GoTo: "https://provider.example/card", Until: f.pages[key].until, Reason: "enter_card"}
}

func (*fake) ParseEvent(http.Header, []byte, time.Time) (billing.Event, error) {
	return billing.Event{}, billing.ErrNoWebhook
}

func (f *fake) Outcome(ctx context.Context, customer string, step billing.Step, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outcomes++
	if err := cmpErr(ctx.Err(), f.outcomeErr); err != nil {
		return billing.OutcomeUnsure, billing.Result{}, &billing.Error{Fault: billing.Unavailable, Err: err}
	}
	if f.outcomeSays != "" {
		return f.outcomeSays, billing.Result{}, nil
	}
	page := f.pages[key]
	switch {
	case f.effects[key] == 0:
		return billing.NotApplied, billing.Result{}, nil
	case page == nil:
		return billing.Applied, billing.Result{State: billing.Done, Object: step.Object}, nil
	case page.done:
		return billing.Applied, billing.Result{State: billing.Done, Refs: map[string]string{"payment_method": "pm_new"}}, nil
	case page.dropped, step.Kind == "await" && !f.now().Before(page.until):
		return billing.NotApplied, billing.Result{}, nil
	case last != nil && f.mute:
		return billing.OutcomeUnsure, billing.Result{}, nil
	}
	return billing.Applied, f.waiting(step, key), nil
}

// applied reports whether a step has taken effect in full.
func (f *fake) applied(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.effects[key] > 0 && (f.pages[key] == nil || f.pages[key].done)
}

// finish lets the customers do their part on all pages.
func (f *fake) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pages {
		p.done = p.done || !p.dropped && f.now().Before(p.until)
	}
}

func (f *fake) settleLate() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, fn := range f.pending {
		fn()
		delete(f.pending, k)
	}
}

func (f *fake) asked() (accounts, previews, sent int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.accounts, f.previews, len(f.sent)
}

// world is one tenant with everything around the corridor.
type world struct {
	t     testing.TB
	clock *clock
	base  store.Store // what is durable
	fake  *fake
	rules []policy.Rule
	limit billing.Plan
	// accounts is what all corridors of this world read through; they only
	// read afresh.
	accounts *account.Accounts
}

const tenant = "acme"

func newWorld(t testing.TB) *world {
	w := &world{t: t, clock: &clock{}, base: &memory{data: map[string][]byte{}}}
	w.clock.ns.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	w.fake = newFake(w.clock.Now)
	w.rules = []policy.Rule{{Verdict: policy.Allow, Actions: policy.Actions}}
	w.fake.before = w.mustBeDurable
	return w
}

// mustBeDurable fails the test where a byte would leave before the store holds
// the step as sent.
func (w *world) mustBeDurable(customer string, step billing.Step, key string) {
	id, n := key[:len(key)-2], int(key[len(key)-1]-'0')
	j := &journal.Journal{Store: w.base, Tenant: tenant, Now: w.clock.Now}
	i, err := j.Get(context.Background(), customer, id)
	switch {
	case err != nil:
		w.t.Errorf("sent under %s without an intent: %v", key, err)
	case i.State != journal.Sent || i.Steps[n].SentAt.IsZero():
		w.t.Errorf("sent under %s while the store says %s, sent at %v", key, i.State, i.Steps[n].SentAt)
	case i.Steps[n].Key != key || i.Next() != n || !maps.Equal(i.Steps[n].Refs, step.Refs):
		w.t.Errorf("sent under %s: not the step in hand: %+v", key, i.Steps[n])
	}
}

// corridor is one process's corridor (or one of several in it).
func (w *world) corridor(process string, s store.Store, p billing.Provider) *Corridor {
	if w.accounts == nil {
		var err error
		if w.accounts, err = account.New(w.fake, w.clock.Now, 0); err != nil {
			w.t.Fatal(err)
		}
	}
	plan := w.limit
	plan.Key, plan.Name, plan.Rank, plan.Prices = "team", "Team", 2, []billing.Price{team, euro}
	cat, err := billing.NewCatalogue([]billing.Plan{{Key: "basic", Name: "Basic", Rank: 1, Prices: []billing.Price{basic}}, plan})
	if err != nil {
		w.t.Fatal(err)
	}
	pol, err := policy.New(w.rules, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return &Corridor{
		Store: s, Tenant: tenant, Provider: p, Accounts: w.accounts,
		Journal: &journal.Journal{
			Store: s, Tenant: tenant, Now: w.clock.Now, Process: process, LeaseTime: time.Minute, Changed: session.BumpVersion, Version: session.Version,
		},
		Policy: func(name string) *policy.Policy {
			if name != "" {
				return nil
			}
			return pol
		},
		Catalogue: func() *billing.Catalogue { return &cat },
		Now:       w.clock.Now, Rand: rand.Reader, Log: zap.NewNop(),
		Pause: func(ctx context.Context, d time.Duration) error {
			w.clock.Advance(d)
			return ctx.Err()
		},
	}
}

func (w *world) plain() *Corridor { return w.corridor("one", w.base, w.fake) }

func who(n int) Who {
	return Who{Session: session.Session{Hash: fmt.Sprintf("hash%d", n), Customer: fmt.Sprintf("cus_%d", n), Role: policy.Owner}, RequestID: "req"}
}

func change(n int) billing.Action {
	return billing.Action{
		Kind: billing.ChangePlan, Subscription: fmt.Sprintf("sub_%da", n),
		Items: []billing.ItemChange{{Item: fmt.Sprintf("si_%da", n), Price: team.ID, Quantity: 3}},
	}
}

// settled checks everything that must hold once an intent is settled, by what
// the provider's ledger says.
func (w *world) settled(i journal.Intent) error {
	applied := 0
	for n, s := range i.Steps {
		if s.Key != journal.StepKey(i.ID, n) {
			return fmt.Errorf("step %d has key %s", n, s.Key)
		}
		if w.fake.effects[s.Key] > 1 {
			return fmt.Errorf("step %d took effect %d times", n, w.fake.effects[s.Key])
		}
		if w.fake.applied(s.Key) {
			applied++
		}
		if state := i.StateOf(n); !state.Terminal() || state == journal.Partial || (state == journal.Succeeded) != w.fake.applied(s.Key) {
			return fmt.Errorf("step %d is %s, and took effect: %v", n, state, w.fake.applied(s.Key))
		}
	}
	ok := false
	switch i.State {
	case journal.Succeeded:
		ok = applied == len(i.Steps)
	case journal.Refused, journal.NotApplied, journal.Cancelled:
		ok = applied == 0
	case journal.Partial:
		ok = applied > 0 && applied < len(i.Steps)
	}
	if !ok {
		return fmt.Errorf("state %s (%s, %s) with %d of %d steps applied", i.State, i.Code, i.LastError, applied, len(i.Steps))
	}
	if n := w.count("lock"); n != 0 {
		return fmt.Errorf("%d locks left", n)
	}
	if n := w.count(""); n != 0 {
		return fmt.Errorf("%d work entries left", n)
	}
	if n := w.count("audit"); n != 2 {
		return fmt.Errorf("%d audit records, want confirmed and settled", n)
	}
	return nil
}

// count counts the tenant's entries of a kind; "" counts work.
func (w *world) count(kind string) int {
	prefix := store.Key(tenant, kind)
	if kind == "" {
		prefix = store.Key("work")
	}
	n := 0
	err := w.base.View(context.Background(), func(tx store.Tx) error {
		entries, err := tx.Scan(prefix, nil, 10_000, false)
		n = len(entries)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) intents() []journal.Intent {
	j := &journal.Journal{Store: w.base, Tenant: tenant, Now: w.clock.Now}
	list, err := j.List(context.Background(), "", 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}
