package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/webhook"
)

func init() {
	caddy.RegisterModule(SandboxProvider{})
}

// sandboxPages is where the sandbox's card pages are on the tenant's origin.
const sandboxPages = "/_sandbox/"

// SandboxProvider is a payment provider with a ledger of its own, for trying
// the portal out: no real money moves. The ledger has a few
// customers with plans and invoices to look at (cus_northwind is the first).
// Its card page is served under /_sandbox/ of the tenant's origin.
type SandboxProvider struct {
	// DataDir is the directory of the ledger, not the portal's own. Its values
	// are sealed with a key that is generated in a file beside it. Default:
	// billing_portal/sandbox in Caddy's data directory. Placeholders are
	// replaced. Tenants with the same directory share the ledger.
	DataDir string `json:"data_dir,omitempty"`

	// WebhookSecret (whsec_…, behind a placeholder) makes the ledger post signed
	// events to <origin>/webhook, as Stripe does, which must be reachable from
	// this machine; and the portal takes them. Of tenants that share a ledger, the
	// one that was opened last gets them. Empty: no events.
	WebhookSecret string `json:"webhook_secret,omitempty"`

	dir     string
	secrets []string     // one at most
	book    *sandboxBook // once open
}

// sandboxBook is an open ledger with the faults that were asked for. It stays
// with its store over reloads.
type sandboxBook struct {
	ledger    *sandbox.Ledger
	faults    *sandbox.Faults
	hooks     *sandbox.Webhooks
	customers []billing.Customer // the demo's
}

// CaddyModule returns the Caddy module information.
func (SandboxProvider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "billing_portal.providers.sandbox",
		New: func() caddy.Module { return new(SandboxProvider) },
	}
}

// Provision finds the directory and opens nothing.
func (s *SandboxProvider) Provision(caddy.Context) (err error) {
	if s.WebhookSecret != "" {
		if s.secrets, err = expandWebhookSecrets("provider sandbox", []string{s.WebhookSecret}); err != nil {
			return err
		}
	}
	s.dir, err = directory("provider sandbox: data_dir", s.DataDir, "sandbox")
	return err
}

// OpenProvider opens the ledger, or shares the one that is open.
func (s *SandboxProvider) OpenProvider(ctx context.Context, o ProviderOptions) (Provider, error) {
	resource, err := realDirectory(s.dir)
	if err != nil {
		return Provider{}, fmt.Errorf("provider sandbox: %w", err)
	}
	key, err := generatedSealKey(resource, "remove the directory to begin anew", nil) // no warning: what it seals is play money
	if err != nil {
		return Provider{}, fmt.Errorf("provider sandbox: %w", err)
	}
	st, err := acquire(resource, key, nil, func(dir string, sealer *store.Sealer, logger *zap.Logger) (OpenStore, error) {
		out, err := openBadger(dir, sealer, logger)
		if err != nil {
			return out, err
		}
		book, err := openLedger(ctx, out, logger)
		if err != nil {
			return OpenStore{}, errors.Join(err, out.Close())
		}
		out.attached = book
		out.Close = book.run(out.Close)
		return out, nil
	})
	if err != nil {
		return Provider{}, fmt.Errorf("provider sandbox: %w", err)
	}
	book, ok := st.attached.(*sandboxBook)
	if !ok {
		return Provider{}, errors.Join(fmt.Errorf("provider sandbox: %s is the portal's own store: give the sandbox a data_dir of its own", resource), release(resource))
	}
	s.book = book
	if len(s.secrets) > 0 {
		if err := book.hooks.Configure(ctx, o.Origin+webhook.Path, s.secrets[0]); err != nil {
			return Provider{}, errors.Join(fmt.Errorf("provider sandbox: webhook_secret: %w", err), release(resource))
		}
	}
	return Provider{
		Provider: sandbox.NewProvider(book.ledger, book.faults, sandbox.ProviderOptions{
			Pages: o.Origin + sandboxPages, WebhookSecrets: s.secrets,
		}),
		PagesPath: sandboxPages,
		Pages:     http.StripPrefix(strings.TrimSuffix(sandboxPages, "/"), book.ledger.Pages()),
		Close:     func() error { return release(resource) },
	}, nil
}

func openLedger(ctx context.Context, st store.Store, logger *zap.Logger) (*sandboxBook, error) {
	ledger, err := sandbox.Open(ctx, st, sandbox.Options{Logger: logger.Named("sandbox")})
	if err != nil {
		return nil, err
	}
	customers, err := sandbox.Seed(ctx, ledger)
	if err != nil {
		return nil, err
	}
	hooks := sandbox.NewWebhooks(ledger, sandbox.WebhookOptions{Logger: logger.Named("sandbox")})
	return &sandboxBook{ledger: ledger, faults: new(sandbox.Faults), hooks: hooks, customers: customers}, nil
}

// run sends the ledger's events until the function that it returns is called,
// which closes the store behind it.
func (b *sandboxBook) run(closeStore func() error) func() error {
	ctx, stop := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	sending.Go(func() { b.hooks.Run(ctx) })
	return func() error {
		stop()
		sending.Wait()
		return closeStore()
	}
}

// UnmarshalCaddyfile reads
//
//	sandbox {
//		data_dir       <directory>
//		webhook_secret {env.SANDBOX_WEBHOOK_SECRET}
//	}
func (s *SandboxProvider) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	if d.NextArg() {
		return d.Errf("provider sandbox takes no argument: write data_dir in its block")
	}
	return block(d, "provider sandbox", subdirectives{
		"data_dir": {once, func() error { return oneArg(d, &s.DataDir) }},
		"webhook_secret": {once, func() error {
			return secretArg(d, "provider sandbox: webhook_secret", func(v string) { s.WebhookSecret = v })
		}},
	})
}

// Interface guards
var (
	_ ProviderModule        = (*SandboxProvider)(nil)
	_ caddy.Provisioner     = (*SandboxProvider)(nil)
	_ caddyfile.Unmarshaler = (*SandboxProvider)(nil)
)
