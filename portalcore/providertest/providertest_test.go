package providertest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-mock/embedded"
	"github.com/stripe/stripe-mock/server"
	"github.com/stripe/stripe-mock/spec"
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
// in any scenario is shown to stripe-mock as well, which must accept it, and
// every answer of stripetest's is held against the spec's shapes.
func overStripe(mock http.Handler, shapes map[string]*spec.Schema) func(t *testing.T) providertest.Env {
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
			api.ServeHTTP(&judged{ResponseWriter: rw, t: t, shapes: shapes}, r)
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
	sp, err := server.LoadSpec(embedded.OpenAPISpec, "")
	if err != nil {
		t.Fatal(err)
	}
	fixtures, err := server.LoadFixtures(embedded.OpenAPIFixtures, "")
	if err != nil {
		t.Fatal(err)
	}
	stub, err := server.NewStubServer(fixtures, sp, true, false)
	if err != nil {
		t.Fatal(err)
	}
	var a, b providertest.Transcripts
	t.Run("Sandbox", func(t *testing.T) { a = providertest.Run(t, overSandbox) })
	t.Run("StripeOverStripetestAndStripeMock", func(t *testing.T) {
		b = providertest.Run(t, overStripe(http.HandlerFunc(stub.HandleRequest), sp.Components.Schemas))
	})
	t.Run("Compare", func(t *testing.T) { providertest.Compare(t, "sandbox", a, "stripe", b) })
}

// With 200 ms on every HTTP request the overview comes in under 1.2 times its
// longest chain of dependent calls, which is two.
func TestStripeOverviewUnderLatency(t *testing.T) {
	const delay = 200 * time.Millisecond
	w := world(t)
	w.Price("price_a", "usd", "1000", "month")
	m := w.Customer(providertest.Customer{Card: providertest.CardWorks, Price: "price_a", Quantity: 1})
	srv := httptest.NewServer(stripetest.New(w.Ledger, w.Faults, stripetest.Options{Key: key}))
	defer srv.Close()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	p, err := stripe.New(stripe.Options{Key: key, BaseURL: srv.URL, Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	w.Fault(sandbox.Fault{On: "any", Times: 1000, Kind: sandbox.FaultLatency, Latency: delay})
	best := time.Hour
	for range 3 { // the machine may be busy once, the chain is always the same
		start := time.Now()
		if _, err := p.Account(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	if limit := delay * 2 * 12 / 10; best > limit || best < 2*delay {
		t.Errorf("the overview took %s, want %s to %s", best, 2*delay, limit)
	}
}

// judged holds the objects in stripetest's answers against Stripe's spec: each
// member must be one of Stripe's, of the type and with a value that the spec
// names. (Members that are missing are no fault: stripetest has a part of
// Stripe's objects only.)
type judged struct {
	http.ResponseWriter
	t      *testing.T
	shapes map[string]*spec.Schema
}

func (j *judged) Unwrap() http.ResponseWriter { return j.ResponseWriter }

func (j *judged) Write(b []byte) (int, error) {
	var v any
	if json.Unmarshal(b, &v) == nil { // not the garbage of a fault, nor a file
		j.object(v, "")
	}
	return j.ResponseWriter.Write(b)
}

// object looks for objects that name their kind.
func (j *judged) object(v any, at string) {
	switch v := v.(type) {
	case []any:
		for i, x := range v {
			j.object(x, fmt.Sprintf("%s[%d]", at, i))
		}
	case map[string]any:
		kind, _ := v["object"].(string)
		if s := j.shapes[kind]; s != nil {
			if why := j.fits(v, s, kind); why != "" {
				j.t.Errorf("stripetest answers with what Stripe's spec does not know: %s", why)
			}
			return
		}
		if kind != "list" && at == "" && v["error"] == nil {
			j.t.Errorf("stripetest answers with an object of no kind: %v", v)
		}
		for k, x := range v {
			j.object(x, at+"."+k)
		}
	}
}

// fits says why v does not fit s, or "".
func (j *judged) fits(v any, s *spec.Schema, at string) string {
	if s.Ref != "" {
		return j.fits(v, j.shapes[strings.TrimPrefix(s.Ref, "#/components/schemas/")], at)
	}
	if v == nil {
		if s.Nullable {
			return ""
		}
		return at + " is null"
	}
	if len(s.AnyOf) > 0 {
		var why []string
		for _, one := range s.AnyOf {
			w := j.fits(v, one, at)
			if w == "" {
				return ""
			}
			why = append(why, w)
		}
		return strings.Join(why, " or ")
	}
	switch v := v.(type) {
	case string:
		if s.Type != "string" || len(s.Enum) > 0 && !slices.Contains(s.Enum, any(v)) {
			return fmt.Sprintf("%s is %q", at, v)
		}
	case float64:
		if s.Type != "number" && (s.Type != "integer" || v != math.Trunc(v)) {
			return fmt.Sprintf("%s is %v", at, v)
		}
	case bool:
		if s.Type != "boolean" {
			return fmt.Sprintf("%s is %v", at, v)
		}
	case []any:
		if s.Type != "array" {
			return at + " is a list"
		}
		for i, x := range v {
			if w := j.fits(x, s.Items, fmt.Sprintf("%s[%d]", at, i)); w != "" {
				return w
			}
		}
	case map[string]any:
		if s.Type != "object" {
			return at + " is an object"
		}
		for k, x := range v {
			p := s.Properties[k]
			if p == nil && s.AdditionalProperties != nil {
				p = s.AdditionalProperties
			}
			switch {
			case p == nil && len(s.Properties) > 0:
				return at + "." + k + " is unknown"
			case p != nil:
				if w := j.fits(x, p, at+"."+k); w != "" {
					return w
				}
			}
		}
	}
	return ""
}
