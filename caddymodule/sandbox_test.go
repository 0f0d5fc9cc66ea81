package caddymodule

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// TestSandboxPostsEvents holds that a sandbox with a webhook_secret posts what
// happens to the tenant's own webhook, signed so that the provider of the
// portal takes it, and that closing it stops that.
func TestSandboxPostsEvents(t *testing.T) {
	type post struct {
		path   string
		header http.Header
		body   []byte
	}
	posts := make(chan post, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		posts <- post{r.URL.Path, r.Header.Clone(), body}
	}))
	defer srv.Close()
	t.Setenv("BP_WHSEC", "whsec_CANARY0123456789abcdef")
	s := SandboxProvider{DataDir: filepath.Join(t.TempDir(), "ledger"), WebhookSecret: "{env.BP_WHSEC}"}
	if err := s.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	p, err := s.OpenProvider(t.Context(), ProviderOptions{Tenant: "t", Origin: srv.URL, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	name := "Northwind (new)"
	if _, err := s.book.ledger.UpdateCustomer(t.Context(), sandbox.Call{}, "cus_northwind", sandbox.CustomerParams{Name: &name}); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-posts:
		e, err := p.ParseEvent(got.header, got.body, time.Now())
		want := billing.Event{ID: e.ID, Type: "customer.updated", Customer: "cus_northwind", Created: e.Created}
		if err != nil || got.path != "/webhook" || e != want || e.ID == "" {
			t.Errorf("%s: %+v, %v", got.path, e, err)
		}
	case <-time.After(20 * time.Second):
		t.Error("no event came")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
