package badger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// A backup is one moment of a store that is written to, and neither waits for
// the other.
func TestBackupWhileWritten(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	const keys = 400
	round := func(r int) {
		err := s.Update(t.Context(), func(tx store.Tx) error {
			for k := range keys { // all of them have the same value, always
				if err := tx.Put(store.Key("t", "k", fmt.Sprint(k)), fmt.Append(make([]byte, 0, 2000), r, strings.Repeat("x", 1500))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	round(0)
	stop := make(chan struct{})
	var rounds atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for r := 1; ; r++ {
			select {
			case <-stop:
				return
			default:
				round(r)
				rounds.Add(1)
			}
		}
	})
	defer wg.Wait()
	defer close(stop)

	// The reader takes a little, and then waits until a lot was written: more
	// than all memtables and tables of level 0 hold.
	pr, pw := io.Pipe()
	var file bytes.Buffer
	wg.Go(func() {
		_, err := store.Backup(t.Context(), s, pw, store.BackupOptions{Sealer: sealer(t, 1), Now: time.Now()})
		pw.CloseWithError(err)
	})
	if _, err := io.CopyN(&file, pr, 100); err != nil {
		t.Fatal(err)
	}
	before := rounds.Load()
	for deadline := time.Now().Add(time.Minute); rounds.Load() < before+60; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("updates wait for the backup: %d rounds", rounds.Load()-before)
		}
	}
	if _, err := io.Copy(&file, pr); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	to := mustOpen(t, dir, Options{NoSync: true})
	first := guardOf(t, to)
	info, err := store.Restore(t.Context(), to, &file, store.RestoreOptions{Sealer: sealer(t, 1), Now: time.Now()})
	if err != nil || info.Entries != keys {
		t.Fatalf("%+v, %v", info, err)
	}
	var entries []store.Entry
	if err := to.View(t.Context(), func(tx store.Tx) (err error) {
		entries, err = tx.Scan(store.Key("t"), nil, 2*keys, false)
		return err
	}); err != nil || len(entries) != keys {
		t.Fatalf("%d records, %v", len(entries), err)
	}
	for _, e := range entries {
		if !bytes.Equal(e.Value, entries[0].Value) {
			t.Fatal("the backup shows two moments")
		}
	}
	g := guardOf(t, to)
	if g.Generation == first.Generation || g.Restored.IsZero() {
		t.Errorf("guard %+v", g)
	}
	mustClose(t, to)
	if after := guardOf(t, mustOpen(t, dir, Options{NoSync: true})); after != g {
		t.Errorf("guard became %+v", after)
	}
}

// A restore that ended in the middle leaves a store that is not opened.
func TestRestoreInterrupted(t *testing.T) {
	from := mustOpen(t, t.TempDir(), Options{NoSync: true})
	for i := range 100 {
		fill(t, from, i)
	}
	var file bytes.Buffer
	if _, err := store.Backup(t.Context(), from, &file, store.BackupOptions{Sealer: sealer(t, 1), Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	to := mustOpen(t, dir, Options{NoSync: true})
	ended := errors.New("the process ended")
	in := io.MultiReader(io.LimitReader(&file, 5<<20), &failing{ended})
	if _, err := store.Restore(t.Context(), to, in, store.RestoreOptions{Sealer: sealer(t, 1), Now: time.Now()}); !errors.Is(err, ended) {
		t.Fatal(err)
	}
	mustClose(t, to)
	if _, err := Open(dir, Options{Sealer: sealer(t, 1)}); !errors.Is(err, store.ErrRestoring) || !strings.Contains(err.Error(), dir) {
		t.Errorf("opening half a backup: %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }
