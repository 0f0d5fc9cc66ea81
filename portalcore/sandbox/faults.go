package sandbox

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// FaultKind is what goes wrong.
type FaultKind string

// The faults.
const (
	// FaultLatency answers late and is right otherwise.
	FaultLatency FaultKind = "latency"
	// FaultTimeoutBefore gives no answer and did nothing.
	FaultTimeoutBefore FaultKind = "timeout-before"
	// FaultTimeoutAfter gives no answer and did it.
	FaultTimeoutAfter FaultKind = "timeout-after"
	// Fault500Before answers with a server error and did nothing.
	Fault500Before FaultKind = "error-500-before"
	// Fault500After answers with a server error and did it.
	Fault500After FaultKind = "error-500-after"
	// FaultRateLimit refuses for the time being and did nothing.
	FaultRateLimit FaultKind = "rate-limit"
	// FaultGarbage did it and answers with something that is no answer.
	FaultGarbage FaultKind = "garbage"
)

var (
	faultKinds = []FaultKind{FaultLatency, FaultTimeoutBefore, FaultTimeoutAfter, Fault500Before, Fault500After, FaultRateLimit, FaultGarbage}
	faultOps   = []string{"execute", "account", "payment_methods", "invoices", "debts", "upcoming", "preview", "any"}
)

// Fault is a fault to come.
type Fault struct {
	// On is the operation it happens on: "execute", "account" (all reads), a
	// section of an account alone ("payment_methods", "invoices", "debts",
	// "upcoming"), "preview" or "any".
	On string
	// Times is how many operations it happens on, 1 to 1,000.
	Times int
	Kind  FaultKind
	// Latency is how long the fault takes, at most a minute. Default: 0, for
	// FaultLatency it must be set.
	Latency time.Duration
}

// Faults are the faults to come. The zero value has none. It is safe for
// concurrent use.
type Faults struct {
	mu   sync.Mutex
	list []Fault
}

// Set adds a fault to come, after those that are there already.
func (f *Faults) Set(x Fault) error {
	switch {
	case !slices.Contains(faultOps, x.On):
		return fmt.Errorf("on %q is not one of %q", x.On, faultOps)
	case !slices.Contains(faultKinds, x.Kind):
		return fmt.Errorf("kind %q is not one of %q", x.Kind, faultKinds)
	case x.Times < 1 || x.Times > 1000:
		return fmt.Errorf("times %d is not 1 to 1000", x.Times)
	case x.Latency < 0 || x.Latency > time.Minute:
		return fmt.Errorf("latency %s is not 0s to 1m", x.Latency)
	case x.Kind == FaultLatency && x.Latency == 0:
		return fmt.Errorf("kind latency needs a latency, such as \"200ms\"")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.list) >= 1000 {
		return fmt.Errorf("there are 1000 faults waiting already")
	}
	f.list = append(f.list, x)
	return nil
}

// Clear drops all faults to come.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
}

// Take uses up one fault of an operation, the oldest first. ops are all the
// names that the operation goes by, but "any". A nil Faults has none.
func (f *Faults) Take(ops ...string) (Fault, bool) {
	if f == nil {
		return Fault{}, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.list {
		x := &f.list[i]
		if x.On != "any" && !slices.Contains(ops, x.On) {
			continue
		}
		taken := *x
		if x.Times--; x.Times == 0 {
			f.list = slices.Delete(f.list, i, i+1)
		}
		return taken, true
	}
	return Fault{}, false
}
