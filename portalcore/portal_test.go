package portalcore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
)

const (
	origin = "https://billing.example.com"
	key    = "bpk_portal_test_0123456789"
)

func tenant() portalcore.Tenant {
	return portalcore.Tenant{
		Origin: origin, APIKeys: []string{key}, ReturnTo: []string{"https://app.example.com/settings"},
		Policies: map[string][]policy.Rule{"": {{Verdict: policy.Allow, Actions: []string{policy.ChangePlan, policy.Cancel}}}},
		Brand:    portalcore.Brand{Name: "Acme"},
	}
}

func openStore(t *testing.T) store.Store {
	t.Helper()
	sealer, err := store.NewSealer(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s, err := badger.Open(t.TempDir(), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// provider is the sandbox; its prices cannot be read while down is set.
type provider struct {
	billing.Provider
	down bool
}

func (p *provider) Prices(ctx context.Context) ([]billing.Price, error) {
	if p.down {
		return nil, &billing.Error{Fault: billing.Unavailable, Err: errors.New("connection refused")}
	}
	return p.Provider.Prices(ctx)
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	l, err := sandbox.Open(t.Context(), openStore(t), sandbox.Options{Now: time.Now, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sandbox.Seed(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	return &provider{Provider: sandbox.NewProvider(l, nil, sandbox.ProviderOptions{Pages: origin + "/_sandbox"})}
}

func newPortal(t *testing.T, tn portalcore.Tenant, p billing.Provider) *portalcore.Portal {
	t.Helper()
	portal, err := portalcore.New(portalcore.Options{
		Tenant: tn, Store: openStore(t), Provider: p, Logger: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)), Process: "test", ExclusiveStore: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(portal.Close)
	return portal
}

// TestStartChecksTheCatalogue holds what is found wrong once the provider can
// be asked, and that a provider that cannot be asked is no error.
func TestStartChecksTheCatalogue(t *testing.T) {
	plan := func(key string, refs ...string) portalcore.PlanConfig {
		return portalcore.PlanConfig{Plan: billing.Plan{Key: key, Name: key, Rank: 1}, PriceRefs: refs}
	}
	rule := func(from string) map[string][]policy.Rule {
		return map[string][]policy.Rule{"": {{Verdict: policy.Deny, Actions: []string{policy.Cancel}, From: []string{from}}}}
	}
	for _, tt := range []struct {
		name string
		edit func(*portalcore.Tenant)
		want string
	}{
		{"from the provider's metadata", func(*portalcore.Tenant) {}, ""},
		{"by lookup key", func(tn *portalcore.Tenant) {
			tn.Plans = []portalcore.PlanConfig{plan("gold", "team_monthly", "team_yearly")}
		}, ""},
		{"by price id", func(tn *portalcore.Tenant) { tn.Plans = []portalcore.PlanConfig{plan("gold", "price_team_monthly")} }, ""},
		{
			"a price that is not there", func(tn *portalcore.Tenant) { tn.Plans = []portalcore.PlanConfig{plan("gold", "gold_monthly")} },
			`no active recurring price with lookup key or id "gold_monthly"`,
		},
		{
			"a price in two plans", func(tn *portalcore.Tenant) {
				tn.Plans = []portalcore.PlanConfig{plan("gold", "team_monthly"), plan("silver", "price_team_monthly")}
			},
			`price price_team_monthly is in plan "gold" and in plan "silver"`,
		},
		{"a rule about a plan of the provider", func(tn *portalcore.Tenant) { tn.Policies = rule("team") }, ""},
		{"a rule about a misspelt plan of the provider", func(tn *portalcore.Tenant) { tn.Policies = rule("taem") }, `unknown plan "taem": the catalogue has basic, team, business`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tn, p := tenant(), newProvider(t)
			tt.edit(&tn)
			err := newPortal(t, tn, p).Start(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			p.down = true
			if err := newPortal(t, tn, p).Start(t.Context()); err != nil {
				t.Errorf("while the provider is down: %v", err)
			}
		})
	}
}

// do sends a request the way a browser on the portal's own pages does.
func do(t *testing.T, h http.Handler, method, target, cookie string, form url.Values) *httptest.ResponseRecorder {
	t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r := httptest.NewRequestWithContext(t.Context(), method, target, body)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	} else if strings.HasSuffix(target, "/v1/billing_portal/sessions") {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestNothingChangesWithoutACatalogue holds that a portal which does not know
// yet what is sold lets people look, and change nothing: its rules about plans
// cannot be told apart.
func TestNothingChangesWithoutACatalogue(t *testing.T) {
	p := newProvider(t)
	p.down = true
	portal := newPortal(t, tenant(), p)
	if err := portal.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := do(t, portal, http.MethodPost, origin+"/v1/billing_portal/sessions", "", url.Values{"customer": {"cus_northwind"}})
	_, link, ok := strings.Cut(w.Body.String(), `"url":"`)
	if !ok {
		t.Fatalf("minting: %d %s", w.Code, w.Body)
	}
	link, _, _ = strings.Cut(link, `"`)
	w = do(t, portal, http.MethodGet, link, "", nil)
	cookie, _, _ := strings.Cut(w.Header().Get("Set-Cookie"), ";")
	if w.Code != http.StatusSeeOther || !strings.HasPrefix(cookie, "__Host-bp=") {
		t.Fatalf("entering: %d %v", w.Code, w.Header())
	}
	if w := do(t, portal, http.MethodGet, origin+"/", cookie, nil); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Northwind Ltd") {
		t.Errorf("looking: %d", w.Code)
	}
	w = do(t, portal, http.MethodPost, origin+"/cancel", cookie, url.Values{
		"subscription": {"sub_northwind"}, "nonce": {strings.Repeat("0", 26)}, "version": {"x"},
	})
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "Nothing was sent") {
		t.Errorf("cancelling: %d\n%s", w.Code, w.Body)
	}
	list, err := portal.Intents(t.Context(), portalcore.IntentQuery{})
	if err != nil || len(list.Intents) != 0 || list.Next != "" {
		t.Errorf("intents: %v, %v", list, err)
	}
}

func TestCheckTenant(t *testing.T) {
	if err := portalcore.CheckTenant(tenant()); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		edit func(*portalcore.Tenant)
		want string
	}{
		"no origin":             {func(tn *portalcore.Tenant) { tn.Origin = "" }, "origin is required"},
		"origin with a path":    {func(tn *portalcore.Tenant) { tn.Origin += "/portal" }, "nothing else"},
		"origin in upper case":  {func(tn *portalcore.Tenant) { tn.Origin = "https://Billing.example.com" }, "lower case"},
		"plain http":            {func(tn *portalcore.Tenant) { tn.Origin = "http://billing.example.com" }, "want https"},
		"default port":          {func(tn *portalcore.Tenant) { tn.Origin += ":443" }, "leave the default port out"},
		"nobody makes links":    {func(tn *portalcore.Tenant) { tn.APIKeys = nil }, "nobody could make a link"},
		"short key":             {func(tn *portalcore.Tenant) { tn.APIKeys = []string{"x"} }, "api_key 1"},
		"Stripe key":            {func(tn *portalcore.Tenant) { tn.APIKeys = []string{"sk_live_01234567890123"} }, "Stripe secret key"},
		"nowhere to return":     {func(tn *portalcore.Tenant) { tn.ReturnTo = nil }, "return_to is required"},
		"return over http":      {func(tn *portalcore.Tenant) { tn.ReturnTo = []string{"http://app.example.com"} }, "return_to"},
		"entry":                 {func(tn *portalcore.Tenant) { tn.Entry = "never" }, "want same_site or confirm"},
		"role":                  {func(tn *portalcore.Tenant) { tn.DefaultRole = "root" }, "default_role"},
		"idle over absolute":    {func(tn *portalcore.Tenant) { tn.Idle, tn.Absolute = 2*time.Hour, time.Hour }, "idle <= absolute"},
		"plan without prices":   {func(tn *portalcore.Tenant) { tn.Plans = []portalcore.PlanConfig{{Plan: billing.Plan{Key: "x"}}} }, "has no prices"},
		"policy name":           {func(tn *portalcore.Tenant) { tn.Policies["a b"] = nil }, "a name is"},
		"reserved name":         {func(tn *portalcore.Tenant) { tn.Name = "work" }, "choose another name"},
		"reserved by the index": {func(tn *portalcore.Tenant) { tn.Name = "invoices" }, "choose another name"},
		"no brand":              {func(tn *portalcore.Tenant) { tn.Brand.Name = "" }, "name is required"},
		"unreadable accent":     {func(tn *portalcore.Tenant) { tn.Brand.AccentLight = "#ffffff" }, "contrast"},
		"time zone":             {func(tn *portalcore.Tenant) { tn.Brand.TimeZone = "Mars/Olympus" }, "time_zone"},
		"logo":                  {func(tn *portalcore.Tenant) { tn.Brand.Logo, tn.Brand.LogoType = []byte("x"), "image/gif" }, "want an svg, png or webp"},
	} {
		t.Run(name, func(t *testing.T) {
			tn := tenant()
			tt.edit(&tn)
			err := portalcore.CheckTenant(tn)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "sk_live") {
				t.Errorf("the error repeats a secret: %v", err)
			}
		})
	}
}

// noIndex is a store that fails to read, once, whether the journal has all its
// indexes: as if it had been away when the portal started.
type noIndex struct {
	store.Store
	asked atomic.Int32
}

func (s *noIndex) GetAll(ctx context.Context, keys ...[]byte) ([][]byte, error) {
	if bytes.Equal(keys[0], indexed) && s.asked.Add(1) == 1 {
		return nil, fmt.Errorf("%w: gone", store.ErrUnavailable)
	}
	return s.Store.GetAll(ctx, keys...)
}

// indexed is the key that the journal writes when it has all its indexes.
var indexed = store.Key("billing.example.com", "intents-indexed")

// TestRecoveryAtTheStartIsTriedAgain holds that it is done at last.
func TestRecoveryAtTheStartIsTriedAgain(t *testing.T) {
	t.Parallel()
	st := &noIndex{Store: openStore(t)}
	p, err := portalcore.New(portalcore.Options{Tenant: tenant(), Store: st, Provider: newProvider(t), Logger: zap.NewNop(), Process: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { p.Run(ctx); close(ran) }()
	defer func() { stop(); <-ran }()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		values, err := st.Store.GetAll(t.Context(), indexed)
		if err != nil {
			t.Fatal(err)
		}
		if values[0] != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the journal was never indexed; tried %d times", st.asked.Load())
		}
	}
}
