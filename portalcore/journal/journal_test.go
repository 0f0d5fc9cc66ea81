package journal_test

import (
	"context"
	"errors"
	"fmt"
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
