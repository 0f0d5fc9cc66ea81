// Package badger is the store for one node: an embedded Badger database with
// sealed values, a group commit, and guards against what is known to go wrong
// with it. One process has a directory open at a time.
package badger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	bdb "github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

var (
	// ErrInUse says that the directory is open already, in this process or
	// in another one.
	ErrInUse = errors.New("store: directory is already open")

	// ErrDiskFull says that the file system has too little room left. Badger
	// writes through memory maps: on a full disk the whole process dies, so
	// the store stops writing before. It wraps store.ErrUnavailable.
	ErrDiskFull = fmt.Errorf("%w: the disk is nearly full; free some space", store.ErrUnavailable)

	errTxDone = errors.New("store: transaction used after its function returned")
)

// Store is a store.Store on Badger. Make one with Open.
//
// Updates run one after another, so they never conflict and fn runs once. The
// updates that queue up while a commit waits for the disk are committed
// together, with one sync: the first of them commits for all.
type Store struct {
	db     *bdb.DB
	dir    string
	sealer *store.Sealer
	log    *zap.Logger
	now    func() time.Time
	random io.Reader
	run    string

	// turn is a lock that a context can stop waiting for. It is fair (blocked
	// senders are served in order), which is what makes batches: whoever leads
	// one queues up again behind everybody who is waiting to join it.
	turn chan struct{}

	// Guarded by turn.
	batch     *batch    // what is run and not committed yet; nil for nothing
	failed    error     // why writing has stopped, after a failed commit
	highWater time.Time // latest time the wall clock has shown

	commit func(*bdb.Txn) error // Txn.Commit; tests replace it
	space  *space
	damage atomic.Pointer[error] // why nothing can be relied on any more

	syncDelay        time.Duration
	commits, updates atomic.Int64

	mu     sync.Mutex // guards closed, and users against Wait
	closed bool
	users  sync.WaitGroup

	doubt    chan struct{} // something could not be read: verify
	stop     chan struct{}
	loop     sync.WaitGroup
	once     sync.Once
	closeErr error
}

// enter keeps the database open until leave: Badger panics when a closed
// database is used.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	if err := s.damage.Load(); err != nil {
		return *err
	}
	s.users.Add(1)
	return nil
}

func (s *Store) leave() { s.users.Done() }

func (s *Store) snapshot(txn *bdb.Txn) snapshot {
	return snapshot{txn: txn, sealer: s.sealer, suspect: func() {
		select {
		case s.doubt <- struct{}{}:
		default:
		}
	}}
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	txn := s.db.NewTransaction(false)
	defer txn.Discard()
	tx := &viewTx{snapshot: s.snapshot(txn)}
	defer func() { tx.done = true }()
	return fn(tx)
}

// GetAll implements store.Store.
func (s *Store) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	err := s.View(ctx, func(tx store.Tx) error {
		for i, key := range keys {
			v, err := tx.Get(key)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			values[i] = v
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return values, nil
}

// Update implements store.Store. It runs fn in the caller's goroutine, so a
// panic in fn goes to the caller, and fn leaves nothing. Canceling ctx ends
// the wait for fn's turn; once fn has run, Update waits for the commit, since
// only that says what became of it. So does an update whose fn returned an
// error: what it decided may rest on a write that is not durable yet.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	b, leads, err := s.join(ctx, fn)
	if b == nil {
		return err
	}
	if leads {
		s.lead(b)
	}
	<-b.done
	if b.err != nil {
		return b.err
	}
	return err
}

// lead commits b after everybody who is waiting now has joined it.
func (s *Store) lead(b *batch) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.flush(b)
}

// join waits for the turn and runs fn on top of the batch. It returns the
// batch whose commit the caller must wait for, nil for none, whether the
// caller is to commit it, and fn's error.
func (s *Store) join(ctx context.Context, fn func(store.Tx) error) (*batch, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	defer func() { <-s.turn }()
	if err := ctx.Err(); err != nil { // both were ready
		return nil, false, err
	}
	b, err := s.open()
	if err != nil {
		return nil, false, err
	}
	tx, err := s.apply(b, fn)
	if err == nil && !b.fits(tx.writes) {
		// What fn saw is the batch, and that is what lies below it once the
		// batch is committed: its writes stay right on top of it.
		s.flush(b)
		if s.failed != nil {
			return nil, false, s.stopped()
		}
		b = s.begin()
	}
	if err == nil {
		b.merge(tx.writes)
		s.updates.Add(1)
	}
	if len(b.writes) == 0 {
		s.drop(b)
		return nil, false, err
	}
	leads := !b.led
	b.led = true
	return b, leads, err
}

// apply runs fn against an overlay of its own. When fn does not return (it
// panics, or ends its goroutine) the batch stays as it was.
func (s *Store) apply(b *batch, fn func(store.Tx) error) (tx *updateTx, err error) {
	tx = &updateTx{snapshot: s.snapshot(b.snap), batch: b, writes: overlay{}}
	returned := false
	defer func() {
		tx.done = true
		// A batch that others are in has a leader who will commit it.
		if !returned && len(b.writes) == 0 {
			s.drop(b)
		} else if !returned && !b.led {
			s.flush(b)
		}
	}()
	err = fn(tx)
	returned = true
	if tx.err != nil { // also when fn did not care
		err = tx.err
	}
	return tx, err
}

// open returns the batch to run on. The turn is held.
func (s *Store) open() (*batch, error) {
	if s.failed != nil {
		return nil, s.stopped()
	}
	if err := s.space.admit(); err != nil {
		return nil, err
	}
	b := s.batch
	if b == nil {
		b = s.begin()
	}
	if err := s.watchClock(b); err != nil {
		if len(b.writes) == 0 {
			s.drop(b)
		}
		return nil, err
	}
	return b, nil
}

func (s *Store) stopped() error {
	return fmt.Errorf("%w: %w for writing, since a commit failed; repair the disk and restart: %w", store.ErrUnavailable, store.ErrClosed, s.failed)
}

// begin makes a new batch on top of everything that is committed.
func (s *Store) begin() *batch {
	s.batch = &batch{
		snap:     s.db.NewTransaction(false),
		writes:   overlay{},
		maxSize:  s.db.MaxBatchSize() - batchReserve,
		maxCount: int(s.db.MaxBatchCount()) - 2,
		done:     make(chan struct{}),
	}
	return s.batch
}

// drop forgets a batch that has no writes.
func (s *Store) drop(b *batch) {
	b.snap.Discard()
	s.batch = nil
}

// watchClock begins a new generation when the wall clock went back: records
// that were swept as expired by the later time are missing now.
func (s *Store) watchClock(b *batch) error {
	now := s.now().Round(0)
	if !now.Before(s.highWater.Add(-store.GuardSkew)) {
		if now.After(s.highWater) {
			s.highWater = now
		}
		return nil
	}
	tx := &updateTx{snapshot: s.snapshot(b.snap), batch: b, writes: overlay{}}
	old, err := store.ReadGuard(tx)
	if err != nil {
		return err
	}
	g, err := old.Next(s.random, now, "the wall clock went backwards while the store was open")
	if err != nil {
		return err
	}
	if err := store.WriteGuard(tx, g); err != nil {
		return err
	}
	if !b.fits(tx.writes) {
		return store.ErrTooLarge // batchReserve leaves room for it
	}
	b.merge(tx.writes)
	s.log.Warn("wall clock went backwards; redirect tokens from before are refused",
		zap.Time("was", s.highWater), zap.Time("now", now))
	s.highWater = now
	return nil
}

// flush commits b once; afterwards b.done is closed and b.err says how it
// went. The turn is held.
func (s *Store) flush(b *batch) {
	if s.batch != b { // somebody whose writes did not fit was faster
		return
	}
	s.batch = nil
	// Unless the commit returns: a panic in it must stop writing, too.
	b.err = store.ErrUnknown
	s.failed = store.ErrUnknown
	defer func() {
		b.snap.Discard()
		close(b.done)
		s.space.replaceSpare()
	}()
	err := s.write(b)
	if err == nil {
		b.err, s.failed = nil, nil
		s.commits.Add(1)
		return
	}
	// A failed sync may have left the writes in the log, and nobody knows what
	// else it dropped: stop here.
	s.failed = err
	b.err = fmt.Errorf("%w: %w", store.ErrUnknown, err)
	s.log.Error("commit failed; the store takes no more writes until it is opened again", zap.Error(err))
}

func (s *Store) write(b *batch) error {
	txn := s.db.NewTransaction(true)
	defer txn.Discard()
	for k, v := range b.writes {
		key := []byte(k)
		var err error
		if v == nil {
			err = txn.Delete(key)
		} else {
			err = txn.Set(key, s.sealer.Seal(key, v))
		}
		if err != nil {
			return err
		}
	}
	err := s.commit(txn)
	time.Sleep(s.syncDelay)
	if err != nil {
		return err
	}
	return alive(s.dir)
}

// Stats counts since the store was opened.
type Stats struct {
	// Updates is how many updates wrote something, Commits how many commits,
	// each with one sync, they took.
	Updates, Commits int64
}

// Stats returns the counts.
func (s *Store) Stats() Stats {
	return Stats{Updates: s.updates.Load(), Commits: s.commits.Load()}
}

// Reseal seals every value that a previous key sealed with the current key,
// and returns how many there were. Afterwards the previous keys can be
// dropped. It may run beside everything else, and again after it was
// interrupted.
func (s *Store) Reseal(ctx context.Context) (int, error) { return store.Reseal(ctx, s, s.stale) }

// stale returns keys whose value a previous key sealed, and where to look on,
// nil for the end.
func (s *Store) stale(ctx context.Context, from []byte) (keys [][]byte, next []byte, err error) {
	err = s.View(ctx, func(tx store.Tx) error {
		it := tx.(*viewTx).txn.NewIterator(bdb.IteratorOptions{})
		defer it.Close()
		looked := 0
		for it.Seek(from); it.Valid(); it.Next() {
			if looked++; looked > 10_000 || len(keys) == 1_000 {
				next = it.Item().KeyCopy(nil)
				return nil
			}
			err := it.Item().Value(func(v []byte) error {
				if !s.sealer.IsCurrent(v) {
					keys = append(keys, it.Item().KeyCopy(nil))
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("store: reading: %w", err)
			}
		}
		return nil
	})
	return keys, next, err
}

// Interface guards
var (
	_ store.Store = (*Store)(nil)
	_ io.Closer   = (*Store)(nil)
	_ store.Tx    = (*viewTx)(nil)
	_ store.Tx    = (*updateTx)(nil)
)
