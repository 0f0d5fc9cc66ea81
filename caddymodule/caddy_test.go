package caddymodule

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddytest"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const testKey = "bpk_test_0123456789abcdefghij"

// options are the global options that caddytest needs.
const options = "admin localhost:2999\nhttp_port 9080\nhttps_port 9443\nskip_install_trust\n"

// config is a Caddyfile with one portal on port 9080 and the data in dir.
func config(dir, more string) string {
	return "{\n" + options + "billing_portal {\nstore badger " + dir + "/store\n}\n}\n" + siteBlock(dir, 9080, more)
}

func siteBlock(dir string, port int, more string) string {
	return fmt.Sprintf(`http://localhost:%d {
	billing_portal {
		origin http://localhost:%d
		provider sandbox {
			data_dir %s/sandbox
		}
		api_key {env.BP_KEY}
		return_to http://localhost:3000/settings
		brand {
			name Acme
		}
		%s
	}
}
`, port, port, dir, more)
}

// server starts the Caddy of this test process with a config.
func server(t *testing.T, cfg string) *caddytest.Tester {
	t.Helper()
	t.Setenv("BP_KEY", testKey)
	tester := caddytest.NewTester(t)
	tester.InitServer(cfg, "caddyfile")
	if res, err := http.Get("http://localhost:2999/config/"); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("caddytest did not start Caddy (it skips in silence under -short and -trimpath): %v", err)
	} else {
		_ = res.Body.Close()
	}
	t.Cleanup(func() { // lets go of the store before the directory is removed
		if status, body := load(t, "{\n"+options+"}\n"); status != http.StatusOK {
			t.Errorf("loading an empty config: %d %s", status, body)
		}
		// A handler can still be at work when its response has arrived, and then
		// it is the last to let go.
		eventually(t, func() error {
			if n := opened.Load() - closed.Load(); n != 0 {
				return fmt.Errorf("%d stores are still open", n)
			}
			return nil
		})
	})
	return tester
}

// load does what "caddy reload" does.
func load(t *testing.T, cfg string) (status int, body string) {
	t.Helper()
	return loadAt(t, "http://localhost:2999", cfg)
}

// loadAt may send a config twice: every load, refused ones too, replaces the
// admin endpoint's server, which can cut a connection.
func loadAt(t *testing.T, admin, cfg string) (status int, body string) {
	t.Helper()
	c := &http.Client{Transport: &retries{RoundTripper: &http.Transport{DisableKeepAlives: true}}}
	res, err := c.Post(admin+"/load", "text/caddyfile", strings.NewReader(cfg))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// mint asks for a link as a vendor's backend does.
func mint(c *http.Client, origin, key, customer string) (string, error) {
	req, err := http.NewRequest(http.MethodPost, origin+"/v1/billing_portal/sessions", strings.NewReader(url.Values{"customer": {customer}}.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Idempotency-Key", rand.Text())
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var s struct{ URL string }
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("minting: %s %s", res.Status, body)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return "", fmt.Errorf("minting: %s: %w", body, err)
	}
	if s.URL == "" {
		return "", fmt.Errorf("minting: no url in %s", body)
	}
	return s.URL, nil
}

// browser is a client with cookies that navigates as a browser does.
func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, Transport: navigation{new(http.Transport)}, Timeout: 30 * time.Second}
}

type navigation struct{ http.RoundTripper }

func (n navigation) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Dest", "document")
	r.Header.Set("Sec-Fetch-Site", "same-site")
	return n.RoundTripper.RoundTrip(r)
}

func get(c *http.Client, u string) (status int, body string, err error) {
	res, err := c.Get(u)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// enter opens a portal with a fresh link and returns the browser in it.
func enter(t *testing.T, origin, key string) *http.Client {
	t.Helper()
	link, err := mint(http.DefaultClient, origin, key, "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	b := browser(t)
	status, body, err := get(b, link)
	if err != nil || status != http.StatusOK || !strings.Contains(body, "Northwind Ltd") {
		t.Fatalf("entering: %d %v\n%s", status, err, body)
	}
	return b
}

// TestOverview walks from an API key to the overview in a real Caddy, and sees
// that the link is good once and the card page is where it belongs.
func TestOverview(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	link, err := mint(http.DefaultClient, "http://localhost:9080", testKey, "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	b := browser(t)
	status, body, err := get(b, link)
	if err != nil || status != http.StatusOK || !strings.Contains(body, "Next payment") || !strings.Contains(body, "Northwind Ltd") {
		t.Fatalf("overview: %d %v\n%s", status, err, body)
	}
	if status, _, err := get(browser(t), link); err != nil || status != http.StatusGone {
		t.Errorf("the same link again: %d %v, want 410", status, err)
	}
	if _, err := mint(http.DefaultClient, "http://localhost:9080", "bpk_wrong_0123456789abcdef", "cus_northwind"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("minting with a wrong key: %v, want 401", err)
	}
	if status, _, err := get(b, "http://localhost:9080/_sandbox/style.css"); err != nil || status != http.StatusOK {
		t.Errorf("the sandbox's pages: %d %v", status, err)
	}
	req, err := http.NewRequest(http.MethodGet, "http://localhost:9080/_sandbox/style.css", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "localhost:9081"
	if res, err := http.DefaultClient.Do(req); err != nil {
		t.Error(err)
	} else {
		_ = res.Body.Close()
		if res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("the sandbox's pages under another host: %s", res.Status)
		}
	}
}

// TestWithoutGlobalOption holds that the app works with defaults.
func TestWithoutGlobalOption(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	server(t, "{\n"+options+"}\n"+siteBlock(dir, 9080, ""))
	enter(t, "http://localhost:9080", testKey)
	key := filepath.Join(dir, "caddy", "billing_portal", "store.seal_key")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("generated seal key: %v %v, want mode 0600", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "caddy", "billing_portal", "store", "MANIFEST")); err != nil {
		t.Errorf("the store in the default directory: %v", err)
	}
}

// TestTwoSites serves two tenants out of one store and keeps them apart.
func TestTwoSites(t *testing.T) {
	dir := t.TempDir()
	before := opened.Load()
	server(t, config(dir, "")+siteBlock(dir, 9081, ""))
	if n := opened.Load() - before; n != 2 { // the portal's store and the ledger
		t.Errorf("%d stores were opened, want 2", n)
	}
	one, two := enter(t, "http://localhost:9080", testKey), enter(t, "http://localhost:9081", testKey)
	for c, origin := range map[*http.Client]string{one: "http://localhost:9080", two: "http://localhost:9081"} {
		if status, _, err := get(c, origin+"/"); err != nil || status != http.StatusOK {
			t.Errorf("%s: %d %v", origin, status, err)
		}
	}
	link, err := mint(http.DefaultClient, "http://localhost:9080", testKey, "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	foreign := strings.Replace(link, "9080", "9081", 1)
	if status, _, err := get(browser(t), foreign); err != nil || status != http.StatusUnauthorized {
		t.Errorf("a link at the other tenant: %d %v, want 401", status, err)
	}
}

// TestSharedDirectory holds that neither takes the other's directory.
func TestSharedDirectory(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	b := enter(t, "http://localhost:9080", testKey)
	same := strings.Replace(config(dir, ""), dir+"/sandbox", dir+"/store", 1)
	if status, body := load(t, same); status == http.StatusOK || !strings.Contains(body, "give the sandbox a data_dir of its own") {
		t.Errorf("sandbox in the portal's directory: %d %s", status, body)
	}
	other := strings.Replace(config(dir, ""), dir+"/store", dir+"/sandbox", 1)
	if status, body := load(t, other); status == http.StatusOK || !strings.Contains(body, "is a sandbox's ledger") {
		t.Errorf("portal in the sandbox's directory: %d %s", status, body)
	}
	t.Setenv("BP_SEAL", strings.Repeat("5a", 32))
	sealed := strings.Replace(config(dir, ""), "billing_portal {\n", "billing_portal {\nseal_key {env.BP_SEAL}\n", 1)
	if status, body := load(t, sealed); status == http.StatusOK || !strings.Contains(body, "open with another seal key") || strings.Contains(body, "5a5a") {
		t.Errorf("another seal key: %d %s", status, body)
	}
	if status, _, err := get(b, "http://localhost:9080/"); err != nil || status != http.StatusOK {
		t.Errorf("after three rejected configs: %d %v", status, err)
	}
}

// TestResealEndsBeforeClose holds that sealing anew ends with its store.
func TestResealEndsBeforeClose(t *testing.T) {
	begun := make(chan struct{})
	var ended, closedAfter atomic.Bool
	open := func(string, *store.Sealer, *zap.Logger) (OpenStore, error) {
		return OpenStore{
			Reseal: func(ctx context.Context) (int, error) {
				close(begun)
				<-ctx.Done()
				time.Sleep(20 * time.Millisecond)
				ended.Store(true)
				return 0, ctx.Err()
			},
			Close: func() error { closedAfter.Store(ended.Load()); return nil },
		}, nil
	}
	key, old := bytes.Repeat([]byte{2}, store.SealKeySize), bytes.Repeat([]byte{1}, store.SealKeySize)
	if _, err := acquire(t.Name(), key, [][]byte{old}, open); err != nil {
		t.Fatal(err)
	}
	// A reload that takes the old key out shares the store.
	if _, err := acquire(t.Name(), key, nil, open); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := errors.Join(release(t.Name()), release(t.Name())); err != nil {
		t.Fatal(err)
	}
	if !closedAfter.Load() {
		t.Error("the store was closed while it was sealing")
	}
}

// TestLostSealKeyFile holds that a generated key that is gone is not replaced:
// what it sealed could not be read, and nobody would know why.
func TestLostSealKeyFile(t *testing.T) {
	dir := t.TempDir()
	server(t, config(dir, ""))
	enter(t, "http://localhost:9080", testKey)
	for name, want := range map[string]string{"store": "set seal_key", "sandbox": "remove the directory to begin anew"} {
		key := filepath.Join(dir, name+".seal_key")
		if err := os.Rename(key, key+".away"); err != nil {
			t.Fatal(err)
		}
		if status, body := load(t, "{\n"+options+"}\n"); status != http.StatusOK {
			t.Fatalf("an empty config: %d %s", status, body)
		}
		if status, body := load(t, config(dir, "")); status == http.StatusOK || !strings.Contains(body, "restore "+key+", or "+want) {
			t.Errorf("%s without its key file: %d %s", name, status, body)
		}
		if _, err := os.Stat(key); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: another key was made: %v", name, err)
		}
		if err := os.Rename(key+".away", key); err != nil {
			t.Fatal(err)
		}
		if status, body := load(t, config(dir, "")); status != http.StatusOK {
			t.Errorf("%s with its key file again: %d %s", name, status, body)
		}
	}
	// A fresh file system is no store.
	fresh := t.TempDir()
	if err := os.MkdirAll(filepath.Join(fresh, "store", "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if status, body := load(t, config(fresh, "")); status != http.StatusOK {
		t.Errorf("on a fresh file system: %d %s", status, body)
	}
}

// TestSymbolicLinks holds that a directory is one whatever it is called: a
// second open would find it locked.
func TestSymbolicLinks(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "real"), 0o700), os.Symlink(filepath.Join(dir, "real"), link)); err != nil {
		t.Fatal(err)
	}
	before := opened.Load()
	server(t, config(link, ""))
	b := enter(t, "http://localhost:9080", testKey)
	for _, cfg := range []string{config(link, "account_max_age 9s"), config(filepath.Join(dir, "real"), ""), config(dir+"/./link/../link", "")} {
		if status, body := load(t, cfg); status != http.StatusOK {
			t.Errorf("%d %s", status, body)
		}
	}
	if n := opened.Load() - before; n != 2 {
		t.Errorf("%d stores were opened, want 2", n)
	}
	if status, _, err := get(b, "http://localhost:9080/"); err != nil || status != http.StatusOK {
		t.Errorf("the session after the reloads: %d %v", status, err)
	}
}

// TestReloads reloads a hundred times under load, each time with another
// config, some of which are refused, and checks configs beside it as
// operators do.
func TestReloads(t *testing.T) {
	const reloads = 100
	dir := t.TempDir()
	before := opened.Load()
	idle := portalGoroutines()
	server(t, config(dir, "")+plainSite)
	origin := "http://localhost:9080"
	visitor := enter(t, origin, testKey)
	if n := portalGoroutines(); n <= idle {
		t.Fatalf("%d portal goroutines with a portal, %d without: the count shows nothing", n, idle)
	}
	settled := portalGoroutines()
	total := runtime.NumGoroutine()

	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var requests, links, failures atomic.Int64
	fail := func(format string, args ...any) {
		if failures.Add(1) <= 10 {
			t.Errorf(format, args...)
		}
	}
	cut := &retries{RoundTripper: visitor.Transport}
	visitor.Transport = cut
	for range 2 {
		clients.Go(func() {
			for ctx.Err() == nil {
				status, body, err := get(visitor, origin+"/")
				if err != nil || status != http.StatusOK || !strings.Contains(body, "Northwind Ltd") {
					fail("overview under reload: %d %v", status, err)
				}
				requests.Add(1)
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	cutFresh := &retries{RoundTripper: &http.Transport{DisableKeepAlives: true}}
	clients.Go(func() {
		for ctx.Err() == nil {
			if _, err := mint(&http.Client{Transport: cutFresh}, origin, testKey, "cus_globex"); err != nil {
				fail("minting under reload: %v", err)
			}
			links.Add(1)
			time.Sleep(10 * time.Millisecond)
		}
	})
	// A site without a portal beside it, for comparison.
	cutPlain := &retries{RoundTripper: &http.Transport{DisableKeepAlives: true}}
	var plain atomic.Int64
	clients.Go(func() {
		for ctx.Err() == nil {
			if status, _, err := get(&http.Client{Transport: cutPlain}, "http://localhost:9082/"); err != nil || status != http.StatusOK {
				fail("the plain site under reload: %d %v", status, err)
			}
			plain.Add(1)
			time.Sleep(10 * time.Millisecond)
		}
	})
	// "caddy validate" in a process of its own, beside the running store.
	file := filepath.Join(dir, "Caddyfile")
	write(t, file, config(dir, "account_max_age 7s"))
	var validated atomic.Int64
	clients.Go(func() {
		for ctx.Err() == nil {
			cmd := exec.CommandContext(t.Context(), executable(t), "validate", "--config", file)
			cmd.Env = append(os.Environ(), asCaddy+"=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				fail("caddy validate beside the server: %v\n%s", err, out)
			}
			validated.Add(1)
			time.Sleep(time.Second)
		}
	})

	var taken, refused int
	for i := range reloads {
		cfg := config(dir, fmt.Sprintf("account_max_age %ds", 10+i)) + plainSite
		want := http.StatusOK
		switch i % 10 {
		case 3: // refused while it is parsed
			cfg, want = config(dir, fmt.Sprintf("account_max_age %ds\npolicy {\nallow everything\n}", 10+i))+plainSite, http.StatusBadRequest
		case 5: // refused while it is provisioned
			cfg, want = config(dir, fmt.Sprintf("account_max_age %ds\napi_key {env.BP_NOT_SET}", 10+i))+plainSite, http.StatusBadRequest
		case 7: // refused when the app starts: the ledger has no such price
			cfg, want = config(dir, fmt.Sprintf("account_max_age %ds\ncatalogue {\nplan x {\nprices no_such_price\n}\n}", 10+i))+plainSite, http.StatusBadRequest
		}
		status, body := loadAny(t, cfg)
		if status != want {
			t.Fatalf("reload %d: %d %s, want %d", i, status, body, want)
		}
		if status == http.StatusOK {
			taken++
		} else {
			refused++
		}
	}
	stop()
	clients.Wait()
	if requests.Load() < reloads || links.Load() < 10 || validated.Load() < 3 {
		t.Errorf("too little load to show anything: %d requests, %d links, %d validations", requests.Load(), links.Load(), validated.Load())
	}
	if n := opened.Load() - before; n != 2 { // the portal's store and the ledger
		t.Errorf("%d stores were opened, want 2: each once", n)
	}
	t.Logf("%d reloads: %d provisioned and started, %d refused; %d overviews and %d links minted meanwhile, %d failed; caddy validate ran %d times beside it; stores opened: %d (portal, sandbox)",
		reloads, taken, refused, requests.Load(), links.Load(), failures.Load(), validated.Load(), opened.Load()-before)
	t.Logf("connections that Caddy's server cut before it read a request, made again by the client: %d of %d overviews (kept alive), %d of %d links (fresh); and %d of %d at a plain respond site (fresh)",
		cut.n.Load(), requests.Load(), cutFresh.n.Load(), links.Load(), cutPlain.n.Load(), plain.Load())
	if status, _, err := get(visitor, origin+"/"); err != nil || status != http.StatusOK {
		t.Errorf("the session after the reloads: %d %v", status, err)
	}
	eventually(t, func() error {
		if n := portalGoroutines(); n > settled {
			return fmt.Errorf("%d goroutines of the portal, %d before the reloads", n, settled)
		}
		http.DefaultClient.CloseIdleConnections()
		visitor.CloseIdleConnections()
		if n := runtime.NumGoroutine(); n > total+10 {
			return fmt.Errorf("%d goroutines, %d before the reloads", n, total)
		}
		return nil
	})
	t.Logf("goroutines: %d of the portal and %d in all before the reloads, %d and %d after", settled, total, portalGoroutines(), runtime.NumGoroutine())

	// Without a portal in the config, nothing of it stays.
	if status, body := load(t, "{\n"+options+"}\n"); status != http.StatusOK {
		t.Fatal(body)
	}
	eventually(t, func() error {
		if n := portalGoroutines(); n > idle {
			return fmt.Errorf("%d goroutines of the portal after it was taken out, %d before there was one", n, idle)
		}
		if n, ok := stores.References(filepath.Join(dir, "store")); ok || n != 0 {
			return fmt.Errorf("the store is still in use %d times", n)
		}
		return nil
	})
}

const plainSite = "http://localhost:9082 {\nrespond ok\n}\n"

// retries sends a request again whose connection ended before any answer, as
// browsers do with GET and Stripe's SDKs with POST (there is an
// Idempotency-Key). In a reload Caddy's listeners change, and net/http drops a
// connection that it accepted and not yet read from; no handler sees it.
type retries struct {
	http.RoundTripper
	n atomic.Int64
}

func (r *retries) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		res, err := r.RoundTripper.RoundTrip(req)
		if err == nil || try == 3 || req.Context().Err() != nil {
			return res, err
		}
		r.n.Add(1)
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// executable is this test binary. os.Args says "caddy" once caddytest ran.
func executable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// loadAny loads a config and reports a refusal by Caddy's admin endpoint,
// whatever its status, as 400.
func loadAny(t *testing.T, cfg string) (int, string) {
	t.Helper()
	status, body := load(t, cfg)
	if status >= 400 {
		status = http.StatusBadRequest
	}
	return status, body
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// portalGoroutines counts goroutines that run, or were started by, code of
// the portal or its store, without those of tests.
func portalGoroutines() int {
	buf := make([]byte, 8<<20)
	n := 0
	for g := range bytes.SplitSeq(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
		if bytes.Contains(g, []byte("_test.go")) {
			continue
		}
		if bytes.Contains(g, []byte("caddy-billing-portal")) || bytes.Contains(g, []byte("dgraph-io/badger")) {
			n++
		}
	}
	return n
}
