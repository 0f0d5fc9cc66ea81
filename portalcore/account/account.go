// Package account keeps what the provider said about customers for a short
// while: Cached for pages, Fresh for decisions, Drop for what is known to have
// changed.
package account

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// DefaultMaxAge is how long a page may show an account without asking the
// provider again.
const DefaultMaxAge = time.Minute

const (
	// keep is how long an account stays at hand for an outage of the provider.
	keep = 30 * time.Minute
	// retryAfter is how long an older copy is shown before a provider that did
	// not answer, or not for all of it, is asked again.
	retryAfter = 3 * time.Second
	// cacheBytes bounds the memory, as Size counts it: an account of a usual
	// customer is a few kB, one with 200 subscriptions a few hundred.
	cacheBytes = 128 << 20
	// readTimeout bounds a read: it goes on when the first who asked went away.
	readTimeout = 20 * time.Second
)

// Snapshot is an account as it was at a time.
type Snapshot struct {
	Account billing.Account
	// Read is when it was read, by the portal's clock.
	Read time.Time
	// Version is the customer's account version it was read for.
	Version uint64
	// Stale is true where the provider did not answer and this is an older
	// copy.
	Stale bool
	// failed is when the provider last did not answer, where Stale is set.
	failed time.Time
	// turn orders reads by when they began, whatever the clock does.
	turn uint64
}

// Accounts reads accounts through a cache. Use New.
type Accounts struct {
	provider billing.Provider
	now      func() time.Time
	maxAge   time.Duration
	cache    *otter.Cache[string, Snapshot]
	reads    singleflight.Group
	turns    atomic.Uint64
}

// New returns a cache in front of p. maxAge zero means DefaultMaxAge.
func New(p billing.Provider, now func() time.Time, maxAge time.Duration) (*Accounts, error) {
	if maxAge == 0 {
		maxAge = DefaultMaxAge
	}
	c, err := otter.New(&otter.Options[string, Snapshot]{
		MaximumWeight:    cacheBytes,
		Weigher:          weigh,
		ExpiryCalculator: otter.ExpiryWriting[string, Snapshot](keep),
	})
	if err != nil {
		return nil, err
	}
	return &Accounts{provider: p, now: now, maxAge: maxAge, cache: c}, nil
}

// Cached returns the account for a page. version is the customer's account
// version: an account read for an older one is read again. Where the provider
// does not answer, an older copy is returned with Stale set. Where it did not
// answer for a section, Account.Failed names it: an older copy of a part never
// stands beside what is current, and the account is read again soon.
func (a *Accounts) Cached(ctx context.Context, customer string, version uint64) (Snapshot, error) {
	s, ok := a.cache.GetIfPresent(customer)
	if ok && s.Stale {
		// While the provider is down, not every page waits for it again.
		if since := a.now().Sub(s.failed); since >= 0 && since < retryAfter {
			return s, nil
		}
	} else if ok && s.Version >= version {
		// Below zero the clock went backwards: the age is not known.
		if age := a.now().Sub(s.Read); age >= 0 && age < a.lasts(&s.Account) {
			return s, nil
		}
	}
	fresh, err := a.read(ctx, customer, version)
	if err == nil {
		return fresh, nil
	}
	if billing.FaultOf(err) == billing.NotFound {
		a.Drop(customer) // no outage brings a customer back that is gone
		return Snapshot{}, err
	}
	if !ok {
		return Snapshot{}, err
	}
	s.Stale = true
	return s, nil
}

// lasts is how long an account is shown without asking again.
func (a *Accounts) lasts(acct *billing.Account) time.Duration {
	if len(acct.Failed) > 0 {
		return min(retryAfter, a.maxAge)
	}
	return a.maxAge
}

// Peek returns the account where it is at hand, whatever its age.
func (a *Accounts) Peek(customer string) (Snapshot, bool) { return a.cache.GetIfPresent(customer) }

// Fresh reads the account from the provider, for a decision. An account with a
// section that could not be read decides nothing: it is kept for pages, and the
// error is Unavailable with the code "section_failed".
func (a *Accounts) Fresh(ctx context.Context, customer string, version uint64) (billing.Account, error) {
	s, err := a.ask(ctx, customer, version)
	if err == nil && len(s.Account.Failed) > 0 {
		err = &billing.Error{
			Fault: billing.Unavailable, Code: "section_failed", Param: string(s.Account.Failed[0]),
			Err: fmt.Errorf("the provider did not answer for %q", s.Account.Failed),
		}
	}
	if err != nil {
		return billing.Account{}, err
	}
	return s.Account, nil
}

// ask reads the account and keeps it. It counts as read when the read began:
// what happened since may be in it or not.
func (a *Accounts) ask(ctx context.Context, customer string, version uint64) (Snapshot, error) {
	s := Snapshot{Read: a.now(), Version: version, turn: a.turns.Add(1)}
	var err error
	if s.Account, err = a.provider.Account(ctx, customer); err != nil {
		if billing.FaultOf(err) != billing.NotFound {
			a.failed(customer)
		}
		return Snapshot{}, err
	}
	a.put(customer, s)
	return s, nil
}

// failed marks the copy at hand: the provider did not answer, so it may be old.
func (a *Accounts) failed(customer string) {
	now := a.now()
	a.cache.Compute(customer, func(old Snapshot, found bool) (Snapshot, otter.ComputeOp) {
		if !found {
			return old, otter.CancelOp
		}
		old.Stale, old.failed = true, now
		return old, otter.WriteOp
	})
}

// Close stops what the cache runs in the background.
func (a *Accounts) Close() { a.cache.StopAllGoroutines() }

// Drop forgets an account.
func (a *Accounts) Drop(customer string) { a.cache.Invalidate(customer) }

// read asks the provider once for all who ask at the same time.
func (a *Accounts) read(ctx context.Context, customer string, version uint64) (Snapshot, error) {
	// Readers for different versions must not share an answer: the older one's
	// read may have begun before the change.
	key := customer + "\x00" + strconv.FormatUint(version, 10)
	done := a.reads.DoChan(key, func() (_ any, err error) {
		// The read has a goroutine of its own: nothing else stops a panic here
		// from ending the process.
		defer func() {
			if r := recover(); r != nil {
				err = &billing.Error{Fault: billing.Unavailable, Code: "panic", Err: fmt.Errorf("panic while reading an account: %v", r)}
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		return a.ask(ctx, customer, version)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return Snapshot{}, r.Err
		}
		return r.Val.(Snapshot), nil
	case <-ctx.Done():
		return Snapshot{}, &billing.Error{Fault: billing.Unavailable, Err: ctx.Err()}
	}
}

// put keeps the newer of two snapshots.
func (a *Accounts) put(customer string, s Snapshot) {
	a.cache.Compute(customer, func(old Snapshot, found bool) (Snapshot, otter.ComputeOp) {
		if found && (old.Version > s.Version || old.Version == s.Version && old.turn > s.turn) {
			return old, otter.CancelOp
		}
		return s, otter.WriteOp
	})
}
