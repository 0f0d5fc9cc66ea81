package journal_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

const tenant = "acme"

// unsure loses the reply of the next commit, applied or not.
type unsure struct {
	store.Store
	applied, lost atomic.Bool
}

func (u *unsure) Update(ctx context.Context, fn func(store.Tx) error) error {
	if u.lost.Swap(false) {
		return store.ErrUnknown
	}
	err := u.Store.Update(ctx, fn)
	if err == nil && u.applied.Swap(false) {
		return store.ErrUnknown
	}
	return err
}

func setUp(t *testing.T) (*journal.Journal, *unsure) {
	t.Helper()
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	u := &unsure{Store: s}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &journal.Journal{
		Store: u, Tenant: tenant, Now: func() time.Time { return now }, Process: "one", LeaseTime: time.Minute, Changed: session.BumpVersion, Version: session.Version,
	}, u
}

func intent(id, object string) journal.Intent {
	return journal.Intent{
		ID: id, Customer: "cus", Object: object, Role: "owner", Action: billing.Action{Kind: billing.Cancel},
		Steps: []journal.Step{{Step: billing.Step{Kind: "x"}, Key: journal.StepKey(id, 0)}, {Step: billing.Step{Kind: "y"}, Key: journal.StepKey(id, 1)}},
	}
}

func version(t *testing.T, j *journal.Journal) (v uint64) {
	t.Helper()
	err := j.Store.View(t.Context(), func(tx store.Tx) error {
		rec, err := session.ReadCustomer(tx, tenant, "cus")
		v = rec.Version
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPlanIsOnce(t *testing.T) {
	j, _ := setUp(t)
	var created, busy atomic.Int64
	var wg sync.WaitGroup
	for n := range 64 {
		wg.Go(func() {
			_, made, err := j.Plan(context.Background(), intent(fmt.Sprint("i", n%2), "sub"), 0)
			switch {
			case errors.Is(err, journal.ErrBusy):
				busy.Add(1)
			case err != nil:
				t.Error(err)
			case made:
				created.Add(1)
			}
		})
	}
	wg.Wait()
	if created.Load() != 1 || busy.Load() != 32 {
		t.Errorf("%d created, %d busy; want 1 and 32", created.Load(), busy.Load())
	}
	if _, made, err := j.Plan(t.Context(), intent("other", "another sub"), seen(t, j)); err != nil || !made {
		t.Errorf("another object: %v, %v", made, err)
	}
}

// Of many who read the same intent one writes; nobody settles it twice.
func TestOneWriterPerRevision(t *testing.T) {
	j, _ := setUp(t)
	planned, _, err := j.Plan(t.Context(), intent("i", "sub"), seen(t, j))
	if err != nil {
		t.Fatal(err)
	}
	var won atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			i := planned
			switch err := j.Settle(context.Background(), &i, journal.Cancelled, "", nil); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, journal.ErrMoved):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("settled %d times", won.Load())
	}
	if err := j.Settle(t.Context(), &planned, journal.Sent, "", nil); err == nil {
		t.Error("settled as sent")
	}
	var records []audit.Record
	err = j.Store.View(t.Context(), func(tx store.Tx) (err error) {
		records, err = audit.Latest(tx, tenant, "cus", 10)
		return err
	})
	if err != nil || len(records) != 2 {
		t.Errorf("audit: %+v, %v", records, err)
	}
}

// The lock, the account's version and the lease follow the state.
func TestStates(t *testing.T) {
	j, _ := setUp(t)
	i, _, err := j.Plan(t.Context(), intent("i", "sub"), seen(t, j))
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, err error, state journal.State, locked bool, v uint64, owner string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		held, err := j.Busy(t.Context(), "cus", "none", "sub")
		busy := held["sub"]
		if err != nil || (busy == "i") != locked || (len(held) == 1) != locked || i.State != state || version(t, j) != v || i.Owner != owner {
			t.Errorf("%s: state %s, lock %q, version %d, owner %q, %v", what, i.State, busy, version(t, j), i.Owner, err)
		}
	}
	done := billing.Result{State: billing.Done}
	later := j.Now().Add(5 * time.Minute)
	check("plan", nil, journal.Planned, true, 0, "one")
	check("send", j.Send(t.Context(), &i, 0, nil), journal.Sent, true, 0, "one")
	if i.Steps[0].Attempts != 1 || i.Steps[0].SentAt.IsZero() || !i.Due.Equal(i.Lease) {
		t.Errorf("after send: %+v", i)
	}
	check("unsure", j.Unsure(t.Context(), &i, false, errors.New("timeout"), later), journal.Unknown, true, 1, "")
	if _, err = j.Take(t.Context(), "cus", "i"); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Take(t.Context(), "cus", "i"); !errors.Is(err, journal.ErrLeased) {
		t.Errorf("taken twice: %v", err)
	}
	i, err = j.Get(t.Context(), "cus", "i")
	check("take", err, journal.Unknown, true, 1, "one")
	check("leave", j.Leave(t.Context(), &i, later), journal.Unknown, true, 1, "")
	check("await", j.Await(t.Context(), &i, 0, billing.Result{State: billing.AwaitingCustomer}, later), journal.AwaitingCustomer, false, 2, "")
	check("done", j.Done(t.Context(), &i, 0, done, false), journal.Sent, true, 3, "one")
	check("send", j.Send(t.Context(), &i, 1, map[string]string{"a": "b"}), journal.Sent, true, 3, "one")
	check("done", j.Done(t.Context(), &i, 1, done, true), journal.Succeeded, false, 4, "")
	refs, err := j.Due(t.Context(), 10, true)
	if err != nil || len(refs) != 0 || !i.Due.IsZero() || !i.Differs {
		t.Errorf("settled, and still due: %v, %v", refs, err)
	}
}

// A reply that was lost: what was written counts as written, what was not as
// unknown.
func TestReplyLost(t *testing.T) {
	j, u := setUp(t)
	u.applied.Store(true)
	i, created, err := j.Plan(t.Context(), intent("i", "sub"), seen(t, j))
	if err != nil || !created {
		t.Fatal(created, err)
	}
	u.applied.Store(true)
	if err := j.Send(t.Context(), &i, 0, nil); err != nil || i.State != journal.Sent {
		t.Errorf("applied: %s, %v", i.State, err)
	}
	u.lost.Store(true)
	if err := j.Done(t.Context(), &i, 0, billing.Result{}, false); !errors.Is(err, store.ErrUnknown) || i.Steps[0].Done {
		t.Errorf("not applied: %v, %v", i.Steps[0].Done, err)
	}
	u.lost.Store(true)
	if _, created, err := j.Plan(t.Context(), intent("other", "another"), seen(t, j)); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("plan not applied: %v, %v", created, err)
	}
}

// seen is the account version of the customer of all intents here.
func seen(t *testing.T, j *journal.Journal) uint64 {
	t.Helper()
	v, err := j.Seen(t.Context(), "cus")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// entries counts what stands under a kind of key of the tenant.
func entries(t *testing.T, j *journal.Journal, kind string) int {
	t.Helper()
	var list []store.Entry
	err := j.Store.View(t.Context(), func(tx store.Tx) (err error) {
		list, err = tx.Scan(store.Key(tenant, kind), nil, 1000, false)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func ids(list []journal.Intent) (out []string) {
	for _, i := range list {
		out = append(out, i.ID)
	}
	slices.Sort(out)
	return out
}

// plan begins an intent on an object of its own.
func plan(t *testing.T, j *journal.Journal, id string) journal.Intent {
	t.Helper()
	i, _, err := j.Plan(t.Context(), intent(id, "sub-"+id), seen(t, j))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// manual begins an intent that ends with a person.
func manual(t *testing.T, j *journal.Journal, id string) journal.Intent {
	t.Helper()
	i := plan(t, j, id)
	if err := j.Send(t.Context(), &i, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.Settle(t.Context(), &i, journal.Manual, "unresolved", errors.New("no answer")); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestOpenAndManualAreListed(t *testing.T) {
	j, _ := setUp(t)
	a, b := plan(t, j, "a"), plan(t, j, "b")
	manual(t, j, "m")
	other := intent("x", "sub")
	other.Customer = "cus2"
	if _, _, err := j.Plan(t.Context(), other, 0); err != nil {
		t.Fatal(err)
	}
	check := func(wantOpen, wantManual string) {
		t.Helper()
		open, err := j.Open(t.Context(), "cus", 10)
		if err != nil {
			t.Fatal(err)
		}
		man, err := j.Manual(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		if o, m := fmt.Sprint(ids(open)), fmt.Sprint(ids(man)); o != wantOpen || m != wantManual {
			t.Errorf("open %s, manual %s; want %s and %s", o, m, wantOpen, wantManual)
		}
	}
	check("[a b]", "[m]")
	if err := j.Send(t.Context(), &a, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.Await(t.Context(), &a, 0, billing.Result{State: billing.AwaitingCustomer}, j.Now()); err != nil {
		t.Fatal(err)
	}
	check("[a b]", "[m]")
	if err := j.Settle(t.Context(), &b, journal.Cancelled, "", nil); err != nil {
		t.Fatal(err)
	}
	check("[a]", "[m]")
	if err := j.Settle(t.Context(), &a, journal.Refused, "", nil); err != nil {
		t.Fatal(err)
	}
	check("[]", "[m]")
	if _, err := j.SettleManual(t.Context(), "cus", "m", journal.Succeeded, "ann", ""); err != nil {
		t.Fatal(err)
	}
	check("[]", "[]")
	if n := entries(t, j, "open"); n != 1 { // the other customer's
		t.Errorf("%d entries of open intents are left", n)
	}
}

// Intents of a build without the indexes are found once Index went over them,
// and an open one's entry is there from its next write on.
func TestIndexOfAnEarlierBuild(t *testing.T) {
	j, _ := setUp(t)
	a, _ := plan(t, j, "a"), plan(t, j, "b")
	manual(t, j, "m")
	forget := func(id string) {
		err := j.Store.Update(t.Context(), func(tx store.Tx) error {
			return errors.Join(tx.Delete(store.Key(tenant, "open", "cus", id)), tx.Delete(store.Key(tenant, "manual", "cus", id)))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"a", "b", "m"} {
		forget(id)
	}
	if err := j.Send(t.Context(), &a, 0, nil); err != nil {
		t.Fatal(err)
	}
	if open, err := j.Open(t.Context(), "cus", 10); err != nil || fmt.Sprint(ids(open)) != "[a]" {
		t.Errorf("after the next write: %v, %v", ids(open), err)
	}
	refs, err := j.Due(t.Context(), 10, true)
	if err != nil || len(refs) != 2 {
		t.Errorf("recovery goes by what is due: %v, %v", refs, err)
	}
	for range 2 {
		if err := j.Index(t.Context()); err != nil {
			t.Fatal(err)
		}
		open, err := j.Open(t.Context(), "cus", 10)
		man, err2 := j.Manual(t.Context(), 10)
		if err != nil || err2 != nil || fmt.Sprint(ids(open), ids(man)) != "[a b] [m]" {
			t.Errorf("after Index: %v, %v, %v, %v", ids(open), ids(man), err, err2)
		}
	}
	forget("m")
	if err := j.Index(t.Context()); err != nil || entries(t, j, "manual") != 0 {
		t.Errorf("Index goes over the store a second time: %v", err)
	}
}

// Wake makes waiting intents due, and disturbs nobody who works on one or read
// one.
func TestWake(t *testing.T) {
	j, _ := setUp(t)
	now := j.Now()
	clock := &now
	j.Now = func() time.Time { return *clock }
	waits, leased := plan(t, j, "waits"), plan(t, j, "leased")
	if err := j.Unsure(t.Context(), &waits, false, errors.New("timeout"), now.Add(10*time.Minute)); err != nil {
		t.Fatal(err)
	}
	other := intent("x", "sub")
	other.Customer = "cus2"
	x, _, err := j.Plan(t.Context(), other, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Unsure(t.Context(), &x, false, errors.New("timeout"), now.Add(10*time.Minute)); err != nil {
		t.Fatal(err)
	}
	wake := func() {
		t.Helper()
		if err := j.Store.Update(t.Context(), func(tx store.Tx) error { return j.Wake(tx, "cus", *clock) }); err != nil {
			t.Fatal(err)
		}
	}
	due := func() string {
		t.Helper()
		refs, err := j.Due(t.Context(), 10, false)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(refs)
	}
	if got := due(); got != "[]" {
		t.Fatal("due too early:", got)
	}
	wake()
	wake() // again: a webhook that comes twice
	if got := due(); got != "[{cus waits}]" {
		t.Errorf("due: %s", got)
	}
	if got, err := j.Get(t.Context(), "cus", "leased"); err != nil || got.Rev != leased.Rev || !got.Due.Equal(leased.Due) {
		t.Errorf("a leased intent was disturbed: %+v, %v", got, err)
	}
	// Who read it before still may write.
	if err := j.Send(t.Context(), &waits, 0, nil); err != nil {
		t.Errorf("after Wake: %v", err)
	}
	if err := j.Settle(t.Context(), &waits, journal.Succeeded, "", nil); err != nil {
		t.Fatal(err)
	}
	wake()
	*clock = now.Add(2 * time.Minute) // nobody holds the lease any more, and it is due
	wake()
	if got := due(); got != "[{cus leased}]" {
		t.Errorf("later: %s", got)
	}
	if refs, err := j.Due(t.Context(), 10, true); err != nil || len(refs) != 2 {
		t.Errorf("work entries: %v, %v", refs, err)
	}
}

func TestSettleManual(t *testing.T) {
	j, u := setUp(t)
	var told []string
	j.Settled = func(tx store.Tx, i *journal.Intent) error {
		told = append(told, i.ID+" "+string(i.State)+" "+i.SettledBy)
		return tx.Put(store.Key(tenant, "told", i.ID), []byte(i.State))
	}
	for _, tt := range []struct {
		state journal.State
		by    string
		ok    bool
	}{
		{journal.Succeeded, "ann", true},
		{journal.Partial, "ann", true},
		{journal.NotApplied, "ann", true},
		{journal.Succeeded, "", false},
		{journal.Refused, "ann", false},
		{journal.Manual, "ann", false},
		{journal.Sent, "ann", false},
		{"", "ann", false},
	} {
		id := fmt.Sprintf("%s-%s", tt.state, tt.by)
		m := manual(t, j, id)
		before := version(t, j)
		got, err := j.SettleManual(t.Context(), "cus", id, tt.state, tt.by, "seen in the dashboard")
		if (err == nil) != tt.ok {
			t.Errorf("%s by %q: %v", tt.state, tt.by, err)
			continue
		}
		if !tt.ok {
			if again, err := j.Get(t.Context(), "cus", id); err != nil || again.Rev != m.Rev {
				t.Errorf("%s by %q: refused, and written: %+v, %v", tt.state, tt.by, again, err)
			}
			continue
		}
		if got.State != tt.state || got.SettledBy != "ann" || got.Note != "seen in the dashboard" || got.LastError == "" || version(t, j) != before+1 {
			t.Errorf("settled: %+v", got)
		}
		if _, err := j.SettleManual(t.Context(), "cus", id, journal.NotApplied, "bob", ""); !errors.Is(err, journal.ErrNotManual) {
			t.Errorf("settled twice: %v", err)
		}
	}
	if fmt.Sprint(told[:2]) != "[succeeded-ann manual  succeeded-ann succeeded ann]" {
		t.Errorf("told: %q", told)
	}
	plan(t, j, "open")
	if _, err := j.SettleManual(t.Context(), "cus", "open", journal.Succeeded, "ann", ""); !errors.Is(err, journal.ErrNotManual) {
		t.Errorf("an open one: %v", err)
	}
	if _, err := j.SettleManual(t.Context(), "cus", "nothing", journal.Succeeded, "ann", ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no such intent: %v", err)
	}
	manual(t, j, "lost")
	u.applied.Store(true)
	if got, err := j.SettleManual(t.Context(), "cus", "lost", journal.Partial, "ann", strings.Repeat("n", 5000)); err != nil || got.State != journal.Partial || len(got.Note) != 1000 {
		t.Errorf("reply lost: %v, %d", err, len(got.Note))
	}
	var records []audit.Record
	err := j.Store.View(t.Context(), func(tx store.Tx) (err error) {
		records, err = audit.Latest(tx, tenant, "cus", 100)
		return err
	})
	n := 0
	for _, r := range records {
		if r.Event == "settled_by_operator" {
			n++
			if r.By != "ann" || r.Note == "" || r.State == "manual" {
				t.Errorf("audit: %+v", r)
			}
		} else if r.By != "" {
			t.Errorf("audit: %+v", r)
		}
	}
	if err != nil || n != 4 {
		t.Errorf("%d audit records of operators, %v", n, err)
	}
}

// Of many operators one settles an intent.
func TestSettleManualIsOnce(t *testing.T) {
	j, _ := setUp(t)
	manual(t, j, "m")
	var won atomic.Int64
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			switch _, err := j.SettleManual(context.Background(), "cus", "m", journal.Succeeded, fmt.Sprint("op", n), ""); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, journal.ErrNotManual):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d operators settled it", won.Load())
	}
}

// What Settled writes stands or falls with the state.
func TestSettledIsOneTransaction(t *testing.T) {
	j, _ := setUp(t)
	calls := 0
	var fail error
	j.Settled = func(tx store.Tx, i *journal.Intent) error {
		calls++
		if !i.Due.IsZero() || i.Owner != "" || !i.State.Terminal() {
			t.Errorf("told of an intent that is not as it is stored: %+v", i)
		}
		return errors.Join(tx.Put(store.Key(tenant, "told", i.ID), []byte(i.State)), fail)
	}
	i := plan(t, j, "i")
	if err := j.Send(t.Context(), &i, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.Done(t.Context(), &i, 0, billing.Result{State: billing.Done}, false); err != nil || calls != 0 {
		t.Fatalf("%d calls before the end, %v", calls, err)
	}
	fail = errors.New("the outbox is full")
	if err := j.Done(t.Context(), &i, 1, billing.Result{State: billing.Done}, false); !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
	if got, err := j.Get(t.Context(), "cus", "i"); err != nil || got.State != journal.Sent || entries(t, j, "told") != 0 {
		t.Errorf("half a settlement: %s, %d told, %v", got.State, entries(t, j, "told"), err)
	}
	fail, calls = nil, 0
	if err := j.Done(t.Context(), &i, 1, billing.Result{State: billing.Done}, false); err != nil || calls == 0 || entries(t, j, "told") != 1 {
		t.Errorf("settled: %d calls, %d told, %v", calls, entries(t, j, "told"), err)
	}
	if err := j.Settle(t.Context(), &i, journal.NotApplied, "", nil); !errors.Is(err, journal.ErrMoved) {
		t.Errorf("a settled intent was settled again: %v", err)
	}
}

// An open intent from before the store was put back is only read any more,
// whatever the clock says.
func TestRestoredStore(t *testing.T) {
	j, _ := setUp(t)
	for _, state := range []journal.State{journal.Planned, journal.Sent, journal.Unknown, journal.AwaitingCustomer} {
		i := plan(t, j, string(state))
		var err error
		if state != journal.Planned {
			err = j.Send(t.Context(), &i, 0, nil)
		}
		switch state {
		case journal.Unknown:
			err = errors.Join(err, j.Unsure(t.Context(), &i, false, nil, j.Now()))
		case journal.AwaitingCustomer:
			err = errors.Join(err, j.Await(t.Context(), &i, 0, billing.Result{State: billing.AwaitingCustomer}, j.Now()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Put back by a clock that is behind.
	if _, err := store.MarkRestored(t.Context(), j.Store, rand.Reader, j.Now().Add(-time.Hour), "test"); err != nil {
		t.Fatal(err)
	}
	after := plan(t, j, "after")
	j.Process, j.Exclusive = "two", true
	list, err := j.Open(t.Context(), "cus", 10)
	if err != nil || len(list) != 5 {
		t.Fatal(len(list), err)
	}
	for _, was := range list {
		i, err := j.Take(t.Context(), "cus", was.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := journal.Reconciling
		switch was.State {
		case journal.AwaitingCustomer:
			want = was.State
		case journal.Planned:
			if was.ID == after.ID {
				want = was.State
			}
		}
		if i.State != want || i.ReadOnly != (was.ID != after.ID) {
			t.Errorf("%s became %s, read only: %v", was.ID, i.State, i.ReadOnly)
		}
		if i.ReadOnly && (i.Steps[0].SentAt.IsZero() || i.Steps[1].SentAt.IsZero()) {
			t.Errorf("%s: a step that may have been sent counts as never sent: %+v", was.ID, i.Steps)
		}
		if i.State != journal.Reconciling {
			continue
		}
		// The next step is not begun either.
		if err := j.Done(t.Context(), &i, 0, billing.Result{State: billing.Done}, false); err != nil || i.State != journal.Reconciling {
			t.Errorf("%s after its first step: %s, %v", was.ID, i.State, err)
		}
	}
}

// An intent of several objects takes all of their locks or none, and gives all
// of them back.
func TestObjectsAreLockedTogether(t *testing.T) {
	j, _ := setUp(t)
	held := func() map[string]string {
		t.Helper()
		m, err := j.Busy(t.Context(), "cus", "a", "b", "c")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	one, _, err := j.Plan(t.Context(), intent("one", "b"), 0) // as an earlier build wrote it: Object alone
	if err != nil || len(held()) != 1 {
		t.Fatal(held(), err)
	}
	two := intent("two", "a")
	two.Objects = []string{"a", "b", "c"}
	var busy *journal.BusyError
	if _, _, err := j.Plan(t.Context(), two, seen(t, j)); !errors.As(err, &busy) || busy.Intent != "one" || len(held()) != 1 {
		t.Fatal(held(), err)
	}
	if err := j.Settle(t.Context(), &one, journal.Cancelled, "", nil); err != nil {
		t.Fatal(err)
	}
	got, _, err := j.Plan(t.Context(), two, seen(t, j))
	if h := held(); err != nil || h["a"] != "two" || h["b"] != "two" || h["c"] != "two" {
		t.Fatal(h, err)
	}
	if err := j.Await(t.Context(), &got, 0, billing.Result{State: billing.AwaitingCustomer}, j.Now()); err != nil || len(held()) != 0 {
		t.Error(held(), err)
	}
	if err := j.Done(t.Context(), &got, 0, billing.Result{State: billing.Done}, false); err != nil || len(held()) != 3 {
		t.Error(held(), err)
	}
	if err := j.Done(t.Context(), &got, 1, billing.Result{State: billing.Done}, false); err != nil || len(held()) != 0 {
		t.Error(held(), err)
	}
}

// Where each step stands can be told of intents that an earlier build wrote,
// which say it of the whole.
func TestStatesOfStepsOfAnEarlierBuild(t *testing.T) {
	sent := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		state journal.State
		by    string
		steps []journal.Step
		want  []journal.State
	}{
		{journal.Refused, "", []journal.Step{{SentAt: sent}, {}}, []journal.State{journal.Refused, journal.Cancelled}},
		{journal.Partial, "", []journal.Step{{SentAt: sent, Done: true}, {SentAt: sent}, {}}, []journal.State{journal.Succeeded, journal.Refused, journal.Cancelled}},
		{journal.NotApplied, "", []journal.Step{{SentAt: sent}}, []journal.State{journal.NotApplied}},
		{journal.Manual, "", []journal.Step{{SentAt: sent, Done: true}, {SentAt: sent}, {}}, []journal.State{journal.Succeeded, journal.Manual, journal.Cancelled}},
		{journal.Succeeded, "ann", []journal.Step{{SentAt: sent}, {}}, []journal.State{journal.Succeeded, journal.Succeeded}},
		{journal.Partial, "ann", []journal.Step{{SentAt: sent, Done: true}, {SentAt: sent}}, []journal.State{journal.Succeeded, journal.Manual}},
		{journal.Unknown, "", []journal.Step{{SentAt: sent}, {}}, []journal.State{journal.Unknown, journal.Planned}},
	} {
		i := journal.Intent{State: tt.state, SettledBy: tt.by, Steps: tt.steps}
		for n, want := range tt.want {
			if got := i.StateOf(n); got != want {
				t.Errorf("%s by %q, step %d: got %s, want %s", tt.state, tt.by, n, got, want)
			}
		}
	}
}
