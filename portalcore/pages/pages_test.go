package pages

import (
	"bytes"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const someID = "0123456789abcdefghijklmnopqrstuv"

// TestRoutes walks every route with every method, with and without a session,
// and holds the headers of every answer.
func TestRoutes(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	stranger := &browser{env: e}
	css := e.pages.Renderer.AssetPath("portal.css")
	for _, tc := range []struct {
		path                string
		get, post           int // with a session
		getClosed, postNone int // without
	}{
		{"/", 200, 405, 401, 405},
		{"/enter", 401, 401, 401, 401},
		{"/plan", 200, 400, 401, 401},
		{"/check/" + someID[:26], 409, 409, 401, 401},
		{"/done/" + someID, 404, 404, 401, 401},
		{"/cancel", 200, 404, 401, 401},
		{"/resume", 405, 404, 405, 401},
		{"/drop", 405, 404, 405, 401},
		{"/payment", 200, 405, 401, 405},
		{"/payment/add", 200, 400, 401, 401},
		{"/payment/default", 405, 404, 405, 401},
		{"/return/" + someID, 404, 405, 401, 405},
		{"/leave/" + someID, 404, 405, 401, 405},
		{"/details/name", 200, 422, 401, 401},
		{"/details/email", 200, 422, 401, 401},
		{"/details/phone", 200, 400, 401, 401},
		{"/details/address", 200, 422, 401, 401},
		{"/details/tax", 404, 404, 404, 404},
		{"/details/invoice-fields", 200, 400, 401, 401},
		{"/details/language", 200, 400, 401, 401},
		{"/details/tax-ids", 200, 422, 401, 401},
		{"/tax-id/txi_nobody", 404, 404, 401, 401},
		{"/invoices", 200, 405, 401, 405},
		{"/invoices/in_cus_a/pdf", 200, 405, 401, 405},
		{"/invoices/in_cus_b/pdf", 404, 405, 401, 405},
		{"/invoices/in_cus_a", 200, 405, 401, 405},
		{"/invoices/in_cus_b", 404, 405, 401, 405},
		{"/invoices/in_cus_a/receipt", 200, 405, 401, 405},
		{"/invoices/in_cus_a/credit-notes/cn_a/pdf", 200, 405, 401, 405},
		{"/invoices.csv", 200, 405, 401, 405},
		{"/invoices.zip", 200, 405, 401, 405},
		{"/refresh", 405, 303, 405, 401},
		{"/signed-out", 200, 405, 200, 405},
		{css, 200, 405, 200, 405},
		{e.pages.logoPath, 200, 405, 200, 405},
		{"/assets/nothing.css", 404, 405, 404, 405},
		{"/favicon.ico", 204, 405, 204, 405},
		{"/robots.txt", 200, 405, 200, 405},
		{"/nothing", 404, 404, 404, 404},
		{"/state/" + someID, 404, 405, 401, 405},
		{"/state/", 404, 404, 404, 404},
		{"/devices", 200, 405, 401, 405},
		{"/devices/", 404, 404, 404, 404},
		{"/devices/sign-out", 405, 303, 405, 401},
		{"/devices/sign-out-all", 405, 303, 405, 401}, // ends the session
		{"/sign-out", 405, 303, 405, 303},             // last: it ends the session
	} {
		check := func(who *browser, method string, want int) {
			t.Helper()
			r := httptest.NewRequest(method, tc.path, nil)
			if method == "POST" {
				r.Header.Set("Content-Type", formType)
				r.Header.Set("Sec-Fetch-Site", "same-origin")
			}
			w := who.send(r)
			if w.Code != want {
				t.Errorf("%s %s (session %t): %d, want %d: %.300s", method, tc.path, who == b, w.Code, want, w.Body)
			}
			checkHeaders(t, method+" "+tc.path, w)
			if w.Code == 405 && w.Header().Get("Allow") == "" {
				t.Errorf("%s %s: 405 without Allow", method, tc.path)
			}
			if method == "HEAD" && w.Body.Len() > 0 {
				t.Errorf("HEAD %s has a body", tc.path)
			}
		}
		check(b, "GET", tc.get)
		check(b, "HEAD", tc.get)
		check(stranger, "GET", tc.getClosed)
		check(stranger, "POST", tc.postNone)
		for _, method := range []string{"OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "pOST", "get"} {
			want := 405
			if tc.get == 404 && tc.post == 404 && tc.getClosed == 404 {
				want = 404
			}
			check(b, method, want)
		}
		check(b, "POST", tc.post)
	}
	if len(e.provider.effects) != 0 {
		t.Errorf("effects: %v", e.provider.effects)
	}
}

// referrerPolicy: an address with a token in it is nobody's Referer.
func referrerPolicy(name string) string {
	if strings.HasSuffix(name, " /enter") {
		return "strict-origin"
	}
	return "same-origin"
}

func checkHeaders(t *testing.T, name string, w *httptest.ResponseRecorder) {
	t.Helper()
	h := w.Header()
	for k, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": referrerPolicy(name), "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY", "Strict-Transport-Security": "max-age=31536000",
	} {
		if h.Get(k) != want {
			t.Errorf("%s: %s = %q, want %q", name, k, h.Get(k), want)
		}
	}
	if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("%s: CSP = %q", name, csp)
	}
	if cc := h.Get("Cache-Control"); cc != "no-store" && (h.Get("Set-Cookie") != "" || !strings.Contains(cc, "public")) {
		t.Errorf("%s: Cache-Control = %q", name, cc)
	}
	if len(h.Get("X-Request-Id")) != 26 || h.Get("Permissions-Policy") == "" {
		t.Errorf("%s: X-Request-Id = %q", name, h.Get("X-Request-Id"))
	}
	for k := range h {
		if strings.HasPrefix(k, "Access-Control-") {
			t.Errorf("%s: grants %s", name, k)
		}
	}
}

// TestOneSpelling holds that a path has one spelling (T53).
func TestOneSpelling(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	for _, path := range []string{
		"//", "/./", "/plan/", "//plan", "/./plan", "/x/../plan", "/%70lan", "/plan%2f", "/plan%00", "/plan;x=1", "/plan.", "/plan%20",
		"/PLAN", "/plan%23", "/plan%3Fx", "/%2e%2e/plan", "/plan%5c", "/invoices/in_cus_a/pdf/", "/invoices//pdf", "/invoices/in_cus_a/../in_cus_a/pdf",
		"/invoices/in%5fcus_a/pdf", "/invoices/x.css", "/invoices/in_cus_a/pdf.css", "/assets/", "/assets/../plan", "/check/", "/done", "/details/", "/details/name/",
	} {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.URL = u
		if w := b.send(r); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, w.Code)
		}
	}
	if e.provider.docs != 0 {
		t.Errorf("the provider was asked for %d files", e.provider.docs)
	}
	// A fragment in the request's target stays in the path.
	r := httptest.NewRequest("GET", "/", nil)
	r.URL = &url.URL{Path: "/plan#x"}
	if w := b.send(r); w.Code != http.StatusNotFound {
		t.Errorf("fragment: %d", w.Code)
	}
}

func TestHost(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	for h, want := range map[string]int{
		host: 200, "BILLING.example.com": 200, "billing.example.com.": 421, "billing.example.com:443": 421, "evil.example": 421, "": 421,
		"127.0.0.1": 421, "billing.example.com:8443": 421, "billing.example.com@evil": 421,
	} {
		w := b.get("/", func(r *http.Request) { r.Host = h })
		if w.Code != want {
			t.Errorf("host %q: %d, want %d", h, w.Code, want)
		}
		checkHeaders(t, h, w)
	}
	// What a proxy says counts nothing here.
	w := b.get("/", header("X-Forwarded-Host", "evil.example"), header("X-Original-Url", "/enter"), header("X-Http-Method-Override", "POST"))
	if w.Code != 200 || strings.Contains(w.Body.String(), "evil.example") {
		t.Errorf("forwarded headers had an effect: %d", w.Code)
	}
}

// TestCrossSite holds that every form is taken from our own pages only (T62).
func TestCrossSite(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	form := formOf(t, b.get("/cancel").Body.String(), "/cancel")
	for name, edits := range map[string][]edit{
		"cross-site":     {header("Sec-Fetch-Site", "cross-site")},
		"same-site":      {header("Sec-Fetch-Site", "same-site")},
		"none":           {header("Sec-Fetch-Site", "none")},
		"doubled":        {header("Sec-Fetch-Site", "same-origin", "same-origin")},
		"nothing":        {header("Sec-Fetch-Site")},
		"null origin":    {header("Sec-Fetch-Site"), header("Origin", "null")},
		"http origin":    {header("Sec-Fetch-Site"), header("Origin", "http://"+host)},
		"origin port":    {header("Sec-Fetch-Site"), header("Origin", origin+":443")},
		"origin dot":     {header("Sec-Fetch-Site"), header("Origin", origin+".")},
		"origin path":    {header("Sec-Fetch-Site"), header("Origin", origin+"/")},
		"two origins":    {header("Sec-Fetch-Site"), header("Origin", origin, origin)},
		"only a Referer": {header("Sec-Fetch-Site"), header("Referer", origin+"/")},
		"both, cross":    {header("Sec-Fetch-Site", "cross-site"), header("Origin", origin)},
	} {
		e.unchanged(name, func() {
			for path, r := range e.pages.routes {
				if r.post == nil {
					continue
				}
				if strings.HasSuffix(path, "/") {
					path += someID
				}
				if w := b.post(path, form, edits...); w.Code != http.StatusForbidden {
					t.Errorf("%s: POST %s: %d, want 403", name, path, w.Code)
				}
			}
		})
	}
	// An old browser without Fetch Metadata works.
	location(t, b.post("/cancel", form, header("Sec-Fetch-Site"), header("Origin", origin)), "/done/")
}

func TestBodies(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	form := formOf(t, b.get("/cancel").Body.String(), "/cancel").Encode()
	for name, tc := range map[string]struct {
		contentType []string
		body        string
		status      int
	}{
		"json":          {[]string{"application/json"}, `{"subscription":"sub_a"}`, 415},
		"multipart":     {[]string{"multipart/form-data; boundary=x"}, form, 415},
		"text":          {[]string{"text/plain"}, form, 415},
		"none":          {nil, form, 415},
		"two":           {[]string{formType, formType}, form, 415},
		"latin-1":       {[]string{formType + "; charset=iso-8859-1"}, form, 415},
		"other param":   {[]string{formType + "; boundary=x"}, form, 415},
		"broken":        {[]string{formType + "; charset"}, form, 415},
		"too large":     {[]string{formType}, form + "&x=" + strings.Repeat("a", 64<<10), 413},
		"101 fields":    {[]string{formType}, form + strings.Repeat("&x=1", 101), 400},
		"twice":         {[]string{formType}, form + "&subscription=sub_b", 400},
		"bad escape":    {[]string{formType}, form + "&x=%zz", 400},
		"semicolon":     {[]string{formType}, form + ";x=1", 400},
		"not UTF-8":     {[]string{formType}, form + "&x=%ff", 400},
		"array":         {[]string{formType}, strings.Replace(form, "subscription=", "subscription[]=", 1), 404},
		"case":          {[]string{formType}, strings.Replace(form, "subscription=", "Subscription=", 1), 404},
		"padded":        {[]string{formType}, strings.Replace(form, "subscription=sub_a", "subscription=sub_a+", 1), 404},
		"wide digits":   {[]string{formType}, strings.Replace(form, "subscription=sub_a", "subscription=sub_%EF%BC%91", 1), 404},
		"no nonce":      {[]string{formType}, "subscription=sub_a", 400},
		"foreign nonce": {[]string{formType}, "subscription=sub_a&nonce=" + strings.Repeat("x", 26), 400},
	} {
		e.unchanged(name, func() {
			r := httptest.NewRequest("POST", "/cancel", strings.NewReader(tc.body))
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			header("Content-Type", tc.contentType...)(r)
			if w := b.send(r); w.Code != tc.status {
				t.Errorf("%s: %d, want %d", name, w.Code, tc.status)
			}
		})
	}
	if w := b.post("/cancel?subscription=sub_a", nil); w.Code != 400 {
		t.Errorf("a query beside a body: %d, want 400", w.Code)
	}
	if w := b.post("/cancel", nil, header("Content-Encoding", "gzip")); w.Code != 415 {
		t.Errorf("compressed: %d, want 415", w.Code)
	}
}

// TestCancelIsAlwaysThere holds that the way out stands in the footer of every
// page of somebody who has a plan, errors included; but for addresses that do
// not exist, for which nobody's session is read.
func TestCancelIsAlwaysThere(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	b.get("/")
	for _, path := range []string{"/", "/plan", "/cancel?subscription=sub_a", "/payment", "/payment/add", "/details/name", "/invoices", "/cancel?subscription=sub_b"} {
		w := b.get(path)
		_, footer, ok := strings.Cut(w.Body.String(), "<footer")
		if !ok || !strings.Contains(footer, `href="/cancel?subscription=sub_a"`) {
			t.Errorf("%s (%d): no way out in the footer", path, w.Code)
		}
	}
	if w := (&browser{env: e}).get("/no-such-page"); strings.Contains(w.Body.String(), "/cancel") {
		t.Error("somebody who is not signed in is shown a way to cancel")
	}
}

func TestPanic(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	for _, tc := range []struct {
		name    string
		breakIt func()
	}{
		{"provider", func() { e.provider.panics = true }},
		{"and the renderer of the error page", func() { e.pages.Renderer = nil }},
	} {
		name := tc.name
		tc.breakIt()
		w := b.get("/invoices/in_cus_a/pdf")
		if w.Code != 500 || strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), "nil pointer") ||
			!strings.Contains(w.Body.String(), w.Header().Get("X-Request-Id")) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		checkHeaders(t, name, w)
		if e.logs.FilterMessageSnippet("panic").FilterField(zap.String("request_id", w.Header().Get("X-Request-Id"))).Len() != 1 {
			t.Errorf("%s: the panic is not in the log", name)
		}
	}
}

// TestKept holds when a rendered page is used again and when not.
func TestKept(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	e.provider.accounts["cus_a"].Subscriptions[0].CancelAtPeriodEnd = true
	first := b.get("/").Body.String()
	nonce := formOf(t, first, "/resume").Get("nonce")
	if second := b.get("/").Body.String(); second != first {
		t.Error("the same page was drawn again")
	}
	if e.provider.reads != 1 {
		t.Errorf("%d reads, want 1", e.provider.reads)
	}
	other := e.signedIn("cus_a")
	viewer := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	// All of them at the same version of the account now.
	theirs := formOf(t, other.get("/").Body.String(), "/resume").Get("nonce")
	if ours := formOf(t, b.get("/").Body.String(), "/resume").Get("nonce"); ours == theirs || theirs == nonce {
		t.Error("two sessions share a page")
	}
	if strings.Contains(viewer.get("/").Body.String(), `action="/resume"`) {
		t.Error("a viewer got an owner's page")
	}
	if w := b.get("/", header("Accept-Language", "en-XA")); w.Body.String() == first && slices.Contains(e.pages.Renderer.Locales(), "en-XA") {
		t.Error("another language got the same bytes")
	}
	e.advance(time.Minute)
	if formOf(t, b.get("/").Body.String(), "/resume").Get("nonce") == nonce {
		t.Error("the page of another minute was used")
	}
	if w := b.get("/?fresh=1"); location(t, w, "/") != "/" {
		t.Error("refresh does not lead to the clean page")
	}
}

// TestOtherCustomer holds that one customer's page is never another's.
func TestOtherCustomer(t *testing.T) {
	e := newEnv(t)
	a, b := e.signedIn("cus_a"), e.signedIn("cus_b")
	for _, path := range []string{"/", "/plan", "/payment", "/cancel", "/invoices", "/details/name"} {
		if body := a.get(path).Body.String(); strings.Contains(body, "cus_b") || !strings.Contains(body, "cus_a") {
			t.Errorf("%s of cus_a shows cus_b, or not cus_a", path)
		}
		if body := b.get(path).Body.String(); strings.Contains(body, "cus_a") {
			t.Errorf("%s of cus_b shows cus_a", path)
		}
	}
	// A price outside the catalogue is shown to who holds it, and to nobody else.
	if !strings.Contains(b.get("/").Body.String(), "Product price_legacy") || strings.Contains(a.get("/plan").Body.String(), "price_legacy") {
		t.Error("legacy price")
	}
	for _, path := range []string{"/plan?subscription=sub_b", "/cancel?subscription=sub_b", "/invoices/in_cus_b/pdf", "/invoices/in_nothing/pdf", "/plan?subscription=%00"} {
		if w := a.get(path); w.Code != 404 || strings.Contains(w.Body.String(), "cus_b") {
			t.Errorf("%s: %d, want 404", path, w.Code)
		}
	}
}

func TestProviderDown(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	e.provider.down = true
	for _, path := range []string{"/", "/plan", "/payment", "/cancel", "/payment/add", "/details/name", "/invoices", "/invoices/in_cus_a/pdf"} {
		if w := b.get(path); w.Code != 503 || strings.Contains(w.Body.String(), "connection refused") {
			t.Errorf("%s: %d, want 503", path, w.Code)
		}
	}
	choose := url.Values{"subscription": {"sub_a"}, "price": {"price_team"}, "quantity": {"4"}}
	if w := b.post("/plan", choose); w.Code != 503 || !strings.Contains(w.Body.String(), "Nothing was sent") {
		t.Errorf("POST /plan: %d, want 503 that says nothing was sent", w.Code)
	}
	e.provider.down = false
	if w := b.get("/"); w.Code != 200 {
		t.Fatalf("up again: %d", w.Code)
	}
	form := formOf(t, b.get("/cancel").Body.String(), "/cancel")
	e.provider.down = true
	e.advance(2 * time.Minute)
	body := b.get("/").Body.String()
	if !strings.Contains(body, "7600") && !strings.Contains(body, "76.00") || !strings.Contains(body, "Payco") || !strings.Contains(body, "banner warn") {
		t.Errorf("the old copy is not shown as one: %s", body)
	}
	e.unchanged("cancel while down", func() {
		if w := b.post("/cancel", form); w.Code != 503 || !strings.Contains(w.Body.String(), "Nothing was sent") {
			t.Errorf("cancel: %d, want 503 that says nothing was sent: %s", w.Code, w.Body)
		}
	})
}

// TestSlowProvider holds that a page with an older copy at hand does not wait
// long for a new one.
func TestSlowProvider(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	b.get("/")
	e.advance(2 * time.Minute)
	e.provider.hangs = true
	begun := time.Now()
	w := b.get("/")
	if took := time.Since(begun); w.Code != 200 || took > 2*patience || !strings.Contains(w.Body.String(), "banner warn") {
		t.Errorf("%d after %s, want an old copy that says so after about %s", w.Code, took, patience)
	}
}

func TestBanners(t *testing.T) {
	e := newEnv(t)
	now := e.now()
	euros := func(n int64) billing.Money { return billing.Money{Amount: n * 100, Currency: "eur"} }
	steps := []struct {
		kind string
		do   func(a *billing.Account)
	}{
		{"", func(*billing.Account) {}},
		{"trial", func(a *billing.Account) {
			a.Subscriptions[0].Status, a.Subscriptions[0].TrialEnd = billing.Trialing, now.AddDate(0, 0, 9)
		}},
		{"ending", func(a *billing.Account) { a.Subscriptions[0].CancelAtPeriodEnd = true }},
		{"action_needed", func(a *billing.Account) {
			a.Subscriptions[0].Pending = &billing.PendingUpdate{Items: []billing.Item{{Price: team, Quantity: 4}}, AmountDue: euros(20), ExpiresAt: now.AddDate(0, 0, 1)}
		}},
		{"past_due", func(a *billing.Account) {
			a.Debts = append(a.Debts, billing.Invoice{ID: "in_late", Status: billing.InvoiceOpen, Attempted: true, Created: now.AddDate(0, 0, -13), AmountRemaining: euros(58)})
		}},
	}
	for _, s := range steps {
		s.do(e.provider.accounts["cus_a"])
		b := e.signedIn("cus_a")
		v := &visit{Pages: e.pages, r: httptest.NewRequest("GET", "/", nil), now: now}
		v.sess, v.rec, _ = e.sessions.Read(t.Context(), b.cookie)
		snap, err := v.snapshot()
		if err != nil {
			t.Fatal(err)
		}
		l, _ := v.look("overview", snap)
		banner := l.banner()
		if got := banner; (got == nil) != (s.kind == "") || got != nil && got.Kind != s.kind {
			t.Errorf("banner %+v, want %q", got, s.kind)
		}
		if s.kind == "past_due" && (banner.Amount != euros(58) || banner.Method == nil) {
			t.Errorf("past due: %+v", banner)
		}
		if w := b.get("/"); w.Code != 200 {
			t.Errorf("%s: %d", s.kind, w.Code)
		}
	}
}

func TestPermits(t *testing.T) {
	e := newEnv(t)
	viewer := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	body := viewer.get("/").Body.String()
	if strings.Contains(body, ">Change plan<") || !strings.Contains(body, "Ask an owner") {
		t.Errorf("a viewer is offered changes: %s", body)
	}
	if w := viewer.get("/payment/add"); w.Code != http.StatusForbidden {
		t.Errorf("viewer adds a card: %d, want 403", w.Code)
	}
	narrowed := e.signedIn("cus_a", func(c *link.Claims) { c.Permissions = []string{"update_details"} })
	if strings.Contains(narrowed.get("/").Body.String(), `href="/plan?subscription=sub_a"`) || narrowed.get("/details/name").Code != 200 {
		t.Error("permissions do not narrow")
	}
	strict := e.signedIn("cus_a", func(c *link.Claims) { c.Configuration = "strict" })
	if !strings.Contains(strict.get("/cancel").Body.String(), "Please talk to us.") {
		t.Error("the vendor's sentence is missing")
	}
	unknown := e.signedIn("cus_a", func(c *link.Claims) { c.Configuration = "nobody" })
	if strings.Contains(unknown.get("/cancel").Body.String(), `method="post" action="/cancel"`) {
		t.Error("an unknown policy allows")
	}
}

func TestDocument(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	b.get("/")
	w := b.get("/invoices/in_cus_a/pdf")
	if w.Code != 200 || w.Body.String() != "%PDF-1.7 test" || w.Header().Get("Content-Disposition") != `attachment; filename="invoice-INV-cus_a.pdf"` ||
		w.Header().Get("Content-Type") != "application/pdf" || w.Header().Get("Content-Length") != "13" {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}
	e.provider.pdf = bytes.Repeat([]byte("x"), 100_000)
	e.provider.pdfLen = -1
	if w := b.get("/invoices/in_cus_a/pdf"); w.Body.Len() != 100_000 || w.Header().Get("Content-Length") != "" {
		t.Errorf("unknown size: %d bytes, Content-Length %q", w.Body.Len(), w.Header().Get("Content-Length"))
	}
	e.provider.pdfLen = 200_000
	defer func() {
		if r := recover(); r != http.ErrAbortHandler { //nolint:errorlint // panics with the value itself
			t.Errorf("half a file ended with %v, want the connection cut", r)
		}
	}()
	b.get("/invoices/in_cus_a/pdf")
}

func TestInvoicePages(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	w := b.get("/invoices")
	if w.Code != 200 || !strings.Contains(w.Body.String(), `href="/invoices?cursor=older%3D1%26x"`) {
		t.Errorf("%d: no link to older ones: %s", w.Code, w.Body)
	}
	if w := b.get("/invoices?cursor=older%3D1%26x"); w.Code != 200 || !strings.Contains(w.Body.String(), `href="/invoices?cursor=n"`) {
		t.Errorf("%d: no link to newer ones", w.Code)
	}
	for _, cursor := range []string{"nobody", "%0d%0aX", strings.Repeat("a", 600)} {
		if w := b.get("/invoices?cursor=" + cursor); w.Code != 404 {
			t.Errorf("cursor %.20q: %d, want 404", cursor, w.Code)
		}
	}
}

// TestEscaping holds that nothing of the provider's or a token's comes out as
// markup (T70).
func TestEscaping(t *testing.T) {
	e := newEnv(t)
	evil := `"><script>alert(1)</script>{{.}}</title>{env.HOME}`
	a := e.provider.accounts["cus_a"]
	a.Customer.Name, a.Invoices[0].Number, a.Invoices[0].Description, a.PaymentMethods[0].Brand = evil, evil, evil, evil
	a.Subscriptions[0].Items[0].Price.ProductName, a.Customer.Address.Line1 = evil, evil
	b := e.signedIn("cus_a")
	for _, path := range []string{"/", "/plan", "/payment", "/invoices", "/cancel", "/details/name", "/details/address", "/payment/add"} {
		if w := b.get(path); w.Code != 200 || strings.Contains(w.Body.String(), "<script") {
			t.Errorf("%s: %d, script in the page: %t", path, w.Code, strings.Contains(w.Body.String(), "<script"))
		}
	}
	stranger := &browser{env: e}
	w := stranger.get("/enter?token=" + e.token("cus_x", func(c *link.Claims) { c.Actor.Name = evil }))
	if w.Code != 200 || strings.Contains(w.Body.String(), "<script") {
		t.Errorf("interstitial: %d", w.Code)
	}
}

func TestLoopbackOrigin(t *testing.T) {
	e := newEnv(t, func(o *Options) { o.Origin = "http://localhost:8080" })
	if e.pages.cookie != "bp_8080" || strings.Contains(e.pages.cookieEnd, "Secure") || e.pages.header["Strict-Transport-Security"] != nil {
		t.Errorf("cookie %q%s, %v", e.pages.cookie, e.pages.cookieEnd, e.pages.header["Strict-Transport-Security"])
	}
	for _, bad := range []string{"http://billing.example.com", "https://billing.example.com/", "https://Billing.example.com", "ftp://x", "", "https://u@x", "https://x?y", "localhost:8080"} {
		o := e.pages.Options
		o.Origin = bad
		if _, err := New(o); err == nil {
			t.Errorf("origin %q accepted", bad)
		}
	}
	if _, err := New(Options{}); err == nil {
		t.Error("New without anything")
	}
}

func TestLanguage(t *testing.T) {
	e := newEnv(t)
	for _, l := range e.pages.Renderer.Locales() {
		list := e.pages.countries[l]
		if len(list) != 250 || !slices.ContainsFunc(list, func(c templates.Country) bool { return c.Code == "DE" && c.Name != "DE" }) {
			t.Errorf("%s: %d countries", l, len(list))
		}
	}
	if isCountry("UK") || isCountry("ZZ") || isCountry("EU") || isCountry("de") || !isCountry("GB") || isCountry("UN") || !isCountry("ZW") {
		t.Error("countries")
	}
	names := map[string]bool{}
	for _, c := range e.pages.countries["en"] {
		names[c.Name] = true
	}
	if len(names) != len(e.pages.countries["en"]) {
		t.Error("two countries have one name")
	}
	if got := slices.Sorted(maps.Keys(names)); got[0] != "Afghanistan" {
		t.Errorf("first: %q", got[0])
	}
}

func FuzzParseForm(f *testing.F) {
	for _, s := range []string{"a=b&c=d", "a=b&a=c", "a=%zz", "a;b", "=", "&&&", "a=%ff", "a=" + strings.Repeat("x", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseForm(s)
		if err != nil {
			if got != nil {
				t.Error("fields beside an error")
			}
			return
		}
		want, err := url.ParseQuery(s)
		if err != nil || len(want) != len(got) || len(got) > maxFields {
			t.Fatalf("%q: %v, url.ParseQuery has %v (%v)", s, got, want, err)
		}
		for k, v := range got {
			if len(want[k]) != 1 || want[k][0] != v {
				t.Errorf("%q: field %q = %q, want %q", s, k, v, want[k])
			}
		}
	})
}

func BenchmarkOverviewWarm(b *testing.B) {
	e := newEnv(b)
	who := e.signedIn("cus_a")
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = host
	r.Header.Set("Cookie", "__Host-bp="+who.cookie)
	r.Header.Set("Accept-Language", "en-GB,en;q=0.9,de;q=0.8")
	w := httptest.NewRecorder()
	e.pages.ServeHTTP(w, r)
	if w.Code != 200 {
		b.Fatal(w.Code)
	}
	size := w.Body.Len()
	sink := &discard{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(sink.h)
		e.pages.ServeHTTP(sink, r)
	}
	if sink.n < size {
		b.Fatal("nothing was written")
	}
	if e.provider.reads != 1 {
		b.Fatalf("%d provider reads", e.provider.reads)
	}
	b.ReportMetric(float64(size), "page-bytes")
}

type discard struct {
	h http.Header
	n int
}

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { d.n += len(p); return len(p), nil }

func TestWhoSeesTheReference(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	viewer := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	shown := func(w *httptest.ResponseRecorder) bool {
		return strings.Contains(w.Body.String(), w.Header().Get("X-Request-Id"))
	}
	if w := b.get("/no-such-page"); w.Code != 404 || shown(w) {
		t.Errorf("404: %d with a reference nobody needs", w.Code)
	}
	if w := viewer.get("/payment/add"); w.Code != 403 || !shown(w) {
		t.Errorf("403: %d, want the reference on it", w.Code)
	}
	e.provider.down = true
	e.accounts.Drop("cus_a")
	if w := b.get("/"); w.Code != 503 || !shown(w) {
		t.Errorf("503: %d, want the reference on it", w.Code)
	}
}

// TestNotSignedIn tells a first visit from a session that is over.
func TestNotSignedIn(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	e.advance(31 * time.Minute)
	for name, tc := range map[string]struct {
		b    *browser
		want string
	}{
		"first visit": {&browser{env: e}, "Open billing from"}, "session over": {b, "You were signed out"},
	} {
		if w := tc.b.get("/"); w.Code != 401 || !strings.Contains(w.Body.String(), "<h1>"+tc.want) {
			t.Errorf("%s: %d, lacks %q: %s", name, w.Code, tc.want, w.Body)
		}
	}
}

// TestLimitsAreCompared holds that a plan's other limits are said on its card
// and in the preview.
func TestLimitsAreCompared(t *testing.T) {
	from := &billing.Plan{Key: "a", Limits: []billing.Limit{{Name: "projects", Value: 5}, {Name: "same", Value: 1}, {Name: "old", Value: 2}}}
	to := &billing.Plan{Key: "b", Limits: []billing.Limit{{Name: "projects", Value: 50}, {Name: "same", Value: 1}, {Name: "new", Value: 3}}}
	_, _, got := compare(from, to)
	want := []templates.LimitChange{{Name: "projects", From: 5, To: 50}, {Name: "new", To: 3, Added: true}, {Name: "old", From: 2, Removed: true}}
	if !slices.Equal(got, want) {
		t.Errorf("changes %+v, want %+v", got, want)
	}
	if _, _, same := compare(from, from); same != nil {
		t.Errorf("a plan compared with itself: %+v", same)
	}
	e := newEnv(t)
	cat := *e.corridor.Catalogue()
	cat.Plans = slices.Clone(cat.Plans)
	cat.Plans[0].Limits, cat.Plans[1].Limits = from.Limits, to.Limits
	e.corridor.Catalogue = func() *billing.Catalogue { return &cat }
	b := e.signedIn("cus_a")
	path, _ := b.previewed()
	for _, p := range []string{"/plan", path} {
		if w := b.get(p); !strings.Contains(w.Body.String(), `<bdi translate="no">projects</bdi>, 5 to 50`) {
			t.Errorf("%s does not compare the limits: %s", p, w.Body)
		}
	}
}

// TestQuantityPrice holds that the quantity's button asks for a price of the
// interval that is shown, or is not there.
func TestQuantityPrice(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	button := regexp.MustCompile(`value="(price_[a-z_]+)">See what this quantity`)
	for _, tc := range []struct{ path, want string }{{"/plan", "price_basic"}, {"/plan?subscription=sub_a&interval=year", ""}} {
		got := ""
		if m := button.FindStringSubmatch(b.get(tc.path).Body.String()); m != nil {
			got = m[1]
		}
		if got != tc.want {
			t.Errorf("%s: the button asks for %q, want %q", tc.path, got, tc.want)
		}
	}
	e.provider.accounts["cus_a"].Subscriptions[0].Items[0].Price = team
	e.accounts.Drop("cus_a")
	if m := button.FindStringSubmatch(b.get("/plan?subscription=sub_a&interval=year").Body.String()); m == nil || m[1] != "price_team_year" {
		t.Errorf("on the yearly page of a plan that has a yearly price: %v", m)
	}
}

// TestUndated holds that the time of the account stands where the account is
// shown, and not beside a decision or a form.
func TestUndated(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	for path, want := range map[string]bool{"/": true, "/plan": true, "/payment": true, "/cancel": false, "/payment/add": false, "/details/name": false} {
		if w := b.get(path); w.Code != 200 || strings.Contains(w.Body.String(), `class="as-of"`) != want {
			t.Errorf("%s: %d, want the account's time on it: %t", path, w.Code, want)
		}
	}
}
