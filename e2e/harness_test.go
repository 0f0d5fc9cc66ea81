// Package e2e tests the real binary from outside: over HTTP, in a real browser
// and with the processes killed.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/e2e/browse"
)

// scratch holds what all tests share: the binaries.
var scratch string

func TestMain(m *testing.M) {
	if len(os.Getenv(fillVariable)) > 0 {
		fmt.Fprintln(os.Stderr, fillDisk(os.Getenv(fillVariable)))
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "portal-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	return m.Run()
}

// fillVariable makes the test binary fill the file it names instead of running
// tests: whoever fills a disk is another process.
const fillVariable = "PORTAL_E2E_FILL"

// fillSpeed is bytes per second: so much that the disk is full as soon as at
// 50 MB/s although the filler takes a moment to begin.
const fillSpeed = 60 << 20

// fillDisk writes to a file at fillSpeed until it is killed, and goes on trying
// when the disk is full.
func fillDisk(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	chunk, began := make([]byte, fillSpeed/100), time.Now()
	written := 0
	for range time.Tick(time.Second / 100) {
		for due := int(time.Since(began).Seconds() * fillSpeed); written < due; {
			_, err := f.Write(chunk)
			written += len(chunk)
			if errors.Is(err, syscall.ENOSPC) {
				written = due
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// binaries are built once and used by all tests.
var binaries sync.Map // name -> func() (string, error)

// binary builds a command of the project and returns its path.
func binary(t *testing.T, name, pkg string, flags ...string) string {
	t.Helper()
	build, _ := binaries.LoadOrStore(name, sync.OnceValues(func() (string, error) {
		out := filepath.Join(scratch, name)
		args := append([]string{"build", "-o", out}, flags...)
		cmd := exec.Command("go", append(args, pkg)...)
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", name, err, msg)
		}
		return out, nil
	}))
	path, err := build.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func caddyBinary(t *testing.T) string { return binary(t, "caddy", "./cmd/caddy") }

// unguardedBinary is Caddy without the amnesia guard, to show that single use
// rests on the store alone.
func unguardedBinary(t *testing.T) string {
	return binary(t, "caddy-noguard", "./cmd/caddy", "-tags", "portal_test_noguard")
}

func stripetestBinary(t *testing.T) string {
	return binary(t, "stripetest", "./portalcore/stripe/stripetest/cmd/stripetest")
}

// process is a program under test with what it printed.
type process struct {
	cmd    *exec.Cmd
	stderr *lockedBuffer
	line   chan string // the first line of stdout
	exited chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a program until the test ends.
func start(t *testing.T, env []string, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), stderr: &lockedBuffer{}, line: make(chan string, 1), exited: make(chan struct{})}
	// A home of its own, so that nothing is read from or left in the user's.
	home := t.TempDir()
	p.cmd.Env = append(os.Environ(), append([]string{"HOME=" + home, "XDG_DATA_HOME=" + home, "XDG_CONFIG_HOME=" + home}, env...)...)
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r := bufio.NewReader(out)
		s, _ := r.ReadString('\n')
		p.line <- s
		_, _ = io.Copy(io.Discard, r)
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			log := p.stderr.String()
			t.Logf("%s printed on stderr (its end):\n%s", filepath.Base(path), log[max(0, len(log)-6000):])
		}
	})
	return p
}

// kill is SIGKILL: the process gets no chance to put anything in order.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// stop asks the process to end and waits for it.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		t.Fatal("did not end within 20 s of SIGTERM")
	}
}

// ready waits for the line of JSON that says where things are.
func (p *process) ready(t *testing.T, into any) {
	t.Helper()
	select {
	case s := <-p.line:
		if err := json.Unmarshal([]byte(s), into); err != nil {
			t.Fatalf("the first line is not JSON: %q: %v\n%s", s, err, p.stderr.String())
		}
	case <-time.After(60 * time.Second):
		t.Fatalf("not ready within a minute:\n%s", p.stderr.String())
	}
}

// demo is a running demo.
type demo struct {
	*process
	VendorApp string `json:"vendor_app"`
	Portal    string `json:"portal"`
	APIKey    string `json:"api_key"`
	Control   string `json:"control"`
	Customers []struct{ ID, Email, Name string }
}

func startDemo(t *testing.T, bin string, args ...string) *demo {
	t.Helper()
	d := &demo{process: start(t, nil, bin, append([]string{"billing-portal", "demo", "--json"}, args...)...)}
	d.ready(t, d)
	return d
}

// freeAddr is an address on loopback that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port)
}

// control speaks to a control door.
func control(t *testing.T, door, path string, body any, into any) {
	t.Helper()
	method, payload := http.MethodGet, io.Reader(nil)
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		method, payload = http.MethodPost, bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, door+path, payload)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s %v", method, path, res.Status, raw, err)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatalf("%s: %v: %s", path, err, raw)
		}
	}
}

type effect struct {
	Time           time.Time `json:"time"`
	Customer       string    `json:"customer"`
	Kind           string    `json:"kind"`
	Object         string    `json:"object"`
	IdempotencyKey string    `json:"idempotency_key"`
}

// effects lists what the ledger applied under keys of the portal's intents.
func effects(t *testing.T, door, customer string) []effect {
	t.Helper()
	var all, own []effect
	control(t, door, "/effects", nil, &all)
	for _, e := range all {
		if e.Customer == customer && e.IdempotencyKey != "" {
			own = append(own, e)
		}
	}
	return own
}

func fault(t *testing.T, door, on, kind, latency string) {
	t.Helper()
	f := map[string]any{"on": on, "times": 1, "kind": kind}
	if latency != "" {
		f["latency"] = latency
	}
	control(t, door, "/fault", f, nil)
}

// mint makes a link the way a vendor's backend does. fields are further
// parameters, by name and value.
func mint(t *testing.T, portal, key, customer string, fields ...string) string {
	t.Helper()
	form := url.Values{"customer": {customer}}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	link, err := askForLink(t.Context(), portal, key, form)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func askForLink(ctx context.Context, portal, key string, form url.Values) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, portal+"/v1/billing_portal/sessions", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var s struct{ URL string }
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil || s.URL == "" {
		return "", fmt.Errorf("minting a link: %s %w", res.Status, err)
	}
	return s.URL, nil
}

// visitor is a browser without a window.
type visitor struct{ *browse.Visitor }

func newVisitor(t *testing.T, portal string) *visitor {
	t.Helper()
	return &visitor{browse.New(portal, nil)}
}

// page is an answer.
type page struct {
	status   int
	location string
	body     string
	header   http.Header
}

func (v *visitor) do(ctx context.Context, method, target, site string, form url.Values) (page, error) {
	if form == nil && method == http.MethodPost {
		form = url.Values{}
	}
	p, err := v.Do(ctx, target, site, form)
	return page{p.Status, p.Location, p.Body, p.Header}, err
}

func (v *visitor) get(t *testing.T, target string) page {
	t.Helper()
	p, err := v.do(t.Context(), http.MethodGet, target, "same-origin", nil)
	if err != nil {
		t.Fatalf("GET %s: %v", target, err)
	}
	return p
}

func (v *visitor) post(t *testing.T, target string, form url.Values) page {
	t.Helper()
	p, err := v.do(t.Context(), http.MethodPost, target, "same-origin", form)
	if err != nil {
		t.Fatalf("POST %s: %v", target, err)
	}
	return p
}

// enter opens a link as a click on the vendor's own site does.
func (v *visitor) enter(t *testing.T, link string) page {
	t.Helper()
	p, err := v.do(t.Context(), http.MethodGet, link, "same-site", nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// signIn mints a link and opens it.
func signIn(t *testing.T, portal, key, customer string) *visitor {
	t.Helper()
	v := newVisitor(t, portal)
	if p := v.enter(t, mint(t, portal, key, customer)); p.status != http.StatusSeeOther {
		t.Fatalf("opening a link: %d\n%s", p.status, p.body)
	}
	return v
}

// forms reads a page's forms: where they post to, and their hidden and
// prefilled fields.
func (p page) forms() []form {
	var list []form
	for _, f := range (browse.Page{Body: p.body}).Forms() {
		list = append(list, form{f.Action, f.Fields})
	}
	return list
}

type form struct {
	action string
	fields url.Values
}

func (p page) form(t *testing.T, action string) form {
	t.Helper()
	for _, f := range p.forms() {
		if strings.HasPrefix(f.action, action) {
			return f
		}
	}
	t.Fatalf("no form posts to %s (status %d):\n%s", action, p.status, p.body)
	return form{}
}
