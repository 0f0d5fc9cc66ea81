package vendorapi_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/vendorapi"
)

const (
	origin = "https://billing.example.com"
	key    = "bpk_0123456789abcdefghij"
	key2   = "bpk_second_0123456789abc"
	app    = "https://app.example.com/settings"
)

type world struct {
	server   *httptest.Server
	store    *shaky
	sessions *session.Manager
	trust    *link.Trust
	logs     *observer.ObservedLogs
	down     bool
	code     string // of the provider when it is down
	finds    int
	mu       sync.Mutex
}

// shaky is a store that can be unreachable.
type shaky struct {
	store.Store
	down atomic.Bool
}

func (s *shaky) View(ctx context.Context, fn func(store.Tx) error) error {
	if s.down.Load() {
		return fmt.Errorf("dial tcp 10.0.0.7:5432: %w", store.ErrUnavailable)
	}
	return s.Store.View(ctx, fn)
}

func (s *shaky) Update(ctx context.Context, fn func(store.Tx) error) error {
	if s.down.Load() {
		return fmt.Errorf("dial tcp 10.0.0.7:5432: %w", store.ErrUnavailable)
	}
	return s.Store.Update(ctx, fn)
}

func newWorld(t testing.TB) *world {
	t.Helper()
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	st, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	k, err := link.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{store: &shaky{Store: st}}
	w.sessions = &session.Manager{
		Store: w.store, Tenant: "t", Now: time.Now, Rand: rand.Reader,
		Idle: session.DefaultIdle, Absolute: session.DefaultAbsolute, DefaultRole: "owner",
	}
	if w.trust, err = link.NewTrust(origin, link.Issuer{Name: "portal", Own: true, Keys: []link.Key{k}}); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	w.logs = logs
	a, err := vendorapi.New(vendorapi.Options{
		Tenant: "t", Origin: origin, Keys: []string{key, key2}, Store: st, Sessions: w.sessions, Find: w.find, Search: w.search,
		Sign: func(c link.Claims) (string, error) { return link.Mint(k, c) }, Issuer: "portal",
		AllowedReturn: func(s string) bool { return strings.HasPrefix(s, "https://app.example.com/") }, DefaultReturn: app,
		Configurations: []string{"enterprise"}, Log: zap.New(core), Now: time.Now, Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewServer(a)
	t.Cleanup(w.server.Close)
	return w
}

func (w *world) find(_ context.Context, id string) (billing.Customer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finds++
	if w.down {
		return billing.Customer{}, &billing.Error{Fault: billing.Unavailable, Err: errors.New("connection refused")}
	}
	if id != "cus_1" {
		return billing.Customer{}, &billing.Error{Fault: billing.NotFound, Code: "resource_missing"}
	}
	return billing.Customer{ID: id}, nil
}

// post sends form and returns the answer with its decoded body.
func (w *world) post(t *testing.T, form url.Values, edit func(*http.Request)) (*http.Response, map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.server.URL+vendorapi.Path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Bearer "+key)
	r.Host = "billing.example.com"
	if edit != nil {
		edit(r)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var body map[string]any
	if err := json.Unmarshal(raw, &body); err != nil {
		t.Fatalf("%s: body is not JSON, SDKs fail on that: %q", res.Status, raw)
	}
	return res, body
}

func (w *world) claims(t testing.TB, sessionURL string) link.Claims {
	t.Helper()
	token, ok := strings.CutPrefix(sessionURL, origin+"/enter?token=")
	if !ok {
		t.Fatalf("url %q does not lead to the portal", sessionURL)
	}
	c, issuer, err := w.trust.Verify(token, time.Now())
	if err != nil || !issuer.Own {
		t.Fatalf("the link does not verify: %v", err)
	}
	return c
}

func TestMintTakesEverything(t *testing.T) {
	w := newWorld(t)
	res, body := w.post(t, url.Values{
		"customer": {"cus_1"}, "return_url": {"https://app.example.com/back?x=1"}, "locale": {"pt-BR"}, "configuration": {"enterprise"},
		"portal[role]": {"billing"}, "portal[actor][id]": {"u_7"}, "portal[actor][email]": {"ann@example.com"}, "portal[actor][name]": {"Ann Ünlü"},
		"portal[permissions][1]": {"cancel"}, "portal[permissions][0]": {"change_plan"},
	}, func(r *http.Request) { r.Header.Set("Stripe-Version", "2026-10-28.endive") })
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", res.Status, body)
	}
	for name, want := range map[string]any{
		"object": "billing_portal.session", "customer": "cus_1", "configuration": "enterprise", "locale": "pt-BR",
		"return_url": "https://app.example.com/back?x=1", "livemode": false, "on_behalf_of": nil, "flow": nil, "customer_account": nil,
	} {
		if got, there := body[name]; !there || got != want {
			t.Errorf("%s: got %v (there: %v), want %v", name, got, there, want)
		}
	}
	if id, _ := body["id"].(string); !strings.HasPrefix(id, "bps_") || len(id) != 28 {
		t.Errorf("id %q", id)
	}
	if !strings.HasPrefix(res.Header.Get("Request-Id"), "req_") || res.Header.Get("Stripe-Version") != "2026-10-28.endive" ||
		res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", res.Header)
	}
	c := w.claims(t, body["url"].(string))
	if c.Subject != "cus_1" || c.Role != "billing" || c.Configuration != "enterprise" || c.Locale != "pt-BR" ||
		c.ReturnURL != "https://app.example.com/back?x=1" || c.Actor != (link.Actor{ID: "u_7", Email: "ann@example.com", Name: "Ann Ünlü"}) ||
		!slices.Equal(c.Permissions, []string{"change_plan", "cancel"}) || c.Expires.Sub(c.IssuedAt) != link.MaxLifetime {
		t.Errorf("claims %+v", c)
	}
}

func TestMintDefaults(t *testing.T) {
	w := newWorld(t)
	_, body := w.post(t, url.Values{"customer": {"cus_1"}, "locale": {"auto"}, "return_url": {""}, "configuration": {""}}, nil)
	c := w.claims(t, body["url"].(string))
	if body["return_url"] != app || body["locale"] != nil || body["configuration"] != nil {
		t.Errorf("body %v", body)
	}
	if c.Role != "" || c.Permissions != nil || c.ReturnURL != "" || c.Locale != "" {
		t.Errorf("claims %+v", c)
	}
	_, body = w.post(t, url.Values{"customer": {"cus_1"}, "portal[permissions][]": {""}}, nil)
	if c := w.claims(t, body["url"].(string)); c.Permissions == nil || len(c.Permissions) != 0 {
		t.Errorf("an empty list of permissions permits nothing: got %v", c.Permissions)
	}
}

func TestMintRefuses(t *testing.T) {
	w := newWorld(t)
	ok := url.Values{"customer": {"cus_1"}}
	with := func(name string, values ...string) url.Values {
		f := url.Values{"customer": {"cus_1"}}
		f[name] = values
		return f
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for _, tt := range []struct {
		name   string
		form   url.Values
		edit   func(*http.Request)
		status int
		code   string
		param  string
	}{
		{"no key", ok, func(r *http.Request) { r.Header.Del("Authorization") }, 401, "", ""},
		{"wrong key", ok, header("Authorization", "Bearer bpk_wrong_wrong_wrong_wr"), 401, "", ""},
		{"prefix of the key", ok, header("Authorization", "Bearer "+key[:len(key)-1]), 401, "", ""},
		{"key with a tail", ok, header("Authorization", "Bearer "+key+" "), 200, "", ""}, // HTTP trims it
		{"other scheme", ok, header("Authorization", "Digest "+key), 401, "", ""},
		{"key as Basic password", ok, func(r *http.Request) { r.SetBasicAuth("", key) }, 401, "", ""},
		{"Stripe secret key", ok, header("Authorization", "Bearer sk_live_51CANARY"), 401, "", ""},
		{"Stripe restricted key by Basic", ok, func(r *http.Request) { r.SetBasicAuth("rk_live_51CANARY", "") }, 401, "", ""},
		{"two Authorization headers", ok, func(r *http.Request) { r.Header.Add("Authorization", "Bearer "+key) }, 401, "", ""},
		{"key in the URL", ok, func(r *http.Request) { r.Header.Del("Authorization"); r.URL.RawQuery = "api_key=" + key }, 401, "", ""},
		{"parameters in the URL", ok, func(r *http.Request) { r.URL.RawQuery = "customer=cus_1" }, 400, "", ""},
		{"Stripe-Account", ok, header("Stripe-Account", "acct_1"), 400, "", ""},
		{"Stripe-Context", ok, header("Stripe-Context", "x"), 400, "", ""},
		{"JSON", ok, header("Content-Type", "application/json"), 415, "", ""},
		{"compressed", ok, header("Content-Encoding", "gzip"), 415, "", ""},
		{"GET", nil, func(r *http.Request) { r.Method = http.MethodGet; r.Body = nil; r.ContentLength = 0 }, 405, "", ""},
		{"other path", ok, func(r *http.Request) { r.URL.Path = "/v1/customers" }, 404, "", ""},
		{"path with a slash", ok, func(r *http.Request) { r.URL.Path += "/" }, 404, "", ""},
		{"other host", ok, func(r *http.Request) { r.Host = "evil.example" }, 421, "", ""},
		{"return_url too long", with("return_url", "https://app.example.com/"+strings.Repeat("x", 3000)), nil, 400, "", "return_url"},
		{"link too long", url.Values{
			"customer": {"cus_1"}, "return_url": {"https://app.example.com/" + strings.Repeat("x", 2000)},
			"portal[actor][id]": {strings.Repeat("i", 255)}, "portal[actor][name]": {strings.Repeat("n", 255)}, "portal[actor][email]": {strings.Repeat("e", 255)},
			"portal[permissions][]": {"cancel"},
		}, nil, 400, "", "return_url"},
		{"huge", with("locale", strings.Repeat("x", 70_000)), nil, 413, "", ""},
		{"no customer", url.Values{}, nil, 400, "parameter_missing", "customer"},
		{"empty customer", url.Values{"customer": {""}}, nil, 400, "parameter_missing", "customer"},
		{"unknown customer", url.Values{"customer": {"cus_2"}}, nil, 400, "resource_missing", "customer"},
		{"customer with a space", url.Values{"customer": {"cus_1 "}}, nil, 400, "resource_missing", "customer"},
		{"customer with a line break", url.Values{"customer": {"cus_1\r\nX: y"}}, nil, 400, "resource_missing", "customer"},
		{"customer twice", url.Values{"customer": {"cus_1", "cus_2"}}, nil, 400, "", "customer"},
		{"customer as list", url.Values{"customer[]": {"cus_1"}}, nil, 400, "parameter_unknown", "customer[]"},
		{"foreign return_url", with("return_url", "https://evil.example/"), nil, 400, "", "return_url"},
		{"unknown locale", with("locale", "tlh"), nil, 400, "", "locale"},
		{"unknown configuration", with("configuration", "bpc_123"), nil, 400, "resource_missing", "configuration"},
		{"unknown role", with("portal[role]", "admin"), nil, 400, "", "portal[role]"},
		{"unknown permission", with("portal[permissions][0]", "refund"), nil, 400, "", "portal[permissions]"},
		{"actor with a control character", with("portal[actor][name]", "a\x00b"), nil, 400, "", "portal[actor][name]"},
		{"flow", with("flow_data[type]", "subscription_cancel"), nil, 400, "parameter_unknown", "flow_data"},
		{"expand", with("expand[0]", "configuration"), nil, 400, "parameter_unknown", "expand"},
		{"on behalf of", with("on_behalf_of", "acct_1"), nil, 400, "parameter_unknown", "on_behalf_of"},
		{"facts", with("portal[facts][seats]", "3"), nil, 400, "parameter_unknown", "portal[facts][seats]"},
		{"made up", with("customer_id", "cus_1"), nil, 400, "parameter_unknown", "customer_id"},
		{"empty idempotency key", ok, header("Idempotency-Key", ""), 400, "", ""},
		{"long idempotency key", ok, header("Idempotency-Key", strings.Repeat("k", 256)), 400, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, body := w.post(t, tt.form, tt.edit)
			if res.StatusCode != tt.status {
				t.Fatalf("got %s: %v; want %d", res.Status, body, tt.status)
			}
			if tt.status == 200 {
				return
			}
			e, _ := body["error"].(map[string]any)
			code, _ := e["code"].(string)
			param, _ := e["param"].(string)
			if e["type"] != "invalid_request_error" || e["message"] == "" || code != tt.code || param != tt.param {
				t.Errorf("got %v, want code %q and param %q", e, tt.code, tt.param)
			}
			if res.Header.Get("Request-Id") == "" || res.Header.Get("Stripe-Should-Retry") != "false" {
				t.Errorf("headers %v", res.Header)
			}
		})
	}
	for _, l := range w.logs.All() {
		b, err := json.Marshal(l.ContextMap())
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"CANARY", key, "token="} {
			if strings.Contains(l.Message+string(b), secret) {
				t.Errorf("the log holds %q: %s %s", secret, l.Message, b)
			}
		}
	}
}

func TestMintWhileTheProviderIsDown(t *testing.T) {
	w := newWorld(t)
	w.down = true
	res, body := w.post(t, url.Values{"customer": {"cus_1"}}, nil)
	if e, _ := body["error"].(map[string]any); res.StatusCode != 503 || e["type"] != "api_error" || res.Header.Get("Stripe-Should-Retry") != "true" {
		t.Errorf("%s %v", res.Status, body)
	}
}

func TestIdempotencyKey(t *testing.T) {
	w := newWorld(t)
	idem := func(k string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Idempotency-Key", k) }
	}
	form := url.Values{"customer": {"cus_1"}}
	_, first := w.post(t, form, idem("k1"))
	res, again := w.post(t, form, idem("k1"))
	if first["url"] != again["url"] || res.Header.Get("Idempotent-Replayed") != "true" || res.Header.Get("Idempotency-Key") != "k1" {
		t.Errorf("the same key made another link: %v, %v", first, again)
	}
	if _, other := w.post(t, form, idem("k2")); other["url"] == first["url"] {
		t.Error("another key gave the same link")
	}
	if _, other := w.post(t, form, func(r *http.Request) { idem("k1")(r); r.Header.Set("Authorization", "Bearer "+key2) }); other["url"] == first["url"] {
		t.Error("another API key's idempotency key gave the same link")
	}
	res, body := w.post(t, url.Values{"customer": {"cus_1"}, "locale": {"de"}}, idem("k1"))
	if e, _ := body["error"].(map[string]any); res.StatusCode != 400 || e["type"] != "idempotency_error" {
		t.Errorf("same key, other parameters: %s %v", res.Status, body)
	}
	// A request that was refused is not remembered.
	w.post(t, url.Values{"customer": {"cus_2"}}, idem("k3"))
	if res, body := w.post(t, form, idem("k3")); res.StatusCode != 200 {
		t.Errorf("after a refusal: %s %v", res.Status, body)
	}
	var wg sync.WaitGroup
	urls := make([]string, 16)
	for i := range urls {
		wg.Go(func() {
			_, body := w.post(t, form, idem("k4"))
			urls[i], _ = body["url"].(string)
		})
	}
	wg.Wait()
	if slices.Sort(urls); urls[0] == "" || len(slices.Compact(urls)) != 1 {
		t.Error("16 requests at once under one key made more than one link")
	}
}

// An unmodified Stripe SDK, pointed at the portal with a portal key, makes
// links and understands refusals.
func TestStripeGoMintsLinks(t *testing.T) {
	w := newWorld(t)
	client := func(k string) *stripe.Client {
		backend := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
			URL: stripe.String(w.server.URL), HTTPClient: &http.Client{Transport: named{}}, LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull},
		})
		return stripe.NewClient(k, stripe.WithBackends(&stripe.Backends{API: backend, Connect: backend, Uploads: backend, MeterEvents: backend}))
	}
	params := &stripe.BillingPortalSessionCreateParams{Customer: stripe.String("cus_1"), ReturnURL: stripe.String(app), Locale: stripe.String("en-GB")}
	params.AddExtra("portal[role]", "viewer")
	s, err := client(key).V1BillingPortalSessions.Create(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	if s.Customer != "cus_1" || s.Locale != "en-GB" || s.ReturnURL != app || s.LastResponse.RequestID == "" {
		t.Errorf("session %+v", s)
	}
	if c := w.claims(t, s.URL); c.Role != "viewer" || c.Locale != "en-GB" {
		t.Errorf("claims %+v", c)
	}
	var e *stripe.Error
	_, err = client("bpk_not_a_key_of_this_portal").V1BillingPortalSessions.Create(t.Context(), params)
	if !errors.As(err, &e) || e.HTTPStatusCode != 401 || e.RequestID == "" {
		t.Errorf("wrong key: %v", err)
	}
	_, err = client(key).V1BillingPortalSessions.Create(t.Context(), &stripe.BillingPortalSessionCreateParams{Customer: stripe.String("cus_2")})
	if !errors.As(err, &e) || e.Type != stripe.ErrorTypeInvalidRequest || e.Code != stripe.ErrorCodeResourceMissing || e.Param != "customer" {
		t.Errorf("unknown customer: %v", err)
	}
	_, err = client(key).V1BillingPortalSessions.Create(t.Context(), &stripe.BillingPortalSessionCreateParams{
		Customer: stripe.String("cus_1"),
		FlowData: &stripe.BillingPortalSessionCreateFlowDataParams{Type: stripe.String("payment_method_update")},
	})
	if !errors.As(err, &e) || e.Param != "flow_data" {
		t.Errorf("flow: %v", err)
	}
}

// named calls the test server by the portal's name.
type named struct{}

func (named) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Host = "billing.example.com"
	return http.DefaultTransport.RoundTrip(r)
}

func TestCheckKey(t *testing.T) {
	for k, want := range map[string]string{
		key: "", "short": "at least 20", "sk_test_0123456789012345678901": "Stripe secret key",
		"with space 0123456789012345": "printable ASCII", "bpk:0123456789012345678901": "colons",
	} {
		err := vendorapi.CheckKey(k)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", k, err, want)
		}
		if err != nil && strings.Contains(err.Error(), k) {
			t.Errorf("the error repeats the key: %v", err)
		}
	}
}

// FuzzMint sends any body: the answer is always one of Stripe's objects, and a
// link that is made is for the customer that was looked up.
func FuzzMint(f *testing.F) {
	for _, s := range []string{
		"customer=cus_1", "customer=cus_1&portal[permissions][]=cancel", "customer=cus_1&portal[permissions][0]=", "customer[]=cus_1",
		"customer=cus_1&customer=cus_2", "%", "customer=cus_1&portal[actor][name]=%00", "customer=cus_1;locale=de", "=&=", "customer=cus_1&locale=auto&return_url=",
	} {
		f.Add(s)
	}
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, origin+vendorapi.Path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+key)
		rec := httptest.NewRecorder()
		w.server.Config.Handler.ServeHTTP(rec, r)
		var answer struct {
			URL   string
			Error *struct{ Type, Message string }
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%d %q: %v", rec.Code, rec.Body, err)
		}
		switch {
		case rec.Code == http.StatusOK:
			if c := w.claims(t, answer.URL); c.Subject != "cus_1" {
				t.Fatalf("a link for %q", c.Subject)
			}
		case rec.Code >= 500 || answer.Error == nil || answer.Error.Message == "":
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
	})
}
