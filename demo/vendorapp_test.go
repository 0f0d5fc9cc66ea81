package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
)

const origin = "http://localhost:8421"

// portal is what the app talks to: it answers like the portal's API.
func portal(t *testing.T, status int) (*httptest.Server, *http.Request, *url.Values) {
	t.Helper()
	seen, form := new(http.Request), new(url.Values)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		*seen, *form = *r, r.PostForm
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"url": "http://localhost:8420/enter?token=t"})
	}))
	t.Cleanup(s.Close)
	return s, seen, form
}

func newApp(t *testing.T, portal string) *App {
	t.Helper()
	a, err := New(Options{
		Origin: origin, Portal: portal, APIKey: "bpk_key", Log: log.New(io.Discard, "", 0),
		Customers: []Customer{{ID: "cus_northwind", Email: "billing@northwind.example.com", Name: "Northwind <Ltd>"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func do(a *App, method, path, body string, header map[string]string) *http.Response {
	r := httptest.NewRequest(method, origin+path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w.Result()
}

// signedIn returns the header of somebody who signed in.
func signedIn(t *testing.T, a *App) map[string]string {
	t.Helper()
	res := do(a, "POST", "/signin", "email=billing%40northwind.example.com", nil)
	if res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/product" || len(res.Cookies()) != 1 {
		t.Fatalf("signing in: %s, to %q, %d cookies", res.Status, res.Header.Get("Location"), len(res.Cookies()))
	}
	c := res.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
		t.Errorf("session cookie %+v", c)
	}
	return map[string]string{"Cookie": c.Name + "=" + c.Value}
}

func TestBilling(t *testing.T) {
	s, seen, form := portal(t, http.StatusOK)
	a := newApp(t, s.URL)
	if res := do(a, "GET", "/billing", "", nil); res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/" || seen.Method != "" {
		t.Errorf("nobody signed in: %s to %q, portal was asked: %v", res.Status, res.Header.Get("Location"), seen.Method != "")
	}
	res := do(a, "GET", "/billing", "", signedIn(t, a))
	if res.StatusCode != http.StatusFound || res.Header.Get("Location") != "http://localhost:8420/enter?token=t" || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("billing: %s to %q, %v", res.Status, res.Header.Get("Location"), res.Header)
	}
	if seen.Method != "POST" || seen.URL.Path != "/v1/billing_portal/sessions" || seen.Header.Get("Authorization") != "Bearer bpk_key" ||
		form.Get("customer") != "cus_northwind" || form.Get("return_url") != origin+"/settings" {
		t.Errorf("the portal was asked %s %s %v %v", seen.Method, seen.URL, seen.Header, form)
	}
}

func TestBillingWithoutPortal(t *testing.T) {
	s, _, _ := portal(t, http.StatusUnauthorized)
	a := newApp(t, s.URL)
	who := signedIn(t, a)
	for range 2 { // refused, then not there at all
		res := do(a, "GET", "/billing", "", who)
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusBadGateway || !strings.Contains(string(body), "try again") || strings.Contains(string(body), "bpk_key") {
			t.Errorf("%s %s", res.Status, body)
		}
		s.Close()
	}
}

func TestPages(t *testing.T) {
	a := newApp(t, "http://localhost:1")
	for path, want := range map[string]string{
		"/":         "Northwind &lt;Ltd&gt;",
		"/product":  "Hello Northwind &lt;Ltd&gt;",
		"/settings": `<a href="/billing">Billing &amp; payment</a>`,
	} {
		res := do(a, "GET", path, "", signedIn(t, a))
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusOK || !strings.Contains(string(body), want) || !strings.Contains(string(body), "Demo: no real money") {
			t.Errorf("%s: %s\n%s", path, res.Status, body)
		}
		if csp := res.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'self'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if s := string(body); strings.Contains(s, "style=") || strings.Contains(s, "<script") || strings.Contains(s, "<style") {
			t.Errorf("%s has inline styles or scripts", path)
		}
	}
	if res := do(a, "GET", "/app.css", "", nil); res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/css") {
		t.Errorf("app.css: %s %v", res.Status, res.Header)
	}
}

func TestSignIn(t *testing.T) {
	a := newApp(t, "http://localhost:1")
	if res := do(a, "POST", "/signin", "email=nobody%40example.com", nil); res.StatusCode != http.StatusUnauthorized || len(res.Cookies()) > 0 {
		t.Errorf("nobody: %s", res.Status)
	}
	if res := do(a, "POST", "/signin", "email=billing%40northwind.example.com", map[string]string{"Sec-Fetch-Site": "same-site"}); res.StatusCode != http.StatusForbidden {
		t.Errorf("a form of the portal's origin: %s", res.Status)
	}
	who := signedIn(t, a)
	if res := do(a, "GET", "/settings", "", who); res.StatusCode != http.StatusOK {
		t.Errorf("signed in: %s", res.Status)
	}
	if res := do(a, "POST", "/signout", "", who); res.StatusCode != http.StatusSeeOther {
		t.Errorf("signing out: %s", res.Status)
	}
	if res := do(a, "GET", "/settings", "", who); res.StatusCode != http.StatusSeeOther {
		t.Errorf("the old cookie after signing out: %s", res.Status)
	}
	r := httptest.NewRequest("GET", "http://evil.example.com/", nil)
	w := httptest.NewRecorder()
	if a.ServeHTTP(w, r); w.Code != http.StatusMisdirectedRequest {
		t.Errorf("a foreign host: %d", w.Code)
	}
}

// TestIntegrationIsShort holds what the docs say of billing.go: the five steps
// are in it, in about forty lines of code.
func TestIntegrationIsShort(t *testing.T) {
	b, err := os.ReadFile("billing.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, ok := strings.Cut(string(b), "func (a *App) billing(")
	if !ok {
		t.Fatal("billing.go has no billing")
	}
	if n := strings.Count(code, "\n"); n > 46 {
		t.Errorf("the integration has %d lines", n)
	}
	doc, err := os.ReadFile("../docs/vendor-integration.md")
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	for i, words := range []string{"link", "signed in", "customer id", "Ask the portal for a link", "Redirect"} {
		step := fmt.Sprintf("// %d. ", i+1)
		at := strings.Index(code, step)
		if strings.Count(code, step) != 1 || at < last {
			t.Fatalf("step %q is not there once and in its place", step)
		}
		last = at
		comment, _, _ := strings.Cut(code[at:], "\n")
		_, inDoc, _ := strings.Cut(string(doc), fmt.Sprintf("\n%d. ", i+1))
		inDoc, _, _ = strings.Cut(inDoc, "\n")
		if !strings.Contains(comment, words) || !strings.Contains(inDoc, words) {
			t.Errorf("step %d is %q in the code and %q in the docs, both must speak of %q", i+1, comment, inDoc, words)
		}
	}
}
