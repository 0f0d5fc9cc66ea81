package invoices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// TestFill: an index of thousands is filled page by page, politely, in a few
// dozen records, and says how far it is meanwhile.
func TestFill(t *testing.T) {
	e := newEnv(t, 5000)
	e.open(1)
	v := e.view()
	if len(v.Entries) != PageSize || v.Complete || !v.Reading || !v.IndexedTo.Equal(e.fake.list[99].Created.Truncate(time.Second)) || e.woken == 0 {
		t.Fatalf("after the first page: %d entries, complete %t, reading %t, to %s, woken %d", len(v.Entries), v.Complete, v.Reading, v.IndexedTo, e.woken)
	}
	if _, err := e.nodes[0].Work(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v = e.view(); len(v.Entries) != (1+maxReads)*PageSize || v.Complete || e.slept != maxReads-1 {
		t.Fatalf("after one turn: %d entries, complete %t, %d pauses", len(v.Entries), v.Complete, e.slept)
	}
	e.settle()
	e.same("at the end")
	if e.fake.pages != 50 {
		t.Errorf("%d pages were read for 5,000 invoices, want 50", e.fake.pages)
	}
	records, largest := 0, 0
	_ = e.store.View(t.Context(), func(tx store.Tx) error {
		list, err := tx.Scan(store.Key("acme"), nil, 1000, false)
		for _, r := range list {
			records, largest = records+1, max(largest, len(r.Value))
		}
		return err
	})
	if records > 60 || largest > store.MaxValue {
		t.Errorf("%d records, the largest of %d bytes", records, largest)
	}
}

// TestSmall: one page is complete at once, and is not read again within the
// minute but for another account version.
func TestSmall(t *testing.T) {
	e := newEnv(t, 63)
	e.open(1)
	e.same("after opening")
	e.open(1)
	e.advance(30 * time.Second)
	e.open(1)
	if e.fake.pages != 1 {
		t.Errorf("read %d times within a minute, want once", e.fake.pages)
	}
	e.fake.change(5, func(v *billing.Invoice) { v.Status = billing.InvoiceVoid })
	e.open(2)
	e.same("after another version")
	e.fake.add(invoice(1000, e.now()))
	e.advance(CheckEvery)
	e.open(2)
	e.same("after a minute, without an event")
	e.fake.list = nil
	empty := newEnv(t, 0)
	empty.open(1)
	empty.same("without invoices")
}

// TestGap: more new invoices than fit on a page, with no event, are all found,
// and what was read before is not read again.
func TestGap(t *testing.T) {
	e := newEnv(t, 1000)
	e.open(1)
	e.settle()
	for n := range 250 {
		e.advance(time.Minute)
		e.fake.add(invoice(2000+n, e.now()))
	}
	pages := e.fake.pages
	e.open(1)
	if v := e.view(); v.Complete || v.IndexedTo.Before(e.fake.list[100].Created) {
		t.Errorf("with a gap: complete %t, indexed to %s", v.Complete, v.IndexedTo)
	}
	e.settle()
	e.same("after the gap was closed")
	if n := e.fake.pages - pages; n > 4 {
		t.Errorf("%d pages for 250 new invoices", n)
	}
	// A gap while the first reading is not done.
	e = newEnv(t, 1000)
	e.open(1)
	for n := range 150 {
		e.advance(time.Minute)
		e.fake.add(invoice(2000+n, e.now()))
	}
	e.open(1)
	e.settle()
	e.same("after a gap in the first reading")
}

func paid(v *billing.Invoice) {
	v.Status, v.AmountPaid, v.AmountRemaining = billing.InvoicePaid, v.Total, eur(0)
}

// TestEvent: an event makes one old invoice be read; a draft's and a stranger's
// make nothing of it, and an answer whose read began before the event does not
// replace one that came after it.
func TestEvent(t *testing.T) {
	e := newEnv(t, 500)
	e.note("in_00001") // nobody looked yet: nothing to do
	if e.view() != nil {
		t.Fatal("an event alone made an index")
	}
	e.open(1)
	e.settle()
	pages := e.fake.pages
	e.note(e.fake.change(400, paid))
	e.note("in_draft")
	e.settle()
	e.same("after the event")
	if e.fake.pages != pages || e.fake.ones != 2 {
		t.Errorf("%d pages and %d invoices were read, want none and two", e.fake.pages-pages, e.fake.ones)
	}
	// The second node reads a page, and the invoice changes while the answer is on
	// its way.
	e.advance(time.Hour)
	e.fake.between = func() {
		e.note(e.fake.change(0, func(v *billing.Invoice) { v.Status = billing.InvoiceUncollectible }))
		e.settle()
	}
	if _, err := e.nodes[1].Open(t.Context(), customer, 1); err != nil {
		t.Fatal(err)
	}
	e.same("after an old answer came late")
	// An invoice that the provider no longer has.
	e.fake.mu.Lock()
	gone := e.fake.list[250].ID
	e.fake.list = slices.Delete(e.fake.list, 250, 251)
	e.fake.mu.Unlock()
	e.note(gone)
	e.settle()
	e.same("after one was deleted")
	// So many at once that all are read again.
	for i := range 499 {
		e.note(e.fake.change(i, func(v *billing.Invoice) { v.Description = "changed" }))
	}
	for i := range 2 {
		e.note(fmt.Sprintf("in_draft_%d", i))
	}
	ones := e.fake.ones
	e.settle()
	e.same("after a flood")
	if e.fake.ones-ones > 10 {
		t.Errorf("%d invoices were read one by one", e.fake.ones-ones)
	}
}

// TestDoubt: an old open invoice that was paid, and one that became due, with no
// event, are noticed by what the account says is owed, before the page is
// shown.
func TestDoubt(t *testing.T) {
	e := newEnv(t, 300)
	e.open(1)
	e.settle()
	var acct billing.Account
	for _, v := range e.fake.all() {
		if v.Debt() {
			acct.Debts = append(acct.Debts, v)
		}
	}
	ones := e.fake.ones
	if _, err := e.nodes[0].Doubt(t.Context(), customer, e.view(), &acct); err != nil || e.fake.ones != ones {
		t.Fatalf("%v: %d reads where nothing differs", err, e.fake.ones-ones)
	}
	i := slices.IndexFunc(e.fake.list[200:], func(v billing.Invoice) bool { return v.Debt() }) + 200
	id := e.fake.change(i, paid)
	e.fake.change(i+1, func(v *billing.Invoice) {
		v.Status, v.AmountRemaining = billing.InvoiceOpen, v.Total
		acct.Debts = append(acct.Debts, *v)
	})
	acct.Debts = slices.DeleteFunc(acct.Debts, func(v billing.Invoice) bool { return v.ID == id })
	if _, err := e.nodes[0].Doubt(t.Context(), customer, e.view(), &acct); err != nil {
		t.Fatal(err)
	}
	e.same("after doubts")
	acct.Failed = []billing.Section{billing.SectionDebts}
	acct.Debts = nil
	ones = e.fake.ones
	if _, err := e.nodes[0].Doubt(t.Context(), customer, e.view(), &acct); err != nil || e.fake.ones != ones {
		t.Fatalf("%v: %d reads where nothing is known about debts", err, e.fake.ones-ones)
	}
}

// TestFailures: a provider that is down is asked less and less often, the rest
// of the index stays, and reading goes on where it was.
func TestFailures(t *testing.T) {
	e := newEnv(t, 2000)
	e.open(1)
	e.fake.err = errDown
	before := e.fake.pages
	for range 60 {
		if _, err := e.nodes[0].Work(t.Context()); err != nil {
			t.Fatal(err)
		}
		e.advance(time.Minute)
	}
	if n := e.fake.pages - before; n < 4 || n > 12 {
		t.Errorf("asked %d times in an hour of failure", n)
	}
	e.advance(CheckEvery)
	if _, err := e.nodes[0].Open(t.Context(), customer, 1); billing.FaultOf(err) != billing.Unavailable {
		t.Errorf("opening while the provider is down: %v", err)
	}
	if v := e.view(); len(v.Entries) != PageSize {
		t.Errorf("%d entries while the provider is down", len(v.Entries))
	}
	e.fake.err = nil
	e.advance(time.Hour)
	e.settle()
	e.same("after the outage")
	if n := e.fake.pages - before; n > 12+1+19 {
		t.Errorf("%d pages: the reading did not go on where it was", n)
	}
	// The invoice that the cursor names goes away.
	e = newEnv(t, 500)
	e.open(1)
	e.fake.list = slices.Delete(e.fake.list, 99, 100)
	e.advance(time.Second)
	for range 100 {
		_, _ = e.nodes[0].Work(t.Context())
		e.advance(10 * time.Second)
	}
	if v := e.view(); !v.Complete || len(v.Entries) != 500 {
		t.Errorf("after the cursor became unknown: complete %t, %d entries", v.Complete, len(v.Entries))
	}
}

// TestLease: one node reads at a time, and another takes over from one that is
// gone.
func TestLease(t *testing.T) {
	e := newEnv(t, 3000)
	e.open(1)
	other := 0
	e.fake.between = func() {
		before := e.fake.pages
		if _, err := e.nodes[1].Work(t.Context()); err != nil {
			t.Error(err)
		}
		other = e.fake.pages - before
	}
	if _, err := e.nodes[0].Work(t.Context()); err != nil {
		t.Fatal(err)
	}
	if other != 0 {
		t.Errorf("the other node read %d pages meanwhile", other)
	}
	// A node dies in the middle of a read: its lease stays.
	dying, die := context.WithCancel(t.Context())
	e.fake.between = func() { die(); e.store.fail = func() (error, error) { return errors.New("the process is gone"), nil } }
	_, _ = e.nodes[0].Work(dying)
	e.store.fail = nil
	before := e.fake.pages
	if _, _ = e.nodes[1].Work(t.Context()); e.fake.pages != before {
		t.Error("the other node did not wait for the lease")
	}
	e.advance(leaseTime)
	if _, _ = e.nodes[1].Work(t.Context()); e.fake.pages == before {
		t.Error("the other node did not take over")
	}
	e.settle()
	e.same("after a crash")
}

// TestForgotten: what nobody looked at for a month goes; what somebody looks at
// stays; a clock that went back keeps nothing waiting.
func TestForgotten(t *testing.T) {
	e := newEnv(t, 1000)
	e.open(1)
	e.settle()
	e.advance(Keep - time.Hour)
	e.open(1)
	e.settle()
	e.advance(2 * time.Hour)
	e.settle()
	if e.view() == nil {
		t.Fatal("an index in use was dropped")
	}
	e.advance(Keep)
	e.settle()
	if e.view() != nil {
		t.Fatal("an index that nobody looked at is still there")
	}
	_ = e.store.View(t.Context(), func(tx store.Tx) error {
		for _, prefix := range [][]byte{store.Key("acme"), store.Key(kind)} {
			list, _ := tx.Scan(prefix, nil, 10, false)
			if len(list) > 0 {
				t.Errorf("left behind: %q", list[0].Key)
			}
		}
		return nil
	})
	e.open(1)
	e.advance(-24 * time.Hour)
	e.open(2)
	e.settle()
	e.same("after the clock went back")
}

// TestWeekly: a change that no event told of is found when all pages are read
// again, and at once where the store may have forgotten.
func TestWeekly(t *testing.T) {
	e := newEnv(t, 400)
	e.open(1)
	e.settle()
	e.fake.change(350, func(v *billing.Invoice) { v.Description = "changed without an event" })
	e.advance(walkEvery + time.Hour)
	e.open(1)
	if !e.view().Complete {
		t.Error("an index that is read again is not complete meanwhile")
	}
	e.settle()
	e.same("after a week")
	e.fake.change(350, func(v *billing.Invoice) { v.Description = "changed again" })
	if _, err := store.MarkRestored(t.Context(), e.store, bytes.NewReader(make([]byte, 16)), e.now(), "test"); err != nil {
		t.Fatal(err)
	}
	e.open(1)
	e.settle()
	e.same("after a restore")
}

// TestRestoredUnfinished: what was read before a backup was made is read again
// after its restore, also where the backup is of an index that was being read,
// or has more new invoices than one page before it.
func TestRestoredUnfinished(t *testing.T) {
	restored := func(e *env) {
		t.Helper()
		if _, err := store.MarkRestored(t.Context(), e.store, bytes.NewReader(make([]byte, 16)), e.now(), "test"); err != nil {
			t.Fatal(err)
		}
	}
	forgotten := func(v *billing.Invoice) { v.Description = "the event about this went with the old store" }
	e := newEnv(t, 1500)
	e.open(1)
	if _, err := e.nodes[0].Work(t.Context()); err != nil || !e.view().Reading || len(e.view().Entries) < 600 {
		t.Fatal(err)
	}
	restored(e)
	e.fake.change(350, forgotten)
	e.advance(CheckEvery)
	e.open(1)
	e.settle()
	e.same("read in part before")

	e = newEnv(t, 1000)
	e.open(1)
	e.settle()
	restored(e)
	e.fake.change(350, forgotten)
	for n := range 150 {
		e.advance(time.Minute)
		e.fake.add(invoice(2000+n, e.now()))
	}
	e.open(1)
	e.settle()
	e.same("more than a page before what was read")
}

// TestHeadBounded: however long the ids that events name are, noting them never
// outgrows a record: an event that cannot be noted comes again for days.
func TestHeadBounded(t *testing.T) {
	e := newEnv(t, 300)
	e.open(1)
	e.settle()
	for n := range maxPending - 1 {
		e.note(fmt.Sprintf("in_%s_%04d", strings.Repeat("x", 240), n))
	}
	e.settle()
	e.same("afterwards")
}

// TestOneUnreadable: an invoice that cannot be read, again and again, does not
// keep the others from being read.
func TestOneUnreadable(t *testing.T) {
	e := newEnv(t, 500)
	e.open(1)
	e.fake.mu.Lock()
	e.fake.broken = "in_00001"
	e.fake.mu.Unlock()
	e.note("in_00001")
	e.note(e.fake.change(300, paid))
	for range 200 {
		e.advance(time.Minute)
		if _, err := e.nodes[0].Work(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	e.same("with one that cannot be read")
}

// TestDamaged: what cannot be read is made anew.
func TestDamaged(t *testing.T) {
	for name, break_ := range map[string]func(tx store.Tx, x *Index) error{
		"head":          func(tx store.Tx, x *Index) error { return tx.Put(x.headKey(customer), []byte("{")) },
		"other format":  func(tx store.Tx, x *Index) error { return tx.Put(x.headKey(customer), []byte(`{"format":9}`)) },
		"chunk":         func(tx store.Tx, x *Index) error { return tx.Put(x.chunkKey(customer, 0), []byte{1, 200, 1}) },
		"missing chunk": func(tx store.Tx, x *Index) error { return tx.Delete(x.chunkKey(customer, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, 300)
			e.open(1)
			e.settle()
			if err := e.store.Update(t.Context(), func(tx store.Tx) error { return break_(tx, e.nodes[0]) }); err != nil {
				t.Fatal(err)
			}
			if v := e.view(); v != nil {
				t.Fatalf("a damaged index has %d entries", len(v.Entries))
			}
			e.open(1)
			e.settle()
			e.same("afterwards")
			e.advance(2 * Keep)
			e.settle()
			_ = e.store.View(t.Context(), func(tx store.Tx) error {
				if list, _ := tx.Scan(store.Key(kind), nil, 10, false); len(list) > 0 {
					t.Errorf("%d work entries are left behind", len(list))
				}
				return nil
			})
		})
	}
}

// TestBound: an index stops at its limit and says so.
func TestBound(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 20,000 invoices")
	}
	e := newEnv(t, MaxEntries+2000)
	e.open(1)
	e.settle()
	v := e.view()
	if v.Complete || !v.Full || v.Reading || len(v.Entries) > MaxEntries || len(v.Entries) < MaxEntries-PageSize {
		t.Fatalf("%d entries, complete %t, full %t, reading %t", len(v.Entries), v.Complete, v.Full, v.Reading)
	}
	if last := v.Entries[len(v.Entries)-1]; !v.IndexedTo.Equal(last.Created) {
		t.Errorf("indexed to %s, the last is of %s", v.IndexedTo, last.Created)
	}
	for n := range 90 {
		e.advance(time.Minute)
		e.fake.add(invoice(90_000+n, e.now()))
	}
	e.open(1)
	e.settle()
	if v = e.view(); len(v.Entries) > MaxEntries || v.Entries[0].ID != "in_90089" || !v.Full {
		t.Errorf("%d entries, the first is %s, full %t", len(v.Entries), v.Entries[0].ID, v.Full)
	}
}

// TestHostileInvoices: texts of any length fit in, and what cannot be an
// invoice is refused without harm.
func TestHostileInvoices(t *testing.T) {
	e := newEnv(t, 0)
	for n := range 300 {
		v := invoice(n, e.now().AddDate(0, 0, -n))
		v.ID = fmt.Sprintf("in_%s_%03d", strings.Repeat("x", 200), n)
		v.Description, v.Number, v.Subscription = strings.Repeat("ü\u202e\x00", 5000), strings.Repeat("9", 5000), strings.Repeat("s", 255)
		e.fake.list = append(e.fake.list, v)
	}
	e.open(1)
	e.settle()
	e.same("with long texts")
	bad := invoice(9999, e.now().Add(time.Hour))
	bad.Status = "deleted by a poet"
	e.fake.add(bad)
	e.advance(CheckEvery)
	if _, err := e.nodes[0].Open(t.Context(), customer, 1); err == nil {
		t.Error("an invoice of no known status was taken in")
	}
	if v := e.view(); len(v.Entries) != 300 {
		t.Errorf("%d entries", len(v.Entries))
	}
}

// TestAnyOrder holds the index against the provider's list under changes,
// events in any order and twice, two nodes, reads that are overtaken, failures
// of provider and store, lost commits' answers and crashes.
func TestAnyOrder(t *testing.T) {
	rounds := uint64(40)
	if testing.Short() {
		rounds = 8
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { anyOrder(t, rand.New(rand.NewPCG(seed, 4))) })
	}
}

func anyOrder(t *testing.T, rnd *rand.Rand) {
	e := newEnv(t, rnd.IntN(700))
	version, next := uint64(1), 10_000
	var events []string
	changes := func() {
		list := e.fake.all()
		switch k := rnd.IntN(4); {
		case k == 0 || len(list) == 0:
			next++
			// A draft that becomes final stands where it was made.
			v := invoice(next, e.now().Add(-time.Duration(rnd.IntN(3))*time.Hour))
			e.fake.add(v)
			events = append(events, v.ID)
		default:
			events = append(events, e.fake.change(rnd.IntN(len(list)), func(v *billing.Invoice) {
				v.Status = statuses[rnd.IntN(4)]
				v.AmountRemaining = eur(rnd.Int64N(500))
				v.Description = fmt.Sprint("changed ", rnd.Int())
			}))
		}
	}
	event := func() {
		if len(events) == 0 {
			return
		}
		i := rnd.IntN(len(events))
		e.note(events[i])
		version++
		if rnd.IntN(4) > 0 { // else it comes again
			events = slices.Delete(events, i, i+1)
		}
	}
	e.store.fail = func() (error, error) {
		switch rnd.IntN(25) {
		case 0:
			return store.ErrUnavailable, nil
		case 1:
			return nil, store.ErrUnknown
		}
		return nil, nil
	}
	var act func(depth int)
	act = func(depth int) {
		node := e.nodes[rnd.IntN(2)]
		if depth < 2 && rnd.IntN(3) == 0 {
			e.fake.between = func() {
				for range rnd.IntN(4) {
					act(depth + 1)
				}
			}
		}
		switch rnd.IntN(8) {
		case 0, 1:
			changes()
		case 2, 3:
			event()
		case 4:
			version++ // calls for one version share a read, which a nested call would wait for
			_, _ = node.Open(t.Context(), customer, version)
		case 5:
			_, _ = node.Work(t.Context())
		case 6:
			e.advance(time.Duration(rnd.IntN(90)) * time.Second)
		case 7:
			e.fake.mu.Lock()
			e.fake.err = nil
			if rnd.IntN(3) == 0 {
				e.fake.err = errDown
			}
			e.fake.mu.Unlock()
		}
	}
	for range 150 {
		act(0)
	}
	e.store.fail, e.fake.err, e.fake.between = nil, nil, nil
	for _, id := range events {
		e.note(id)
	}
	e.advance(2 * time.Hour)
	e.open(version + 1)
	e.settle()
	e.same("at the end")
}
