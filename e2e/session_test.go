package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// vendorCall sends a request with the portal's API key.
func vendorCall(t *testing.T, d *demo, method, path string, form url.Values) (int, map[string]any) {
	t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r, err := http.NewRequestWithContext(t.Context(), method, d.Portal+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+d.APIKey)
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var out map[string]any
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, out
}

// TestDevices: somebody sees where the account is signed in, signs another
// device out, and then everything.
func TestDevices(t *testing.T) {
	const customer = "cus_northwind"
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Northwind Ltd")
	other := signIn(t, d.Portal, d.APIKey, customer)
	viewer := newVisitor(t, d.Portal)
	viewer.enter(t, mint(t, d.Portal, d.APIKey, customer, "portal[role]", "viewer", "portal[actor][name]", "Vera Viewer"))

	b.click("Signed-in devices")
	b.sees("Unknown browser on Linux", "This device", "Vera Viewer", "Sign out everywhere")
	b.inspect("devices")
	b.submitFirst("/devices/sign-out") // the latest one: Vera
	b.sees("That device is signed out.", "Unknown browser on Linux")
	b.seesNot("Vera Viewer")
	if p := viewer.get(t, "/"); p.status != http.StatusUnauthorized {
		t.Errorf("the device that was signed out: %d", p.status)
	}
	if p := other.get(t, "/devices"); p.status != http.StatusOK || !strings.Contains(p.body, "sign-out-all") {
		t.Errorf("the other owner's device: %d", p.status)
	}
	b.inspect("devices-ended")
	b.click("Sign out everywhere")
	b.sees("You are signed out")
	for name, v := range map[string]*visitor{"this": b.visitor(d.Portal), "the other": other} {
		if p := v.get(t, "/"); p.status != http.StatusUnauthorized {
			t.Errorf("%s device after signing out everywhere: %d", name, p.status)
		}
	}
	b.enterAs(d, "Northwind Ltd")
}

// TestDevicesOfAViewer: they see and end their own session only, in a language
// that is longer.
func TestDevicesOfAViewer(t *testing.T) {
	const customer = "cus_northwind"
	d := startDemo(t, caddyBinary(t))
	owner := signIn(t, d.Portal, d.APIKey, customer)
	b := newBrowser(t)
	b.open(mint(t, d.Portal, d.APIKey, customer, "portal[role]", "viewer", "locale", "en-XA"))
	b.submitFirst("/enter")
	b.open(d.Portal + "/devices")
	b.inspect("devices-viewer-pseudo")
	if body := b.visitor(d.Portal).get(t, "/devices").body; strings.Contains(body, "/devices/sign-out") || !strings.Contains(body, `lang="en-XA"`) {
		t.Errorf("a viewer is offered to sign others out:\n%s", body)
	}
	if p := b.visitor(d.Portal).post(t, "/devices/sign-out-all", url.Values{}); p.status != http.StatusForbidden {
		t.Errorf("a viewer signing everybody out: %d", p.status)
	}
	if p := owner.get(t, "/"); p.status != http.StatusOK {
		t.Errorf("the owner was signed out: %d", p.status)
	}
}

// TestVendorRevokesSessions: from the vendor's backend, effective on the next
// request.
func TestVendorRevokesSessions(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	ann, bob := signIn(t, d.Portal, d.APIKey, "cus_northwind"), signIn(t, d.Portal, d.APIKey, "cus_northwind")
	zoe := signIn(t, d.Portal, d.APIKey, "cus_globex")
	in := func(v *visitor) bool {
		t.Helper()
		p, err := v.do(context.Background(), http.MethodGet, "/", "same-origin", nil)
		if err != nil {
			t.Fatal(err)
		}
		return p.status == http.StatusOK
	}
	status, list := vendorCall(t, d, http.MethodGet, "/v1/portal/sessions?customer=cus_northwind", nil)
	data, _ := list["data"].([]any)
	if status != http.StatusOK || len(data) != 2 {
		t.Fatalf("%d %v", status, list)
	}
	id, _ := data[0].(map[string]any)["id"].(string) // the newest: Bob's
	if status, got := vendorCall(t, d, http.MethodPost, "/v1/portal/sessions/revoke", url.Values{"customer": {"cus_northwind"}, "session": {id}}); status != 200 || got["revoked"] != true {
		t.Fatalf("%d %v", status, got)
	}
	if in(bob) || !in(ann) || !in(zoe) {
		t.Error("want Bob, and nobody else, signed out")
	}
	vendorCall(t, d, http.MethodPost, "/v1/portal/sessions/revoke", url.Values{"customer": {"cus_northwind"}})
	if in(ann) || !in(zoe) {
		t.Error("want the customer signed out")
	}
	ann = signIn(t, d.Portal, d.APIKey, "cus_northwind")
	vendorCall(t, d, http.MethodPost, "/v1/portal/sessions/revoke", url.Values{"all": {"true"}})
	if in(ann) || in(zoe) {
		t.Error("want everybody signed out")
	}
}
