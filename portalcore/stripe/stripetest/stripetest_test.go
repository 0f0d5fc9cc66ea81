package stripetest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/stripetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = "sk_test_stripetest"

type api struct {
	*testing.T
	h      http.Handler
	l      *sandbox.Ledger
	faults *sandbox.Faults
	sub    sandbox.Subscription
}

func open(t *testing.T) *api {
	t.Helper()
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	db, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	l, err := sandbox.Open(t.Context(), db, sandbox.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sandbox.Seed(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	cs, err := l.Customers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := &api{T: t, l: l, faults: &sandbox.Faults{}}
	for _, c := range cs {
		subs, err := l.Subscriptions(t.Context(), c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if len(subs) == 1 && subs[0].Status == billing.Active && !subs[0].CancelAtPeriodEnd && subs[0].PendingUpdate == nil {
			a.sub = subs[0]
		}
	}
	if a.sub.ID == "" {
		t.Fatal("no customer of the seed has a plain subscription")
	}
	a.h = stripetest.New(l, a.faults, stripetest.Options{Key: key})
	return a
}

// call makes a request and returns status, headers and the decoded body.
func (a *api) call(method, target, form string, headers ...string) (int, http.Header, map[string]any, string) {
	a.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(form))
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Stripe-Version", stripetest.Version)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	var v map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		a.Fatalf("%s %s answers %q", method, target, w.Body)
	}
	return w.Code, w.Header(), v, w.Body.String()
}

func TestVersionIsTheProviders(t *testing.T) {
	if stripetest.Version != stripe.Version {
		t.Errorf("stripetest speaks %s, the provider %s", stripetest.Version, stripe.Version)
	}
}

// What Stripe refuses is refused, with Stripe's error object, and has no
// effect.
func TestStrict(t *testing.T) {
	a := open(t)
	sub := "/v1/subscriptions/" + a.sub.ID
	before, err := a.l.Effects(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, method, target, form string
		status                     int
		code, param                string
		headers                    []string
	}{
		{"unknown parameter", "POST", sub, "prorate=true", 400, "parameter_unknown", "prorate", nil},
		{"unknown nested parameter", "POST", sub, "items[0][prise]=x", 400, "parameter_unknown", "items[0][prise]", nil},
		{"unknown on GET", "GET", "/v1/customers/" + a.sub.Customer + "?x=1", "", 400, "parameter_unknown", "x", nil},
		{"not an integer", "POST", sub, "items[0][quantity]=2.5", 400, "parameter_invalid_integer", "items[0][quantity]", nil},
		{"not a boolean", "POST", sub, "cancel_at_period_end=yes", 400, "", "cancel_at_period_end", nil},
		{"not of the enum", "POST", sub, "proration_behavior=sometimes", 400, "", "proration_behavior", nil},
		{"empty", "POST", sub, "default_payment_method=", 400, "parameter_invalid_empty", "default_payment_method", nil},
		{"exclusive", "POST", sub, "cancel_at_period_end=false&cancel_at=", 400, "parameters_exclusive", "cancel_at", nil},
		{"pending with cancel", "POST", sub, "payment_behavior=pending_if_incomplete&cancel_at_period_end=true&items[0][id]=" + a.sub.Items[0].ID, 400, "", "", nil},
		{"proration date with none", "POST", "/v1/invoices/create_preview", "subscription=" + a.sub.ID + "&subscription_details[proration_behavior]=none&subscription_details[proration_date]=1", 400, "", "subscription_details[proration_date]", nil},
		{"expand five deep", "GET", "/v1/subscriptions?customer=" + a.sub.Customer + "&expand[]=data.items.data.price.product", "", 400, "", "expand", nil},
		{"expand what is not there", "GET", sub + "?expand[]=owner", "", 400, "", "expand", nil},
		{"expand where nothing can be", "POST", "/v1/invoices/create_preview", "expand[]=lines&subscription=" + a.sub.ID, 400, "", "expand", nil},
		{"limit 101", "GET", "/v1/invoices?limit=101&customer=" + a.sub.Customer, "", 400, "parameter_invalid_integer", "limit", nil},
		{"both cursors", "GET", "/v1/invoices?starting_after=a&ending_before=b&customer=" + a.sub.Customer, "", 400, "parameters_exclusive", "ending_before", nil},
		{"list of nobody", "GET", "/v1/subscriptions?customer=cus_nobody", "", 400, "resource_missing", "customer", nil},
		{"nobody", "GET", "/v1/customers/cus_nobody", "", 404, "resource_missing", "", nil},
		{"checkout without currency", "POST", "/v1/checkout/sessions", "mode=setup&success_url=https://a.example&customer=" + a.sub.Customer, 400, "parameter_missing", "currency", nil},
		{"unknown path", "GET", "/v1/balance", "", 404, "", "", nil},
		{"no key", "GET", sub, "", 401, "", "", []string{"Authorization", ""}},
		{"other key", "GET", sub, "", 401, "", "", []string{"Authorization", "Bearer sk_test_other"}},
		{"other version", "GET", sub, "", 400, "", "", []string{"Stripe-Version", "2026-04-22.dahlia"}},
		{"no version", "GET", sub, "", 400, "", "", []string{"Stripe-Version", ""}},
	} {
		status, h, v, raw := a.call(c.method, c.target, c.form, c.headers...)
		e, _ := v["error"].(map[string]any)
		code, _ := e["code"].(string)
		param, _ := e["param"].(string)
		if status != c.status || e["type"] != "invalid_request_error" || c.code != "" && code != c.code || c.param != "" && param != c.param || h.Get("Request-Id") == "" {
			t.Errorf("%s: %d %s", c.name, status, raw)
		}
	}
	after, err := a.l.Effects(t.Context(), 0)
	if err != nil || len(after) != len(before) {
		t.Errorf("%d effects, %v", len(after)-len(before), err)
	}
	// And Basic auth with the key as user is taken, as curl -u sends it.
	r := httptest.NewRequest("GET", sub, nil)
	r.SetBasicAuth(key, "")
	r.Header.Set("Stripe-Version", stripetest.Version)
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	if w.Code != http.StatusOK || w.Header().Get("Date") != "Mon, 04 May 2026 03:02:01 GMT" {
		t.Errorf("%d, Date %s", w.Code, w.Header().Get("Date"))
	}
}

// The second answer under a key is the first one, byte for byte, whatever has
// happened since; and a 500 stays a 500.
func TestIdempotency(t *testing.T) {
	a := open(t)
	sub := "/v1/subscriptions/" + a.sub.ID
	_, h, _, first := a.call("POST", sub, "cancel_at_period_end=true", "Idempotency-Key", "k1")
	if h.Get("Idempotent-Replayed") != "" || h.Get("Idempotency-Key") != "k1" {
		t.Errorf("headers %v", h)
	}
	a.call("POST", sub, "cancel_at_period_end=false", "Idempotency-Key", "k2")
	status, h, _, again := a.call("POST", sub, "cancel_at_period_end=true", "Idempotency-Key", "k1")
	if status != 200 || again != first || h.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%d, replayed %q, the same bytes: %v", status, h.Get("Idempotent-Replayed"), again == first)
	}
	if s, err := a.l.Subscription(t.Context(), a.sub.ID); err != nil || s.CancelAtPeriodEnd {
		t.Errorf("the replay changed the subscription, %v", err)
	}
	status, _, v, _ := a.call("POST", sub, "cancel_at_period_end=false", "Idempotency-Key", "k1")
	if e, _ := v["error"].(map[string]any); status/100 != 4 || e["type"] != "idempotency_error" {
		t.Errorf("other parameters: %d %v", status, v)
	}
	if err := a.faults.Set(sandbox.Fault{On: "execute", Times: 1, Kind: sandbox.Fault500After}); err != nil {
		t.Fatal(err)
	}
	for i, replayed := range []string{"", "true", "true"} {
		status, h, _, _ := a.call("POST", sub, "cancel_at_period_end=true", "Idempotency-Key", "k3")
		if status != 500 || h.Get("Idempotent-Replayed") != replayed {
			t.Errorf("time %d: %d, replayed %q", i+1, status, h.Get("Idempotent-Replayed"))
		}
	}
	if s, err := a.l.Subscription(t.Context(), a.sub.ID); err != nil || !s.CancelAtPeriodEnd {
		t.Errorf("the call behind the 500 was not carried out, %v", err)
	}
}

// The card page and the invoice's file work over HTTP, as a browser and the
// provider use them.
func TestPagesAndFiles(t *testing.T) {
	a := open(t)
	srv := httptest.NewServer(a.h)
	defer srv.Close()
	p, err := stripe.New(stripe.Options{Key: key, BaseURL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	pv, err := p.Preview(t.Context(), a.sub.Customer, billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "http://127.0.0.1:1/back"}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.Execute(t.Context(), a.sub.Customer, pv.Steps[0], "k")
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer c.CloseIdleConnections()
	page, err := c.Get(res.GoTo)
	if err != nil {
		t.Fatal(err)
	}
	html, _ := io.ReadAll(page.Body)
	_ = page.Body.Close()
	if page.StatusCode != http.StatusOK || !bytes.Contains(html, []byte("<form")) {
		t.Fatalf("%d %s", page.StatusCode, html)
	}
	done, err := c.PostForm(res.GoTo, url.Values{"card": {"5555555555554444"}, "do": {"add"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = done.Body.Close()
	o, after, err := p.Outcome(t.Context(), a.sub.Customer, pv.Steps[0], "k", &res)
	if err != nil || o != billing.Applied || after.Refs["payment_method"] == "" {
		t.Errorf("%s, %+v, %v", o, after, err)
	}

	invoices, err := p.Invoices(t.Context(), a.sub.Customer, "", 1)
	if err != nil {
		t.Fatal(err)
	}
	_, _, v, _ := a.call("GET", "/v1/invoices/"+invoices.Invoices[0].ID, "")
	pdf, _ := v["invoice_pdf"].(string)
	u, err := url.Parse(pdf)
	if err != nil || u.Host == "example.com" {
		t.Fatalf("invoice_pdf %q is on the API's host", pdf)
	}
	for _, x := range []struct {
		path, auth string
		status     int
	}{
		{u.Path, "", http.StatusFound},
		{u.Path, "Bearer " + key, http.StatusBadRequest},
		{strings.Replace(u.Path, "/pdf", "x/pdf", 1), "", http.StatusNotFound},
	} {
		r := httptest.NewRequest("GET", x.path, nil)
		if x.auth != "" {
			r.Header.Set("Authorization", x.auth)
		}
		w := httptest.NewRecorder()
		a.h.ServeHTTP(w, r)
		if w.Code != x.status {
			t.Errorf("%s: %d, want %d", x.path, w.Code, x.status)
		}
	}
}

// The process: it says where it is, does as it is told, and what it did is
// there after a kill.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "stripetest")
	if out, err := exec.Command("go", "build", "-o", bin, "./cmd/stripetest").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	type ready struct{ URL, Control, Key string }
	start := func() (*exec.Cmd, ready) {
		t.Helper()
		cmd := exec.Command(bin, "-data-dir", filepath.Join(dir, "data"), "-seed", "-key", key)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		var r ready
		line, err := bufio.NewReader(out).ReadBytes('\n')
		if err != nil || json.Unmarshal(line, &r) != nil || r.URL == "" || r.Control == "" || r.Key != key {
			t.Fatalf("said %q, %v", line, err)
		}
		return cmd, r
	}
	effects := func(r ready) int {
		t.Helper()
		res, err := http.Get(r.Control + "/effects")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		var v []sandbox.Effect
		if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
			t.Fatal(err)
		}
		return len(v)
	}
	defer http.DefaultClient.CloseIdleConnections()
	cmd, r := start()
	p, err := stripe.New(stripe.Options{Key: key, BaseURL: r.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	before := effects(r)
	name := "New name"
	pv, err := p.Preview(t.Context(), "cus_new", billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{Name: &name}}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(r.Control+"/fault", "application/json", strings.NewReader(`{"on":"execute","kind":"timeout-after"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if _, err := p.Execute(context.WithoutCancel(t.Context()), "cus_new", pv.Steps[0], "k"); billing.FaultOf(err) != billing.Unknown {
		t.Errorf("a lost answer is %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	cmd, r = start()
	q, err := stripe.New(stripe.Options{Key: key, BaseURL: r.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close() }()
	if _, err := q.Execute(t.Context(), "cus_new", pv.Steps[0], "k"); err != nil {
		t.Errorf("the same key after the kill: %v", err)
	}
	if n := effects(r) - before; n != 1 {
		t.Errorf("%d effects, want 1", n)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("asked to stop it ends with %v", err)
	}
}
