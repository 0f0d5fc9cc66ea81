package caddymodule

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/portalcore/caddy-billing-portal/portalcore"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler serves one vendor's billing portal and answers every request that
// reaches it: a portal owns a whole origin. Its customers come with a redirect
// link that the vendor's backend gets from POST /v1/billing_portal/sessions,
// or signs itself.
//
// Requests with a token in their URL (/enter) or Referer are left out of the
// access log; the portal writes a line of its own without the token.
//
// Place it before templates where the order is yours (inside route): its pages
// must not be evaluated by another template engine.
type Handler struct {
	Tenant

	app  *App
	site *site
	done <-chan struct{} // closed when the config is discarded
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.billing_portal",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision reads and checks the tenant and registers it with the app, which
// opens what it needs when it starts.
func (h *Handler) Provision(ctx caddy.Context) error {
	mod, err := ctx.App("billing_portal")
	if err != nil {
		return fmt.Errorf("loading the billing_portal app: %w", err)
	}
	h.app = mod.(*App)
	h.done = ctx.Done()
	if err := h.provision(ctx); err != nil {
		// Caddy names a handler by its place among the routes only.
		if site := cmp.Or(h.Origin, h.Name); site != "" {
			return fmt.Errorf("billing_portal %s: %w", site, err)
		}
		return fmt.Errorf("billing_portal: %w", err)
	}
	return nil
}

func (h *Handler) provision(ctx caddy.Context) error {
	if len(h.ProviderRaw) == 0 {
		return errors.New("provider is missing: write provider stripe with an api_key, or provider sandbox to try the portal")
	}
	val, err := ctx.LoadModule(h, "ProviderRaw")
	if err != nil {
		return fmt.Errorf("loading the provider: %w", err)
	}
	provider, ok := val.(ProviderModule)
	if !ok {
		return fmt.Errorf("module %T is not a provider of the portal", val)
	}
	t, err := h.tenant()
	if err != nil {
		return err
	}
	if err := portalcore.CheckTenant(t); err != nil {
		return err
	}
	h.site, err = h.app.register(t, provider, ctx.Logger())
	return err
}

// ServeHTTP answers once the app has started.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	// The page that asks before it opens has the token in its URL, which some
	// clients name in what they ask for next.
	if strings.Contains(r.Referer(), "token=") {
		skipAccessLog(r.Context())
	}
	if !h.started(r.Context()) && r.Context().Err() != nil {
		notNow(w, r)
		return nil
	}
	app, s := h.app, h.site
	if !app.hold() {
		// The config that this request came in through is gone. It was taken in
		// just before a reload, or by a config that listened for a moment and
		// then failed to start. The config that runs answers.
		var ok bool
		if app, s, ok = activeSite(s.tenant.Name); !ok || !app.hold() {
			notNow(w, r)
			return nil
		}
	}
	defer app.dropLogged()
	s.ServeHTTP(w, r)
	return nil
}

// notNow answers where there is no portal to answer. It does not return an
// error: Caddy logs the whole URL of a request that ended in one, with the
// token of a link.
func notNow(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.RawQuery, "token=") {
		skipAccessLog(r.Context())
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(w, "Billing is not available right now. Nothing was changed. Please try again in a moment.\n")
}

// started waits until the app has started. It reports false where that will
// not happen any more, or the visitor gave up.
func (h *Handler) started(ctx context.Context) bool {
	select {
	case <-h.app.ready:
		return true
	default:
	}
	select {
	case <-h.app.ready:
		return true
	case <-h.done:
		return false
	case <-ctx.Done():
		return false
	}
}

// ServeHTTP answers with the portal, or with the pages that the provider has
// on the tenant's origin.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.provider.Pages == nil || !strings.HasPrefix(r.URL.Path, s.provider.PagesPath) {
		s.portal.ServeHTTP(w, r)
		return
	}
	// The portal checks the Host itself; these pages belong to its origin too.
	if _, host, _ := strings.Cut(s.tenant.Origin, "://"); r.Host != host {
		http.Error(w, "This site answers "+s.tenant.Origin+" only.", http.StatusMisdirectedRequest)
		return
	}
	s.provider.Pages.ServeHTTP(w, r)
}

// skipAccessLog keeps a request out of the access log: its URL carries a token.
func skipAccessLog(ctx context.Context) { caddyhttp.SetVar(ctx, caddyhttp.LogSkipVar, true) }

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
