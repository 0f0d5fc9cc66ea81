package simulator

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Summary is what became of many seeds.
type Summary struct {
	Seeds  uint64
	Took   time.Duration
	Counts map[string]int
	// Failed is the lowest seed that broke an invariant, run again with its
	// trace; nil where none did.
	Failed *Result
}

// Many runs seeds from a number on, several at a time, until one fails. It
// writes its progress to out, where that is not nil.
func Many(from, seeds uint64, workers int, out io.Writer) Summary {
	began := time.Now()
	var (
		mu     sync.Mutex
		done   uint64
		counts = map[string]int{}
		failed *Result
		next   atomic.Uint64
		told   = began
	)
	var wg sync.WaitGroup
	for range max(workers, 1) {
		wg.Go(func() {
			for {
				n := next.Add(1) - 1
				mu.Lock()
				stop := failed != nil
				mu.Unlock()
				if n >= seeds || stop {
					return
				}
				r := Run(from+n, false)
				mu.Lock()
				done++
				for k, v := range r.Counts {
					counts[k] += v
				}
				if r.Failure != nil && (failed == nil || r.Seed < failed.Seed) {
					failed = &r
				}
				if out != nil && time.Since(told) > 5*time.Second {
					told = time.Now()
					_, _ = fmt.Fprintf(out, "%d of %d seeds, %.0f a second\n", done, seeds, float64(done)/time.Since(began).Seconds())
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		again := Run(failed.Seed, true)
		if again.Failure == nil || again.Hash != failed.Hash {
			again.Trace = append(again.Trace, fmt.Sprintf("the seed does not replay: %v, then %v; the simulator itself is at fault", failed.Failure, again.Failure))
			again.Failure = failed.Failure
		}
		failed = &again
	}
	return Summary{Seeds: done, Took: time.Since(began), Counts: counts, Failed: failed}
}

// Print writes what happened in all of the worlds, and what broke.
func (s Summary) Print(out io.Writer) {
	for _, k := range slices.Sorted(maps.Keys(s.Counts)) {
		_, _ = fmt.Fprintf(out, "%10d  %s\n", s.Counts[k], k)
	}
	faults := 0
	for k, n := range s.Counts {
		if strings.HasPrefix(k, "fault: ") {
			faults += n
		}
	}
	broken := 0
	if s.Failed != nil {
		broken = 1
		for _, line := range s.Failed.Trace {
			_, _ = fmt.Fprintln(out, line)
		}
		Report(out, *s.Failed)
	}
	_, _ = fmt.Fprintf(out, "%d seeds in %s (%.0f a second), %d redemptions, %d confirmations, %d effects, %d kills, %d restores, %d faults, %d broken invariants\n",
		s.Seeds, s.Took.Round(time.Second), float64(s.Seeds)/s.Took.Seconds(), s.Counts["redemptions"], s.Counts["confirmations"],
		s.Counts["effects"], s.Counts["kills"], s.Counts["restores"], faults, broken)
}

// Report writes how one seed went and how to see it again.
func Report(out io.Writer, r Result) {
	if r.Failure == nil {
		_, _ = fmt.Fprintf(out, "seed %d: every invariant held (trace %016x)\n", r.Seed, r.Hash)
		return
	}
	_, _ = fmt.Fprintf(out, "seed %d broke %s\nshow it again with: go run ./simulator/cmd/simulate -seed %d -trace\n", r.Seed, r.Failure, r.Seed)
}
