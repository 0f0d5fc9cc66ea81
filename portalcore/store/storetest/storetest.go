// Package storetest is the suite that every store passes.
package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Run runs the suite. Open returns a store for one test, empty or not: the
// suite uses keys of its own in each. Reopen closes s as a clean shutdown does
// and opens the same data again; nil leaves the test for it out, for a store
// that keeps nothing.
func Run(t *testing.T, open func(t *testing.T) store.Store, reopen func(t *testing.T, s store.Store) store.Store) {
	tests := []struct {
		name string
		test func(t *testing.T, s *space)
	}{
		{"Atomicity", testAtomicity},
		{"Panic", testPanic},
		{"Goexit", testGoexit},
		{"NotFound", testNotFound},
		{"Values", testValues},
		{"ReadYourWrites", testReadYourWrites},
		{"SlicesBelongToCaller", testSlices},
		{"ReadOnly", testReadOnly},
		{"Snapshot", testSnapshot},
		{"GetAll", testGetAll},
		{"ScanPrefix", testScanPrefix},
		{"ScanOrder", testScanOrder},
		{"ScanOverlay", testScanOverlay},
		{"ScanDefaultLimit", testScanDefaultLimit},
		{"TooLarge", testTooLarge},
		{"LargeUpdates", testLargeUpdates},
		{"KeyLimits", testKeyLimits},
		{"Cancelled", testCancelled},
		{"CancelledInQueue", testCancelledInQueue},
		{"RunAgain", testRunAgain},
		{"PutIfAbsent", testPutIfAbsent},
		{"DeleteOnce", testDeleteOnce},
		{"Counters", testCounters},
		{"WriteSkew", testWriteSkew},
		{"FailingNeighbours", testFailingNeighbours},
		{"Expiry", testExpiry},
		{"ExpiryIsIndexed", testExpiryIsIndexed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.test(t, &space{Store: open(t), name: fmt.Sprintf("storetest-%s-%d", test.name, time.Now().UnixNano())})
		})
	}
	if reopen == nil {
		return
	}
	t.Run("Reopen", func(t *testing.T) { testReopen(t, open(t), reopen) })
}

// space is a store and the keys of one test in it.
type space struct {
	store.Store
	name string
}

func (s *space) key(parts ...string) []byte {
	return store.Key(append([]string{s.name}, parts...)...)
}

func (s *space) put(t *testing.T, key []byte, value string) {
	t.Helper()
	err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put(key, []byte(value)) })
	if err != nil {
		t.Fatalf("putting %q: %v", key, err)
	}
}

// get returns the value of key, "<none>" where there is none.
func (s *space) get(t *testing.T, key []byte) string {
	t.Helper()
	values, err := s.GetAll(t.Context(), key)
	if err != nil {
		t.Fatalf("getting %q: %v", key, err)
	}
	if values[0] == nil {
		return "<none>"
	}
	return string(values[0])
}

func (s *space) want(t *testing.T, key []byte, want string) {
	t.Helper()
	if got := s.get(t, key); got != want {
		t.Errorf("%q holds %q, want %q", key, got, want)
	}
}

var errMine = errors.New("mine")

func testAtomicity(t *testing.T, s *space) {
	s.put(t, s.key("old"), "1")
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for _, k := range []string{"a", "b", "old"} {
			if err := tx.Put(s.key(k), []byte("2")); err != nil {
				return err
			}
		}
		if err := tx.Delete(s.key("old")); err != nil {
			return err
		}
		return errMine
	})
	if !errors.Is(err, errMine) {
		t.Errorf("error of fn came back as %v", err)
	}
	s.want(t, s.key("a"), "<none>")
	s.want(t, s.key("b"), "<none>")
	s.want(t, s.key("old"), "1")

	if err := s.View(t.Context(), func(store.Tx) error { return errMine }); !errors.Is(err, errMine) {
		t.Errorf("error of a view came back as %v", err)
	}
	if err := s.Update(t.Context(), func(store.Tx) error { return nil }); err != nil {
		t.Errorf("an update without writes: %v", err)
	}
}

// A panic in fn must not take the process or the store with it, and leaves
// nothing. It comes back as a panic or as an error.
func testPanic(t *testing.T, s *space) {
	err := func() (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("panic: %v", r)
			}
		}()
		return s.Update(t.Context(), func(tx store.Tx) error {
			_ = tx.Put(s.key("a"), []byte("1"))
			panic("closure")
		})
	}()
	if err == nil {
		t.Error("a panic in fn was swallowed")
	}
	s.want(t, s.key("a"), "<none>")
	s.put(t, s.key("a"), "2")
	s.want(t, s.key("a"), "2")
}

// t.FailNow and the like end the goroutine in the middle of fn.
func testGoexit(t *testing.T, s *space) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Update(t.Context(), func(tx store.Tx) error {
			_ = tx.Put(s.key("a"), []byte("1"))
			runtime.Goexit()
			return nil
		})
	}()
	<-done
	s.want(t, s.key("a"), "<none>")
	s.put(t, s.key("a"), "2")
}

func testNotFound(t *testing.T, s *space) {
	read := func(tx store.Tx) error {
		v, err := tx.Get(s.key("none"))
		if !errors.Is(err, store.ErrNotFound) || v != nil {
			t.Errorf("Get = %q, %v, want ErrNotFound", v, err)
		}
		return nil
	}
	if err := s.View(t.Context(), read); err != nil {
		t.Error(err)
	}
	if err := s.Update(t.Context(), read); err != nil {
		t.Error(err)
	}
	err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Delete(s.key("none")) })
	if err != nil {
		t.Errorf("deleting an absent key: %v", err)
	}
	s.put(t, s.key("gone"), "1")
	err = s.Update(t.Context(), func(tx store.Tx) error { return tx.Delete(s.key("gone")) })
	if err != nil {
		t.Error(err)
	}
	s.want(t, s.key("gone"), "<none>")
}

func testValues(t *testing.T, s *space) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for i, v := range [][]byte{{}, {0}, all, bytes.Repeat(all, store.MaxValue/256)} {
		s.put(t, s.key("v", fmt.Sprint(i)), string(v))
		s.want(t, s.key("v", fmt.Sprint(i)), string(v))
	}
	// No value and an empty one are different things.
	err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put(s.key("nil"), nil) })
	if err != nil {
		t.Fatal(err)
	}
	s.want(t, s.key("nil"), "")
}

func testReadYourWrites(t *testing.T, s *space) {
	s.put(t, s.key("a"), "1")
	err := s.Update(t.Context(), func(tx store.Tx) error {
		steps := []struct {
			do   func() error
			want string
		}{
			{func() error { return nil }, "1"},
			{func() error { return tx.Put(s.key("a"), []byte("2")) }, "2"},
			{func() error { return tx.Delete(s.key("a")) }, "<none>"},
			{func() error { return tx.Put(s.key("a"), []byte("3")) }, "3"},
		}
		for i, step := range steps {
			if err := step.do(); err != nil {
				return err
			}
			got := "<none>"
			v, err := tx.Get(s.key("a"))
			if err == nil {
				got = string(v)
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if got != step.want {
				t.Errorf("step %d reads %q, want %q", i, got, step.want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.want(t, s.key("a"), "3")
}

// Changing a slice that was returned must not change the store.
func testSlices(t *testing.T, s *space) {
	s.put(t, s.key("a"), "value")
	spoil := func(b []byte) {
		for i := range b {
			b[i] = '#'
		}
	}
	err := s.Update(t.Context(), func(tx store.Tx) error {
		if err := tx.Put(s.key("b"), []byte("value")); err != nil {
			return err
		}
		for _, k := range []string{"a", "b"} {
			for range 2 {
				v, err := tx.Get(s.key(k))
				if err != nil {
					return err
				}
				if string(v) != "value" {
					t.Errorf("Get(%s) = %q", k, v)
				}
				spoil(v)
			}
		}
		for range 2 {
			entries, err := tx.Scan(s.key(), nil, 0, false)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if string(e.Value) != "value" {
					t.Errorf("Scan: %q = %q", e.Key, e.Value)
				}
				spoil(e.Key)
				spoil(e.Value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.want(t, s.key("a"), "value")
	s.want(t, s.key("b"), "value")
}

func testReadOnly(t *testing.T, s *space) {
	s.put(t, s.key("a"), "1")
	err := s.View(t.Context(), func(tx store.Tx) error {
		if err := tx.Put(s.key("a"), []byte("2")); !errors.Is(err, store.ErrReadOnly) {
			t.Errorf("Put in a view: %v", err)
		}
		if err := tx.Delete(s.key("a")); !errors.Is(err, store.ErrReadOnly) {
			t.Errorf("Delete in a view: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("View: %v", err)
	}
	s.want(t, s.key("a"), "1")
}

func testSnapshot(t *testing.T, s *space) {
	s.put(t, s.key("a"), "1")
	s.put(t, s.key("b"), "1")
	err := s.View(t.Context(), func(tx store.Tx) error {
		if _, err := tx.Get(s.key("a")); err != nil {
			return err
		}
		s.put(t, s.key("b"), "2")
		s.put(t, s.key("c"), "2")
		v, err := tx.Get(s.key("b"))
		if err != nil || string(v) != "1" {
			t.Errorf("the snapshot changed: %q, %v", v, err)
		}
		entries, err := tx.Scan(s.key(), nil, 0, false)
		if err != nil || len(entries) != 2 {
			t.Errorf("the snapshot has %d entries, %v, want 2", len(entries), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.want(t, s.key("b"), "2")
}

func testGetAll(t *testing.T, s *space) {
	s.put(t, s.key("a"), "1")
	s.put(t, s.key("empty"), "")
	got, err := s.GetAll(t.Context(), s.key("none"), s.key("a"), s.key("empty"), s.key("none"), s.key("a"))
	if err != nil {
		t.Fatal(err)
	}
	want := [][]byte{nil, []byte("1"), {}, nil, []byte("1")}
	if len(got) != len(want) {
		t.Fatalf("%d values, want %d", len(got), len(want))
	}
	for i := range want {
		if (got[i] == nil) != (want[i] == nil) || !bytes.Equal(got[i], want[i]) {
			t.Errorf("value %d is %q (nil: %v), want %q", i, got[i], got[i] == nil, want[i])
		}
	}
	if got, err := s.GetAll(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("no keys: %q, %v", got, err)
	}
}

func (s *space) scan(t *testing.T, prefix, from []byte, limit int, reverse bool) []string {
	t.Helper()
	var entries []store.Entry
	err := s.View(t.Context(), func(tx store.Tx) (err error) {
		entries, err = tx.Scan(prefix, from, limit, reverse)
		return err
	})
	if err != nil {
		t.Fatalf("scanning %q: %v", prefix, err)
	}
	return s.names(entries)
}

// names returns the last part of each key, or what follows the test's own
// prefix where it is not a part.
func (s *space) names(entries []store.Entry) []string {
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, string(bytes.TrimPrefix(e.Key, s.key())))
	}
	return names
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// raw is a key of the test that ends with any bytes.
func (s *space) raw(suffix string) []byte { return append(s.key(), suffix...) }

func testScanPrefix(t *testing.T, s *space) {
	for _, k := range []string{"a", "a\x00", "a\xFF", "a\xFF\xFF", "aa", "ab", "abc", "b", "\xFF", "\xFF\xFFx"} {
		s.put(t, s.raw(k), k)
	}
	a := []string{"a", "a\x00", "aa", "ab", "abc", "a\xFF", "a\xFF\xFF"}
	same(t, "prefix a", s.scan(t, s.raw("a"), nil, 0, false), a...)
	slices.Reverse(a)
	same(t, "prefix a reverse", s.scan(t, s.raw("a"), nil, 0, true), a...)
	same(t, "prefix ab", s.scan(t, s.raw("ab"), nil, 0, false), "ab", "abc")
	same(t, "prefix a 0xFF reverse", s.scan(t, s.raw("a\xFF"), nil, 0, true), "a\xFF\xFF", "a\xFF")
	same(t, "prefix 0xFF", s.scan(t, s.raw("\xFF"), nil, 0, false), "\xFF", "\xFF\xFFx")
	same(t, "prefix 0xFF reverse", s.scan(t, s.raw("\xFF"), nil, 0, true), "\xFF\xFFx", "\xFF")
	same(t, "prefix of nothing", s.scan(t, s.raw("zz"), nil, 0, false))
	same(t, "prefix of nothing reverse", s.scan(t, s.raw("zz"), nil, 0, true))

	// Tuples: ("t", "a") is no neighbour of ("t", "ab").
	s.put(t, s.key("t", "a", "1"), "")
	s.put(t, s.key("t", "ab", "2"), "")
	same(t, "tuple", s.scan(t, s.key("t", "a"), nil, 0, false), string(store.Key("t", "a", "1")))
}

func testScanOrder(t *testing.T, s *space) {
	for _, k := range []string{"m", "c", "x", "a", "b", "y"} {
		s.put(t, s.raw("p"+k), k)
	}
	s.put(t, s.raw("o"), "outside")
	s.put(t, s.raw("q"), "outside")
	p := s.raw("p")
	tests := []struct {
		from    string
		limit   int
		reverse bool
		want    []string
	}{
		{"", 0, false, []string{"pa", "pb", "pc", "pm", "px", "py"}},
		{"", -1, true, []string{"py", "px", "pm", "pc", "pb", "pa"}},
		{"", 2, false, []string{"pa", "pb"}},
		{"", 2, true, []string{"py", "px"}},
		{"pc", 0, false, []string{"pc", "pm", "px", "py"}},
		{"pc", 0, true, []string{"pc", "pb", "pa"}},
		{"pd", 2, false, []string{"pm", "px"}},
		{"pd", 2, true, []string{"pc", "pb"}},
		{"pz", 0, false, []string{}},
		{"pz", 1, true, []string{"py"}},
		{"o", 1, false, []string{"pa"}}, // from lies before all of the prefix
		{"o", 0, true, []string{}},
		{"q", 0, false, []string{}}, // and behind it
		{"q", 1, true, []string{"py"}},
		{"p", 1, false, []string{"pa"}},
		{"p", 0, true, []string{}},
	}
	for _, test := range tests {
		var from []byte
		if test.from != "" {
			from = s.raw(test.from)
		}
		what := fmt.Sprintf("from %q limit %d reverse %v", test.from, test.limit, test.reverse)
		same(t, what, s.scan(t, p, from, test.limit, test.reverse), test.want...)
	}
	same(t, "from the empty key in reverse", s.scan(t, p, []byte{}, 0, true))
	same(t, "from the empty key", s.scan(t, p, []byte{}, 1, false), "pa")

	// The whole store, in both directions: at least the test's own keys.
	if got := s.scan(t, nil, s.raw("pc"), 2, false); !slices.Equal(got, []string{"pc", "pm"}) {
		t.Errorf("without prefix: %q", got)
	}
	if got := s.scan(t, nil, s.raw("pc"), 2, true); !slices.Equal(got, []string{"pc", "pb"}) {
		t.Errorf("without prefix, reverse: %q", got)
	}
	if got := s.scan(t, nil, nil, 1, true); len(got) != 1 {
		t.Errorf("the last key of all: %q", got)
	}
	same(t, "the first key of all in reverse from it", s.scan(t, nil, []byte{}, 0, true))
}

func testScanOverlay(t *testing.T, s *space) {
	for _, k := range []string{"a", "c", "e", "g"} {
		s.put(t, s.raw(k), "old "+k)
	}
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for _, k := range []string{"0", "b", "c", "h"} {
			if err := tx.Put(s.raw(k), []byte("new "+k)); err != nil {
				return err
			}
		}
		for _, k := range []string{"e", "a", "b", "absent"} {
			if err := tx.Delete(s.raw(k)); err != nil {
				return err
			}
		}
		entries, err := tx.Scan(s.raw(""), nil, 0, false)
		if err != nil {
			return err
		}
		same(t, "forward", s.names(entries), "0", "c", "g", "h")
		if string(entries[1].Value) != "new c" || string(entries[2].Value) != "old g" {
			t.Errorf("values %q, %q", entries[1].Value, entries[2].Value)
		}
		if entries, err = tx.Scan(s.raw(""), nil, 3, true); err != nil {
			return err
		}
		same(t, "reverse, 3", s.names(entries), "h", "g", "c")
		if entries, err = tx.Scan(s.raw(""), s.raw("d"), 1, false); err != nil {
			return err
		}
		same(t, "from d, 1", s.names(entries), "g")
		if entries, err = tx.Scan(s.raw(""), s.raw("d"), 2, true); err != nil {
			return err
		}
		same(t, "from d, 2, reverse", s.names(entries), "c", "0")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "afterwards", s.scan(t, s.raw(""), nil, 0, false), "0", "c", "g", "h")
}

func testScanDefaultLimit(t *testing.T, s *space) {
	const n = 1005
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for i := range n {
			if err := tx.Put(s.raw(fmt.Sprintf("%05d", i)), []byte{1}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := s.scan(t, s.raw(""), nil, 0, false)
	if len(got) != 1000 || got[999] != "00999" {
		t.Errorf("%d entries without a limit, want 1000", len(got))
	}
	if got := s.scan(t, s.raw(""), nil, n+1, true); len(got) != n || got[0] != "01004" {
		t.Errorf("%d entries with a higher limit, want %d", len(got), n)
	}
}

func testTooLarge(t *testing.T, s *space) {
	s.put(t, s.key("a"), "1")
	for _, heed := range []bool{true, false} {
		err := s.Update(t.Context(), func(tx store.Tx) error {
			if err := tx.Put(s.key("a"), []byte("2")); err != nil {
				return err
			}
			err := tx.Put(s.key("b"), make([]byte, store.MaxValue+1))
			if !errors.Is(err, store.ErrTooLarge) {
				t.Errorf("Put of a value that is too large: %v", err)
			}
			if heed {
				return err
			}
			return nil
		})
		if !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("update with a value that is too large: %v", err)
		}
	}
	s.want(t, s.key("a"), "1")

	// Beyond any engine's limit for one transaction, or all of it.
	const n = 400
	err := s.Update(t.Context(), func(tx store.Tx) error {
		for i := range n {
			if err := tx.Put(s.key("many", fmt.Sprint(i)), make([]byte, store.MaxValue)); err != nil {
				return err
			}
		}
		return nil
	})
	got := len(s.scan(t, s.key("many"), nil, n, false))
	switch {
	case errors.Is(err, store.ErrTooLarge) && got == 0, err == nil && got == n:
	default:
		t.Errorf("a huge update: %v, and %d of %d entries are there", err, got, n)
	}
	s.put(t, s.key("a"), "3")
	s.want(t, s.key("a"), "3")
}

// Updates that fit alone and not together are all applied, each as a whole.
func testLargeUpdates(t *testing.T, s *space) {
	const writers, values = 32, 8
	each(writers, func(i int) {
		err := s.Update(t.Context(), func(tx store.Tx) error {
			for j := range values {
				if err := tx.Put(s.key(fmt.Sprint(i), fmt.Sprint(j)), bytes.Repeat([]byte{byte(i)}, 60<<10)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("writer %d: %v", i, err)
		}
	})
	for i := range writers {
		if got := len(s.scan(t, s.key(fmt.Sprint(i)), nil, 0, false)); got != values {
			t.Errorf("writer %d: %d of %d values are there", i, got, values)
		}
	}
}

func testKeyLimits(t *testing.T, s *space) {
	long := append(s.key(), bytes.Repeat([]byte("k"), store.MaxKey)...)
	s.put(t, long[:store.MaxKey], "fits")
	s.want(t, long[:store.MaxKey], "fits")
	for _, key := range [][]byte{{}, long[:store.MaxKey+1]} {
		err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put(key, []byte("x")) })
		if err == nil {
			t.Errorf("a key of %d bytes was taken", len(key))
		}
		s.want(t, key, "<none>")
	}
}

func testCancelled(t *testing.T, s *space) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fn := func(store.Tx) error {
		t.Error("the closure ran")
		return nil
	}
	if err := s.Update(ctx, fn); !errors.Is(err, context.Canceled) {
		t.Errorf("Update: %v", err)
	}
	if err := s.View(ctx, fn); !errors.Is(err, context.Canceled) {
		t.Errorf("View: %v", err)
	}
	if _, err := s.GetAll(ctx, s.key("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("GetAll: %v", err)
	}
}

// Whatever an update says after its context was cancelled in the middle must
// be true, and it does not hang.
func testCancelledInQueue(t *testing.T, s *space) {
	running, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.Update(t.Context(), func(tx store.Tx) error {
			once.Do(func() { close(running) })
			<-release
			return tx.Put(s.key("slow"), []byte("1"))
		})
		if err != nil {
			t.Errorf("slow update: %v", err)
		}
	})
	<-running
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := s.Update(ctx, func(tx store.Tx) error { return tx.Put(s.key("queued"), []byte("1")) })
	close(release)
	wg.Wait()
	s.want(t, s.key("slow"), "1")
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		s.want(t, s.key("queued"), "<none>")
	case err == nil: // a store whose updates do not wait for each other
		s.want(t, s.key("queued"), "1")
	default:
		t.Errorf("queued update: %v", err)
	}
}

// A store may run a closure again. Every run begins with what is committed,
// never with what an earlier run of it wrote.
func testRunAgain(t *testing.T, s *space) {
	const writers, rounds = 8, 20
	var runs atomic.Int64
	each(writers, func(i int) {
		for range rounds {
			own := s.key("own", fmt.Sprint(i))
			var before, after uint64
			err := s.Update(t.Context(), func(tx store.Tx) error {
				runs.Add(1)
				var err error
				if before, err = count(tx, own); err != nil {
					return err
				}
				if after, err = add(tx, own); err != nil {
					return err
				}
				_, err = add(tx, s.key("shared"))
				return err
			})
			if err != nil || after != before+1 {
				t.Errorf("writer %d: from %d to %d, %v", i, before, after, err)
			}
		}
	})
	for i := range writers {
		s.wantCount(t, s.key("own", fmt.Sprint(i)), rounds)
	}
	s.wantCount(t, s.key("shared"), writers*rounds)
	if runs.Load() < writers*rounds {
		t.Errorf("%d runs of %d closures", runs.Load(), writers*rounds)
	}
}

func count(tx store.Tx, key []byte) (uint64, error) {
	v, err := tx.Get(key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

func add(tx store.Tx, key []byte) (uint64, error) {
	n, err := count(tx, key)
	if err != nil {
		return 0, err
	}
	return n + 1, tx.Put(key, binary.BigEndian.AppendUint64(nil, n+1))
}

func (s *space) wantCount(t *testing.T, key []byte, want uint64) {
	t.Helper()
	var got uint64
	err := s.View(t.Context(), func(tx store.Tx) (err error) {
		got, err = count(tx, key)
		return err
	})
	if err != nil || got != want {
		t.Errorf("counter %q is %d, %v, want %d", key, got, err, want)
	}
}

// each calls fn(0) to fn(n-1), all released at the same moment.
func each(n int, fn func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			fn(i)
		})
	}
	close(start)
	wg.Wait()
}

var errSpent = errors.New("spent")

func testPutIfAbsent(t *testing.T, s *space) {
	const rounds, writers = 200, 64
	for r := range rounds {
		key := s.key(fmt.Sprint(r))
		var winners, losers atomic.Int64
		var winner atomic.Value
		each(writers, func(i int) {
			err := s.Update(t.Context(), func(tx store.Tx) error {
				_, err := tx.Get(key)
				if err == nil {
					return errSpent
				}
				if !errors.Is(err, store.ErrNotFound) {
					return err
				}
				return tx.Put(key, fmt.Append(nil, i))
			})
			switch {
			case err == nil:
				winners.Add(1)
				winner.Store(fmt.Sprint(i))
			case errors.Is(err, errSpent):
				// A loser was told of a winner, so the winner is there to read.
				if s.get(t, key) == "<none>" {
					t.Error("lost against a write that is not there")
				}
				losers.Add(1)
			default:
				t.Error(err)
			}
		})
		if winners.Load() != 1 || losers.Load() != writers-1 {
			t.Fatalf("round %d: %d winners, %d losers", r, winners.Load(), losers.Load())
		}
		s.want(t, key, winner.Load().(string))
	}
}

// What is there once can be taken once: an update conflicts with a deletion of
// what it has read.
func testDeleteOnce(t *testing.T, s *space) {
	const rounds, writers = 20, 16
	for r := range rounds {
		key := s.key(fmt.Sprint(r))
		s.put(t, key, "1")
		var winners atomic.Int64
		each(writers, func(i int) {
			err := s.Update(t.Context(), func(tx store.Tx) error {
				if _, err := tx.Get(key); err != nil {
					return err
				}
				if err := tx.Delete(key); err != nil {
					return err
				}
				return tx.Put(s.key("winner", fmt.Sprint(r), fmt.Sprint(i)), nil)
			})
			switch {
			case err == nil:
				winners.Add(1)
			case !errors.Is(err, store.ErrNotFound):
				t.Error(err)
			}
		})
		there := s.scan(t, s.key("winner", fmt.Sprint(r)), nil, writers, false)
		if winners.Load() != 1 || len(there) != 1 {
			t.Fatalf("round %d: %d winners, %d left their name", r, winners.Load(), len(there))
		}
	}
}

// Values go when their time has passed by the clock that the caller names, and
// not before, whatever the machine's clock says.
func testExpiry(t *testing.T, s *space) {
	at := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	for i := range 10 {
		err := s.Update(t.Context(), func(tx store.Tx) error {
			return store.PutExpiring(tx, s.name, s.key("v", fmt.Sprint(i)), []byte("1"), at.Add(time.Duration(i)*time.Hour))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.put(t, s.key("v", "stays"), "1")
	other := s.name + "x" // another tenant, whose name begins with this one's
	err := s.Update(t.Context(), func(tx store.Tx) error {
		return store.PutExpiring(tx, other, store.Key(other, "v"), []byte("1"), at)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		now         time.Time
		limit       int
		swept, left int
	}{
		{at.Add(-1), 100, 0, 11},
		{at, 100, 1, 10},
		{at.Add(3 * time.Hour), 2, 2, 8},
		{at.Add(3 * time.Hour), 2, 1, 7},
		{at.Add(3 * time.Hour), 2, 0, 7},
		{at, 100, 0, 7}, // a clock that went back
		{at.Add(100 * time.Hour), 100, 6, 1},
		{at.Add(100 * time.Hour), 100, 0, 1},
	} {
		n, err := store.Sweep(t.Context(), s.Store, s.name, step.now, step.limit)
		if err != nil || n != step.swept {
			t.Errorf("at %v: swept %d, %v, want %d", step.now, n, err, step.swept)
		}
		if left := len(s.scan(t, s.key("v"), nil, 0, false)); left != step.left {
			t.Errorf("at %v: %d values are left, want %d", step.now, left, step.left)
		}
	}
	s.want(t, s.key("v", "stays"), "1")
	s.want(t, store.Key(other, "v"), "1")
}

// Sweeping is part of the same order as all updates: what a transaction made
// expire and what it wrote besides are there together or not at all.
func testExpiryIsIndexed(t *testing.T, s *space) {
	at := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	err := s.Update(t.Context(), func(tx store.Tx) error {
		if err := store.PutExpiring(tx, s.name, s.key("v"), []byte("1"), at); err != nil {
			return err
		}
		return errMine
	})
	if !errors.Is(err, errMine) {
		t.Fatal(err)
	}
	if n, err := store.Sweep(t.Context(), s.Store, s.name, at, 100); n != 0 || err != nil {
		t.Errorf("swept %d of what was never written, %v", n, err)
	}
	const values = 60
	err = s.Update(t.Context(), func(tx store.Tx) error {
		for i := range values {
			if err := store.PutExpiring(tx, s.name, s.key("v", fmt.Sprint(i)), []byte("1"), at); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var swept atomic.Int64
	each(4, func(int) { // several who sweep at the same time
		for range 30 {
			n, err := store.Sweep(t.Context(), s.Store, s.name, at, 7)
			if err != nil {
				t.Error(err)
			}
			swept.Add(int64(n))
		}
	})
	if left := s.scan(t, s.key(), nil, 0, false); swept.Load() != values || len(left) > 0 {
		t.Errorf("swept %d of %d, %d keys are left", swept.Load(), values, len(left))
	}
}

// Crash runs writers on s until crash has made it fail, whatever that is (its
// server is killed, its connections are cut, its disk goes away), and holds the
// store that reopen returns to what the writers were told: nil means that an
// update is there, ErrUnknown that all of it is there or nothing, any other
// error that nothing is.
func Crash(t *testing.T, s store.Store, crash func(), reopen func() store.Store) {
	t.Helper()
	const writers, parts = 16, 3
	type outcome struct {
		acked, unknown, failed []string
	}
	outcomes := make([]outcome, writers)
	sp := &space{Store: s, name: fmt.Sprintf("storetest-crash-%d", time.Now().UnixNano())}
	var acked atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range writers {
		wg.Go(func() {
			o := &outcomes[w]
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("%d-%d", w, i)
				err := sp.Update(t.Context(), func(tx store.Tx) error {
					for p := range parts {
						if err := tx.Put(sp.key("part", name, fmt.Sprint(p)), []byte(name)); err != nil {
							return err
						}
					}
					_, err := add(tx, sp.key("counter", fmt.Sprint(w)))
					return err
				})
				switch {
				case err == nil:
					o.acked = append(o.acked, name)
					acked.Add(1)
				case errors.Is(err, store.ErrUnknown):
					o.unknown = append(o.unknown, name)
				default:
					o.failed = append(o.failed, name)
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	for deadline := time.Now().Add(30 * time.Second); acked.Load() < 10*writers; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			close(stop)
			wg.Wait()
			t.Fatalf("%d updates in 30 s", acked.Load())
		}
	}
	crash()
	time.Sleep(50 * time.Millisecond)
	close(stop)
	wg.Wait()

	sp.Store = reopen()
	unknown, failed := 0, 0
	for w, o := range outcomes {
		there := func(name string) (n int) {
			for p := range parts {
				if v := sp.get(t, sp.key("part", name, fmt.Sprint(p))); v == name {
					n++
				} else if v != "<none>" {
					t.Errorf("update %s reads %q", name, v)
				}
			}
			return n
		}
		applied := len(o.acked)
		for _, name := range o.acked {
			if there(name) != parts {
				t.Errorf("update %s was acknowledged and is not there", name)
			}
		}
		for _, name := range o.unknown {
			switch there(name) {
			case parts:
				applied++
			case 0:
			default:
				t.Errorf("half of update %s is there", name)
			}
		}
		for _, name := range o.failed {
			if there(name) != 0 {
				t.Errorf("update %s failed and is there", name)
			}
		}
		sp.wantCount(t, sp.key("counter", fmt.Sprint(w)), uint64(applied))
		unknown += len(o.unknown)
		failed += len(o.failed)
	}
	if unknown+failed == 0 {
		t.Error("the crash made nothing fail")
	}
	t.Logf("%d acknowledged, %d unknown, %d failed", acked.Load(), unknown, failed)
}

func testCounters(t *testing.T, s *space) {
	const writers, rounds = 32, 15
	each(writers, func(i int) {
		for j := range rounds {
			err := s.Update(t.Context(), func(tx store.Tx) error {
				_, err := add(tx, s.key(fmt.Sprint((i+j)%3)))
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
	for k := range 3 {
		s.wantCount(t, s.key(fmt.Sprint(k)), writers*rounds/3)
	}
}

// Two updates that each read both keys and write one of them must not both
// find the other one's absent.
func testWriteSkew(t *testing.T, s *space) {
	for r := range 30 {
		a, b := s.key(fmt.Sprint(r), "a"), s.key(fmt.Sprint(r), "b")
		var won atomic.Int64
		each(2, func(i int) {
			err := s.Update(t.Context(), func(tx store.Tx) error {
				for _, k := range [][]byte{a, b} {
					if _, err := tx.Get(k); err == nil {
						return errSpent
					} else if !errors.Is(err, store.ErrNotFound) {
						return err
					}
				}
				return tx.Put([][]byte{a, b}[i], []byte{1})
			})
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, errSpent) {
				t.Error(err)
			}
		})
		if won.Load() != 1 {
			t.Fatalf("round %d: %d updates succeeded, want 1", r, won.Load())
		}
	}
}

// Updates that fail or panic between others that succeed leave nothing, and
// nobody sees what they wrote.
func testFailingNeighbours(t *testing.T, s *space) {
	const writers, rounds = 24, 10
	each(writers, func(i int) {
		for r := range rounds {
			func() {
				defer func() { _ = recover() }()
				err := s.Update(t.Context(), func(tx store.Tx) error {
					if _, err := tx.Get(s.key("bad")); !errors.Is(err, store.ErrNotFound) {
						t.Errorf("a failed update's write is there: %v", err)
					}
					entries, err := tx.Scan(s.key("bad"), nil, 0, false)
					if err != nil || len(entries) != 0 {
						t.Errorf("a failed update's write is scanned: %d, %v", len(entries), err)
					}
					if i%3 == 0 {
						_, err := add(tx, s.key("good"))
						return err
					}
					if err := tx.Put(s.key("bad"), []byte("x")); err != nil {
						return err
					}
					if err := tx.Delete(s.key("good")); err != nil {
						return err
					}
					if (i+r)%3 == 1 {
						panic("closure")
					}
					return errMine
				})
				if i%3 == 0 && err != nil || i%3 != 0 && err == nil {
					t.Errorf("writer %d: %v", i, err)
				}
			}()
		}
	})
	s.wantCount(t, s.key("good"), writers/3*rounds)
	s.want(t, s.key("bad"), "<none>")
}

func testReopen(t *testing.T, st store.Store, reopen func(*testing.T, store.Store) store.Store) {
	s := &space{Store: st, name: "storetest-reopen"}
	const n = 300
	each(8, func(i int) {
		for j := i; j < n; j += 8 {
			s.put(t, s.key(fmt.Sprintf("%03d", j)), fmt.Sprint(j))
		}
	})
	err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Delete(s.key("007")) })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.Store = reopen(t, s.Store)
		if got := len(s.scan(t, s.key(), nil, 0, false)); got != n-1 {
			t.Errorf("%d of %d entries after a reopen", got, n-1)
		}
		s.want(t, s.key("042"), "42")
		s.want(t, s.key("007"), "<none>")
		s.put(t, s.key("042"), "42")
	}
}
