package badger

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// fakeDisk says what the test wants.
type fakeDisk struct {
	free     atomic.Int64
	readOnly atomic.Bool
	asked    atomic.Int64
}

func (f *fakeDisk) stat(string) (disk, bool) {
	f.asked.Add(1)
	return disk{free: f.free.Load(), readOnly: f.readOnly.Load()}, true
}

// onDisk opens a store and puts it on a disk that the test fills.
func onDisk(t *testing.T, o Options) (*Store, *fakeDisk) {
	t.Helper()
	f := new(fakeDisk)
	f.free.Store(1 << 40)
	o.stat = f.stat
	s := mustOpen(t, t.TempDir(), o)
	s.space.stop() // the test looks
	t.Cleanup(func() { f.free.Store(1 << 40); f.readOnly.Store(false) })
	return s, f
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestDiskFull(t *testing.T) {
	s, f := onDisk(t, Options{NoSync: true})
	ballast := filepath.Join(s.dir, ballastFile)
	if s.space.unsupported {
		t.Skip("the file system cannot reserve blocks")
	}
	steps := []struct {
		free    int64
		taken   bool
		ballast bool
	}{
		{lowWater, true, true},
		{lowWater - 1, false, true},
		{giveUp, false, true},
		{lowWater, true, true},
		{giveUp - 1, false, false},
		// What the ballast gave back is not room for updates.
		{giveUp - 1 + DefaultBallast, false, false},
		{lowWater, false, false},
		{lowWater + DefaultBallast - 1, false, false},
		{lowWater + DefaultBallast, true, true},
		{0, false, false},
		{1 << 40, true, true},
	}
	for i, step := range steps {
		f.free.Store(step.free)
		s.space.look()
		err := s.Update(t.Context(), put("a", "1"))
		if step.taken && err != nil {
			t.Errorf("step %d, %d bytes free: %v", i, step.free, err)
		}
		if !step.taken && (!errors.Is(err, ErrDiskFull) || !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), s.dir)) {
			t.Errorf("step %d, %d bytes free: %v, want ErrDiskFull", i, step.free, err)
		}
		if exists(ballast) != step.ballast {
			t.Errorf("step %d, %d bytes free: ballast there: %v", i, step.free, !step.ballast)
		}
		if got, err := s.GetAll(t.Context(), store.Key("a")); err != nil || string(got[0]) != "1" {
			t.Errorf("step %d: reading: %q, %v", i, got, err)
		}
	}
	f.readOnly.Store(true)
	if err := s.Update(t.Context(), put("a", "1")); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("on a read-only file system: %v", err)
	}
	f.readOnly.Store(false)
	mustClose(t, s)
	if exists(ballast) {
		t.Error("the ballast is left behind")
	}
}

func TestBallastSize(t *testing.T) {
	s, f := onDisk(t, Options{NoSync: true, Ballast: 1 << 20})
	fi, err := s.space.held.Stat()
	if err != nil || fi.Size() != 0 || blocks(t, fi) < 1<<20 {
		t.Errorf("ballast has %d bytes in blocks, %v", blocks(t, fi), err)
	}
	f.free.Store(giveUp - 1)
	s.space.look()
	f.free.Store(lowWater + 1<<20)
	s.space.look()
	if err := s.Update(t.Context(), put("a", "1")); err != nil {
		t.Error(err)
	}

	s, f = onDisk(t, Options{NoSync: true, Ballast: -1})
	if s.space.held != nil {
		t.Error("a ballast that is not wanted")
	}
	f.free.Store(0)
	s.space.look()
	if err := s.Update(t.Context(), put("a", "1")); !errors.Is(err, ErrDiskFull) {
		t.Error(err)
	}
	f.free.Store(lowWater)
	s.space.look()
	if err := s.Update(t.Context(), put("a", "1")); err != nil {
		t.Error(err)
	}
}

// Every write-ahead log has its blocks before Badger writes to it.
func TestLogsHaveBlocks(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	if s.space.unsupported {
		t.Skip("the file system cannot reserve blocks")
	}
	first := s.space.spareID
	for i := 0; s.space.spareID < first+4; i++ {
		if i == 10_000 {
			t.Fatal("no log was begun")
		}
		fill(t, s, i)
		logs, err := filepath.Glob(filepath.Join(s.dir, "*.mem"))
		if err != nil || len(logs) < 2 {
			t.Fatalf("logs %q, %v", logs, err)
		}
		for _, path := range logs {
			fi, err := os.Stat(path)
			if errors.Is(err, os.ErrNotExist) || err == nil && fi.Size() == 0 && !strings.HasSuffix(path, walName(s.space.spareID)) {
				continue // flushed at this moment
			}
			if err != nil || blocks(t, fi) < walRoom {
				t.Fatalf("%s has %d bytes in blocks, %v", path, blocks(t, fi), err)
			}
		}
	}
	if s.space.ready == 0 {
		t.Error("the MANIFEST has no blocks in advance")
	}
	id := s.space.spareID
	mustClose(t, s)
	if exists(filepath.Join(s.dir, walName(id))) {
		t.Error("the spare is left behind")
	}
}

// No compaction writes a table without asking, and it waits when there is no
// room for it: an upgrade of Badger that words its message in another way
// fails here.
func TestCompactionsWait(t *testing.T) {
	s, f := onDisk(t, Options{NoSync: true})
	tables := func() (n, compacted int) {
		for _, l := range s.db.Levels() {
			n += l.NumTables
			if l.Level > 0 {
				compacted += l.NumTables
			}
		}
		return n, compacted
	}
	i := 0
	for ; s.space.waiting.Load() == 0; i++ {
		if i == 2000 {
			t.Fatal("no compaction waits")
		}
		// Little enough that tables wait, and updates (which are admitted
		// by what is free now) go on.
		f.free.Store(lowWater)
		fill(t, s, i)
		f.free.Store(0)
		time.Sleep(5 * time.Millisecond)
	}
	for deadline := time.Now().Add(10 * time.Second); exists(filepath.Join(s.dir, ballastFile)); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a compaction waits and the ballast is still held")
		}
	}
	before, compacted := tables()
	time.Sleep(200 * time.Millisecond)
	if n, c := tables(); c > compacted {
		t.Errorf("from %d to %d tables without room", before, n)
	}
	f.asked.Store(0)
	f.free.Store(1 << 40)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, c := tables(); c > compacted && s.space.waiting.Load() == 0 {
			if f.asked.Load() == 0 {
				t.Error("tables were written and nobody asked")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the compaction did not go on")
		}
	}
	// Closing does not wait for ever.
	s.space.look()
	fill(t, s, i)
}

func TestTablesCount(t *testing.T) {
	s, f := onDisk(t, Options{NoSync: true, Ballast: -1})
	now := time.Now()
	size := s.space.tableSize()
	f.free.Store(flushRoom + giveUp/2 + 2*size)
	for i, want := range []bool{true, true, false} {
		if got := s.space.letThrough(now); got != want {
			t.Errorf("table %d let through: %v", i, got)
		}
	}
	if !s.space.letThrough(now.Add(tableTime)) {
		t.Error("tables count after they are written")
	}
}

// Where there is no room to flush, Close leaves the data in the log.
func TestCloseOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	f := new(fakeDisk)
	f.free.Store(1 << 40)
	s, err := Open(dir, Options{Sealer: sealer(t, 1), stat: f.stat})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(context.Background(), put("a", "1")); err != nil {
		t.Fatal(err)
	}
	f.free.Store(1 << 20)
	if err := s.Close(); !errors.Is(err, ErrDiskFull) {
		t.Errorf("Close: %v", err)
	}
	// As after the process has ended: its lock is gone.
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	after := mustOpen(t, dir, Options{})
	got, err := after.GetAll(t.Context(), store.Key("a"))
	if err != nil || string(got[0]) != "1" {
		t.Errorf("%q, %v", got, err)
	}
	if g := guardOf(t, after); !strings.Contains(g.Reason, "not closed cleanly") || !g.Restored.IsZero() {
		t.Errorf("guard %+v", g)
	}
}

func TestOpenOnFullDisk(t *testing.T) {
	f := new(fakeDisk)
	f.free.Store(lowWater - 1)
	if _, err := Open(t.TempDir(), Options{Sealer: sealer(t, 1), stat: f.stat}); !errors.Is(err, ErrDiskFull) {
		t.Errorf("on a full disk: %v", err)
	}
	f.free.Store(1 << 40)
	f.readOnly.Store(true)
	if _, err := Open(t.TempDir(), Options{Sealer: sealer(t, 1), stat: f.stat}); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("on a read-only file system: %v", err)
	}
	// A disk with room for the store and not for its ballast.
	f.readOnly.Store(false)
	f.free.Store(lowWater)
	s := mustOpen(t, t.TempDir(), Options{NoSync: true, stat: f.stat})
	if err := s.Update(t.Context(), put("a", "1")); err != nil || s.space.held != nil {
		t.Errorf("without a ballast: %v", err)
	}
}
