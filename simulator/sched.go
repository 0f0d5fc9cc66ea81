package simulator

import (
	"fmt"
	"iter"
	"time"
)

// task is something that goes on in the world: a request, a browser, a call at
// the provider. Tasks are coroutines: one runs, until it yields.
type task struct {
	id   uint64
	name string
	// proc is the portal process it runs in, nil outside of one: it ends with
	// its process.
	proc *process
	// wake is when it may run again, by the world's time.
	wake time.Duration
	// read is what this task last read off its process's clock: decisions rest
	// on it, though the clock may have been set since.
	read [4]time.Time
	done bool

	next  func() (struct{}, bool)
	yield func(struct{}) bool
}

// spawn begins a task; it first runs when the scheduler chooses it.
func (w *world) spawn(name string, p *process, after time.Duration, fn func()) *task {
	w.lastTask++
	t := &task{id: w.lastTask, name: name, proc: p, wake: w.now + after}
	t.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		fn()
	})
	w.tasks = append(w.tasks, t)
	return t
}

// step runs a task until it yields or ends.
func (w *world) step(t *task) {
	before := w.cur
	w.cur = t
	if _, more := t.next(); !more {
		t.done = true
	}
	w.cur = before
}

// run runs the world until nothing is left to do or an invariant broke.
func (w *world) run() {
	for w.failure == nil {
		w.reap()
		t := w.choose()
		if t == nil {
			break
		}
		w.steps++
		if w.steps > maxSteps {
			w.broken("LIVE", "the world is still busy after %d steps", maxSteps)
			break
		}
		w.now += time.Microsecond
		w.mix(t.id)
		w.step(t)
	}
	// Nothing that goes on after this has effect; it only ends.
	w.over = true
	for n := 0; n < len(w.tasks); n++ { // what ends may begin others
		for !w.tasks[n].done {
			w.step(w.tasks[n])
		}
	}
}

const maxSteps = 2_000_000

// choose picks one of the tasks that may run now; where all wait, time passes.
func (w *world) choose() *task {
	w.ready = w.ready[:0]
	var first *task
	alive := w.tasks[:0]
	for _, t := range w.tasks {
		if t.done {
			continue
		}
		alive = append(alive, t)
		if t.wake <= w.now {
			w.ready = append(w.ready, t)
		}
		if first == nil || t.wake < first.wake {
			first = t
		}
	}
	w.tasks = alive
	if len(w.ready) == 0 {
		if first != nil {
			w.now = first.wake
		}
		return first
	}
	return w.ready[w.rng.IntN(len(w.ready))]
}

// reap ends the tasks of processes that were killed. What they still do has no
// effect: they find every store and provider closed and run to their end.
func (w *world) reap() {
	if !w.killed {
		return
	}
	w.killed = false
	for _, t := range w.tasks {
		for t.proc != nil && t.proc.dead && !t.done {
			w.step(t)
		}
	}
}

// gone reports whether the running task's process was killed, or the world is
// over.
func (w *world) gone() bool {
	return w.over || w.cur != nil && w.cur.proc != nil && w.cur.proc.dead
}

// sleep lets other tasks run, for d at least. It reports false where the task's
// process was killed meanwhile.
func (w *world) sleep(d time.Duration) bool {
	if w.gone() {
		return false
	}
	w.cur.wake = w.now + d
	t := w.cur
	t.yield(struct{}{})
	return !w.gone()
}

// wait sleeps until ready, at most for d. It reports whether it is.
func (w *world) wait(d time.Duration, ready func() bool) bool {
	until := w.now + d
	for !ready() && w.now < until {
		if !w.sleep(until - w.now) {
			break
		}
	}
	return ready()
}

// rouse ends the sleep of a task.
func (w *world) rouse(t *task) {
	if t != nil && !t.done && t.wake > w.now {
		t.wake = w.now
	}
}

// mix takes something that happened into the trace's hash (FNV-1a).
func (w *world) mix(v uint64) {
	for range 8 {
		w.hash = (w.hash ^ v&0xff) * 1099511628211
		v >>= 8
	}
}

// note takes what happened into the trace.
func (w *world) note(format string, args ...any) {
	w.mix(uint64(w.now))
	for i := range len(format) {
		w.hash = (w.hash ^ uint64(format[i])) * 1099511628211
	}
	if !w.tracing || w.over {
		return
	}
	who := "world"
	if w.cur != nil {
		who = fmt.Sprintf("%s#%d", w.cur.name, w.cur.id)
		if p := w.cur.proc; p != nil {
			who = p.name + "/" + who
		}
	}
	w.trace = append(w.trace, fmt.Sprintf("%12s  %-28s %s", w.now.Round(time.Millisecond), who, fmt.Sprintf(format, args...)))
}

// broken notes the first invariant that broke; the world ends with it.
func (w *world) broken(invariant, format string, args ...any) {
	if w.failure != nil || w.over {
		return
	}
	w.note("BROKEN %s: "+format, append([]any{invariant}, args...)...)
	w.failure = &Failure{Invariant: invariant, What: fmt.Sprintf(format, args...), At: w.now}
}

// chance is true with probability p.
func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

// between draws a duration, small ones more often than large ones.
func (w *world) between(lo, hi time.Duration) time.Duration {
	f := w.rng.Float64()
	return lo + time.Duration(f*f*f*float64(hi-lo))
}
