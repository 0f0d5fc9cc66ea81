package account_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// provider answers Account and nothing else: any other call panics.
type provider struct {
	billing.Provider
	reads atomic.Int64
	read  func(ctx context.Context, n int64) (string, error)
}

func (p *provider) Account(ctx context.Context, customer string) (billing.Account, error) {
	name, err := p.read(ctx, p.reads.Add(1))
	return billing.Account{Customer: billing.Customer{ID: customer, Name: name}}, err
}

var unavailable = &billing.Error{Fault: billing.Unavailable}

type fixture struct {
	*account.Accounts
	p   *provider
	now time.Time
}

func setUp(t *testing.T, read func(ctx context.Context, n int64) (string, error)) *fixture {
	f := &fixture{p: &provider{read: read}, now: time.Unix(1_700_000_000, 0)}
	a, err := account.New(f.p, func() time.Time { return f.now }, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Accounts = a
	return f
}

// want reads the account for a page.
func (f *fixture) want(t *testing.T, version uint64, name string, stale bool, reads int64) {
	t.Helper()
	s, err := f.Cached(t.Context(), "cus", version)
	if err != nil {
		t.Fatal(err)
	}
	if s.Account.Customer.Name != name || s.Stale != stale || f.p.reads.Load() != reads {
		t.Errorf("got %q, stale %v after %d reads; want %q, %v, %d", s.Account.Customer.Name, s.Stale, f.p.reads.Load(), name, stale, reads)
	}
}

func numbered(_ context.Context, n int64) (string, error) { return string(rune('a' + n - 1)), nil }

func TestCachedByAgeAndVersion(t *testing.T) {
	f := setUp(t, numbered)
	f.want(t, 1, "a", false, 1)
	f.now = f.now.Add(account.DefaultMaxAge - 1)
	f.want(t, 1, "a", false, 1)
	f.want(t, 0, "a", false, 1) // read for a later version than is asked for
	f.now = f.now.Add(1)
	f.want(t, 1, "b", false, 2)
	f.want(t, 2, "c", false, 3)
	f.want(t, 2, "c", false, 3)
	f.Drop("cus")
	f.want(t, 2, "d", false, 4)
	if _, err := f.Fresh(t.Context(), "cus", 2); err != nil {
		t.Fatal(err)
	}
	f.want(t, 2, "e", false, 5)
	// The clock goes back a day: the age is not known, so it is read again,
	// once.
	f.now = f.now.Add(-24 * time.Hour)
	f.want(t, 2, "f", false, 6)
	f.want(t, 2, "f", false, 6)
}

func TestOutage(t *testing.T) {
	var fault error
	f := setUp(t, func(_ context.Context, n int64) (string, error) { return string(rune('a' + n - 1)), fault })
	fault = unavailable
	if _, err := f.Cached(t.Context(), "cus", 1); !errors.Is(err, unavailable) {
		t.Errorf("without a copy: %v", err)
	}
	fault = nil
	f.want(t, 1, "b", false, 2)
	fault = errors.New("broken pipe")
	f.want(t, 1, "b", false, 2)
	f.want(t, 2, "b", true, 3)
	f.now = f.now.Add(time.Hour)
	f.want(t, 2, "b", true, 4)
	if _, err := f.Fresh(t.Context(), "cus", 2); err == nil {
		t.Error("a decision rests on an old copy")
	}
	// A page just after a failure does not wait for the provider again.
	f.want(t, 2, "b", true, 5)
	f.now = f.now.Add(time.Minute)
	fault = &billing.Error{Fault: billing.NotFound}
	if _, err := f.Cached(t.Context(), "cus", 2); billing.FaultOf(err) != billing.NotFound {
		t.Errorf("a deleted customer: %v", err)
	}
	fault = unavailable
	if s, err := f.Cached(t.Context(), "cus", 2); err == nil {
		t.Errorf("an outage brought a deleted customer back: %+v", s)
	}
}

func TestOneReadForAll(t *testing.T) {
	release := make(chan struct{})
	f := setUp(t, func(context.Context, int64) (string, error) { <-release; return "a", nil })
	var wg sync.WaitGroup
	var begun sync.WaitGroup
	// One reader goes away: the others still get their answer.
	gone, cancel := context.WithCancel(t.Context())
	begun.Add(101)
	wg.Go(func() {
		begun.Done()
		if _, err := f.Cached(gone, "cus", 1); billing.FaultOf(err) != billing.Unavailable {
			t.Errorf("who went away got %v", err)
		}
	})
	for range 100 {
		wg.Go(func() {
			begun.Done()
			if s, err := f.Cached(t.Context(), "cus", 1); err != nil || s.Account.Customer.Name != "a" {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
	begun.Wait()
	cancel()
	time.Sleep(20 * time.Millisecond) // late ones find the copy, which is right as well
	close(release)
	wg.Wait()
	if n := f.p.reads.Load(); n != 1 {
		t.Errorf("%d reads, want 1", n)
	}
}

// A read that began before a change must not hide what a later one saw,
// whichever answer comes first.
func TestSlowReadDoesNotOverwrite(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second uint64
	}{{"newer version", 1, 2}, {"same version", 1, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			inFlight, release := make(chan struct{}), make(chan struct{})
			f := setUp(t, func(_ context.Context, n int64) (string, error) {
				if n == 1 {
					close(inFlight)
					<-release
					return "before", nil
				}
				return "after", nil
			})
			done := make(chan error)
			go func() {
				_, err := f.Fresh(context.Background(), "cus", tt.first)
				done <- err
			}()
			<-inFlight
			if _, err := f.Fresh(t.Context(), "cus", tt.second); err != nil {
				t.Fatal(err)
			}
			close(release)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			f.want(t, tt.second, "after", false, 2)
		})
	}
	// After Drop nothing is there to compare with: the version decides.
	inFlight, release := make(chan struct{}), make(chan struct{})
	f := setUp(t, func(_ context.Context, n int64) (string, error) {
		if n == 1 {
			close(inFlight)
			<-release
			return "before", nil
		}
		return "after", nil
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = f.Cached(context.Background(), "cus", 1)
	}()
	<-inFlight
	f.Drop("cus")
	close(release)
	<-done
	f.want(t, 2, "after", false, 2)
}

func TestPanicIsAnOutage(t *testing.T) {
	f := setUp(t, func(context.Context, int64) (string, error) { panic("unexpected shape") })
	if _, err := f.Cached(t.Context(), "cus", 1); billing.FaultOf(err) != billing.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestPeek(t *testing.T) {
	f := setUp(t, numbered)
	if _, ok := f.Peek("cus"); ok || f.p.reads.Load() != 0 {
		t.Error("something is there before a read")
	}
	f.want(t, 1, "a", false, 1)
	f.now = f.now.Add(24 * time.Hour)
	if s, ok := f.Peek("cus"); !ok || s.Account.Customer.Name != "a" || f.p.reads.Load() != 1 {
		t.Errorf("got %+v, %v", s, ok)
	}
}
