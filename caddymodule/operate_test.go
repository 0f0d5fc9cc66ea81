package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const testTenant = "localhost:9080"

// trail reads a customer's audit trail, newest first.
func trail(t *testing.T, customer string) []audit.Record {
	t.Helper()
	a, err := holdActiveApp()
	if err != nil {
		t.Fatal(err)
	}
	defer a.dropLogged()
	var list []audit.Record
	err = a.store.View(t.Context(), func(tx store.Tx) (err error) {
		list, err = audit.Latest(tx, testTenant, customer, 10)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestSettle settles a manual intent by the admin endpoint and one on the
// command line, and sees it on the customer's receipts.
func TestSettle(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	b := enter(t, "http://localhost:9080", testKey)
	plant(t, testTenant, "cus_northwind", "aaaabbbbccccdddd", journal.Manual)
	plant(t, testTenant, "cus_northwind", "eeeeffffgggghhhh", journal.Manual)
	plant(t, testTenant, "cus_northwind", "iiiijjjjkkkkllll", journal.Refused)
	receipt := func(id string) string {
		t.Helper()
		status, body, err := get(b, "http://localhost:9080/done/"+id)
		if err != nil || status != http.StatusOK {
			t.Fatalf("receipt %s: %d %v", id, status, err)
		}
		return body
	}
	const waiting, undone = "what became of your change", "Your change was not made"
	if body := receipt("aaaabbbbccccdddd"); !strings.Contains(body, waiting) || strings.Contains(body, undone) {
		t.Fatalf("a manual intent's receipt:\n%s", body)
	}
	if s := askFor[statusAnswer](t, http.MethodGet, "status", "").Tenants[0]; s.ManualIntents != 2 || s.OpenIntents != 0 {
		t.Errorf("status: %+v", s)
	}

	for name, tc := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"empty":         {`{}`, 400, "state"},
		"no body":       {``, 415, "application/json"},
		"not an object": {`[]`, 400, "not the JSON object"},
		"unknown field": {`{"intent":"aaaabbbbccccdddd","state":"succeeded","by":"ann","force":true}`, 400, `unknown field \"force\"`},
		"two objects":   {`{"intent":"aaaabbbbccccdddd","state":"succeeded","by":"ann"}{}`, 400, "something after the object"},
		"too long":      {`{"intent":"` + strings.Repeat("a", maxAdminBody) + `"}`, 413, "longer than"},
		"much after":    {`{"intent":"a"}` + strings.Repeat(" ", maxAdminBody), 413, "longer than"},
		"state":         {`{"intent":"aaaabbbbccccdddd","state":"refused","by":"ann"}`, 400, "want one of succeeded, partial, not_applied"},
		"nobody":        {`{"intent":"aaaabbbbccccdddd","state":"succeeded"}`, 400, "by: want 1 to 64 bytes"},
		"two lines":     {`{"intent":"aaaabbbbccccdddd","state":"succeeded","by":"ann\nbob"}`, 400, "by: want"},
		"long note":     {`{"intent":"aaaabbbbccccdddd","state":"succeeded","by":"ann","note":"` + strings.Repeat("x", 501) + `"}`, 400, "note: want"},
		"no intent":     {`{"state":"succeeded","by":"ann"}`, 400, "intent: want"},
		"unknown":       {`{"intent":"zzzz","state":"succeeded","by":"ann"}`, 404, `no intent \"zzzz\" waits`},
		"not manual":    {`{"intent":"iiiijjjjkkkkllll","customer":"cus_northwind","state":"succeeded","by":"ann"}`, 409, "it is refused"},
		"foreign":       {`{"intent":"aaaabbbbccccdddd","customer":"cus_globex","state":"succeeded","by":"ann"}`, 404, "not found"},
		"tenant":        {`{"tenant":"acme","intent":"aaaabbbbccccdddd","state":"succeeded","by":"ann"}`, 404, "there is no tenant"},
	} {
		if res, text := ask(t, http.MethodPost, "intents/settle", tc.body); res.StatusCode != tc.status || !strings.Contains(text, tc.want) {
			t.Errorf("%s: %s %s, want %d and %q", name, res.Status, text, tc.status, tc.want)
		}
	}
	req, err := http.NewRequest(http.MethodPost, testAdmin+"intents/settle", strings.NewReader(`{"intent":"aaaabbbbccccdddd","state":"succeeded","by":"ann"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "text/plain") // what a web page can send without asking
	if res, text := send(t, req); res.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("text/plain: %s %s", res.Status, text)
	}
	if body := receipt("aaaabbbbccccdddd"); !strings.Contains(body, waiting) {
		t.Fatal("something refused settled the intent")
	}

	i := askFor[portalcore.IntentStatus](t, http.MethodPost, "intents/settle", `{"intent":"aaaa-bbbb-cccc","state":"not_applied","by":"ann","note":"no invoice at the provider"}`)
	if i.ID != "aaaabbbbccccdddd" || i.State != "not_applied" || i.SettledBy != "ann" || i.Note != "no invoice at the provider" {
		t.Errorf("settled: %+v", i)
	}
	if body := receipt("aaaabbbbccccdddd"); !strings.Contains(body, undone) {
		t.Errorf("the receipt after it was settled:\n%s", body)
	}
	if r := trail(t, "cus_northwind")[0]; r.Event != "settled_by_operator" || r.By != "ann" || r.Intent != i.ID {
		t.Errorf("the audit trail: %+v", r)
	}
	if res, text := ask(t, http.MethodPost, "intents/settle", `{"intent":"aaaabbbbccccdddd","customer":"cus_northwind","state":"succeeded","by":"bob"}`); res.StatusCode != http.StatusConflict {
		t.Errorf("settled twice: %s %s", res.Status, text)
	}

	out := cli(t, "", "intents", "settle", "eeee-ffff-gggg", "--as", "not_applied", "--note", "seen", "--address", testAddress)
	if out != "intent eeeeffffgggghhhh of cus_northwind is settled: not_applied\n" {
		t.Error(out)
	}
	if body := receipt("eeeeffffgggghhhh"); !strings.Contains(body, undone) {
		t.Errorf("the receipt after it was settled on the command line:\n%s", body)
	}
	if r := trail(t, "cus_northwind")[0]; r.By == "" || r.Note != "seen" {
		t.Errorf("the audit trail: %+v", r)
	}
	cli(t, "no intent", "intents", "settle", "zzzz", "--as", "succeeded", "--address", testAddress)
	cli(t, "want one of succeeded", "intents", "settle", "zzzz", "--address", testAddress)
	cli(t, "accepts 1 arg", "intents", "settle", "--as", "succeeded", "--address", testAddress)
	cli(t, "by: want", "intents", "settle", "zzzz", "--as", "succeeded", "--by", "a\nb", "--address", testAddress)
}

// TestRevoke ends sessions one by one, by customer and all, and sees them over
// on the next request.
func TestRevoke(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	const origin = "http://localhost:9080"
	one, two := enter(t, origin, testKey), enter(t, origin, testKey)
	live := func(c *http.Client) bool {
		t.Helper()
		status, body, err := get(c, origin+"/")
		if err != nil {
			t.Fatal(err)
		}
		return status == http.StatusOK && strings.Contains(body, "Northwind Ltd")
	}
	list := askFor[sessionsAnswer](t, http.MethodGet, "sessions?customer=cus_northwind", "").Sessions
	if len(list) != 2 || !strings.HasPrefix(list[0].ID, "ses_") || list[0].Customer != "cus_northwind" || list[0].Created.Before(list[1].Created) {
		t.Fatalf("sessions: %+v", list)
	}
	if list := askFor[sessionsAnswer](t, http.MethodGet, "sessions?customer=cus_globex", "").Sessions; list == nil || len(list) != 0 {
		t.Errorf("another customer's sessions: %+v", list)
	}
	for name, tc := range map[string]struct {
		method, path, body string
		status             int
	}{
		"no customer":      {http.MethodGet, "sessions", "", 400},
		"nobody asked for": {http.MethodGet, "customers", "", 400},
		"by name":          {http.MethodGet, "customers?name=Ada", "", 400},
		"nothing":          {http.MethodPost, "sessions/revoke", `{"by":"ann"}`, 400},
		"too much":         {http.MethodPost, "sessions/revoke", `{"by":"ann","all":true,"customer":"cus_northwind"}`, 400},
		"nobody":           {http.MethodPost, "sessions/revoke", `{"all":true}`, 400},
		"no such session":  {http.MethodPost, "sessions/revoke", `{"by":"ann","session":"ses_x"}`, 404},
		"not theirs":       {http.MethodPost, "sessions/revoke", `{"by":"ann","customer":"cus_globex","session":"` + list[0].ID + `"}`, 404},
		"method":           {http.MethodGet, "sessions/revoke", "", 405},
	} {
		if res, text := ask(t, tc.method, tc.path, tc.body); res.StatusCode != tc.status {
			t.Errorf("%s: %s %s, want %d", name, res.Status, text, tc.status)
		}
	}
	if !live(one) || !live(two) {
		t.Fatal("something refused ended a session")
	}
	askFor[struct{}](t, http.MethodPost, "sessions/revoke", `{"by":"ann","session":"`+list[0].ID+`"}`)
	if !live(one) || live(two) {
		t.Errorf("after the newer one was revoked: older %v, newer %v", live(one), live(two))
	}
	if out := cli(t, "", "sessions", "list", "--customer", "cus_northwind", "--address", testAddress); strings.Count(out, "ses_") != 1 || !strings.Contains(out, list[1].ID) {
		t.Errorf("sessions list:\n%s", out)
	}
	for _, by := range [][]string{{"--reference", "cus_northwind"}, {"--reference", "nobody"}} {
		out := cli(t, "", append([]string{"customers", "--address", testAddress}, by...)...)
		if found := strings.Contains(out, "cus_northwind"); found != (by[1] == "cus_northwind") {
			t.Errorf("customers %v:\n%s", by, out)
		}
	}
	cli(t, "send reference or email, one of them", "customers", "--address", testAddress)
	cli(t, "send reference or email, one of them", "customers", "--email", "a@b.example", "--reference", "x", "--address", testAddress)
	if out := cli(t, "", "sessions", "revoke", "--customer", "cus_northwind", "--by", "bob", "--address", testAddress); out != "the sessions are over\n" {
		t.Error(out)
	}
	if out := cli(t, "", "sessions", "revoke", "--customer", "cus_nortwhind", "--address", testAddress); out != "no customer with that id was ever here: cus_nortwhind\n" {
		t.Error(out)
	}
	if live(one) {
		t.Error("a session outlived its customer's revocation")
	}
	if r := trail(t, "cus_northwind")[0]; r.Event != "sessions_revoked" || r.By != "bob" || r.Actor.ID != "operator:bob" {
		t.Errorf("the audit trail: %+v", r)
	}
	three := enter(t, origin, testKey)
	cli(t, "", "sessions", "revoke", "--all", "--address", testAddress)
	if live(three) {
		t.Error("a session outlived the tenant's revocation")
	}
	if !live(enter(t, origin, testKey)) {
		t.Error("nobody can sign in any more")
	}
	if r := trail(t, "")[0]; r.Event != "sessions_revoked" {
		t.Errorf("the tenant's audit trail: %+v", r)
	}
	cli(t, "want one of them", "sessions", "revoke", "--address", testAddress)
	cli(t, "want the id of a customer", "sessions", "list", "--address", testAddress)
}

// receiver is a vendor's backend that takes events.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	got    []map[string]any
	errs   []error
}

const eventsSecret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

func newReceiver(t *testing.T, status int) *receiver {
	t.Helper()
	wh, err := standardwebhooks.NewWebhook(eventsSecret)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{status: status}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err == nil {
			err = wh.Verify(body, req.Header)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		var e map[string]any
		if err = errors.Join(err, json.Unmarshal(body, &e)); err != nil {
			r.errs = append(r.errs, err)
		} else {
			e["id"] = req.Header.Get("webhook-id")
			r.got = append(r.got, e)
		}
		w.WriteHeader(r.status)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) events() ([]map[string]any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]map[string]any(nil), r.got...), errors.Join(r.errs...)
}

func (r *receiver) answer(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

// TestEvents follows the event of a settled intent to the vendor's backend:
// given up, listed, and sent again.
func TestEvents(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("BP_EVENTS", eventsSecret)
	r := newReceiver(t, http.StatusGone) // given up at once
	server(t, config(dir, "events {\nurl "+r.URL+"/hooks\nsecret {env.BP_EVENTS}\n}"))
	plant(t, testTenant, "cus_northwind", "aaaabbbbccccdddd", journal.Manual)
	if list := askFor[eventsAnswer](t, http.MethodGet, "events", "").Events; list == nil || len(list) != 0 {
		t.Errorf("dead events: %+v", list)
	}
	begun := time.Now()
	askFor[portalcore.IntentStatus](t, http.MethodPost, "intents/settle", `{"intent":"aaaabbbbccccdddd","state":"succeeded","by":"ann"}`)
	eventually(t, func() error {
		if list := askFor[eventsAnswer](t, http.MethodGet, "events", "").Events; len(list) != 1 {
			return fmt.Errorf("dead events: %+v", list)
		}
		return nil
	})
	t.Logf("told and given up %s after it was settled", time.Since(begun).Round(time.Millisecond))
	const id = "evt_aaaabbbbccccdddd_succeeded"
	if out := cli(t, "", "events", "list", "--address", testAddress); !strings.Contains(out, id) || !strings.Contains(out, "action.succeeded") || !strings.Contains(out, "the receiver answered 410") {
		t.Errorf("events list:\n%s", out)
	}
	if out := cli(t, "", "status", "--address", testAddress); !strings.Contains(out, "DEAD EVENTS") || !strings.HasSuffix(strings.TrimSpace(out), " 1") {
		t.Errorf("status:\n%s", out)
	}
	for name, tc := range map[string]struct {
		body   string
		status int
	}{
		"nothing": {`{"by":"ann"}`, 400}, "both": {`{"by":"ann","event":"` + id + `","all":true}`, 400},
		"nobody": {`{"all":true}`, 400}, "unknown": {`{"by":"ann","event":"evt_x"}`, 404},
	} {
		if res, text := ask(t, http.MethodPost, "events/resend", tc.body); res.StatusCode != tc.status {
			t.Errorf("%s: %s %s, want %d", name, res.Status, text, tc.status)
		}
	}
	r.answer(http.StatusNoContent)
	if out := cli(t, "", "events", "resend", "--all", "--address", testAddress); out != "events sent again: 1\n" {
		t.Error(out)
	}
	eventually(t, func() error {
		got, err := r.events()
		if err != nil || len(got) != 2 {
			return fmt.Errorf("%d events, %w", len(got), err)
		}
		for _, e := range got {
			data := e["data"].(map[string]any)
			if e["id"] != id || e["type"] != "action.succeeded" || data["customer"] != "cus_northwind" || data["state"] != "succeeded" ||
				data["id"] != "aaaabbbbccccdddd" || data["reference"] != "aaaa-bbbb-cccc" || data["action"] != "cancel" || data["object"] != "sub_aaaabbbbccccdddd" {
				return fmt.Errorf("an event: %v", e)
			}
		}
		return nil
	})
	if list := askFor[eventsAnswer](t, http.MethodGet, "events", "").Events; len(list) != 0 {
		t.Errorf("dead events after they were taken: %+v", list)
	}
	if r := trail(t, "")[0]; r.Event != "events_resent" {
		t.Errorf("the audit trail: %+v", r)
	}

	// A tenant that tells nobody says so.
	if status, body := load(t, config(dir, "")); status != http.StatusOK {
		t.Fatal(body)
	}
	cli(t, "has no events block", "events", "list", "--address", testAddress)
}

// TestRestored declares a restore and sees that what is from before is over.
func TestRestored(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	const origin = "http://localhost:9080"
	b := enter(t, origin, testKey)
	link, err := mint(http.DefaultClient, origin, testKey, "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{"nobody": `{}`, "unknown field": `{"by":"ann","tenant":"x"}`} {
		if res, text := ask(t, http.MethodPost, "restored", body); res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s %s", name, res.Status, text)
		}
	}
	before := askFor[statusAnswer](t, http.MethodGet, "status", "").Store
	out := cli(t, "", "restored", "--note", "recovered to 09:40", "--address", testAddress)
	if !strings.Contains(out, "are over") {
		t.Error(out)
	}
	after := askFor[statusAnswer](t, http.MethodGet, "status", "").Store
	if after.Generation == before.Generation || after.Restored.IsZero() || !strings.Contains(after.Reason, "an operator said") {
		t.Errorf("the store after it was declared restored: %+v", after)
	}
	if r := trail(t, "")[0]; r.Event != "store_restored" || r.Note != "recovered to 09:40" {
		t.Errorf("the audit trail: %+v", r)
	}
	eventually(t, func() error { // within the time that a node remembers the guard
		if status, body, err := get(b, origin+"/"); err != nil || strings.Contains(body, "Northwind Ltd") {
			return fmt.Errorf("the session from before: %d %s", status, fmt.Sprint(err))
		}
		return nil
	})
	if status, _, err := get(browser(t), link); err != nil || status != http.StatusGone {
		t.Errorf("the link from before: %d %v, want 410", status, err)
	}
	enter(t, origin, testKey)
}

// TestDocumentedCommands holds that every command line in docs/operation.md and
// in the commands' own help is one that there is, with flags that it takes.
func TestDocumentedCommands(t *testing.T) {
	root := &cobra.Command{Use: "billing-portal"}
	root.AddCommand(operatorCommands()...)
	var texts []string
	doc := readGolden(t, "../docs/operation.md")
	for i, part := range strings.Split(doc, "```") {
		if i%2 == 1 {
			texts = append(texts, part)
		}
	}
	inDoc := len(texts)
	used := map[string]bool{}
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		texts = append(texts, c.Long)
		for _, sub := range c.Commands() {
			visit(sub)
		}
		if len(c.Commands()) == 0 {
			used[c.CommandPath()] = false
		}
	}
	visit(root)
	lines := 0
	for i, text := range texts {
		for line := range strings.Lines(text) {
			_, args, ok := strings.Cut(strings.TrimSpace(line), "caddy billing-portal ")
			if !ok || !strings.HasPrefix(strings.TrimSpace(line), "caddy ") && !strings.HasPrefix(strings.TrimSpace(line), "sudo ") {
				continue
			}
			args, _, _ = strings.Cut(args, " | ")
			words := regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(args, -1)
			cmd, rest, err := root.Find(words)
			if err != nil {
				t.Errorf("%s: %v", line, err)
				continue
			}
			if err := errors.Join(cmd.ParseFlags(rest), cmd.ValidateArgs(cmd.Flags().Args())); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			lines++
			if i < inDoc {
				used[cmd.CommandPath()] = true
			}
		}
	}
	if lines < 20 {
		t.Errorf("%d command lines were found", lines)
	}
	for path, ok := range used {
		if !ok {
			t.Errorf("docs/operation.md has no example of %q", path)
		}
	}
	// And the endpoints.
	for _, r := range (adminAPI{}).Routes() {
		if r.Pattern != adminBase && !strings.Contains(doc, " "+r.Pattern+"`") {
			t.Errorf("docs/operation.md does not name %s", r.Pattern)
		}
	}
}

// TestDocumentedLogLines holds that the log lines that docs/operation.md
// explains are ones that the code writes.
func TestDocumentedLogLines(t *testing.T) {
	var code strings.Builder
	for _, dir := range []string{".", "../portalcore"} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			code.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	_, table, ok := strings.Cut(readGolden(t, "../docs/operation.md"), "## Log lines that ask for something")
	if !ok {
		t.Fatal("there is no table of log lines")
	}
	n := 0
	for line := range strings.Lines(table) {
		text, ok := strings.CutPrefix(line, "| `")
		if !ok {
			continue
		}
		text, _, _ = strings.Cut(text, "`")
		if n++; !strings.Contains(code.String(), `"`+text) {
			t.Errorf("no line of the log begins %q", text)
		}
	}
	if n < 10 {
		t.Errorf("%d lines were found", n)
	}
}

// TestProviderEvent changes a customer at the provider behind the portal's back
// and sees it on the next page, because the provider said so.
func TestProviderEvent(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("BP_WHSEC", "whsec_CANARY0123456789abcdef")
	server(t, strings.Replace(config(dir, "account_max_age 1h"), "data_dir "+dir+"/sandbox\n", "data_dir "+dir+"/sandbox\nwebhook_secret {env.BP_WHSEC}\n", 1))
	b := enter(t, "http://localhost:9080", testKey)
	_, s, ok := activeSite(testTenant)
	if !ok {
		t.Fatal("no portal")
	}
	name := "Southwind Ltd"
	if _, err := s.module.(*SandboxProvider).book.ledger.UpdateCustomer(t.Context(), sandbox.Call{}, "cus_northwind", sandbox.CustomerParams{Name: &name}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // an hour before the page would have been read again
		if status, body, err := get(b, "http://localhost:9080/"); err != nil || status != http.StatusOK || !strings.Contains(body, name) {
			return fmt.Errorf("the overview after the provider's event: %d %s", status, fmt.Sprint(err))
		}
		return nil
	})
	res, err := http.Post("http://localhost:9080/webhook", "application/json", strings.NewReader(`{"id":"evt_1"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("an event without a signature: %s", res.Status)
	}
}
