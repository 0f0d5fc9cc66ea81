package pages

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/templates"
)

func TestEnter(t *testing.T) {
	e := newEnv(t)
	b := &browser{env: e}
	token := e.token("cus_a")
	w := b.get("/enter?token="+token, navigation)
	if location(t, w, "/") != "/" {
		t.Errorf("leads to %q, want /", w.Header().Get("Location"))
	}
	got := w.Header().Get("Set-Cookie")
	if !strings.HasPrefix(got, "__Host-bp=") || !strings.HasSuffix(got, "; Path=/; Secure; HttpOnly; SameSite=Lax") {
		t.Errorf("Set-Cookie = %q", got)
	}
	if w := b.get("/"); w.Code != 200 || !strings.Contains(w.Body.String(), "Company cus_a") {
		t.Errorf("overview: %d %s", w.Code, w.Body)
	}
	if e.skipped != 1 {
		t.Errorf("the access log was told to skip %d requests, want 1", e.skipped)
	}
	// Used: by the same browser, and by another one.
	if w := b.get("/enter?token="+token, navigation); w.Code != http.StatusGone || !strings.Contains(w.Body.String(), `href="/"`) {
		t.Errorf("reload of the link: %d, want 410 with a way on: %s", w.Code, w.Body)
	}
	other := &browser{env: e}
	if w := other.get("/enter?token="+token, navigation); w.Code != http.StatusGone || other.cookie != "" || !strings.Contains(w.Body.String(), vendorURL) {
		t.Errorf("replay in another browser: %d, cookie %q", w.Code, other.cookie)
	}
}

// TestInterstitial holds that nothing but a navigation from the vendor's site
// spends a link.
func TestInterstitial(t *testing.T) {
	e := newEnv(t)
	for name, edits := range map[string][]edit{
		"no metadata":      {},
		"typed":            {navigation, header("Sec-Fetch-Site", "none")},
		"foreign site":     {navigation, header("Sec-Fetch-Site", "cross-site")},
		"fetch":            {navigation, header("Sec-Fetch-Mode", "cors")},
		"frame":            {navigation, header("Sec-Fetch-Dest", "iframe")},
		"no destination":   {navigation, header("Sec-Fetch-Dest")},
		"prefetch":         {navigation, header("Sec-Purpose", "prefetch")},
		"prerender":        {navigation, header("Sec-Purpose", "prefetch;prerender")},
		"old prefetch":     {navigation, header("Purpose", "prefetch")},
		"Mozilla prefetch": {navigation, header("X-Moz", "prefetch")},
		"doubled site":     {navigation, header("Sec-Fetch-Site", "same-site", "cross-site")},
		"HEAD":             {navigation, func(r *http.Request) { r.Method = http.MethodHead }},
		"upper case site":  {navigation, header("Sec-Fetch-Site", "Same-Site")},
		"empty site":       {navigation, header("Sec-Fetch-Site", "")},
	} {
		t.Run(name, func(t *testing.T) {
			token := e.token("cus_a")
			b := &browser{env: e}
			reads := e.provider.reads
			var w *httptest.ResponseRecorder
			e.unchanged(name, func() { w = b.get("/enter?token="+token, edits...) })
			if w.Code != 200 || b.cookie != "" || e.provider.reads != reads {
				t.Fatalf("answer %d, cookie %q, %d provider reads", w.Code, b.cookie, e.provider.reads-reads)
			}
			if name != "HEAD" && (!strings.Contains(w.Body.String(), "cus_a") || !strings.Contains(w.Body.String(), token)) {
				t.Errorf("the page names no account or has no token: %s", w.Body)
			}
			// The button works, once.
			form := url.Values{templates.FieldToken: {token}}
			location(t, b.post("/enter", form), "/")
			if w := (&browser{env: e}).post("/enter", form); w.Code != http.StatusGone {
				t.Errorf("second press: %d, want 410", w.Code)
			}
		})
	}
	ask := newEnv(t, func(o *Options) { o.AlwaysAsk = true })
	b := &browser{env: ask}
	if w := b.get("/enter?token="+ask.token("cus_a"), navigation); w.Code != 200 || b.cookie != "" {
		t.Errorf("with AlwaysAsk: %d, cookie %q", w.Code, b.cookie)
	}
}

// TestNameOnTheWayIn holds that the page asks for the account by its name, never
// by the name of the person the link was made for, nor by an id in its place.
func TestNameOnTheWayIn(t *testing.T) {
	e := newEnv(t)
	heading := regexp.MustCompile(`(?s)<h1>(.*?)</h1>`)
	visit := func() (string, string) {
		w := (&browser{env: e}).get("/enter?token=" + e.token("cus_a", func(c *link.Claims) { c.Actor = link.Actor{ID: "u1", Name: "Ann Person", Email: "ann@example.com"} }))
		return heading.FindString(w.Body.String()), w.Body.String()
	}
	h1, body := visit()
	if h1 != "<h1>Open billing?</h1>" || strings.Contains(body, "Ann Person") || !strings.Contains(body, `Account <bdi translate="no">cus_a</bdi>`) {
		t.Errorf("before the account is known: %s in %s", h1, body)
	}
	e.signedIn("cus_a").get("/")
	if h1, _ := visit(); !strings.Contains(h1, "Company cus_a") {
		t.Errorf("once it is known: %s", h1)
	}
}

// TestLoginCSRF holds that a stranger's link neither replaces a session
// silently nor can be posted from elsewhere.
func TestLoginCSRF(t *testing.T) {
	e := newEnv(t)
	victim := e.signedIn("cus_a")
	mine := victim.cookie
	token := e.token("cus_b")
	w := victim.get("/enter?token="+token, navigation)
	if w.Code != 200 || victim.cookie != mine || !strings.Contains(w.Body.String(), "cus_b") {
		t.Fatalf("another customer's link: %d, cookie changed %t", w.Code, victim.cookie != mine)
	}
	for _, edits := range [][]edit{
		{header("Sec-Fetch-Site", "cross-site")},
		{header("Sec-Fetch-Site", "same-site")},
		{header("Sec-Fetch-Site"), header("Origin", "https://evil.example")},
		{header("Sec-Fetch-Site"), header("Origin", "null")},
		{header("Sec-Fetch-Site")},
	} {
		if w := victim.post("/enter", url.Values{"token": {token}}, edits...); w.Code != http.StatusForbidden || victim.cookie != mine {
			t.Errorf("posted from elsewhere: %d, want 403", w.Code)
		}
	}
	if w := victim.get("/"); !strings.Contains(w.Body.String(), "Company cus_a") {
		t.Error("the session is not the victim's own any more")
	}
	// With the click it is replaced, and the old session is dead.
	location(t, victim.post("/enter", url.Values{"token": {token}}), "/")
	old := &browser{env: e, cookie: mine}
	if w := old.get("/"); w.Code != http.StatusUnauthorized {
		t.Errorf("the replaced session answers %d, want 401", w.Code)
	}
}

func TestFixation(t *testing.T) {
	e := newEnv(t)
	a := e.signedIn("cus_a")
	old := a.cookie
	location(t, a.get("/enter?token="+e.token("cus_a"), navigation), "/")
	if a.cookie == old {
		t.Error("the cookie did not change at redeem")
	}
	if w := (&browser{env: e, cookie: old}).get("/"); w.Code != http.StatusUnauthorized {
		t.Errorf("old cookie: %d, want 401", w.Code)
	}
	planted := &browser{env: e, cookie: strings.Repeat("A", 64)}
	location(t, planted.get("/enter?token="+e.token("cus_a"), navigation), "/")
	if planted.cookie == strings.Repeat("A", 64) {
		t.Error("a planted cookie was kept")
	}
}

// TestRefusedLinks holds the status of each refusal, that nothing is written
// and that no token gets into the log.
func TestRefusedLinks(t *testing.T) {
	e := newEnv(t)
	good := e.token("cus_a")
	expired := e.token("cus_a", func(c *link.Claims) {
		c.IssuedAt, c.Expires, c.ReturnURL = c.IssuedAt.Add(-time.Hour), c.Expires.Add(-time.Hour), "https://app.example.com/there"
	})
	flipped := good[:len(good)-8] + "AAAAAAAA"
	for name, tc := range map[string]struct {
		query  string
		status int
	}{
		"none":         {"", 401},
		"empty":        {"?token=", 401},
		"garbage":      {"?token=%00%0d%0aX", 401},
		"dots":         {"?token=" + strings.Repeat(".", 10_000), 401},
		"bad sig":      {"?token=" + flipped, 401},
		"truncated":    {"?token=" + good[:len(good)-1], 401},
		"padded":       {"?token=" + good + "%3D", 401},
		"space":        {"?token=+" + good, 401},
		"twice":        {"?token=" + good + "&token=" + good, 400},
		"bad escape":   {"?token=%zz", 400},
		"semicolon":    {"?token=" + good + ";x=1", 400},
		"other tenant": {"?token=" + e.token("cus_a", func(c *link.Claims) { c.Audience = "https://other.example.com" }), 401},
		"expired":      {"?token=" + expired, 410},
		"forgotten":    {"?token=" + e.token("cus_a", func(c *link.Claims) { c.Generation = "another-generation" }), 410},
		"too soon":     {"?token=" + e.token("cus_a", func(c *link.Claims) { c.Issuer = "acme" }), 503},
	} {
		for _, method := range []string{"GET", "POST"} {
			b := &browser{env: e}
			var w *httptest.ResponseRecorder
			e.unchanged(name, func() {
				if method == "GET" {
					w = b.get("/enter"+tc.query, navigation)
					return
				}
				r := httptest.NewRequest("POST", "/enter", strings.NewReader(strings.TrimPrefix(tc.query, "?")))
				r.Header.Set("Content-Type", formType)
				r.Header.Set("Sec-Fetch-Site", "same-origin")
				w = b.send(r)
			})
			if w.Code != tc.status || b.cookie != "" || w.Header().Get("Set-Cookie") != "" {
				t.Errorf("%s %s: %d, want %d, no cookie: %s", method, name, w.Code, tc.status, w.Body)
			}
			if name == "expired" && !strings.Contains(w.Body.String(), "https://app.example.com/there") {
				t.Errorf("expired link does not lead back to where it came from")
			}
			if name == "too soon" && w.Header().Get("Retry-After") == "" {
				t.Error("too soon without Retry-After")
			}
		}
	}
	for _, entry := range e.logs.All() {
		for k, v := range entry.ContextMap() {
			if s, ok := v.(string); ok && (strings.Contains(s, good[len(good)-40:]) || strings.Contains(s, expired[len(expired)-40:])) {
				t.Errorf("log field %s holds a token", k)
			}
		}
	}
	// A vendor's link works once the skew has passed.
	e.advance(10 * time.Second)
	e.signedIn("cus_a", func(c *link.Claims) { c.Issuer = "acme" })
}

// TestOneSession holds that a link opens one session however many try.
func TestOneSession(t *testing.T) {
	e := newEnv(t)
	token := e.token("cus_a")
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes, cookies := map[int]int{}, map[string]bool{}
	start := make(chan struct{})
	for range 64 {
		wg.Go(func() {
			<-start
			r := httptest.NewRequest("GET", "/enter?token="+token, nil)
			r.Host = host
			navigation(r)
			w := httptest.NewRecorder()
			e.pages.ServeHTTP(w, r)
			mu.Lock()
			defer mu.Unlock()
			codes[w.Code]++
			for _, c := range w.Result().Cookies() {
				cookies[c.Value] = true
			}
		})
	}
	e.pages.SkipAccessLog = nil // counts without a lock
	close(start)
	wg.Wait()
	if codes[303] != 1 || codes[410] != 63 || len(cookies) != 1 {
		t.Errorf("answers %v, %d cookies; want one 303 and 63 times 410", codes, len(cookies))
	}
}

// broken is a store that fails.
type broken struct{ store.Store }

func (broken) View(context.Context, func(store.Tx) error) error { return errors.New("disk on fire") }

func (broken) Update(context.Context, func(store.Tx) error) error { return errors.New("disk on fire") }

func (broken) GetAll(context.Context, ...[]byte) ([][]byte, error) {
	return nil, errors.New("disk on fire")
}

func TestStoreDown(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	token := e.token("cus_a")
	e.sessions.Store = broken{e.store}
	fresh := &browser{env: e}
	for name, w := range map[string]*httptest.ResponseRecorder{
		"enter":    fresh.get("/enter?token="+token, navigation),
		"overview": b.get("/"),
		"sign out": b.post(templates.PathSignOut, nil),
	} {
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Set-Cookie") != "" || strings.Contains(w.Body.String(), "fire") {
			t.Errorf("%s: %d, cookie %q: %s", name, w.Code, w.Header().Get("Set-Cookie"), w.Body)
		}
	}
	e.sessions.Store = e.store
	location(t, fresh.get("/enter?token="+token, navigation), "/") // not burnt
}

func TestSignOut(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	stolen := b.cookie
	if w := b.get(templates.PathSignOut); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d, want 405", w.Code)
	}
	if w := b.post(templates.PathSignOut, nil, header("Sec-Fetch-Site", "cross-site")); w.Code != http.StatusForbidden {
		t.Errorf("cross-site: %d, want 403", w.Code)
	}
	if w := b.get("/"); w.Code != 200 {
		t.Fatalf("signed out by that: %d", w.Code)
	}
	w := b.post(templates.PathSignOut, nil)
	if location(t, w, pathSignedOut); !strings.Contains(w.Header().Get("Set-Cookie"), "__Host-bp=;") || !strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("Set-Cookie = %q", w.Header().Get("Set-Cookie"))
	}
	if w := (&browser{env: e, cookie: stolen}).get("/"); w.Code != http.StatusUnauthorized {
		t.Errorf("replayed cookie: %d, want 401", w.Code)
	}
	if w := b.get(pathSignedOut); w.Code != 200 || !strings.Contains(w.Body.String(), vendorURL) {
		t.Errorf("signed-out page: %d", w.Code)
	}
}

// TestSignOutOfMany holds that one request ends two sessions at most, whatever
// cookies come with it.
func TestSignOutOfMany(t *testing.T) {
	e := newEnv(t)
	var all []*browser
	cookies := ""
	for range 4 {
		b := e.signedIn("cus_a")
		all = append(all, b)
		cookies += "__Host-bp=" + b.cookie + "; "
	}
	location(t, (&browser{env: e}).post(templates.PathSignOut, nil, header("Cookie", cookies)), pathSignedOut)
	for i, b := range all {
		want := http.StatusUnauthorized
		if i >= 2 {
			want = http.StatusOK
		}
		if w := (&browser{env: e, cookie: b.cookie}).get("/"); w.Code != want {
			t.Errorf("session %d: %d, want %d", i+1, w.Code, want)
		}
	}
}

func TestCookieJar(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	good := "__Host-bp=" + b.cookie
	for name, tc := range map[string]struct {
		cookies []string
		status  int
	}{
		"good":            {[]string{good}, 200},
		"among others":    {[]string{"a=b; " + good + "; c=d"}, 200},
		"second line":     {[]string{"a=b", good}, 200},
		"other name case": {[]string{"__host-bp=" + b.cookie}, 401},
		"twice":           {[]string{good + "; " + good}, 401},
		"two lines":       {[]string{good, "__Host-bp=evil"}, 401},
		"evil first":      {[]string{"__Host-bp=evil; " + good}, 401},
		"nameless":        {[]string{"=" + good}, 401},
		"quoted":          {[]string{`__Host-bp="` + b.cookie + `"`}, 401},
		"space in name":   {[]string{"__Host-bp =" + b.cookie}, 401},
		"comma":           {[]string{"a=b, " + good}, 401},
		"version":         {[]string{"$Version=1," + good}, 401},
		"U+2000":          {[]string{"\u2000" + good}, 401},
		"truncated":       {[]string{good[:len(good)-1]}, 401},
		"extended":        {[]string{good + "A"}, 401},
		"empty":           {[]string{"__Host-bp="}, 401},
		"trailing space":  {[]string{good + " "}, 401},
		"bit":             {[]string{good[:len(good)-30] + "_" + good[len(good)-29:]}, 401},
		"10k cookies":     {[]string{strings.Repeat("x=y; ", 10_000) + good}, 200},
		"1 MiB":           {[]string{"__Host-bp=" + strings.Repeat("A", 1<<20)}, 401},
		"none":            {nil, 401},
	} {
		if w := b.get("/", header("Cookie", tc.cookies...)); w.Code != tc.status {
			t.Errorf("%s: %d, want %d", name, w.Code, tc.status)
		}
	}
	e.advance(31 * time.Minute)
	if w := b.get("/"); w.Code != http.StatusUnauthorized || w.Header().Get("Location") != "" || !strings.Contains(w.Body.String(), vendorURL) {
		t.Errorf("after the idle time: %d, want 401 with a way back", w.Code)
	}
}

func TestReturnURL(t *testing.T) {
	e := newEnv(t)
	for in, want := range map[string]string{
		"https://app.example.com/projects/7?x=1#y": "https://app.example.com/projects/7?x=1#y",
		"https://evil.example/":                    vendorURL,
		"":                                         vendorURL,
	} {
		b := e.signedIn("cus_a", func(c *link.Claims) { c.ReturnURL = in })
		if w := b.get("/"); !strings.Contains(w.Body.String(), `href="`+want+`"`) || strings.Contains(w.Body.String(), "evil.example") {
			t.Errorf("return_url %q: the page does not lead to %q", in, want)
		}
	}
	if e.logs.FilterMessageSnippet("return URL").Len() == 0 {
		t.Error("the refusal is not in the log")
	}
}

func TestAllowedReturn(t *testing.T) {
	origins := []string{"https://app.example.com", "http://localhost:3000"}
	for _, s := range []string{
		"https://app.example.com", "https://app.example.com/", "https://app.example.com?x", "https://app.example.com#x",
		"https://app.example.com/a//b@c", "http://localhost:3000/settings",
	} {
		if !allowedReturn(s, origins) {
			t.Errorf("%q refused", s)
		}
	}
	for _, s := range []string{
		"", "/", "//evil", "/\\evil", "https:evil", "https:///evil", "https:/app.example.com", "javascript:alert(1)", "data:text/html,x",
		"https://app.example.com@evil.example/", "https://app.example.com:443@evil/", "https://evil\\@app.example.com", "https://app.example.com\\@evil",
		"https://app.example.com.evil.example", "https://evilapp.example.com", "https://app.example.com.", "https://app.example.com./", "https://app.example.com:8443/",
		"http://app.example.com/", "HTTPS://app.example.com/", "https://APP.example.com/", "https://app.example.com%2eevil/", "https://app。example.com/",
		"https://app.example.com/\t", "https://app.example.com/\r\nX: y", " https://app.example.com/", "https://app.example.com/\x00", "https://[::1]/",
		"https://evil/#@app.example.com", "https%3A%2F%2Fapp.example.com", "http://localhost:3001/", "http://localhost/", "https://user@app.example.com/",
		"https://app.example.com/" + strings.Repeat("a", 10<<10),
	} {
		if allowedReturn(s, origins) {
			t.Errorf("%q allowed", s)
		}
	}
}

func FuzzAllowedReturn(f *testing.F) {
	for _, s := range []string{"https://app.example.com/x", "https://app.example.com@evil/", "//app.example.com", "https://app.example.com\\@e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !allowedReturn(s, []string{"https://app.example.com"}) {
			return
		}
		u, err := url.Parse(s)
		if err != nil || u.Host != "app.example.com" || u.Scheme != "https" || u.User != nil || strings.ContainsAny(s, "\\ \t\r\n\x00") {
			t.Errorf("%q allowed", s)
		}
	})
}
