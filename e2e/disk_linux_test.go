package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func startFiller(t *testing.T, name string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, []string{fillVariable + "=" + name}, self)
}

// needMounts skips a test that cannot mount, and fails where nothing may be
// skipped.
func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("mounting a file system takes root")
	}
	t.Skip("mounting a file system takes root")
}

// mount mounts a file system at a new directory until the test ends.
func mount(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Fatalf("mount %v: %v\n%s", args, err, out)
	}
	t.Cleanup(func() {
		// After the processes have ended, which were started later.
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v\n%s", dir, err, out)
		}
	})
	return dir
}

// diskWorld is a Caddy with two sites, a plain one and the portal, whose store
// is on a disk of its own.
type diskWorld struct {
	*stripeWorld
	disk  string
	plain string // address of the plain site
}

func startDiskWorld(t *testing.T, disk string) *diskWorld {
	t.Helper()
	w := &diskWorld{disk: disk, plain: freeAddr(t), stripeWorld: &stripeWorld{dir: t.TempDir(), addr: freeAddr(t), key: "bpk_end_to_end_0123456789"}}
	w.portal = "http://" + w.addr
	s := start(t, nil, stripetestBinary(t), "-listen", "127.0.0.1:0", "-data-dir", t.TempDir(), "-seed")
	s.ready(t, &w.stripe)
	w.makeVendorKey(t)
	w.start(t)
	return w
}

func (w *diskWorld) storeDir() string { return filepath.Join(w.disk, "store") }

// launch starts Caddy and does not wait for it.
func (w *diskWorld) launch(t *testing.T, lines ...string) {
	t.Helper()
	file := filepath.Join(w.dir, "Caddyfile")
	config := fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	billing_portal {
		store badger %s
		%s
	}
}

http://%s {
	respond "a plain site"
}

%s {
	billing_portal {
		origin %s
		provider stripe {
			api_key {env.STRIPE_KEY}
			base_url %s
		}
		api_key {env.PORTAL_KEY}
		trust acme-app {
			key ed25519 %s
		}
		return_to http://localhost/settings
		session {
			idle 1m
			absolute 1h
		}
		policy {
			allow change_plan
			allow cancel
		}
		brand {
			name Acme
		}
	}
}
`, w.storeDir(), strings.Join(lines, "\n\t\t"), w.plain, w.portal, w.portal, w.stripe.URL, filepath.Join(w.dir, "portal.pub"))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	w.proc = start(t, []string{"STRIPE_KEY=" + w.stripe.Key, "PORTAL_KEY=" + w.key}, caddyBinary(t), "run", "--config", file, "--adapter", "caddyfile")
}

func (w *diskWorld) start(t *testing.T, lines ...string) {
	t.Helper()
	w.launch(t, lines...)
	eventually(t, "the portal answers", func() bool {
		select {
		case <-w.proc.exited:
			t.Fatal("Caddy has ended")
		default:
		}
		return status(w.portal+"/robots.txt") == http.StatusOK
	})
}

// alive fails the test where Caddy has ended.
func (w *diskWorld) alive(t *testing.T) {
	t.Helper()
	select {
	case <-w.proc.exited:
		t.Fatalf("Caddy died: %s", w.proc.cmd.ProcessState)
	default:
	}
}

func status(target string) int {
	res, err := http.Get(target)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	return res.StatusCode
}

// watch asks again and again, until the function it returns is called, which
// says how often each status was the answer; 0 stands for none.
func watch(every time.Duration, ask func() int) (stop func() map[int]int) {
	counts, done := map[int]int{}, make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			counts[ask()]++
			select {
			case <-done:
				return
			case <-time.After(every):
			}
		}
	})
	return func() map[int]int {
		close(done)
		wg.Wait()
		return counts
	}
}

// signIns watches sign-ins, each with a link of its own.
type signIns struct {
	stop func() map[int]int
	last atomic.Int64 // status
	body atomic.Pointer[page]
}

func (w *diskWorld) watchSignIns(t *testing.T) *signIns {
	t.Helper()
	s := new(signIns)
	ctx, cancel := context.WithCancel(context.Background())
	stop := watch(25*time.Millisecond, func() int {
		link, err := w.link(ctx)
		if err != nil {
			return 0
		}
		p, err := newVisitor(t, w.portal).do(ctx, http.MethodGet, link, "same-site", nil)
		if err != nil {
			return 0
		}
		if p.status != http.StatusSeeOther {
			s.body.Store(&p)
		}
		s.last.Store(int64(p.status))
		return p.status
	})
	s.stop = func() map[int]int { defer cancel(); return stop() }
	return s
}

// link mints a link without ending the test where it cannot.
func (w *diskWorld) link(ctx context.Context) (string, error) {
	return askForLink(ctx, w.portal, w.key, url.Values{"customer": {"cus_trial"}})
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// checkUnavailable holds that an answer is the page for what cannot be written
// now: with a way to try again, and nothing of the reason.
func checkUnavailable(t *testing.T, what string, p *page) {
	t.Helper()
	if p == nil {
		t.Errorf("%s: no answer", what)
		return
	}
	if p.status != http.StatusServiceUnavailable || p.header.Get("Retry-After") == "" ||
		!strings.HasPrefix(p.header.Get("Content-Type"), "text/html") || !strings.Contains(p.body, "Nothing was") && !strings.Contains(p.body, "did not go through") {
		t.Errorf("%s: %d, Retry-After %q\n%s", what, p.status, p.header.Get("Retry-After"), p.body)
	}
	for _, inner := range []string{"disk", "store", "badger", "MiB", "answering"} {
		if strings.Contains(strings.ToLower(p.body), strings.ToLower(inner)) {
			t.Errorf("%s: the page speaks of %q", what, inner)
		}
	}
}

// TestFullDisk fills the disk of the store at 50 MB/s, twice. The portal stops
// writing before the disk is full, and everything else goes on.
func TestFullDisk(t *testing.T) {
	needMounts(t)
	const customer = "cus_northwind"
	w := startDiskWorld(t, mount(t, "-t", "tmpfs", "-o", "size=480m", "tmpfs"))
	v := signIn(t, w.portal, w.key, customer)
	leaver := signIn(t, w.portal, w.key, customer)

	for round, seats := range []string{"5", "6"} {
		confirm := v.choose(t, "price_team_monthly", seats)
		before := len(changes(t, w.stripe.Control, customer))
		plain := watch(10*time.Millisecond, func() int { return status("http://" + w.plain) })
		reading := watch(25*time.Millisecond, func() int {
			p, err := v.do(context.Background(), http.MethodGet, "/", "same-origin", nil)
			if err != nil {
				return 0
			}
			return p.status
		})
		entering := w.watchSignIns(t)

		room, began := free(t, w.disk), time.Now()
		filler := filepath.Join(w.disk, "filler")
		fills := startFiller(t, filler)
		eventually(t, "sign-in is refused", func() bool { w.alive(t); return entering.last.Load() == http.StatusServiceUnavailable })
		refused := time.Since(began)
		eventually(t, "the disk is full", func() bool { w.alive(t); return free(t, w.disk) < 1<<20 })
		speed := float64(room) / time.Since(began).Seconds() / 1e6
		if speed < 40 {
			t.Logf("the machine is busy: the disk was filled with %.0f MB/s only", speed)
		}
		// A session is touched every 6 s, a tenth of its idle time.
		for range 14 {
			time.Sleep(500 * time.Millisecond)
			w.alive(t)
		}
		checkUnavailable(t, "sign-in", entering.body.Load())
		p := v.post(t, confirm.action, confirm.fields)
		checkUnavailable(t, "confirming", &p)
		if got := len(changes(t, w.stripe.Control, customer)); got != before {
			t.Errorf("%d changes at the provider, %d before the disk was full", got, before)
		}
		p = leaver.post(t, "/sign-out", url.Values{})
		checkUnavailable(t, "signing out", &p)
		if p := leaver.get(t, "/"); p.status != http.StatusOK {
			t.Errorf("a session that could not be signed out: %d", p.status)
		}

		fills.kill()
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		freed := time.Now()
		eventually(t, "sign-in works again", func() bool { w.alive(t); return entering.last.Load() == http.StatusSeeOther })
		recovery := time.Since(freed)
		if recovery > 5*time.Second {
			t.Errorf("sign-in works again after %s", recovery)
		}
		p = v.post(t, confirm.action, confirm.fields)
		if p.status == http.StatusSeeOther && strings.HasPrefix(p.location, "/check/") { // the numbers moved meanwhile
			confirm = v.get(t, p.location).form(t, "/check/")
			p = v.post(t, confirm.action, confirm.fields)
		}
		if p.status != http.StatusSeeOther || !strings.HasPrefix(p.location, "/done/") {
			t.Fatalf("confirming with room on the disk: %d %s\n%s", p.status, p.location, p.body)
		}
		eventually(t, "the change is done, once", func() bool { return len(changes(t, w.stripe.Control, customer)) == before+1 })

		answers, reads, entered := plain(), reading(), entering.stop()
		t.Logf("round %d: filled %d MB at %.0f MB/s; sign-in refused after %s, works again %s after the space came back; plain site %v, pages of a session %v, sign-ins %v",
			round+1, room>>20, speed, refused.Round(10*time.Millisecond), recovery.Round(time.Millisecond), answers, reads, entered)
		if len(answers) != 1 || answers[http.StatusOK] < 100 {
			t.Errorf("the plain site: %v, want nothing but 200", answers)
		}
		if len(reads) != 1 || reads[http.StatusOK] < 100 {
			t.Errorf("a session's pages: %v, want nothing but 200", reads)
		}
		if delete(entered, http.StatusSeeOther); len(entered) != 1 || entered[http.StatusServiceUnavailable] == 0 {
			t.Errorf("sign-ins beside 303: %v, want nothing but 503", entered)
		}
	}
	w.proc.stop(t)
	w.start(t)
	if p := leaver.get(t, "/"); p.status != http.StatusOK {
		t.Errorf("a session after a restart: %d", p.status)
	}
}

// TestReadOnlyDisk takes the disk away in the middle, as a kernel does that met
// an error on it: what is open cannot be written any more.
func TestReadOnlyDisk(t *testing.T) {
	needMounts(t)
	image := filepath.Join(t.TempDir(), "disk.img")
	command(t, "truncate", "-s", "600M", image)
	command(t, "mkfs.ext4", "-q", "-F", image)
	disk := t.TempDir()
	command(t, "mount", "-o", "loop,errors=remount-ro", image, disk)
	t.Cleanup(func() { command(t, "umount", disk) })
	w := startDiskWorld(t, disk)
	v := signIn(t, w.portal, w.key, "cus_northwind")
	used := mint(t, w.portal, w.key, "cus_northwind")
	if p := newVisitor(t, w.portal).enter(t, used); p.status != http.StatusSeeOther {
		t.Fatalf("a link: %d", p.status)
	}
	unused := mint(t, w.portal, w.key, "cus_northwind")
	confirm := v.choose(t, "price_team_monthly", "5")

	command(t, "mount", "-o", "remount,abort", disk)
	if err := os.WriteFile(filepath.Join(disk, "probe"), nil, 0o600); err == nil {
		t.Fatal("the disk can still be written")
	}
	for range 5 {
		p := newVisitor(t, w.portal).enter(t, unused)
		checkUnavailable(t, "sign-in", &p)
		p = v.post(t, confirm.action, confirm.fields)
		checkUnavailable(t, "confirming", &p)
		if p := v.get(t, "/"); p.status != http.StatusOK {
			t.Errorf("a session's page: %d", p.status)
		}
		if got := status("http://" + w.plain); got != http.StatusOK {
			t.Errorf("the plain site: %d", got)
		}
		time.Sleep(500 * time.Millisecond)
		w.alive(t)
	}
	if got := changes(t, w.stripe.Control, "cus_northwind"); len(got) != 0 {
		t.Errorf("changes at the provider: %+v", got)
	}
	w.proc.stop(t)
	w.refuses(t, disk, "read-only")

	command(t, "umount", disk)
	if out, err := exec.Command("e2fsck", "-fy", image).CombinedOutput(); err != nil {
		t.Logf("e2fsck: %v\n%s", err, out) // 1: repaired
	}
	command(t, "mount", "-o", "loop", image, disk)
	w.start(t)
	if p := v.get(t, "/"); p.status != http.StatusOK {
		t.Errorf("the session when the disk was repaired: %d", p.status)
	}
	for what, link := range map[string]string{"the used link": used, "a link from before": unused} {
		if p := newVisitor(t, w.portal).enter(t, link); p.status != http.StatusGone {
			t.Errorf("%s when the disk was repaired: %d, want 410", what, p.status)
		}
	}
	if p := newVisitor(t, w.portal).enter(t, mint(t, w.portal, w.key, "cus_northwind")); p.status != http.StatusSeeOther {
		t.Errorf("a new link when the disk was repaired: %d", p.status)
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
