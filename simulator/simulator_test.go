package simulator

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSeeds runs the seeds that every change runs, with the command that runs
// more of them: go run ./simulator/cmd/simulate -seeds 100000. The command is
// built without the race detector, which has nothing to find where one task runs
// at a time and makes this 30 times slower.
func TestSeeds(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "simulate")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/simulate").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), binary, "-q", "-seeds", "2000").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for line := range strings.Lines(string(out)) {
		number, what, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if n, err := strconv.Atoi(number); err == nil {
			counts[what] = n
		}
	}
	if !strings.Contains(string(out), "\n2000 seeds in ") || !strings.Contains(string(out), " 0 broken invariants\n") {
		t.Error("the summary does not say that 2,000 seeds ran")
	}
	// What the seeds reach, so that a change that makes them tame is seen.
	for _, what := range []string{
		"state: planned", "state: sent", "state: awaiting_customer", "state: unknown", "state: reconciling", "state: succeeded",
		"state: refused", "state: partial", "state: not_applied", "state: cancelled", "state: manual", "settled by an operator", "fault: provider gone for days",
		"settled: succeeded", "settled: refused", "settled: partial", "settled: not_applied", "settled: cancelled",
		"killed before a commit", "killed after a commit", "killed before a read", "killed before a step is sent",
		"killed after a step was answered", "killed before the clock is read", "killed in a pause", "killed by chaos",
		"killed before the provider is asked for an account", "killed before the provider is asked for a preview",
		"fault: commit's reply lost, applied", "fault: commit's reply lost, not applied", "fault: commit's reply lost, applied later",
		"fault: store unavailable, commit", "fault: store unavailable, read", "fault: store down for a while",
		"fault: a store operation stalls", "fault: a task stalls", "fault: a closure runs again", "store conflict",
		"fault: a reply to a browser is lost", "fault: provider does not answer a read", "fault: an outcome is not certain",
		"fault: a read does not see what was written", "clock jumps backwards", "clock jumps forwards", "reloads", "restores",
		"guard: new generation", "link: used", "link: of another generation", "link: too soon after a new generation",
		"link: outside of its time", "link used by three at once", "link used again", "double click", "confirmed in three tabs",
		"confirmed again later", "checked again", "customer did their part", "asked for what is another's", "the numbers moved",
		"refused: policy", "refused: object is busy", "refused: nothing was sent", "signed out", "revoked one session",
		"revoked all of a customer", "revoked all of the tenant", "session: over", "leases taken over", "provider: replayed",
		"provider: key in use", "webhook: comes twice", "webhook: never comes", "webhook: taken", "woken by a webhook", "sweeps",
		"looks from the cache", "looks at the provider", "log entries",
	} {
		if counts[what] == 0 {
			t.Errorf("no seed reached %q", what)
		}
	}
	for _, f := range faults {
		if counts["fault: provider, "+string(f)] == 0 {
			t.Errorf("no seed met the provider's fault %q", f)
		}
	}
}

// A seed that breaks an invariant is reported with what it takes to see it
// again.
func TestReport(t *testing.T) {
	s := Many(1, 10, 1, nil)
	var out strings.Builder
	s.Print(&out)
	if s.Failed != nil || !strings.HasSuffix(out.String(), " 0 broken invariants\n") {
		t.Errorf("ten seeds: %s", out.String())
	}
	w := newWorld(7, true)
	w.spawn("test", nil, 0, func() { w.broken("INV0", "the sky is %s", "green") })
	w.run()
	s.Failed = &Result{Seed: 7, Failure: w.failure, Trace: w.trace}
	out.Reset()
	s.Print(&out)
	for _, want := range []string{"the sky is green", "seed 7 broke INV0 at ", "go run ./simulator/cmd/simulate -seed 7 -trace\n", " 1 broken invariants\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}

// A world leaves nothing behind that runs or waits, whatever was killed in it.
func TestNothingIsLeft(t *testing.T) {
	Many(1, 20, 1, nil)
	before := runtime.NumGoroutine()
	Many(1, 60, 1, nil)
	after := 0
	for range 100 { // caches end their goroutines a moment later
		if after = runtime.NumGoroutine(); after <= before+5 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after 60 worlds", before, after)
}

// A seed does the same thing every time: else a failure could not be looked
// into. Other seeds run at the same time.
func TestReplays(t *testing.T) {
	const seeds = 30
	type trace struct {
		hash  uint64
		lines []string
	}
	first := make([]trace, seeds)
	for n := range first {
		r := Run(uint64(n+1), true)
		first[n] = trace{r.Hash, r.Trace}
	}
	t.Run("again", func(t *testing.T) {
		for n := range first {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				r := Run(uint64(n+1), true)
				if r.Hash == first[n].hash && slices.Equal(r.Trace, first[n].lines) {
					return
				}
				for k := range min(len(r.Trace), len(first[n].lines)) {
					if r.Trace[k] != first[n].lines[k] {
						t.Fatalf("seed %d differs in line %d:\n%s\n%s", n+1, k, first[n].lines[k], r.Trace[k])
					}
				}
				t.Errorf("seed %d: trace %x of %d lines, then %x of %d", n+1, first[n].hash, len(first[n].lines), r.Hash, len(r.Trace))
			})
		}
	})
	for n := range first {
		if r := Run(uint64(n+1), false); r.Hash != first[n].hash {
			t.Errorf("seed %d does something else when nobody looks", n+1)
		}
	}
	if first[0].hash == first[1].hash {
		t.Error("two seeds do the same")
	}
}
