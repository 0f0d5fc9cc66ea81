package caddymodule

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

// postgresConfig is a Caddyfile with one portal on port 9080 whose store is in
// the database that DATABASE_URL names.
func postgresConfig(dir, more string) string {
	return "{\n" + options + "billing_portal {\nstore postgres {env.DATABASE_URL}" + more + "\nseal_key {env.BP_SEAL}\n}\n}\n" + siteBlock(dir, 9080, "")
}

func setPostgres(t *testing.T, dsn string) {
	t.Helper()
	t.Setenv("BP_KEY", testKey)
	t.Setenv("BP_SEAL", strings.Repeat("5a", 32))
	t.Setenv("DATABASE_URL", dsn)
}

func TestPostgresPasswords(t *testing.T) {
	for dsn, want := range map[string]bool{
		"{env.DATABASE_URL}":                          false,
		"{file./etc/portal.dsn}":                      false,
		"postgres://db/portal":                        false,
		"postgres://portal@db/portal":                 false,
		"postgres://portal@db:5432,db2:5432/portal":   false,
		"postgres://portal:{env.PW}@db/portal":        false,
		"host=db user=portal password={env.PW}":       false,
		"host=db user=portal password=":               false,
		"postgres://db/portal?password={file./pw}":    false,
		"postgres://portal:CANARY@db/portal":          true,
		"postgres://portal:CANARY{env.PW}@db/portal":  true,
		"postgresql://u:CANARY@a:1,b:2/portal":        true,
		"postgres://db/portal?password=CANARY":        true,
		"postgres://db/portal?a=b&sslpassword=CANARY": true,
		"host=db password=CANARY":                     true,
		"host=db PASSWORD = 'CANARY x'":               true,
	} {
		if got := hasPassword(dsn); got != want {
			t.Errorf("%s has a password: %v, want %v", dsn, got, want)
		}
	}
}

func TestPostgresErrors(t *testing.T) {
	setPostgres(t, "postgres://portal:CANARY/with/slashes@db/portal")
	t.Setenv("BP_DSN", "postgres://portal@127.0.0.1:1/portal")
	site := siteBlock(t.TempDir(), 9080, "")
	global := func(lines string) string { return "{\nbilling_portal {\n" + lines + "\n}\n}\n" + site }
	const seal = "\nseal_key {env.BP_SEAL}"
	for _, tc := range []struct{ name, in, want string }{
		{"no argument", "store postgres" + seal, "takes one argument, its connection string"},
		{"two arguments", "store postgres a b" + seal, "takes one argument, its connection string"},
		{"password", "store postgres postgres://u:CANARY@db/portal" + seal, "a password stands in the config itself"},
		{"unset", "store postgres {env.BP_NOT_SET}" + seal, "the placeholder {env.BP_NOT_SET} has no value"},
		{"malformed", "store postgres {env.DATABASE_URL}" + seal, "the PostgreSQL connection string cannot be read"},
		{"no seal key", "store postgres {env.BP_DSN}", "store postgres needs seal_key, the same for all nodes: make one with openssl rand -hex 32"},
		{"one connection", "store postgres {env.BP_DSN} {\nmax_connections 1\n}" + seal, "max_connections must be at least 2"},
		{"no number", "store postgres {env.BP_DSN} {\nmax_connections many\n}" + seal, `"many" is not a whole number`},
		{"no duration", "store postgres {env.BP_DSN} {\nstatement_timeout soon\n}" + seal, `"soon" is not a duration`},
		{"unknown", "store postgres {env.BP_DSN} {\nschema x\n}" + seal, `no subdirective "schema": it takes connect_timeout, max_connections, statement_timeout`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := loadError(t, global(tc.in))
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "CANARY") {
				t.Errorf("error %v, want one with %q and no password", err, tc.want)
			}
		})
	}
	// There is no server at that address: checking a config connects to nothing.
	if err := loadError(t, global("store postgres {env.BP_DSN} {\nmax_connections 4\nstatement_timeout 2s\nconnect_timeout 1s\n}"+seal)); err != nil {
		t.Errorf("a valid config: %v", err)
	}
}

// loadError is what "caddy validate" says.
func loadError(t *testing.T, in string) error {
	t.Helper()
	raw, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(in), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	return validateJSON(t, raw)
}

func TestPostgresResource(t *testing.T) {
	resource := func(dsn string, conns int) string {
		t.Helper()
		t.Setenv("DATABASE_URL", dsn)
		p := &PostgresStorage{DSN: "{env.DATABASE_URL}", MaxConnections: conns}
		if err := p.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		name, err := p.Resource()
		if err != nil || strings.Contains(name, "CANARY") || strings.Contains(name, "portal:") {
			t.Errorf("%s is called %q, %v", dsn, name, err)
		}
		return name
	}
	const a = "postgres://portal:CANARY1@db1:5433,db2:5434/billing"
	first := resource(a, 0)
	if !strings.HasPrefix(first, "postgres db1:5433,db2:5434/billing (") {
		t.Errorf("it is called %q", first)
	}
	if resource(a, 0) != first {
		t.Error("one connection string has two names")
	}
	for what, other := range map[string]string{
		"password":  resource(strings.Replace(a, "CANARY1", "CANARY2", 1), 0),
		"database":  resource(strings.Replace(a, "billing", "other", 1), 0),
		"host":      resource(strings.Replace(a, "db2", "db3", 1), 0),
		"pool size": resource(a, 5),
	} {
		if other == first {
			t.Errorf("with another %s it has the same name %q", what, other)
		}
	}
}

// TestPostgres takes a portal through reloads: its session goes on, and what
// the store is not opened for again stays open.
func TestPostgres(t *testing.T) {
	srv := pgtest.Start(t)
	setPostgres(t, srv.DSN(srv.Database(t)))
	dir := t.TempDir()
	before := opened.Load()
	server(t, postgresConfig(dir, ""))
	const origin = "http://localhost:9080"
	b := enter(t, origin, testKey)
	signedIn := func(when string) {
		t.Helper()
		if status, _, err := get(b, origin+"/"); err != nil || status != http.StatusOK {
			t.Errorf("%s: %d %v", when, status, err)
		}
	}
	signedIn("at first")
	if status, body := load(t, postgresConfig(dir, " {\n}")); status != http.StatusOK {
		t.Fatalf("reload: %d %s", status, body)
	}
	signedIn("after a reload")
	if n := opened.Load() - before; n != 2 { // the portal's and the sandbox's
		t.Errorf("%d stores were opened, want 2", n)
	}
	if status, body := load(t, postgresConfig(dir, " {\nmax_connections 3\n}")); status != http.StatusOK {
		t.Fatalf("reload with another pool: %d %s", status, body)
	}
	signedIn("with another pool")
	if n := opened.Load() - before; n != 3 {
		t.Errorf("%d stores were opened, want 3: another pool size is another pool", n)
	}
	// A config whose database does not answer is refused, and the old one goes
	// on.
	t.Setenv("DATABASE_URL", "postgres://portal:CANARY@127.0.0.1:1/none?sslmode=disable")
	status, body := load(t, postgresConfig(dir, ""))
	if status == http.StatusOK || !strings.Contains(body, "127.0.0.1:1/none") || strings.Contains(body, "CANARY") {
		t.Errorf("a database that does not answer: %d %s", status, body)
	}
	signedIn("after a config that was refused")
	// The server is restarted under the portal. Links from before are refused,
	// sessions stay.
	link, err := mint(http.DefaultClient, origin, testKey, "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Stop(pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	if status, _, err := get(b, origin+"/"); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("a page while the server is down: %d %v, want 503", status, err)
	}
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	signedIn("after the server was restarted")
	if status, _, err := get(browser(t), link); err != nil || status != http.StatusGone {
		t.Errorf("a link from before the restart: %d %v, want 410", status, err)
	}
	enter(t, origin, testKey)
}

// TestPostgresSecrets reads everything a Caddy prints: the password is not in
// it, and a connection that anybody can read is warned of.
func TestPostgresSecrets(t *testing.T) {
	srv := pgtest.Start(t)
	ports := freePorts(t, 2)
	dir := t.TempDir()
	file := filepath.Join(dir, "Caddyfile")
	write(t, file, fmt.Sprintf("{\nadmin localhost:%d\nbilling_portal {\nstore postgres {env.DATABASE_URL}\nseal_key {env.BP_SEAL}\n}\n}\n%s", ports[1], siteBlock(dir, ports[0], "")))
	dsn := strings.Replace(srv.DSN(srv.Database(t)), "postgres@", "postgres:CANARY@", 1)
	p := start(t, []string{"BP_KEY=" + testKey, "BP_SEAL=" + strings.Repeat("5a", 32), "DATABASE_URL=" + dsn}, "run", "--config", file)
	origin := fmt.Sprintf("http://localhost:%d", ports[0])
	waitFor(t, p, origin)
	enter(t, origin, testKey)
	if err := srv.Kill(); err != nil { // says more than anything
		t.Fatal(err)
	}
	eventually(t, func() error {
		if !strings.Contains(p.stderr.String(), "PostgreSQL cannot be reached") {
			return fmt.Errorf("nothing in the log")
		}
		return nil
	})
	status, config, err := get(http.DefaultClient, fmt.Sprintf("http://localhost:%d/config/", ports[1]))
	if err != nil || status != http.StatusOK || !strings.Contains(config, "{env.DATABASE_URL}") {
		t.Errorf("/config/: %d %v", status, err)
	}
	p.end(t, syscall.SIGTERM)
	log := p.stderr.String()
	if strings.Contains(log+config, "CANARY") {
		t.Errorf("the password is in the log or the config:\n%s", log)
	}
	if !strings.Contains(log, fmt.Sprintf("postgres 127.0.0.1:%d/", srv.Port)) {
		t.Errorf("the log does not say which database it is:\n%s", log)
	}
	if strings.Contains(log, "sslmode=verify-full") {
		t.Errorf("warned of a connection that stays on this machine")
	}
}
