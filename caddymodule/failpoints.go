//go:build portal_test_failpoints

package caddymodule

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// failpointVariable names the environment variable that says where the process
// kills itself with SIGKILL: "point:n" is the n-th time that point is reached,
// from 1; "point@function:n" counts only where a function whose name ends with
// function is among the callers, such as session.(*Manager).Redeem.
//
// The points:
//
//	store.update.before  nothing of the update has run
//	store.update.commit  its function has run, the commit is on its way
//	store.update.after   it is durable, nobody was told
//	store.view           before a snapshot or several keys are read
//	provider.execute.before, provider.execute.after    around a step
//	provider.outcome.before, provider.outcome.after    around reading what became of one
//	provider.preview, provider.account                 before these
const failpointVariable = "PORTAL_FAILPOINT"

// commitWindow is how long after its function has run the process dies at
// store.update.commit, at most: several times what a commit takes.
const commitWindow = 4 * time.Millisecond

// failpoint is where this process dies. The zero value is nowhere.
type failpoint struct {
	point, caller string
	left          atomic.Int64
}

var dieAt = parseFailpoint(os.Getenv(failpointVariable))

// parseFailpoint panics on what it cannot read: a test that asks for a point
// that is none would show nothing.
func parseFailpoint(s string) *failpoint {
	f := new(failpoint)
	if s == "" {
		return f
	}
	i := strings.LastIndexByte(s, ':')
	n, err := strconv.ParseInt(s[i+1:], 10, 64)
	if i < 0 || err != nil || n < 1 {
		panic(fmt.Sprintf("%s: want point:n or point@function:n, not %q", failpointVariable, s))
	}
	f.point, f.caller, _ = strings.Cut(s[:i], "@")
	f.left.Store(n)
	return f
}

// reached counts a visit to a point, and reports whether the process is to die
// there.
func (f *failpoint) reached(point string) bool {
	return f.point == point && f.calledBy() && f.left.Add(-1) == 0
}

func (f *failpoint) calledBy() bool {
	if f.caller == "" {
		return true
	}
	pc := make([]uintptr, 32)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	for {
		frame, more := frames.Next()
		if strings.HasSuffix(frame.Function, f.caller) {
			return true
		}
		if !more {
			return false
		}
	}
}

func (f *failpoint) visit(point string) {
	if f.reached(point) {
		die()
	}
}

// die ends the process as the kernel's out-of-memory killer does: nothing of it
// runs any more.
func die() {
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Kill()
	}
	select {}
}

func failpointStore(st store.Store) store.Store { return dyingStore{st} }

// dyingStore is a store with failpoints around it.
type dyingStore struct{ store.Store }

func (s dyingStore) View(ctx context.Context, fn func(store.Tx) error) error {
	dieAt.visit("store.view")
	return s.Store.View(ctx, fn)
}

func (s dyingStore) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	dieAt.visit("store.view")
	return s.Store.GetAll(ctx, keys...)
}

func (s dyingStore) Update(ctx context.Context, fn func(store.Tx) error) error {
	dieAt.visit("store.update.before")
	during := dieAt.reached("store.update.commit")
	err := s.Store.Update(ctx, func(tx store.Tx) error {
		err := fn(tx)
		if during && err == nil {
			time.AfterFunc(rand.N(commitWindow), die)
		}
		return err
	})
	if err == nil {
		dieAt.visit("store.update.after")
	}
	return err
}

// SweepTurn is the store's own (store.Turns), which embedding it hides.
func (s dyingStore) SweepTurn(ctx context.Context, tenant string, now time.Time) (bool, error) {
	return sweepTurn(ctx, s.Store, tenant, now)
}

func failpointProvider(p billing.Provider) billing.Provider { return dyingProvider{p} }

// dyingProvider is a provider with failpoints around what the portal sends.
type dyingProvider struct{ billing.Provider }

func (p dyingProvider) Execute(ctx context.Context, customer string, step billing.Step, key string) (billing.Result, error) {
	dieAt.visit("provider.execute.before")
	r, err := p.Provider.Execute(ctx, customer, step, key)
	dieAt.visit("provider.execute.after")
	return r, err
}

func (p dyingProvider) Outcome(ctx context.Context, customer string, step billing.Step, key string, last *billing.Result) (billing.Outcome, billing.Result, error) {
	dieAt.visit("provider.outcome.before")
	o, r, err := p.Provider.Outcome(ctx, customer, step, key, last)
	dieAt.visit("provider.outcome.after")
	return o, r, err
}

func (p dyingProvider) Preview(ctx context.Context, customer string, action billing.Action, at time.Time) (billing.Preview, error) {
	dieAt.visit("provider.preview")
	return p.Provider.Preview(ctx, customer, action, at)
}

func (p dyingProvider) Account(ctx context.Context, customer string) (billing.Account, error) {
	dieAt.visit("provider.account")
	return p.Provider.Account(ctx, customer)
}
