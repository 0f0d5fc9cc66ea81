package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	// defaultLimit is how many entries a Scan without a limit returns.
	defaultLimit = 1000

	// maxUpdate and maxEntries bound one update, sealing included: about what
	// Badger takes, so that what runs on one store runs on the other.
	maxUpdate  = 1 << 20
	maxEntries = 10_000
)

var errTxDone = errors.New("store: transaction used after its function returned")

// The whole SQL of reading and writing, but for the guard's check. It keeps to
// what CockroachDB and YugabyteDB document too.
const (
	sqlGet    = `select v from billing_portal_kv where k = $1`
	sqlGetAll = `select k, v from billing_portal_kv where k = any($1)`

	sqlScan        = `select k, v from billing_portal_kv where k >= $1 and k < $2 order by k limit $3`
	sqlScanOpen    = `select k, v from billing_portal_kv where k >= $1 order by k limit $2`
	sqlReverse     = `select k, v from billing_portal_kv where k >= $1 and k < $2 order by k desc limit $3`
	sqlReverseOpen = `select k, v from billing_portal_kv where k >= $1 order by k desc limit $2`
	sqlReverseFrom = `select k, v from billing_portal_kv where k >= $1 and k <= $2 order by k desc limit $3`

	sqlLock   = `select 1 from billing_portal_kv where k = any($1) order by k for update`
	sqlInsert = `insert into billing_portal_kv (k, v) select * from unnest($1::bytea[], $2::bytea[])`
	sqlShare  = `select 1 from billing_portal_kv where k = any($1) order by k for share nowait`
	sqlPut    = sqlInsert + ` on conflict (k) do update set v = excluded.v`
	sqlDelete = `delete from billing_portal_kv where k = any($1)`
)

// transaction is a store.Tx. Writes stay here until fn has returned: they are
// sent together, so row locks are held only from then to the commit.
type transaction struct {
	ctx    context.Context // of the attempt: a transaction is one call
	conn   *pgxpool.Conn
	store  *Store
	writes map[string][]byte // a nil value is a deletion; nil in a View
	size   int
	reads  map[string]bool // keys that were read with Get, and whether they were there

	raw  bool  // reading the guard checks nothing
	err  error // the first error of the database: the attempt has failed
	bad  error // the update must fail with it, also when fn ignores it
	done bool
}

// failed notes an error of the database.
func (t *transaction) failed(err error) error {
	if t.err == nil {
		t.err = err
	}
	return err
}

func (t *transaction) usable() error {
	if t.done {
		return errTxDone
	}
	return t.err
}

// bound is the context of one statement. An update is bounded as a whole.
func (t *transaction) bound() (context.Context, context.CancelFunc) {
	if t.writes != nil {
		return t.ctx, func() {}
	}
	return context.WithTimeout(t.ctx, t.store.patience)
}

// Get implements store.Tx.
func (t *transaction) Get(key []byte) ([]byte, error) {
	if err := t.usable(); err != nil {
		return nil, err
	}
	if v, ok := t.writes[string(key)]; ok {
		if v == nil {
			return nil, store.ErrNotFound
		}
		return bytes.Clone(v), nil
	}
	if len(key) == 0 || len(key) > store.MaxKey {
		return nil, store.ErrNotFound
	}
	if !t.raw && bytes.Equal(key, guardKey) {
		return t.getGuard()
	}
	ctx, cancel := t.bound()
	defer cancel()
	var sealed []byte
	err := t.conn.QueryRow(ctx, sqlGet, key).Scan(&sealed)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, t.failed(err)
	}
	if t.writes != nil {
		t.reads[string(key)] = err == nil
	}
	if err != nil {
		return nil, store.ErrNotFound
	}
	return t.open(key, sealed)
}

// open is no failure of the transaction: what else it reads is as good.
func (t *transaction) open(key, sealed []byte) ([]byte, error) {
	return t.store.sealer.Open(key, sealed)
}

// Put implements store.Tx.
func (t *transaction) Put(key, value []byte) error {
	if len(value) > store.MaxValue {
		return t.refuse(fmt.Errorf("%w: value has %d bytes, limit %d", store.ErrTooLarge, len(value), store.MaxValue))
	}
	return t.set(key, append([]byte{}, value...))
}

// Delete implements store.Tx.
func (t *transaction) Delete(key []byte) error { return t.set(key, nil) }

func (t *transaction) set(key, value []byte) error {
	switch {
	case t.usable() != nil:
		return t.usable()
	case t.writes == nil:
		return store.ErrReadOnly
	case len(key) == 0:
		return t.refuse(errors.New("store: key is empty"))
	case len(key) > store.MaxKey:
		return t.refuse(fmt.Errorf("%w: key has %d bytes, limit %d", store.ErrTooLarge, len(key), store.MaxKey))
	}
	k := string(key)
	if old, ok := t.writes[k]; ok {
		t.size -= entrySize(k, old)
	}
	t.writes[k] = value
	t.size += entrySize(k, value)
	if t.size > maxUpdate || len(t.writes) > maxEntries {
		return t.refuse(fmt.Errorf("%w: update has over %d bytes or %d entries", store.ErrTooLarge, maxUpdate, maxEntries))
	}
	return nil
}

func entrySize(key string, value []byte) int {
	n := len(key)
	if value != nil {
		n += len(value) + store.SealOverhead
	}
	return n
}

// refuse makes the whole update fail, also when fn ignores the error. In a
// View there is nothing to fail.
func (t *transaction) refuse(err error) error {
	if t.writes == nil {
		return store.ErrReadOnly
	}
	if t.bad == nil {
		t.bad = err
	}
	return err
}

// Scan implements store.Tx.
func (t *transaction) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	if err := t.usable(); err != nil {
		return nil, err
	}
	if limit <= 0 {
		limit = defaultLimit
	}
	above := t.changed(prefix, from, reverse)
	// Every deletion may hide one row.
	below, err := t.rows(prefix, from, limit+len(above), reverse)
	if err != nil {
		return nil, err
	}
	entries := make([]store.Entry, 0, min(limit, len(above)+len(below)))
	for len(entries) < limit && len(above)+len(below) > 0 {
		order := -1 // of the key above to the key below
		switch {
		case len(above) == 0:
			order = 1
		case len(below) > 0:
			order = strings.Compare(above[0], string(below[0].Key))
			if reverse {
				order = -order
			}
		}
		if order > 0 {
			e := below[0]
			if e.Value, err = t.open(e.Key, e.Value); err != nil {
				return nil, err
			}
			entries, below = append(entries, e), below[1:]
			continue
		}
		if v := t.writes[above[0]]; v != nil {
			entries = append(entries, store.Entry{Key: []byte(above[0]), Value: bytes.Clone(v)})
		}
		above = above[1:]
		if order == 0 {
			below = below[1:]
		}
	}
	return entries, nil
}

// changed returns the keys of the transaction's own writes that a scan meets,
// in its order.
func (t *transaction) changed(prefix, from []byte, reverse bool) []string {
	var keys []string
	for k := range t.writes {
		if !strings.HasPrefix(k, string(prefix)) {
			continue
		}
		if from != nil && (!reverse && k < string(from) || reverse && k > string(from)) {
			continue
		}
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if reverse {
		slices.Reverse(keys)
	}
	return keys
}

// rows reads the snapshot; the values are sealed.
func (t *transaction) rows(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	ctx, cancel := t.bound()
	defer cancel()
	low, end := prefix, store.Successor(prefix)
	if low == nil {
		low = []byte{}
	}
	var rows pgx.Rows
	var err error
	switch {
	case !reverse:
		if bytes.Compare(from, low) > 0 {
			low = from
		}
		if end == nil {
			rows, err = t.conn.Query(ctx, sqlScanOpen, low, limit)
		} else {
			rows, err = t.conn.Query(ctx, sqlScan, low, end, limit)
		}
	case from != nil && (end == nil || bytes.Compare(from, end) < 0):
		rows, err = t.conn.Query(ctx, sqlReverseFrom, low, from, limit)
	case end == nil:
		rows, err = t.conn.Query(ctx, sqlReverseOpen, low, limit)
	default:
		rows, err = t.conn.Query(ctx, sqlReverse, low, end, limit)
	}
	if err != nil {
		return nil, t.failed(err)
	}
	entries, err := pgx.CollectRows(rows, entry)
	if err != nil {
		return nil, t.failed(err)
	}
	return entries, nil
}

func entry(row pgx.CollectableRow) (e store.Entry, err error) {
	err = row.Scan(&e.Key, &e.Value)
	return e, err
}

// flush sends the writes, in one round trip, and makes sure that what was read
// is still so and stays so until the commit. See the package's comment.
//
// Rows are locked in the order of their keys, then new ones are inserted in
// that order, and the locks of what was only read do not wait: so two updates
// do not wait for each other in a circle.
func (t *transaction) flush() error {
	var lock, insert, inserted, put, values, remove, share [][]byte
	for _, k := range slices.Sorted(maps.Keys(t.writes)) {
		key, v := []byte(k), t.writes[k]
		there, read := t.reads[k]
		absent := read && !there
		if !absent {
			lock = append(lock, key)
		}
		switch {
		case v == nil && !absent:
			remove = append(remove, key)
		case v != nil && !absent:
			put = append(put, key)
			values = append(values, t.store.sealer.Seal(key, v))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(t.reads)) {
		key, v := []byte(k), t.writes[k]
		_, written := t.writes[k]
		switch {
		case t.reads[k] && !written:
			share = append(share, key)
		case t.reads[k]:
		case v != nil:
			insert = append(insert, key)
			inserted = append(inserted, t.store.sealer.Seal(key, v))
		default: // a row that nobody sees keeps others from making one
			insert = append(insert, key)
			inserted = append(inserted, []byte{})
			remove = append(remove, key)
		}
	}
	var batch pgx.Batch
	if len(lock) > 1 { // a single row is locked by its change
		batch.Queue(sqlLock, lock)
	}
	if len(insert) > 0 {
		batch.Queue(sqlInsert, insert, inserted)
	}
	if len(share) > 0 {
		batch.Queue(sqlShare, share)
	}
	if len(put) > 0 {
		batch.Queue(sqlPut, put, values)
	}
	if len(remove) > 0 {
		batch.Queue(sqlDelete, remove)
	}
	return t.conn.SendBatch(t.ctx, &batch).Close()
}
