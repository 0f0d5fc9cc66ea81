package act

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func prepare(t *testing.T, c *Corridor, w Who, a billing.Action) Pin {
	t.Helper()
	pin, err := c.Prepare(t.Context(), w, a)
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

func nonce(t *testing.T, c *Corridor) string {
	t.Helper()
	n, err := NewNonce(c.Rand)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestConfirm(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	w.fake.invoice = &billing.Invoice{ID: "in_1", AmountDue: billing.Money{Amount: 1001, Currency: "usd"}}
	pin := prepare(t, c, who(1), change(1))
	if pin.Account.Customer.ID != "cus_1" || !validNonce(pin.Nonce) {
		t.Errorf("got %+v", pin)
	}
	read, err := c.ReadPin(t.Context(), who(1), pin.Nonce)
	if err != nil || read.Preview.DueNow != pin.Preview.DueNow || !read.Expires.Equal(pin.Expires) {
		t.Errorf("read %+v, %v", read, err)
	}
	done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
	if err != nil || done.Fresh != nil {
		t.Fatal(done, err)
	}
	i := done.Intent
	if err := w.settled(i); err != nil {
		t.Error(err)
	}
	if i.State != journal.Succeeded || i.FromPlan != "Basic" || i.ToPlan != "Team" || !i.Differs || i.ID != IntentID(tenant, who(1).Hash, pin.Nonce) {
		t.Errorf("got %+v", i)
	}
	if again, err := c.Check(t.Context(), "cus_1", i.ID); err != nil || again.Rev != i.Rev {
		t.Errorf("checking a settled intent: %+v, %v", again, err)
	}
	if _, err := c.Check(t.Context(), "cus_2", i.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("another customer's intent: %v", err)
	}
}

func TestNoncesThatAreNoPin(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	pin := prepare(t, c, who(1), change(1))
	other := who(1)
	other.Hash = "another session"
	for name, tt := range map[string]struct {
		who   Who
		nonce string
	}{
		"another session's":  {other, pin.Nonce},
		"another customer's": {who(2), pin.Nonce},
		"unknown":            {who(1), strings.Repeat("0", nonceLen)},
		"empty":              {who(1), ""},
		"short":              {who(1), pin.Nonce[1:]},
		"long":               {who(1), pin.Nonce + "0"},
		"upper case":         {who(1), strings.Repeat("A", nonceLen)},
		"path":               {who(1), "../../../../../../../../.."},
		"NUL":                {who(1), pin.Nonce[:25] + "\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.Confirm(t.Context(), tt.who, tt.nonce); !errors.Is(err, ErrNoPin) {
				t.Errorf("Confirm: %v", err)
			}
			if _, err := c.ReadPin(t.Context(), tt.who, tt.nonce); !errors.Is(err, ErrNoPin) {
				t.Errorf("ReadPin: %v", err)
			}
			if validNonce(tt.nonce) {
				return
			}
			if _, err := c.Do(t.Context(), tt.who, tt.nonce, "", addCard); !errors.Is(err, ErrNonce) {
				t.Errorf("Do: %v", err)
			}
		})
	}
	if _, _, sent := w.fake.asked(); sent != 0 || len(w.intents()) != 0 {
		t.Error("something was sent")
	}
}

func TestMovedAndExpired(t *testing.T) {
	for _, tt := range []struct {
		name   string
		move   func(*world)
		moved  bool
		before int64
	}{
		{"sum", func(w *world) { w.fake.due = 1200 }, true, 1000},
		{"object", func(w *world) { w.fake.subs["cus_1"]["sub_1a"].Version = "v2" }, true, 1000},
		{"expired", func(w *world) { w.clock.Advance(PinLife) }, false, 0},
		{"expired and moved", func(w *world) { w.clock.Advance(PinLife); w.fake.due = 1200 }, true, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.plain()
			pin := prepare(t, c, who(1), change(1))
			tt.move(w)
			done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
			if err != nil || done.Fresh == nil {
				t.Fatal(done, err)
			}
			f := done.Fresh
			if f.Moved != tt.moved || f.Before.Amount != tt.before || f.Nonce == pin.Nonce || f.Preview.DueNow.Amount != w.fake.due {
				t.Errorf("got %+v", f)
			}
			if _, _, sent := w.fake.asked(); sent != 0 || len(w.intents()) != 0 {
				t.Error("something was sent")
			}
			done, err = c.Confirm(t.Context(), who(1), f.Nonce)
			if err != nil || done.Intent.State != journal.Succeeded {
				t.Errorf("confirming the fresh one: %+v, %v", done, err)
			}
		})
	}
}

// 64 postings of one form make one intent with one effect, and every one of
// them gets it, whenever it looks: also who comes between the effect and the
// answer and finds the plan changed already.
func TestOneNonceManyPostings(t *testing.T) {
	for round := range 20 {
		w := newWorld(t)
		one, two := w.plain(), w.corridor("two", w.base, w.fake)
		one.Pause, two.Pause = nil, nil
		pin := prepare(t, one, who(1), change(1))
		got := make([]Confirmed, 64)
		var wg sync.WaitGroup
		for n := range got {
			wg.Go(func() {
				c := one
				if n%2 == 1 {
					c = two
				}
				time.Sleep(time.Duration(n*round) * time.Microsecond)
				var err error
				if got[n], err = c.Confirm(context.Background(), who(1), pin.Nonce); err != nil {
					t.Errorf("posting %d: %v", n, err)
				}
			})
		}
		wg.Wait()
		for n, g := range got {
			if g.Fresh != nil || g.Intent.ID != IntentID(tenant, who(1).Hash, pin.Nonce) || g.Intent.State != journal.Succeeded {
				t.Fatalf("posting %d: fresh %v, intent %s %s", n, g.Fresh != nil, g.Intent.ID, g.Intent.State)
			}
		}
		if _, _, sent := w.fake.asked(); sent != 1 {
			t.Fatalf("sent %d times", sent)
		}
		if err := w.settled(got[0].Intent); err != nil {
			t.Fatal(err)
		}
	}
}

// The second posting comes exactly between the effect and its record.
func TestSecondPostingAfterTheEffect(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	pin := prepare(t, c, who(1), change(1))
	var second Confirmed
	var err error
	w.fake.script = func(int, billing.Step) fault { return foreignError } // effect, no definite answer
	c.Pause = func(context.Context, time.Duration) error {
		if second.Intent.ID == "" {
			second, err = w.corridor("two", w.base, w.fake).Confirm(context.Background(), who(1), pin.Nonce)
		}
		w.fake.mu.Lock()
		w.fake.script = nil
		w.fake.mu.Unlock()
		return nil
	}
	first, firstErr := c.Confirm(t.Context(), who(1), pin.Nonce)
	if err != nil || firstErr != nil || second.Intent.ID != first.Intent.ID || first.Intent.State != journal.Succeeded {
		t.Errorf("first %s %v, second %s %v", first.Intent.State, firstErr, second.Intent.State, err)
	}
	if err := w.settled(first.Intent); err != nil {
		t.Error(err)
	}
}

// One posting found no intent and reads the account; meanwhile the other one
// does everything. What the first one then sees (nothing would change, or the
// version moved) is the other's work: it shows that, and no error.
func TestPostingOvertaken(t *testing.T) {
	t.Run("Confirm", func(t *testing.T) {
		w := newWorld(t)
		c := w.plain()
		pin := prepare(t, c, who(1), change(1))
		w.fake.whenRead = func() {
			if done, err := c.Confirm(context.Background(), who(1), pin.Nonce); err != nil || done.Intent.State != journal.Succeeded {
				t.Errorf("overtaking: %s, %v", done.Intent.State, err)
			}
		}
		done, err := c.Confirm(t.Context(), who(1), pin.Nonce)
		if err != nil || done.Fresh != nil || done.Intent.State != journal.Succeeded || len(w.fake.sent) != 1 {
			t.Errorf("overtaken: %+v, %v", done, err)
		}
	})
	t.Run("Do", func(t *testing.T) {
		w := newWorld(t)
		c := w.plain()
		n := nonce(t, c)
		cancel := billing.Action{Kind: billing.Cancel, Subscription: "sub_1a"}
		w.fake.whenRead = func() {
			if i, err := c.Do(context.Background(), who(1), n, "v1", cancel); err != nil || i.State != journal.Succeeded {
				t.Errorf("overtaking: %s, %v", i.State, err)
			}
		}
		i, err := c.Do(t.Context(), who(1), n, "v1", cancel)
		if err != nil || i.State != journal.Succeeded || len(w.fake.sent) != 1 {
			t.Errorf("overtaken: %s, %v", i.State, err)
		}
	})
}

func TestTwoSessionsOneSubscription(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	other := who(1)
	other.Hash = "another session"
	mine, theirs := prepare(t, c, who(1), change(1)), prepare(t, c, other, change(1))
	var busy error
	w.fake.before = func(customer string, step billing.Step, key string) {
		w.mustBeDurable(customer, step, key)
		_, busy = c.Confirm(context.Background(), other, theirs.Nonce)
	}
	done, err := c.Confirm(t.Context(), who(1), mine.Nonce)
	if err != nil || done.Intent.State != journal.Succeeded {
		t.Fatal(done.Intent.State, err)
	}
	var be *journal.BusyError
	if !errors.As(busy, &be) || be.Intent != done.Intent.ID {
		t.Errorf("the other session got %v", busy)
	}
	after, err := c.Confirm(t.Context(), other, theirs.Nonce)
	var invalid *InvalidError
	if !errors.As(err, &invalid) || invalid.Code != "nothing_changes" {
		t.Errorf("afterwards: %+v, %v", after, err)
	}
	if err := w.settled(done.Intent); err != nil {
		t.Error(err)
	}
}

// overtaken is a provider whose previews come late: after something else
// happened.
type overtaken struct {
	billing.Provider
	meanwhile func()
}

func (o *overtaken) Preview(ctx context.Context, customer string, a billing.Action, at time.Time) (billing.Preview, error) {
	p, err := o.Provider.Preview(ctx, customer, a, at)
	if f := o.meanwhile; f != nil {
		o.meanwhile = nil
		f()
	}
	return p, err
}

// TestDecisionsHoldWhenTheLockIsTaken lets another session's change of the same
// subscription begin and end between a confirmation's last look and its lock.
// What was allowed and agreed to then may not be any more, so it is looked at
// again: nothing is sent.
func TestDecisionsHoldWhenTheLockIsTaken(t *testing.T) {
	w := newWorld(t)
	plain := w.plain()
	late := &overtaken{Provider: w.fake}
	c := w.corridor("one", w.base, late)
	other := who(1)
	other.Hash = "another session"
	more := change(1)
	more.Items[0].Quantity = 8
	mine, theirs := prepare(t, c, who(1), change(1)), prepare(t, plain, other, more)
	var first Confirmed
	late.meanwhile = func() {
		var err error
		if first, err = plain.Confirm(context.Background(), other, theirs.Nonce); err != nil || first.Intent.State != journal.Succeeded {
			t.Errorf("the change in between: %+v, %v", first, err)
		}
	}
	got, err := c.Confirm(t.Context(), who(1), mine.Nonce)
	if err != nil || got.Fresh == nil || got.Intent.ID != "" {
		t.Errorf("got %+v, %v; want a fresh preview", got, err)
	}
	if _, _, sent := w.fake.asked(); sent != 1 {
		t.Errorf("%d steps were sent, want one", sent)
	}
	if list := w.intents(); len(list) != 1 || list[0].ID != first.Intent.ID {
		t.Errorf("intents %+v", list)
	}

	// The same where the action moves no money: it is looked at again, and done.
	late.meanwhile = func() {
		pin := prepare(t, plain, other, change(1))
		if _, err := plain.Confirm(context.Background(), other, pin.Nonce); err != nil {
			t.Error(err)
		}
	}
	i, err := c.Do(t.Context(), who(1), nonce(t, c), "", billing.Action{Kind: billing.Cancel, Subscription: "sub_1a"})
	if err != nil || i.State != journal.Succeeded {
		t.Errorf("cancelling: %+v, %v", i, err)
	}
}

// TestOneCardPage asks for a card page many times: one session has one open.
func TestOneCardPage(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	w.fake.steps = func(customer string, a billing.Action) []billing.Step {
		return []billing.Step{{Kind: "await", Object: customer}, {Kind: "change", Object: customer, Needs: []string{"payment_method"}}}
	}
	add := func(who Who) journal.Intent {
		t.Helper()
		i, err := c.Do(t.Context(), who, nonce(t, c), "", billing.Action{Kind: billing.AddPaymentMethod})
		if err != nil || i.State != journal.AwaitingCustomer {
			t.Fatalf("%+v, %v", i, err)
		}
		return i
	}
	mine := who(1)
	mine.Expires = w.clock.Now().Add(8 * time.Hour)
	first := add(mine)
	for range 20 {
		if again := add(mine); again.ID != first.ID {
			t.Fatal("a second card page was opened")
		}
	}
	other := mine
	other.Hash = "another session"
	if add(other).ID == first.ID {
		t.Error("another session was sent to this one's card page")
	}
	w.clock.Advance(cardPageLife)
	if add(mine).ID == first.ID {
		t.Error("a card page of an hour ago was used again")
	}
	viewer := mine
	viewer.Role = policy.Viewer
	if _, err := c.Do(t.Context(), viewer, nonce(t, c), "", billing.Action{Kind: billing.AddPaymentMethod}); !errors.Is(err, policy.ErrDenied) {
		t.Errorf("a viewer: %v", err)
	}
}

func TestDenied(t *testing.T) {
	for name, tt := range map[string]struct {
		who    func(*Who)
		action billing.Action
	}{
		"default deny":   {func(*Who) {}, billing.Action{Kind: billing.Cancel, Subscription: "sub_1a"}},
		"unknown kind":   {func(*Who) {}, billing.Action{Kind: "refund"}},
		"viewer":         {func(w *Who) { w.Role = policy.Viewer }, change(1)},
		"narrowed":       {func(w *Who) { w.Permissions = []string{} }, change(1)},
		"no such policy": {func(w *Who) { w.Configuration = "gone" }, change(1)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.rules = []policy.Rule{{Verdict: policy.Allow, Actions: []string{policy.ChangePlan}}}
			c := w.plain()
			pin := prepare(t, c, who(1), change(1))
			_, previews, _ := w.fake.asked()
			me := who(1)
			tt.who(&me)
			calls := map[string]func() error{
				"Prepare": func() error { _, err := c.Prepare(t.Context(), me, tt.action); return err },
				"Do":      func() error { _, err := c.Do(t.Context(), me, nonce(t, c), "", tt.action); return err },
			}
			if tt.action.Kind == billing.ChangePlan {
				calls["Confirm"] = func() error { _, err := c.Confirm(t.Context(), me, pin.Nonce); return err }
			}
			for call, do := range calls {
				before := w.base.(*memory).snapshot()
				err := do()
				var denied *DeniedError
				if !errors.As(err, &denied) || !errors.Is(err, policy.ErrDenied) {
					t.Fatalf("%s: %v", call, err)
				}
				after := w.base.(*memory).snapshot()
				maps.DeleteFunc(after, func(k string, _ []byte) bool { _, old := before[k]; return old })
				if len(after) != 1 {
					t.Errorf("%s: %d records written, want one", call, len(after))
				}
				for k := range after {
					if !strings.HasPrefix(k, string(store.Key(tenant, "audit", "cus_1"))) {
						t.Errorf("%s wrote %q", call, k)
					}
				}
			}
			var records []audit.Record
			err := w.base.View(t.Context(), func(tx store.Tx) (err error) {
				records, err = audit.Latest(tx, tenant, "cus_1", 10)
				return err
			})
			if err != nil || len(records) != len(calls) || records[0].Event != "denied" || records[0].Action != string(tt.action.Kind) || records[0].Role != me.Role {
				t.Errorf("audit: %+v, %v", records, err)
			}
			if _, p, sent := w.fake.asked(); p != previews || sent != 0 {
				t.Errorf("asked the provider: %d previews, %d sent", p-previews, sent)
			}
		})
	}
}

func TestInputThatIsRefused(t *testing.T) {
	item := func(i, price string, q int64) billing.Action {
		a := change(1)
		a.Items = []billing.ItemChange{{Item: i, Price: price, Quantity: q}}
		return a
	}
	twice := change(1)
	twice.Items = append(twice.Items, twice.Items[0])
	empty := change(1)
	empty.Items = nil
	foreign := change(2)
	for name, tt := range map[string]struct {
		action billing.Action
		code   string // "": ErrNotFound
	}{
		"another customer's subscription":   {foreign, ""},
		"unknown subscription":              {billing.Action{Kind: billing.Cancel, Subscription: "sub_x"}, ""},
		"cancel another customer's":         {billing.Action{Kind: billing.Cancel, Subscription: "sub_2a"}, ""},
		"resume another customer's":         {billing.Action{Kind: billing.Resume, Subscription: "sub_2a"}, ""},
		"drop another customer's":           {billing.Action{Kind: billing.DropPending, Subscription: "sub_2a"}, ""},
		"no subscription":                   {billing.Action{Kind: billing.Cancel}, ""},
		"another customer's payment method": {billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_2"}, ""},
		"no payment method":                 {billing.Action{Kind: billing.SetDefaultPaymentMethod}, ""},
		"another customer's item":           {item("si_2a", team.ID, 3), ""},
		"another subscription's item":       {item("si_1b", team.ID, 3), ""},
		"one item twice":                    {twice, ""},
		"no item":                           {empty, ""},
		"price outside the catalogue":       {item("si_1a", "p_secret", 3), "price_unknown"},
		"no price":                          {item("si_1a", "", 3), "price_unknown"},
		"other currency":                    {item("si_1a", euro.ID, 3), "price_unknown"},
		"quantity 0":                        {item("si_1a", team.ID, 0), "quantity_min"},
		"quantity -1":                       {item("si_1a", team.ID, -1), "quantity_min"},
		"smallest integer":                  {item("si_1a", team.ID, math.MinInt64), "quantity_min"},
		"below the plan's":                  {item("si_1a", team.ID, 1), "quantity_min"},
		"above the plan's":                  {item("si_1a", team.ID, 51), "quantity_max"},
		"largest integer":                   {item("si_1a", basic.ID, math.MaxInt64), "quantity_max"},
		"1e6 + 1":                           {item("si_1a", basic.ID, billing.MaxQuantity+1), "quantity_max"},
		"nothing changes":                   {item("si_1a", basic.ID, 3), "nothing_changes"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.limit = billing.Plan{MinQuantity: 2, MaxQuantity: 50}
			c := w.plain()
			_, prepared := c.Prepare(t.Context(), who(1), tt.action)
			_, done := c.Do(t.Context(), who(1), nonce(t, c), "", tt.action)
			for _, err := range []error{prepared, done} {
				var invalid *InvalidError
				if tt.code == "" && !errors.Is(err, ErrNotFound) || tt.code != "" && (!errors.As(err, &invalid) || invalid.Code != tt.code) {
					t.Errorf("got %v", err)
				}
			}
			if _, p, sent := w.fake.asked(); p != 0 || sent != 0 || len(w.base.(*memory).snapshot()) != 0 {
				t.Errorf("%d previews, %d sent, store %d", p, sent, len(w.base.(*memory).snapshot()))
			}
		})
	}
}

func TestDo(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	cancel := billing.Action{Kind: billing.Cancel, Subscription: "sub_1a"}
	if _, err := c.Do(t.Context(), who(1), nonce(t, c), "v0", cancel); !errors.Is(err, ErrChanged) {
		t.Errorf("drawn from another version: %v", err)
	}
	// Nobody pays what they were not shown.
	if _, err := c.Do(t.Context(), who(1), nonce(t, c), "", change(1)); !errors.Is(err, ErrNoPin) {
		t.Errorf("a change of plan without a preview: %v", err)
	}
	n := nonce(t, c)
	i, err := c.Do(t.Context(), who(1), n, "v1", cancel)
	if err != nil || i.State != journal.Succeeded {
		t.Fatal(i.State, err)
	}
	if err := w.settled(i); err != nil {
		t.Error(err)
	}
	again, err := c.Do(t.Context(), who(1), n, "v1", cancel) // the version moved, the form is the same
	if err != nil || again.ID != i.ID {
		t.Errorf("posting again: %+v, %v", again, err)
	}
	// Things are as wanted already: no step, and settled at once.
	w.fake.steps = func(string, billing.Action) []billing.Step { return nil }
	i, err = c.Do(t.Context(), who(1), nonce(t, c), "", billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1"})
	if err != nil || i.State != journal.Succeeded || w.count("lock") != 0 {
		t.Errorf("without steps: %s, %v", i.State, err)
	}
}

func TestProviderDownBeforehand(t *testing.T) {
	for name, tt := range map[string]struct {
		account, preview, want error
	}{
		"account":          {account: &billing.Error{Fault: billing.Unavailable}, want: ErrNothingSent},
		"preview":          {preview: &billing.Error{Fault: billing.Unavailable}, want: ErrNothingSent},
		"foreign error":    {preview: errors.New("EOF"), want: ErrNothingSent},
		"preview NotFound": {preview: &billing.Error{Fault: billing.NotFound}, want: ErrNotFound},
		"preview refused":  {preview: &billing.Error{Fault: billing.Refused, Code: "not_changeable"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.plain()
			pin := prepare(t, c, who(1), change(1))
			w.fake.accountErr, w.fake.previewErr = tt.account, tt.preview
			_, confirmed := c.Confirm(t.Context(), who(1), pin.Nonce)
			_, done := c.Do(t.Context(), who(1), nonce(t, c), "", addCard)
			for _, err := range []error{confirmed, done} {
				var refused *RefusedError
				if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && (!errors.As(err, &refused) || refused.Code != "not_changeable") {
					t.Errorf("got %v", err)
				}
			}
			if _, _, sent := w.fake.asked(); sent != 0 || len(w.intents()) != 0 {
				t.Error("something was sent")
			}
		})
	}
}

// What each fault of the first sendings makes of an intent, at once and after
// recovery.
func TestFaults(t *testing.T) {
	always := func(f fault) func(int, billing.Step) fault { return func(int, billing.Step) fault { return f } }
	for _, tt := range []struct {
		name   string
		script func(int, billing.Step) fault
		now    journal.State
		code   string
		sent   int
		then   journal.State
	}{
		{"refused", always(refuse), journal.Refused, "card_declined", 1, journal.Refused},
		{"not found", always(refuseNotFound), journal.Refused, "", 1, journal.Refused},
		{"retryable once", only(0, retry), journal.Succeeded, "", 2, journal.Succeeded},
		{"retryable, then refused", func(n int, _ billing.Step) fault {
			if n == 0 {
				return retry
			}
			return refuse
		}, journal.Refused, "card_declined", 2, journal.Refused},
		{"retryable for ever", always(retry), journal.Unknown, "", attempts, journal.NotApplied},
		{"lost once", only(0, unknownBefore), journal.Succeeded, "", 2, journal.Succeeded},
		{"answer lost once", only(0, unknownAfter), journal.Succeeded, "", 2, journal.Succeeded},
		{"answer lost for ever", always(unknownAfter), journal.Unknown, "", attempts, journal.Succeeded},
		{"lost for ever", always(unknownBefore), journal.Unknown, "", attempts, journal.NotApplied},
		{"an error of another make", always(foreignError), journal.Unknown, "", attempts, journal.Succeeded},
		{"applied, then the key is revoked", func(n int, _ billing.Step) fault {
			if n == 0 {
				return unknownAfter
			}
			return refuseEarly
		}, journal.Succeeded, "", 2, journal.Succeeded},
		{"lost, then the key is revoked", func(n int, _ billing.Step) fault {
			if n == 0 {
				return unknownBefore
			}
			return refuseEarly
		}, journal.Reconciling, "authentication", 2, journal.NotApplied},
		{"parameters mismatch", always(keyMismatch), journal.Manual, "idempotency_error", 1, journal.Manual},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.fake.script = tt.script
			c := w.plain()
			done, err := c.Confirm(t.Context(), who(1), prepare(t, c, who(1), change(1)).Nonce)
			i := done.Intent
			if err != nil || i.State != tt.now || i.Code != tt.code || len(w.fake.sent) != tt.sent {
				t.Fatalf("got %s (%s), %d sent, %v; want %s (%s), %d", i.State, i.Code, len(w.fake.sent), err, tt.now, tt.code, tt.sent)
			}
			if !i.State.Terminal() {
				if busy, err := c.Journal.Busy(t.Context(), "cus_1", "sub_1a"); err != nil || busy["sub_1a"] != i.ID {
					t.Errorf("the object is not locked: %v, %v", busy, err)
				}
			}
			for n := 0; w.count("") > 0; n++ {
				if n > 200 {
					t.Fatalf("not settled: %+v", i)
				}
				if _, err := c.Recover(t.Context(), false); err != nil {
					t.Fatal(err)
				}
				w.clock.Advance(time.Minute)
			}
			if i, err = c.Check(t.Context(), "cus_1", i.ID); err != nil || i.State != tt.then {
				t.Errorf("in the end %s, %v; want %s", i.State, err, tt.then)
			}
			if i.State != journal.Manual {
				if err := w.settled(i); err != nil {
					t.Error(err)
				}
			}
			for _, key := range w.fake.sent {
				if key != journal.StepKey(i.ID, 0) {
					t.Errorf("sent under %s", key)
				}
			}
		})
	}
}

// The browser goes away in the middle: the change is carried through. A
// shutdown of the portal in the middle: nothing more is sent, and what was is
// written down.
func TestContextEnds(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	pin := prepare(t, c, who(1), change(1))
	ctx, cancel := context.WithCancel(t.Context())
	w.fake.before = func(string, billing.Step, string) { cancel() }
	done, err := c.Confirm(ctx, who(1), pin.Nonce)
	if err != nil || done.Intent.State != journal.Succeeded {
		t.Errorf("browser gone: %s, %v", done.Intent.State, err)
	}
	if _, err := c.Confirm(ctx, who(1), pin.Nonce); !errors.Is(err, ErrNothingSent) {
		t.Errorf("a request that is over: %v", err)
	}

	w = newWorld(t)
	w.fake.script = func(n int, _ billing.Step) fault {
		if n < attempts {
			return unknownBefore
		}
		return hangAfter
	}
	c = w.plain()
	done, err = c.Confirm(t.Context(), who(1), prepare(t, c, who(1), change(1)).Nonce)
	if err != nil || done.Intent.State != journal.Unknown {
		t.Fatal(done.Intent.State, err)
	}
	w.clock.Advance(time.Minute)
	ctx, cancel = context.WithCancel(t.Context())
	w.fake.before = func(string, billing.Step, string) { cancel() }
	if _, err := c.Recover(ctx, false); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	i, err := c.Journal.Get(t.Context(), "cus_1", done.Intent.ID)
	if err != nil || i.State != journal.Unknown || i.Owner != "" || len(w.fake.sent) != attempts+1 {
		t.Errorf("after a shutdown: %s, owner %q, %d sent, %v", i.State, i.Owner, len(w.fake.sent), err)
	}
}

// A clock that goes backwards: nothing is sent again by an age that is not
// known, and the intent is settled all the same.
func TestClockGoesBackwards(t *testing.T) {
	w := newWorld(t)
	w.fake.script = func(int, billing.Step) fault { return unknownBefore }
	c := w.plain()
	done, err := c.Confirm(t.Context(), who(1), prepare(t, c, who(1), change(1)).Nonce)
	if err != nil || done.Intent.State != journal.Unknown {
		t.Fatal(done.Intent.State, err)
	}
	w.clock.Advance(-365 * 24 * time.Hour)
	for range 30 {
		if _, err := c.Recover(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(20 * time.Second)
	}
	i, err := c.Check(t.Context(), "cus_1", done.Intent.ID)
	if err != nil || i.State != journal.NotApplied || len(w.fake.sent) != attempts {
		t.Errorf("got %s after %d sendings, %v", i.State, len(w.fake.sent), err)
	}
}

// Nobody can say what became of it: read for three days, less and less often,
// then a person must look. Never sent again after the first ten minutes.
func TestUnresolved(t *testing.T) {
	w := newWorld(t)
	w.fake.script = func(int, billing.Step) fault { return unknownBefore }
	w.fake.outcomeSays = billing.OutcomeUnsure
	c := w.plain()
	core, logged := observer.New(zap.ErrorLevel)
	c.Log = zap.New(core)
	done, err := c.Confirm(t.Context(), who(1), prepare(t, c, who(1), change(1)).Nonce)
	if err != nil {
		t.Fatal(err)
	}
	start := w.clock.Now()
	var i journal.Intent
	for w.clock.Now().Sub(start) < 73*time.Hour {
		if i, err = c.Journal.Get(t.Context(), "cus_1", done.Intent.ID); err != nil || i.State.Terminal() {
			break
		}
		if age := w.clock.Now().Sub(start); age > 11*time.Minute && i.State != journal.Reconciling {
			t.Fatalf("%s after %s", i.State, age)
		}
		w.clock.Advance(max(i.Due.Sub(w.clock.Now()), 0))
		if _, err := c.Recover(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil || i.State != journal.Manual || i.Code != "unresolved" || w.count("lock") != 0 {
		t.Errorf("got %s, %v", i.State, err)
	}
	if i.Steps[0].LastSent.Sub(i.Steps[0].SentAt) > resend {
		t.Errorf("last sent after %s", i.Steps[0].LastSent.Sub(i.Steps[0].SentAt))
	}
	if n := logged.FilterMessageSnippet("needs an operator").Len(); n != 1 {
		t.Errorf("an operator was told %d times, want once: %v", n, logged.All())
	}
	if w.fake.outcomes > 500 {
		t.Errorf("asked %d times", w.fake.outcomes)
	}
}

// A request that the provider still works on: "not applied" is not believed
// until a while after the last sending, not the first.
func TestNotAppliedIsBelievedLate(t *testing.T) {
	w := newWorld(t)
	w.fake.script = func(n int, _ billing.Step) fault { return late }
	c := w.plain()
	done, err := c.Confirm(t.Context(), who(1), prepare(t, c, who(1), change(1)).Nonce)
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(resend - 10*time.Second)
	if i, err := c.Check(t.Context(), "cus_1", done.Intent.ID); err != nil || i.State.Terminal() || i.Steps[0].Attempts != 2*attempts {
		t.Fatal(i.State, i.Steps[0].Attempts, err)
	}
	w.clock.Advance(15 * time.Second) // too old to send, the last sending still on its way
	if i, err := c.Check(t.Context(), "cus_1", done.Intent.ID); err != nil || i.State != journal.Reconciling {
		t.Fatal(i.State, err)
	}
	w.fake.settleLate()
	i, err := c.Check(t.Context(), "cus_1", done.Intent.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.settled(i); err != nil {
		t.Error(err)
	}
}

// The customer drops a change that waits for its payment: the waiting intent
// ends as not applied. Meanwhile the waiting one locks nothing.
func TestDropPendingEndsTheWaitingChange(t *testing.T) {
	w := newWorld(t)
	w.fake.steps = func(string, billing.Action) []billing.Step { return []billing.Step{{Kind: "await", Object: "sub_1a"}} }
	c := w.plain()
	done, err := c.Confirm(t.Context(), who(1), prepare(t, c, who(1), change(1)).Nonce)
	waiting := done.Intent
	if err != nil || waiting.State != journal.AwaitingCustomer || waiting.Code != "enter_card" || waiting.Until.IsZero() || w.count("lock") != 0 {
		t.Fatal(waiting.State, waiting.Code, err)
	}
	w.fake.steps = nil
	drop, err := c.Do(t.Context(), who(1), nonce(t, c), "", billing.Action{Kind: billing.DropPending, Subscription: "sub_1a"})
	if err != nil || drop.State != journal.Succeeded {
		t.Fatal(drop.State, err)
	}
	w.fake.pages[waiting.Steps[0].Key].dropped = true
	w.clock.Advance(time.Minute)
	if n, err := c.Recover(t.Context(), false); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	i, err := c.Check(t.Context(), "cus_1", waiting.ID)
	if err != nil || i.State != journal.NotApplied || w.count("") != 0 {
		t.Errorf("got %s, %v", i.State, err)
	}
}

// The customer did their part while another change holds the object: the rest
// of the steps waits for it, and no error is shown.
func TestRestWaitsForTheLock(t *testing.T) {
	s := scenario{steps: []string{"await", "change"}, needs: 1}
	w := s.world(t)
	c := w.plain()
	adding, err := c.Do(t.Context(), who(1), nonce(t, c), "", addCard)
	if err != nil || adding.State != journal.AwaitingCustomer {
		t.Fatal(adding.State, err)
	}
	w.fake.steps = nil
	w.fake.script = func(int, billing.Step) fault { return unknownBefore }
	holder, err := c.Do(t.Context(), who(1), nonce(t, c), "", billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Phone: new("+1 555 0100")}})
	if err != nil || holder.State != journal.Unknown {
		t.Fatal(holder.State, err)
	}
	w.fake.finish()
	i, err := c.Check(t.Context(), "cus_1", adding.ID)
	if err != nil || i.State != journal.AwaitingCustomer || i.Owner != "" || i.Due.Sub(w.clock.Now()) != time.Minute {
		t.Fatalf("%s, owner %q, due %s, %v", i.State, i.Owner, i.Due, err)
	}
	w.fake.script = nil
	for range 3 {
		w.clock.Advance(2 * time.Minute)
		if _, err := c.Recover(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{adding.ID, holder.ID} {
		if i, err := c.Check(t.Context(), "cus_1", id); err != nil || i.State != journal.Succeeded {
			t.Errorf("got %s, %v", i.State, err)
		}
	}
}

// One due intent among very many of other tenants is found, in order of its
// time.
func TestDueAmongManyTenants(t *testing.T) {
	w := newWorld(t)
	c := w.plain()
	now := w.clock.Now()
	put := func(due time.Time, tenant, id string) {
		err := w.base.Update(t.Context(), func(tx store.Tx) error {
			return tx.Put(store.Key("work", store.TimePart(due.UnixNano()), tenant, "cus", id), nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	data := w.base.(*memory).data
	for n := range 3000 {
		data[string(store.Key("work", store.TimePart(now.Add(-time.Hour).UnixNano()), fmt.Sprintf("tenant%d", n), "cus", "x"))] = nil
	}
	put(now, tenant, "second")
	put(now.Add(-time.Minute), tenant, "first")
	put(now.Add(1), tenant, "not due")
	put(now.Add(100*24*time.Hour), tenant, "by another clock")
	refs, err := c.Journal.Due(t.Context(), 10, false)
	var got []string
	for _, r := range refs {
		got = append(got, r.ID)
	}
	if s := strings.Join(got, ", "); err != nil || s != "first, second, by another clock" {
		t.Errorf("got %s, %v", s, err)
	}
	if refs, err = c.Journal.Due(t.Context(), 1, false); err != nil || len(refs) != 1 || refs[0].ID != "first" {
		t.Errorf("limited: %v, %v", refs, err)
	}
}
