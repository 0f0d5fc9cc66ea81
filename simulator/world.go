package simulator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/webhook"
)

const (
	tenant    = "billing.vendor.example"
	leaseTime = time.Minute // portalcore's
	idle      = 30 * time.Minute
	absolute  = 8 * time.Hour
)

// outage is longer than the portal asks the provider how a step went.
const outage = 80 * time.Hour

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Failure is an invariant that broke.
type Failure struct {
	Invariant, What string
	At              time.Duration // by the world's time
}

func (f *Failure) String() string { return fmt.Sprintf("%s at %s: %s", f.Invariant, f.At, f.What) }

// plan is how hostile a world is. The seed draws it.
type plan struct {
	nodes     int
	exclusive bool // one node that alone has the store, like Badger's
	customers int
	browsers  int
	actions   int
	confirm   bool // 3-D Secure
	limit     int  // sessions per customer
	// chances of faults, each time that one is possible
	kill, store, unknown, provider, stalls, lostReply float64
	events                                            int // of chaos
	jumps, restores                                   bool
	outage                                            bool // the provider is gone for days
}

// world is everything there is.
type world struct {
	seed uint64
	plan plan
	rng  *rand.Rand // what happens
	ids  io.Reader  // what the portals draw

	now   time.Duration
	tasks []*task
	ready []*task
	cur   *task

	lastTask uint64
	steps    int
	hash     uint64
	tracing  bool
	trace    []string
	failure  *Failure
	killed   bool // some process was, and its tasks are not reaped
	over     bool
	quiet    bool // faults have stopped

	disk      *disk
	highWater time.Time
	storeDown time.Duration // until
	nodes     []*node
	prov      *stripe
	log       *zap.Logger
	boots     int
	caches    []*account.Accounts
	browsing  int // browsers that are not done

	// what the checks know
	counts   map[string]int
	intents  map[string]*intent
	leases   map[string]*portal
	era      int // goes up with a restore: acknowledged before it may be lost
	acks     map[string]*ack
	links    map[string]*usedLink
	sessions []*browserSession
	versions map[string]int // what every page must show of a customer, at least
	canaries []string
	logged   []string
}

// node is a machine: a clock and a portal process.
type node struct {
	id   int
	w    *world
	skew time.Duration
	// jumps counts how often the clock was moved.
	jumps int
	proc  *process
}

func (n *node) clock() time.Time { return epoch.Add(n.w.now + n.skew) }

// process is an operating-system process. It can be killed.
type process struct {
	name string
	node *node
	dead bool
	// portals are the configs of the process; the last one takes requests.
	portals []*portal
}

// portal is one config of a process: what portalcore.New wires.
type portal struct {
	proc     *process
	n        int
	closed   bool // another config took over
	sessions *session.Manager
	journal  *journal.Journal
	accounts *account.Accounts
	corridor *act.Corridor
	webhook  *webhook.Handler
	store    *shop
}

func (p *portal) now() time.Time {
	w := p.proc.node.w
	w.boundary("before the clock is read")
	if w.cur != nil && w.cur.proc == p.proc {
		d := time.Duration(0)
		if w.faulty(w.plan.stalls / 4) {
			w.count("fault: a task stalls")
			d = w.between(time.Second, 15*time.Minute)
		}
		if w.chance(0.3) || d > 0 {
			w.sleep(d)
		}
	}
	t := p.proc.node.clock()
	if w.cur != nil {
		copy(w.cur.read[1:], w.cur.read[:])
		w.cur.read[0] = t
	}
	return t
}

func newWorld(seed uint64, tracing bool) *world {
	w := &world{
		seed: seed, tracing: tracing, hash: 14695981039346656037,
		rng:  rand.New(rand.NewPCG(seed, 1)), //nolint:gosec // a simulation replays
		ids:  rand.NewChaCha8(key(seed)),
		disk: &disk{cells: map[string][]version{}}, counts: map[string]int{},
		intents: map[string]*intent{}, leases: map[string]*portal{}, acks: map[string]*ack{},
		links: map[string]*usedLink{}, versions: map[string]int{},
	}
	w.plan = w.draw()
	w.log = zap.New(&journalOfLogs{w: w})
	w.prov = newStripe(w)
	w.highWater = epoch
	w.direct(func(tx store.Tx) error {
		g, err := store.NewGuard(w.ids, epoch.Add(-time.Hour), "new")
		if err != nil {
			return err
		}
		return store.WriteGuard(tx, g)
	})
	for n := range w.plan.customers {
		w.prov.add(n+1, 1+w.rng.IntN(2))
	}
	for n := range w.plan.nodes {
		nd := &node{id: n + 1, w: w}
		if n > 0 {
			nd.skew = time.Duration(w.rng.IntN(4000)-2000) * time.Millisecond
			if w.plan.jumps && w.chance(0.3) { // nobody told it the time
				nd.skew = time.Duration(w.rng.IntN(100)-50) * time.Minute
			}
		}
		w.nodes = append(w.nodes, nd)
	}
	return w
}

func key(seed uint64) (k [32]byte) {
	for n := range 8 {
		k[n] = byte(seed >> (8 * n))
	}
	return k
}

func (w *world) time() time.Time { return epoch.Add(w.now) }

// draw makes the plan of a seed.
func (w *world) draw() plan {
	r := w.rng
	p := plan{nodes: 1 + r.IntN(3), customers: 1 + r.IntN(2), browsers: 1 + r.IntN(2), actions: 1 + r.IntN(6), confirm: r.IntN(3) == 0, limit: 1 + r.IntN(3)}
	if r.IntN(2) == 0 {
		p.limit = 0
	}
	p.exclusive = p.nodes == 1
	pick := func(of ...float64) float64 { return of[r.IntN(len(of))] }
	p.kill = pick(0, 0.001, 0.004, 0.015)
	p.store = pick(0, 0, 0.01, 0.05)
	p.unknown = pick(0, 0, 0.02, 0.1)
	p.provider = pick(0, 0.1, 0.3, 0.6)
	p.stalls = pick(0, 0, 0.01, 0.03)
	p.lostReply = pick(0, 0.05, 0.2)
	p.events = r.IntN(8)
	p.jumps = r.IntN(2) == 0
	p.restores = r.IntN(6) == 0
	p.outage = r.IntN(60) == 0
	return p
}

// faulty is chance as long as faults have not stopped.
func (w *world) faulty(p float64) bool { return !w.quiet && !w.over && w.chance(p) }

func (w *world) count(what string) { w.counts[what]++ }

// boundary is a point where the process of the running task may be killed.
func (w *world) boundary(name string) {
	if w.gone() || w.cur == nil || w.cur.proc == nil {
		return
	}
	w.mix(uint64(len(name)))
	if w.faulty(w.plan.kill) {
		w.count("killed " + name)
		w.kill(w.cur.proc)
	}
}

// kill ends a process at once. It comes back a while later.
func (w *world) kill(p *process) {
	if p.dead {
		return
	}
	w.note("kill %s", p.name)
	w.count("kills")
	p.dead, w.killed = true, true
	w.spawn("boot", nil, w.between(50*time.Millisecond, 5*time.Minute), func() { w.boot(p.node, true) })
}

// boot starts a portal process on a node.
func (w *world) boot(n *node, unclean bool) {
	if n.proc != nil && !n.proc.dead || w.over {
		return
	}
	if w.plan.exclusive {
		switch now := n.clock(); {
		case unclean:
			w.newGeneration(now, "not closed cleanly")
		case now.Before(w.highWater):
			w.newGeneration(now, "the wall clock went backwards")
		}
		w.highWater = n.clock()
	}
	w.boots++
	n.proc = &process{name: fmt.Sprintf("n%d.%d", n.id, w.boots), node: n}
	w.note("boot %s", n.proc.name)
	w.load(n.proc)
}

var (
	catalogue = func() *billing.Catalogue {
		c, err := billing.NewCatalogue([]billing.Plan{
			{Key: "basic", Rank: 1, Prices: []billing.Price{priceOf(priceBasic)}},
			{Key: "team", Rank: 2, Prices: []billing.Price{priceOf(priceTeam)}},
			{Key: "grand", Rank: 3, Prices: []billing.Price{priceOf(priceGrand)}},
		})
		if err != nil {
			panic(err)
		}
		return &c
	}()
	rules = func() *policy.Policy {
		p, err := policy.New([]policy.Rule{
			{Verdict: policy.Allow, Actions: policy.Actions},
			{Verdict: policy.Deny, Actions: []string{policy.Cancel}, Roles: []string{policy.Billing}},
		}, nil)
		if err != nil {
			panic(err)
		}
		return p
	}()
)

// permitted is what rules say, in the words of the checks.
func permitted(role string, k billing.ActionKind) bool {
	return role == policy.Owner || role == policy.Billing && k != billing.Cancel
}

// load loads a config: a new portal takes the requests, and an older one
// finishes those it has.
func (w *world) load(p *process) {
	c := &portal{proc: p, n: len(p.portals) + 1}
	s := &shop{w: w, portal: c}
	accounts, err := account.New(&wire{s: w.prov, portal: c}, c.now, 0)
	if err != nil {
		w.broken("SIM", "%v", err)
		return
	}
	w.caches = append(w.caches, accounts)
	c.store, c.accounts = s, accounts
	c.sessions = &session.Manager{
		Store: s, Tenant: tenant, Now: c.now, Rand: w.ids, Idle: idle, Absolute: absolute, DefaultRole: policy.Owner, Limit: w.plan.limit, Log: w.log,
	}
	c.journal = &journal.Journal{
		Store: s, Tenant: tenant, Now: c.now, Process: p.name, Exclusive: w.plan.exclusive, LeaseTime: leaseTime,
		Changed: session.BumpVersion, Version: session.Version,
		Settled: func(tx store.Tx, i *journal.Intent) error {
			return tx.Put(store.Key(tenant, "told", i.ID, string(i.State)), []byte(i.Customer))
		},
	}
	c.corridor = &act.Corridor{
		Store: s, Tenant: tenant, Provider: &wire{s: w.prov, portal: c}, Accounts: accounts, Journal: c.journal,
		Policy: func(string) *policy.Policy { return rules }, Catalogue: func() *billing.Catalogue { return catalogue },
		Now: c.now, Rand: w.ids, Log: w.log, AtOnce: 1,
		Elapsed: func() time.Duration { return w.now },
		Pause: func(_ context.Context, d time.Duration) error {
			w.boundary("in a pause")
			if !w.sleep(d) {
				return errors.New("the process is gone")
			}
			return nil
		},
	}
	hook, err := webhook.New(webhook.Options{
		Store: s, Tenant: tenant, Parse: (&wire{s: w.prov, portal: c}).ParseEvent, Wake: c.journal.Wake,
		Invoice: func(store.Tx, string, string, time.Time) error { return nil }, // the portals here have no index of invoices
		Recover: func() { w.spawn("recover", p, 0, func() { w.recover(c, false) }) },
		Now:     c.now, Rand: w.ids, Log: w.log,
	})
	if err != nil {
		w.broken("SIM", "%v", err)
		return
	}
	c.webhook = hook
	for _, old := range p.portals {
		old.closed = true
	}
	p.portals = append(p.portals, c)
	w.spawn("recovery", p, 0, func() {
		w.recover(c, true)
		for !w.quiet && !c.closed && w.sleep(w.between(5*time.Second, 90*time.Second)) {
			w.recover(c, false)
			if w.chance(0.2) {
				if _, err := store.Sweep(context.Background(), s, tenant, c.now(), 100); err == nil {
					w.count("sweeps")
				}
			}
		}
	})
}

// recover looks at what is due, as portalcore does when it starts and every few
// seconds.
func (w *world) recover(c *portal, atStart bool) {
	n, err := c.corridor.Recover(context.Background(), atStart)
	if err == nil && n > 0 && !w.gone() {
		w.count("recoveries that found something")
	}
}

// portal picks one that takes requests: of a reloading process sometimes the
// older config. It is nil where no process runs.
func (w *world) portal() *portal {
	var up []*process
	for _, n := range w.nodes {
		if n.proc != nil && !n.proc.dead {
			up = append(up, n.proc)
		}
	}
	if len(up) == 0 {
		return nil
	}
	p := up[w.rng.IntN(len(up))]
	return p.portals[len(p.portals)-1]
}

// chaos is what happens to the nodes.
func (w *world) chaos() {
	if w.plan.outage {
		w.spawn("outage", nil, w.between(time.Minute, 20*time.Minute), func() {
			w.note("the provider is gone")
			w.count("fault: provider gone for days")
			w.prov.down = w.now + outage
		})
	}
	for range w.plan.events {
		w.sleep(w.between(time.Second, 10*time.Minute))
		if w.over || w.quiet {
			return
		}
		n := w.nodes[w.rng.IntN(len(w.nodes))]
		switch k := w.rng.IntN(10); {
		case k < 2:
			if n.proc != nil && !n.proc.dead {
				w.count("killed by chaos")
				w.kill(n.proc)
			}
		case k < 5:
			if n.proc != nil && !n.proc.dead {
				w.note("reload %s", n.proc.name)
				w.count("reloads")
				w.load(n.proc)
			}
		case k < 7 && w.plan.jumps:
			w.jump(n)
		case k < 8:
			w.storeDown = w.now + w.between(time.Second, 5*time.Minute)
			w.note("the store is down")
			w.count("fault: store down for a while")
		case k < 9 && w.plan.restores:
			w.restore()
		}
	}
}

// jump moves a clock, which is then at most a day off: what marks a used link is
// swept 25 hours after the link's end.
func (w *world) jump(n *node) {
	far := []time.Duration{10 * time.Second, 3 * time.Minute, 45 * time.Minute, 3 * time.Hour, 23 * time.Hour}
	by := far[w.rng.IntN(len(far))]
	if w.chance(0.5) {
		by = -by
	}
	if (n.skew + by).Abs() > 24*time.Hour {
		by = -n.skew
	}
	n.skew += by
	n.jumps++
	w.note("the clock of node %d jumps by %s", n.id, by)
	if by < 0 {
		w.count("clock jumps backwards")
	} else {
		w.count("clock jumps forwards")
	}
}

// restore puts the store back to what it was some commits ago: all processes
// end, a backup is restored, and they come back.
func (w *world) restore() {
	if w.disk.seq < 5 {
		return
	}
	for _, n := range w.nodes {
		if n.proc != nil {
			n.proc.dead = true
		}
	}
	w.killed = true
	back := w.rng.Uint64N(min(w.disk.seq-2, 30)) + 1
	at := w.disk.seq - back
	w.note("restore: back by %d commits", back)
	w.count("restores")
	w.disk = w.disk.restore(at)
	w.era++
	// The machine that restores knows the time, within what signers' clocks may
	// be off: the cutoff of links that the vendor signed goes by it.
	now := w.time().Add(time.Duration(w.rng.IntN(4000)-2000) * time.Millisecond)
	if _, err := store.MarkRestored(context.Background(), itself{w}, w.ids, now, "a backup was restored"); err != nil {
		w.broken("SIM", "%v", err)
	}
	w.restored()
	down := w.between(time.Second, 5*time.Minute)
	for _, n := range w.nodes {
		w.spawn("boot", nil, down, func() { w.boot(n, false) })
	}
}

// deliver brings an event to a portal; one that does not take it gets it again.
func (w *world) deliver(body []byte) {
	for try := range 3 {
		if w.over {
			return
		}
		if c := w.portal(); c != nil {
			status := 0
			w.serve("webhook", c, func() {
				r, err := http.NewRequest(http.MethodPost, webhook.Path, bytes.NewReader(body)) //nolint:noctx // nothing ends it but the process
				if err != nil {
					w.broken("SIM", "%v", err)
					return
				}
				a := &answer{header: http.Header{}}
				c.webhook.ServeHTTP(a, r)
				status = a.status
			})
			if status == http.StatusOK {
				w.count("webhook: taken")
				return
			}
		}
		w.sleep(time.Duration(try+1) * time.Minute)
	}
}

// answer is a ResponseWriter that keeps the status.
type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }
func (a *answer) WriteHeader(status int)      { a.status = status }

// serve carries a request to a portal and waits for its answer. It reports
// false where none came: the process was killed, the reply was lost, it took
// too long. The portal may have done everything all the same.
func (w *world) serve(name string, c *portal, fn func()) bool {
	if c.proc.dead || w.over {
		return false
	}
	asker, answered := w.cur, false
	w.spawn(name, c.proc, w.between(time.Millisecond, 200*time.Millisecond), func() {
		if w.gone() {
			return
		}
		fn()
		if !w.gone() {
			answered = true
		}
		w.rouse(asker)
	})
	w.wait(5*time.Minute, func() bool { return answered || c.proc.dead })
	if answered && w.faulty(w.plan.lostReply) {
		w.count("fault: a reply to a browser is lost")
		return false
	}
	return answered
}

// Result is what became of a seed.
type Result struct {
	Seed    uint64
	Failure *Failure // nil: every invariant held
	Trace   []string // where asked for
	Hash    uint64   // of everything that happened, in order
	Counts  map[string]int
}

// Run runs the world of a seed.
func Run(seed uint64, tracing bool) (r Result) {
	w := newWorld(seed, tracing)
	defer func() {
		if p := recover(); p != nil {
			w.failure = &Failure{Invariant: "PANIC", What: fmt.Sprint(p), At: w.now}
		}
		for _, a := range w.caches {
			a.Close()
		}
		r = Result{Seed: seed, Failure: w.failure, Trace: w.trace, Hash: w.hash, Counts: w.counts}
	}()
	w.note("world %+v", w.plan)
	for _, n := range w.nodes {
		w.boot(n, false)
	}
	for _, c := range w.prov.customers {
		for b := range w.plan.browsers {
			w.browsing++
			w.spawn(fmt.Sprintf("browser%d@%s", b+1, c.id), nil, w.between(time.Second, time.Minute), func() { w.browse(c) })
		}
	}
	w.spawn("chaos", nil, 0, w.chaos)
	w.spawn("end", nil, 0, w.settle)
	w.run()
	if w.failure == nil {
		w.over = false
		w.audit()
		w.over = true
	}
	return r
}
