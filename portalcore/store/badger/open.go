package badger

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const (
	// schema is the version of what is in the store. A store that says a
	// higher one was written by a newer build.
	schema = 1

	memTableSize      = 8 << 20
	numMemtables      = 2
	numLevelZeroStall = 4
	cacheSize         = 8 << 20

	gcInterval     = 10 * time.Minute
	verifyInterval = time.Hour
)

// Options are what Open needs besides the directory.
type Options struct {
	// Sealer seals the values. Required.
	Sealer *store.Sealer

	// Logger takes Badger's messages and the store's. Default: none.
	Logger *zap.Logger

	// Now is the wall clock. Default: time.Now.
	Now func() time.Time

	// Rand is where generations come from. Default: crypto/rand.Reader.
	Rand io.Reader

	// Ballast is how many bytes of the disk are kept in a file that is given up
	// when the disk fills, so that Badger can finish what it has begun. 0 means
	// DefaultBallast, a negative number none. A disk without room for it is
	// reported and used without.
	Ballast int64

	// NoSync leaves out the sync of every commit: a power cut may lose what
	// was acknowledged. For tests only.
	NoSync bool

	// SyncDelay is added to every sync, to measure on a disk that is faster
	// than others are. Not for use.
	SyncDelay time.Duration

	stat func(dir string) (disk, bool) // statDisk; tests replace it
}

// identity is the record that ties the data to the state file beside it. It
// changes at every Open.
type identity struct {
	Schema int    `json:"schema"`
	Run    string `json:"run"`
}

func identityKey() []byte { return store.StoreKey("badger") }

// Open opens the store in dir, and creates both where they do not exist. It
// returns ErrInUse when the directory is open already, an error that wraps
// store.ErrSealed when the seal keys are not the store's, and refuses a
// directory whose data is incomplete or was written by a newer build.
//
// It begins a new generation (see store.Guard) when the store is new, was not
// closed cleanly, does not fit its state file, was copied, or was last used at
// a later time than it is now. Close the store to end it.
func Open(dir string, o Options) (*Store, error) {
	if o.Sealer == nil {
		return nil, errors.New("store: Options.Sealer is required")
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.stat == nil {
		o.stat = statDisk
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	if err := enoughToOpen(dir, o); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	st, doubt, err := inspect(dir, o)
	unlock() // Badger takes the lock itself
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, sealer: o.Sealer, log: o.Logger, now: o.Now, random: o.Rand,
		turn: make(chan struct{}, 1), doubt: make(chan struct{}, 1), stop: make(chan struct{}),
		commit: (*bdb.Txn).Commit, syncDelay: o.SyncDelay, space: newSpace(dir, o),
	}
	logger := &badgerLogger{log: o.Logger.Named("badger").Sugar(), table: s.space.waitForRoom, retry: func() { s.space.retries.Add(1) }}
	s.db, err = openBadger(badgerOptions(dir, o).WithLogger(logger))
	if err != nil {
		// Badger does not wrap what it got from the system.
		if strings.Contains(err.Error(), "Cannot acquire directory lock") {
			return nil, inUse(dir)
		}
		return nil, fmt.Errorf("opening the store in %s (if this persists, %s): %w", dir, wayOut, err)
	}
	err = s.space.start(s.db)
	if err == nil {
		err = s.start(st, doubt)
	}
	if err != nil {
		s.space.stop()
		if cerr := s.db.Close(); cerr != nil {
			s.log.Error("closing the store", zap.Error(cerr))
		}
		s.space.remove()
		return nil, err
	}
	s.loop.Add(1)
	go s.collect()
	return s, nil
}

// inspect reads the state and checks the files. The directory is locked.
func inspect(dir string, o Options) (st *state, doubt string, err error) {
	if st, err = readState(dir); err != nil {
		return nil, "", err
	}
	if st != nil && st.Schema > schema {
		return nil, "", newerError(dir, st.Schema)
	}
	if doubt, err = checkFiles(dir, st, o.Logger); err != nil {
		return nil, "", err
	}
	// From here on the files may change before the state says that the store
	// is open.
	if st != nil && st.Files != nil && !st.moved {
		st.Files = nil
		err = writeState(dir, *st)
	}
	return st, doubt, err
}

// openBadger turns a panic in Badger into an error.
func openBadger(o bdb.Options) (db *bdb.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("badger: %v", r)
		}
	}()
	return bdb.Open(o)
}

func inUse(dir string) error {
	return fmt.Errorf("%w: %s; usually this is another running Caddy: use 'caddy reload' to change its config, or stop it first, and give every Caddy a directory of its own", ErrInUse, dir)
}

func badgerOptions(dir string, o Options) bdb.Options {
	return bdb.DefaultOptions(dir).
		WithSyncWrites(!o.NoSync).
		// A small store: about 12 MB when idle, where the defaults map 4 GB.
		WithMemTableSize(memTableSize).
		WithNumMemtables(numMemtables).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(numLevelZeroStall).
		WithNumCompactors(2).
		WithValueLogFileSize(1 << 20). // the least; no value is long enough for it
		WithBlockCacheSize(cacheSize).
		WithIndexCacheSize(cacheSize).
		WithCompression(options.None). // sealed values do not compress
		WithMetricsEnabled(false).     // they are global, and ours may be several
		// A flipped byte in a value is found by its seal. Badger's own check of
		// a block that it reads would take the block for the end of the table:
		// its keys were gone, for good after a compaction. So all of a table
		// is verified, when the store opens (checkFiles) and by collect.
		WithVerifyValueChecksum(true).
		WithChecksumVerificationMode(options.OnTableRead)
}

func newerError(dir string, version int) error {
	return fmt.Errorf("opening the store: %s was written by a newer version (schema %d, this one knows up to %d): run that version, or restore a backup from before it", dir, version, schema)
}

// start checks that the data is the portal's and opens with the seal keys,
// decides about the guard, and marks the store as in use. Order matters. A new
// store writes its data first: a state file without data then shows that data
// was lost. Any other store writes its state first, with the run that the data
// still has, so that a crash in between does not look like a restore.
func (s *Store) start(st *state, doubt string) error {
	ctx := context.Background()
	id, old, err := s.identify(ctx)
	if err != nil {
		return err
	}
	switch {
	case id == nil && st != nil:
		return fmt.Errorf("opening the store: %s has lost its data (%s is there, the records are not): %s", s.dir, stateFile, wayOut)
	case id != nil && id.Schema > schema:
		return newerError(s.dir, id.Schema)
	}
	now := s.now().Round(0)
	reason, restored := amnesia(id, old, st, now)
	if doubt != "" {
		reason, restored = doubt, true
	}
	s.highWater = now

	run, err := store.NewGuard(s.random, now, reason)
	if err != nil {
		return err
	}
	s.run = run.Generation // as good as any random name
	value, err := json.Marshal(identity{Schema: schema, Run: s.run})
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	var guard store.Guard
	if reason != "" {
		if guard, err = old.Next(s.random, now, reason); err != nil {
			return err
		}
		if restored {
			guard.Restored = guard.Cutoff
		}
	}
	next := state{Schema: schema, Run: s.run, HighWater: now}
	if id != nil {
		before := next
		before.Before = id.Run
		if restored {
			// The reason must not be forgotten before it is in the guard.
			before.Before = ""
		}
		if err := writeState(s.dir, before); err != nil {
			return err
		}
	}
	err = s.Update(ctx, func(tx store.Tx) error {
		if id == nil {
			if err := tx.Put(store.CanaryKey(), []byte("billing-portal")); err != nil {
				return err
			}
		}
		if reason != "" {
			if err := store.WriteGuard(tx, guard); err != nil {
				return err
			}
		}
		return tx.Put(identityKey(), value)
	})
	if err != nil {
		return fmt.Errorf("opening the store in %s: %w", s.dir, err)
	}
	if reason != "" {
		s.log.Info("new store generation; redirect tokens from before are refused",
			zap.String("reason", reason), zap.Time("cutoff", guard.Cutoff), zap.Bool("restored", restored))
	}
	return writeState(s.dir, next)
}

// identify reads who the data belongs to, nil for an empty database, and
// its guard, the zero one where it has none that is valid.
func (s *Store) identify(ctx context.Context) (id *identity, guard store.Guard, err error) {
	err = s.View(ctx, func(tx store.Tx) error {
		_, err := tx.Get(store.CanaryKey())
		if errors.Is(err, store.ErrSealed) {
			return fmt.Errorf("opening the store: the seal key is not the one %s was made with: give that key, as current or previous one: %w", s.dir, err)
		}
		if errors.Is(err, store.ErrNotFound) {
			it := tx.(*viewTx).txn.NewIterator(bdb.IteratorOptions{})
			defer it.Close()
			if it.Rewind(); it.Valid() {
				return fmt.Errorf("opening the store: the database in %s is not a billing portal's, or lost its first records: restore a backup, or name an empty directory", s.dir)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("opening the store in %s: %w", s.dir, err)
		}
		value, err := tx.Get(identityKey())
		if err != nil {
			return fmt.Errorf("opening the store in %s: %w", s.dir, err)
		}
		id = new(identity)
		if err := json.Unmarshal(value, id); err != nil {
			return fmt.Errorf("opening the store in %s: %w", s.dir, err)
		}
		if guard, err = store.ReadGuard(tx); err != nil {
			guard = store.Guard{}
		}
		if err := store.CheckUsable(tx); err != nil {
			return fmt.Errorf("opening the store in %s: %w", s.dir, err)
		}
		return nil
	})
	return id, guard, err
}

// amnesia says why the store may have forgotten something, "" if it has not,
// and whether it may be back at an earlier state as a whole.
func amnesia(id *identity, old store.Guard, st *state, now time.Time) (reason string, restored bool) {
	switch {
	case id == nil:
		return "the store is new", false
	case old.Generation == "":
		return "the store had no valid generation", true
	case st == nil:
		return "the state file is missing", true
	case st.Run != id.Run && (st.Clean || st.Before != id.Run):
		return "the data does not fit its state file: one of them was restored", true
	case st.moved:
		return "the state file was copied: the store was restored", true
	case !st.Clean:
		return "the store was not closed cleanly", false
	case now.Before(st.HighWater):
		return "the wall clock went backwards since the store was closed", false
	}
	return "", false
}

// Close waits for running transactions, closes the database and marks it as
// closed cleanly. Afterwards every call returns store.ErrClosed. It may be
// called more than once.
func (s *Store) Close() error {
	s.once.Do(func() { s.closeErr = s.shut() })
	return s.closeErr
}

func (s *Store) shut() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.users.Wait()
	close(s.stop)
	s.loop.Wait()
	next := state{Schema: schema, Run: s.run, Closing: true, HighWater: s.highWater}
	if s.failed == nil {
		// A full disk is space's to report.
		if err := writeState(s.dir, next); err != nil && !errors.Is(err, syscall.ENOSPC) {
			s.log.Error("closing the store", zap.Error(err))
		}
	}
	if err := s.space.close(s.db.Close); err != nil {
		return fmt.Errorf("closing the store: %w", err)
	}
	if s.failed != nil || s.damage.Load() != nil {
		return nil // not cleanly: what is on the disk is unknown
	}
	if now := s.now().Round(0); now.After(next.HighWater) {
		next.HighWater = now
	}
	files, err := sumFiles(s.dir)
	if err != nil {
		return fmt.Errorf("closing the store: %w", err)
	}
	// Somebody may have opened the directory since it was unlocked. This run
	// is then not the one in the database any more, and the mark says nothing.
	next.Closing, next.Clean, next.Files = false, true, files
	return writeState(s.dir, next)
}

// collect lets Badger reclaim its value log, and reads all tables from time to
// time to see whether they still are what they were, as long as the store is
// open.
func (s *Store) collect() {
	defer s.loop.Done()
	gc := time.NewTicker(gcInterval)
	defer gc.Stop()
	verify := time.NewTicker(verifyInterval)
	defer verify.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-verify.C:
			s.verify()
			continue
		case <-s.doubt:
			s.verify()
			continue
		case <-gc.C:
		}
		for s.db.RunValueLogGC(0.5) == nil { // one file each, until none is worth it
			select {
			case <-s.stop:
				return
			default:
			}
		}
	}
}

// verify checks all tables, and the seals of all records: a compaction may have
// copied what was damaged, with a new checksum, and a changed key is found by
// the seal of its value, too. Damage may hide records, and a record that is not
// there may be a spent token or a revocation: nobody may rely on the store any
// more.
func (s *Store) verify() {
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("badger: %v", r)
			}
		}()
		if err := s.db.VerifyChecksum(); err != nil {
			return err
		}
		return s.checkSeals()
	}()
	if err == nil {
		return
	}
	err = fmt.Errorf("%w: %w: a file in %s is damaged: %w: %s", store.ErrUnavailable, store.ErrClosed, s.dir, err, wayOut)
	s.log.Error("the store answers nothing any more", zap.Error(err))
	s.damage.Store(&err)
}

// checkSeals opens every value, until the store is closed.
func (s *Store) checkSeals() error {
	txn := s.db.NewTransaction(false)
	defer txn.Discard()
	it := txn.NewIterator(bdb.IteratorOptions{})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		select {
		case <-s.stop:
			return nil
		default:
		}
		key := it.Item().Key()
		err := it.Item().Value(func(sealed []byte) error {
			_, err := s.sealer.Open(key, sealed)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// badgerLogger hands Badger's messages to zap. Its Info is news about tables
// and files: debugging for us.
type badgerLogger struct {
	log *zap.SugaredLogger

	// table is called before a compaction writes a table, in its goroutine:
	// the message below is the only thing that Badger lets others do there.
	table func()

	// retry is called when a flush failed and is tried again, without end.
	retry func()
}

// beforeTable begins the message that a compaction logs each time it has
// collected what goes into one table.
const beforeTable = "[%d] LOG Compact. Added "

func (l *badgerLogger) Errorf(format string, args ...any) {
	if strings.HasSuffix(format, "retrying") {
		l.retry()
	}
	l.log.Errorf(strings.TrimSpace(format), args...)
}

func (l *badgerLogger) Warningf(format string, args ...any) {
	l.log.Warnf(strings.TrimSpace(format), args...)
}

func (l *badgerLogger) Infof(format string, args ...any) {
	l.log.Debugf(strings.TrimSpace(format), args...)
}

func (l *badgerLogger) Debugf(format string, _ ...any) {
	if strings.HasPrefix(format, beforeTable) {
		l.table()
	}
}
