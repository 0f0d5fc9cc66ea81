package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

// plantSent writes an intent that was sent and not answered.
func plantSent(t *testing.T, id string) {
	t.Helper()
	a, err := holdActiveApp()
	if err != nil {
		t.Fatal(err)
	}
	defer a.dropLogged()
	j := &journal.Journal{
		Store: a.store, Tenant: testTenant, Now: time.Now, Process: process, LeaseTime: 5 * time.Minute,
		Changed: session.BumpVersion, Version: session.Version,
	}
	seen, err := j.Seen(t.Context(), "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	action := billing.Action{Kind: billing.Cancel, Subscription: "sub_northwind"}
	preview, err := a.sites[testTenant].provider.Preview(t.Context(), "cus_northwind", action, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	i := journal.Intent{ID: id, Customer: "cus_northwind", Role: "owner", Object: "sub_northwind", Action: action}
	for n, s := range preview.Steps {
		i.Steps = append(i.Steps, journal.Step{Step: s, Key: journal.StepKey(id, n)})
	}
	i, created, err := j.Plan(t.Context(), i, seen)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	if err := j.Send(t.Context(), &i, 0, nil); err != nil {
		t.Fatal(err)
	}
}

// TestBackupAndRestore makes a backup of a portal that runs, restores it into
// an empty store, and sees what is there again and what is over.
func TestBackupAndRestore(t *testing.T) {
	dir := t.TempDir()
	cfg := config(dir, "")
	server(t, cfg)
	const origin = "http://localhost:9080"
	visitor := enter(t, origin, testKey)
	link, err := mint(http.DefaultClient, origin, testKey, "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	plant(t, testTenant, "cus_northwind", "aaaabbbbccccdddd", journal.Refused)
	plant(t, testTenant, "cus_globex", "eeeeffffgggghhhh", journal.Manual)
	plantSent(t, "iiiijjjjkkkkllll")

	backups := t.TempDir()
	file := filepath.Join(backups, "portal.backup")
	var result backupResult
	if err := json.Unmarshal([]byte(cli(t, "", "backup", file, "--address", testAddress, "--json")), &result); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != result.Bytes || result.Records < 5 {
		t.Fatalf("the backup: %v %v %+v", info.Mode(), err, result)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, clear := range []string{"cus_northwind", "aaaabbbbccccdddd", "localhost:9080", "intent"} {
		if bytes.Contains(whole, []byte(clear)) {
			t.Errorf("%q stands in the backup in clear text", clear)
		}
	}
	// To standard output it is a backup too.
	piped := filepath.Join(backups, "piped.backup")
	write(t, piped, cli(t, "", "backup", "-", "--address", testAddress))
	if out := cli(t, "", "backup", filepath.Join(backups, "again.backup"), "--address", testAddress); !strings.Contains(out, "records in ") {
		t.Error(out)
	}
	for name, path := range map[string]string{"query": "backup?tenant=x", "body": "backup"} {
		body := ""
		if name == "body" {
			body = `{}`
		}
		if res, text := ask(t, http.MethodPost, path, body); res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s %s", name, res.Status, text)
		}
	}
	cli(t, "no such file or directory", "backup", filepath.Join(backups, "no", "such", "directory"), "--address", testAddress)
	cli(t, "asking the Caddy that runs", "backup", filepath.Join(backups, "unreachable"), "--address", "localhost:1")
	if left := filesIn(t, backups); len(left) != 3 {
		t.Errorf("files beside the backups: %q", left)
	}

	caddyfile := filepath.Join(dir, "Caddyfile")
	ports := freePorts(t, 1)
	admin := fmt.Sprintf("localhost:%d", ports[0])
	write(t, caddyfile, strings.Replace(cfg, "localhost:2999", admin, 1))
	cli(t, "directory is already open", "restore", "--config", caddyfile, file)
	// What is written after the backup is not in it.
	plant(t, testTenant, "cus_northwind", "mmmmnnnnoooopppp", journal.Refused)

	if status, body := load(t, "{\n"+options+"}\n"); status != http.StatusOK { // lets go of the store
		t.Fatal(body)
	}
	cli(t, "not empty", "restore", "--config", caddyfile, file)
	storeDir := filepath.Join(dir, "store")
	if err := os.Rename(storeDir, storeDir+".old"); err != nil {
		t.Fatal(err)
	}
	key := storeDir + ".seal_key"
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	cli(t, "put that file back", "restore", "--config", caddyfile, file)
	if _, err := os.Stat(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("restore generated a key: %v", err)
	}
	write(t, key, strings.Repeat("5a", 32)+"\n")
	cli(t, "the seal key is not the one that the backup was made with", "restore", "--config", caddyfile, file)
	if err := errors.Join(os.RemoveAll(storeDir), os.Rename(key+".away", key)); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(backups, "damaged.backup")
	write(t, damaged, strings.Replace(string(whole), string(whole[100:110]), "XXXXXXXXXX", 1))
	cli(t, "or the file is damaged", "restore", "--config", caddyfile, damaged)
	half := filepath.Join(backups, "half.backup")
	write(t, half, string(whole[:len(whole)-40]))
	cli(t, "empty it before the next try", "restore", "--config", caddyfile, half)
	p := start(t, []string{"BP_KEY=" + testKey}, "run", "--config", caddyfile)
	select {
	case err := <-p.exit:
		if err == nil || !strings.Contains(p.stderr.String(), "a restore into it did not finish") {
			t.Errorf("a portal on half a backup: %v\n%s", err, p.stderr)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("a portal runs on half a backup")
	}
	if err := os.RemoveAll(storeDir); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "other"), "localhost:9083\n")
	cli(t, "this config has no billing portal", "restore", "--config", filepath.Join(dir, "other"), "--adapter", "caddyfile", file)

	out := cli(t, "", "restore", "--config", caddyfile, piped)
	if !strings.Contains(out, fmt.Sprintf("%d records from the backup of ", result.Records)) || !strings.Contains(out, "Sessions and links from before are over") {
		t.Error(out)
	}
	// Another Caddy, as on another machine.
	p = start(t, []string{"BP_KEY=" + testKey}, "run", "--config", caddyfile)
	waitFor(t, p, origin)
	var page portalcore.IntentPage
	eventually(t, func() error {
		page = portalcore.IntentPage{}
		if err := json.Unmarshal([]byte(cli(t, "", "intents", "list", "--address", admin, "--json")), &page); err != nil {
			t.Fatal(err)
		}
		states := map[string]string{}
		for _, i := range page.Intents {
			states[i.ID] = i.State
			if i.ID == "iiiijjjjkkkkllll" && (!i.ReadOnly || i.Steps[0].Attempts != 1) {
				return fmt.Errorf("the intent that was under way: %+v", i)
			}
		}
		if len(states) != 3 || states["aaaabbbbccccdddd"] != "refused" || states["eeeeffffgggghhhh"] != "manual" || states["iiiijjjjkkkkllll"] != "reconciling" {
			return fmt.Errorf("intents after the restore: %v", states)
		}
		return nil
	})
	if status, body, err := get(visitor, origin+"/"); err != nil || strings.Contains(body, "Northwind Ltd") {
		t.Errorf("a session from before the restore: %d %v\n%s", status, err, body)
	}
	if status, _, err := get(browser(t), link); err != nil || status < 400 || status >= 500 {
		t.Errorf("a link from before the restore: %d %v", status, err)
	}
	again := enter(t, origin, testKey)
	if status, body, err := get(again, origin+"/done/aaaabbbbccccdddd"); err != nil || status != http.StatusOK {
		t.Errorf("a receipt from before the restore: %d %v\n%s", status, err, body)
	}
	if out := cli(t, "", "status", "--address", admin); !strings.Contains(out, "a backup was restored") || strings.Contains(out, "restored: never") {
		t.Error(out)
	}
	p.end(t, syscall.SIGTERM)
}

// TestBackupLeavesSecretsOut looks into the store and says of every kind of
// record whether a backup has it.
func TestBackupLeavesSecretsOut(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, "policy {\nallow change_plan update_payment_method cancel\n}"))
	const origin = "http://localhost:9080"
	b := enter(t, origin, testKey)
	if status, _, err := get(b, origin+"/cancel?subscription=sub_northwind"); err != nil || status != http.StatusOK {
		t.Fatalf("the cancel page: %d %v", status, err)
	}
	plant(t, testTenant, "cus_northwind", "aaaabbbbccccdddd", "")
	a, err := holdActiveApp()
	if err != nil {
		t.Fatal(err)
	}
	defer a.dropLogged()
	in, out := map[string]bool{}, map[string]bool{}
	err = a.store.View(t.Context(), func(tx store.Tx) error {
		entries, err := tx.Scan(nil, nil, 1000, false)
		for _, e := range entries {
			parts, ok := store.Parts(e.Key)
			if !ok || len(parts) < 2 {
				return fmt.Errorf("key %q", e.Key)
			}
			kind := parts[1]
			if parts[0] == "work" {
				kind = parts[0]
			}
			if kind == "sweep" {
				of, _ := store.Parts([]byte(parts[3]))
				kind += " " + of[1]
			}
			if parts[0] == "" {
				continue // the store's own
			}
			if portalcore.LeaveOutOfBackup(e.Key) {
				out[kind] = true
			} else {
				in[kind] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"session", "sweep session", "link-keys", "idempotency", "sweep idempotency"} {
		if !out[kind] || in[kind] {
			t.Errorf("%s: left out %v, kept %v", kind, out[kind], in[kind])
		}
	}
	for _, kind := range []string{"customer", "spent", "sweep spent", "intent", "open", "lock", "work", "audit"} {
		if !in[kind] || out[kind] {
			t.Errorf("%s: left out %v, kept %v", kind, out[kind], in[kind])
		}
	}
	// A new kind of record: decide, and name it above or below.
	known := []string{"session", "link-keys", "idempotency", "pin", "card-page", "customer", "tenant", "spent", "intent", "open", "lock", "work", "audit", "intents-indexed"}
	for kind := range in {
		if !strings.Contains(" "+strings.Join(known, " ")+" ", " "+strings.TrimPrefix(kind, "sweep ")+" ") {
			t.Errorf("a kind of record that nobody decided on: %s", kind)
		}
	}
	for _, kind := range []string{"pin", "card-page"} {
		if !portalcore.LeaveOutOfBackup(store.Key(testTenant, kind, "x", "y")) {
			t.Errorf("%s is kept", kind)
		}
	}
	if portalcore.LeaveOutOfBackup([]byte("\x00")) || portalcore.LeaveOutOfBackup(store.Key("work", "session", "x")) {
		t.Error("what is nobody's session is left out")
	}
}

// TestMoveToPostgres restores the backup of a directory into a database.
func TestMoveToPostgres(t *testing.T) {
	srv := pgtest.Start(t)
	setPostgres(t, srv.DSN(srv.Database(t)))
	dir := t.TempDir()
	sealed := func(cfg string) string {
		return strings.Replace(cfg, "store badger", "seal_key {env.BP_SEAL}\nstore badger", 1)
	}
	server(t, sealed(config(dir, "")))
	plant(t, testTenant, "cus_northwind", "aaaabbbbccccdddd", journal.Refused)
	file := filepath.Join(dir, "portal.backup")
	cli(t, "", "backup", file, "--address", testAddress)

	caddyfile := filepath.Join(dir, "Caddyfile")
	write(t, caddyfile, postgresConfig(dir, ""))
	env := []string{"BP_KEY=" + testKey, "DATABASE_URL=" + os.Getenv("DATABASE_URL"), "BP_SEAL=" + os.Getenv("BP_SEAL")}
	run := func(want string, args ...string) {
		t.Helper()
		p := start(t, env, append([]string{"billing-portal"}, args...)...)
		select {
		case err := <-p.exit:
			if (err == nil) != (want == "") || !strings.Contains(p.stderr.String(), want) {
				t.Fatalf("%s: %v, want %q\n%s", args[0], err, want, p.stderr)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s does not end", args[0])
		}
	}
	run("", "restore", "--config", caddyfile, file)
	run("not empty", "restore", "--config", caddyfile, file)
	// Without any Caddy that runs.
	run("", "restored", "--offline", "--config", caddyfile, "--note", "recovered to 09:40", "--by", "bob")
	if status, body := load(t, postgresConfig(dir, "")); status != http.StatusOK {
		t.Fatal(body)
	}
	if s := askFor[statusAnswer](t, http.MethodGet, "status", ""); s.Store.Kind != "postgres" || s.Store.Restored.IsZero() || !strings.Contains(s.Store.Reason, "bob (recovered to 09:40)") {
		t.Errorf("status: %+v", s.Store)
	}
	if page := askFor[portalcore.IntentPage](t, http.MethodGet, "intents", ""); len(page.Intents) != 1 || page.Intents[0].ID != "aaaabbbbccccdddd" {
		t.Errorf("intents: %+v", page)
	}
	enter(t, "http://localhost:9080", testKey)
}

// breaking is a store that fails while it is read for a backup.
type breaking struct{ store.Store }

func (b breaking) View(ctx context.Context, fn func(store.Tx) error) error {
	return b.Store.View(ctx, func(tx store.Tx) error { return fn(&breakingTx{Tx: tx}) })
}

type breakingTx struct {
	store.Tx
	scans int
}

func (b *breakingTx) Scan(prefix, from []byte, limit int, reverse bool) ([]store.Entry, error) {
	if b.scans++; b.scans > 1 {
		return nil, errors.New("the disk is gone")
	}
	return b.Tx.Scan(prefix, from, limit, reverse)
}

// TestBackupBreaksOff holds that a backup that fails on the way is no file that
// anybody takes for one, and that only one is made at a time.
func TestBackupBreaksOff(t *testing.T) {
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	st, err := openBadger(filepath.Join(t.TempDir(), "store"), sealer, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for n := range 300 {
		err := st.Update(t.Context(), func(tx store.Tx) error {
			return tx.Put(store.Key("a", "record", fmt.Sprint(n)), bytes.Repeat([]byte{byte(n)}, 8<<10))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	a := &App{logger: zap.NewNop(), sites: map[string]*site{"a": {}}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := adminBackup(w, r, a); err != nil {
			refused, _ := errors.AsType[caddy.APIError](apiError(err))
			refused.Message = err.Error() // as Caddy does
			w.WriteHeader(refused.HTTPStatus)
			_ = json.NewEncoder(w).Encode(refused)
		}
	}))
	defer srv.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "portal.backup")
	address := strings.TrimPrefix(srv.URL, "http://")

	a.store = &sharedStore{OpenStore: OpenStore{Store: breaking{st}}, sealer: sealer}
	cli(t, "the backup is not whole", "backup", file, "--address", address)
	if left := filesIn(t, dir); len(left) != 0 {
		t.Errorf("a backup that broke off left %q", left)
	}
	a.store = &sharedStore{OpenStore: st, sealer: sealer}
	a.store.backingUp.Store(true)
	cli(t, "a backup is being made", "backup", file, "--address", address)
	a.store.backingUp.Store(false)
	if out := cli(t, "", "backup", file, "--address", address); !strings.HasPrefix(out, "300 records in ") {
		t.Error(out)
	}
	if a.store.backingUp.Load() {
		t.Error("nobody can make another backup")
	}
}
