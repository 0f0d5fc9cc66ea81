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
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85/webhook"
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

var secrets = []string{"whsec_new-secret-of-providertest", "whsec_old-secret-of-providertest"}

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
	p := sandbox.NewProvider(w.Ledger, w.Faults, sandbox.ProviderOptions{Pages: "http://localhost/pages", WebhookSecrets: secrets})
	return providertest.Env{Provider: p, World: w, Secrets: secrets}
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
		p, err := stripe.New(stripe.Options{Key: key, BaseURL: srv.URL, Transport: transport, WebhookSecrets: secrets})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(transport.CloseIdleConnections)
		return providertest.Env{Provider: p, World: w, Secrets: secrets}
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

// The events that stripetest posts are of types that Stripe knows, hold objects
// of Stripe's shape, and are read by Stripe's own SDK and by the provider, who
// finds whose they are.
func TestEventsAgainstStripe(t *testing.T) {
	sp, err := server.LoadSpec(embedded.OpenAPISpec, "")
	if err != nil {
		t.Fatal(err)
	}
	types := sp.Paths["/v1/webhook_endpoints"]["post"].RequestBody.Content["application/x-www-form-urlencoded"].Schema.Properties["enabled_events"].Items.Enum
	if len(types) < 100 {
		t.Fatalf("the spec names %d types of events", len(types))
	}
	p, err := stripe.New(stripe.Options{Key: key, WebhookSecrets: secrets[1:]})
	if err != nil {
		t.Fatal(err)
	}
	w := world(t)
	var mu sync.Mutex
	got := map[string]string{} // type to customer
	j := &judged{t: t, shapes: sp.Components.Schemas}
	hooks := sandbox.NewWebhooks(w.Ledger, sandbox.WebhookOptions{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		body, _ := io.ReadAll(r.Body)
		theirs, err := webhook.ConstructEventIgnoringTolerance(body, r.Header.Get("Stripe-Signature"), secrets[1])
		if err != nil {
			t.Errorf("stripe-go: %v", err)
		}
		ours, err := p.ParseEvent(r.Header, body, start)
		if err != nil || ours.ID != theirs.ID {
			t.Errorf("the provider reads %+v, %v", ours, err)
		}
		if !slices.Contains(types, any(ours.Type)) {
			t.Errorf("Stripe knows no event %q", ours.Type)
		}
		if theirs.APIVersion != stripe.Version {
			t.Errorf("version %s", theirs.APIVersion)
		}
		var v map[string]any
		if err := json.Unmarshal(body, &v); err != nil {
			t.Error(err)
		}
		j.object(v, "")
		j.object(v["data"].(map[string]any)["object"], "data.object")
		mu.Lock()
		defer mu.Unlock()
		got[ours.Type] = ours.Customer
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})})
	stripetest.New(w.Ledger, nil, stripetest.Options{Key: key, Webhooks: hooks})
	if err := hooks.Configure(t.Context(), "https://billing.example.com/webhook", secrets[1]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { hooks.Run(ctx) })
	defer wg.Wait()
	defer cancel()

	w.Price("price_a", "usd", "1000", "month")
	w.Price("price_b", "usd", "3000", "month")
	m := w.Customer(providertest.Customer{Card: providertest.CardAsks, Price: "price_a", Quantity: 1, Credit: 100_000})
	bg := context.Background()
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	update := func() sandbox.Subscription {
		sub, err := w.Ledger.UpdateSubscription(bg, sandbox.Call{}, m.Subscription, sandbox.SubscriptionUpdate{
			Items: []sandbox.ItemParams{{ID: m.Items[0], Price: "price_b", Quantity: new(int64(100))}}, ProrationBehavior: sandbox.AlwaysInvoice,
			PaymentBehavior: sandbox.PendingIfIncomplete,
		})
		if err != nil || sub.PendingUpdate == nil {
			t.Fatalf("%+v, %v", sub, err)
		}
		return sub
	}
	pi := func(sub sandbox.Subscription) string {
		inv, err := w.Ledger.Invoice(bg, sub.LatestInvoice)
		if err != nil {
			t.Fatal(err)
		}
		return inv.PaymentIntent
	}
	wait := func(kinds ...string) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); len(kinds) > 0; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			kinds = slices.DeleteFunc(kinds, func(kind string) bool { _, ok := got[kind]; return ok })
			mu.Unlock()
			if time.Now().After(deadline) {
				t.Fatalf("never posted: %v", kinds)
			}
		}
	}
	w.EndGrant(w.Grant(sandbox.GrantParams{Customer: m.ID, Amount: 100, Currency: "usd"}), true)
	first := update()
	wait("invoice.payment_action_required")                              // before it is answered: events tell how things are when they are made
	_, _ = w.Ledger.ConfirmPayment(bg, sandbox.Call{}, pi(first), false) // the no is an error
	w.Advance(24 * time.Hour)                                            // the update expires
	do(w.Ledger.VoidInvoice(bg, sandbox.Call{}, update().LatestInvoice))
	do(w.Ledger.ConfirmPayment(bg, sandbox.Call{}, pi(update()), true))
	cs, err := w.Ledger.CreateSession(bg, sandbox.Call{}, sandbox.SessionParams{Customer: m.ID, SuccessURL: "https://x.example.com/"})
	do(cs, err)
	do(w.Ledger.CompleteSession(bg, sandbox.Call{}, cs.ID, sandbox.CardParams{Number: providertest.CardDeclines}))
	do(w.Ledger.CreateSession(bg, sandbox.Call{}, sandbox.SessionParams{Customer: m.ID, SuccessURL: "https://x.example.com/"}))
	cs, err = w.Ledger.CheckoutSession(bg, cs.ID)
	do(cs, err)
	do(w.Ledger.UpdateCustomer(bg, sandbox.Call{}, m.ID, sandbox.CustomerParams{DefaultPaymentMethod: &cs.PaymentMethod}))
	tax, err := w.Ledger.CreateTaxID(bg, sandbox.Call{}, m.ID, "eu_vat", "DE123456789")
	do(tax, err)
	w.Advance(time.Minute)
	wait("customer.tax_id.updated")
	do(w.Ledger.DeleteTaxID(bg, sandbox.Call{}, m.ID, tax.ID))
	list, _, err := w.Ledger.Invoices(bg, sandbox.InvoiceFilter{Customer: m.ID, Status: "paid", Limit: 100})
	do(list, err)
	w.CreditNote(list[len(list)-1].ID, 100, true)
	w.Advance(40 * 24 * time.Hour) // a renewal that is not paid, to the end
	do(w.Ledger.DetachPaymentMethod(bg, sandbox.Call{}, cs.PaymentMethod))
	w.Default(m.ID, w.Method(m.ID, providertest.SEPAWorks))
	w.Subscribe(m.ID, "price_b", 100)
	wait("payment_intent.processing", "billing.credit_grant.created", "billing.credit_grant.updated")
	wait("product.created", "price.created", "customer.created", "customer.updated", "payment_method.attached", "payment_method.detached", "customer.subscription.created",
		"customer.subscription.updated", "invoice.paid", "payment_intent.payment_failed", "invoice.payment_failed",
		"customer.subscription.pending_update_expired", "invoice.voided", "payment_intent.succeeded", "setup_intent.succeeded",
		"checkout.session.completed", "checkout.session.expired", "customer.subscription.deleted",
		"customer.tax_id.created", "customer.tax_id.deleted", "credit_note.created")
	mu.Lock()
	defer mu.Unlock()
	for kind, customer := range got {
		if want := m.ID; strings.HasPrefix(kind, "product.") || strings.HasPrefix(kind, "price.") {
			if customer != "" {
				t.Errorf("%s is about %s", kind, customer)
			}
		} else if customer != want {
			t.Errorf("%s is about %q", kind, customer)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

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
// names, and none that it requires may be missing.
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
		if v["deleted"] == true {
			kind = "deleted_" + kind
		}
		if s := j.shapes[kind]; s != nil {
			if why := j.fits(v, s, kind); why != "" {
				j.t.Errorf("stripetest answers with what Stripe's spec does not know: %s", why)
			}
			return
		}
		if e := v["error"]; at == "" && e != nil {
			if why := j.fits(v, j.shapes["error"], "error"); why != "" {
				j.t.Errorf("stripetest answers with an error that Stripe's spec does not know: %s", why)
			}
			return
		}
		if kind != "list" && kind != "search_result" && at == "" {
			j.t.Errorf("stripetest answers with an object of no kind: %v", v)
		}
		if kind == "list" || kind == "search_result" {
			_, data := v["data"].([]any)
			_, more := v["has_more"].(bool)
			_, url := v["url"].(string)
			if !data || !more || !url {
				j.t.Errorf("stripetest answers with a list that is none: %v", v)
			}
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
		for _, k := range s.Required {
			if _, ok := v[k]; !ok {
				return at + "." + k + " is missing"
			}
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
