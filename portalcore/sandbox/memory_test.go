package sandbox_test

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// memory is a store in memory. It runs every update twice and fails the test
// where the two runs write different things: a store may run one again.
type memory struct {
	t    testing.TB
	mu   sync.RWMutex
	data map[string][]byte
	fail error // what updates return, after doing nothing
	once bool  // run updates once: for tests that make very many
}

func (m *memory) View(ctx context.Context, fn func(store.Tx) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	return fn(&memoryTx{base: m.data, readOnly: true})
}

func (m *memory) Update(ctx context.Context, fn func(store.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	first := &memoryTx{base: m.data, wrote: map[string][]byte{}}
	firstErr := fn(first)
	second, err := first, firstErr
	if !m.once {
		second = &memoryTx{base: m.data, wrote: map[string][]byte{}}
		err = fn(second)
	}
	if (err == nil) != (firstErr == nil) || err == nil && !maps.EqualFunc(first.wrote, second.wrote, bytes.Equal) {
		m.t.Errorf("an update that ran twice did not write the same things: %v, %v", firstErr, err)
	}
	if err != nil {
		return err
	}
	for k, v := range second.wrote {
		if v == nil {
			delete(m.data, k)
		} else {
			m.data[k] = v
		}
	}
	return nil
}

func (m *memory) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	out := make([][]byte, len(keys))
	err := m.View(ctx, func(tx store.Tx) error {
		for i, k := range keys {
			out[i], _ = tx.Get(k)
		}
		return nil
	})
	return out, err
}

type memoryTx struct {
	base, wrote map[string][]byte
	readOnly    bool
}

func (tx *memoryTx) Get(key []byte) ([]byte, error) {
	v, ok := tx.wrote[string(key)]
	if !ok {
		v = tx.base[string(key)]
	}
	if v == nil {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(v), nil
}

func (tx *memoryTx) Put(key, value []byte) error {
	switch {
	case tx.readOnly:
		return store.ErrReadOnly
	case len(value) > store.MaxValue:
		return store.ErrTooLarge
	}
	tx.wrote[string(key)] = bytes.Clone(value)
	return nil
}

func (tx *memoryTx) Delete(key []byte) error {
	if tx.readOnly {
		return store.ErrReadOnly
	}
	tx.wrote[string(key)] = nil
	return nil
}

func (tx *memoryTx) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	if limit <= 0 {
		limit = 1000
	}
	found := map[string][]byte{}
	for _, m := range []map[string][]byte{tx.base, tx.wrote} {
		for k, v := range m {
			if !strings.HasPrefix(k, string(prefix)) || from != nil && (!reverse && k < string(from) || reverse && k > string(from)) {
				continue
			}
			if v == nil {
				delete(found, k)
			} else {
				found[k] = v
			}
		}
	}
	keys := slices.Sorted(maps.Keys(found))
	if reverse {
		slices.Reverse(keys)
	}
	var out []store.Entry
	for _, k := range keys[:min(limit, len(keys))] {
		out = append(out, store.Entry{Key: []byte(k), Value: bytes.Clone(found[k])})
	}
	return out, nil
}

// clock is a clock that stands still until it is set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time  { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) set(t time.Time) { c.mu.Lock(); defer c.mu.Unlock(); c.t = t }

// bench is a ledger in memory with prices, a clock, and calls that must work.
type bench struct {
	*sandbox.Ledger
	t     testing.TB
	db    *memory
	clock *clock
}

var noon = time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)

func newBench(t testing.TB, now time.Time) *bench {
	t.Helper()
	b := &bench{t: t, db: &memory{t: t, data: map[string][]byte{}}, clock: &clock{t: now}}
	l, err := sandbox.Open(t.Context(), b.db, sandbox.Options{Now: b.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	b.Ledger = l
	_, err = l.CreateProduct(t.Context(), sandbox.Call{}, sandbox.ProductParams{ID: "prod_x", Name: "Plan X"})
	if err != nil {
		t.Fatal(err)
	}
	b.price("ten", "10.00", billing.Month)
	b.price("twenty", "20.00", billing.Month)
	b.price("year", "200.00", billing.Year)
	return b
}

// price makes price_<name> over an amount in dollars.
func (b *bench) price(name, dollars string, interval billing.Interval) {
	b.t.Helper()
	_, err := b.CreatePrice(b.t.Context(), sandbox.Call{}, sandbox.PriceParams{
		ID: "price_" + name, Product: "prod_x", Currency: "usd",
		UnitAmount: decimal.RequireFromString(dollars).Shift(2), Interval: interval,
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// customer makes a customer with a card as the default.
func (b *bench) customer(id, card string) sandbox.Customer {
	b.t.Helper()
	c, err := b.CreateCustomer(b.t.Context(), sandbox.Call{}, sandbox.CustomerParams{ID: id})
	if err != nil {
		b.t.Fatal(err)
	}
	if card == "" {
		return c
	}
	return b.setCard(id, card)
}

func (b *bench) setCard(id, card string) sandbox.Customer {
	b.t.Helper()
	pm, err := b.AddCard(b.t.Context(), sandbox.Call{}, id, sandbox.CardParams{Number: card, ExpYear: 2040})
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := b.UpdateCustomer(b.t.Context(), sandbox.Call{}, id, sandbox.CustomerParams{DefaultPaymentMethod: &pm.ID})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) subscribe(customer, price string, quantity int64) sandbox.Subscription {
	b.t.Helper()
	s, err := b.CreateSubscription(b.t.Context(), sandbox.Call{}, sandbox.SubscriptionCreate{Customer: customer, Items: []sandbox.ItemParams{{Price: "price_" + price, Quantity: &quantity}}})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) sub(id string) sandbox.Subscription {
	b.t.Helper()
	s, err := b.Subscription(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) cus(id string) sandbox.Customer {
	b.t.Helper()
	c, err := b.Customer(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) invoice(id string) sandbox.Invoice {
	b.t.Helper()
	inv, err := b.Invoice(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return inv
}

func (b *bench) invoices(customer string) []sandbox.Invoice {
	b.t.Helper()
	list, more, err := b.Invoices(b.t.Context(), sandbox.InvoiceFilter{Customer: customer, Limit: 100})
	if err != nil || more {
		b.t.Fatal(more, err)
	}
	return list
}

func (b *bench) effects() []sandbox.Effect {
	b.t.Helper()
	e, err := b.Effects(b.t.Context(), 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func (b *bench) advance(d time.Duration) time.Time {
	b.t.Helper()
	now, err := b.Advance(b.t.Context(), d)
	if err != nil {
		b.t.Fatal(err)
	}
	return now
}

// change sets price and quantity of a subscription's first item, as a
// customer's change does.
func change(s sandbox.Subscription, price string, quantity int64) sandbox.SubscriptionUpdate {
	return sandbox.SubscriptionUpdate{
		Items:             []sandbox.ItemParams{{ID: s.Items[0].ID, Price: "price_" + price, Quantity: &quantity}},
		ProrationBehavior: sandbox.AlwaysInvoice, PaymentBehavior: sandbox.PendingIfIncomplete,
	}
}
