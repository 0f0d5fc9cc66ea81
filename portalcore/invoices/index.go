// Package invoices keeps an index of each customer's invoices in the store, so
// that thousands of them can be searched, counted and added up: the provider's
// lists are cursors without counts or text search.
//
// An index is a cache. It begins when the customer opens the list, is filled
// page by page in the background, and is kept right by three things: the
// newest page, read whenever the list is opened and not just read before; the
// provider's events, each of which makes one invoice be read anew; and, once a
// week of use, all pages again. Nothing but the provider's answers is written
// into it, and an answer whose read began before an event never replaces one
// whose read began after it.
package invoices

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	// MaxEntries bounds a customer's index. Older invoices are not in it, and
	// View.IndexedTo says so.
	MaxEntries = 20_000
	// PageSize is how many invoices are read at a time: as many as a provider
	// gives.
	PageSize = 100
	// CheckEvery is how long the newest page counts as just read.
	CheckEvery = time.Minute
	// Keep is how long an index is kept that nobody looks at.
	Keep = 30 * 24 * time.Hour

	// walkEvery is how often all pages are read again.
	walkEvery = 7 * 24 * time.Hour
	// chunkSize is how large a chunk gets before it is split, in bytes.
	chunkSize = 32 << 10
	// maxChunks bounds the chunks; 20,000 usual entries take about 130. maxRefs
	// bounds what the head says of them in bytes, which ids of any length are
	// part of: with maxPendingBytes it stays within a value's size.
	maxChunks = 300
	maxRefs   = 40 << 10
	// maxPending bounds the invoices that wait to be read anew, maxPendingBytes
	// their ids: with more, all pages are.
	maxPending      = 500
	maxPendingBytes = 20 << 10
	// maxDoubts bounds what one look at the list makes be read anew.
	maxDoubts = 50
	// doubtsAtOnce is how many of them are read before the page is shown.
	doubtsAtOnce = 3
	// leaseTime is how long a reader may go without writing before another one
	// goes on; longer than readTimeout.
	leaseTime   = time.Minute
	readTimeout = 20 * time.Second
	// A failed read is tried again after firstPause, then twice as long, up to
	// lastPause.
	firstPause, lastPause = 5 * time.Second, time.Hour
	// pause is how long a reader waits between two reads.
	pause = 300 * time.Millisecond
	// maxWait is longer than work is ever put off. What is due later was put off
	// by a clock that went backwards since.
	maxWait = lastPause + leaseTime

	// Bounds of one Work.
	maxCustomers = 32
	maxReads     = 10 // for one customer
	atOnce       = 4  // customers side by side
	scanPage     = 256
)

// Options configure an Index. All but Log and Sleep are required.
type Options struct {
	Store    store.Store
	Tenant   string
	Provider billing.Provider
	Now      func() time.Time
	// Process names this operating-system process.
	Process string
	// Wake is called where there is work to do. It must return at once.
	Wake func()
	// Sleep waits between two reads, or until ctx ends. Default: real time.
	Sleep func(ctx context.Context, d time.Duration)
	// Log gets reads that failed. Default: nothing.
	Log *zap.Logger
}

// Index keeps the indexes of a tenant's customers. It starts nothing by itself:
// the portal calls Work.
type Index struct {
	o     Options
	opens singleflight.Group

	mu   sync.Mutex
	from []byte // where the next look for work begins, or nil
}

// New checks o and makes an Index.
func New(o Options) (*Index, error) {
	if o.Store == nil || o.Tenant == "" || o.Provider == nil || o.Now == nil || o.Process == "" || o.Wake == nil {
		return nil, errors.New("invoices: Store, Tenant, Provider, Now, Process and Wake are required")
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Sleep == nil {
		o.Sleep = func(ctx context.Context, d time.Duration) {
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		}
	}
	return &Index{o: o}, nil
}

// headFormat changes when older records cannot be read any more: they are made
// anew then.
const headFormat = 1

// head is the record of a customer's index. Whatever writes a chunk writes the
// head too, so that two writers conflict.
type head struct {
	Format     int    `json:"format"`
	Generation string `json:"generation"` // of the store, when it was last checked
	// Seq counts events. A read is worth what Seq was when it began.
	Seq    uint64 `json:"seq"`
	Chunks []ref  `json:"chunks,omitempty"`
	Next   int    `json:"next"` // number of the next new chunk

	// Walk is set while pages are read one after another, next the one at
	// Cursor, to the end or until everything from Until on was read: what is
	// older is in the index already.
	Walk   bool   `json:"walk,omitempty"`
	Cursor string `json:"cursor,omitempty"`
	Until  int64  `json:"until,omitempty"`
	// Complete is set once every invoice is there, Full where there are more
	// than MaxEntries.
	Complete bool `json:"complete,omitempty"`
	Full     bool `json:"full,omitempty"`
	// IndexedTo is how far back nothing is missing, in Unix seconds.
	IndexedTo int64     `json:"indexed_to"`
	Walked    time.Time `json:"walked"`

	// Checked is when the newest page was read, for the account version Version.
	Checked time.Time `json:"checked"`
	Version uint64    `json:"version"`
	// Pending are invoices to be read anew, with the Seq of the reason.
	Pending map[string]uint64 `json:"pending,omitempty"`

	Used time.Time `json:"used"`
	// Due is when it is looked at next: the time in its work key.
	Due time.Time `json:"due"`
	// Stamp names the reader who has it until Due; "" where nobody has.
	Stamp    string `json:"stamp,omitempty"`
	Failures int    `json:"failures,omitempty"`
	// Turn counts reads that failed: what failed comes after all others.
	Turn uint32 `json:"turn,omitempty"`
}

// ref names a chunk and says what is in it.
type ref struct {
	N     int   `json:"n"`
	First place `json:"first"`
	Last  int64 `json:"last"` // Created of the last entry
	Count int   `json:"count"`
}

func (h *head) count() int {
	n := 0
	for _, r := range h.Chunks {
		n += r.Count
	}
	return n
}

func (h *head) newest() int64 {
	if len(h.Chunks) == 0 {
		return math.MinInt64
	}
	return h.Chunks[0].First.Created
}

func (h *head) oldest() int64 {
	if len(h.Chunks) == 0 {
		return 0
	}
	return h.Chunks[len(h.Chunks)-1].Last
}

func (h *head) busy() bool { return h.Walk || len(h.Pending) > 0 }

const (
	kind      = "invoices"
	chunkKind = "invoice-chunk"
)

func (x *Index) headKey(customer string) []byte { return store.Key(x.o.Tenant, kind, customer) }

func (x *Index) chunkKey(customer string, n int) []byte {
	return store.Key(x.o.Tenant, chunkKind, customer, fmt.Sprintf("%08d", n))
}

func (x *Index) workKey(due time.Time, customer string) []byte {
	return store.Key(kind, store.TimePart(due.UnixNano()), x.o.Tenant, customer)
}

// read returns the head, or nil where there is none.
func (x *Index) read(tx store.Tx, customer string) (*head, error) {
	value, err := tx.Get(x.headKey(customer))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var h head
	if err := json.Unmarshal(value, &h); err != nil || h.Format != headFormat {
		return nil, errDamaged
	}
	return &h, nil
}

// write puts the head, and its work entry where it is due at another time than
// it was (zero for never).
func (x *Index) write(tx store.Tx, customer string, h *head, was time.Time) error {
	h.Due = h.Due.UTC()
	if !h.Due.Equal(was) {
		if !was.IsZero() {
			if err := tx.Delete(x.workKey(was, customer)); err != nil {
				return err
			}
		}
		if err := tx.Put(x.workKey(h.Due, customer), []byte{}); err != nil {
			return err
		}
	}
	value, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("invoices: %w", err)
	}
	return tx.Put(x.headKey(customer), value)
}

// schedule sets when a head that nobody has is looked at next.
func (h *head) schedule(now time.Time) {
	switch {
	case h.Stamp != "" && h.Due.Before(now.Add(maxWait)):
	case h.busy() && h.Failures > 0 && h.Due.After(now) && h.Due.Before(now.Add(maxWait)):
	case h.busy():
		h.Stamp, h.Due = "", now
	default:
		h.Stamp, h.Due = "", h.Used.Add(Keep)
	}
}

// drop deletes an index.
func (x *Index) drop(tx store.Tx, customer string, due time.Time) error {
	if !due.IsZero() {
		if err := tx.Delete(x.workKey(due, customer)); err != nil {
			return err
		}
	}
	entries, err := tx.Scan(store.Key(x.o.Tenant, chunkKind, customer), nil, 2*maxChunks, false)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := tx.Delete(e.Key); err != nil {
			return err
		}
	}
	return tx.Delete(x.headKey(customer))
}

// forget drops an index that cannot be read. Its work entry, whose time is not
// known, goes when it is due.
func (x *Index) forget(ctx context.Context, customer string) error {
	x.o.Log.Warn("an index of invoices cannot be read; it is made anew", zap.String("customer", customer))
	return x.o.Store.Update(ctx, func(tx store.Tx) error { return x.drop(tx, customer, time.Time{}) })
}

// merge puts entries into the chunks that they belong to and writes those. The
// newer read of an invoice wins. h is changed, not written.
func (x *Index) merge(tx store.Tx, customer string, h *head, entries []Entry) error {
	entries = slices.Clone(entries)
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.place().compare(b.place()) })
	old := h.Chunks
	if len(old) == 0 && len(entries) > 0 {
		old = []ref{{N: h.Next}}
		h.Next++
	}
	var refs []ref
	for i, r := range old {
		var mine []Entry
		for len(entries) > 0 && (i == len(old)-1 || entries[0].place().compare(old[i+1].First) < 0) {
			mine, entries = append(mine, entries[0]), entries[1:]
		}
		if len(mine) == 0 {
			refs = append(refs, r)
			continue
		}
		list, err := x.chunk(tx, customer, r)
		if err != nil {
			return err
		}
		parts, values := pack(mergeLists(list, mine), i == len(old)-1)
		for k, part := range parts {
			n := r.N
			if k > 0 {
				n = h.Next
				h.Next++
			}
			if err := tx.Put(x.chunkKey(customer, n), values[k]); err != nil {
				return err
			}
			refs = append(refs, ref{N: n, First: part[0].place(), Last: part[len(part)-1].Created.Unix(), Count: len(part)})
		}
	}
	h.Chunks = refs
	return x.bound(tx, customer, h)
}

// bound drops the oldest chunks of an index that got too large.
func (x *Index) bound(tx store.Tx, customer string, h *head) error {
	for n := h.count(); n > MaxEntries || len(h.Chunks) > maxChunks || size(h.Chunks) > maxRefs; {
		last := h.Chunks[len(h.Chunks)-1]
		if err := tx.Delete(x.chunkKey(customer, last.N)); err != nil {
			return err
		}
		n -= last.Count
		h.Chunks = h.Chunks[:len(h.Chunks)-1]
		h.Complete, h.Full = false, true
		h.IndexedTo = max(h.IndexedTo, h.oldest())
	}
	return nil
}

// size is how many bytes a part of the head takes.
func size[T []ref | map[string]uint64](part T) int {
	b, _ := json.Marshal(part) // cannot fail on these types
	return len(b)
}

// chunk reads one chunk; nothing where it is new.
func (x *Index) chunk(tx store.Tx, customer string, r ref) ([]Entry, error) {
	if r.Count == 0 {
		return nil, nil
	}
	value, err := tx.Get(x.chunkKey(customer, r.N))
	if errors.Is(err, store.ErrNotFound) {
		return nil, errDamaged
	}
	if err != nil {
		return nil, err
	}
	list, err := decodeChunk(make([]Entry, 0, r.Count), value)
	if err == nil && len(list) != r.Count {
		err = errDamaged
	}
	return list, err
}

// mergeLists merges two lists in order.
func mergeLists(old, entries []Entry) []Entry {
	out := make([]Entry, 0, len(old)+len(entries))
	for _, e := range entries {
		for len(old) > 0 && old[0].place().compare(e.place()) < 0 {
			out, old = append(out, old[0]), old[1:]
		}
		if len(old) > 0 && old[0].place() == e.place() {
			if old[0].seen > e.seen {
				e = old[0]
			}
			old = old[1:]
		}
		if n := len(out); n > 0 && out[n-1].place() == e.place() { // twice on one page
			if out[n-1].seen <= e.seen {
				out[n-1] = e
			}
			continue
		}
		out = append(out, e)
	}
	return append(out, old...)
}

// pack encodes a list as one chunk, or as several where it is too large for
// one. The last chunk of an index grows at its end, so that its first parts are
// filled; others are cut into equal ones.
func pack(list []Entry, last bool) (parts [][]Entry, values [][]byte) {
	sizes, total := make([]int, len(list)), 0
	for i := range list {
		sizes[i] = len(appendEntry(nil, &list[i]))
		total += sizes[i]
	}
	limit := chunkSize - 1
	if n := total/limit + 1; !last && n > 1 {
		limit = total/n + 1
	}
	for len(list) > 0 {
		value, n := []byte{chunkFormat}, 0
		for n < len(list) && (n == 0 || len(value)+sizes[n] <= limit+1) {
			value = appendEntry(value, &list[n])
			n++
		}
		parts, values = append(parts, list[:n]), append(values, value)
		list, sizes = list[n:], sizes[n:]
	}
	return parts, values
}

// remove takes an entry out.
func (x *Index) remove(tx store.Tx, customer string, h *head, at place) error {
	for i, r := range h.Chunks {
		if i+1 < len(h.Chunks) && at.compare(h.Chunks[i+1].First) >= 0 {
			continue
		}
		list, err := x.chunk(tx, customer, r)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(e Entry) bool { return e.place() == at })
		if len(list) == 0 {
			h.Chunks = slices.Delete(h.Chunks, i, i+1)
			return tx.Delete(x.chunkKey(customer, r.N))
		}
		_, values := pack(list, true)
		h.Chunks[i] = ref{N: r.N, First: list[0].place(), Last: list[len(list)-1].Created.Unix(), Count: len(list)}
		return tx.Put(x.chunkKey(customer, r.N), values[0])
	}
	return nil
}

// Note makes an invoice be read anew, in the caller's transaction: an event
// said that it changed. A customer without an index has nothing to do.
func (x *Index) Note(tx store.Tx, customer, invoice string, now time.Time) error {
	h, err := x.read(tx, customer)
	if errors.Is(err, errDamaged) {
		return x.drop(tx, customer, time.Time{})
	}
	if err != nil || h == nil || invoice == "" || len(invoice) > maxIDBytes {
		return err
	}
	was := h.Due
	h.Seq++
	h.doubt(invoice)
	h.schedule(now)
	return x.write(tx, customer, h, was)
}

func (h *head) doubt(invoice string) {
	if h.Pending == nil {
		h.Pending = map[string]uint64{}
	}
	h.Pending[invoice] = h.Seq
	if len(h.Pending) > maxPending || size(h.Pending) > maxPendingBytes {
		h.Pending, h.Walk, h.Cursor, h.Until = nil, true, "", 0
	}
}

// settled takes the invoices of a read that began at seen off the list of those
// to be read anew.
func (h *head) settled(entries []Entry, seen uint64) {
	for _, e := range entries {
		if at, ok := h.Pending[e.ID]; ok && at <= seen {
			delete(h.Pending, e.ID)
		}
	}
}

// Open prepares a customer's index for a look at the list: where the newest
// page was not read in the last minute, or for another account version, it is
// read, and the reading of all others begins where it has to. checked reports
// whether it was read now. An error is the provider's or the store's; what the
// index has can be read all the same.
func (x *Index) Open(ctx context.Context, customer string, version uint64) (checked bool, err error) {
	return x.open(ctx, customer, version, CheckEvery)
}

// Refresh is Open where the newest page is older than age.
func (x *Index) Refresh(ctx context.Context, customer string, version uint64, age time.Duration) error {
	_, err := x.open(ctx, customer, version, age)
	return err
}

func (x *Index) open(ctx context.Context, customer string, version uint64, age time.Duration) (bool, error) {
	h, generation, err := x.look(ctx, customer)
	if errors.Is(err, errDamaged) {
		h, err = nil, x.forget(ctx, customer)
	}
	if err != nil {
		return false, err
	}
	now := x.o.Now()
	if h != nil && h.Version == version && h.Generation == generation {
		if since := now.Sub(h.Checked); since >= 0 && since < age {
			return false, nil
		}
	}
	var seen uint64
	if h != nil {
		seen = h.Seq
	}
	key := customer + "\x00" + strconv.FormatUint(version, 10) + "\x00" + strconv.FormatUint(seen, 10)
	done := x.opens.DoChan(key, func() (_ any, err error) {
		// The read has a goroutine of its own: nothing else stops a panic here from
		// ending the process.
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("invoices: panic while reading invoices: %v", r)
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout+10*time.Second)
		defer cancel()
		return nil, x.check(ctx, customer, version, seen, now, generation)
	})
	select {
	case r := <-done:
		return r.Err == nil, r.Err
	case <-ctx.Done():
		return false, &billing.Error{Fault: billing.Unavailable, Err: ctx.Err()}
	}
}

// look reads the head and the store's generation.
func (x *Index) look(ctx context.Context, customer string) (h *head, generation string, err error) {
	err = x.o.Store.View(ctx, func(tx store.Tx) (err error) {
		h = nil
		g, err := store.ReadGuard(tx)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		generation = g.Generation
		h, err = x.read(tx, customer)
		return err
	})
	return h, generation, err
}

// check reads the newest page and takes it in.
func (x *Index) check(ctx context.Context, customer string, version, seen uint64, now time.Time, generation string) error {
	page, entries, err := x.page(ctx, customer, "", seen)
	if err != nil {
		return err
	}
	busy, newest, begun := false, int64(0), false
	err = inParts(entries, true, func(part []Entry, last bool) error {
		first := !begun
		begun = true
		return x.o.Store.Update(ctx, func(tx store.Tx) error {
			h, err := x.read(tx, customer)
			if err != nil {
				return err
			}
			fresh := h == nil
			if fresh {
				h = &head{Format: headFormat, Generation: generation, IndexedTo: math.MaxInt64}
			}
			was := h.Due
			if first { // also where it was too much at once: then nothing was written
				newest = h.newest()
			}
			if err := x.merge(tx, customer, h, part); err != nil {
				return err
			}
			h.settled(part, seen)
			if last {
				h.checked(page, entries, newest, now, generation)
				h.Failures = 0
				h.Checked, h.Version, h.Generation = now, version, generation
			}
			h.Used = now
			h.schedule(now)
			busy = h.busy()
			return x.write(tx, customer, h, was)
		})
	})
	if err != nil {
		return fmt.Errorf("invoices: taking the newest in: %w", err)
	}
	if busy {
		x.o.Wake()
	}
	return nil
}

// checked decides what the newest page says about all others. newest is the
// newest entry before it.
func (h *head) checked(page billing.InvoicePage, entries []Entry, newest int64, now time.Time, generation string) {
	oldest := int64(math.MaxInt64)
	for _, e := range entries {
		oldest = min(oldest, e.Created.Unix())
	}
	begin := func(until int64) {
		h.Walk, h.Cursor, h.Until = true, page.Older, until
	}
	switch {
	case page.Older == "":
		h.finish(now)
	case h.Generation != generation:
		// Events were forgotten: what was read before is worth nothing, whatever
		// was going on then.
		if newest < oldest {
			h.Complete, h.IndexedTo = false, oldest
		}
		begin(0)
	case newest < oldest && (h.Complete || h.Full) && !h.Walk:
		// Between the two others may be: down to what is there.
		h.Complete, h.IndexedTo = false, oldest
		begin(newest)
	case newest < oldest:
		h.IndexedTo = oldest
		h.Complete = false
		begin(h.Until)
	case h.Walk:
	case !h.Complete && !h.Full, now.Sub(h.Walked) > walkEvery:
		begin(0)
	}
}

// finish is called when everything was read.
func (h *head) finish(now time.Time) {
	h.Walk, h.Cursor, h.Until = false, "", 0
	h.Complete, h.Full = true, false
	h.IndexedTo, h.Walked = h.oldest(), now
}

// page reads a page of the provider's.
func (x *Index) page(ctx context.Context, customer, cursor string, seen uint64) (billing.InvoicePage, []Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	page, err := x.o.Provider.Invoices(ctx, customer, cursor, PageSize)
	if err != nil {
		return page, nil, err
	}
	if page.Older != "" && page.Older == cursor {
		return page, nil, errors.New("invoices: the provider's list goes round in a circle")
	}
	entries := make([]Entry, 0, len(page.Invoices))
	for i := range page.Invoices {
		e, err := entryOf(&page.Invoices[i], seen)
		if err != nil {
			return page, nil, err
		}
		entries = append(entries, e)
	}
	return page, entries, nil
}

// inParts calls put with all entries, or, where they lie in so many chunks that
// a store does not take them at once, with one part after another. Each part
// alone leaves an index that is right.
func inParts(entries []Entry, last bool, put func(part []Entry, last bool) error) error {
	err := put(entries, last)
	if !errors.Is(err, store.ErrTooLarge) || len(entries) < 2 {
		return err
	}
	mid := len(entries) / 2
	if err := inParts(entries[:mid], false, put); err != nil {
		return err
	}
	return inParts(entries[mid:], last, put)
}

// Doubt compares the index with what the account says is owed and makes the
// invoices that differ be read anew; the first few at once, so that what was
// just paid is seen as paid. v is what View returned; changed reports whether
// it is to be read again.
func (x *Index) Doubt(ctx context.Context, customer string, v *View, acct *billing.Account) (changed bool, err error) {
	if acct.Missing(billing.SectionDebts) {
		return false, nil
	}
	owed := map[string]*Entry{}
	for i := range v.Entries {
		if e := &v.Entries[i]; e.debt() {
			owed[e.ID] = e
		}
	}
	var doubts []string
	for i := range acct.Debts {
		d := &acct.Debts[i]
		e, ok := owed[d.ID]
		delete(owed, d.ID)
		if (!ok || e.Remaining != d.AmountRemaining.Amount || e.Processing != d.Processing) && d.ID != "" && len(d.ID) <= maxIDBytes {
			doubts = append(doubts, d.ID)
		}
	}
	if len(acct.Debts) < billing.MaxDebts {
		doubts = append(doubts, slices.Sorted(maps.Keys(owed))...)
	}
	doubts = doubts[:min(len(doubts), maxDoubts)]
	if len(doubts) == 0 {
		return false, nil
	}
	now := x.o.Now()
	err = x.o.Store.Update(ctx, func(tx store.Tx) error {
		h, err := x.read(tx, customer)
		if err != nil || h == nil {
			return err
		}
		was := h.Due
		for _, id := range doubts {
			if _, ok := h.Pending[id]; !ok {
				h.doubt(id)
			}
		}
		h.schedule(now)
		return x.write(tx, customer, h, was)
	})
	if err != nil {
		return false, fmt.Errorf("invoices: noting doubts: %w", err)
	}
	x.o.Wake()
	return true, x.work(ctx, customer, nil, min(len(doubts), doubtsAtOnce), func(h *head) bool { return len(h.Pending) > 0 })
}

// Work reads what has to be read, and drops what nobody looked at for long. It
// does a bounded amount of work, so that one call leaves over what the next one
// does; more reports whether there may be some. An error is the store's: reads
// that failed are tried again later and are no error.
func (x *Index) Work(ctx context.Context) (more bool, err error) {
	jobs, err := x.due(ctx)
	if err != nil {
		return false, fmt.Errorf("invoices: looking for work: %w", err)
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	errs := make([]error, len(jobs))
	for i, j := range jobs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					errs[i] = fmt.Errorf("invoices: panic while reading invoices: %v", r)
				}
				<-slots
			}()
			errs[i] = x.work(ctx, j.customer, j.key, maxReads, (*head).busy)
		})
	}
	wg.Wait()
	return len(jobs) > 0, errors.Join(errs...)
}

// job is a customer with work, and the key that says so.
type job struct {
	customer string
	key      []byte
}

// due finds customers with work. The work entries of all tenants stand in one
// order; after a look that went through too many of others', the next one goes
// on where it ended.
func (x *Index) due(ctx context.Context) (found []job, err error) {
	const maxPages = 40
	x.mu.Lock()
	from := x.from
	x.mu.Unlock()
	last := store.TimePart(x.o.Now().UnixNano())
	var next []byte
	err = x.o.Store.View(ctx, func(tx store.Tx) error {
		found, next = nil, nil
		at := from
		for range maxPages {
			entries, err := tx.Scan(store.Key(kind), at, scanPage, false)
			if err != nil {
				return err
			}
			for _, e := range entries {
				parts, ok := store.Parts(e.Key)
				if !ok || len(parts) != 4 {
					return errors.New("malformed key under invoices")
				}
				if parts[1] > last {
					return nil
				}
				at = append(bytes.Clone(e.Key), 0)
				if parts[2] == x.o.Tenant {
					if found = append(found, job{parts[3], e.Key}); len(found) == maxCustomers {
						return nil
					}
				}
			}
			if len(entries) < scanPage {
				return nil
			}
		}
		next = at
		return nil
	})
	if err == nil {
		x.mu.Lock()
		x.from = next
		x.mu.Unlock()
	}
	return found, err
}

// stamps counts the leases of this process, over all indexes in it.
var stamps atomic.Uint64

// errLost says that somebody else reads for the customer.
var errLost = errors.New("invoices: somebody else reads this customer's invoices")

// work takes a customer's index and reads for it at most so often, as long as
// todo says that there is something to do. key is the work key that led here,
// or nil.
func (x *Index) work(ctx context.Context, customer string, key []byte, reads int, todo func(*head) bool) error {
	stamp := x.o.Process + "." + strconv.FormatUint(stamps.Add(1), 10)
	h, err := x.take(ctx, customer, key, stamp)
	if errors.Is(err, errDamaged) {
		return x.forget(ctx, customer)
	}
	for n := 1; err == nil && h != nil; n++ {
		if !todo(h) || n > reads || ctx.Err() != nil {
			_, err = x.put(context.WithoutCancel(ctx), customer, stamp, nil, func(_ store.Tx, h *head) error {
				h.Stamp = ""
				return nil
			})
			break
		}
		if n > 1 {
			x.o.Sleep(ctx, pause)
		}
		h, err = x.step(ctx, customer, stamp, h)
	}
	switch {
	case errors.Is(err, errLost):
		return nil
	case errors.Is(err, errDamaged):
		return x.forget(ctx, customer)
	}
	return err
}

// take leases an index. No head where there is nothing to do.
func (x *Index) take(ctx context.Context, customer string, key []byte, stamp string) (h *head, err error) {
	now := x.o.Now()
	err = x.o.Store.Update(ctx, func(tx store.Tx) (err error) {
		if h, err = x.read(tx, customer); err != nil {
			return err
		}
		if key != nil && (h == nil || !bytes.Equal(key, x.workKey(h.Due, customer))) {
			// Of an index that was dropped because it could not be read.
			if err := tx.Delete(key); err != nil {
				return err
			}
		}
		if h == nil {
			return nil
		}
		was := h.Due
		switch {
		case !h.busy() && !now.Before(h.Used.Add(Keep)):
			h = nil
			return x.drop(tx, customer, was)
		case !h.busy():
			h.Stamp = ""
			h.schedule(now)
			err := x.write(tx, customer, h, was)
			h = nil
			return err
		case h.Due.After(now) && h.Due.Before(now.Add(maxWait)):
			return errLost
		}
		h.Stamp, h.Due = stamp, now.Add(leaseTime)
		return x.write(tx, customer, h, was)
	})
	// Where the reply was lost the lease may stand; it runs out by itself.
	return h, err
}

// step makes one read and takes its answer in. The head that it returns is nil
// where the read failed.
func (x *Index) step(ctx context.Context, customer, stamp string, h *head) (*head, error) {
	ids := slices.Sorted(maps.Keys(h.Pending))
	turns := len(ids)
	if h.Walk {
		turns++
	}
	if at := int(h.Turn % uint32(max(turns, 1))); at < len(ids) {
		return x.readOne(ctx, customer, stamp, h, ids[at])
	}
	page, entries, err := x.page(ctx, customer, h.Cursor, h.Seq)
	if err != nil {
		return nil, x.failed(ctx, customer, stamp, err, h.Cursor)
	}
	now, cursor, seen := x.o.Now(), h.Cursor, h.Seq
	var next *head
	err = inParts(entries, true, func(part []Entry, last bool) (err error) {
		next, err = x.put(ctx, customer, stamp, part, func(_ store.Tx, h *head) error {
			h.settled(part, seen)
			h.Failures = 0
			if last && h.Walk && h.Cursor == cursor {
				h.walked(page, entries, now)
			}
			return nil
		})
		return err
	})
	return next, err
}

// walked notes that the page at the cursor was taken in.
func (h *head) walked(page billing.InvoicePage, entries []Entry, now time.Time) {
	oldest := int64(math.MaxInt64)
	for _, e := range entries {
		oldest = min(oldest, e.Created.Unix())
	}
	switch {
	case page.Older == "":
		h.finish(now)
	case h.Until != 0 && oldest < h.Until:
		full := h.Full
		h.finish(now)
		h.Complete, h.Full = !full, full
	case !h.Complete && oldest <= h.oldest() && h.count() > MaxEntries-PageSize:
		h.finish(now)
		h.Complete, h.Full = false, true
	default:
		h.Cursor = page.Older
		if !h.Complete {
			h.IndexedTo = min(h.IndexedTo, oldest)
		}
	}
}

// readOne reads one invoice anew.
func (x *Index) readOne(ctx context.Context, customer, stamp string, h *head, id string) (*head, error) {
	readCtx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	v, err := x.o.Provider.Invoice(readCtx, customer, id)
	var entries []Entry
	var gone *place
	switch {
	case billing.FaultOf(err) == billing.NotFound:
		if gone, err = x.placeOf(ctx, customer, id); err != nil {
			return nil, err
		}
	case err == nil && v.ID != id:
		return nil, x.failed(ctx, customer, stamp, errors.New("invoices: the provider gave another invoice than was asked for"), "")
	case err == nil:
		e, err := entryOf(&v.Invoice, h.Seq)
		if err != nil {
			return nil, x.failed(ctx, customer, stamp, err, "")
		}
		entries = []Entry{e}
	default:
		return nil, x.failed(ctx, customer, stamp, err, "")
	}
	seen := h.Seq
	return x.put(ctx, customer, stamp, entries, func(tx store.Tx, h *head) error {
		h.Failures = 0
		if at, ok := h.Pending[id]; ok && at <= seen {
			delete(h.Pending, id)
		}
		if gone != nil {
			return x.remove(tx, customer, h, *gone)
		}
		return nil
	})
}

// placeOf finds an entry, nil where there is none.
func (x *Index) placeOf(ctx context.Context, customer, id string) (*place, error) {
	v, err := x.View(ctx, customer)
	if err != nil || v == nil {
		return nil, err
	}
	for i := range v.Entries {
		if v.Entries[i].ID == id {
			at := v.Entries[i].place()
			return &at, nil
		}
	}
	return nil, nil
}

// put takes entries in for the reader who has the index, and renews the lease.
func (x *Index) put(ctx context.Context, customer, stamp string, entries []Entry, change func(store.Tx, *head) error) (*head, error) {
	now := x.o.Now()
	var h *head
	err := x.o.Store.Update(ctx, func(tx store.Tx) (err error) {
		h, err = x.read(tx, customer)
		if err == nil && (h == nil || h.Stamp != stamp) {
			err = errLost
		}
		if err != nil {
			return err
		}
		was := h.Due
		if err := x.merge(tx, customer, h, entries); err != nil {
			return err
		}
		if err := change(tx, h); err != nil {
			return err
		}
		if h.Stamp != "" {
			h.Due = now.Add(leaseTime)
		} else if h.Failures == 0 {
			h.schedule(now)
		}
		return x.write(tx, customer, h, was)
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// failed gives the index back after a read that failed, to be tried again
// later. A cursor that the provider no longer knows begins anew; a customer
// that is gone needs no index.
func (x *Index) failed(ctx context.Context, customer, stamp string, why error, cursor string) error {
	if ctx.Err() != nil {
		ctx = context.WithoutCancel(ctx)
	} else {
		x.o.Log.Warn("could not read invoices for the index; it is tried again", zap.String("customer", customer), zap.Error(why))
	}
	now := x.o.Now()
	_, err := x.put(ctx, customer, stamp, nil, func(_ store.Tx, h *head) error {
		h.Stamp = ""
		h.Failures++
		h.Turn++
		if cursor != "" && h.Cursor == cursor && billing.FaultOf(why) == billing.NotFound {
			h.Cursor = ""
		}
		h.Due = now.Add(min(firstPause<<min(h.Failures-1, 20), lastPause))
		return nil
	})
	return err
}

// View is a customer's index as it was at one moment.
type View struct {
	// Entries are newest first.
	Entries []Entry
	// Complete is true where every invoice is there.
	Complete bool
	// Full is true where there are more than MaxEntries, so that it will never
	// be complete.
	Full bool
	// IndexedTo is how far back nothing is missing.
	IndexedTo time.Time
	// AsOf is when the newest page was read, by the portal's clock.
	AsOf time.Time
	// Reading is true while older pages are being read.
	Reading bool
}

// View reads a customer's index; nil where there is none.
func (x *Index) View(ctx context.Context, customer string) (*View, error) {
	var h *head
	var chunks []store.Entry
	err := x.o.Store.View(ctx, func(tx store.Tx) (err error) {
		chunks = nil
		if h, err = x.read(tx, customer); err != nil || h == nil {
			return err
		}
		chunks, err = tx.Scan(store.Key(x.o.Tenant, chunkKind, customer), nil, 2*maxChunks, false)
		return err
	})
	var v *View
	if err == nil && h != nil {
		v, err = x.view(customer, h, chunks)
	}
	if errors.Is(err, errDamaged) {
		return nil, x.forget(ctx, customer)
	}
	if err != nil {
		return nil, fmt.Errorf("invoices: reading an index: %w", err)
	}
	return v, nil
}

func (x *Index) view(customer string, h *head, chunks []store.Entry) (*View, error) {
	values := make(map[string][]byte, len(chunks))
	for _, c := range chunks {
		values[string(c.Key)] = c.Value
	}
	v := &View{Complete: h.Complete, Full: h.Full, AsOf: h.Checked, Reading: h.Walk, Entries: make([]Entry, 0, h.count())}
	if h.IndexedTo != math.MaxInt64 {
		v.IndexedTo = time.Unix(h.IndexedTo, 0).UTC()
	}
	var err error
	for _, r := range h.Chunks {
		before := len(v.Entries)
		if v.Entries, err = decodeChunk(v.Entries, values[string(x.chunkKey(customer, r.N))]); err != nil {
			return nil, err
		}
		if len(v.Entries)-before != r.Count {
			return nil, errDamaged
		}
	}
	return v, nil
}

// Find returns an entry of the index.
func (v *View) Find(id string) (Entry, bool) {
	i := slices.IndexFunc(v.Entries, func(e Entry) bool { return e.ID == id })
	if i < 0 {
		return Entry{}, false
	}
	return v.Entries[i], true
}

// Sum is an amount in one currency.
type Sum = billing.Money

// addTo adds to the sum of a currency.
func addTo(sums []Sum, currency string, n int64) []Sum {
	i := slices.IndexFunc(sums, func(s Sum) bool { return s.Currency == currency })
	if i < 0 {
		return append(sums, Sum{Amount: n, Currency: currency})
	}
	sums[i].Amount += n
	return sums
}

func sorted(sums []Sum) []Sum {
	slices.SortFunc(sums, func(a, b Sum) int { return cmp.Compare(a.Currency, b.Currency) })
	return sums
}
