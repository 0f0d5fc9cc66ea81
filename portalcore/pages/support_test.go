package pages

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/templates"
)

func asSupport(c *link.Claims) {
	c.Role, c.Actor, c.Reason = policy.Support, link.Actor{ID: "emp_7", Name: "Sue <b>"}, "ticket 4711"
	c.Permissions = slices.Clone(policy.Actions) // widens nothing
}

// trail is what the audit trail says about a customer, oldest first.
func (e *env) trail(customer string) []string {
	e.t.Helper()
	var out []string
	err := e.sessions.Store.View(context.Background(), func(tx store.Tx) error {
		out = nil
		list, err := audit.Latest(tx, e.sessions.Tenant, customer, 100)
		slices.Reverse(list)
		for _, r := range list {
			out = append(out, strings.TrimSpace(fmt.Sprint(r.Event, " ", r.Role, " ", r.Actor.ID, " ", r.Action, r.Object, " ", r.Note)))
		}
		return err
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

// The vendor's staff sees what the customer sees, marked on every page, and
// leaves a trace of each page once.
func TestSupportLooks(t *testing.T) {
	e := newEnv(t)
	sue := e.signedIn("cus_a", asSupport)
	for _, path := range []string{"/", "/plan", "/payment", "/invoices", "/devices", "/", "/plan", "/no-such-page", "/done/nosuchintent"} {
		e.advance(time.Second)
		w := sue.get(path)
		body := w.Body.String()
		if path == "/no-such-page" {
			continue // nobody is signed in there
		}
		for _, want := range []string{"You are looking at", "billing as", "Sue &lt;b&gt;", "Nothing can be changed.", "End session"} {
			if !strings.Contains(body, want) {
				t.Errorf("%s: %d, lacks %q", path, w.Code, want)
			}
		}
	}
	ann := e.signedIn("cus_a")
	if body := ann.get("/").Body.String(); strings.Contains(body, "You are looking at") {
		t.Error("a customer's own page is marked")
	}
	if body := ann.get(templates.PathDevices).Body.String(); !strings.Contains(body, "support</dd>") || strings.Contains(body, "Sue") {
		t.Error("the customer does not see that support is looking, or sees who")
	}
	want := []string{
		"support_opened support emp_7  ticket 4711", "support_viewed support emp_7 /", "support_viewed support emp_7 /plan",
		"support_viewed support emp_7 /payment", "support_viewed support emp_7 /invoices", "support_viewed support emp_7 /devices",
		"support_viewed support emp_7 /done/nosuchintent", "support_ended support emp_7  signed_out",
	}
	e.advance(time.Second)
	location(t, sue.post(templates.PathSignOut, nil), pathSignedOut)
	if got := e.trail("cus_a"); !slices.Equal(got, want) {
		t.Errorf("the trail:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if sue.in() || !ann.in() {
		t.Error("the wrong session ended")
	}
}

// Whatever form they send, with whatever permissions in the link: nothing is
// asked of the provider, nothing changes, and it is written down.
func TestSupportChangesNothing(t *testing.T) {
	e := newEnv(t)
	ann := e.signedIn("cus_a")
	sue := e.signedIn("cus_a", asSupport)
	for path, rt := range routes() {
		if rt.post == nil || rt.open || path == pathRefresh {
			continue
		}
		if strings.HasSuffix(path, "/") && path != "/" {
			path += "0000000000000000000000000v"
		}
		form := url.Values{
			templates.FieldNonce: {"0123456789abcdefghijklmnop"}, fieldSubscription: {"sub_a"}, templates.FieldMethod: {"pm_a"},
			fieldSession: {ann.id()},
		}
		w := sue.post(path, form)
		if w.Code != 403 && w.Code != 400 && w.Code != 422 && w.Code != 415 {
			t.Errorf("POST %s: %d", path, w.Code)
		}
	}
	if n := len(e.provider.effects) + len(e.provider.keys); n != 0 {
		t.Errorf("%d steps were sent", n)
	}
	if !ann.in() {
		t.Error("support ended a customer's session")
	}
	for _, r := range e.trail("cus_a") {
		if strings.HasPrefix(r, "confirmed") || strings.HasPrefix(r, "settled") {
			t.Errorf("the trail has %q", r)
		}
	}
	for _, path := range []string{templates.PathAddMethod, pathCancel} {
		if body := sue.get(path).Body.String(); strings.Contains(body, `method="post" action="`+path+`"`) {
			t.Errorf("%s offers a form", path)
		}
	}
}

// Staff and customer never take each other's place in a browser without a click.
func TestSupportOverAnotherSession(t *testing.T) {
	e := newEnv(t)
	for name, tt := range map[string]struct{ first, second func(*link.Claims) }{
		"support over the customer": {func(*link.Claims) {}, asSupport},
		"the customer over support": {asSupport, func(*link.Claims) {}},
	} {
		b := e.signedIn("cus_a", tt.first)
		was := b.cookie
		w := b.get("/enter?token="+e.token("cus_a", tt.second), navigation)
		if w.Code != 200 || b.cookie != was {
			t.Errorf("%s: %d without a click", name, w.Code)
		}
	}
}

// A session of the staff ends after an hour however much it is used, is not
// counted among the customer's, and ends with all of them.
func TestSupportSessionsStandApart(t *testing.T) {
	e := newEnv(t)
	e.sessions.Limit = 2
	ann, bob := e.signedIn("cus_a"), e.signedIn("cus_a")
	var staff []*browser
	for range 3 {
		staff = append(staff, e.signedIn("cus_a", asSupport))
	}
	if !ann.in() || !bob.in() || !staff[0].in() {
		t.Error("support took the place of a customer, or a customer that of support")
	}
	list, err := e.sessions.List(t.Context(), "cus_a", 0)
	if err != nil || len(list) != 5 {
		t.Errorf("%d sessions, %v", len(list), err)
	}
	for range 7 {
		e.advance(9 * time.Minute)
		staff[0].in()
		ann.in()
	}
	if staff[0].in() || !ann.in() {
		t.Error("support outlived its hour, or the customer did not")
	}
	again := e.signedIn("cus_a", asSupport)
	if err := e.sessions.RevokeCustomer(t.Context(), "cus_a"); err != nil || again.in() {
		t.Error("support outlived a sign-out everywhere", err)
	}
	expired, revoked := 0, 0
	for _, r := range e.trail("cus_a") {
		if strings.HasSuffix(r, " expired") {
			expired++
		}
		if strings.HasSuffix(r, " revoked") {
			revoked++
		}
	}
	if expired == 0 || revoked == 0 {
		t.Errorf("the trail does not say how they ended: %q", e.trail("cus_a"))
	}
}

// Nothing is shown that cannot be written down.
func TestSupportWithoutATrace(t *testing.T) {
	e := newEnv(t)
	sue := e.signedIn("cus_a", asSupport)
	if w := sue.get("/plan"); w.Code != 200 {
		t.Fatal(w.Code)
	}
	e.sessions.Store = readOnly{e.store, store.ErrUnavailable}
	if w := sue.get("/payment"); w.Code != 503 || strings.Contains(w.Body.String(), "4242") {
		t.Errorf("not written down: %d", w.Code)
	}
	if w := sue.get("/plan"); w.Code != 200 {
		t.Errorf("written down before: %d", w.Code)
	}
}
