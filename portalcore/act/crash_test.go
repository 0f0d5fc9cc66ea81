package act

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

var (
	errDead = errors.New("the process is dead")
	errOnce = errors.New("the disk is full, for a moment")
)

// mode is what happens at the chosen point.
type mode string

const (
	kill mode = "kill" // the process is gone from then on
	fail mode = "fail" // one error; after a commit: its reply is lost
	lost mode = "lost" // the commit's reply is lost, applied or not
)

// process stands between a corridor and its store and provider. Every store
// operation and both ends of every Execute are points, and at one of them
// something happens.
type process struct {
	t    *testing.T
	mode mode
	at   int // the point, from 1; 0: none
	n    int
	dead bool
	base store.Store
	*fake
}

func (p *process) hit() bool {
	p.n++
	if p.n != p.at {
		return false
	}
	p.dead = p.mode == kill
	return true
}

func (p *process) error(committed bool) error {
	switch {
	case p.mode == kill:
		return errDead
	case p.mode == lost || committed:
		return store.ErrUnknown
	}
	return errOnce
}

func (p *process) View(ctx context.Context, fn func(store.Tx) error) error {
	if p.dead {
		return errDead
	}
	if p.hit() && p.mode != lost {
		return p.error(false)
	}
	return p.base.View(ctx, fn)
}

func (p *process) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	if p.dead {
		return nil, errDead
	}
	if p.hit() && p.mode != lost {
		return nil, p.error(false)
	}
	return p.base.GetAll(ctx, keys...)
}

func (p *process) Update(ctx context.Context, fn func(store.Tx) error) error {
	if p.dead {
		return errDead
	}
	if p.hit() {
		return p.error(false)
	}
	if err := p.base.Update(ctx, fn); err != nil {
		return err
	}
	if p.hit() {
		return p.error(true)
	}
	return nil
}

func (p *process) Execute(ctx context.Context, customer string, step billing.Step, key string) (billing.Result, error) {
	if p.dead {
		p.t.Errorf("%s was sent after the store had failed", key)
	}
	if p.hit() {
		return billing.Result{}, answerLost(ctx)
	}
	r, err := p.fake.Execute(ctx, customer, step, key)
	if p.hit() {
		return billing.Result{}, answerLost(ctx)
	}
	return r, err
}

// scenario is an action to carry out under all crashes.
type scenario struct {
	name    string
	action  billing.Action
	steps   []string // kinds; nil: the fake's own
	needs   int      // steps from here on need what the first one brings
	alone   int      // that many of the last steps are independent
	script  func(n int, step billing.Step) fault
	finish  bool // the customer does their part, after the first crash
	nothing bool // a state of nothing applied is the only right one

	// One cache for thousands of worlds: making one is slow.
	current  struct{ billing.Provider }
	accounts *account.Accounts
}

var addCard = billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example/back"}

var scenarios = []scenario{
	{name: "ChangePlan", action: change(1)},
	{name: "ChangePlanAnswerLost", action: change(1), script: only(0, unknownAfter)},
	{name: "ChangePlanLate", action: change(1), script: only(0, late)},
	{name: "ChangePlanAllLost", action: change(1), script: func(n int, _ billing.Step) fault {
		if n < attempts {
			return unknownBefore
		}
		return none
	}},
	{name: "ChangePlanKeyRevoked", action: change(1), script: func(n int, _ billing.Step) fault {
		if n == 0 {
			return unknownAfter
		}
		return refuseEarly
	}},
	{name: "ChangePlanDeclined", action: change(1), script: func(int, billing.Step) fault { return refuse }, nothing: true},
	{name: "AddCard", action: addCard, steps: []string{"await", "change", "change", "change"}, needs: 1, finish: true},
	{name: "AddCardNever", action: addCard, steps: []string{"await", "change", "change", "change"}, needs: 1},
	{name: "AddCardLost", action: addCard, steps: []string{"await", "change", "change", "change"}, needs: 1, finish: true, script: only(0, unknownAfter)},
	{name: "RefusedInTheMiddle", action: addCard, steps: []string{"change", "decline", "change"}},
	{name: "RefusedAfterTheCard", action: addCard, steps: []string{"await", "change", "decline"}, needs: 1, finish: true},
	{name: "CardInTheMiddle", action: addCard, steps: []string{"change", "await", "change"}},
	{name: "BankDebit", action: addCard, steps: []string{"process", "change"}, finish: true},
	{name: "PayThree", action: payThree, steps: []string{"change", "change", "change"}, alone: 3},
	{name: "PaySecondLost", action: payThree, steps: []string{"change", "change", "change"}, alone: 3, script: only(1, unknownAfter)},
	{name: "PayFirstDeclined", action: payThree, steps: []string{"decline", "change", "change"}, alone: 3},
	{name: "PayAllDeclined", action: payThree, steps: []string{"decline", "decline", "decline"}, alone: 3, nothing: true},
	{name: "PayByDebit", action: payThree, steps: []string{"process", "process", "change"}, alone: 3, finish: true},
	{name: "PayWith3DS", action: payThree, steps: []string{"await", "change", "decline"}, alone: 3, finish: true},
	{name: "PayWith3DSNever", action: payThree, steps: []string{"await", "change"}, alone: 2},
	{name: "PayByDebitThen3DS", action: payThree, steps: []string{"process", "await", "change"}, alone: 3, finish: true},
	{name: "AddCardAndPay", action: addCardAndPay, steps: []string{"await", "change", "decline", "change"}, needs: 1, alone: 2, finish: true},
	{name: "AddCardAndPayNever", action: addCardAndPay, steps: []string{"await", "change", "change"}, needs: 1, alone: 1, nothing: true},
}

var (
	payThree      = billing.Action{Kind: billing.PayInvoices, Invoices: []string{"in_1a", "in_1b", "in_1c"}}
	addCardAndPay = billing.Action{Kind: billing.AddPaymentMethod, Invoices: []string{"in_1a", "in_1b"}, ReturnURL: "https://billing.example/back"}
)

// pinned reports whether an action is confirmed on its preview.
func pinned(a billing.Action) bool {
	return a.Kind == billing.ChangePlan || a.Kind == billing.PayInvoices
}

func only(at int, f fault) func(int, billing.Step) fault {
	return func(n int, _ billing.Step) fault {
		if n == at {
			return f
		}
		return none
	}
}

func (s *scenario) world(t *testing.T) *world {
	w := newWorld(t)
	w.fake.script = s.script
	s.current.Provider = w.fake
	if s.accounts == nil {
		var err error
		if s.accounts, err = account.New(&s.current, w.clock.Now, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.accounts = s.accounts
	if s.steps != nil {
		w.fake.steps = func(customer string, _ billing.Action) []billing.Step {
			var steps []billing.Step
			for n, kind := range s.steps {
				step := billing.Step{Kind: kind, Object: customer, Independent: n >= len(s.steps)-s.alone}
				if s.needs > 0 && n >= s.needs {
					step.Needs = []string{"payment_method"}
				}
				steps = append(steps, step)
			}
			return steps
		}
	}
	return w
}

// post posts the form.
func (s *scenario) post(c *Corridor, nonce string) (journal.Intent, error) {
	if len(s.action.Invoices) > 0 && s.action.Kind == billing.AddPaymentMethod {
		return c.Agree(context.Background(), who(1), nonce, billing.Money{Amount: 1400, Currency: "usd"}, s.action)
	}
	if !pinned(s.action) {
		return c.Do(context.Background(), who(1), nonce, "", s.action)
	}
	done, err := c.Confirm(context.Background(), who(1), nonce)
	return done.Intent, err
}

// crash posts the form with something going wrong at point first, lets some
// time pass, lets a second process recover with something going wrong at point
// second, and a third one recover until nothing is left to do. It reports
// whether both points were reached.
func (s *scenario) crash(t *testing.T, m mode, first, second int, away time.Duration) (reached bool) {
	t.Helper()
	w := s.world(t)
	where := fmt.Sprintf("%s at %d, %s later, %s at %d", m, first, away, m, second)
	nonce, err := NewNonce(bytesOf(7))
	if err != nil {
		t.Fatal(err)
	}
	if pinned(s.action) {
		pin, err := w.plain().Prepare(context.Background(), who(1), s.action)
		if err != nil {
			t.Fatal(err)
		}
		nonce = pin.Nonce
	}
	one := &process{t: t, mode: m, at: first, base: w.base, fake: w.fake}
	shown, err := s.post(w.corridor("one", one, one), nonce)
	said := errors.Is(err, ErrNothingSent)
	if m == kill { // the customer saw no answer at all
		shown, said = journal.Intent{}, false
	}
	if one.n < first {
		return false
	}
	w.clock.Advance(min(away, time.Minute)) // no request is worked on for longer
	w.fake.settleLate()
	if s.finish {
		w.fake.finish()
	}
	w.clock.Advance(away - min(away, time.Minute))
	two := &process{t: t, mode: m, at: second, base: w.base, fake: w.fake}
	_, _ = w.corridor("two", two, two).Recover(context.Background(), true)
	reached = two.n >= second

	three := w.corridor("three", w.base, w.fake)
	start := w.clock.Now()
	for at := true; w.count("") > 0; at = false {
		if w.clock.Now().Sub(start) > 73*time.Hour {
			t.Fatalf("%s: not settled: %+v", where, w.intents())
		}
		if s.finish {
			w.fake.finish()
		}
		if _, err := three.Recover(context.Background(), at); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		// On to when somebody wants to look.
		i := w.intents()[0]
		if i.Due.After(w.clock.Now()) {
			w.clock.Advance(i.Due.Sub(w.clock.Now()))
		}
		if i.State == journal.AwaitingCustomer {
			w.clock.Advance(6 * time.Hour) // many looks that find nothing new
		}
	}
	list := w.intents()
	if len(list) == 0 {
		if len(w.fake.sent) > 0 {
			t.Fatalf("%s: sent without an intent", where)
		}
		return reached
	}
	i := list[0]
	if len(list) > 1 {
		t.Fatalf("%s: %d intents of one nonce", where, len(list))
	}
	if err := w.settled(i); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	if said && len(w.fake.sent) > 0 {
		t.Fatalf("%s: the customer read that nothing was sent", where)
	}
	if shown.State.Terminal() && shown.State != i.State {
		t.Fatalf("%s: the customer saw %s, and it became %s", where, shown.State, i.State)
	}
	if s.nothing && i.State != journal.Refused && i.State != journal.Cancelled && i.State != journal.NotApplied {
		t.Fatalf("%s: %s", where, i.State)
	}
	// Posting the form again finds the same intent and does nothing.
	sent := len(w.fake.sent)
	again, err := s.post(three, nonce)
	if err != nil || again.ID != i.ID || again.State != i.State || len(w.fake.sent) != sent {
		t.Fatalf("%s: posting again: %v, %s %s, %d sent", where, err, again.ID, again.State, len(w.fake.sent)-sent)
	}
	return reached
}

type bytesOf byte

func (b bytesOf) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

// Whatever operation a process dies at, or the store fails at, at most one
// effect per step comes of it, the journal ends where the provider's ledger
// is, and no lock is left.
func TestCrashes(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			points, runs := 0, 0
			for _, m := range []mode{kill, fail, lost} {
				for _, away := range []time.Duration{0, 5 * time.Second, 70 * time.Second, 11 * time.Minute, 24*time.Hour + time.Minute, 73 * time.Hour} {
					first := 1
					for s.crash(t, m, first, 0, away) {
						// Two crashes: where the key is sent again, and where it is read.
						twice := m != lost && (away == 70*time.Second || away == 11*time.Minute)
						for second := 1; twice && s.crash(t, m, first, second, away); second++ {
							runs++
						}
						runs++
						first++
					}
					points = max(points, first-1)
				}
			}
			if points < 9 {
				t.Errorf("only %d points", points)
			}
			t.Logf("%d points, %d crashes", points, runs)
		})
	}
}

// A reload makes a second corridor in the same process while the first one is
// sending. It must not touch the intent before the lease ran out; nor must
// another node.
func TestLiveIntentIsLeftAlone(t *testing.T) {
	for _, tt := range []struct {
		process   string
		exclusive bool
		away      time.Duration
		takes     bool
	}{
		{"one", false, 0, false},
		{"one", true, 59 * time.Second, false},
		{"two", false, 59 * time.Second, false},
		{"two", true, 0, true}, // nobody else can have the store open: "one" is gone
		{"one", false, time.Minute, true},
		{"two", false, time.Minute, true},
		{"two", false, -time.Hour, true}, // the clock went back: no lease is that long
	} {
		t.Run(fmt.Sprintf("%s/%v/%s", tt.process, tt.exclusive, tt.away), func(t *testing.T) {
			w := newWorld(t)
			c := w.plain()
			pin, err := c.Prepare(t.Context(), who(1), change(1))
			if err != nil {
				t.Fatal(err)
			}
			other := w.corridor(tt.process, w.base, w.fake)
			other.Journal.Exclusive = tt.exclusive
			calls := 0
			w.fake.before = func(customer string, step billing.Step, key string) {
				w.mustBeDurable(customer, step, key)
				if calls++; calls > 1 {
					return
				}
				w.clock.Advance(tt.away)
				if _, err := other.Recover(context.Background(), true); err != nil {
					t.Error(err)
				}
				if _, err := other.Check(context.Background(), customer, key[:len(key)-2]); err != nil {
					t.Error(err)
				}
			}
			done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
			if err != nil {
				t.Fatal(err)
			}
			if took := calls > 1 || w.fake.outcomes > 0; took != tt.takes {
				t.Errorf("taken: %v, want %v", took, tt.takes)
			}
			for range 10 {
				if w.count("") == 0 {
					break
				}
				w.clock.Advance(3 * time.Minute)
				if _, err := c.Recover(t.Context(), false); err != nil {
					t.Fatal(err)
				}
			}
			i, err := c.Check(t.Context(), "cus_1", done.Intent.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.settled(i); err != nil {
				t.Error(err)
			}
			if i.State != journal.Succeeded {
				t.Errorf("got %s", i.State)
			}
		})
	}
}

// A store that was put back to an earlier state says that nothing was sent,
// while it was: nothing is sent again and nothing counts as unsent; reading
// settles it. A preview from before is no longer good for a confirmation.
func TestRestoredStoreSendsNothing(t *testing.T) {
	for name, sent := range map[string]bool{"sent in the lost time": true, "never sent": false} {
		for steps := 1; steps <= 2; steps++ {
			for back := range 3 { // how many of the journal's commits the backup has
				t.Run(fmt.Sprintf("%s/%d steps/%d", name, steps, back), func(t *testing.T) {
					w := newWorld(t)
					w.fake.steps = func(_ string, a billing.Action) []billing.Step {
						list := make([]billing.Step, steps)
						for n := range list {
							list[n] = billing.Step{Kind: fmt.Sprint("s", n), Object: a.Subscription}
						}
						return list
					}
					c := w.plain()
					pin, err := c.Prepare(t.Context(), who(1), change(1))
					if err != nil {
						t.Fatal(err)
					}
					s := &backedUp{memory: w.base.(*memory), at: back}
					c = w.corridor("one", s, w.fake)
					if !sent {
						w.fake.script = func(int, billing.Step) fault { return unknownBefore }
					}
					if _, err := c.Confirm(t.Context(), who(1), pin.Nonce); err != nil {
						t.Fatal(err)
					}
					if s.copy == nil {
						t.Fatal("not that many commits")
					}
					w.clock.Advance(time.Second)
					w.base = &memory{data: s.copy}
					if _, err := store.MarkRestored(t.Context(), w.base, rand.Reader, w.clock.Now(), "test"); err != nil {
						t.Fatal(err)
					}
					c = w.corridor("two", w.base, w.fake)
					c.Journal.Exclusive = true
					_, _, before := w.fake.asked()
					if _, err := c.Confirm(t.Context(), who(1), pin.Nonce); back == 0 && !errors.Is(err, ErrNoPin) {
						t.Errorf("a preview from before: %v", err)
					}
					if _, err := c.Recover(t.Context(), true); err != nil {
						t.Fatal(err)
					}
					for range 10 {
						w.clock.Advance(3 * time.Minute)
						if _, err := c.Recover(t.Context(), false); err != nil {
							t.Fatal(err)
						}
					}
					if _, _, after := w.fake.asked(); after != before {
						t.Errorf("%d steps were sent after the store was put back", after-before)
					}
					for _, i := range w.intents() {
						if err := w.settled(i); err != nil {
							t.Error(err)
						}
						if i.State == journal.Cancelled || sent != (i.State == journal.Succeeded) {
							t.Errorf("settled as %s", i.State)
						}
					}
				})
			}
		}
	}
}

// A database was put back by three days and nobody has said so yet, or the
// portal was down for that long: what had been sent is settled by reading, and
// nothing follows so long after the click.
func TestNothingFollowsLongAfterTheClick(t *testing.T) {
	for _, at := range []int{2, 3, 4} { // sent, between the steps, the second one sent
		for script, want := range map[fault]journal.State{none: journal.Succeeded, unknownBefore: journal.Partial} {
			t.Run(fmt.Sprintf("%d commits, then %s", at, want), func(t *testing.T) {
				w := newWorld(t)
				w.fake.steps = func(_ string, a billing.Action) []billing.Step {
					list := make([]billing.Step, 2)
					for n := range list {
						list[n] = billing.Step{Kind: fmt.Sprint("s", n), Object: a.Subscription}
					}
					return list
				}
				w.fake.script = func(_ int, s billing.Step) fault {
					if s.Kind == "s1" {
						return script
					}
					return none
				}
				pin, err := w.plain().Prepare(t.Context(), who(1), change(1))
				if err != nil {
					t.Fatal(err)
				}
				s := &backedUp{memory: w.base.(*memory), at: at}
				if _, err := w.corridor("one", s, w.fake).Confirm(t.Context(), who(1), pin.Nonce); err != nil {
					t.Fatal(err)
				}
				if s.copy == nil {
					t.Fatal("not that many commits")
				}
				w.clock.Advance(72 * time.Hour)
				w.base = &memory{data: s.copy}
				_, _, before := w.fake.asked()
				c := w.corridor("two", w.base, w.fake)
				for n := range 10 {
					if _, err := c.Recover(t.Context(), n == 0); err != nil {
						t.Fatal(err)
					}
					w.clock.Advance(3 * time.Minute)
				}
				if _, _, after := w.fake.asked(); after != before {
					t.Errorf("%d steps were sent three days after the click", after-before)
				}
				for _, i := range w.intents() {
					if i.State != want {
						t.Errorf("settled as %s, want %s", i.State, want)
					}
					if err := w.settled(i); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// backedUp keeps a copy of what was there before its n-th Update.
type backedUp struct {
	*memory
	at   int
	copy map[string][]byte
}

func (b *backedUp) Update(ctx context.Context, fn func(store.Tx) error) error {
	if b.at == 0 {
		b.copy = b.snapshot()
	}
	b.at--
	return b.memory.Update(ctx, fn)
}

// A node whose clock is ahead takes every lease for run out and every sending
// for long ago. It must not believe that a request which is still on its way
// did nothing.
func TestNotAppliedIsNotBelievedByAnotherClock(t *testing.T) {
	w := newWorld(t)
	w.fake.script = func(int, billing.Step) fault { return late }
	c := w.plain()
	pin, err := c.Prepare(t.Context(), who(1), change(1))
	if err != nil {
		t.Fatal(err)
	}
	ahead := w.corridor("two", w.base, w.fake)
	ahead.Now = func() time.Time { return w.clock.Now().Add(45 * time.Minute) }
	ahead.Journal.Now = ahead.Now
	w.fake.before = func(customer string, step billing.Step, key string) {
		w.mustBeDurable(customer, step, key)
		if _, err := ahead.Recover(context.Background(), true); err != nil {
			t.Error(err)
		}
		w.clock.Advance(time.Minute)
		if _, err := ahead.Recover(context.Background(), true); err != nil {
			t.Error(err)
		}
		for _, i := range w.intents() {
			if i.State.Terminal() {
				t.Errorf("settled as %s while the request was on its way", i.State)
			}
		}
	}
	done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
	if err != nil {
		t.Fatal(err)
	}
	w.fake.settleLate()
	for range 5 {
		w.clock.Advance(3 * time.Minute)
		if _, err := ahead.Recover(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	i, err := c.Check(t.Context(), "cus_1", done.Intent.ID)
	if err != nil || i.State != journal.Succeeded {
		t.Fatalf("%s, %v", i.State, err)
	}
	if err := w.settled(i); err != nil {
		t.Error(err)
	}
}

// What took long to write down is not sent: others count from when it was
// written, and may have settled it.
func TestSlowStoreSendsNothing(t *testing.T) {
	w := newWorld(t)
	pin, err := w.plain().Prepare(t.Context(), who(1), change(1))
	if err != nil {
		t.Fatal(err)
	}
	s := &slow{memory: w.base.(*memory), clock: w.clock}
	s.took = 15 * time.Minute
	c := w.corridor("one", s, w.fake)
	done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, sent := w.fake.asked(); sent != 0 {
		t.Errorf("%d steps were sent", sent)
	}
	if s := done.Intent.State; s != journal.Reconciling && s != journal.Unknown {
		t.Errorf("got %s", s)
	}
	s.took = 0
	for range 3 {
		w.clock.Advance(3 * time.Minute)
		if _, err := c.Recover(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	i, err := c.Check(t.Context(), "cus_1", done.Intent.ID)
	if err != nil || i.State != journal.NotApplied {
		t.Fatalf("%s, %v", i.State, err)
	}
	if err := w.settled(i); err != nil {
		t.Error(err)
	}
}

// slow is a store whose commits take long.
type slow struct {
	*memory
	clock *clock
	took  time.Duration
}

func (s *slow) Update(ctx context.Context, fn func(store.Tx) error) error {
	err := s.memory.Update(ctx, fn)
	s.clock.Advance(s.took)
	return err
}
