package providertest_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stripe/stripe-mock/embedded"
	"github.com/stripe/stripe-mock/server"
	"go.uber.org/goleak"

	"github.com/portalcore/caddy-billing-portal/portalcore/providertest"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/stripetest"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // stripe-mock logs each request
	goleak.VerifyTestMain(m)
}

// start is the world's time at the beginning; it moves when it is told to.
// The 31st, so that months of different lengths follow.
var start = time.Date(2026, time.January, 31, 10, 20, 30, 0, time.UTC)

const key = "sk_test_providertest"

func world(t *testing.T) providertest.Ledger {
	t.Helper()
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	db, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := sandbox.Open(context.Background(), db, sandbox.Options{Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	return providertest.Ledger{T: t, Ledger: l, Faults: &sandbox.Faults{}}
}

func overSandbox(t *testing.T) providertest.Env {
	w := world(t)
	return providertest.Env{Provider: sandbox.NewProvider(w.Ledger, w.Faults, sandbox.ProviderOptions{Pages: "http://localhost/pages"}), World: w}
}

// overStripe is Stripe's provider over stripetest. Every request that it sends
// in any scenario is shown to stripe-mock as well, which must accept it.
func overStripe(mock http.Handler) func(t *testing.T) providertest.Env {
	return func(t *testing.T) providertest.Env {
		w := world(t)
		api := stripetest.New(w.Ledger, w.Faults, stripetest.Options{Key: key})
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if len(r.URL.Path) > 4 && r.URL.Path[:4] == "/v1/" {
				body, _ := io.ReadAll(r.Body)
				c := r.Clone(context.Background())
				c.Body = io.NopCloser(bytes.NewReader(body))
				rec := httptest.NewRecorder()
				mock.ServeHTTP(rec, c)
				if rec.Code != http.StatusOK {
					t.Errorf("stripe-mock refuses %s %s\n%s\n%s", r.Method, r.URL, body, rec.Body)
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
			}
			api.ServeHTTP(rw, r)
		}))
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.Start()
		t.Cleanup(srv.Close)
		transport := http.DefaultTransport.(*http.Transport).Clone()
		p, err := stripe.New(stripe.Options{Key: key, BaseURL: srv.URL, Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(transport.CloseIdleConnections)
		return providertest.Env{Provider: p, World: w}
	}
}

func TestProviders(t *testing.T) {
	spec, err := server.LoadSpec(embedded.OpenAPISpec, "")
	if err != nil {
		t.Fatal(err)
	}
	fixtures, err := server.LoadFixtures(embedded.OpenAPIFixtures, "")
	if err != nil {
		t.Fatal(err)
	}
	stub, err := server.NewStubServer(fixtures, spec, true, false)
	if err != nil {
		t.Fatal(err)
	}
	var a, b providertest.Transcripts
	t.Run("Sandbox", func(t *testing.T) { a = providertest.Run(t, overSandbox) })
	t.Run("StripeOverStripetestAndStripeMock", func(t *testing.T) { b = providertest.Run(t, overStripe(http.HandlerFunc(stub.HandleRequest))) })
	t.Run("Compare", func(t *testing.T) { providertest.Compare(t, "sandbox", a, "stripe", b) })
}
