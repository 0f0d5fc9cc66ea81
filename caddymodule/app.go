package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func init() {
	caddy.RegisterModule(new(App))
}

// startTimeout bounds how long the portals of a config may take to start. A
// provider that does not answer is no reason for a start to fail, so what is
// left is the store's own work.
const startTimeout = 30 * time.Second

// process names this operating-system process in the store, over all reloads.
var process = uuid.NewString()

// App owns the store of all portals of a config and runs them. It works with
// defaults where the config does not mention it.
//
// The store is opened when the app starts, so that checking a config opens
// nothing, and stays open over reloads as long as the directory is the same.
type App struct {
	// StoreRaw is where sessions, journal and audit trail live, a module of the
	// namespace billing_portal.stores. Default: badger in
	// billing_portal/store of Caddy's data directory.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=billing_portal.stores inline_key=module"`

	// SealKey is the key that the store's values are encrypted with: 64
	// hexadecimal digits or 32 bytes in base64 (openssl rand -hex 32), behind a
	// placeholder like {file./path} or {env.NAME}. Default: a key is generated
	// in a file beside the store's directory, named after it with
	// ".seal_key", mode 0600, with a warning to back it up. It cannot change
	// while the store is open: restart to change it, with the old one among the
	// previous ones.
	SealKey string `json:"seal_key,omitempty"`

	// PreviousSealKeys are keys that values may still be sealed with, each behind
	// a placeholder as SealKey, which they need. They only open; when the store
	// is opened, what they sealed is sealed with SealKey in the background, and a
	// line in the log says when they can be taken out. Default: none.
	PreviousSealKeys []string `json:"previous_seal_keys,omitempty"`

	logger       *zap.Logger
	storage      Storage
	sealKey      []byte // nil: from the generated file
	previousKeys [][]byte

	sites map[string]*site // by name; complete before Start
	ready chan struct{}    // closed by Start
	stop  context.CancelFunc
	runs  sync.WaitGroup

	store *sharedStore // from Start on, where there are sites

	mu      sync.Mutex
	holds   int // who needs what Start opened: the config, and each request
	owned   bool
	closers []func() error
}

// site is a tenant on its way from config to portal.
type site struct {
	tenant   portalcore.Tenant
	module   ProviderModule
	logger   *zap.Logger
	provider Provider // from Start on
	portal   *portalcore.Portal
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "billing_portal",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision reads and checks the app's settings.
func (a *App) Provision(ctx caddy.Context) error {
	a.logger = ctx.Logger()
	a.ready = make(chan struct{})
	a.sites = make(map[string]*site)
	var mod any
	var err error
	if len(a.StoreRaw) > 0 {
		mod, err = ctx.LoadModule(a, "StoreRaw")
	} else {
		mod, err = ctx.LoadModuleByID("billing_portal.stores.badger", nil)
	}
	if err != nil {
		return fmt.Errorf("loading the store: %w", err)
	}
	var ok bool
	if a.storage, ok = mod.(Storage); !ok {
		return fmt.Errorf("module %T is not a store of the portal", mod)
	}
	if a.SealKey != "" {
		if a.sealKey, err = readSealKey("seal_key", a.SealKey); err != nil {
			return err
		}
	} else if len(a.PreviousSealKeys) > 0 {
		return errors.New("previous_seal_keys needs seal_key, the key to seal with from now on")
	} else if a.storage.NeedsSealKey() {
		return fmt.Errorf("store %s needs seal_key, the same for all nodes: make one with openssl rand -hex 32 and give a placeholder like {env.PORTAL_SEAL_KEY} or {file./path}", storeKind(a.storage))
	}
	for i, raw := range a.PreviousSealKeys {
		key, err := readSealKey(previousSealKey(i), raw)
		if err != nil {
			return err
		}
		a.previousKeys = append(a.previousKeys, key)
	}
	return nil
}

// storeKind is the name of a store's module, as in "store badger".
func storeKind(s Storage) string { return s.CaddyModule().ID.Name() }

// previousSealKey is what errors call the previous key at index i.
func previousSealKey(i int) string { return fmt.Sprintf("seal_key: previous key %d", i+1) }

func readSealKey(what, placeholder string) ([]byte, error) {
	text, err := expandSecret(what, placeholder)
	if err != nil {
		return nil, err
	}
	key, err := store.ParseSealKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return key, nil
}

// register takes a tenant in while the config is provisioned.
func (a *App) register(t portalcore.Tenant, p ProviderModule, l *zap.Logger) (*site, error) {
	if t.Name == "" { // CheckTenant has passed, so this is scheme://host
		_, t.Name, _ = strings.Cut(t.Origin, "://")
	}
	name := t.Name
	if _, ok := a.sites[name]; ok {
		return nil, fmt.Errorf("the tenant %q is configured twice: a tenant has one site block with one address; give the other one its own origin, or its own name", name)
	}
	for _, other := range a.sites {
		if other.tenant.Origin == t.Origin {
			return nil, fmt.Errorf("the tenants %q and %q have the same origin %s: a portal owns its whole origin", other.tenant.Name, name, t.Origin)
		}
	}
	s := &site{tenant: t, module: p, logger: l}
	a.sites[name] = s
	return s, nil
}

// Start opens the store and the providers and starts the portals. Requests
// wait until it is done.
func (a *App) Start() error {
	a.mu.Lock()
	a.owned, a.holds = true, 1
	a.mu.Unlock()
	if len(a.sites) == 0 {
		close(a.ready)
		return nil
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	a.store = st
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := st.View(ctx, store.CheckUsable); err != nil {
		return err
	}
	for name, s := range a.sites {
		s.provider, err = s.module.OpenProvider(ctx, ProviderOptions{Tenant: name, Origin: s.tenant.Origin, Logger: s.logger})
		if err != nil {
			return fmt.Errorf("tenant %s: opening the provider: %w", name, err)
		}
		if s.provider.Close != nil {
			a.closeLater(s.provider.Close)
		}
		s.portal, err = portalcore.New(portalcore.Options{
			Tenant: s.tenant, Store: failpointStore(st), Provider: failpointProvider(s.provider.Provider), Logger: s.logger,
			Process: process, ExclusiveStore: st.Exclusive, SkipAccessLog: skipAccessLog,
		})
		if err != nil {
			return fmt.Errorf("tenant %s: %w", name, err)
		}
		a.closeLater(func() error { s.portal.Close(); return nil })
	}
	if err := a.startPortals(ctx); err != nil {
		return err
	}
	run, stop := context.WithCancel(context.Background())
	a.stop = stop
	for _, s := range a.sites {
		a.runs.Go(func() { s.portal.Run(run) })
	}
	close(a.ready)
	return nil
}

// startPortals starts all portals at the same time: one tenant's slow provider
// must not keep the others waiting.
func (a *App) startPortals(ctx context.Context) error {
	errs := make(chan error, len(a.sites))
	for name, s := range a.sites {
		go func() {
			if err := s.portal.Start(ctx); err != nil {
				errs <- fmt.Errorf("tenant %s: %w", name, err)
				return
			}
			errs <- nil
		}()
	}
	all := make([]error, 0, len(a.sites))
	for range a.sites {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// openStore opens the store, or shares the one that the running config has
// open. It is let go of when nobody holds the app any more.
func (a *App) openStore() (*sharedStore, error) {
	key, err := a.storage.Resource()
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	sealKey := a.sealKey
	if sealKey == nil {
		if sealKey, err = generatedSealKey(key, "set seal_key", a.logger); err != nil {
			return nil, err
		}
	}
	st, err := acquire(key, sealKey, a.previousKeys, a.storage.OpenStore)
	if err != nil {
		return nil, err
	}
	if st.attached != nil {
		return nil, errors.Join(fmt.Errorf("the store %s is a sandbox's ledger: give the portal a directory of its own", key), release(key))
	}
	a.closeLater(func() error { return release(key) })
	return st, nil
}

// Stop ends the background work. Requests may still be under way, so
// everything stays open until Cleanup.
func (a *App) Stop() error {
	if a.stop != nil {
		a.stop()
	}
	return nil
}

// Cleanup runs after every app of the config has stopped. It lets go of what
// Start took, once, and of nothing where Start did not run: a config that was
// rejected must not close the store of the one that runs.
func (a *App) Cleanup() error {
	_ = a.Stop()
	a.runs.Wait()
	a.mu.Lock()
	owned := a.owned
	a.owned = false
	a.mu.Unlock()
	if owned {
		return a.drop()
	}
	return nil
}

// hold keeps what Start opened open until drop. It reports false where it is
// not open, or no longer.
func (a *App) hold() bool {
	select {
	case <-a.ready:
	default:
		return false // Start failed, or has not finished
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds == 0 {
		return false
	}
	a.holds++
	return true
}

// drop ends a hold; the last one closes. A request that outlives its config
// (a reload does not wait for it) is therefore answered in peace.
func (a *App) drop() error {
	a.mu.Lock()
	a.holds--
	var closers []func() error
	if a.holds == 0 {
		closers, a.closers = a.closers, nil
	}
	a.mu.Unlock()
	var errs []error
	for _, c := range slices.Backward(closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

func (a *App) dropLogged() {
	if err := a.drop(); err != nil {
		a.logger.Error("closing what a discarded config had open", zap.Error(err))
	}
}

func (a *App) closeLater(f func() error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closers = append(a.closers, f)
}

// activeSite returns a tenant of the config that runs now.
func activeSite(name string) (*App, *site, bool) {
	mod, err := caddy.ActiveContext().AppIfConfigured("billing_portal")
	if err != nil {
		return nil, nil, false
	}
	a, ok := mod.(*App)
	if !ok {
		return nil, nil, false
	}
	s, ok := a.sites[name]
	return a, s, ok
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
