package badger

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	bdb "github.com/dgraph-io/badger/v4"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	// defaultLimit is how many entries a Scan without a limit returns.
	defaultLimit = 1000

	// entryOverhead is what Badger counts for an entry besides key and value.
	entryOverhead = 12

	// batchReserve keeps room in every batch for Badger's own end record and
	// for a new guard.
	batchReserve = 2 << 10
)

// internalPrefix is what Badger keeps for itself.
var internalPrefix = []byte("!badger!")

// overlay is writes on top of a snapshot: a nil value is a deletion.
type overlay map[string][]byte

func entrySize(key string, value []byte) int64 {
	n := len(key) + entryOverhead
	if value != nil {
		n += len(value) + store.SealOverhead
	}
	return int64(n)
}

// batch is the updates that are committed together.
type batch struct {
	snap   *bdb.Txn // what is committed
	writes overlay
	size   int64
	led    bool // somebody will commit it
	done   chan struct{}
	err    error // once done is closed

	maxSize  int64
	maxCount int
}

// fits reports whether Badger would take the batch with more merged into it.
// It must be known before anything is handed over: Badger refuses the entry
// that is too many and commits the ones before it.
func (b *batch) fits(more overlay) bool {
	size, count := b.size, len(b.writes)
	for k, v := range more {
		size += entrySize(k, v)
		if old, ok := b.writes[k]; ok {
			size -= entrySize(k, old)
		} else {
			count++
		}
	}
	return size <= b.maxSize && count <= b.maxCount
}

func (b *batch) merge(more overlay) {
	for k, v := range more {
		if old, ok := b.writes[k]; ok {
			b.size -= entrySize(k, old)
		}
		b.writes[k] = v
		b.size += entrySize(k, v)
	}
}

// snapshot reads what is committed.
type snapshot struct {
	txn     *bdb.Txn
	sealer  *store.Sealer
	suspect func() // called when something cannot be read
}

// unreadable is deferred by what reads. Badger panics over some bytes that are
// not what it wrote.
func (s snapshot) unreadable(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("store: reading: badger: %v", r)
	}
	if *err != nil && !errors.Is(*err, store.ErrNotFound) {
		s.suspect()
	}
}

func (s snapshot) get(key []byte) (value []byte, err error) {
	if len(key) == 0 || len(key) > store.MaxKey {
		return nil, store.ErrNotFound
	}
	defer s.unreadable(&err)
	item, err := s.txn.Get(key)
	if errors.Is(err, bdb.ErrKeyNotFound) {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("store: reading: %w", err)
	}
	return s.open(item, key)
}

func (s snapshot) open(item *bdb.Item, key []byte) ([]byte, error) {
	var value []byte
	err := item.Value(func(sealed []byte) (err error) {
		value, err = s.sealer.Open(key, sealed)
		return err
	})
	if err != nil && !errors.Is(err, store.ErrSealed) {
		return nil, fmt.Errorf("store: reading: %w", err)
	}
	return value, err
}

// scan merges the snapshot with the layers above it; the last layer counts.
func (s snapshot) scan(prefix, from []byte, limit int, reverse bool, layers ...overlay) (entries []store.Entry, err error) {
	defer s.unreadable(&err)
	if limit <= 0 {
		limit = defaultLimit
	}
	above := changed(prefix, from, reverse, layers)

	it := s.txn.NewIterator(bdb.IteratorOptions{Reverse: reverse, Prefix: forwardOnly(prefix, reverse)})
	defer it.Close()
	seek(it, prefix, from, reverse)

	for len(entries) < limit {
		below := it.ValidForPrefix(prefix)
		if len(above) == 0 && !below {
			break
		}
		order := -1 // of the key above to the key below
		switch {
		case len(above) == 0:
			order = 1
		case below:
			order = strings.Compare(above[0], string(it.Item().Key()))
			if reverse {
				order = -order
			}
		}
		if order > 0 {
			key := it.Item().KeyCopy(nil)
			value, err := s.open(it.Item(), key)
			if err != nil {
				return nil, err
			}
			entries = append(entries, store.Entry{Key: key, Value: value})
			it.Next()
			continue
		}
		if value := lookup(above[0], layers); value != nil {
			entries = append(entries, store.Entry{Key: []byte(above[0]), Value: bytes.Clone(value)})
		}
		above = above[1:]
		if order == 0 {
			it.Next()
		}
	}
	return entries, nil
}

// changed returns the keys in layers that a scan meets, in its order.
func changed(prefix, from []byte, reverse bool, layers []overlay) []string {
	var keys []string
	for _, l := range layers {
		for k := range l {
			if !strings.HasPrefix(k, string(prefix)) {
				continue
			}
			if from != nil && (!reverse && k < string(from) || reverse && k > string(from)) {
				continue
			}
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	if reverse {
		slices.Reverse(keys)
	}
	return keys
}

func lookup(key string, layers []overlay) []byte {
	for _, l := range slices.Backward(layers) {
		if v, ok := l[key]; ok {
			return v
		}
	}
	return nil
}

// forwardOnly is the prefix option of an iterator: it lets Badger skip tables,
// but in reverse it would begin at the wrong end.
func forwardOnly(prefix []byte, reverse bool) []byte {
	if reverse {
		return nil
	}
	return prefix
}

// seek moves it to the first key of a scan.
func seek(it *bdb.Iterator, prefix, from []byte, reverse bool) {
	if !reverse {
		if bytes.Compare(from, prefix) > 0 {
			it.Seek(from)
		} else {
			it.Seek(prefix)
		}
		return
	}
	end := store.Successor(prefix)
	if from != nil && (end == nil || bytes.Compare(from, end) < 0) {
		// Nothing is before the empty key, but Seek takes it for the last one.
		if len(from) == 0 {
			from = []byte{0}
			it.Seek(from)
			if it.Valid() {
				it.Next()
			}
			return
		}
		it.Seek(from)
		return
	}
	it.Seek(end)
	if end != nil && it.Valid() && bytes.Equal(it.Item().Key(), end) {
		it.Next()
	}
}

// viewTx is a read-only transaction.
type viewTx struct {
	snapshot
	done bool
}

func (t *viewTx) Get(key []byte) ([]byte, error) {
	if t.done {
		return nil, errTxDone
	}
	return t.get(key)
}

func (t *viewTx) Put(_, _ []byte) error { return store.ErrReadOnly }

func (t *viewTx) Delete(_ []byte) error { return store.ErrReadOnly }

func (t *viewTx) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	if t.done {
		return nil, errTxDone
	}
	return t.scan(prefix, from, limit, reverse)
}

// updateTx is a transaction on top of a batch.
type updateTx struct {
	snapshot
	batch  *batch
	writes overlay
	size   int64
	err    error // the update must fail with it
	done   bool
}

func (t *updateTx) Get(key []byte) ([]byte, error) {
	if t.done {
		return nil, errTxDone
	}
	for _, l := range []overlay{t.writes, t.batch.writes} {
		if v, ok := l[string(key)]; ok {
			if v == nil {
				return nil, store.ErrNotFound
			}
			return bytes.Clone(v), nil
		}
	}
	return t.get(key)
}

func (t *updateTx) Put(key, value []byte) error {
	if len(value) > store.MaxValue {
		return t.fail(fmt.Errorf("%w: value has %d bytes, limit %d", store.ErrTooLarge, len(value), store.MaxValue))
	}
	return t.set(key, append([]byte{}, value...))
}

func (t *updateTx) Delete(key []byte) error { return t.set(key, nil) }

func (t *updateTx) set(key, value []byte) error {
	switch {
	case t.done:
		return errTxDone
	case len(key) == 0:
		return t.fail(errors.New("store: key is empty"))
	case len(key) > store.MaxKey:
		return t.fail(fmt.Errorf("%w: key has %d bytes, limit %d", store.ErrTooLarge, len(key), store.MaxKey))
	case bytes.HasPrefix(key, internalPrefix):
		return t.fail(fmt.Errorf("store: keys that begin with %q belong to Badger", internalPrefix))
	}
	k := string(key)
	size := t.size + entrySize(k, value)
	if old, ok := t.writes[k]; ok {
		size -= entrySize(k, old)
	}
	t.writes[k] = value
	t.size = size
	if size > t.batch.maxSize || len(t.writes) > t.batch.maxCount {
		return t.fail(fmt.Errorf("%w: update has over %d bytes or %d entries", store.ErrTooLarge, t.batch.maxSize, t.batch.maxCount))
	}
	return nil
}

// fail makes the whole update fail, also when fn ignores the error.
func (t *updateTx) fail(err error) error {
	if t.err == nil {
		t.err = err
	}
	return err
}

func (t *updateTx) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	if t.done {
		return nil, errTxDone
	}
	return t.scan(prefix, from, limit, reverse, t.batch.writes, t.writes)
}
