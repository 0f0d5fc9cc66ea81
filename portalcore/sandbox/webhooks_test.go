package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	stripego "github.com/stripe/stripe-go/v85"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

const (
	hookURL    = "https://billing.example.com/webhook"
	hookSecret = "whsec_sandbox-of-these-tests"
)

// endpoint receives a ledger's events. It judges them by the sandbox's provider
// and by Stripe's own SDK.
type endpoint struct {
	*bench
	hooks    *sandbox.Webhooks
	provider *sandbox.Provider
	done     chan struct{}

	mu    sync.Mutex
	types []string
	ids   []string
	of    []string // whose
	fail  int      // how many to refuse
	tries int
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		e.t.Error(err)
	}
	if r.URL.String() != hookURL || r.Method != http.MethodPost {
		e.t.Errorf("%s %s", r.Method, r.URL)
	}
	got, err := e.provider.ParseEvent(r.Header, body, e.clock.now())
	if err != nil {
		e.t.Errorf("the provider refuses its own event: %v", err)
	}
	theirs, err := webhook.ConstructEventIgnoringTolerance(body, r.Header.Get("Stripe-Signature"), hookSecret)
	if err != nil || theirs.ID != got.ID || theirs.Type != stripego.EventType(got.Type) {
		e.t.Errorf("stripe-go reads %s %s, %v; the provider %+v", theirs.ID, theirs.Type, err, got)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tries++
	if e.fail > 0 {
		e.fail--
		if e.fail%2 == 0 {
			return nil, errors.New("connection refused")
		}
		return &http.Response{StatusCode: 503, Body: http.NoBody}, nil
	}
	e.types, e.ids, e.of = append(e.types, got.Type), append(e.ids, got.ID), append(e.of, got.Customer)
	return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
}

// listen starts a sender; what the ledger did before is not told.
func listen(t *testing.T) *endpoint {
	t.Helper()
	e := &endpoint{bench: newBench(t, noon), done: make(chan struct{})}
	e.customer("cus_a", works)
	e.provider = sandbox.NewProvider(e.Ledger, nil, sandbox.ProviderOptions{WebhookSecrets: []string{hookSecret}})
	e.hooks = sandbox.NewWebhooks(e.Ledger, sandbox.WebhookOptions{Transport: e})
	if err := e.hooks.Configure(t.Context(), hookURL, hookSecret); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { defer close(e.done); e.hooks.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-e.done })
	return e
}

// heard waits until n events arrived since the last call, and returns their
// types.
func (e *endpoint) heard(n int) []string {
	e.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		e.mu.Lock()
		if len(e.types) >= n {
			types := e.types
			e.types = nil
			e.mu.Unlock()
			return types
		}
		e.mu.Unlock()
		if time.Now().After(deadline) {
			e.t.Fatalf("%d events, want %d: %v", len(e.types), n, e.types)
		}
	}
}

func (e *endpoint) wantHeard(what string, want ...string) {
	e.t.Helper()
	if got := e.heard(len(want)); !slices.Equal(got, want) {
		e.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestWebhooks(t *testing.T) {
	e := listen(t)
	ctx := t.Context()
	name := "New name"
	if _, err := e.UpdateCustomer(ctx, sandbox.Call{Key: "k"}, "cus_a", sandbox.CustomerParams{Name: &name}); err != nil {
		t.Fatal(err)
	}
	e.wantHeard("a name", "customer.updated")
	// A replay has no effect, so there is nothing to tell.
	if _, err := e.UpdateCustomer(ctx, sandbox.Call{Key: "k"}, "cus_a", sandbox.CustomerParams{Name: &name}); err != nil {
		t.Fatal(err)
	}
	s := e.subscribe("cus_a", "ten", 1)
	e.wantHeard("a subscription", "customer.subscription.created", "payment_intent.succeeded", "invoice.paid")
	if _, err := e.UpdateSubscription(ctx, sandbox.Call{}, s.ID, change(s, "twenty", 1)); err != nil {
		t.Fatal(err)
	}
	e.wantHeard("an upgrade", "customer.subscription.updated", "payment_intent.succeeded", "invoice.paid")
	// By the clock: two renewals, each with its own invoice.
	e.advance(65 * 24 * time.Hour)
	e.wantHeard("two renewals", "customer.subscription.updated", "payment_intent.succeeded", "invoice.paid",
		"customer.subscription.updated", "payment_intent.succeeded", "invoice.paid")
	// 3-D Secure: asked for, then confirmed.
	e.setCard("cus_a", asks)
	e.wantHeard("a card", "payment_method.attached", "customer.updated")
	s = e.sub(s.ID)
	p := change(s, "ten", 5)
	p.PaymentBehavior = sandbox.PendingIfIncomplete
	s, err := e.UpdateSubscription(ctx, sandbox.Call{}, s.ID, p)
	if err != nil || s.PendingUpdate == nil {
		t.Fatal(s, err)
	}
	e.wantHeard("a change that waits", "customer.subscription.updated", "invoice.payment_action_required")
	pi := e.invoice(s.LatestInvoice).PaymentIntent
	if _, err := e.ConfirmPayment(ctx, sandbox.Call{}, pi, true); err != nil {
		t.Fatal(err)
	}
	e.wantHeard("confirmed", "payment_intent.succeeded", "invoice.paid", "customer.subscription.updated")
	cs, err := e.CreateSession(ctx, sandbox.Call{}, sandbox.SessionParams{Customer: "cus_a", SuccessURL: "https://x.example.com/"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.CompleteSession(ctx, sandbox.Call{}, cs.ID, sandbox.CardParams{Number: declines}); err != nil {
		t.Fatal(err)
	}
	e.wantHeard("the card page", "payment_method.attached", "setup_intent.succeeded", "checkout.session.completed")
	pm, err := e.CheckoutSession(ctx, cs.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.UpdateCustomer(ctx, sandbox.Call{}, "cus_a", sandbox.CustomerParams{DefaultPaymentMethod: &pm.PaymentMethod}); err != nil {
		t.Fatal(err)
	}
	e.advance(31 * 24 * time.Hour)
	got := e.heard(4)
	if !slices.Equal(got[:4], []string{"customer.updated", "customer.subscription.updated", "payment_intent.payment_failed", "invoice.payment_failed"}) {
		t.Errorf("a renewal that fails: %v", got)
	}
	if _, err := e.CancelSubscription(ctx, sandbox.Call{}, s.ID); err != nil {
		t.Fatal(err)
	}
	for types := []string{}; !slices.Contains(types, "customer.subscription.deleted"); {
		types = append(types, e.heard(1)...)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, of := range e.of {
		if of != "cus_a" {
			t.Errorf("event %d is about %q", i, of)
		}
	}
	slices.Sort(e.ids)
	if len(slices.Compact(slices.Clone(e.ids))) != len(e.ids) {
		t.Error("two events have the same id")
	}
}

// rename makes n events, which can be told apart by their ids only.
func (e *endpoint) rename(n int) {
	e.t.Helper()
	for range n {
		name := "Name " + time.Now().String()
		if _, err := e.UpdateCustomer(e.t.Context(), sandbox.Call{}, "cus_a", sandbox.CustomerParams{Name: &name}); err != nil {
			e.t.Fatal(err)
		}
	}
}

func TestWebhooksRetried(t *testing.T) {
	e := listen(t)
	e.fail = 2
	e.rename(1)
	e.wantHeard("at the third attempt", "customer.updated")
	if e.tries != 3 {
		t.Errorf("%d attempts", e.tries)
	}
	if c := e.hooks.Count(); c.Made != 1 || c.GivenUp != 0 || c.Dropped != 0 {
		t.Errorf("count %+v", c)
	}
}

func TestWebhookFaults(t *testing.T) {
	for _, fault := range []sandbox.WebhookFault{
		{Kind: sandbox.WebhookDropped, Times: 1},
		{Kind: sandbox.WebhookDuplicated, Times: 1},
		{Kind: sandbox.WebhookDelayed, Times: 1, Latency: 2 * time.Second},
		{Kind: sandbox.WebhookReordered, Times: 1},
	} {
		t.Run(string(fault.Kind), func(t *testing.T) {
			e := listen(t)
			if err := e.hooks.Fault(fault); err != nil {
				t.Fatal(err)
			}
			// Types tell them apart.
			e.rename(1)
			e.subscribe("cus_a", "ten", 1) // three events
			want := []string{"customer.updated", "customer.subscription.created", "payment_intent.succeeded", "invoice.paid"}
			switch fault.Kind {
			case sandbox.WebhookDropped:
				want = want[1:]
			case sandbox.WebhookDuplicated:
				want = slices.Insert(want, 0, want[0])
			case sandbox.WebhookDelayed:
				want = append(want[1:], want[0])
			case sandbox.WebhookReordered:
				want[0], want[1] = want[1], want[0]
			}
			e.wantHeard("with the fault", want...)
			e.rename(1)
			e.wantHeard("behind it", "customer.updated")
		})
	}
	e := listen(t)
	if err := e.hooks.Fault(sandbox.WebhookFault{Kind: sandbox.WebhookReordered, Times: 1}); err != nil {
		t.Fatal(err)
	}
	e.rename(1)
	e.wantHeard("reordered, and none follows", "customer.updated")
	for _, bad := range []sandbox.WebhookFault{
		{Kind: "lost", Times: 1},
		{Kind: sandbox.WebhookDropped, Times: -1},
		{Kind: sandbox.WebhookDropped, Times: 1001},
		{Kind: sandbox.WebhookDelayed, Times: 1},
		{Kind: sandbox.WebhookDelayed, Times: 1, Latency: time.Hour},
	} {
		if e.hooks.Fault(bad) == nil {
			t.Errorf("fault %+v", bad)
		}
	}
}

func TestWebhooksDoor(t *testing.T) {
	e := listen(t)
	door := sandbox.Control(e.Ledger, nil, nil)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/webhooks", "", 200, `{"made":0,"sent":0,"dropped":0,"given_up":0,"waiting":0}`},
		{"DELETE", "/webhooks", "", 405, "GET or POST"},
		{"POST", "/webhooks", `{"url":"http://billing.example.com/","secret":"` + hookSecret + `"}`, 400, "https"},
		{"POST", "/webhooks", `{"url":"file:///x","secret":"` + hookSecret + `"}`, 400, "https"},
		{"POST", "/webhooks", `{"url":"https://x.example.com/"}`, 400, "whsec_"},
		{"POST", "/webhooks", `{"url":"http://localhost:1/","secret":"whsec_short"}`, 400, "16 characters"},
		{"POST", "/webhooks", `{"url":1}`, 400, "url"},
		{"POST", "/webhooks", `{"url":"` + hookURL + `","secret":"` + hookSecret + `"}`, 200, "made"},
		{"POST", "/webhooks/fault", `{"kind":"dropped"}`, 200, `"ok":true`},
		{"POST", "/webhooks/fault", `{"kind":"delayed","latency":"soon"}`, 400, "latency"},
		{"POST", "/webhooks/fault", `{"kind":"eaten"}`, 400, "eaten"},
		{"POST", "/webhooks/fault", `{}`, 400, "is not one of"},
		{"GET", "/webhooks/fault", "", 405, ""},
	} {
		rec := knock(door, c.method, c.path, c.body)
		if rec.Code != c.status || !strings.Contains(rec.Body.String(), c.want) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, rec.Code, rec.Body)
		}
		if strings.Contains(rec.Body.String(), hookSecret) {
			t.Errorf("the door shows the secret: %s", rec.Body)
		}
	}
	e.rename(2)
	e.wantHeard("behind the one dropped", "customer.updated")
	var c sandbox.WebhookCount
	for deadline := time.Now().Add(5 * time.Second); c.Sent == 0 && time.Now().Before(deadline); {
		if err := json.Unmarshal(knock(door, "GET", "/webhooks", "").Body.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
	}
	if c != (sandbox.WebhookCount{Made: 2, Sent: 1, Dropped: 1}) {
		t.Errorf("count %+v", c)
	}
	// Off, and on again: what happened meanwhile is not told.
	if rec := knock(door, "POST", "/webhooks", `{"url":"","secret":""}`); rec.Code != 200 {
		t.Error(rec.Code, rec.Body)
	}
	e.rename(1)
	if rec := knock(door, "POST", "/webhooks", `{"url":"`+hookURL+`","secret":"`+hookSecret+`"}`); rec.Code != 200 {
		t.Error(rec.Code, rec.Body)
	}
	e.subscribe("cus_a", "ten", 1)
	e.wantHeard("after a pause", "customer.subscription.created", "payment_intent.succeeded", "invoice.paid")

	none := newBench(t, noon)
	if rec := knock(sandbox.Control(none.Ledger, nil, nil), "GET", "/webhooks", ""); rec.Code != 404 {
		t.Errorf("a ledger without events: %d", rec.Code)
	}
	bare := sandbox.NewProvider(none.Ledger, nil, sandbox.ProviderOptions{})
	if _, err := bare.ParseEvent(nil, nil, noon); !errors.Is(err, billing.ErrNoWebhook) {
		t.Errorf("without a secret: %v", err)
	}
}
