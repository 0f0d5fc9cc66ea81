// Command campaign kills the portal's real binary again and again, with SIGKILL,
// in the middle of its work, and holds it to what it said: no session, sign-out
// or receipt that a client was shown is ever lost, no redirect token makes a
// second session, and nothing is changed twice at the payment provider.
//
//	go run ./e2e/campaign -kills 1000
//
// Half of the kills come from outside at random moments, half from inside at
// named points of the store and of the provider's calls (build tag
// portal_test_failpoints). The portal runs on Badger with its syncs on, built
// without the amnesia guard (portal_test_noguard): what is shown rests on the
// store alone. The provider is Stripe's API in front of the sandbox's ledger,
// in this process, which lives on; it has faults at the same time.
//
// With -store postgres the portal's records are in a PostgreSQL server that lives
// on, which the campaign starts; what a dead process was at is then taken over
// when its lease has run out, a minute later.
//
// The last line sums up. The exit code is 1 where anything was lost or doubled.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	o := options{out: os.Stdout}
	flag.IntVar(&o.kills, "kills", 1000, "how often to kill the portal")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "seed of what the campaign chooses; moments stay up to the machine")
	flag.DurationVar(&o.settle, "settle", 4*time.Minute, "within this time of the last start every change must be settled")
	flag.StringVar(&o.dir, "dir", "", "directory for binaries, stores and logs, kept; empty: a temporary one, kept only where something was found")
	flag.StringVar(&o.binary, "binary", "", "portal built with the tags "+strings.Join(buildTags, ",")+"; empty: build it")
	flag.StringVar(&o.store, "store", "badger", "badger, or postgres: a server of its own, which lives on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	temporary := o.dir == ""
	if temporary {
		var err error
		if o.dir, err = os.MkdirTemp("", "portal-campaign-"); err != nil {
			fmt.Fprintln(os.Stderr, "campaign:", err)
			os.Exit(1)
		}
	}
	r, err := run(ctx, o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "campaign: %v (logs are in %s)\n", err, o.dir)
		os.Exit(1)
	}
	if len(r.violations) > 0 {
		fmt.Fprintln(os.Stderr, "campaign: store and logs are in", o.dir)
		os.Exit(1)
	}
	if temporary {
		_ = os.RemoveAll(o.dir)
	}
}

// options configure a campaign.
type options struct {
	kills  int
	seed   uint64
	settle time.Duration
	dir    string
	binary string
	store  string // "badger" where it is empty
	out    io.Writer
	// points are where the portal kills itself; nil for all.
	points []point
}

// point is a failpoint of the portal's test build.
type point struct {
	name string
	// upTo is how often the point is passed at most before it kills.
	upTo int
	// fault is what the provider does meanwhile, for points that are reached
	// only then.
	fault bool
	// leaves marks points at which the portal dies with an unsettled change,
	// and recovery those that it comes to while it settles one at its next
	// start.
	leaves, recovery bool
}

// points are the named places where the portal dies. Function names are those
// of the stack at the store's door: a name that is no more is reported as never
// reached.
var points = []point{
	{name: "store.update.before@session.(*Manager).Redeem", upTo: 20},
	{name: "store.update.commit@session.(*Manager).Redeem", upTo: 20},
	{name: "store.update.after@session.(*Manager).Redeem", upTo: 20},
	{name: "store.update.before@session.(*Manager).End", upTo: 2},
	{name: "store.update.commit@session.(*Manager).End", upTo: 2},
	{name: "store.update.after@session.(*Manager).End", upTo: 2},
	{name: "store.update.after@act.(*Corridor).Prepare", upTo: 3},
	{name: "store.update.before@journal.(*Journal).Plan", upTo: 3},
	{name: "store.update.commit@journal.(*Journal).Plan", upTo: 3},
	{name: "store.update.after@journal.(*Journal).Plan", upTo: 3, leaves: true},
	{name: "store.update.commit@journal.(*Journal).Send", upTo: 3},
	{name: "store.update.after@journal.(*Journal).Send", upTo: 3, leaves: true},
	{name: "provider.execute.before", upTo: 3, leaves: true},
	{name: "provider.execute.after", upTo: 3, leaves: true},
	{name: "store.update.before@journal.(*Journal).Done", upTo: 3, leaves: true},
	{name: "store.update.commit@journal.(*Journal).Done", upTo: 3},
	{name: "store.update.after@journal.(*Journal).Done", upTo: 3},
	{name: "store.update.after@journal.(*Journal).Unsure", upTo: 1, fault: true},
	{name: "store.update.commit@act.(*Corridor).recoverOne", upTo: 3, recovery: true},
	{name: "store.update.after@act.(*Corridor).recoverOne", upTo: 3, recovery: true},
	{name: "provider.execute.before@act.(*Corridor).recoverOne", upTo: 1, recovery: true},
	{name: "provider.execute.after@act.(*Corridor).recoverOne", upTo: 1, recovery: true},
	{name: "store.update.commit", upTo: 60},
	{name: "store.view", upTo: 200},
	{name: "provider.preview", upTo: 6},
	{name: "provider.account", upTo: 6},
}

// turns hands out points one after another: those of recovery when there is
// something to recover, the others when there need not be.
type turns struct {
	plain, recovery []*point
	last            *point // where the portal died last; nil after another kill
}

func newTurns(list []point, from int) *turns {
	t := new(turns)
	for i := range list {
		p := &list[(from+i)%len(list)]
		if p.recovery {
			t.recovery = append(t.recovery, p)
		} else {
			t.plain = append(t.plain, p)
		}
	}
	return t
}

func (t *turns) unsettled() bool { return t.last != nil && t.last.leaves && len(t.recovery) > 0 }

func (t *turns) next() *point {
	list := &t.plain
	if t.unsettled() {
		list = &t.recovery
	}
	t.last = nil
	p := (*list)[0]
	*list = append((*list)[1:], p)
	return p
}

// report is what a campaign found.
type report struct {
	random, named, named0 int // kills; named0: points that were waited for in vain
	points                map[string]int
	starts                time.Duration // all of them together
	facts, effects        int
	tried, tries          int
	violations            []string
}

// String is the campaign's last line.
func (r *report) String() string {
	lost, double, again, other := 0, 0, 0, 0
	for _, v := range r.violations {
		switch {
		case strings.HasPrefix(v, lostFact):
			lost++
		case strings.HasPrefix(v, doubleEffect):
			double++
		case strings.HasPrefix(v, secondSession):
			again++
		default:
			other++
		}
	}
	s := fmt.Sprintf("%d kills (%d random, %d at %d failpoints): %d acknowledged facts, %d lost; %d effects, %d double; %d tokens tried again (%d times), %d sessions",
		r.random+r.named, r.random, r.named, len(r.points), r.facts, lost, r.effects, double, r.tried, r.tries, again)
	if other > 0 {
		s += fmt.Sprintf("; %d other violations", other)
	}
	return s
}

// The beginnings of violations, by which they are counted.
const (
	lostFact      = "lost: "
	doubleEffect  = "double effect: "
	secondSession = "session from a spent token: "
)

// maxViolations ends a campaign that has seen enough.
const maxViolations = 20

// run carries a campaign out.
func run(ctx context.Context, o options) (*report, error) {
	began := time.Now()
	w, err := newWorld(ctx, o)
	if err != nil {
		return nil, err
	}
	defer w.close()
	list := o.points
	if list == nil {
		list = points
	}
	r := &report{points: map[string]int{}}
	rnd := rand.New(rand.NewPCG(o.seed, 0)) //nolint:gosec // choices of a test
	fmt.Fprintf(o.out, "campaign: %d kills, seed %d, %s\n", o.kills, o.seed, w.describe())
	turn, printed := newTurns(list, rnd.IntN(len(list))), time.Now()
	for r.random+r.named < o.kills && len(w.facts.violations) < maxViolations {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c := cycle{rnd: rnd}
		if turn.unsettled() || r.named < r.random {
			c.point = turn.next()
		}
		died, err := w.cycle(ctx, c)
		if err != nil {
			return nil, err
		}
		switch {
		case c.point != nil && died:
			r.named++
			r.points[c.point.name]++
			turn.last = c.point
		default:
			r.random++
			if c.point != nil {
				r.named0++
			}
		}
		if time.Since(printed) > 10*time.Second {
			printed = time.Now()
			n := r.random + r.named
			fmt.Fprintf(o.out, "campaign: %d kills in %s (%.2f s each), %s\n", n, time.Since(began).Round(time.Second), time.Since(began).Seconds()/float64(n), w.facts.progress())
		}
	}
	if err := w.finish(ctx, o.settle); err != nil {
		return nil, err
	}
	if o.kills >= 10*len(list) {
		for _, p := range list {
			if r.points[p.name] == 0 {
				w.facts.violate("failpoint %s was never reached: is its function still called that?", p.name)
			}
		}
	}
	r.starts = w.starts
	r.facts, r.effects = w.facts.acknowledged(), w.effects
	r.tried, r.tries = w.facts.tokensTried()
	r.violations = w.facts.violations
	for i, v := range r.violations {
		if i == maxViolations {
			fmt.Fprintf(o.out, "VIOLATION and %d more\n", len(r.violations)-i)
			break
		}
		fmt.Fprintf(o.out, "VIOLATION %.300s\n", v)
	}
	for _, name := range slices.Sorted(mapKeys(r.points)) {
		fmt.Fprintf(o.out, "campaign: %4d kills at %s\n", r.points[name], name)
	}
	fmt.Fprintf(o.out, "campaign: took %s; %d times 64 browsers opened one link at once; a start took %s on average; %d times a failpoint was not reached in time; %s; logs %s\n",
		time.Since(began).Round(time.Second), w.bursts.Load(), (r.starts / time.Duration(max(1, w.startCount))).Round(time.Millisecond), r.named0, w.facts.progress(), filepath.Join(o.dir, "portal.log"))
	fmt.Fprintln(o.out, r)
	return r, nil
}
