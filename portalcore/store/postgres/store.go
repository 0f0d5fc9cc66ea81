// Package postgres is the store for many nodes: a table of sealed values in a
// PostgreSQL database. Every node of a portal opens the same database.
//
// # Isolation
//
// An update is optimistic. fn reads from a snapshot (repeatable read) and locks
// nothing; its writes are kept until it has returned. Then one round trip
// locks the rows that are written for update and those that were only read
// with Get for share, which PostgreSQL refuses where a row changed since the
// snapshot, and inserts the keys that were read and absent, which it refuses
// where somebody else did. What fn decided on is therefore still so when the
// update commits, whoever else writes: updates are serializable, as
// store.Store says, in what they Get. An update that was refused runs again;
// those of one process that write the same keys queue up for it.
//
// Redemptions (four reads and five writes) per second of 64 clients with 32
// connections, on two busy cores with a sync of 0.5 ms, by BenchmarkRedeem:
//
//	                                            one customer   100,000 customers
//	this store (sealed)                             160             685
//	serializable transactions, by hand               80              94
//	read committed with advisory locks, by hand     233           1,343
//
// PostgreSQL's serializable isolation notes what was read by pages of the
// index: every closure ran about ten times, because neighbours of a key
// conflict with it. (Sealed, and with fewer connections, it ran into its
// deadline.) Advisory locks are the fastest, and are nothing for a store that
// learns only while fn runs which keys there are: it would have to lock key by
// key in the order they are read, and wait out deadlocks. CockroachDB
// takes them without locking anything.
//
// # Poolers
//
// Every setting is made for its transaction and no statement stays prepared on
// the server, so a pooler may give every transaction another session
// (PgBouncer's transaction pooling; TestPgBouncer).
package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Store is a store.Store on PostgreSQL. Make one with Open.
type Store struct {
	pool   *pgxpool.Pool
	sealer *store.Sealer
	log    *zap.Logger
	now    func() time.Time
	random io.Reader
	node   string // this Store, among all that have the database open

	beginUpdate, beginView string

	// patience is how long an update that was not committed is tried, and
	// after that how long its commit is waited for.
	patience  time.Duration
	statement time.Duration // for a single read

	// writers has one token for each update that has a connection, also for one
	// whose commit nobody waits for any more. There are fewer than connections:
	// reads find one when no commit is answered.
	writers chan struct{}
	stuck   atomic.Int64 // commits that were not answered within patience
	early   atomic.Bool  // this node was found to be ahead, see SweepTurn

	locks keyLocks
	runs  atomic.Int64 // of closures in updates, for measurements

	mu     sync.Mutex // guards closed, and users against Wait
	closed bool
	users  sync.WaitGroup

	hold     context.Context //nolint:containedctx // of commits that outlive their callers; Close ends it
	stop     context.CancelFunc
	loops    sync.WaitGroup // the watch, and commits
	once     sync.Once
	closeErr error
}

// enter keeps the pool open until leave.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	s.users.Add(1)
	return nil
}

func (s *Store) leave() { s.users.Done() }

// Update implements store.Store. Where ctx has no earlier deadline it gives up
// after twice the statement timeout. Once the COMMIT is sent it waits for the
// answer, as long again, since only that says what became of it; the end of
// ctx is then, a moment later, store.ErrUnknown. It returns an error that wraps
// store.ErrUnavailable where the server cannot be reached or takes no writes,
// where others were faster until the end, and where as many commits as may run
// at a time are waiting for a synchronous standby that is away.
func (s *Store) Update(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	return s.update(ctx, false, fn)
}

func (s *Store) update(parent context.Context, raw bool, fn func(store.Tx) error) error {
	ctx, cancel := context.WithTimeout(parent, s.patience)
	defer cancel()
	held := heldKeys{locks: &s.locks}
	defer func() { held.release() }()
	r := retry{store: s, parent: parent}
	for {
		t, k, err := s.attempt(ctx, parent, raw, &held, fn)
		if k == settled {
			return err
		}
		if err := r.again(ctx, k, err); err != nil {
			return err
		}
		if k == conflict {
			if err := held.wait(ctx, t.writes); err != nil {
				return r.expired(err)
			}
		}
	}
}

// errStuck says that PostgreSQL answers no commit.
var errStuck = errors.New("it takes no further commit before it has answered those it was sent (is its synchronous standby away?)")

// writer waits for the turn to have a connection for an update.
func (s *Store) writer(ctx context.Context) error {
	select {
	case s.writers <- struct{}{}:
		return nil
	default:
	}
	if s.stuck.Load() >= int64(cap(s.writers)) {
		return unavailable(errStuck)
	}
	select {
	case s.writers <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt runs fn once. The error is final where the kind is settled. Ctx
// bounds it until the commit, and parent, the caller's, the wait for that.
func (s *Store) attempt(ctx, parent context.Context, raw bool, held *heldKeys, fn func(store.Tx) error) (t *transaction, k kind, err error) {
	t = &transaction{ctx: ctx, store: s, raw: raw, writes: map[string][]byte{}, reads: map[string]bool{}}
	if err := s.writer(ctx); err != nil {
		if errors.Is(err, errStuck) {
			return t, settled, err
		}
		return t, unreachable, err
	}
	committing := false
	defer func() { // also when fn panics or ends its goroutine
		t.done = true
		if committing {
			return
		}
		if t.conn != nil {
			end(t.conn)
		}
		<-s.writers
	}()
	t.conn, err = s.pool.Acquire(ctx)
	if err != nil {
		return t, judge(err), err
	}
	if _, err := t.conn.Exec(ctx, s.beginUpdate); err != nil {
		return t, judge(err), err
	}
	s.runs.Add(1)
	switch err := fn(t); {
	case t.err != nil: // also when fn did not care
		if k := judge(t.err); k != settled || err == nil {
			return t, k, t.err
		}
		return t, settled, err
	case t.bad != nil:
		return t, settled, t.bad
	case err != nil:
		return t, settled, err
	}
	if len(t.writes) > 0 {
		if !held.try(t.writes) {
			return t, conflict, errBusy
		}
		if err := t.flush(); err != nil {
			return t, judge(err), err
		}
	}
	if err := ctx.Err(); err != nil {
		return t, unreachable, err
	}
	committing = true
	k, err = s.commit(parent, t.conn, len(t.writes) > 0)
	return t, k, err
}

// commitGrace is how long a commit is waited for when its caller has gone: a
// browser that hangs up makes an outcome unknown only where it is slow.
const commitGrace = 200 * time.Millisecond

// commit commits and waits for the answer. A connection whose answer takes too
// long is not closed: the server would go on waiting, and every further commit
// would leave one more such session behind. It stays out of the pool, and keeps
// its token of writers, until it answers: so they are bounded.
func (s *Store) commit(ctx context.Context, conn *pgxpool.Conn, wrote bool) (kind, error) {
	type answer struct {
		kind kind
		err  error
	}
	done := make(chan answer, 1)
	s.loops.Go(func() {
		overdue := time.AfterFunc(s.patience, func() { s.stuck.Add(1) })
		k, err := commit(s.hold, conn, wrote)
		if !overdue.Stop() {
			s.stuck.Add(-1)
		}
		end(conn)
		<-s.writers
		done <- answer{k, err}
	})
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	select {
	case a := <-done:
		return a.kind, a.err
	case <-timer.C:
	case <-ctx.Done():
		timer.Reset(min(commitGrace, s.patience))
		select {
		case a := <-done:
			return a.kind, a.err
		case <-timer.C:
		}
		if !wrote {
			return unreachable, ctx.Err()
		}
		// Not wrapped: who sees context.Canceled may think that nothing changed.
		return settled, fmt.Errorf("%w: PostgreSQL did not answer in the caller's time: %v", store.ErrUnknown, ctx.Err()) //nolint:errorlint // see above
	}
	return settled, fmt.Errorf("%w: PostgreSQL did not answer within %s (does its synchronous standby?)", store.ErrUnknown, s.patience)
}

func commit(ctx context.Context, conn *pgxpool.Conn, wrote bool) (kind, error) {
	if conn.Conn().IsClosed() {
		return unreachable, errors.New("the connection was lost before the commit")
	}
	data := conn.Conn().PgConn().CustomData()
	delete(data, warningKey)
	tag, err := conn.Exec(ctx, "commit")
	var pg *pgconn.PgError
	switch {
	case err == nil && tag.String() == "ROLLBACK":
		return conflict, errors.New("store: PostgreSQL rolled the transaction back")
	case err == nil && wrote && data[warningKey] != nil:
		// Somebody canceled the wait for the synchronous standby, for one: "The
		// transaction has already committed locally, but might not have been
		// replicated" (PostgreSQL's SyncRepWaitForLSN).
		return settled, fmt.Errorf("%w: PostgreSQL warned: %v", store.ErrUnknown, data[warningKey])
	case err == nil:
		return settled, nil
	case !wrote:
		return judge(err), err
	case errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR" && pg.Code[:2] != "08":
		return judge(err), err
	}
	// Not even pgconn.SafeToRetry helps here: after an answer that was lost it
	// is true of the error that follows (v5.11.0).
	return settled, fmt.Errorf("%w: %w", store.ErrUnknown, err)
}

// rollbackTimeout bounds a rollback; a connection that takes longer is closed.
const rollbackTimeout = time.Second

// end gives a connection back, without a transaction. Release closes one that
// still has one.
func end(conn *pgxpool.Conn) {
	if s := conn.Conn().PgConn().TxStatus(); s == 'T' || s == 'E' {
		ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
		_, _ = conn.Exec(ctx, "rollback")
		cancel()
	}
	conn.Release()
}

// View implements store.Store. It begins, and reads with each Get and Scan,
// within twice the statement timeout; for how long in all is ctx's business,
// because a backup may take hours. An error that wraps store.ErrUnavailable
// says that it was in vain.
//
// Within that first time it runs fn again where the connection was lost or the
// guard had to be renewed, also after fn has read something. An fn that does
// more than read notes that it ran and refuses, as store.Backup's does.
func (s *Store) View(ctx context.Context, fn func(store.Tx) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	r := retry{store: s, parent: ctx}
	begin, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	for {
		k, err := s.view(ctx, begin, fn)
		if k == settled {
			return err
		}
		if err := r.again(begin, k, err); err != nil {
			return err
		}
	}
}

// view runs fn once. Begin bounds what comes before.
func (s *Store) view(ctx, begin context.Context, fn func(store.Tx) error) (kind, error) {
	conn, err := s.pool.Acquire(begin)
	if err != nil {
		return judge(err), err
	}
	defer end(conn)
	if _, err := conn.Exec(begin, s.beginView); err != nil {
		return judge(err), err
	}
	t := &transaction{ctx: ctx, store: s, conn: conn}
	defer func() { t.done = true }()
	err = fn(t)
	if t.err != nil {
		if k := judge(t.err); k != settled || err == nil {
			return k, t.err
		}
	}
	return settled, err
}

// GetAll implements store.Store, with one statement outside a transaction.
func (s *Store) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.leave()
	r := retry{store: s, parent: ctx}
	ctx, cancel := context.WithTimeout(ctx, s.statement)
	defer cancel()
	for {
		entries, err := s.getAll(ctx, keys)
		if err == nil {
			return s.values(keys, entries)
		}
		k := judge(err)
		if k == settled {
			return nil, err
		}
		if err := r.again(ctx, k, err); err != nil {
			return nil, err
		}
	}
}

func (s *Store) getAll(ctx context.Context, keys [][]byte) ([]store.Entry, error) {
	guarded := slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(guardKey) })
	if !guarded {
		rows, err := s.pool.Query(ctx, sqlGetAll, keys)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, entry)
	}
	rows, err := s.pool.Query(ctx, sqlGuardAll, append(slices.Clip(keys), identityKey))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	return s.getAllGuarded(rows)
}

// values opens what was read, in the order of keys.
func (s *Store) values(keys [][]byte, entries []store.Entry) ([][]byte, error) {
	sealed := make(map[string][]byte, len(entries))
	for _, e := range entries {
		sealed[string(e.Key)] = e.Value
	}
	values := make([][]byte, len(keys))
	for i, key := range keys {
		v, ok := sealed[string(key)]
		if !ok {
			continue
		}
		var err error
		if values[i], err = s.sealer.Open(key, v); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// retry decides whether a transaction that failed runs again.
type retry struct {
	store             *Store
	parent            context.Context //nolint:containedctx // of the one call it belongs to
	lost, stale, runs int
}

const (
	// maxLost is how often a connection may fail: the first one was perhaps
	// idle when the server was restarted.
	maxLost = 3
	// maxStale is how often the guard may change during one call.
	maxStale = 5

	minPause, maxPause = time.Millisecond, 100 * time.Millisecond
)

// again waits until the next attempt. An error is the end of the call.
func (r *retry) again(ctx context.Context, k kind, err error) error {
	if r.parent.Err() != nil || ctx.Err() != nil {
		return r.expired(err)
	}
	r.runs++
	switch k {
	case settled:
		return err
	case stale:
		if r.stale++; r.stale > maxStale {
			return unavailable(err)
		}
		return r.store.renew(ctx)
	case unreachable:
		if broken(err) {
			r.store.pool.Reset() // the others will be no better
		}
		if r.lost++; r.lost >= maxLost {
			return unavailable(err)
		}
	case conflict:
		if errors.Is(err, errBusy) {
			return nil // it waits in the queue for the keys
		}
	}
	pause := time.NewTimer(rand.N(min(minPause<<min(r.runs, 10), maxPause))) //nolint:gosec // only spreads retries
	defer pause.Stop()
	select {
	case <-ctx.Done():
		return r.expired(err)
	case <-pause.C:
		return nil
	}
}

// expired is the error after the time has run out: the caller's own, or ours.
func (r *retry) expired(err error) error {
	if cause := r.parent.Err(); cause != nil {
		return fmt.Errorf("store: %w", cause)
	}
	return unavailable(err)
}

// broken reports whether err speaks of the connection rather than of a
// statement.
func broken(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true
	}
	switch pg.Code {
	case "25006", "0A000", "55000": // the server became a standby
		return true
	}
	return pg.SeverityUnlocalized != "ERROR"
}

// sweepTurn is how long a node has the sweeping to itself.
const sweepTurn = 3 * time.Minute

// SweepTurn implements store.Turns with a record that says whose turn it is
// and until when. Where clocks disagree a little, two nodes may have it at once,
// which costs retries and nothing else. A node whose clock is far ahead would
// delete for all what is still needed, a spent link's mark for one: it gets no
// turn while its clock is more than clockTolerance ahead of the server's, or now
// is past the high-water mark by more than that and clockStep.
func (s *Store) SweepTurn(ctx context.Context, tenant string, now time.Time) (bool, error) {
	key := store.StoreKey("sweep-turn", tenant)
	type turn struct {
		Node  string    `json:"node"`
		Until time.Time `json:"until"`
	}
	mine, ahead := false, false
	value, err := json.Marshal(turn{Node: s.node, Until: now.Add(sweepTurn).UTC()})
	if err != nil {
		return false, err
	}
	theirs := func(raw []byte) bool {
		var t turn
		// A turn further away than any node would take is a clock's fault.
		return json.Unmarshal(raw, &t) == nil && t.Node != s.node && now.Before(t.Until) && !now.Add(2*sweepTurn).Before(t.Until)
	}
	// Most nodes find that it is another one's turn, and write nothing.
	if values, err := s.GetAll(ctx, key); err != nil || theirs(values[0]) {
		return false, err
	}
	err = s.Update(ctx, func(tx store.Tx) error {
		mine = false
		var err error
		if ahead, err = s.ahead(tx.(*transaction), now); err != nil || ahead {
			return err
		}
		raw, err := tx.Get(key)
		if err != nil && !errors.Is(err, store.ErrNotFound) || theirs(raw) {
			return err
		}
		mine = true
		return tx.Put(key, value)
	})
	if err == nil && s.early.Swap(ahead) != ahead && ahead {
		s.log.Error("this node's clock is far ahead of the PostgreSQL server's; it deletes nothing that has expired until one of them is put right",
			zap.Duration("tolerance", clockTolerance))
	}
	return mine && err == nil, err
}

// ahead reports whether a node must not say what has expired by now.
func (s *Store) ahead(t *transaction, now time.Time) (bool, error) {
	var record []byte
	var micros int64
	if err := t.conn.QueryRow(t.ctx, sqlMark, identityKey).Scan(&record, &micros); err != nil {
		return false, t.failed(err)
	}
	if record == nil { // the guard is about to be renewed
		return true, nil
	}
	id, err := s.openIdentity(record)
	if err != nil {
		return false, err
	}
	limit := time.UnixMicro(micros).Add(clockTolerance)
	return s.now().After(limit) || now.After(limit) || now.After(id.HighWater.Add(clockStep+clockTolerance)), nil
}

// closeTimeout bounds how long Close waits for connections to end.
const closeTimeout = 5 * time.Second

// Close waits for running transactions and closes the connections. Commits
// whose callers have stopped waiting for them are abandoned, which neither
// applies nor undoes them. Afterwards every call returns store.ErrClosed. It
// may be called more than once.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.users.Wait()
		s.stop()
		s.loops.Wait()
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			s.pool.Close()
		}()
		select {
		case <-closed:
		case <-time.After(closeTimeout):
			s.closeErr = errors.New("closing the store: PostgreSQL does not answer")
		}
	})
	return s.closeErr
}

// Interface guards
var (
	_ store.Store = (*Store)(nil)
	_ io.Closer   = (*Store)(nil)
	_ store.Tx    = (*transaction)(nil)
	_ store.Turns = (*Store)(nil)
)
