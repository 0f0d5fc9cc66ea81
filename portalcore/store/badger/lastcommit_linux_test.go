package badger

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// TestLastCommitDamaged flips bits of the last commit of a process that was
// killed. What it wrote was acknowledged: where it is gone the store must say
// that it was put back to an earlier state, not only that it was not closed.
func TestLastCommitDamaged(t *testing.T) {
	sealer, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := Open(dir, Options{Sealer: sealer, Ballast: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	keep, ended := store.Key("t", "keep"), store.Key("t", "session")
	put := func(fn func(store.Tx) error) {
		t.Helper()
		if err := s.Update(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	put(func(tx store.Tx) error { return errors.Join(tx.Put(keep, []byte("1")), tx.Put(ended, []byte("1"))) })
	log := walInUse(t, dir)
	from := len(bytes.TrimRight(read(t, log), "\x00"))
	put(func(tx store.Tx) error { return errors.Join(tx.Delete(ended), tx.Put(keep, []byte("2"))) })
	to := len(bytes.TrimRight(read(t, log), "\x00"))

	if g, gone := reopenCopy(t, dir, sealer, ended, nil); !gone || !g.Restored.IsZero() {
		t.Fatalf("untouched: ended %v, restored %s; a killed process alone puts nothing back", gone, g.Restored)
	}
	// Killed between two entries: nobody was told of any of it.
	g, gone := reopenCopy(t, dir, sealer, ended, func(data []byte) {
		e, ok := readWALEntry(data[from:])
		if !ok {
			t.Fatal("the commit does not begin where the log ended")
		}
		clear(data[from+e.size:])
	})
	if gone || !g.Restored.IsZero() {
		t.Errorf("half a commit: ended %v, restored %s", gone, g.Restored)
	}
	lost := 0
	for at := from; at < to; at += 3 {
		g, gone := reopenCopy(t, dir, sealer, ended, func(data []byte) { data[at] ^= 0x10 })
		if !gone {
			lost++
			if g.Restored.IsZero() {
				t.Errorf("byte %d of %d: what was ended is back, and the store does not say that it was put back", at-from, to-from)
			}
		}
	}
	if lost == 0 {
		t.Error("no flip lost the commit, so this shows nothing")
	}
	t.Logf("%d bytes; %d flips lost the commit", to-from, lost)
}

func walInUse(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil && fi.Size() > 0 {
			return f
		}
	}
	t.Fatal("no write-ahead log")
	return ""
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// reopenCopy opens what a killed process leaves of dir, after damage, and
// reports the guard and whether key is gone. A refusal counts as gone.
func reopenCopy(t *testing.T, dir string, sealer *store.Sealer, key []byte, damage func([]byte)) (g store.Guard, gone bool) {
	t.Helper()
	to, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(to)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Base(walInUse(t, dir))
	for _, e := range entries {
		data := read(t, filepath.Join(dir, e.Name()))
		switch e.Name() {
		case stateFile: // it is to pass for the same directory
			var st state
			if err := json.Unmarshal(data, &st); err != nil {
				t.Fatal(err)
			}
			st.Inode = 0
			if data, err = json.Marshal(st); err != nil {
				t.Fatal(err)
			}
		case log:
			if damage != nil {
				damage(data)
			}
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(to, Options{Sealer: sealer, Ballast: -1})
	if err != nil {
		return g, true
	}
	defer c.Close()
	err = c.View(t.Context(), func(tx store.Tx) (err error) {
		if g, err = store.ReadGuard(tx); err != nil {
			return err
		}
		_, err = tx.Get(key)
		gone = errors.Is(err, store.ErrNotFound)
		if gone {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return g, gone
}
