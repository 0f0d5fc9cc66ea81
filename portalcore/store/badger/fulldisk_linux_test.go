package badger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// The tests in this file mount file systems of their own, so that they fill
// and break real ones. They need root.

const diskChildEnv = "BILLING_PORTAL_TEST_DISK_CHILD"

func init() { children[diskChildEnv] = diskChild }

const (
	diskWriters = 8
	diskSlots   = 8
)

func diskKey(writer, slot int) []byte {
	return store.Key("t", "disk", fmt.Sprint(writer), fmt.Sprint(slot))
}

// diskChild writes and reads until it is killed. It prints "ok <writer>
// <number>" for each update that was acknowledged, and "no <writer> <error>"
// for those that were not, each error once in a row.
func diskChild(dir string) {
	key, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		panic(err)
	}
	db, err := Open(dir, Options{Sealer: key})
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	for w := range diskWriters {
		go func() {
			failing := ""
			for i := 1; ; i++ {
				value := fmt.Sprintf("%d %s", i, strings.Repeat("x", 8<<10))
				err := db.Update(context.Background(), func(tx store.Tx) error {
					for slot := range diskSlots {
						if err := tx.Put(diskKey(w, slot), []byte(value)); err != nil {
							return err
						}
					}
					return nil
				})
				if err == nil {
					say("ok %d %d", w, i)
					failing = ""
					continue
				}
				if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknown) {
					panic(err)
				}
				if err.Error() != failing {
					failing = err.Error()
					say("no %d %v", w, err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
	}
	for {
		// Reads go on whatever happens to the disk.
		if _, err := db.GetAll(context.Background(), diskKey(1, 1), diskKey(2, 2), diskKey(3, 3)); err != nil {
			panic(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// diskRun is a child that is watched.
type diskRun struct {
	cmd     *exec.Cmd
	stderr  strings.Builder
	acked   [diskWriters]atomic.Int64
	count   atomic.Int64
	refused chan string
	ended   chan error
}

func startDiskChild(t *testing.T, dir string) *diskRun {
	t.Helper()
	r := &diskRun{cmd: exec.Command(os.Args[0]), refused: make(chan string, 10_000), ended: make(chan error, 1)}
	r.cmd.Env = append(os.Environ(), diskChildEnv+"="+dir)
	r.cmd.Stderr = &r.stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var w int
			var n int64
			if _, err := fmt.Sscanf(lines.Text(), "ok %d %d", &w, &n); err == nil {
				r.acked[w].Store(n)
				r.count.Add(1)
				continue
			}
			select {
			case r.refused <- lines.Text():
			default:
			}
		}
		r.ended <- r.cmd.Wait()
	}()
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	return r
}

// alive fails the test when the child has ended.
func (r *diskRun) alive(t *testing.T, when string) {
	t.Helper()
	select {
	case err := <-r.ended:
		t.Fatalf("the process ended %s: %v\n%s", when, err, r.stderr.String())
	default:
	}
}

// more waits for n more acknowledgements.
func (r *diskRun) more(t *testing.T, n int64, within time.Duration, when string) {
	t.Helper()
	from, deadline := r.count.Load(), time.Now().Add(within)
	for r.count.Load() < from+n {
		r.alive(t, when)
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d updates %s in %v", r.count.Load()-from, n, when, within)
		}
		time.Sleep(time.Millisecond)
	}
}

// kill ends the child and waits for all that it said.
func (r *diskRun) kill(t *testing.T) {
	t.Helper()
	r.alive(t, "by itself")
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.ended
}

// check opens the store and looks for what was acknowledged.
func (r *diskRun) check(t *testing.T, dir string, reasons ...string) {
	t.Helper()
	key, err := store.NewSealer(make([]byte, store.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{Sealer: key})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, s)
	for w := range diskWriters {
		var keys [][]byte
		for slot := range diskSlots {
			keys = append(keys, diskKey(w, slot))
		}
		values, err := s.GetAll(t.Context(), keys...)
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		if _, err := fmt.Sscan(string(values[0]), &n); err != nil || n < r.acked[w].Load() {
			t.Errorf("writer %d: update %d is there, %v; %d was acknowledged", w, n, err, r.acked[w].Load())
		}
		for slot := range diskSlots {
			if string(values[slot]) != string(values[0]) {
				t.Errorf("writer %d: half of an update", w)
			}
		}
	}
	if g := guardOf(t, s); !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(g.Reason, r) }) {
		t.Errorf("guard %+v, want one of %q", g, reasons)
	}
}

// mount mounts a file system of size MiB for the test, and returns where.
func mount(t *testing.T, kind string, size int) string {
	t.Helper()
	dir := t.TempDir()
	run := func(name string, args ...string) error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	var err error
	switch kind {
	case "tmpfs":
		err = run("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", size), "tmpfs", dir)
	case "ext4":
		image := filepath.Join(t.TempDir(), "image")
		if err = os.WriteFile(image, nil, 0o600); err == nil {
			err = os.Truncate(image, int64(size)<<20)
		}
		if err == nil {
			err = run("mkfs.ext4", "-q", "-F", "-m", "0", image)
		}
		if err == nil {
			err = run("mount", "-o", "loop", image, dir)
		}
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("this test needs to mount a file system: %v", err)
		}
		t.Skipf("this test needs to mount a file system: %v", err)
	}
	t.Cleanup(func() {
		var err error
		for range 50 { // until the child is gone altogether
			if err = syscall.Unmount(dir, 0); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("unmounting: %v", err)
	})
	return dir
}

// fillDisk writes a file at rate bytes per second and
// keeps the disk full until it is told to stop: it takes what becomes free.
func fillDisk(t *testing.T, path string, rate int64, full chan<- struct{}, stop <-chan struct{}) {
	f, err := os.Create(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	block := make([]byte, 256<<10)
	for i := range block {
		block[i] = byte(i)
	}
	begin, written, said := time.Now(), int64(0), false
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, err := f.Write(block)
		written += int64(n)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			if !said {
				close(full)
				said = true
			}
			time.Sleep(time.Millisecond)
			begin, written = time.Now(), 0
		case err != nil:
			t.Error(err)
			return
		}
		time.Sleep(time.Duration(written*int64(time.Second)/rate) - time.Since(begin))
	}
}

func TestDiskIsFilled(t *testing.T) {
	for _, test := range []struct {
		kind string
		rate int64 // MB/s
	}{
		// Several times what is promised. As fast as memory goes is beyond any
		// reserve: where this process has to wait for a processor, the filler takes
		// what was set free for a flush before the flush does.
		{"tmpfs", 50}, {"tmpfs", 200}, {"ext4", 50}, {"ext4", 400},
	} {
		t.Run(fmt.Sprintf("%s-%d", test.kind, test.rate), func(t *testing.T) {
			t.Parallel()
			disk := mount(t, test.kind, 360)
			dir := filepath.Join(disk, "store")
			r := startDiskChild(t, dir)
			r.more(t, 500, time.Minute, "on an empty disk")

			full, stop := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			path := filepath.Join(disk, "filler")
			wg.Go(func() { fillDisk(t, path, test.rate*1e6, full, stop) })
			select {
			case <-full:
			case <-time.After(time.Minute):
				close(stop)
				wg.Wait()
				t.Fatal("the disk does not become full")
			}
			time.Sleep(2 * time.Second)
			r.alive(t, "while the disk was filled")
			from := r.count.Load()
			time.Sleep(500 * time.Millisecond)
			if n := r.count.Load() - from; n > 0 {
				t.Errorf("%d updates on a full disk", n)
			}
			select {
			case line := <-r.refused:
				if !strings.Contains(line, "the disk is nearly full") || !strings.Contains(line, dir) {
					t.Errorf("refused with %q", line)
				}
			default:
				t.Error("nothing was refused")
			}
			other, err := Open(filepath.Join(disk, "other"), Options{Sealer: sealer(t, 1)})
			if err == nil {
				mustClose(t, other)
			}
			if !errors.Is(err, ErrDiskFull) {
				t.Errorf("opening a store on a full disk: %v", err)
			}

			close(stop)
			wg.Wait()
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			r.more(t, 1, 5*time.Second, "after there is room again")
			t.Logf("writes again after %v", time.Since(begin).Round(time.Millisecond))
			r.more(t, 500, time.Minute, "after there is room again")
			r.kill(t)
			r.check(t, dir, "not closed cleanly")
		})
	}
}

// A disk that can be written no more: writes fail and say why, reads go on,
// and what was acknowledged is there afterwards.
func TestDiskTurnsReadOnly(t *testing.T) {
	disk := mount(t, "ext4", 360)
	dir := filepath.Join(disk, "store")
	r := startDiskChild(t, dir)
	r.more(t, 300, time.Minute, "on a good disk")

	// The kernel does not let go of a disk that is written to; only a fault
	// makes it read-only. "abort" is such a fault, made by hand.
	err := exec.Command("mount", "-o", "remount,ro", disk).Run()
	t.Logf("remounting read-only: %v", err)
	if err != nil {
		// Not while a sync is under way: ext4 (6.18) answers one with success
		// although its journal failed meanwhile and what was written is lost.
		if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.cmd.Process.Signal(syscall.SIGCONT) }()
		time.Sleep(300 * time.Millisecond)
		if out, err := exec.Command("mount", "-o", "remount,abort", disk).CombinedOutput(); err != nil {
			t.Fatalf("aborting the file system: %v: %s", err, out)
		}
		if err := r.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	var line string
	select {
	case line = <-r.refused:
	case <-time.After(10 * time.Second):
		t.Fatal("writes go on")
	}
	time.Sleep(time.Second)
	r.alive(t, "on a read-only disk")
	for len(r.refused) > 0 {
		line = <-r.refused
	}
	t.Log(line)
	if !strings.Contains(line, "read-only") && !strings.Contains(line, "repair the disk") {
		t.Errorf("refused with %q", line)
	}
	r.kill(t)

	other, err := Open(filepath.Join(disk, "other"), Options{Sealer: sealer(t, 1)})
	if err == nil {
		mustClose(t, other)
		t.Error("opened a store on a read-only disk")
	}
	t.Log(err)
	source, err := exec.Command("findmnt", "-no", "SOURCE", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	image, err := exec.Command("losetup", "-nO", "BACK-FILE", strings.TrimSpace(string(source))).Output()
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "image")
	if err := copySparse(strings.TrimSpace(string(image)), copied); err != nil {
		t.Fatal(err)
	}
	// The machine comes up again: the journal is replayed.
	again := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", copied, again).CombinedOutput(); err != nil {
		t.Fatalf("mounting it again: %v: %s", err, out)
	}
	defer func() {
		if err := syscall.Unmount(again, 0); err != nil {
			t.Error(err)
		}
	}()
	// What was being written when the disk failed may be there in part.
	r.check(t, filepath.Join(again, "store"), "not closed cleanly", "is damaged")
}

func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// A directory that another process uses is left alone.
func TestOtherProcess(t *testing.T) {
	dir := t.TempDir()
	r := startDiskChild(t, dir)
	r.more(t, 1, time.Minute, "at first")
	for range 3 {
		if _, err := Open(dir, Options{Sealer: sealer(t, 1)}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
			t.Errorf("opening a store that is in use: %v", err)
		}
	}
	r.more(t, 200, time.Minute, "afterwards")
	r.kill(t)
	r.check(t, dir, "not closed cleanly")
}
