package caddymodule

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// asCaddy makes the test binary be Caddy with the portal in it, so that tests
// can run Caddy as a process of its own without building it.
const asCaddy = "BILLING_PORTAL_TEST_AS_CADDY"

func TestMain(m *testing.M) {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		return
	}
	os.Exit(m.Run())
}

func init() { caddy.RegisterModule(slowProvider{}) }

// slowProvider is the sandbox with a delay before it finds a customer, so that
// minting a link takes a known time.
type slowProvider struct{ SandboxProvider }

const slowness = 1500 * time.Millisecond

func (slowProvider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "billing_portal.providers.slow", New: func() caddy.Module { return new(slowProvider) }}
}

func (s *slowProvider) OpenProvider(ctx context.Context, o ProviderOptions) (Provider, error) {
	p, err := s.SandboxProvider.OpenProvider(ctx, o)
	p.Provider = slowFind{p.Provider}
	return p, err
}

type slowFind struct{ billing.Provider }

func (s slowFind) Find(ctx context.Context, customer string) (billing.Customer, error) {
	time.Sleep(slowness)
	return s.Provider.Find(ctx, customer)
}
