package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
)

const testAdmin = "http://localhost:2999" + adminBase

// ask sends a request to the admin endpoint, with a body where there is one.
func ask(t *testing.T, method, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, testAdmin+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return send(t, req)
}

func send(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// askFor decodes a good answer.
func askFor[T any](t *testing.T, method, path, body string) T {
	t.Helper()
	res, text := ask(t, method, path, body)
	var v T
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s", method, path, res.Status, text)
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s %s: %v\n%s", method, path, err, text)
	}
	return v
}

// plant writes an intent into the journal of a tenant, as package act would,
// and ends it in a state where one is given. It belongs to this process, so that
// recovery leaves it alone.
func plant(t *testing.T, tenant, customer, id string, end journal.State) journal.Intent {
	t.Helper()
	a, err := holdActiveApp()
	if err != nil {
		t.Fatal(err)
	}
	defer a.dropLogged()
	j := &journal.Journal{
		Store: a.store, Tenant: tenant, Now: time.Now, Process: process, LeaseTime: 5 * time.Minute,
		Changed: session.BumpVersion, Version: session.Version,
	}
	seen, err := j.Seen(t.Context(), customer)
	if err != nil {
		t.Fatal(err)
	}
	i, created, err := j.Plan(t.Context(), journal.Intent{
		ID: id, Customer: customer, Role: "owner", Object: "sub_" + id, Action: billing.Action{Kind: billing.Cancel, Subscription: "sub_" + id},
		Steps: []journal.Step{{Step: billing.Step{Kind: "cancel", Object: "sub_" + id}, Key: journal.StepKey(id, 0)}},
	}, seen)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	if end == "" {
		return i
	}
	if err := j.Send(t.Context(), &i, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.Settle(t.Context(), &i, end, "", fmt.Errorf("the provider's answer:\x1b[2J could not be read")); err != nil {
		t.Fatal(err)
	}
	return i
}

// TestAdminIntents lists intents of the running config, whatever the reloads
// before it.
func TestAdminIntents(t *testing.T) {
	dir := t.TempDir()
	cfg := config(dir, "") + siteBlock(dir, 9081, "")
	server(t, cfg)
	const one, two = "localhost:9080", "localhost:9081"
	for n := range 5 {
		plant(t, one, "cus_northwind", fmt.Sprintf("a%d", n), journal.Refused)
	}
	plant(t, one, "cus_globex", "b0", journal.Manual)
	plant(t, one, "cus_globex", "b1", "")
	plant(t, two, "cus_other", "c0", journal.Manual)

	check := func() {
		t.Helper()
		for query, want := range map[string]string{
			"":                                     "a0 a1 a2 a3 a4 b0 b1",
			"&customer=cus_globex":                 "b0 b1",
			"&state=manual":                        "b0",
			"&state=open":                          "b1",
			"&state=planned":                       "b1",
			"&state=refused&customer=cus_globex":   "",
			"&state=open&customer=cus_globex":      "b1",
			"&state=refused&customer=cus_northwin": "",
		} {
			page := askFor[portalcore.IntentPage](t, http.MethodGet, "intents?tenant="+one+query, "")
			got := make([]string, 0, len(page.Intents))
			for _, i := range page.Intents {
				got = append(got, i.ID)
			}
			if strings.Join(got, " ") != want || page.Next != "" || page.Truncated {
				t.Errorf("intents %s: %q %q, want %q", query, got, page.Next, want)
			}
		}
		// In pages.
		seen, after := map[string]bool{}, ""
		for range 4 {
			page := askFor[portalcore.IntentPage](t, http.MethodGet, "intents?limit=2&tenant="+one+"&after="+after, "")
			for _, i := range page.Intents {
				seen[i.ID] = true
			}
			after = page.Next
		}
		if len(seen) != 7 || after != "" {
			t.Errorf("four pages of two: %v, then %q", seen, after)
		}
		if page := askFor[portalcore.IntentPage](t, http.MethodGet, "intents?limit=1&state=open&tenant="+one, ""); len(page.Intents) != 1 || page.Truncated {
			t.Errorf("the one open intent: %+v", page)
		}
	}
	check()
	s := askFor[statusAnswer](t, http.MethodGet, "status", "")
	if s.Store.Kind != "badger" || s.Store.Generation == "" || s.Store.Cutoff.IsZero() || !s.Store.Restored.IsZero() || len(s.Tenants) != 2 ||
		s.Tenants[0].Tenant != one || s.Tenants[0].OpenIntents != 1 || s.Tenants[1].OpenIntents != 0 || !s.Tenants[0].Selling {
		t.Errorf("status: %+v", s)
	}
	tenants := askFor[map[string][]adminTenant](t, http.MethodGet, "tenants", "")["tenants"]
	if len(tenants) != 2 || tenants[0] != (adminTenant{one, "http://" + one}) {
		t.Errorf("tenants: %+v", tenants)
	}

	// After a reload, and after one that was refused, it is the running config
	// that answers.
	more := config(dir, "account_max_age 9s") + siteBlock(dir, 9081, "")
	if status, body := load(t, more); status != http.StatusOK {
		t.Fatal(body)
	}
	check()
	if status, body := load(t, config(dir, "catalogue {\nplan x {\nprices no_such_price\n}\n}")); status == http.StatusOK {
		t.Fatal(body)
	}
	check()
	if n := len(askFor[map[string][]adminTenant](t, http.MethodGet, "tenants", "")["tenants"]); n != 2 {
		t.Errorf("%d tenants after a refused reload", n)
	}
	// Without a portal there is nothing to ask.
	if status, body := load(t, "{\n"+options+"}\n"); status != http.StatusOK {
		t.Fatal(body)
	}
	for _, path := range []string{"tenants", "status", "intents"} {
		if res, text := ask(t, http.MethodGet, path, ""); res.StatusCode != http.StatusNotFound || !strings.Contains(text, "has no billing portal") {
			t.Errorf("%s without a portal: %s %s", path, res.Status, text)
		}
	}
}

// TestAdminRefuses sends what no operator means.
func TestAdminRefuses(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, "")+siteBlock(dir, 9081, ""))
	for name, tc := range map[string]struct {
		method, path, body string
		status             int
		want               string
	}{
		"no such path":      {http.MethodGet, "intent", "", 404, "there is no /billing_portal/intent"},
		"base":              {http.MethodGet, "", "", 404, "/billing_portal/intents"},
		"method":            {http.MethodDelete, "intents", "", 405, "takes GET, not DELETE"},
		"unknown parameter": {http.MethodGet, "intents?tenat=x", "", 400, `there is no parameter \"tenat\"`},
		"twice":             {http.MethodGet, "intents?tenant=a&tenant=b", "", 400, "there twice"},
		"bad query":         {http.MethodGet, "intents?tenant=%zz", "", 400, "cannot be read"},
		"which tenant":      {http.MethodGet, "intents", "", 400, "tenant is missing: there are localhost:9080, localhost:9081"},
		"no such tenant":    {http.MethodGet, "intents?tenant=acme", "", 404, `there is no tenant \"acme\": there are localhost:9080, localhost:9081`},
		"state":             {http.MethodGet, "intents?tenant=localhost:9080&state=lost", "", 400, "there are open, manual"},
		"limit":             {http.MethodGet, "intents?tenant=localhost:9080&limit=1001", "", 400, "want 1 to 1000"},
		"limit zero":        {http.MethodGet, "intents?tenant=localhost:9080&limit=0", "", 400, "want 1 to 1000"},
		"limit word":        {http.MethodGet, "intents?tenant=localhost:9080&limit=all", "", 400, "want 1 to 1000"},
		"cursor":            {http.MethodGet, "intents?tenant=localhost:9080&after=%2F%2F", "", 400, "want the next of the page before"},
		"open cursor":       {http.MethodGet, "intents?tenant=localhost:9080&state=open&after=AA", "", 400, "not continued"},
		"status parameter":  {http.MethodGet, "status?tenant=x", "", 400, "there are none"},
	} {
		t.Run(name, func(t *testing.T) {
			res, text := ask(t, tc.method, tc.path, tc.body)
			if res.StatusCode != tc.status || !strings.Contains(text, tc.want) {
				t.Errorf("%s %s, want %d and %q", res.Status, text, tc.status, tc.want)
			}
			if tc.status == 405 && res.Header.Get("Allow") == "" {
				t.Error("no Allow")
			}
		})
	}
	// A web page that a browser shows.
	for _, header := range []string{"Origin", "Host"} {
		req, err := http.NewRequest(http.MethodGet, testAdmin+"tenants", nil)
		if err != nil {
			t.Fatal(err)
		}
		if header == "Host" {
			req.Host = "evil.example.com"
		} else {
			req.Header.Set(header, "https://evil.example.com")
		}
		if res, text := send(t, req); res.StatusCode != http.StatusForbidden {
			t.Errorf("foreign %s: %s %s", header, res.Status, text)
		}
	}
	// A cursor cannot lead out of its tenant.
	plant(t, "localhost:9081", "cus_other", "c0", journal.Refused)
	for _, after := range []string{"AA", "_w", "AAAA"} {
		res, text := ask(t, http.MethodGet, "intents?tenant=localhost:9080&after="+after, "")
		if strings.Contains(text, "c0") {
			t.Errorf("after=%s: %s %s", after, res.Status, text)
		}
	}
}

// cli runs a command of the operators and returns what it printed. It has to
// succeed unless wantErr is part of what it complains of.
func cli(t *testing.T, wantErr string, args ...string) string {
	t.Helper()
	p := start(t, []string{"USER=tester"}, append([]string{"billing-portal"}, args...)...)
	var out bytes.Buffer
	if _, err := io.Copy(&out, p.stdout); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.exit:
		if (err == nil) != (wantErr == "") || !strings.Contains(p.stderr.String(), wantErr) {
			t.Fatalf("%q: %v, want error %q\n%s\n%s", args, err, wantErr, &out, p.stderr)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%q does not end", args)
	}
	return out.String()
}

const testAddress = "localhost:2999"

// TestCLILists prints tables for people and JSON for programs.
func TestCLILists(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	if out := cli(t, "", "intents", "list", "--address", testAddress); out != "no such intents\n" {
		t.Errorf("an empty journal: %q", out)
	}
	for n := range 3 {
		plant(t, "localhost:9080", "cus_globex", fmt.Sprintf("b%d", n), journal.Manual)
	}
	out := cli(t, "", "intents", "list", "--address", testAddress)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[0], "INTENT") ||
		!strings.HasPrefix(lines[1], "b0 ") || !strings.Contains(lines[1], "cus_globex") || !strings.Contains(lines[1], "manual") {
		t.Errorf("the table:\n%s", out)
	}
	if strings.Contains(out, "\x1b") || !strings.Contains(out, "the provider's answer:?[2J") {
		t.Errorf("control characters reach the terminal: %q", out)
	}
	if out := cli(t, "", "intents", "list", "--address", testAddress, "--limit", "2"); !strings.Contains(out, "there are more: --limit 20") {
		t.Errorf("two of three:\n%s", out)
	}
	var page portalcore.IntentPage
	if err := json.Unmarshal([]byte(cli(t, "", "intents", "list", "--address", testAddress, "--json", "--state", "manual")), &page); err != nil || len(page.Intents) != 3 {
		t.Errorf("as JSON: %v %+v", err, page)
	}
	// The address can come from a config, as with caddy reload.
	file := dir + "/Caddyfile"
	write(t, file, config(dir, ""))
	for _, args := range [][]string{{"status", "--address", testAddress}, {"status", "--config", file}} {
		if out := cli(t, "", args...); !strings.Contains(out, "store badger, generation ") || !strings.Contains(out, "localhost:9080") {
			t.Errorf("%q:\n%s", args, out)
		}
	}
	cli(t, "there is no tenant", "intents", "list", "--address", testAddress, "--tenant", "acme")
	cli(t, "want 1 to 1000", "intents", "list", "--address", testAddress, "--limit", "0")
	cli(t, "unknown command", "intents", "lits")
	cli(t, "unknown command", "intent")
	cli(t, "asking the Caddy that runs, at localhost:1", "status", "--address", "localhost:1")
	if out := cli(t, ""); !strings.Contains(out, "Available Commands") {
		t.Errorf("the command alone: %s", out)
	}
}

// TestHeldAppIsTheRunningOne holds that an operation never waits for a config
// that is going.
func TestHeldAppIsTheRunningOne(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	a, err := holdActiveApp()
	if err != nil {
		t.Fatal(err)
	}
	if status, body := load(t, config(dir, "account_max_age 9s")); status != http.StatusOK {
		t.Fatal(body)
	}
	b, err := holdActiveApp()
	if err != nil || a == b {
		t.Fatal("the old config answers", err)
	}
	if err := b.drop(); err != nil {
		t.Error(err)
	}
	// What is held stays open.
	if _, err := a.sites["localhost:9080"].portal.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.drop(); err != nil {
		t.Error(err)
	}
	if a.hold() {
		t.Error("the old config can be held again")
	}
	err = apiError(fmt.Errorf("wrapped: %w", &portalcore.InputError{Field: "x", Problem: "y"}))
	if refused, ok := errors.AsType[caddy.APIError](err); !ok || refused.HTTPStatus != http.StatusBadRequest {
		t.Errorf("what an operator got wrong: %v", err)
	}
}
