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

	memTableSize = 8 << 20
	cacheSize    = 8 << 20

	gcInterval = 10 * time.Minute
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

	// NoSync leaves out the sync of every commit: a power cut may lose what
	// was acknowledged. For tests only.
	NoSync bool
}

// identity is the record that ties the data to the state file beside it. It
// changes at every Open.
type identity struct {
	Schema int    `json:"schema"`
	Run    string `json:"run"`
}

func identityKey() []byte { return store.StoreKey("badger") }

// canaryKey is the key of a record that opens only with the right seal key.
func canaryKey() []byte { return store.StoreKey("seal") }

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
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	if err := checkFiles(dir); err != nil {
		return nil, err
	}
	if free, ok := freeBytes(dir); ok && free < minFree {
		return nil, fmt.Errorf("%w in %s: %d MiB are left, %d MiB are needed", ErrDiskFull, dir, free>>20, uint64(minFree)>>20)
	}
	st, err := readState(dir)
	if err != nil {
		return nil, err
	}
	if st != nil && st.Schema > schema {
		return nil, newerError(dir, st.Schema)
	}

	db, err := bdb.Open(badgerOptions(dir, o))
	if err != nil {
		// Badger does not wrap what it got from the system.
		if strings.Contains(err.Error(), "Cannot acquire directory lock") {
			return nil, fmt.Errorf("%w: %s; usually this is another running Caddy: use 'caddy reload' to change its config, or stop it first, and give every Caddy a directory of its own", ErrInUse, dir)
		}
		return nil, fmt.Errorf("opening the store in %s (if this persists, restore a backup): %w", dir, err)
	}
	s := &Store{
		db: db, dir: dir, sealer: o.Sealer, log: o.Logger, now: o.Now, random: o.Rand,
		turn: make(chan struct{}, 1), stop: make(chan struct{}),
		commit: (*bdb.Txn).Commit, free: freeBytes,
	}
	if err := s.start(st); err != nil {
		if cerr := db.Close(); cerr != nil {
			s.log.Error("closing the store", zap.Error(cerr))
		}
		return nil, err
	}
	s.loop.Add(1)
	go s.collect()
	return s, nil
}

func badgerOptions(dir string, o Options) bdb.Options {
	return bdb.DefaultOptions(dir).
		WithLogger(badgerLogger{o.Logger.Named("badger").Sugar()}).
		WithSyncWrites(!o.NoSync).
		// A small store: about 12 MB when idle, where the defaults map 4 GB.
		WithMemTableSize(memTableSize).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(4).
		WithNumCompactors(2).
		WithValueLogFileSize(16 << 20).
		WithBlockCacheSize(cacheSize).
		WithIndexCacheSize(cacheSize).
		WithCompression(options.None). // sealed values do not compress
		WithMetricsEnabled(false).     // they are global, and ours may be several
		// A flipped byte must be an error, not a value.
		WithVerifyValueChecksum(true).
		WithChecksumVerificationMode(options.OnTableAndBlockRead)
}

// checkFiles refuses a directory that has files but no MANIFEST. Badger would
// open it as an empty database and delete the tables.
func checkFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	other := ""
	for _, e := range entries {
		switch e.Name() {
		case bdb.ManifestFilename:
			return nil
		case "LOCK", "MANIFEST-REWRITE", "lost+found": // a crash before the first write; a fresh file system
		default:
			other = e.Name()
		}
	}
	if other != "" {
		return fmt.Errorf("opening the store: %s holds files (%s) but no %s: restore the directory from a backup, or name an empty one", dir, other, bdb.ManifestFilename)
	}
	return nil
}

func newerError(dir string, version int) error {
	return fmt.Errorf("opening the store: %s was written by a newer version (schema %d, this one knows up to %d): run that version, or restore a backup from before it", dir, version, schema)
}

// start checks that the data is the portal's and opens with the seal keys,
// decides about the guard, and marks the store as in use. Order matters: the
// run in the database changes before the state file, so a state file without
// data shows that data was lost, and a crash in between shows as a mismatch.
func (s *Store) start(st *state) error {
	ctx := context.Background()
	id, guarded, err := s.identify(ctx)
	if err != nil {
		return err
	}
	switch {
	case id == nil && st != nil:
		return fmt.Errorf("opening the store: %s has lost its data (%s is there, the records are not): restore a backup, or remove the directory to begin anew; open sessions and the journal are then gone", s.dir, stateFile)
	case id != nil && id.Schema > schema:
		return newerError(s.dir, id.Schema)
	}
	now := s.now().Round(0)
	reason := amnesia(id, guarded, st, filepath.Join(s.dir, stateFile), now)
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
		if guard, err = store.NewGuard(s.random, now, reason); err != nil {
			return err
		}
	}
	err = s.Update(ctx, func(tx store.Tx) error {
		if id == nil {
			if err := tx.Put(canaryKey(), []byte("billing-portal")); err != nil {
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
			zap.String("reason", reason), zap.Time("cutoff", guard.Cutoff))
	}
	return writeState(s.dir, state{Schema: schema, Run: s.run, HighWater: now})
}

// identify reads who the data belongs to, nil for an empty database, and
// whether it has a guard.
func (s *Store) identify(ctx context.Context) (id *identity, guarded bool, err error) {
	err = s.View(ctx, func(tx store.Tx) error {
		_, err := tx.Get(canaryKey())
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
		_, err = store.ReadGuard(tx)
		guarded = err == nil
		return nil
	})
	return id, guarded, err
}

// amnesia says why the store may have forgotten something, "" if it has not.
func amnesia(id *identity, guarded bool, st *state, path string, now time.Time) string {
	switch {
	case id == nil:
		return "the store is new"
	case !guarded:
		return "the store had no valid generation"
	case st == nil:
		return "the state file is missing"
	case st.Run != id.Run:
		return "the data does not fit its state file: one of them was restored"
	case !st.Clean:
		return "the store was not closed cleanly"
	case now.Before(st.HighWater):
		return "the wall clock went backwards since the store was closed"
	case st.copied(path):
		return "the state file was copied: the store was restored"
	}
	return ""
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
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("closing the store: %w", err)
	}
	if s.failed != nil {
		return nil // not cleanly: what is on the disk is unknown
	}
	high := s.highWater
	if now := s.now().Round(0); now.After(high) {
		high = now
	}
	// Somebody may have opened the directory since it was unlocked. This run
	// is then not the one in the database any more, and the mark says nothing.
	return writeState(s.dir, state{Schema: schema, Run: s.run, Clean: true, HighWater: high})
}

// collect lets Badger reclaim its value log, as long as the store is open.
func (s *Store) collect() {
	defer s.loop.Done()
	t := time.NewTicker(gcInterval)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
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

// badgerLogger hands Badger's messages to zap. Its Info is news about tables
// and files: debugging for us.
type badgerLogger struct{ log *zap.SugaredLogger }

func (l badgerLogger) Errorf(format string, args ...any) {
	l.log.Errorf(strings.TrimSpace(format), args...)
}

func (l badgerLogger) Warningf(format string, args ...any) {
	l.log.Warnf(strings.TrimSpace(format), args...)
}

func (l badgerLogger) Infof(format string, args ...any) {
	l.log.Debugf(strings.TrimSpace(format), args...)
}

func (l badgerLogger) Debugf(string, ...any) {}
