package caddymodule

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/portalcore/caddy-billing-portal/portalcore"
)

// TestNoPortalIsNoError holds that a request which finds no portal is answered
// and does not end in an error: Caddy would log its URL, with a link's token.
func TestNoPortalIsNoError(t *testing.T) {
	gone := &App{ready: make(chan struct{})}
	close(gone.ready) // it started once, and nobody holds it any more
	waiting := &App{ready: make(chan struct{})}
	for name, app := range map[string]*App{"config is gone": gone, "visitor gave up": waiting} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			if app == waiting {
				cancel()
			}
			defer cancel()
			vars := map[string]any{}
			ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, vars)
			h := &Handler{app: app, site: &site{tenant: portalcore.Tenant{Name: "t"}}}
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/enter?token=CANARY", nil)
			if err := h.ServeHTTP(w, r, nil); err != nil {
				t.Errorf("ends in an error, which Caddy logs with the URL: %v", err)
			}
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Retry-After") == "" {
				t.Errorf("answered %d %v", w.Code, w.Header())
			}
			if vars[caddyhttp.LogSkipVar] != true {
				t.Error("the request is not kept out of the access log")
			}
		})
	}
}
