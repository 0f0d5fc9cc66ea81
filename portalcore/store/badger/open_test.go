package badger

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bdb "github.com/dgraph-io/badger/v4"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

const childEnv = "BILLING_PORTAL_TEST_STORE_CHILD"

// children are what this program does as another process, by the variable
// that names its directory.
var children = map[string]func(dir string){childEnv: child}

func TestMain(m *testing.M) {
	for env, run := range children {
		if dir := os.Getenv(env); dir != "" {
			run(dir)
			return
		}
	}
	goleak.VerifyTestMain(m)
}

// child writes until it is killed, and prints what was acknowledged.
func child(dir string) {
	key := make([]byte, store.SealKeySize)
	s, err := store.NewSealer(key)
	if err != nil {
		panic(err)
	}
	db, err := Open(dir, Options{Sealer: s})
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				err := db.Update(context.Background(), func(tx store.Tx) error {
					// Two records, so that half an update would show.
					if err := tx.Put(store.Key("a", name), []byte(name)); err != nil {
						return err
					}
					return tx.Put(store.Key("b", name), []byte(name))
				})
				if err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Println(name)
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	key, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	var acked []string
	generation := ""
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Kill it while it writes, after some acknowledgements; those that
		// are still in the pipe count, too.
		lines := bufio.NewReader(out)
		for n := 0; ; n++ {
			if n == 500 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			line, err := lines.ReadString('\n')
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			acked = append(acked, strings.TrimSpace(line))
		}
		if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
			t.Fatalf("the child ended by itself: %v\n%s", err, stderr.String())
		}

		s := mustOpen(t, dir, Options{Sealer: key})
		missing := 0
		for _, name := range acked {
			got, err := s.GetAll(t.Context(), store.Key("a", name), store.Key("b", name))
			if err != nil || string(got[0]) != name || string(got[1]) != name {
				missing++
			}
		}
		if missing > 0 || len(acked) < 500 {
			t.Errorf("round %d: %d of %d acknowledged updates are missing", round, missing, len(acked))
		}
		checkWhole(t, s)
		g := guardOf(t, s)
		if g.Generation == generation || !strings.Contains(g.Reason, "not closed cleanly") {
			t.Errorf("round %d: generation was kept after a kill: %+v", round, g)
		}
		generation = g.Generation
		mustClose(t, s)
	}
}

// checkWhole checks that every update is there with both records or not.
func checkWhole(t *testing.T, s *Store) {
	t.Helper()
	var names [2][]store.Entry
	err := s.View(t.Context(), func(tx store.Tx) (err error) {
		for i, p := range []string{"a", "b"} {
			if names[i], err = tx.Scan(store.Key(p), nil, 1<<20, false); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(names[0]) != len(names[1]) {
		t.Fatalf("%d and %d records, %v", len(names[0]), len(names[1]), err)
	}
	for i := range names[0] {
		if string(names[0][i].Value) != string(names[1][i].Value) {
			t.Fatalf("half an update: %s", names[0][i].Value)
		}
	}
}

func guardOf(t *testing.T, s *Store) store.Guard {
	t.Helper()
	var g store.Guard
	err := s.View(t.Context(), func(tx store.Tx) (err error) {
		g, err = store.ReadGuard(tx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGuard(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	editState := func(t *testing.T, dir string, edit func(*state)) {
		st, err := readState(dir)
		if err != nil || st == nil {
			t.Fatal(st, err)
		}
		edit(st)
		if err := writeState(dir, *st); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name     string
		damage   func(t *testing.T, dir string)
		after    time.Duration // until the next Open
		reason   string        // "" for the same generation
		restored bool
	}{
		{name: "clean", after: time.Hour},
		{name: "clean, same instant"},
		{name: "clock back", after: -time.Second, reason: "clock went backwards"},
		{name: "no state file", reason: "missing", restored: true, damage: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, stateFile)); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "broken state file", reason: "does not fit", restored: true, damage: func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "not clean", reason: "not closed cleanly", damage: func(t *testing.T, dir string) {
			editState(t, dir, func(st *state) { st.Clean = false })
		}},
		{name: "another run", reason: "restored", restored: true, damage: func(t *testing.T, dir string) {
			editState(t, dir, func(st *state) { st.Run = "another" })
		}},
		{name: "no valid generation", reason: "no valid generation", restored: true, damage: func(t *testing.T, dir string) {
			s := mustOpen(t, dir, Options{NoSync: true, Now: func() time.Time { return start }})
			err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put(store.GuardKey(), []byte("{}")) })
			if err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
		}},
		{name: "ended while it opened", reason: "not closed cleanly", damage: func(t *testing.T, dir string) {
			editState(t, dir, func(st *state) { *st = state{Schema: schema, Run: "next", Before: st.Run} })
		}},
		// A backup of a running store that was made file by file.
		{name: "not clean and copied", reason: "copied", restored: true, damage: func(t *testing.T, dir string) {
			editState(t, dir, func(st *state) { st.Clean = false })
			copyFile(t, filepath.Join(dir, stateFile))
		}},
		{name: "state file copied", reason: "copied", restored: true, damage: func(t *testing.T, dir string) {
			copyFile(t, filepath.Join(dir, stateFile))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			now := start
			o := Options{NoSync: true, Now: func() time.Time { return now }}
			s := mustOpen(t, dir, o)
			first := guardOf(t, s)
			if first.Reason != "the store is new" || !first.Cutoff.Equal(start) {
				t.Fatalf("first guard %+v", first)
			}
			mustClose(t, s)
			if test.damage != nil {
				test.damage(t, dir)
			}
			now = now.Add(test.after)
			s = mustOpen(t, dir, o)
			second := guardOf(t, s)
			mustClose(t, s)
			if test.reason == "" {
				if second != first {
					t.Errorf("guard changed to %+v", second)
				}
				return
			}
			if second.Generation == first.Generation || !strings.Contains(second.Reason, test.reason) || !second.Cutoff.Equal(now) {
				t.Errorf("guard %+v, want a new one because of %q from %v", second, test.reason, now)
			}
			want := time.Time{}
			if test.restored {
				want = now
			}
			if !second.Restored.Equal(want) {
				t.Errorf("restored %v, want %v", second.Restored, want)
			}
			// The damage is dealt with: once.
			if third := guardOf(t, mustOpen(t, dir, o)); third != second {
				t.Errorf("guard changed again to %+v", third)
			}
		})
	}
}

// copyFile puts a copy of a file in its place.
func copyFile(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".copy", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".copy", path); err != nil {
		t.Fatal(err)
	}
}

// What a generation says about a restore is kept by the next ones, whatever
// began them.
func TestRestoredIsKept(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	o := Options{NoSync: true, Now: func() time.Time { return now }}
	s := mustOpen(t, dir, o)
	marked, err := store.MarkRestored(t.Context(), s, rand.Reader, now, "a test")
	if err != nil || !marked.Restored.Equal(now) || guardOf(t, s) != marked {
		t.Fatalf("marked %+v, %v", marked, err)
	}
	now = now.Add(-time.Hour) // begins one while it is open
	if err := s.Update(t.Context(), put("a", "1")); err != nil {
		t.Fatal(err)
	}
	if g := guardOf(t, s); g.Generation == marked.Generation || g.Restored != marked.Restored {
		t.Errorf("after the clock went back: %+v", g)
	}
	mustClose(t, s)
	now = now.Add(-time.Hour) // and one when it opens
	second := guardOf(t, mustOpen(t, dir, o))
	if !strings.Contains(second.Reason, "backwards") || second.Restored != marked.Restored {
		t.Errorf("after another start: %+v", second)
	}
}

// A directory that was restored without its state file is found by its run.
func TestGuardRestoredData(t *testing.T) {
	dir, backup := t.TempDir(), t.TempDir()
	s := mustOpen(t, dir, Options{NoSync: true})
	mustClose(t, s)
	if err := os.CopyFS(filepath.Join(backup, "all"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, Options{NoSync: true})
	before := guardOf(t, s)
	mustClose(t, s)

	st, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	all := filepath.Join(backup, "all")
	if err := os.WriteFile(filepath.Join(all, stateFile), st, 0o600); err != nil {
		t.Fatal(err)
	}
	// The newer state names the newer files.
	if _, err := Open(all, Options{Sealer: sealer(t, 1), NoSync: true}); err == nil || !strings.Contains(err.Error(), "remove "+stateFile) {
		t.Errorf("restored data with the state of a clean close: %v", err)
	}
	newer, err := readState(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeState(all, state{Schema: schema, Run: newer.Run}); err != nil {
		t.Fatal(err)
	}
	after := guardOf(t, mustOpen(t, all, Options{NoSync: true}))
	if after.Generation == before.Generation || !strings.Contains(after.Reason, "does not fit") || after.Restored.IsZero() {
		t.Errorf("restored data kept its guard: %+v", after)
	}
}

func TestGuardClockWhileOpen(t *testing.T) {
	var mu sync.Mutex
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	set := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(d)
	}
	s := mustOpen(t, t.TempDir(), Options{NoSync: true, Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}})
	touch := func() store.Guard {
		t.Helper()
		err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put(store.Key("a"), []byte("1")) })
		if err != nil {
			t.Fatal(err)
		}
		return guardOf(t, s)
	}
	first := touch()
	set(time.Hour)
	if g := touch(); g != first {
		t.Errorf("guard changed with a clock that goes on: %+v", g)
	}
	set(-4 * time.Second)
	if g := touch(); g != first {
		t.Errorf("guard changed with a clock that was adjusted a little: %+v", g)
	}
	set(-time.Minute)
	// The redemption that comes first must see the new guard already, and the
	// guard is kept when that redemption fails.
	var seen store.Guard
	boom := errors.New("boom")
	err := s.Update(t.Context(), func(tx store.Tx) (err error) {
		if seen, err = store.ReadGuard(tx); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if seen.Generation == first.Generation || !strings.Contains(seen.Reason, "backwards") {
		t.Errorf("guard after the clock went back: %+v", seen)
	}
	if g := guardOf(t, s); g != seen {
		t.Errorf("guard %+v was not kept: %+v", seen, g)
	}
	if g := touch(); g != seen {
		t.Errorf("guard changed twice: %+v", g)
	}
	set(-time.Minute)
	func() {
		defer func() { _ = recover() }()
		_ = s.Update(t.Context(), func(store.Tx) error { panic("closure") })
	}()
	if g := guardOf(t, s); g.Generation == seen.Generation {
		t.Error("guard was not renewed when the closure panicked")
	}
}

func TestWrongSealKey(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{NoSync: true})
	first := guardOf(t, s)
	mustClose(t, s)
	_, err := Open(dir, Options{Sealer: sealer(t, 2), NoSync: true})
	if !errors.Is(err, store.ErrSealed) || !strings.Contains(err.Error(), "the seal key is not the one") {
		t.Errorf("wrong key: %v", err)
	}
	// Neither lost nor spoiled by the attempt.
	if g := guardOf(t, mustOpen(t, dir, Options{NoSync: true})); g != first {
		t.Errorf("guard changed to %+v", g)
	}
	if _, err := Open(t.TempDir(), Options{}); err == nil {
		t.Error("opened without a Sealer")
	}
}

func TestReseal(t *testing.T) {
	dir := t.TempDir()
	const n = 2500
	s := mustOpen(t, dir, Options{NoSync: true})
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for i := range n {
			if err := tx.Put(store.Key("k", fmt.Sprint(i)), fmt.Append(nil, i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)

	s = mustOpen(t, dir, Options{NoSync: true, Sealer: sealer(t, 2, 1)})
	if got, err := s.Reseal(t.Context()); err != nil || got < n {
		t.Fatalf("resealed %d, %v, want %d", got, err, n)
	}
	if got, err := s.Reseal(t.Context()); err != nil || got != 0 {
		t.Errorf("resealed %d again, %v", got, err)
	}
	mustClose(t, s)

	s = mustOpen(t, dir, Options{NoSync: true, Sealer: sealer(t, 2)})
	for i := range n {
		got, err := s.GetAll(t.Context(), store.Key("k", fmt.Sprint(i)))
		if err != nil || string(got[0]) != fmt.Sprint(i) {
			t.Fatalf("record %d: %q, %v", i, got, err)
		}
	}
	guardOf(t, s)
}

// As long as a record needs the previous key, Open wants that key.
func TestResealInterrupted(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, dir, Options{NoSync: true}))
	s := mustOpen(t, dir, Options{NoSync: true, Sealer: sealer(t, 2, 1)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Reseal(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Reseal: %v", err)
	}
	mustClose(t, s)
	if _, err := Open(dir, Options{NoSync: true, Sealer: sealer(t, 2)}); !errors.Is(err, store.ErrSealed) {
		t.Errorf("opened without the previous key: %v", err)
	}
}

func TestSecondOpen(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{NoSync: true})
	_, err := Open(dir, Options{Sealer: sealer(t, 1), NoSync: true})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "caddy reload") || !strings.Contains(err.Error(), dir) {
		t.Errorf("second open: %v", err)
	}
	first := guardOf(t, s)
	mustClose(t, s)
	if g := guardOf(t, mustOpen(t, dir, Options{NoSync: true})); g != first {
		t.Errorf("the attempt changed the guard: %+v", g)
	}
}

func TestMissingManifest(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{NoSync: true})
	err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put(store.Key("a"), []byte("1")) })
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	tables, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
	manifest := filepath.Join(dir, bdb.ManifestFilename)
	if err := os.Rename(manifest, manifest+".away"); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir, Options{Sealer: sealer(t, 1), NoSync: true})
	if err == nil || !strings.Contains(err.Error(), "MANIFEST") {
		t.Fatalf("opened without MANIFEST: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.sst")); len(left) != len(tables) || len(left) == 0 {
		t.Errorf("%d of %d tables are left", len(left), len(tables))
	}
	if err := os.Rename(manifest+".away", manifest); err != nil {
		t.Fatal(err)
	}
	got, err := mustOpen(t, dir, Options{NoSync: true}).GetAll(t.Context(), store.Key("a"))
	if err != nil || string(got[0]) != "1" {
		t.Errorf("after the MANIFEST came back: %q, %v", got, err)
	}
}

// What an early crash or a fresh file system leaves is an empty directory.
func TestFreshDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"LOCK", "MANIFEST-REWRITE"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, dir, Options{NoSync: true})
}

func TestLostData(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, dir, Options{NoSync: true}))
	empty := t.TempDir()
	st, err := json.Marshal(state{Schema: schema, Run: "of what was there"})
	if err != nil {
		t.Fatal(err)
	}
	db, err := bdb.Open(bdb.DefaultOptions(empty).WithLogger(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(empty, stateFile), st, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(empty, Options{Sealer: sealer(t, 1), NoSync: true}); err == nil || !strings.Contains(err.Error(), "lost its data") {
		t.Errorf("an emptied database: %v", err)
	}
}

func TestForeignDatabase(t *testing.T) {
	dir := t.TempDir()
	db, err := bdb.Open(bdb.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(txn *bdb.Txn) error { return txn.Set([]byte("x"), []byte("y")) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{Sealer: sealer(t, 1), NoSync: true}); err == nil || !strings.Contains(err.Error(), "not a billing portal's") {
		t.Errorf("somebody else's database: %v", err)
	}
}

func TestNewerSchema(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{NoSync: true})
	value, err := json.Marshal(identity{Schema: schema + 1, Run: s.run})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put(identityKey(), value) }); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	refused := func(what string) {
		t.Helper()
		_, err := Open(dir, Options{Sealer: sealer(t, 1), NoSync: true})
		if err == nil || !strings.Contains(err.Error(), "newer version (schema 2") {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("newer data")
	if err := writeState(dir, state{Schema: schema + 1}); err != nil {
		t.Fatal(err)
	}
	refused("newer state file")
}

// Values are sealed on disk, and one that was changed there is an error.
func TestSealedOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{NoSync: true})
	const secret = "a secret that must not be readable"
	err := s.Update(t.Context(), func(tx store.Tx) error {
		if err := tx.Put(store.Key("moved"), []byte("1")); err != nil {
			return err
		}
		return tx.Put(store.Key("a"), []byte(secret))
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.db.Update(func(txn *bdb.Txn) error {
		item, err := txn.Get(store.Key("a"))
		if err != nil {
			return err
		}
		v, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		return txn.Set(store.Key("moved"), v)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetAll(t.Context(), store.Key("moved")); !errors.Is(err, store.ErrSealed) {
		t.Errorf("a value moved to another record: %v", err)
	}
	err = s.View(t.Context(), func(tx store.Tx) error {
		_, err := tx.Scan(store.Key("moved"), nil, 0, false)
		return err
	})
	if !errors.Is(err, store.ErrSealed) {
		t.Errorf("scanning it: %v", err)
	}
	mustClose(t, s)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		read += len(b)
		if strings.Contains(string(b), secret) {
			t.Errorf("%s shows the value", f)
		}
	}
	if read == 0 {
		t.Error("nothing on disk")
	}
}

func TestDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "store")
	mustOpen(t, dir, Options{NoSync: true})
	for _, path := range []string{dir, filepath.Join(dir, stateFile)} {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, fi.Mode(), err)
		}
	}
}

func TestBadgerLogsToZap(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	s := mustOpen(t, t.TempDir(), Options{NoSync: true, Logger: zap.New(core)})
	mustClose(t, s)
	if logs.FilterLoggerName("badger").Len() == 0 {
		t.Error("nothing from Badger")
	}
	for _, e := range logs.All() {
		if e.Level > zap.InfoLevel || e.Message != strings.TrimSpace(e.Message) {
			t.Errorf("%s: %q", e.Level, e.Message)
		}
		if g := e.ContextMap()["reason"]; g != nil && g != "the store is new" {
			t.Errorf("reason %v", g)
		}
	}
	if logs.FilterMessageSnippet("new store generation").Len() != 1 {
		t.Error("the new generation was not logged")
	}
}
