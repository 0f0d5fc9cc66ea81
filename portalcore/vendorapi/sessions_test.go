package vendorapi_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/vendorapi"
)

// signIn makes a session as a browser that follows a link gets it.
func (w *world) signIn(t *testing.T, customer string) (session.Session, string) {
	t.Helper()
	id, err := link.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	gen, err := session.Generation(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	s, cookie, err := w.sessions.Redeem(t.Context(), link.Claims{
		Issuer: "portal", Subject: customer, IssuedAt: now, Expires: now.Add(link.MaxLifetime), ID: id, Generation: gen,
		Actor: link.Actor{ID: "u1", Email: "ann@example.com"}, Role: "billing",
	}, true, "", "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0 <b>")
	if err != nil {
		t.Fatal(err)
	}
	return s, cookie
}

func (w *world) lives(t *testing.T, cookie string) bool {
	t.Helper()
	_, _, err := w.sessions.Read(t.Context(), cookie)
	if err != nil && !errors.Is(err, session.ErrNone) {
		t.Fatal(err)
	}
	return err == nil
}

// call sends a request with an API key; what is a query for GET and a body for
// POST.
func (w *world) call(t *testing.T, method, path, what string, edits ...func(*http.Request)) (int, map[string]any, http.Header) {
	t.Helper()
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(what)
	} else if what != "" {
		path += "?" + what
	}
	r, err := http.NewRequestWithContext(t.Context(), method, w.server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Host = "billing.example.com"
	for _, edit := range edits {
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
	var out map[string]any
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &out); err != nil {
			t.Fatalf("%s: not JSON: %q", res.Status, raw)
		}
	}
	return res.StatusCode, out, res.Header
}

func TestListSessions(t *testing.T) {
	w := newWorld(t)
	first, cookie := w.signIn(t, "cus_1")
	second, _ := w.signIn(t, "cus_1")
	w.signIn(t, "cus_2")
	status, body, header := w.call(t, http.MethodGet, vendorapi.PathSessions, "customer=cus_1")
	if status != 200 || body["object"] != "list" || body["has_more"] != false || body["url"] != vendorapi.PathSessions ||
		header.Get("Cache-Control") != "no-store" || header.Get("Request-Id") == "" {
		t.Fatalf("%d %v %v", status, body, header)
	}
	data := body["data"].([]any)
	if len(data) != 2 || data[0].(map[string]any)["id"] != second.ID() || data[1].(map[string]any)["id"] != first.ID() {
		t.Fatalf("want both, the newest first: %v", data)
	}
	one := data[1].(map[string]any)
	if one["object"] != "portal.session" || one["customer"] != "cus_1" || one["device"] != "Firefox on Linux" || one["role"] != "billing" ||
		one["created"] != float64(first.Created.Unix()) || one["last_seen"] != float64(first.Seen.Unix()) || one["expires_at"] != float64(first.Expires.Unix()) {
		t.Errorf("listed as %v", one)
	}
	if a := one["actor"].(map[string]any); a["id"] != "u1" || a["email"] != "ann@example.com" || a["name"] != nil {
		t.Errorf("actor %v", a)
	}
	if raw, _ := json.Marshal(body); strings.Contains(string(raw), cookie) || strings.Contains(string(raw), "Mozilla") {
		t.Errorf("the answer holds a cookie or a raw header: %s", raw)
	}
	if status, body, _ := w.call(t, http.MethodGet, vendorapi.PathSessions, "customer=cus_9"); status != 200 || len(body["data"].([]any)) != 0 {
		t.Errorf("a customer that was never here: %d %v", status, body)
	}
	if w.finds != 0 {
		t.Errorf("the provider was asked %d times", w.finds)
	}
}

func TestRevokeSessions(t *testing.T) {
	w := newWorld(t)
	revoke := func(form string) map[string]any {
		t.Helper()
		status, body, _ := w.call(t, http.MethodPost, vendorapi.PathRevoke, form)
		if status != 200 || body["object"] != "portal.session_revocation" {
			t.Fatalf("%s: %d %v", form, status, body)
		}
		return body
	}
	one, a := w.signIn(t, "cus_1")
	_, b := w.signIn(t, "cus_1")
	_, c := w.signIn(t, "cus_2")

	if got := revoke("customer=cus_2&session=" + one.ID()); got["revoked"] != false || !w.lives(t, a) {
		t.Errorf("another customer's session: %v", got)
	}
	if got := revoke("customer=cus_1&session=" + one.ID()); got["revoked"] != true || got["session"] != one.ID() || w.lives(t, a) || !w.lives(t, b) {
		t.Errorf("one session: %v", got)
	}
	if got := revoke("session=" + one.ID()); got["revoked"] != false || got["customer"] != nil {
		t.Errorf("the same again: %v", got)
	}
	for range 2 {
		if got := revoke("customer=cus_1"); got["revoked"] != true || got["customer"] != "cus_1" || got["all"] != false || w.lives(t, b) || !w.lives(t, c) {
			t.Errorf("a customer: %v", got)
		}
	}
	revoke("customer=cus_9")
	two, d := w.signIn(t, "cus_1")
	if got := revoke("session=" + two.ID()); got["revoked"] != true || w.lives(t, d) {
		t.Errorf("by its id alone: %v", got)
	}
	_, d = w.signIn(t, "cus_1")
	for range 2 {
		if got := revoke("all=true"); got["revoked"] != true || got["all"] != true || w.lives(t, c) || w.lives(t, d) {
			t.Errorf("all: %v", got)
		}
	}
	if n := w.logs.FilterMessage("sessions revoked by the vendor").Len(); n != 9 {
		t.Errorf("%d revocations in the log, want 9", n)
	}
	if _, e := w.signIn(t, "cus_1"); !w.lives(t, e) {
		t.Error("a session made after it is to live")
	}
}

// TestSessionsRefuses sends what is wrong in one way each: nobody is signed out
// by it.
func TestSessionsRefuses(t *testing.T) {
	w := newWorld(t)
	one, cookie := w.signIn(t, "cus_1")
	header := func(name string, values ...string) func(*http.Request) {
		return func(r *http.Request) {
			delete(r.Header, name)
			for _, v := range values {
				r.Header.Add(name, v)
			}
		}
	}
	host := func(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }
	const post, get = http.MethodPost, http.MethodGet
	for name, tt := range map[string]struct {
		method, path, what string
		edit               func(*http.Request)
		status             int
		code, param        string
	}{
		"no parameter":         {post, vendorapi.PathRevoke, "", nil, 400, "parameter_missing", "customer"},
		"empty customer":       {post, vendorapi.PathRevoke, "customer=", nil, 400, "parameter_invalid_empty", "customer"},
		"empty customer, all":  {post, vendorapi.PathRevoke, "customer=&all=true", nil, 400, "parameter_invalid_empty", "customer"},
		"empty session":        {post, vendorapi.PathRevoke, "customer=cus_1&session=", nil, 400, "parameter_invalid_empty", "session"},
		"all false":            {post, vendorapi.PathRevoke, "all=false", nil, 400, "", "all"},
		"all 1":                {post, vendorapi.PathRevoke, "all=1", nil, 400, "", "all"},
		"all and customer":     {post, vendorapi.PathRevoke, "all=true&customer=cus_1", nil, 400, "", "all"},
		"all and session":      {post, vendorapi.PathRevoke, "all=true&session=" + one.ID(), nil, 400, "", "all"},
		"customer twice":       {post, vendorapi.PathRevoke, "customer=cus_2&customer=cus_1", nil, 400, "", "customer"},
		"customer as a list":   {post, vendorapi.PathRevoke, "customer[]=cus_1", nil, 400, "parameter_unknown", "customer[]"},
		"other case":           {post, vendorapi.PathRevoke, "Customer=cus_1", nil, 400, "parameter_unknown", "Customer"},
		"unknown parameter":    {post, vendorapi.PathRevoke, "customer=cus_1&reason=x", nil, 400, "parameter_unknown", "reason"},
		"customer with CRLF":   {post, vendorapi.PathRevoke, "customer=cus_1%0d%0a", nil, 400, "resource_missing", "customer"},
		"long customer":        {post, vendorapi.PathRevoke, "customer=" + strings.Repeat("a", 256), nil, 400, "resource_missing", "customer"},
		"a cookie":             {post, vendorapi.PathRevoke, "session=" + cookie, nil, 400, "", "session"},
		"session with a slash": {post, vendorapi.PathRevoke, "session=" + url.QueryEscape(one.ID()[:46]+"/"), nil, 400, "", "session"},
		"in the query":         {post, vendorapi.PathRevoke + "?customer=cus_1", "", nil, 400, "", ""},
		"bad escape":           {post, vendorapi.PathRevoke, "customer=%zz", nil, 400, "", ""},
		"too large":            {post, vendorapi.PathRevoke, "customer=" + strings.Repeat("a", 65<<10), nil, 413, "", ""},
		"JSON":                 {post, vendorapi.PathRevoke, `{"customer":"cus_1"}`, header("Content-Type", "application/json"), 415, "", ""},
		"two types":            {post, vendorapi.PathRevoke, "customer=cus_1", header("Content-Type", "application/x-www-form-urlencoded", "application/x-www-form-urlencoded"), 415, "", ""},
		"compressed":           {post, vendorapi.PathRevoke, "customer=cus_1", header("Content-Encoding", "gzip"), 415, "", ""},
		"revoke by GET":        {get, vendorapi.PathRevoke, "customer=cus_1", nil, 405, "", ""},
		"revoke by DELETE":     {http.MethodDelete, vendorapi.PathRevoke, "", nil, 405, "", ""},
		"list by POST":         {post, vendorapi.PathSessions, "customer=cus_1", nil, 405, "", ""},
		"trailing slash":       {post, vendorapi.PathRevoke + "/", "customer=cus_1", nil, 404, "", ""},
		"doubled slash":        {post, "/v1//portal/sessions/revoke", "customer=cus_1", nil, 404, "", ""},
		"encoded path":         {post, "/v1/portal/sessions/%72evoke", "customer=cus_1", nil, 404, "", ""},
		"dots":                 {post, "/v1/portal/x/../sessions/revoke", "customer=cus_1", nil, 404, "", ""},
		"upper case":           {post, "/v1/portal/sessions/REVOKE", "customer=cus_1", nil, 404, "", ""},
		"list without":         {get, vendorapi.PathSessions, "", nil, 400, "parameter_missing", "customer"},
		"list of nobody":       {get, vendorapi.PathSessions, "customer=", nil, 400, "parameter_invalid_empty", "customer"},
		"list twice":           {get, vendorapi.PathSessions, "customer=cus_1&customer=cus_2", nil, 400, "", "customer"},
		"list with semicolon":  {get, vendorapi.PathSessions, "customer=cus_1;x=1", nil, 400, "", ""},
		"list, unknown":        {get, vendorapi.PathSessions, "customer=cus_1&limit=3", nil, 400, "parameter_unknown", "limit"},
		"list, control bytes":  {get, vendorapi.PathSessions, "customer=%00", nil, 400, "resource_missing", "customer"},
		"list with a body": {get, vendorapi.PathSessions, "customer=cus_1", func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("customer=cus_2")), 14
		}, 400, "", ""},
		"no key":           {post, vendorapi.PathRevoke, "all=true", header("Authorization"), 401, "", ""},
		"wrong key":        {post, vendorapi.PathRevoke, "all=true", header("Authorization", "Bearer "+key[:20]), 401, "", ""},
		"longer key":       {get, vendorapi.PathSessions, "customer=cus_1", header("Authorization", "Bearer "+key+"x"), 401, "", ""},
		"two keys":         {post, vendorapi.PathRevoke, "all=true", header("Authorization", "Bearer "+key, "Bearer "+key), 401, "", ""},
		"a Stripe key":     {post, vendorapi.PathRevoke, "all=true", header("Authorization", "Bearer sk_live_0123456789abcdef"), 401, "", ""},
		"a session cookie": {get, vendorapi.PathSessions, "customer=cus_1", header("Authorization"), 401, "", ""},
		"other host":       {post, vendorapi.PathRevoke, "all=true", host("billing.example.com.evil.example"), 421, "", ""},
		"host with port":   {get, vendorapi.PathSessions, "customer=cus_1", host("billing.example.com:8443"), 421, "", ""},
		"another account":  {post, vendorapi.PathRevoke, "all=true", header("Stripe-Account", "acct_1"), 400, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			edits := []func(*http.Request){header("Cookie", "__Host-bp="+cookie)}
			if tt.edit != nil {
				edits = append(edits, tt.edit)
			}
			status, body, h := w.call(t, tt.method, tt.path, tt.what, edits...)
			e, _ := body["error"].(map[string]any)
			code, _ := e["code"].(string)
			param, _ := e["param"].(string)
			if status != tt.status || code != tt.code || param != tt.param || e["message"] == "" || e["type"] != "invalid_request_error" {
				t.Errorf("%d %v, want %d, code %q, param %q", status, body, tt.status, tt.code, tt.param)
			}
			if h.Get("Stripe-Should-Retry") != "false" || status == 405 && h.Get("Allow") == "" || status == 401 && h.Get("Www-Authenticate") == "" {
				t.Errorf("header %v", h)
			}
			if !w.lives(t, cookie) {
				t.Fatal("signed out by that")
			}
		})
	}
	for _, entry := range w.logs.All() {
		for name, v := range entry.ContextMap() {
			if s, ok := v.(string); ok && (strings.Contains(s, key) || strings.Contains(s, cookie) || strings.ContainsAny(s, "\r\n\x00")) {
				t.Errorf("log %q: %s holds a secret or a line break: %q", entry.Message, name, s)
			}
		}
	}
}

// TestSessionsWhileTheStoreIsDown holds that nothing claims to have ended
// sessions that live on.
func TestSessionsWhileTheStoreIsDown(t *testing.T) {
	w := newWorld(t)
	one, cookie := w.signIn(t, "cus_1")
	w.store.down.Store(true)
	for _, tt := range []struct{ method, path, what string }{
		{http.MethodGet, vendorapi.PathSessions, "customer=cus_1"},
		{http.MethodPost, vendorapi.PathRevoke, "customer=cus_1"},
		{http.MethodPost, vendorapi.PathRevoke, "session=" + one.ID()},
		{http.MethodPost, vendorapi.PathRevoke, "all=true"},
	} {
		status, body, h := w.call(t, tt.method, tt.path, tt.what)
		e, _ := body["error"].(map[string]any)
		if status != 503 || e["type"] != "api_error" || h.Get("Stripe-Should-Retry") != "true" || strings.Contains(e["message"].(string), "10.0.0.7") {
			t.Errorf("%s %s: %d %v", tt.method, tt.what, status, body)
		}
	}
	w.store.down.Store(false)
	if !w.lives(t, cookie) {
		t.Error("ended all the same")
	}
}
