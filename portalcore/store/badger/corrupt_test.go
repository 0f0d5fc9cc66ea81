package badger

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// corruptFlipsEnv is how many bytes of each file TestDamagedFiles flips, one
// after another; without it a few. The long campaign:
//
//	BILLING_PORTAL_TEST_FLIPS=400 go test -count=1 -timeout 2h -run TestDamagedFiles ./portalcore/store/badger
const corruptFlipsEnv = "BILLING_PORTAL_TEST_FLIPS"

// populated is a directory with data in all kinds of files, an older copy of
// it, and what was acknowledged.
type populated struct {
	dir, old   string
	records    map[string]string
	generation string
	files      map[string]content // once it is complete
}

type content struct {
	head []byte // without the zeros at the end
	size int
}

// read remembers the files. Logs are 16 MiB of nothing, mostly.
func (p *populated) read(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	p.files = map[string]content{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(p.dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		p.files[e.Name()] = content{bytes.TrimRight(b, "\x00"), len(b)}
	}
}

func populate(t *testing.T) *populated {
	t.Helper()
	p := &populated{dir: t.TempDir(), old: t.TempDir(), records: map[string]string{}}
	key, err := store.NewSealer(make([]byte, store.SealKeySize)) // as child's
	if err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		s := mustOpen(t, p.dir, Options{Sealer: key})
		err := s.Update(t.Context(), func(tx store.Tx) error {
			for i := range 60 {
				name := fmt.Sprintf("%d-%d", round, i)
				p.records[name] = name
				for _, kind := range []string{"a", "b"} {
					if err := tx.Put(store.Key(kind, name), []byte(name)); err != nil {
						return err
					}
				}
				// One that is written in every round: an old one must not show.
				if err := tx.Put(store.Key("newest"), fmt.Append(nil, round)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		p.generation = guardOf(t, s).Generation
		mustClose(t, s)
		if round == 2 {
			if err := os.CopyFS(p.old, os.DirFS(p.dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.read(t)
	return p
}

// killed goes on with p in a child that is killed, and adds what that one said.
func (p *populated) killed(t *testing.T) {
	t.Helper()
	for _, n := range []int{200, 400} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+p.dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for i := 0; ; i++ {
			if i == n {
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
			name := strings.TrimSpace(line)
			p.records[name] = name
		}
		_ = cmd.Wait()
		// Between the first and the second one there is an older copy of all.
		if n == 200 {
			if err := os.RemoveAll(p.old); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(p.old, os.DirFS(p.dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.read(t)
	s := filepath.Join(t.TempDir(), "look")
	p.clone(t, s)
	key, _ := store.NewSealer(make([]byte, store.SealKeySize))
	before := mustOpen(t, s, Options{Sealer: key})
	p.generation = guardOf(t, before).Generation
	mustClose(t, before)
}

// clone copies the directory, and lets the state know that it is no copy.
func (p *populated) clone(t *testing.T, to string) {
	t.Helper()
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range p.files {
		path := filepath.Join(to, name)
		if err := os.WriteFile(path, c.head, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(c.size)); err != nil {
			t.Fatal(err)
		}
	}
	st, err := readState(to)
	if err != nil || st == nil {
		t.Fatal(st, err)
	}
	if err := writeState(to, *st); err != nil {
		t.Fatal(err)
	}
}

type damage struct {
	name string
	do   func(path string) error
}

func (p *populated) damages(name string, flips int) []damage {
	// What is written of a log of 16 MiB, mostly.
	size, used := p.files[name].size, len(p.files[name].head)
	list := []damage{
		{"emptied", func(path string) error { return os.Truncate(path, 0) }},
		{"removed", os.Remove},
	}
	for _, n := range []int{19, used / 2, used - 20, used - 1, size - 1} {
		if n > 0 && n < size {
			list = append(list, damage{fmt.Sprintf("cut to %d of %d", n, size), func(path string) error { return os.Truncate(path, int64(n)) }})
		}
	}
	random := rand.New(rand.NewPCG(uint64(size), uint64(flips)))
	at := []int{0, 19, 25, used / 2, used - 30, used - 1, 8, 20, size - 1}
	for len(at) < flips {
		at = append(at, random.IntN(max(used, 1)))
	}
	for _, at := range at[:flips] {
		if at >= 0 && at < size {
			list = append(list, damage{fmt.Sprintf("byte %d of %d flipped", at, size), func(path string) error {
				return flip(path, at, byte(1+random.IntN(255)))
			}})
		}
	}
	if b, err := os.ReadFile(filepath.Join(p.old, name)); err == nil && !bytes.Equal(bytes.TrimRight(b, "\x00"), p.files[name].head) {
		list = append(list, damage{"replaced by an old copy", func(path string) error { return os.WriteFile(path, b, 0o600) }})
	}
	return list
}

func flip(path string, at int, by byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	at = min(at, int(fi.Size())-1) // the state was written anew
	var b [1]byte
	if _, err := f.ReadAt(b[:], int64(at)); err != nil {
		return err
	}
	b[0] ^= by
	_, err = f.WriteAt(b[:], int64(at))
	return err
}

// A store with a damaged file is refused with a message that names the
// directory and the way out, or it opens: then with a new generation if
// anything is missing, and with no value that was never written.
func TestDamagedFiles(t *testing.T) {
	flips := 6
	if s := os.Getenv(corruptFlipsEnv); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		flips = n
	}
	for _, how := range []string{"closed", "killed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := populate(t)
			if how == "killed" {
				p.killed(t)
			}
			outcomes := map[string]int{}
			kinds := map[string]bool{}
			for name := range p.files {
				kinds[strings.TrimLeft(name, "0123456789")] = true
				if name == ballastFile {
					continue // empty for all who do not ask for its blocks
				}
				for _, d := range p.damages(name, flips) {
					dir := filepath.Join(t.TempDir(), "store")
					p.clone(t, dir)
					if err := d.do(filepath.Join(dir, name)); err != nil {
						t.Fatal(err)
					}
					outcome := p.open(t, dir, name+" "+d.name, how == "closed")
					outcomes[outcome]++
					if err := os.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Log(outcomes)
			want := []string{"MANIFEST", ".sst", "KEYREGISTRY", "DISCARD", ".vlog", stateFile}
			if how == "killed" {
				want = append(want, ".mem")
			}
			for _, kind := range want {
				if !kinds[kind] {
					t.Errorf("no %s in %v", kind, kinds)
				}
			}
			if outcomes["refused"] == 0 || outcomes["new generation"] == 0 {
				t.Errorf("outcomes %v", outcomes)
			}
		})
	}
}

// open opens a damaged directory and says what became of it.
func (p *populated) open(t *testing.T, dir, what string, closed bool) string {
	t.Helper()
	key, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{Sealer: key, NoSync: true, Ballast: -1})
	if err != nil {
		if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("%s: refused with %q", what, err)
		}
		return "refused"
	}
	defer mustClose(t, s)
	there, missing := 0, 0
	for name, value := range p.records {
		got, err := s.GetAll(t.Context(), store.Key("a", name), store.Key("b", name))
		if err != nil {
			t.Errorf("%s: reading: %v", what, err)
			return "unreadable"
		}
		for _, v := range got {
			switch {
			case v == nil:
				missing++
			case string(v) != value:
				t.Errorf("%s: %s became %q", what, name, v)
			default:
				there++
			}
		}
	}
	newest, err := s.GetAll(t.Context(), store.Key("newest"))
	if err != nil {
		t.Errorf("%s: reading: %v", what, err)
	}
	if string(newest[0]) != "4" {
		missing++
	}
	g := guardOf(t, s)
	switch same := g.Generation == p.generation; {
	case there == 0:
		t.Errorf("%s: an empty store (%s)", what, g.Reason)
	case same && missing > 0:
		t.Errorf("%s: %d records are missing and the generation is the old one", what, missing)
	case same && !closed:
		t.Errorf("%s: not closed cleanly, and the generation is the old one", what)
	case missing > 0 && closed:
		t.Errorf("%s: %d records of a store that was closed are missing (%s)", what, missing, g.Reason)
	case same:
		return "same generation, all there"
	case missing > 0:
		t.Logf("%s: %d records are missing, new generation: %s, restored %v", what, missing, g.Reason, !g.Restored.IsZero())
		return "new generation, records missing"
	}
	return "new generation"
}

// A table that goes bad while the store is open: what it holds is right or an
// error, the store finds out, and then nobody gets an answer any more.
func TestDamagedWhileOpen(t *testing.T) {
	p := populate(t)
	key, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(p.dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	failed, absent, stopped := 0, 0, 0
	const rounds = 40
	// look reads everything: a wrong value is one too many.
	look := func(s *Store) (errs, none int) {
		t.Helper()
		for name, value := range p.records {
			got, err := s.GetAll(t.Context(), store.Key("a", name), store.Key("b", name))
			switch {
			case err != nil:
				errs++
			case got[0] == nil || got[1] == nil:
				none++
			case string(got[0]) != value || string(got[1]) != value:
				t.Fatalf("%s became %q", name, got)
			}
		}
		return errs, none
	}
	// settled checks a store that has looked at its files.
	settled := func(s *Store, dir string) bool {
		t.Helper()
		_, err := s.GetAll(t.Context(), store.Key("a", "0-0"))
		if err == nil {
			// A compaction has thrown away what was damaged.
			if errs, none := look(s); errs+none > 0 {
				t.Errorf("%d errors and %d missing after the check", errs, none)
			}
			return false
		}
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("after the check: %v", err)
		}
		if err := s.Update(t.Context(), put("a", "1")); !errors.Is(err, store.ErrClosed) {
			t.Errorf("writing after the check: %v", err)
		}
		return true
	}
	for i := range rounds {
		dir := filepath.Join(t.TempDir(), "store")
		p.clone(t, dir)
		s := mustOpen(t, dir, Options{Sealer: key, NoSync: true, Ballast: -1})
		path := filepath.Join(dir, filepath.Base(tables[i%len(tables)]))
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// In the blocks, not in the index: Badger keeps using that one.
		if err := flip(path, random.IntN(len(content)*3/4), 1<<random.IntN(8)); err != nil {
			t.Fatal(err)
		}
		errs, none := look(s)
		absent += none // the flip hit a key; the check finds that
		if errs > 0 {
			failed++
		}
		s.verify()
		if settled(s, dir) {
			stopped++
		}
		mustClose(t, s)
		if again, err := Open(dir, Options{Sealer: key, NoSync: true, Ballast: -1}); err == nil {
			again.verify()
			settled(again, dir)
			mustClose(t, again)
		} else if !strings.Contains(err.Error(), dir) {
			t.Errorf("opened again: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("of %d: %d were found by reading, %d by the check; %d keys were not found before it", rounds, failed, stopped, absent)
	if failed < rounds/4 || stopped < rounds*3/4 {
		t.Errorf("of %d, %d were found by reading and %d by the check", rounds, failed, stopped)
	}
}

func FuzzReadWAL(f *testing.F) {
	dir := f.TempDir()
	s := mustOpen(f, dir, Options{NoSync: true})
	for i := range 3 {
		if err := s.Update(f.Context(), put(fmt.Sprint(i), "value")); err != nil {
			f.Fatal(err)
		}
	}
	log, err := os.ReadFile(filepath.Join(dir, walName(1)))
	if err != nil {
		f.Fatal(err)
	}
	log = log[:len(bytes.TrimRight(log, "\x00"))+40]
	if w := readWAL(log); w.first == 0 || w.last < w.first+3 || w.after != 0 {
		f.Fatalf("read %+v", w)
	}
	f.Add(log)
	bad := bytes.Clone(log)
	bad[60] ^= 1
	if w := readWAL(bad); w.after < 2 {
		f.Fatalf("read %+v of a damaged one", w)
	}
	f.Add(bad)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < walHeader {
			return
		}
		w := readWAL(data)
		if w.end < walHeader || w.end > len(data) || w.first > w.last || (w.first == 0) != (w.end == walHeader) && w.last != 0 {
			t.Fatalf("%+v", w)
		}
	})
}

// What a process leaves that is killed while logs come and go is not taken for
// damage, and damage not for that.
func TestLogsOfDeadProcesses(t *testing.T) {
	for _, test := range []struct {
		name   string
		st     state
		damage func(dir string) error
		opens  bool
	}{
		{"before Badger has made its first log", state{Clean: true}, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, walName(1)), nil, 0o600)
		}, true},
		{"after it", state{Clean: true}, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, walName(1)), make([]byte, walSize), 0o600)
		}, true},
		{"a log without an update", state{}, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, walName(1)), make([]byte, walHeader), 0o600)
		}, true},
		{"a log without an update, and the spare", state{}, func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, walName(1)), make([]byte, walSize), 0o600),
				os.WriteFile(filepath.Join(dir, walName(2)), nil, 0o600))
		}, true},
		{"while it was closed", state{Closing: true}, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, walName(1)), nil, 0o600)
		}, true},
		{"after it was closed", state{Closing: true}, func(string) error { return nil }, true},
		{"an emptied log", state{}, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, walName(1)), nil, 0o600)
		}, false},
		{"an emptied log, and the spare", state{}, func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, walName(1)), nil, 0o600),
				os.WriteFile(filepath.Join(dir, walName(2)), nil, 0o600))
		}, false},
		{"only the spare", state{}, func(dir string) error {
			return os.WriteFile(filepath.Join(dir, walName(2)), nil, 0o600)
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, dir, Options{NoSync: true, Ballast: -1})
			if err := s.Update(t.Context(), put("a", "1")); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			test.st.Schema, test.st.Run = schema, s.run
			if err := writeState(dir, test.st); err != nil {
				t.Fatal(err)
			}
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			again, err := Open(dir, Options{Sealer: sealer(t, 1), NoSync: true, Ballast: -1})
			if err != nil {
				if test.opens || !strings.Contains(err.Error(), ".mem") {
					t.Error(err)
				}
				return
			}
			defer mustClose(t, again)
			if !test.opens {
				t.Error("opened")
			}
			got, err := again.GetAll(t.Context(), store.Key("a"))
			if err != nil || string(got[0]) != "1" {
				t.Errorf("%q, %v", got, err)
			}
			if g := guardOf(t, again); !g.Restored.IsZero() {
				t.Errorf("guard %+v", g)
			}
		})
	}
}
