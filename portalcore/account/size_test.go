package account

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// big answers Account with a customer of that name.
type big struct {
	billing.Provider
	name string
}

func (p big) Account(context.Context, string) (billing.Account, error) {
	return billing.Account{Customer: billing.Customer{Name: p.name}}, nil
}

// The estimate is held against what the runtime says.
func TestSize(t *testing.T) {
	build := func() *billing.Account {
		meta := map[string]string{}
		for i := range 50 {
			meta[strings.Repeat("k", i+1)] = strings.Repeat("v", 500)
		}
		a := new(billing.Account)
		for range 1000 {
			a.Subscriptions = append(a.Subscriptions, billing.Subscription{
				ID: strings.Repeat("s", 30), Items: []billing.Item{{ID: strings.Repeat("i", 30), Price: billing.Price{ID: strings.Repeat("p", 30), Metadata: meta}}},
			})
		}
		return a
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	a := build()
	used := int64(heap() - before)
	got := Size(a)
	if got < used*8/10 || got > used*13/10 {
		t.Errorf("estimated %d bytes, the heap grew by %d", got, used)
	}
	runtime.KeepAlive(a)
}

func TestWeight(t *testing.T) {
	// 200 accounts of a megabyte are more than the bound.
	p := big{name: strings.Repeat("n", 1<<20)}
	a, err := New(p, time.Now, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	for i := range 200 {
		if _, err := a.Cached(t.Context(), strings.Repeat("c", i+1), 1); err != nil {
			t.Fatal(err)
		}
	}
	a.cache.CleanUp()
	kept := 0
	for i := range 200 {
		if _, ok := a.Peek(strings.Repeat("c", i+1)); ok {
			kept++
		}
	}
	if kept == 0 || kept > 128 {
		t.Errorf("%d accounts of 1 MB are kept, want 1 to 128", kept)
	}
}
