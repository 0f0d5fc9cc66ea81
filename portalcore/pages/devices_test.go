package pages

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const chrome = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"

// signedInWith is a browser that says what it is.
func (e *env) signedInWith(userAgent, customer string, change ...func(*link.Claims)) *browser {
	e.t.Helper()
	b := &browser{env: e}
	location(e.t, b.get("/enter?token="+e.token(customer, change...), navigation, header("User-Agent", userAgent)), "/")
	return b
}

func (b *browser) id() string {
	b.t.Helper()
	s, _, err := b.sessions.Read(b.t.Context(), b.cookie)
	if err != nil {
		b.t.Fatal(err)
	}
	return s.ID()
}

func (b *browser) in() bool {
	b.t.Helper()
	w := b.get(templates.PathDevices)
	if w.Code != 200 && w.Code != 401 {
		b.t.Fatalf("devices: %d", w.Code)
	}
	return w.Code == 200
}

func TestDevices(t *testing.T) {
	e := newEnv(t)
	ann := e.signedInWith(chrome, "cus_a", func(c *link.Claims) { c.Actor.Name, c.Actor.Email = "Ann <b>", "ann@example.com" })
	e.advance(time.Minute)
	bob := e.signedInWith("Mozilla/5.0 (iPhone; x) Version/26.0 Safari/604.1 <script>", "cus_a", func(c *link.Claims) { c.Role, c.Actor.Email = "viewer", "björn@example.com" })
	carol := e.signedInWith(strings.Repeat("A\x01", 8000), "cus_a", func(c *link.Claims) { c.Role = "billing" })
	theirs := e.signedInWith(chrome, "cus_b", func(c *link.Claims) { c.Actor.Name = "Zoe" })

	e.provider.down = true // it is not asked
	body := ann.get(templates.PathDevices).Body.String()
	for _, want := range []string{
		">Chrome</bdi> on <bdi translate=\"no\">Windows</bdi>", ">Safari</bdi> on", "Unknown browser", "Ann &lt;b&gt;", "b•••@example.com", "This device",
		bob.id(), carol.id(), `action="/devices/sign-out-all"`, `action="/sign-out"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the owner's list lacks %q", want)
		}
	}
	for _, not := range []string{"Zoe", theirs.id(), "ann@example.com", "björn", "<script", "AAAA", ann.cookie, bob.cookie, "Mozilla"} {
		if strings.Contains(body, not) {
			t.Errorf("the owner's list has %q", not)
		}
	}
	if strings.Count(body, "This device") != 1 || strings.Index(body, "This device") > strings.Index(body, "Safari") {
		t.Error("this device is to come first, once")
	}
	body = bob.get(templates.PathDevices).Body.String()
	for _, not := range []string{"Chrome", "Ann", ann.id(), carol.id(), "sign-out-all"} {
		if strings.Contains(body, not) {
			t.Errorf("the viewer's list has %q", not)
		}
	}
	if !strings.Contains(body, "Safari") || !strings.Contains(body, "This device") {
		t.Error("the viewer does not see the own device")
	}
	if strings.Contains(ann.get("/").Body.String(), `href="/devices"`) != true {
		t.Error("no page leads to the list")
	}
	if w := ann.get(templates.PathDevices, header("Accept-Language", "en-XA")); !strings.Contains(w.Body.String(), `lang="en-XA"`) {
		t.Error("not in the language asked for")
	}
}

func TestEndDevices(t *testing.T) {
	e := newEnv(t)
	ann, bob := e.signedIn("cus_a"), e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	carol := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "billing" })
	theirs := e.signedIn("cus_b")
	one := func(id string) url.Values { return url.Values{fieldSession: {id}} }

	// What ends nobody.
	for name, tc := range map[string]struct {
		by   *browser
		path string
		form url.Values
		edit edit
		want int
	}{
		"a viewer, another device": {bob, pathEndOne, one(ann.id()), nil, 403},
		"a viewer, no such device": {bob, pathEndOne, one("ses_x"), nil, 403},
		"a viewer, all":            {bob, pathEndAll, nil, nil, 403},
		"another customer's":       {ann, pathEndOne, one(theirs.id()), nil, 303},
		"no such session":          {ann, pathEndOne, one("ses_" + strings.Repeat("A", 43)), nil, 303},
		"a cookie":                 {ann, pathEndOne, one(bob.cookie), nil, 303},
		"no session":               {ann, pathEndOne, nil, nil, 303},
		"twice":                    {ann, pathEndOne, url.Values{fieldSession: {bob.id(), carol.id()}}, nil, 400},
		"cross-site":               {ann, pathEndOne, one(bob.id()), header("Sec-Fetch-Site", "cross-site"), 403},
		"same-site":                {ann, pathEndAll, nil, header("Sec-Fetch-Site", "same-site"), 403},
		"without a sign of where":  {ann, pathEndAll, nil, header("Sec-Fetch-Site"), 403},
		"in the query":             {ann, pathEndOne + "?" + fieldSession + "=" + bob.id(), nil, nil, 400},
		"JSON":                     {ann, pathEndAll, nil, header("Content-Type", "application/json"), 415},
	} {
		e.unchanged(name, func() {
			edits := []edit{}
			if tc.edit != nil {
				edits = append(edits, tc.edit)
			}
			w := tc.by.post(tc.path, tc.form, edits...)
			if w.Code != tc.want || w.Header().Get("Set-Cookie") != "" {
				t.Errorf("%s: %d, want %d: %.200s", name, w.Code, tc.want, w.Body)
			}
		})
	}
	e.unchanged("GET", func() {
		for _, path := range []string{pathEndOne, pathEndAll} {
			if w := ann.get(path); w.Code != 405 {
				t.Errorf("GET %s: %d", path, w.Code)
			}
		}
	})

	w := ann.post(pathEndOne, one(bob.id()))
	if to := location(t, w, templates.PathDevices); bob.in() || !carol.in() || !ann.in() || !strings.Contains(ann.get(to).Body.String(), "That device is signed out.") {
		t.Error("want the viewer, and nobody else, signed out, and the list to say so")
	}
	bob = e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	stolen := *bob
	location(t, bob.post(pathEndOne, one(bob.id())), pathSignedOut)
	if stolen.in() || !ann.in() || bob.cookie != "" {
		t.Error("a viewer's own session is to end, with its cookie")
	}
	stolen = *carol
	w = carol.post(pathEndAll, nil)
	if location(t, w, pathSignedOut); stolen.in() || ann.in() || !theirs.in() || !strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
		t.Error("want all of the customer's sessions, this one too, and no other customer's, ended")
	}
	if !e.signedIn("cus_a").in() {
		t.Error("a new link does not open a session")
	}
	if len(e.provider.effects) != 0 {
		t.Errorf("effects %v", e.provider.effects)
	}
}

// TestState holds what the script on the page of an intent that is being
// checked asks, and who may ask.
// TestNarrowedSessionEndsOnlyItself holds it for one that is narrowed to
// something and one that is narrowed to nothing, with a role that may do all.
func TestNarrowedSessionEndsOnlyItself(t *testing.T) {
	e := newEnv(t)
	ann := e.signedIn("cus_a")
	for _, permissions := range [][]string{{}, {"update_details"}} {
		bob := e.signedIn("cus_a", func(c *link.Claims) { c.Role, c.Permissions = "owner", permissions })
		page := bob.get(templates.PathDevices).Body.String()
		if strings.Contains(page, ann.id()) || strings.Contains(page, pathEndAll) {
			t.Errorf("%q shows others' sessions", permissions)
		}
		for path, form := range map[string]url.Values{pathEndAll: {}, pathEndOne: {fieldSession: {ann.id()}}} {
			if w := bob.post(path, form); w.Code != http.StatusForbidden {
				t.Errorf("%q: %s: %d", permissions, path, w.Code)
			}
		}
		if !ann.in() {
			t.Fatalf("%q ended another's session", permissions)
		}
		location(t, bob.post(pathEndOne, url.Values{fieldSession: {bob.id()}}), pathSignedOut)
	}
}

func TestState(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, form := b.previewed()
	e.provider.fault = billing.Unknown
	done := location(t, b.post(path, form), "/done/")
	state := pathState + strings.TrimPrefix(done, "/done/")
	w := b.get(done)
	script := e.pages.Renderer.AssetPath("checked.js")
	if body := w.Body.String(); !strings.Contains(body, `<script src="`+script+`" defer></script>`) || !strings.Contains(body, `data-href="`+state+`"`) ||
		!strings.Contains(body, `data-state="checking"`) || strings.Count(body, "<script") != 1 {
		t.Errorf("the page does not ask for its state: %s", body)
	}
	if csp := w.Header().Get("Content-Security-Policy"); csp != templates.ScriptCSP || w.Header().Get("Refresh") != "" {
		t.Errorf("CSP = %q, Refresh = %q", csp, w.Header().Get("Refresh"))
	}
	if csp := b.get("/").Header().Get("Content-Security-Policy"); csp != templates.CSP {
		t.Errorf("the overview's CSP = %q", csp)
	}
	if w := b.get(script); w.Code != 200 || w.Header().Get("Content-Type") != "text/javascript; charset=utf-8" || w.Body.Len() > 2500 {
		t.Errorf("the script: %d, %q, %d bytes", w.Code, w.Header().Get("Content-Type"), w.Body.Len())
	}
	asks := func(who *browser, code int, want string) {
		t.Helper()
		w := who.get(state, header("Sec-Fetch-Site", "same-origin"))
		if w.Code != code || code == 200 && (w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store") {
			t.Errorf("state: %d %q, want %d %q", w.Code, w.Body, code, want)
		}
	}
	e.provider.down = true // it is not asked
	e.unchanged("asking", func() { asks(b, 200, `{"state":"checking"}`) })
	asks(e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" }), 200, `{"state":"checking"}`)
	asks(e.signedIn("cus_b"), 404, "")
	asks(&browser{env: e}, 401, "")
	e.provider.down, e.provider.fault = false, ""
	// A webhook or recovery settles it: the page learns of it without a click.
	e.advance(time.Minute)
	if _, err := e.corridor.Recover(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if i := e.intent(done); i.State != journal.Succeeded {
		t.Fatalf("state %s", i.State)
	}
	asks(b, 200, `{"state":"done"}`)
	w = b.get(done)
	if body := w.Body.String(); strings.Contains(body, "<script") || strings.Contains(body, "data-href") || w.Header().Get("Content-Security-Policy") != templates.CSP {
		t.Errorf("the receipt still asks: %s", body)
	}
}

// readOnly takes no writes: the disk is nearly full, or the primary is down.
type readOnly struct {
	store.Store
	err error
}

func (s readOnly) Update(context.Context, func(store.Tx) error) error { return s.err }

// TestStoreTakesNoWrites holds that nothing falls back to accepting while the
// store takes no writes, that nothing claims to be done that is not, and that
// whoever is signed in can go on reading.
func TestStoreTakesNoWrites(t *testing.T) {
	for _, failure := range []error{store.ErrUnavailable, store.ErrUnknown} {
		e := newEnv(t)
		ann, bob := e.signedIn("cus_a"), e.signedIn("cus_a")
		path, form := ann.previewed()
		bobs := bob.id()
		whole := e.store
		broken := readOnly{whole, failure}
		e.sessions.Store, e.corridor.Store, e.corridor.Journal.Store = broken, broken, broken
		e.pages.Invoices = e.index(broken)
		e.advance(10 * time.Minute) // a touch is due
		token := e.token("cus_a")
		fresh := &browser{env: e}
		e.unchanged("while it takes no writes", func() {
			for name, w := range map[string]*httptest.ResponseRecorder{
				"enter":               fresh.get("/enter?token="+token, navigation),
				"enter, by button":    fresh.post("/enter", url.Values{templates.FieldToken: {token}}),
				"enter, again":        ann.get("/enter?token="+token, navigation),
				"sign out":            ann.post(templates.PathSignOut, nil),
				"sign out a device":   ann.post(pathEndOne, url.Values{fieldSession: {bobs}}),
				"sign out everywhere": ann.post(pathEndAll, nil),
				"refresh":             ann.post("/refresh", nil),
			} {
				text := w.Body.String()
				if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("Set-Cookie") != "" || !strings.Contains(text, "<h1>") || strings.Contains(text, "store:") {
					t.Errorf("%v: %s: %d, Retry-After %q, cookie %q: %s", failure, name, w.Code, w.Header().Get("Retry-After"), w.Header().Get("Set-Cookie"), text)
				}
				if strings.HasPrefix(name, "sign out") && (!strings.Contains(text, "The sign-out did not go through") || strings.Contains(text, "Nothing was changed")) {
					t.Errorf("%v: %s does not say that it failed: %s", failure, name, text)
				}
			}
			for _, page := range []string{"/", "/plan", "/payment", "/invoices", "/devices", "/cancel", "/details/name"} {
				if w := ann.get(page); w.Code != 200 {
					t.Errorf("%v: %s: %d, want it readable", failure, page, w.Code)
				}
			}
		})
		before := e.dump()
		if w := ann.post(path, form); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%v: a change: %d %q", failure, w.Code, w.Header().Get("Location"))
		}
		if !maps.Equal(before, e.dump()) || len(e.provider.effects) != 0 {
			t.Errorf("%v: a change had effects: %v", failure, e.provider.effects)
		}
		e.sessions.Store, e.corridor.Store, e.corridor.Journal.Store = whole, whole, whole
		if !bob.in() || !ann.in() {
			t.Error("somebody was signed out all the same")
		}
		location(t, fresh.get("/enter?token="+e.token("cus_a"), navigation), "/")
		location(t, ann.post(templates.PathSignOut, nil), pathSignedOut)
	}
}

// TestCheckedWhileTheStoreIsDown holds that no page says of a change that was
// sent that nothing was charged, because it cannot be looked up.
func TestCheckedWhileTheStoreIsDown(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, form := b.previewed()
	e.provider.fault = billing.Unknown
	done := location(t, b.post(path, form), "/done/")
	id := strings.TrimPrefix(done, "/done/")
	for name, stores := range map[string][2]store.Store{
		"down":                  {broken{e.store}, broken{e.store}},
		"down after signing in": {e.store, broken{e.store}},
		"takes no writes":       {readOnly{e.store, store.ErrUnavailable}, readOnly{e.store, store.ErrUnavailable}},
	} {
		e.sessions.Store, e.corridor.Store, e.corridor.Journal.Store = stores[0], stores[1], stores[1]
		for what, w := range map[string]*httptest.ResponseRecorder{
			"receipt": b.get(done), "check again": b.post(done, nil), "state": b.get(pathState + id), "return": b.get(pathReturn + id), "leave": b.get(pathLeave + id),
		} {
			text := w.Body.String()
			if strings.Contains(text, "othing was c") || strings.Contains(text, "fire") {
				t.Errorf("%s: %s says that nothing was done: %s", name, what, text)
			}
			if name != "takes no writes" && (w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(text, "don’t send it again")) {
				t.Errorf("%s: %s: %d %s", name, what, w.Code, text)
			}
			if w.Code == 200 && what != "state" && !strings.Contains(text, "We are checking your change") {
				t.Errorf("%s: %s: %s", name, what, text)
			}
		}
		e.sessions.Store, e.corridor.Store, e.corridor.Journal.Store = e.store, e.store, e.store
	}
}

// TestCustomerDeletedAtProvider: a session outlives its customer at the provider,
// says so, and can be ended (T46).
func TestCustomerDeletedAtProvider(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	delete(e.provider.accounts, "cus_a")
	e.accounts.Drop("cus_a")
	if w := b.get("/"); w.Code != 404 || !strings.Contains(w.Body.String(), vendorURL) {
		t.Errorf("overview: %d %s", w.Code, w.Body)
	}
	if w := b.get(templates.PathDevices); w.Code != 200 {
		t.Errorf("devices: %d", w.Code)
	}
	location(t, b.post(pathEndAll, nil), pathSignedOut)
}

// TestBackAfterSignOut: what the back button can bring up again was not kept,
// and the replayed cookie opens nothing (T43).
func TestBackAfterSignOut(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	for _, path := range []string{"/", "/devices", "/payment"} {
		if cc := b.get(path).Header().Get("Cache-Control"); cc != "no-store" {
			t.Errorf("%s: Cache-Control = %q", path, cc)
		}
	}
	stolen := b.cookie
	w := b.post(templates.PathSignOut, nil)
	if h := w.Header(); h.Get("Clear-Site-Data") != "" {
		t.Errorf("Clear-Site-Data %q would sign out of the vendor's app, too", h.Get("Clear-Site-Data"))
	}
	for _, path := range []string{"/", "/devices", "/payment", "/state/" + someID} {
		if w := (&browser{env: e, cookie: stolen}).get(path); w.Code != http.StatusUnauthorized {
			t.Errorf("%s with the old cookie: %d", path, w.Code)
		}
	}
}
