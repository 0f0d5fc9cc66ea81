package simulator

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// disk is what is durable: every value that a key ever had, with the commit
// that wrote it, so that a transaction sees the state it began with and a
// backup is the number of a commit.
type disk struct {
	seq   uint64
	cells map[string][]version
	keys  []string // sorted, of all cells
}

type version struct {
	seq   uint64
	value []byte // nil: deleted
}

func (d *disk) get(key string, at uint64) []byte {
	cell := d.cells[key]
	for _, v := range slices.Backward(cell) {
		if v.seq <= at {
			return v.value
		}
	}
	return nil
}

// changed is the last commit that wrote key.
func (d *disk) changed(key string) uint64 {
	if cell := d.cells[key]; len(cell) > 0 {
		return cell[len(cell)-1].seq
	}
	return 0
}

func (d *disk) put(key string, value []byte) {
	if _, ok := d.cells[key]; !ok {
		n := sort.SearchStrings(d.keys, key)
		d.keys = slices.Insert(d.keys, n, key)
	}
	d.cells[key] = append(d.cells[key], version{d.seq, value})
}

// restore is the disk as it was after commit seq.
func (d *disk) restore(seq uint64) *disk {
	r := &disk{seq: d.seq, cells: map[string][]version{}}
	for _, k := range d.keys {
		if v := d.get(k, seq); v != nil {
			r.cells[k] = []version{{seq, v}}
			r.keys = append(r.keys, k)
		}
	}
	return r
}

// under calls fn with the live entries whose key begins with prefix.
func (d *disk) under(prefix string, fn func(key string, value []byte)) {
	for n := sort.SearchStrings(d.keys, prefix); n < len(d.keys) && strings.HasPrefix(d.keys[n], prefix); n++ {
		if v := d.get(d.keys[n], d.seq); v != nil {
			fn(d.keys[n], v)
		}
	}
}

// txn is a transaction on a snapshot.
type txn struct {
	d        *disk
	at       uint64
	readOnly bool
	read     map[string]bool
	writes   map[string][]byte
	order    []string
}

func (d *disk) begin(readOnly bool) *txn {
	t := &txn{d: d, at: d.seq, readOnly: readOnly}
	if !readOnly {
		t.read, t.writes = map[string]bool{}, map[string][]byte{}
	}
	return t
}

func (t *txn) look(key string) []byte {
	if v, ok := t.writes[key]; ok {
		return v
	}
	return t.d.get(key, t.at)
}

func (t *txn) Get(key []byte) ([]byte, error) {
	k := string(key)
	if !t.readOnly {
		t.read[k] = true
	}
	v := t.look(k)
	if v == nil {
		return nil, store.ErrNotFound
	}
	return bytes.Clone(v), nil
}

func (t *txn) write(key, value []byte) error {
	if t.readOnly {
		return store.ErrReadOnly
	}
	k := string(key)
	if _, ok := t.writes[k]; !ok {
		t.order = append(t.order, k)
	}
	t.writes[k] = value
	return nil
}

func (t *txn) Put(key, value []byte) error {
	if len(value) > store.MaxValue || len(key) > store.MaxKey {
		return store.ErrTooLarge
	}
	return t.write(key, append(make([]byte, 0, len(value)), value...))
}

func (t *txn) Delete(key []byte) error { return t.write(key, nil) }

func (t *txn) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	if limit <= 0 {
		limit = 1000
	}
	p := string(prefix)
	lo := sort.SearchStrings(t.d.keys, p)
	keys := t.d.keys[lo:]
	if n := slices.IndexFunc(keys, func(k string) bool { return !strings.HasPrefix(k, p) }); n >= 0 {
		keys = keys[:n]
	}
	var own []string
	for _, k := range t.order {
		if strings.HasPrefix(k, p) {
			if _, ok := t.d.cells[k]; !ok {
				own = append(own, k)
			}
		}
	}
	if len(own) > 0 {
		keys = append(slices.Clone(keys), own...)
		slices.Sort(keys)
	}
	var out []store.Entry
	for n := range keys {
		k := keys[n]
		if reverse {
			k = keys[len(keys)-1-n]
		}
		if from != nil && (!reverse && k < string(from) || reverse && k > string(from)) {
			continue
		}
		v := t.look(k)
		if v == nil {
			continue
		}
		if len(out) == limit {
			break
		}
		out = append(out, store.Entry{Key: []byte(k), Value: bytes.Clone(v)})
	}
	return out, nil
}

// conflicts reports whether another commit changed what t read.
func (t *txn) conflicts() bool {
	for k := range t.read { // whichever comes first: the answer is the same
		if t.d.changed(k) > t.at {
			return true
		}
	}
	return false
}

// shop is the store as one portal (a config in a process) sees it.
type shop struct {
	w      *world
	portal *portal
}

// enter is the way into an operation: other tasks run, the process may be
// killed, the store may be out of reach.
func (s *shop) enter(ctx context.Context, op string) error {
	w := s.w
	if s.portal.proc.dead || w.over {
		return store.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.boundary("before a " + op)
	d := w.between(0, 10*time.Millisecond)
	if w.faulty(w.plan.stalls) {
		w.count("fault: a store operation stalls")
		d = w.between(time.Second, 15*time.Minute)
	}
	w.sleep(d)
	if s.portal.proc.dead || w.over {
		return store.ErrClosed
	}
	if w.storeDown > w.now || w.faulty(w.plan.store) {
		w.count("fault: store unavailable, " + op)
		return store.ErrUnavailable
	}
	return nil
}

func (s *shop) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.enter(ctx, "read"); err != nil {
		return err
	}
	return fn(s.w.disk.begin(true))
}

func (s *shop) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	if err := s.enter(ctx, "read"); err != nil {
		return nil, err
	}
	values := make([][]byte, len(keys))
	for n, k := range keys {
		values[n] = bytes.Clone(s.w.disk.get(string(k), s.w.disk.seq))
	}
	return values, nil
}

func (s *shop) Update(ctx context.Context, fn func(store.Tx) error) error {
	w := s.w
	if err := s.enter(ctx, "commit"); err != nil {
		return err
	}
	s.backwards()
	for try := 0; ; try++ {
		t := w.disk.begin(false)
		if err := fn(t); err != nil {
			return err
		}
		if try == 0 && w.chance(0.1) {
			w.count("fault: a closure runs again")
			continue // closures are pure: what the first run did counts for nothing
		}
		if try < 5 && w.chance(0.5) && !w.sleep(w.between(0, 20*time.Millisecond)) {
			return store.ErrClosed
		}
		if t.d != w.disk || t.conflicts() {
			w.count("store conflict")
			continue
		}
		if len(t.order) == 0 {
			return nil
		}
		if w.faulty(w.plan.unknown) {
			return s.unknown(t)
		}
		w.apply(t, s.portal)
		w.boundary("after a commit")
		if w.gone() {
			return store.ErrClosed // nobody hears of it
		}
		return nil
	}
}

// unknown loses the reply of a commit: it is applied, or not, or a while later.
func (s *shop) unknown(t *txn) error {
	w := s.w
	switch w.rng.IntN(3) {
	case 0:
		w.count("fault: commit's reply lost, not applied")
	case 1:
		w.count("fault: commit's reply lost, applied")
		w.apply(t, s.portal)
		w.boundary("after a commit")
	case 2:
		w.count("fault: commit's reply lost, applied later")
		w.spawn("late commit", nil, w.between(0, 8*time.Second), func() {
			if !w.over && t.d == w.disk && !t.conflicts() {
				w.apply(t, s.portal)
			}
		})
	}
	return store.ErrUnknown
}

// apply commits.
func (w *world) apply(t *txn, by *portal) {
	d := t.d
	d.seq++
	for _, k := range t.order {
		v := t.writes[k]
		d.put(k, v)
	}
	w.count("commits")
	w.committed(t, by)
}

// backwards is what the store of one process does, and Badger with it: where
// the clock went backwards it begins a new generation, because marks of used
// links may have been swept meanwhile.
func (s *shop) backwards() {
	w := s.w
	if !w.plan.exclusive {
		return
	}
	now := s.portal.proc.node.clock()
	if now.Before(w.highWater.Add(-store.GuardSkew)) {
		w.newGeneration(now, "the wall clock went backwards")
		w.highWater = now
	}
	if now.After(w.highWater) {
		w.highWater = now
	}
}

// newGeneration begins a new generation of the store.
func (w *world) newGeneration(now time.Time, reason string) {
	w.direct(func(tx store.Tx) error {
		g, err := store.ReadGuard(tx)
		if err != nil {
			return err
		}
		if g, err = g.Next(w.ids, now, reason); err != nil {
			return err
		}
		return store.WriteGuard(tx, g)
	})
	w.count("guard: new generation")
}

// direct writes to the disk as the store itself does.
func (w *world) direct(fn func(store.Tx) error) {
	t := w.disk.begin(false)
	if err := fn(t); err != nil {
		w.broken("SIM", "writing the store's own record: %v", err)
		return
	}
	w.disk.seq++
	for _, k := range t.order {
		w.disk.put(k, t.writes[k])
	}
}

// itself is the store for what belongs to the store alone: no faults.
type itself struct{ w *world }

func (s itself) Update(_ context.Context, fn func(store.Tx) error) error {
	s.w.direct(fn)
	return nil
}

func (s itself) View(_ context.Context, fn func(store.Tx) error) error {
	return fn(s.w.disk.begin(true))
}
func (s itself) GetAll(context.Context, ...[]byte) ([][]byte, error) { panic("not asked for") }

func (w *world) guard() (g store.Guard) {
	if v := w.disk.get(string(store.GuardKey()), w.disk.seq); v != nil {
		if err := json.Unmarshal(v, &g); err != nil {
			w.broken("SIM", "the guard: %v", err)
		}
	}
	return g
}
