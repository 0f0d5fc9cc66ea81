package caddymodule

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// caddyProcess is a Caddy of its own: this test binary run as one.
type caddyProcess struct {
	*exec.Cmd
	home   string
	stdout io.ReadCloser
	stderr *logText
	exit   chan error
}

type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs "caddy <args>" with a home directory of its own.
func start(t *testing.T, env []string, args ...string) *caddyProcess {
	t.Helper()
	p := &caddyProcess{home: t.TempDir(), stderr: new(logText), exit: make(chan error, 1)}
	p.Cmd = exec.Command(executable(t), args...)
	p.Env = append([]string{asCaddy + "=1", "HOME=" + p.home, "TMPDIR=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}, env...)
	p.Stderr = p.stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout, p.Stdout = r, w
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() { p.exit <- p.Wait() }()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = r.Close()
	})
	return p
}

// end sends a signal and waits for the process to go by itself.
func (p *caddyProcess) end(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.exit:
		if err != nil {
			t.Errorf("caddy ended with %v\n%s", err, p.stderr)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("caddy did not end\n%s", p.stderr)
	}
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = portOf(l)
	}
	return ports
}

// TestGracefulExit ends Caddy while it mints a link: the link is delivered,
// and the store is closed so cleanly that the next start begins no new
// generation and the session goes on.
func TestGracefulExit(t *testing.T) {
	dir := t.TempDir()
	ports := freePorts(t, 2)
	site := strings.Replace(siteBlock(dir, ports[0], ""), "provider sandbox", "provider slow", 1)
	file := filepath.Join(dir, "Caddyfile")
	write(t, file, fmt.Sprintf("{\nadmin localhost:%d\nbilling_portal {\nstore badger %s/store\n}\n}\n%s", ports[1], dir, site))
	env := []string{"BP_KEY=" + testKey}
	origin := fmt.Sprintf("http://localhost:%d", ports[0])

	first := start(t, env, "run", "--config", file)
	waitFor(t, first, origin)
	visitor := enter(t, origin, testKey)

	type answer struct {
		link string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		link, err := mint(&http.Client{Transport: new(http.Transport)}, origin, testKey, "cus_northwind")
		answers <- answer{link, err}
	}()
	time.Sleep(slowness / 3) // it is under way now
	first.end(t, syscall.SIGTERM)
	a := <-answers
	if a.err != nil || a.link == "" {
		t.Fatalf("the request in flight at the exit: %v\n%s", a.err, first.stderr)
	}

	second := start(t, env, "run", "--config", file)
	waitFor(t, second, origin)
	if s := second.stderr.String(); strings.Contains(s, "new store generation") {
		t.Errorf("the store was not closed cleanly:\n%s", s)
	}
	if status, _, err := get(visitor, origin+"/"); err != nil || status != http.StatusOK {
		t.Errorf("the session after a restart: %d %v", status, err)
	}
	if status, _, err := get(browser(t), a.link); err != nil || status != http.StatusOK {
		t.Errorf("the link from before the restart: %d %v", status, err)
	}
	second.end(t, os.Interrupt)
}

// TestSealKeyChanges changes the seal key as the docs say: a start with the new
// key and the old one as a previous key, and when the log says so, a start
// without the old one. Sessions go on.
func TestSealKeyChanges(t *testing.T) {
	dir := t.TempDir()
	ports := freePorts(t, 2)
	first, second := strings.Repeat("ca", 32), strings.Repeat("fe", 32)
	env := []string{"BP_KEY=" + testKey, "BP_ONE=" + first, "BP_TWO=" + second}
	origin := fmt.Sprintf("http://localhost:%d", ports[0])
	run := func(seal string) *caddyProcess {
		file := filepath.Join(dir, "Caddyfile")
		write(t, file, fmt.Sprintf("{\nadmin localhost:%d\nbilling_portal {\nstore badger %s/store\nseal_key %s\n}\n}\n%s", ports[1], dir, seal, siteBlock(dir, ports[0], "")))
		return start(t, env, "run", "--config", file)
	}
	// end returns what the process logged.
	end := func(p *caddyProcess) string {
		p.end(t, syscall.SIGTERM)
		log := p.stderr.String()
		if strings.Contains(log, first) || strings.Contains(log, second) {
			t.Errorf("the log shows a seal key:\n%s", log)
		}
		return log
	}
	const done = "can be taken out of seal_key"

	p := run("{env.BP_ONE}")
	waitFor(t, p, origin)
	visitor := enter(t, origin, testKey)
	if log := end(p); strings.Contains(log, done) {
		t.Errorf("there was no previous key:\n%s", log)
	}

	p = run("{env.BP_TWO}")
	select {
	case err := <-p.exit:
		if err == nil || !strings.Contains(p.stderr.String(), "give that key, as current or previous one") {
			t.Errorf("with the new key alone: %v\n%s", err, p.stderr)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the store opened with a foreign key")
	}

	p = run("{env.BP_TWO} {env.BP_ONE}")
	waitFor(t, p, origin)
	eventually(t, func() error {
		if log := p.stderr.String(); !strings.Contains(log, done) {
			return fmt.Errorf("the log does not say that the old key can go:\n%s", log)
		}
		return nil
	})
	if status, _, err := get(visitor, origin+"/"); err != nil || status != http.StatusOK {
		t.Errorf("the session under the new key: %d %v", status, err)
	}
	end(p)

	p = run("{env.BP_TWO}")
	waitFor(t, p, origin)
	if status, _, err := get(visitor, origin+"/"); err != nil || status != http.StatusOK {
		t.Errorf("the session without the old key: %d %v", status, err)
	}
	end(p)
}

// waitFor waits until the server answers at all.
func waitFor(t *testing.T, p *caddyProcess, origin string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		res, err := http.Get(origin + "/")
		if err == nil {
			_ = res.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v\n%s", origin, err, p.stderr)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestSecretsStayInside runs Caddy with secrets that can be recognised and
// looks for them wherever Caddy writes: its config endpoint, autosave.json,
// process and access logs, answers to refused configs.
func TestSecretsStayInside(t *testing.T) {
	dir := t.TempDir()
	ports := freePorts(t, 2)
	apiKey, stripeKey, sealKey := "bpk_CANARY0123456789abcdef", "rk_test_CANARY0123456789abcdef", strings.Repeat("ca", 32)
	env := []string{"BP_KEY=" + apiKey, "BP_STRIPE=" + stripeKey, "BP_SEAL=" + sealKey}
	access := filepath.Join(dir, "access.log")
	admin, origin := fmt.Sprintf("http://localhost:%d", ports[1]), fmt.Sprintf("http://localhost:%d", ports[0])
	cfg := fmt.Sprintf("{\ndebug\nadmin localhost:%d\nbilling_portal {\nstore badger %s/store\nseal_key {env.BP_SEAL}\n}\n}\n", ports[1], dir) +
		strings.Replace(siteBlock(dir, ports[0], ""), "{\n", "{\nlog {\noutput file "+access+"\n}\n", 1) +
		// Nothing listens there: a provider that cannot be reached is no error.
		"http://127.0.0.1:" + fmt.Sprint(ports[0]) + " {\nbilling_portal {\norigin http://127.0.0.1:" + fmt.Sprint(ports[0]) +
		"\nprovider stripe {\napi_key {env.BP_STRIPE}\nbase_url http://127.0.0.1:1\n}\napi_key {env.BP_KEY}\nreturn_to http://localhost:3000/\nbrand {\nname Acme\n}\n}\n}\n"
	file := filepath.Join(dir, "Caddyfile")
	write(t, file, cfg)
	p := start(t, env, "run", "--config", file)
	waitFor(t, p, origin)

	link, err := mint(http.DefaultClient, origin, apiKey, "cus_northwind")
	if err != nil {
		t.Fatal(err)
	}
	b := browser(t)
	if status, _, err := get(b, link); err != nil || status != http.StatusOK {
		t.Fatalf("entering: %d %v", status, err)
	}
	if _, err := mint(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d", ports[0]), apiKey, "cus_x"); err == nil {
		t.Error("minting without a provider succeeded")
	}
	if _, err := mint(http.DefaultClient, origin, stripeKey, "cus_northwind"); err == nil {
		t.Error("minting with Stripe's key succeeded")
	}
	for link, want := range map[string]int{link: http.StatusGone, link + "x": http.StatusUnauthorized} {
		if status, _, err := get(browser(t), link); err != nil || status != want {
			t.Errorf("a bad link: %d %v, want %d", status, err, want)
		}
	}

	secrets := []string{"CANARY", sealKey}
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, u.Query().Get("token"))
	cookies := b.Jar.Cookies(u)
	if len(cookies) == 0 {
		t.Fatal("no session cookie")
	}
	for _, c := range cookies {
		secrets = append(secrets, c.Value)
	}
	check := func(where, text string) {
		t.Helper()
		if text == "" {
			t.Errorf("%s is empty, so it shows nothing", where)
		}
		for _, s := range secrets {
			if i := strings.Index(text, s); i >= 0 {
				t.Errorf("%s shows a secret: …%s…", where, text[max(0, i-200):min(len(text), i+60)])
			}
		}
	}
	_, running, err := get(http.DefaultClient, admin+"/config/")
	if err != nil {
		t.Fatal(err)
	}
	check("/config/", running)
	if !strings.Contains(running, "{env.BP_STRIPE}") {
		t.Errorf("the running config is not this one: %s", running)
	}
	for _, bad := range []string{
		strings.ReplaceAll(cfg, "{env.BP_STRIPE}", stripeKey),
		strings.ReplaceAll(cfg, "{env.BP_KEY}", apiKey),
		strings.ReplaceAll(cfg, "seal_key {env.BP_SEAL}", "seal_key {env.BP_KEY}"), // no seal key
		strings.ReplaceAll(cfg, "{env.BP_STRIPE}", "{env.BP_KEY}"),                 // no Stripe key
	} {
		status, body := loadAt(t, admin, bad)
		if status == http.StatusOK {
			t.Error("a bad config was taken")
		}
		check("the answer to a refused config", body)
	}
	p.end(t, syscall.SIGTERM)
	saved, err := os.ReadFile(filepath.Join(p.home, ".config", "caddy", "autosave.json"))
	if err != nil {
		t.Fatal(err)
	}
	check("autosave.json", string(saved))
	check("the process log", p.stderr.String())
	logged, err := os.ReadFile(access)
	if err != nil {
		t.Fatal(err)
	}
	check("the access log", string(logged))
	if strings.Contains(string(logged), "/enter") || !strings.Contains(string(logged), "/v1/billing_portal/sessions") {
		t.Errorf("the access log must have the minting and no /enter:\n%s", logged)
	}
}

// demoProcess starts the demo and reads its one line.
func demoProcess(t *testing.T, args ...string) (*caddyProcess, demoReady) {
	t.Helper()
	p := start(t, nil, append([]string{"billing-portal", "demo", "--listen", "localhost:0", "--json"}, args...)...)
	var ready demoReady
	line, err := bufio.NewReader(p.stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("reading the demo's line: %v\n%s", err, p.stderr)
	}
	if err := json.Unmarshal([]byte(line), &ready); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return p, ready
}

// TestDemo walks from the vendor's app into the portal and back, tries the
// control door, and sees that the demo leaves nothing behind.
func TestDemo(t *testing.T) {
	p, ready := demoProcess(t)
	if len(ready.Customers) == 0 || ready.APIKey == "" {
		t.Fatalf("ready with %+v", ready)
	}
	b := browser(t)
	res, err := b.PostForm(ready.VendorApp+"/signin", url.Values{"email": {ready.Customers[0].Email}})
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusForbidden { // our browser says same-site, which a form of the app is not
		t.Errorf("a form from another origin: %s, want 403", res.Status)
	}
	signIn := &http.Client{Jar: b.Jar}
	if res, err = signIn.PostForm(ready.VendorApp+"/signin", url.Values{"email": {ready.Customers[0].Email}}); err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	status, body, err := get(b, ready.VendorApp+"/settings")
	if err != nil || status != http.StatusOK || !strings.Contains(body, `<a href="/billing">Billing &amp; payment</a>`) {
		t.Fatalf("settings: %d %v\n%s", status, err, body)
	}
	status, body, err = get(b, ready.VendorApp+"/billing")
	if err != nil || status != http.StatusOK || !strings.Contains(body, ready.Customers[0].Name) || !strings.Contains(body, ready.VendorApp+"/settings") {
		t.Fatalf("billing: %d %v\n%s", status, err, body)
	}

	for _, path := range []string{"/effects", "/intents"} {
		var list []any
		status, body, err := get(http.DefaultClient, ready.Control+path)
		if err != nil || status != http.StatusOK || json.Unmarshal([]byte(body), &list) != nil || len(list) > 0 {
			t.Errorf("control%s: %d %v %s, want an empty list", path, status, err, body)
		}
	}
	door, err := url.Parse(ready.Control)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		url, host, origin string
		want              int
	}{
		{"http://" + door.Host + "/effects", "", "", http.StatusNotFound},
		{ready.Control + "/effects", "evil.example.com", "", http.StatusForbidden},
		{ready.Control + "/effects", "", ready.VendorApp, http.StatusForbidden},
	} {
		req, err := http.NewRequest(http.MethodGet, tc.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tc.host
		if tc.origin != "" {
			req.Header.Set("Origin", tc.origin)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != tc.want {
			t.Errorf("control with host %q, origin %q: %s, want %d", tc.host, tc.origin, res.Status, tc.want)
		}
	}
	if _, err := http.Get("http://localhost:2019/config/"); err == nil {
		t.Log("something else has an admin endpoint on port 2019 on this machine")
	}

	p.end(t, os.Interrupt)
	if rest, err := io.ReadAll(p.stdout); err != nil || len(rest) > 0 {
		t.Errorf("more on standard output: %q %v", rest, err)
	}
	tmp := ""
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, "TMPDIR="); ok {
			tmp = v
		}
	}
	for where, dir := range map[string]string{"home": p.home, "the temporary directory": tmp} {
		if left := filesIn(t, dir); len(left) > 0 {
			t.Errorf("the demo left in %s: %q", where, left)
		}
	}
	if strings.Contains(p.stderr.String(), ready.APIKey) || strings.Contains(p.stderr.String(), `"level":"error"`) {
		t.Errorf("the demo's log:\n%s", p.stderr)
	}
}

// TestDemoKeepsData holds that --data-dir is kept between runs, and that a
// second demo on the same directory says why it cannot run.
func TestDemoKeepsData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, ready := demoProcess(t, "--data-dir", dir)
	res, err := http.Post(ready.Control+"/clock", "application/json", strings.NewReader(`{"advance":"2400h"}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	_, before, err := get(http.DefaultClient, ready.Control+"/effects")
	if err != nil || strings.Count(before, `"seq"`) == 0 {
		t.Fatalf("a hundred days later nothing has happened: %s %v", before, err)
	}
	other := start(t, nil, "billing-portal", "demo", "--listen", "localhost:0", "--data-dir", dir)
	select {
	case err := <-other.exit:
		if err == nil || !strings.Contains(other.stderr.String(), "in use") && !strings.Contains(other.stderr.String(), "another running") {
			t.Errorf("a second demo: %v\n%s", err, other.stderr)
		}
	case <-time.After(20 * time.Second):
		t.Error("a second demo runs on the same directory")
	}
	first.end(t, syscall.SIGTERM)
	second, ready := demoProcess(t, "--data-dir", dir)
	_, after, err := get(http.DefaultClient, ready.Control+"/effects")
	if err != nil || after != before {
		t.Errorf("effects after a restart (%v):\n%s\nwant\n%s", err, after, before)
	}
	second.end(t, syscall.SIGTERM)
	if len(filesIn(t, dir)) == 0 {
		t.Error("nothing was kept")
	}
}

// TestDemoSaysWhereToBegin holds that people read the vendor app's URL last: at
// the portal itself they would only read that they are not signed in.
func TestDemoSaysWhereToBegin(t *testing.T) {
	var out strings.Builder
	ready := demoReady{VendorApp: "http://localhost:8421", Portal: "http://localhost:8420", APIKey: "bpk_CANARY"}
	if err := (demoOptions{out: &out}).announce(ready); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if last := text[max(0, strings.LastIndex(text, "http://")):]; strings.TrimSpace(last) != ready.VendorApp || !strings.Contains(text, ready.Portal) || strings.Contains(text, "CANARY") {
		t.Errorf("the last URL must be the vendor app's:\n%s", text)
	}
}

// TestDemoHelp holds what --data-dir says it does not keep.
func TestDemoHelp(t *testing.T) {
	p := start(t, nil, "billing-portal", "demo", "--help")
	out, err := io.ReadAll(p.stdout)
	if err != nil || <-p.exit != nil {
		t.Fatalf("demo --help: %v\n%s", err, p.stderr)
	}
	_, flag, _ := strings.Cut(string(out), "--data-dir string")
	flag, _, _ = strings.Cut(flag, "--json")
	if !strings.Contains(strings.Join(strings.Fields(flag), " "), "sign-ins end with the demo") {
		t.Errorf("--data-dir does not say that sign-ins are not kept:\n%s", out)
	}
}

// TestDemoFlags holds that the demo stays on this machine.
func TestDemoFlags(t *testing.T) {
	for listen, want := range map[string]string{
		"0.0.0.0:8420": "listens on this machine only", "example.com:80": "listens on this machine only",
		"8420": "want host:port", "localhost:http": "want a port",
	} {
		if _, err := demoHost(listen); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--listen %s: %v, want %q", listen, err, want)
		}
	}
	for _, listen := range []string{"localhost:0", "127.0.0.1:8420", "[::1]:8420", ":8420"} {
		if _, err := demoHost(listen); err != nil {
			t.Errorf("--listen %s: %v", listen, err)
		}
	}
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := freePort(l.Addr().String(), false); err == nil {
		t.Error("a port that is taken was chosen")
	}
	if got, err := freePort(l.Addr().String(), true); err != nil || got == portOf(l) {
		t.Errorf("picking another port: %d %v", got, err)
	}
}

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != dir {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clip(files)
}
