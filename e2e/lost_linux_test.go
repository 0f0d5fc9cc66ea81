package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// refuses starts Caddy and holds that it ends with an error that has all of
// these texts, and changed nothing in the store's directory.
func (w *diskWorld) refuses(t *testing.T, texts ...string) {
	t.Helper()
	before := fingerprint(t, w.storeDir())
	w.launch(t)
	select {
	case <-w.proc.exited:
	case <-time.After(20 * time.Second):
		t.Errorf("Caddy runs, with a store that it should refuse: %d from the portal", status(w.portal+"/robots.txt"))
		w.proc.kill()
		return
	}
	if w.proc.cmd.ProcessState.Success() {
		t.Error("Caddy ended without an error")
	}
	log := w.proc.stderr.String()
	for _, text := range texts {
		if !strings.Contains(log, text) {
			t.Errorf("the error does not name %q:\n%s", text, log[max(0, len(log)-1500):])
		}
	}
	if strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
		t.Errorf("Caddy panicked:\n%s", log[max(0, len(log)-3000):])
	}
	if after := fingerprint(t, w.storeDir()); after != before {
		t.Errorf("the refusal changed the directory:\n%s\nwas\n%s", after, before)
	}
}

// fingerprint lists the files that hold the store's data. The lock file and the
// room that is kept free hold none.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !holdsData(e.Name()) {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Trim(raw, "\x00") != nil {
			fmt.Fprintf(&b, "%s %x\n", e.Name(), sha256.Sum256(raw))
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return b.String()
}

func holdsData(name string) bool {
	switch filepath.Ext(name) {
	case ".mem", ".sst":
		return true
	}
	return name == "MANIFEST" || strings.HasSuffix(name, ".json")
}

// largest is the largest file of the store with an extension.
func (w *diskWorld) largest(t *testing.T, ext string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.storeDir(), "*"+ext))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s in the store: %v", ext, err)
	}
	size := func(name string) int64 {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	return slices.MaxFunc(names, func(a, b string) int { return int(size(a) - size(b)) })
}

// flip turns a bit of a file over.
func flip(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// TestLostStore damages what the portal knows in the ways that disks and people
// do, with real links in browsers meanwhile. Caddy refuses to start and says
// what to do, or starts as one that knows that it may have forgotten; no old
// link is ever good again.
func TestLostStore(t *testing.T) {
	for _, tt := range []struct {
		name string
		kill bool // the store was not closed
		// damage returns what the error must name; nothing where Caddy starts.
		damage func(t *testing.T, w *diskWorld) []string
		// sessions says whether people stay signed in where Caddy starts.
		sessions bool
	}{
		{"killed, nothing damaged", true, func(*testing.T, *diskWorld) []string { return nil }, true},
		{"MANIFEST removed", false, func(t *testing.T, w *diskWorld) []string {
			remove(t, filepath.Join(w.storeDir(), "MANIFEST"))
			return []string{"MANIFEST", "restore a backup"}
		}, false},
		{"table cut short", false, func(t *testing.T, w *diskWorld) []string {
			name := w.largest(t, ".sst")
			if err := os.Truncate(name, 100); err != nil {
				t.Fatal(err)
			}
			return []string{filepath.Base(name), "restore a backup"}
		}, false},
		{"table removed", false, func(t *testing.T, w *diskWorld) []string {
			name := w.largest(t, ".sst")
			remove(t, name)
			return []string{filepath.Base(name), "restore a backup"}
		}, false},
		{"bit of the log flipped", true, func(t *testing.T, w *diskWorld) []string {
			name := w.largest(t, ".mem")
			flip(t, name, 200)
			return []string{filepath.Base(name), "restore a backup"}
		}, false},
		{"another seal key", false, func(t *testing.T, w *diskWorld) []string {
			if err := os.WriteFile(w.storeDir()+".seal_key", []byte(strings.Repeat("5a", 32)+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"the seal key is not the one", w.storeDir()}
		}, false},
		{"seal key removed", false, func(t *testing.T, w *diskWorld) []string {
			remove(t, w.storeDir()+".seal_key")
			return []string{"restore " + w.storeDir() + ".seal_key"}
		}, false},
		{"directory removed", false, func(t *testing.T, w *diskWorld) []string {
			w.moveAway(t)
			return nil
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := startDiskWorld(t, t.TempDir())
			v, links := w.leaveLinks(t)
			if tt.kill {
				w.proc.kill()
			} else {
				w.proc.stop(t)
			}
			if refusal := tt.damage(t, w); refusal != nil {
				w.refuses(t, refusal...)
				// The way out that the message names.
				w.moveAway(t)
			}
			w.start(t)
			w.checkForgotten(t, links)
			want := http.StatusUnauthorized
			if tt.sessions {
				want = http.StatusOK
			}
			if p := v.get(t, "/"); p.status != want {
				t.Errorf("the session from before: %d, want %d", p.status, want)
			}
		})
	}
}

// TestOldCopyOfTheStore puts an older copy of the directory back. What was
// spent since then would be unspent again, and who was signed out signed in.
func TestOldCopyOfTheStore(t *testing.T) {
	w := startDiskWorld(t, t.TempDir())
	early, first := w.leaveLinks(t)
	leaver := signIn(t, w.portal, w.key, "cus_northwind")
	later := []string{mint(t, w.portal, w.key, "cus_northwind"), w.signLink(t, "cus_northwind")}
	w.proc.stop(t)
	copied := filepath.Join(t.TempDir(), "copy")
	command(t, "cp", "-a", w.storeDir(), copied)
	w.start(t)
	for _, link := range later {
		newVisitor(t, w.portal).enter(t, link) // spends it
	}
	if p := leaver.post(t, "/sign-out", nil); p.status != http.StatusSeeOther {
		t.Fatalf("signing out: %d", p.status)
	}
	w.proc.stop(t)
	if err := os.RemoveAll(w.storeDir()); err != nil {
		t.Fatal(err)
	}
	command(t, "cp", "-a", copied, w.storeDir())
	w.start(t)
	w.checkForgotten(t, append(first, later...))
	for what, v := range map[string]*visitor{"a session from before the copy": early, "a session that was signed out since the copy": leaver} {
		if p := v.get(t, "/"); p.status != http.StatusUnauthorized {
			t.Errorf("%s: %d, want 401", what, p.status)
		}
	}
}

// leaveLinks signs somebody in, and returns links that were used and links that
// were not, of the portal's own and signed by the vendor.
func (w *diskWorld) leaveLinks(t *testing.T) (*visitor, []string) {
	t.Helper()
	v := signIn(t, w.portal, w.key, "cus_northwind")
	own, signed := mint(t, w.portal, w.key, "cus_northwind"), ""
	fast := func() string { return w.signLinkAt(t, "cus_northwind", time.Now().Add(store.GuardSkew-time.Second)) }
	if p := newVisitor(t, w.portal).enter(t, own); p.status != http.StatusSeeOther {
		t.Fatalf("a link: %d", p.status)
	}
	// A new store takes the vendor's own links after a few seconds. This vendor's
	// clock is as fast as can be, which shortens the wait and helps its old links.
	eventually(t, "a link that the vendor signed works", func() bool {
		signed = fast()
		return newVisitor(t, w.portal).enter(t, signed).status == http.StatusSeeOther
	})
	return v, []string{own, signed, mint(t, w.portal, w.key, "cus_northwind"), fast(), w.signLink(t, "cus_northwind")}
}

// checkForgotten holds that a portal which may have forgotten takes no link from
// before, and new ones at once.
func (w *diskWorld) checkForgotten(t *testing.T, links []string) {
	t.Helper()
	for i, link := range links {
		for range 2 {
			if p := newVisitor(t, w.portal).enter(t, link); p.status != http.StatusGone && p.status != http.StatusUnauthorized && p.status != http.StatusServiceUnavailable {
				t.Errorf("link %d from before: %d", i, p.status)
			}
		}
	}
	if p := newVisitor(t, w.portal).enter(t, mint(t, w.portal, w.key, "cus_northwind")); p.status != http.StatusSeeOther {
		t.Errorf("a new link: %d\n%s", p.status, p.body)
	}
	// Not only for now: the vendor's own links work again, and those from before
	// do not.
	eventually(t, "a new link that the vendor signed works", func() bool {
		link := w.signLinkAt(t, "cus_northwind", time.Now().Add(store.GuardSkew-time.Second))
		return newVisitor(t, w.portal).enter(t, link).status == http.StatusSeeOther
	})
	for i, link := range links {
		if p := newVisitor(t, w.portal).enter(t, link); p.status == http.StatusSeeOther || p.status == http.StatusOK {
			t.Errorf("link %d from before, a while later: %d", i, p.status)
		}
	}
}

func (w *diskWorld) moveAway(t *testing.T) {
	t.Helper()
	away := filepath.Join(t.TempDir(), "away")
	command(t, "mv", w.storeDir(), away)
	if err := os.Remove(w.storeDir() + ".seal_key"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}
