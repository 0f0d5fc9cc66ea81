package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/stripe/stripe-go/v85"
)

// TestStripeGoAgainstTheRunningPortal points an unmodified Stripe SDK, with a
// key of the portal's own, at a running Caddy, and opens what it gets.
func TestStripeGoAgainstTheRunningPortal(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	client := func(key string) *stripe.Client {
		backend := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
			URL: new(d.Portal), LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull},
		})
		return stripe.NewClient(key, stripe.WithBackends(&stripe.Backends{API: backend, Connect: backend, Uploads: backend, MeterEvents: backend}))
	}
	params := &stripe.BillingPortalSessionCreateParams{Customer: new("cus_globex"), ReturnURL: new(d.VendorApp + "/product")}
	s, err := client(d.APIKey).V1BillingPortalSessions.Create(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	v := newVisitor(t, d.Portal)
	if p := v.enter(t, s.URL); p.status != http.StatusSeeOther {
		t.Fatalf("opening the link: %d", p.status)
	}
	p := v.get(t, "/")
	if !strings.Contains(p.body, "Globex GmbH") || !strings.Contains(p.body, `href="`+d.VendorApp+`/product"`) {
		t.Errorf("the overview is not Globex's, or does not lead back to the return_url:\n%s", p.body)
	}
	for key, status := range map[string]int{"bpk_not_a_key_of_this_portal": 401, "sk_test_0123456789abcdef0123": 401} {
		var e *stripe.Error
		if _, err := client(key).V1BillingPortalSessions.Create(t.Context(), params); !errors.As(err, &e) || e.HTTPStatusCode != status || e.RequestID == "" {
			t.Errorf("key %.6s…: %v", key, err)
		}
	}
	var e *stripe.Error
	params.Customer = new("cus_nobody")
	if _, err := client(d.APIKey).V1BillingPortalSessions.Create(t.Context(), params); !errors.As(err, &e) || e.Code != stripe.ErrorCodeResourceMissing || e.Param != "customer" {
		t.Errorf("unknown customer: %v", err)
	}
	params.Customer, params.ReturnURL = new("cus_globex"), new("https://evil.example/")
	if _, err := client(d.APIKey).V1BillingPortalSessions.Create(t.Context(), params); !errors.As(err, &e) || e.Param != "return_url" {
		t.Errorf("foreign return_url: %v", err)
	}
	// Any other call of a global client that was pointed here by mistake.
	if _, err := client(d.APIKey).V1Customers.Retrieve(t.Context(), "cus_globex", nil); !errors.As(err, &e) || e.HTTPStatusCode != 404 {
		t.Errorf("another call: %v", err)
	}
	for _, secret := range []string{d.APIKey, "sk_test_0123456789abcdef0123", "token=ey"} {
		if strings.Contains(d.stderr.String(), secret) {
			t.Errorf("the log holds %.8s…", secret)
		}
	}
}
