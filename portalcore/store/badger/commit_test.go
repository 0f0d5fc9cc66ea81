package badger

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bdb "github.com/dgraph-io/badger/v4"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func put(key, value string) func(store.Tx) error {
	return func(tx store.Tx) error { return tx.Put(store.Key(key), []byte(value)) }
}

// hold takes the turn, queues fns behind it in order, and lets them run.
func hold(s *Store, ctx testing.TB, fns ...func(store.Tx) error) []error {
	errs := make([]error, len(fns))
	s.turn <- struct{}{}
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() { errs[i] = s.Update(ctx.Context(), fn) })
		// In order: the next one starts once this one waits. There is no
		// event for "blocked in a send"; a moment is enough, and a wrong order
		// fails tests, it does not pass them.
		time.Sleep(10 * time.Millisecond)
	}
	<-s.turn
	wg.Wait()
	return errs
}

func TestBatching(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{})
	before := s.commits.Load()
	const writers, rounds = 64, 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				if err := s.Update(t.Context(), put(fmt.Sprintf("%d-%d", w, r), "x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	commits := s.commits.Load() - before
	if commits == 0 || commits > writers*rounds/4 {
		t.Errorf("%d commits for %d updates", commits, writers*rounds)
	}
}

func TestQueueIsOneBatch(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	before := s.commits.Load()
	boom := errors.New("boom")
	seen := ""
	errs := hold(s, t,
		put("a", "1"),
		func(tx store.Tx) error { // fails after it wrote
			_ = tx.Put(store.Key("a"), []byte("2"))
			_ = tx.Delete(store.Key("b"))
			return boom
		},
		func(tx store.Tx) error { // sees the first, not the second
			v, err := tx.Get(store.Key("a"))
			seen = string(v)
			if err != nil {
				return err
			}
			return tx.Put(store.Key("b"), append(v, '3'))
		},
		func(tx store.Tx) error { return tx.Delete(store.Key("a")) },
	)
	if errs[0] != nil || !errors.Is(errs[1], boom) || errs[2] != nil || errs[3] != nil || seen != "1" {
		t.Errorf("errors %v, saw %q", errs, seen)
	}
	if n := s.commits.Load() - before; n != 1 {
		t.Errorf("%d commits, want 1", n)
	}
	got, err := s.GetAll(t.Context(), store.Key("a"), store.Key("b"))
	if err != nil || got[0] != nil || string(got[1]) != "13" {
		t.Errorf("%q, %v", got, err)
	}
}

// An update that does not fit any more begins the next batch, with all of it.
func TestBatchIsSplit(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	before := s.commits.Load()
	const each = 8 // 8 * 64 KiB, two to a batch
	var fns []func(store.Tx) error
	for i := range 6 {
		fns = append(fns, func(tx store.Tx) error {
			if i > 0 { // what the batch before wrote is visible in this one
				if _, err := tx.Get(store.Key(fmt.Sprint(i-1), "7")); err != nil {
					return fmt.Errorf("update %d: %w", i, err)
				}
			}
			for j := range each {
				if err := tx.Put(store.Key(fmt.Sprint(i), fmt.Sprint(j)), make([]byte, store.MaxValue)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i, err := range hold(s, t, fns...) {
		if err != nil {
			t.Errorf("update %d: %v", i, err)
		}
	}
	if n := s.commits.Load() - before; n != 3 {
		t.Errorf("%d commits, want 3", n)
	}
}

// The size is exact enough: what is let through, Badger takes. The largest
// update by bytes, and by entries.
func TestLargestUpdate(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	for name, value := range map[string]int{"bytes": store.MaxValue, "small": 100, "entries": 0} {
		most := 0
		fill := func(n int) error {
			return s.Update(t.Context(), func(tx store.Tx) error {
				for most = range n {
					if err := tx.Put(store.Key(name, fmt.Sprintf("%06d", most)), make([]byte, value)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := fill(1 << 20); !errors.Is(err, store.ErrTooLarge) {
			t.Fatalf("%s: %v", name, err)
		}
		n := most
		if err := fill(n); err != nil {
			t.Errorf("%s: %d entries fit and were refused: %v", name, n, err)
		}
		got, err := s.GetAll(t.Context(), store.Key(name, fmt.Sprintf("%06d", n-1)), store.Key(name, fmt.Sprintf("%06d", n)))
		if err != nil || got[0] == nil || got[1] != nil {
			t.Errorf("%s: last of %d there: %v, next there: %v, %v", name, n, got[0] != nil, got[1] != nil, err)
		}
	}
	if s.failed != nil {
		t.Error(s.failed)
	}
}

func TestFailedCommit(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, Options{NoSync: true})
	if err := s.Update(t.Context(), put("before", "1")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("input/output error")
	s.commit = func(*bdb.Txn) error { return broken }
	spent := errors.New("spent")
	ran := false
	errs := hold(s, t,
		put("a", "1"),
		put("b", "1"),
		// A loser decided by a write that is not durable: it must not be told
		// what it decided.
		func(tx store.Tx) error {
			ran = true
			if _, err := tx.Get(store.Key("a")); err != nil {
				return err
			}
			return spent
		},
		// So must one that only read.
		func(tx store.Tx) error {
			_, err := tx.Get(store.Key("a"))
			return err
		},
	)
	if !ran {
		t.Error("the third update was not in the batch")
	}
	for i, err := range errs {
		if !errors.Is(err, store.ErrUnknown) || !errors.Is(err, broken) || errors.Is(err, spent) {
			t.Errorf("update %d: %v", i, err)
		}
	}
	s.commit = (*bdb.Txn).Commit
	if err := s.Update(t.Context(), put("c", "1")); !errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrUnknown) {
		t.Errorf("update after a failed commit: %v", err)
	}
	got, err := s.GetAll(t.Context(), store.Key("before"), store.Key("c"))
	if err != nil || string(got[0]) != "1" || got[1] != nil {
		t.Errorf("reading after a failed commit: %q, %v", got, err)
	}
	first := guardOf(t, s)
	mustClose(t, s)
	if g := guardOf(t, mustOpen(t, dir, Options{NoSync: true})); g.Generation == first.Generation {
		t.Error("the store counts as closed cleanly")
	}
}

// A panic inside the commit answers everybody, too.
func TestPanickingCommit(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	s.commit = func(*bdb.Txn) error { panic("badger") }
	var unknown, panicked atomic.Int64
	wrap := func(key string) {
		defer func() {
			if recover() != nil {
				panicked.Add(1)
			}
		}()
		if err := s.Update(t.Context(), put(key, "1")); errors.Is(err, store.ErrUnknown) {
			unknown.Add(1)
		}
	}
	s.turn <- struct{}{}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() { wrap(fmt.Sprint(i)) })
		time.Sleep(10 * time.Millisecond)
	}
	<-s.turn
	wg.Wait()
	if unknown.Load() != 3 || panicked.Load() != 1 {
		t.Errorf("%d unknown, %d panics", unknown.Load(), panicked.Load())
	}
	if err := s.Update(t.Context(), put("x", "1")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("update afterwards: %v", err)
	}
}

func TestClosed(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	var wg sync.WaitGroup
	var done atomic.Int64
	for i := range 16 {
		wg.Go(func() {
			for j := 0; ; j++ {
				err := s.Update(t.Context(), put(fmt.Sprintf("%d-%d", i, j), "x"))
				if err == nil {
					_, err = s.GetAll(t.Context(), store.Key("a"))
				}
				if errors.Is(err, store.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	for done.Load() < 100 {
		time.Sleep(time.Millisecond)
	}
	mustClose(t, s)
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	fn := func(store.Tx) error { t.Error("ran"); return nil }
	if err := s.Update(t.Context(), fn); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Update: %v", err)
	}
	if err := s.View(t.Context(), fn); !errors.Is(err, store.ErrClosed) {
		t.Errorf("View: %v", err)
	}
	if _, err := s.GetAll(t.Context(), store.Key("a")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("GetAll: %v", err)
	}
	if _, err := s.Reseal(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Reseal: %v", err)
	}
}

func TestTransactionOutlived(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	var kept []store.Tx
	keep := func(tx store.Tx) error { kept = append(kept, tx); return nil }
	if err := s.Update(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	if err := s.View(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	for _, tx := range kept {
		if _, err := tx.Get(store.Key("a")); !errors.Is(err, errTxDone) {
			t.Errorf("%T.Get: %v", tx, err)
		}
		if _, err := tx.Scan(nil, nil, 0, false); !errors.Is(err, errTxDone) {
			t.Errorf("%T.Scan: %v", tx, err)
		}
		if err := tx.Put(store.Key("a"), nil); err == nil {
			t.Errorf("%T.Put was taken", tx)
		}
	}
}

func TestBadgersOwnKeys(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{NoSync: true})
	err := s.Update(t.Context(), func(tx store.Tx) error { return tx.Put([]byte("!badger!x"), nil) })
	if err == nil || !strings.Contains(err.Error(), "Badger") {
		t.Errorf("a key of Badger's: %v", err)
	}
	if err := s.Update(t.Context(), put("a", "1")); err != nil {
		t.Errorf("the next update: %v", err)
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := mustOpen(b, b.TempDir(), Options{})
			commits, updates := s.commits.Load(), s.updates.Load()
			var next atomic.Int64
			b.ResetTimer()
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						if err := s.Update(b.Context(), put(fmt.Sprint(n), "a session of about this many bytes")); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(s.updates.Load()-updates)/float64(s.commits.Load()-commits), "updates/commit")
		})
	}
}
