package caddymodule

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

func init() {
	caddy.RegisterModule(BadgerStorage{})
}

// Storage is the Go interface of modules in the namespace
// billing_portal.stores. A module only says what to open; the app opens it
// when it starts, shares it over reloads, and closes it.
type Storage interface {
	caddy.Module
	// NeedsSealKey is true where the values leave this machine, so that a key
	// generated on it would be lost to all others: the app then refuses a config
	// without seal_key.
	NeedsSealKey() bool
	// Resource names what the store has for itself while it is open, so that
	// two configs that mean the same store share it: an absolute path, or the database without credentials. Settings
	// that can change while it is open are no part of it. It is called when the
	// app starts.
	Resource() (string, error)
	// OpenStore opens the store at resource. Nothing of a config may be kept in
	// it, because it outlives the config: logger goes to whatever log is
	// configured at the time.
	OpenStore(resource string, sealer *store.Sealer, logger *zap.Logger) (OpenStore, error)
}

// OpenStore is a store with what the app must know of it.
type OpenStore struct {
	store.Store
	// Exclusive is true where no other process can have the store open.
	Exclusive bool
	// Close closes it. Required.
	Close func() error
	// Reseal seals with the current key what a previous key sealed, and returns
	// how many values there were (see store.NewSealer). It is called once, beside
	// everything else, where there are previous keys, and has ended before Close
	// is called. Optional: nil where the store cannot change its key.
	Reseal func(context.Context) (int, error)

	// attached is what a provider keeps with its store; nil for a portal's.
	attached any
}

// SweepTurn is the store's own (store.Turns), which embedding it hides; it is
// always this process's turn where the store has none.
func (s OpenStore) SweepTurn(ctx context.Context, tenant string, now time.Time) (bool, error) {
	return sweepTurn(ctx, s.Store, tenant, now)
}

func sweepTurn(ctx context.Context, s store.Store, tenant string, now time.Time) (bool, error) {
	if turns, ok := s.(store.Turns); ok {
		return turns.SweepTurn(ctx, tenant, now)
	}
	return true, nil
}

// BadgerStorage keeps everything in a directory of its own on this machine,
// with Badger. It is for one Caddy process at a time.
type BadgerStorage struct {
	// Directory is made where it does not exist, mode 0700. Default:
	// billing_portal/store in Caddy's data directory. Placeholders are
	// replaced.
	Directory string `json:"directory,omitempty"`

	dir string
}

// CaddyModule returns the Caddy module information.
func (BadgerStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "billing_portal.stores.badger",
		New: func() caddy.Module { return new(BadgerStorage) },
	}
}

// Provision finds the directory and opens nothing.
func (b *BadgerStorage) Provision(caddy.Context) (err error) {
	b.dir, err = directory("store badger", b.Directory, "store")
	return err
}

// directory returns the absolute path of a configured directory, or of the
// default under Caddy's data directory.
func directory(what, configured, name string) (string, error) {
	if configured == "" {
		return filepath.Abs(filepath.Join(caddy.AppDataDir(), "billing_portal", name))
	}
	dir, err := expand(what, configured)
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// UnmarshalCaddyfile reads
//
//	badger [<directory>]
func (b *BadgerStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	args := d.RemainingArgs()
	if len(args) > 1 {
		return d.Errf("store badger takes at most one argument, its directory")
	}
	if len(args) == 1 {
		b.Directory = args[0]
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("store badger has no subdirectives: give its directory as its argument")
	}
	return nil
}

// NeedsSealKey is false: a key is generated beside the directory.
func (*BadgerStorage) NeedsSealKey() bool { return false }

// Resource is the absolute directory without symbolic links. It makes the
// directory.
func (b *BadgerStorage) Resource() (string, error) { return realDirectory(b.dir) }

// realDirectory makes a directory and follows symbolic links, so that two names
// of it are one. It is made first because only then all links can be followed:
// the name must be the same at the first start and at every reload.
func realDirectory(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// OpenStore opens the directory.
func (b *BadgerStorage) OpenStore(dir string, sealer *store.Sealer, logger *zap.Logger) (OpenStore, error) {
	return openBadger(dir, sealer, logger)
}

func openBadger(dir string, sealer *store.Sealer, logger *zap.Logger) (OpenStore, error) {
	st, err := badger.Open(dir, badger.Options{Sealer: sealer, Logger: logger})
	if err != nil {
		return OpenStore{}, err
	}
	return OpenStore{Store: st, Exclusive: true, Close: st.Close, Reseal: st.Reseal}, nil
}

// stores keeps stores open over reloads, one per resource. Callers use acquire
// and release.
var stores = caddy.NewUsagePool()

// opened and closed count stores, for tests.
var opened, closed atomic.Int64

// sharedStore is an open store in the pool. It holds nothing of any config.
type sharedStore struct {
	OpenStore
	seal   [sha256.Size]byte // of the current seal key
	sealer *store.Sealer

	backingUp atomic.Bool

	resealing sync.WaitGroup
	stop      context.CancelFunc // ends resealing
}

// Destruct closes the store when its last user has gone.
func (s *sharedStore) Destruct() error {
	defer closed.Add(1)
	s.stop()
	s.resealing.Wait()
	return s.Close()
}

// reseal makes the previous keys dispensable, beside everything else: a large
// store must not hold up a start.
func (s *sharedStore) reseal(ctx context.Context, logger *zap.Logger) {
	if s.Reseal == nil {
		logger.Warn("this store cannot seal its values anew: keep the previous seal keys")
		return
	}
	s.resealing.Go(func() {
		n, err := s.Reseal(ctx)
		switch {
		case ctx.Err() != nil:
			logger.Info("interrupted while sealing values with the current key; the next start goes on, so keep the previous seal keys", zap.Int("sealed", n))
		case err != nil:
			logger.Error("sealing values with the current key failed; the next start tries again, so keep the previous seal keys", zap.Int("sealed", n), zap.Error(err))
		default:
			logger.Info("all values are sealed with the current key; the previous ones can be taken out of seal_key", zap.Int("sealed", n))
		}
	})
}

// acquire opens a store or shares the one that is open. Every success needs one
// release. What a previous key sealed is sealed with sealKey once it is open. A
// store that is open is shared whatever the previous keys are: it needs no more
// than those it was opened with.
func acquire(resource string, sealKey []byte, previous [][]byte, open func(string, *store.Sealer, *zap.Logger) (OpenStore, error)) (*sharedStore, error) {
	seal := sha256.Sum256(sealKey)
	v, _, err := stores.LoadOrNew(resource, func() (caddy.Destructor, error) {
		sealer, err := store.NewSealer(sealKey, previous...)
		if err != nil {
			return nil, err
		}
		logger := zap.New(currentLog{}).Named("billing_portal.store")
		st, err := open(resource, sealer, logger)
		if err != nil {
			return nil, err
		}
		opened.Add(1)
		logger.Info("opened the store", zap.String("resource", resource))
		ctx, stop := context.WithCancel(context.Background())
		shared := &sharedStore{OpenStore: st, seal: seal, sealer: sealer, stop: stop}
		if len(previous) > 0 {
			shared.reseal(ctx, logger)
		}
		return shared, nil
	})
	if err != nil {
		return nil, err
	}
	st := v.(*sharedStore)
	if st.seal != seal {
		return nil, errors.Join(
			fmt.Errorf("the store %s is open with another seal key: stop Caddy and start it again to change the key, with the old one after the new one in seal_key", resource),
			release(resource))
	}
	return st, nil
}

func release(resource string) error {
	_, err := stores.Delete(resource)
	return err
}

// generatedSealKey reads the key that was generated for the store in dir, or
// generates it, in a file beside the directory. Where the directory has data
// and the file is gone, another key would be of no use and would only hide what
// happened, so none is made; the error then says to restore the file or to do
// what instead says.
func generatedSealKey(dir, instead string, logger *zap.Logger) ([]byte, error) {
	path := sealKeyFile(dir)
	// In this order: another process that makes both makes the key first.
	used, err := hasData(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the store's directory: %w", err)
	}
	_, err = os.Stat(path)
	missing := errors.Is(err, os.ErrNotExist)
	if missing && used {
		return nil, fmt.Errorf("%s has data, but the generated key it is sealed with is gone: restore %s, or %s", dir, path, instead)
	}
	key, err := store.LoadOrCreateSealKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w (or %s)", err, instead)
	}
	if missing && logger != nil {
		logger.Warn("generated a seal key for the store; back it up apart from the store, which cannot be read without it, or set seal_key", zap.String("file", path))
	}
	return key, nil
}

// sealKeyFile is where the generated key of the store in dir is.
func sealKeyFile(dir string) string { return dir + ".seal_key" }

// hasData reports whether something was ever stored in dir.
func hasData(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return e.Name() != "lost+found" // of a fresh file system
	}), nil
}

// currentLog is a zap core that writes to Caddy's default log of the moment,
// for what outlives the config it was made under.
type currentLog struct{ fields []zapcore.Field }

// Enabled asks the log of the moment.
func (currentLog) Enabled(l zapcore.Level) bool { return caddy.Log().Core().Enabled(l) }

// With returns a core that adds fields to every entry.
func (c currentLog) With(fields []zapcore.Field) zapcore.Core {
	return currentLog{append(slices.Clip(c.fields), fields...)}
}

// Check takes every entry that is enabled.
func (c currentLog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write hands the entry on.
func (c currentLog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if ce := caddy.Log().Core().Check(e, nil); ce != nil {
		ce.Write(append(slices.Clip(c.fields), fields...)...)
	}
	return nil
}

// Sync flushes the log of the moment.
func (currentLog) Sync() error { return caddy.Log().Core().Sync() }

// Interface guards
var (
	_ store.Turns           = OpenStore{}
	_ Storage               = (*BadgerStorage)(nil)
	_ caddy.Provisioner     = (*BadgerStorage)(nil)
	_ caddyfile.Unmarshaler = (*BadgerStorage)(nil)
	_ caddy.Destructor      = (*sharedStore)(nil)
	_ zapcore.Core          = currentLog{}
)
