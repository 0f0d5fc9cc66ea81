package caddymodule

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
)

func init() {
	caddy.RegisterModule(StripeProvider{})
}

// ProviderModule is the Go interface of modules in the namespace
// billing_portal.providers. A module is provisioned with the config, once for
// each tenant, and opened when the app starts.
type ProviderModule interface {
	// OpenProvider opens the provider for one tenant. A provider that cannot be
	// reached is no error: the portal says so to its visitors.
	OpenProvider(ctx context.Context, o ProviderOptions) (Provider, error)
}

// ProviderOptions say for whom a provider is opened.
type ProviderOptions struct {
	// Tenant is the tenant's name.
	Tenant string
	// Origin is the tenant's origin, without a slash at the end.
	Origin string
	// Logger belongs to the config that is starting.
	Logger *zap.Logger
}

// Provider is an open provider with what the shell must know of it.
type Provider struct {
	billing.Provider
	// PagesPath and Pages are pages of the provider's own on the tenant's
	// origin: Pages gets every request under PagesPath, which begins and ends
	// with a slash. Optional.
	PagesPath string
	Pages     http.Handler
	// Close is called once, when the last request of the config has ended.
	// Optional.
	Close func() error
}

// StripeProvider forwards to Stripe (https://stripe.com).
type StripeProvider struct {
	// APIKey is a restricted key (rk_…) or a secret key (sk_…), behind a
	// placeholder like {env.STRIPE_RESTRICTED_KEY} or {file./path}. Required.
	APIKey string `json:"api_key,omitempty"`

	// WebhookSecrets are the signing secrets (whsec_…) of the endpoint at
	// <origin>/webhook that Stripe posts events to, each behind a placeholder. The
	// old one stays beside the new one while it is rolled over. Empty: events are
	// not taken (404), and what changes at Stripe shows after account_max_age.
	WebhookSecrets []string `json:"webhook_secrets,omitempty"`

	// BaseURL is where the API is, on a loopback host, for tests. Default:
	// https://api.stripe.com.
	BaseURL string `json:"base_url,omitempty"`

	// RateLimit is the most requests that this process sends to Stripe in a
	// second under the key; more wait their turn. Tenants with the same key share
	// it, and the lowest counts; several nodes share what Stripe allows the
	// account. Default: 25 with a test key, 80 with a live one.
	RateLimit int `json:"rate_limit,omitempty"`

	// key, secrets and not more are kept of the expanded secrets, unexported, so
	// that they are never marshalled.
	key     string
	secrets []string
}

// CaddyModule returns the Caddy module information.
func (StripeProvider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "billing_portal.providers.stripe",
		New: func() caddy.Module { return new(StripeProvider) },
	}
}

// Provision reads the API key and checks the settings.
func (s *StripeProvider) Provision(caddy.Context) (err error) {
	if s.key, err = expandSecret("provider stripe: api_key", s.APIKey); err != nil {
		return err
	}
	if s.secrets, err = expandWebhookSecrets("provider stripe", s.WebhookSecrets); err != nil {
		return err
	}
	if s.BaseURL != "" {
		if u, err := url.Parse(s.BaseURL); err != nil || !isLoopback(u.Hostname()) {
			return fmt.Errorf("provider stripe: base_url is for tests and takes a loopback host only, like http://127.0.0.1:12111")
		}
	}
	// A client that is never used finds a malformed key before Start.
	if _, err := s.client(nil); err != nil {
		return fmt.Errorf("provider stripe: %w", err)
	}
	return nil
}

func (s *StripeProvider) client(l *zap.Logger) (*stripe.Provider, error) {
	return stripe.New(stripe.Options{Key: s.key, BaseURL: s.BaseURL, Logger: l, WebhookSecrets: s.secrets, RequestsPerSecond: s.RateLimit})
}

// expandWebhookSecrets reads a provider's webhook secrets through their
// placeholders. Its errors never hold a secret.
func expandWebhookSecrets(what string, values []string) ([]string, error) {
	var secrets []string
	for i, v := range values {
		name := fmt.Sprintf("%s: webhook_secret %d", what, i+1)
		secret, err := expandSecret(name, v)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(secret, "whsec_") {
			return nil, fmt.Errorf("%s: what is behind %s does not begin with whsec_: it must be the signing secret of the webhook endpoint, not an API key", name, v)
		}
		if len(secret) < len("whsec_")+16 {
			return nil, fmt.Errorf("%s: what is behind %s is too short for a signing secret: whsec_ and 16 characters or more", name, v)
		}
		secrets = append(secrets, secret)
	}
	return secrets, nil
}

// OpenProvider makes the client. It sends nothing.
func (s *StripeProvider) OpenProvider(_ context.Context, o ProviderOptions) (Provider, error) {
	p, err := s.client(o.Logger)
	if err != nil {
		return Provider{}, err
	}
	return Provider{Provider: p, Close: p.Close}, nil
}

// UnmarshalCaddyfile reads
//
//	stripe {
//		api_key        {env.STRIPE_RESTRICTED_KEY}
//		webhook_secret {env.STRIPE_WEBHOOK_SECRET}   # repeatable
//		rate_limit     25
//		base_url       http://127.0.0.1:12111
//	}
func (s *StripeProvider) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	if d.NextArg() {
		return d.Errf("provider stripe takes no argument: write its settings in a block, api_key first")
	}
	return block(d, "provider stripe", subdirectives{
		"api_key": {once, func() error {
			return secretArg(d, "provider stripe: api_key", func(v string) { s.APIKey = v })
		}},
		"base_url": {once, func() error { return oneArg(d, &s.BaseURL) }},
		"rate_limit": {once, func() error {
			var v string
			if err := oneArg(d, &v); err != nil {
				return err
			}
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				return d.Errf("provider stripe: rate_limit takes how many requests a second may be sent, like 25, not %q", v)
			}
			s.RateLimit = n
			return nil
		}},
		"webhook_secret": {repeated, func() error {
			return secretArg(d, "provider stripe: webhook_secret", func(v string) { s.WebhookSecrets = append(s.WebhookSecrets, v) })
		}},
	})
}

func isLoopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Interface guards
var (
	_ ProviderModule        = (*StripeProvider)(nil)
	_ caddy.Provisioner     = (*StripeProvider)(nil)
	_ caddyfile.Unmarshaler = (*StripeProvider)(nil)
)
