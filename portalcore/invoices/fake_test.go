package invoices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

const customer = "cus_a"

// fake is a provider with one customer's invoices, newest first.
type fake struct {
	billing.Provider // whatever else is asked for panics
	mu               sync.Mutex
	list             []billing.Invoice
	pages, ones      int
	err              error
	broken           string // cannot be read by its id
	// between runs, without the lock, after an answer was made and before it is
	// given.
	between func()
}

func (f *fake) answered() {
	f.mu.Lock()
	b := f.between
	f.between = nil
	f.mu.Unlock()
	if b != nil {
		b()
	}
}

func (f *fake) Invoices(ctx context.Context, id, cursor string, limit int) (billing.InvoicePage, error) {
	defer f.answered()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pages++
	if f.err != nil {
		return billing.InvoicePage{}, f.err
	}
	if id != customer || ctx.Err() != nil {
		return billing.InvoicePage{}, &billing.Error{Fault: billing.NotFound}
	}
	from := 0
	if cursor != "" {
		from = 1 + slices.IndexFunc(f.list, func(v billing.Invoice) bool { return v.ID == cursor })
		if from == 0 {
			return billing.InvoicePage{}, &billing.Error{Fault: billing.NotFound, Param: "cursor"}
		}
	}
	to := min(from+limit, len(f.list))
	p := billing.InvoicePage{Invoices: slices.Clone(f.list[from:to])}
	if to < len(f.list) {
		p.Older = f.list[to-1].ID
	}
	return p, nil
}

func (f *fake) Invoice(_ context.Context, id, invoice string) (billing.InvoiceDetail, error) {
	defer f.answered()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ones++
	if f.err != nil {
		return billing.InvoiceDetail{}, f.err
	}
	if invoice == f.broken {
		return billing.InvoiceDetail{}, errDown
	}
	i := slices.IndexFunc(f.list, func(v billing.Invoice) bool { return v.ID == invoice })
	if id != customer || i < 0 {
		return billing.InvoiceDetail{}, &billing.Error{Fault: billing.NotFound, Param: invoice}
	}
	return billing.InvoiceDetail{Invoice: f.list[i]}, nil
}

// add puts an invoice where the provider lists it.
func (f *fake) add(v billing.Invoice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.list, func(o billing.Invoice) bool { return !o.Created.After(v.Created) })
	if i < 0 {
		i = len(f.list)
	}
	f.list = slices.Insert(f.list, i, v)
}

func (f *fake) change(i int, to func(*billing.Invoice)) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	to(&f.list[i])
	return f.list[i].ID
}

func (f *fake) all() []billing.Invoice {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list)
}

func eur(n int64) billing.Money { return billing.Money{Amount: n, Currency: "eur"} }

func invoice(n int, created time.Time) billing.Invoice {
	v := billing.Invoice{
		ID: fmt.Sprintf("in_%05d", n), Number: "INV-" + strconv.Itoa(n), Status: billing.InvoicePaid, Subscription: "sub_" + strconv.Itoa(n%2),
		Description: fmt.Sprintf("Team, %d seats, Größe Café", n%7), Created: created, Total: eur(int64(1000 + n)), AmountPaid: eur(int64(1000 + n)),
		Tax: eur(190), HasDocument: true,
	}
	if n%10 == 0 {
		v.Status, v.AmountPaid, v.AmountRemaining, v.Attempted = billing.InvoiceOpen, eur(0), v.Total, true
	}
	return v
}

// faulty is a store whose updates fail when it is told so: before they are
// made, or after, with the answer lost.
type faulty struct {
	store.Store
	fail func() (before, after error)
}

func (s *faulty) Update(ctx context.Context, fn func(store.Tx) error) error {
	var before, after error
	if s.fail != nil {
		before, after = s.fail()
	}
	if before != nil {
		return before
	}
	if err := s.Store.Update(ctx, fn); err != nil {
		return err
	}
	return after
}

type env struct {
	t     testing.TB
	mu    sync.Mutex
	time  time.Time
	fake  *fake
	store *faulty
	nodes []*Index
	woken int
	slept int
}

func (e *env) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.time
}

func (e *env) advance(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.time = e.time.Add(d)
}

func newEnv(t testing.TB, invoices int) *env {
	t.Helper()
	e := &env{t: t, time: time.Date(2026, 5, 14, 15, 2, 0, 0, time.UTC), fake: &fake{}}
	for n := range invoices {
		e.fake.list = append(e.fake.list, invoice(invoices-n, e.time.AddDate(0, 0, -n)))
	}
	sealer, err := store.NewSealer(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	s, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true, Now: e.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	e.store = &faulty{Store: s}
	for i := range 2 {
		x, err := New(Options{
			Store: e.store, Tenant: "acme", Provider: e.fake, Now: e.now, Process: "p" + strconv.Itoa(i),
			Wake:  func() { e.mu.Lock(); e.woken++; e.mu.Unlock() },
			Sleep: func(context.Context, time.Duration) { e.mu.Lock(); e.slept++; e.mu.Unlock() },
		})
		if err != nil {
			t.Fatal(err)
		}
		e.nodes = append(e.nodes, x)
	}
	return e
}

func (e *env) open(version uint64) {
	e.t.Helper()
	if _, err := e.nodes[0].Open(e.t.Context(), customer, version); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) view() *View {
	e.t.Helper()
	v, err := e.nodes[0].View(e.t.Context(), customer)
	if err != nil {
		e.t.Fatal(err)
	}
	return v
}

func (e *env) note(id string) {
	e.t.Helper()
	err := e.store.Store.Update(e.t.Context(), func(tx store.Tx) error { return e.nodes[0].Note(tx, customer, id, e.now()) })
	if err != nil {
		e.t.Fatal(err)
	}
}

// settle works until there is nothing to do.
func (e *env) settle() {
	e.t.Helper()
	for range 2000 {
		more, err := e.nodes[0].Work(e.t.Context())
		if err != nil {
			e.t.Fatal(err)
		}
		h, _, err := e.nodes[0].look(e.t.Context(), customer)
		if err != nil {
			e.t.Fatal(err)
		}
		if !more && (h == nil || !h.busy()) {
			return
		}
		if !more {
			e.advance(time.Minute)
		}
	}
	e.t.Fatal("work never ends")
}

// same compares the index with the provider's list.
func (e *env) same(when string) {
	e.t.Helper()
	v := e.view()
	if v == nil {
		e.t.Fatalf("%s: no index", when)
	}
	want := e.fake.all()
	slices.SortFunc(want, func(a, b billing.Invoice) int {
		return place{a.Created.Unix(), a.ID}.compare(place{b.Created.Unix(), b.ID})
	})
	if len(v.Entries) != len(want) || !v.Complete || v.Reading {
		e.t.Fatalf("%s: %d entries of %d, complete %t, reading %t", when, len(v.Entries), len(want), v.Complete, v.Reading)
	}
	for i := range want {
		w, err := entryOf(&want[i], v.Entries[i].seen)
		if err != nil {
			e.t.Fatal(err)
		}
		if v.Entries[i] != w {
			e.t.Fatalf("%s: entry %d is\n%+v\nwant\n%+v", when, i, v.Entries[i], w)
		}
	}
}

var errDown = &billing.Error{Fault: billing.Unavailable, Err: errors.New("connection refused")}
