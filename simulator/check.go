package simulator

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// intent is what the checks read of one, as it is in the store.
type intent struct {
	ID        string
	Customer  string
	Role      string
	Object    string
	Objects   []string
	State     journal.State
	Created   time.Time
	Due       time.Time
	Owner     string
	Lease     time.Time
	Rev       uint64
	Restored  time.Time
	ReadOnly  bool   `json:"read_only"`
	SettledBy string `json:"settled_by"`
	Action    billing.Action
	Steps     []struct {
		Key         string
		SentAt      time.Time `json:"sent_at"`
		Attempts    int
		Done        bool
		Ended       journal.State
		Result      *billing.Result
		Independent bool
	}
}

var (
	intentPrefix = string(store.Key(tenant, "intent"))
	auditPrefix  = string(store.Key(tenant, "audit"))
)

// next lists the states that may follow a state; every one may follow itself
// but those that end an intent.
var next = map[journal.State][]journal.State{
	journal.Planned:          {journal.Sent, journal.Cancelled, journal.Succeeded, journal.Reconciling},
	journal.Sent:             {journal.Processing, journal.Succeeded, journal.Refused, journal.Partial, journal.NotApplied, journal.AwaitingCustomer, journal.Unknown, journal.Reconciling, journal.Manual},
	journal.Unknown:          {journal.Processing, journal.Sent, journal.Succeeded, journal.AwaitingCustomer, journal.Reconciling, journal.NotApplied, journal.Partial, journal.Refused, journal.Manual},
	journal.Reconciling:      {journal.Processing, journal.Refused, journal.Sent, journal.Succeeded, journal.AwaitingCustomer, journal.NotApplied, journal.Partial, journal.Manual},
	journal.Processing:       {journal.Sent, journal.Succeeded, journal.NotApplied, journal.Partial, journal.Refused, journal.Reconciling, journal.AwaitingCustomer, journal.Manual},
	journal.AwaitingCustomer: {journal.Processing, journal.Refused, journal.Sent, journal.Succeeded, journal.NotApplied, journal.Partial, journal.Reconciling, journal.Manual},
	journal.Manual:           {journal.Succeeded, journal.Partial, journal.NotApplied},
}

func (w *world) decode(value []byte) *intent {
	i := &intent{}
	if err := json.Unmarshal(value, i); err != nil {
		w.broken("SIM", "an intent: %v", err)
	}
	return i
}

// committed looks at what a commit made durable.
func (w *world) committed(t *txn, by *portal) {
	for _, k := range t.order {
		if v := t.writes[k]; v != nil && strings.HasPrefix(k, intentPrefix) {
			w.wrote(w.decode(v), t, by)
		}
	}
}

func (w *world) wrote(i *intent, t *txn, by *portal) {
	old := w.intents[i.ID]
	w.intents[i.ID] = i
	w.note("%s is %s, rev %d, owner %s", i.ID, i.State, i.Rev, i.Owner)
	w.count("state: " + string(i.State))
	if old == nil {
		if i.State != journal.Planned || i.Rev != 1 {
			w.broken("INV4", "%s began as %s, rev %d", i.ID, i.State, i.Rev)
		}
	} else {
		w.moved(old, i, by)
	}
	// The lease is the one's who wrote it last; a webhook leaves it.
	if old == nil || old.Rev != i.Rev {
		w.leases[i.ID] = by
	}

	// Everything that follows the state does so in the same commit.
	at := func(parts ...string) []byte { return w.disk.get(string(store.Key(parts...)), w.disk.seq) }
	for _, o := range append([]string{i.Object}, i.Objects...) {
		if lock := at(tenant, "lock", i.Customer, o); i.State.Locks() != (string(lock) == i.ID) {
			w.broken("INV5", "%s is %s and the lock of %s is held by %q", i.ID, i.State, o, lock)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(w.intents)) {
		o := w.intents[id]
		if o.ID == i.ID || o.Customer != i.Customer || !o.State.Locks() || !i.State.Locks() {
			continue
		}
		mine := i.Action.Objects(i.Customer)
		if slices.ContainsFunc(o.Action.Objects(o.Customer), func(object string) bool { return slices.Contains(mine, object) }) {
			w.broken("INV6", "%s (%s) and %s (%s) are about the same object at the same time", i.ID, i.Action.Kind, o.ID, o.Action.Kind)
		}
	}
	if due := at("work", store.TimePart(i.Due.UnixNano()), tenant, i.Customer, i.ID); i.State.Terminal() != (due == nil) {
		w.broken("INV5", "%s is %s, due %s, and its work entry is %q", i.ID, i.State, i.Due, due)
	}
	if open := at(tenant, "open", i.Customer, i.ID); i.State.Terminal() != (open == nil) {
		w.broken("INV5", "%s is %s and its entry among the open ones is %q", i.ID, i.State, open)
	}
	if manual := at(tenant, "manual", i.Customer, i.ID); (i.State == journal.Manual) != (manual != nil) {
		w.broken("INV5", "%s is %s and its entry among the manual ones is %q", i.ID, i.State, manual)
	}
	if !i.State.Terminal() {
		return
	}
	if at(tenant, "told", i.ID, string(i.State)) == nil {
		w.broken("INV5", "%s is %s and nobody is told of it", i.ID, i.State)
	}
	audited := slices.ContainsFunc(t.order, func(k string) bool {
		return strings.HasPrefix(k, auditPrefix) && strings.Contains(k, i.ID+"-settled")
	})
	if !audited {
		w.broken("INV5", "%s is %s and the audit trail does not say so", i.ID, i.State)
	}
	if _, bumped := t.writes[string(session.CustomerKey(tenant, i.Customer))]; !bumped && i.State != journal.Cancelled {
		w.broken("INV5", "%s is %s and the account's version stayed", i.ID, i.State)
	}
}

// moved checks one write of an intent that was there.
func (w *world) moved(old, i *intent, by *portal) {
	if old.Rev == i.Rev { // woken: only its due time moves
		if old.State != i.State || old.Owner != i.Owner || old.State.Terminal() {
			w.broken("INV5", "%s was changed under rev %d", i.ID, i.Rev)
		}
		w.count("woken by a webhook")
		return
	}
	if i.Rev != old.Rev+1 {
		w.broken("INV5", "%s went from rev %d to %d", i.ID, old.Rev, i.Rev)
	}
	if old.State != i.State && !slices.Contains(next[old.State], i.State) || old.State.Terminal() && i.SettledBy == "" {
		w.broken("INV5", "%s went from %s to %s", i.ID, old.State, i.State)
	}
	for n := range old.Steps {
		a, b := old.Steps[n], i.Steps[n]
		switch {
		case len(i.Steps) != len(old.Steps), a.Key != b.Key:
			w.broken("INV2", "the steps of %s are not those it was planned with", i.ID)
		case a.Done && !b.Done, a.Ended != b.Ended && a.Ended != "", b.Done && b.Ended != "", !a.SentAt.IsZero() && b.SentAt.IsZero(), b.Attempts < a.Attempts:
			w.broken("INV2", "%s forgot that step %d was sent or done", i.ID, n)
		}
	}
	// Nobody takes an intent whose owner lives and holds the lease.
	holder := w.leases[i.ID]
	if old.Owner == "" || holder == by || holder.proc.dead && w.plan.exclusive || by == nil {
		return
	}
	held := func(now time.Time) bool {
		return now.Before(old.Lease) && old.Lease.Before(now.Add(leaseTime+10*time.Minute))
	}
	now := by.proc.node.clock()
	known := []time.Time{now}
	if w.cur != nil && w.cur.proc == by.proc {
		known = append(known, w.cur.read[:]...)
	}
	if !slices.ContainsFunc(known, func(t time.Time) bool { return !t.IsZero() && !held(t) }) {
		w.broken("LEASE", "%s was taken by %s/%d from %s/%d, which holds it for another %s", i.ID, by.proc.name, by.n, holder.proc.name, holder.n, old.Lease.Sub(now))
	}
	w.count("leases taken over")
}

// restored takes the checks back to what a restored store holds.
func (w *world) restored() {
	w.intents = map[string]*intent{}
	w.leases = map[string]*portal{}
	w.disk.under(intentPrefix, func(_ string, v []byte) {
		i := w.decode(v)
		w.intents[i.ID] = i
		w.leases[i.ID] = &portal{proc: &process{name: "gone", dead: true, node: w.nodes[0]}}
	})
}

// took is called when a step took effect at the provider.
func (w *world) took(step string, times int) {
	if times > 1 {
		w.broken("INV2", "step %s took effect %d times", step, times)
	}
}

// ack is what a browser was told of an intent.
type ack struct {
	intent, customer string
	state            journal.State
	era              int
	at               time.Duration
}

// told notes what a browser was told that asked at began, and checks it against
// the provider.
func (w *world) told(customer string, i journal.Intent, began time.Duration) {
	w.secrets("the intent that "+customer+" sees", i.LastError+i.Code+i.Reference())
	if i.Customer != customer {
		w.broken("INV3", "%s was shown intent %s of %s", customer, i.ID, i.Customer)
	}
	w.count("answered: " + string(i.State))
	w.holds(i.ID, customer, i.State, len(i.Steps), ordered(i.Action))
	for n := range i.Steps {
		took := w.prov.effects[stepOf(i.Steps[n].Key)] > 0
		switch state := i.StateOf(n); {
		case state == journal.Succeeded && !took && i.SettledBy == "", took && state.Terminal() && state != journal.Succeeded && state != journal.Manual:
			w.broken("INV3", "%s was told that step %d of %s is %s, and took effect: %v", customer, n, i.ID, state, took)
		}
	}
	old := w.acks[i.ID]
	if old != nil && old.era == w.era && old.state.Terminal() && old.state != journal.Manual {
		// An answer that was on its way at the same time may be an older one.
		if old.state != i.State && (old.at < began || i.State.Terminal()) {
			w.broken("INV3", "%s was told that %s is %s, and now that it is %s", customer, i.ID, old.state, i.State)
		}
		return
	}
	w.acks[i.ID] = &ack{i.ID, customer, i.State, w.era, w.now}
}

// ordered reports whether each step of an action rests on the one before it.
func ordered(a billing.Action) bool { return len(a.Invoices) == 0 }

// holds checks a settled state against what happened at the provider.
func (w *world) holds(id, customer string, state journal.State, steps int, inOrder bool) {
	applied, prefix := 0, true
	for n := range steps {
		if w.prov.effects[stepOf(journal.StepKey(id, n))] > 0 {
			applied++
			prefix = prefix && applied == n+1
		}
	}
	ok := true
	switch state {
	case journal.Succeeded:
		ok = applied == steps
	case journal.Refused, journal.NotApplied, journal.Cancelled:
		ok = applied == 0
	case journal.Partial:
		ok = applied > 0 && applied < steps
	default:
	}
	if !ok || inOrder && !prefix {
		w.broken("INV3", "%s of %s is %s and %d of %d steps took effect", id, customer, state, applied, steps)
	}
}

// settle lets the world come to rest: faults stop once the browsers are done,
// and everything gets the time it may take.
func (w *world) settle() {
	for w.browsing > 0 {
		if !w.sleep(time.Minute) {
			return
		}
	}
	w.quiet, w.storeDown = true, 0
	w.note("faults stop")
	w.sleep(leaseTime + 15*time.Minute) // stalls, late calls, boots and webhooks end
	for _, n := range w.nodes {
		w.boot(n, true)
	}
	const patience = 5 * 24 * time.Hour
	until := w.now + patience
	for round := 0; w.now < until && !w.over && round < 5000; round++ {
		c := w.portal()
		open, early := 0, time.Duration(0)
		for _, id := range slices.Sorted(maps.Keys(w.intents)) {
			i := w.intents[id]
			if i.State.Terminal() {
				continue
			}
			if wait := i.Due.Sub(c.proc.node.clock()); open == 0 || wait < early {
				early = wait
			}
			open++
			if i.State == journal.AwaitingCustomer && w.chance(0.3) {
				for n := range i.Steps {
					w.prov.visit(i.Steps[n].Key, w.chance(0.7))
				}
			}
		}
		if open == 0 {
			w.operate(c)
			return
		}
		// A lease that a clock from the future wrote is not waited for.
		w.sleep(min(max(early, 0), 30*time.Minute) + time.Second)
		w.serve("recovery", c, func() { w.recover(c, true) })
	}
}

// operate is what operators do with the intents that are left to them: they
// look at the provider's ledger and say what they saw.
func (w *world) operate(c *portal) {
	w.serve("operator", c, func() {
		list, err := c.journal.Manual(context.Background(), 100)
		if err != nil {
			w.broken("INV5", "the list for operators: %v", err)
		}
		for _, i := range list {
			applied := 0
			for n := range i.Steps {
				applied += w.prov.effects[stepOf(i.Steps[n].Key)]
			}
			state := journal.Partial
			switch applied {
			case 0:
				state = journal.NotApplied
			case len(i.Steps):
				state = journal.Succeeded
			}
			if _, err := c.journal.SettleManual(context.Background(), i.Customer, i.ID, state, "ann", "seen at the provider"); err != nil {
				w.broken("INV5", "an operator could not settle %s: %v", i.ID, err)
			}
			w.count("settled by an operator")
		}
	})
}

// audit looks at the world once it has come to rest.
func (w *world) audit() {
	for _, id := range slices.Sorted(maps.Keys(w.intents)) {
		i := w.intents[id]
		if !i.State.Terminal() {
			w.broken("INV5", "%s is still %s, due %s", id, i.State, i.Due)
		}
		w.holds(id, i.Customer, i.State, len(i.Steps), ordered(i.Action))
		w.count("settled: " + string(i.State))
		confirmed, settled := 0, 0
		w.disk.under(string(store.Key(tenant, "audit", i.Customer)), func(k string, _ []byte) {
			switch {
			case strings.Contains(k, id+"-confirmed"):
				confirmed++
			case strings.Contains(k, id+"-settled"):
				settled++
			}
		})
		if want := 1; confirmed != 1 || settled < want || settled > 2 || settled == 2 && i.SettledBy == "" {
			w.broken("INV5", "the audit trail has %d confirmations and %d ends of %s", confirmed, settled, id)
		}
	}
	// Nothing that was acknowledged is lost.
	for _, id := range slices.Sorted(maps.Keys(w.acks)) {
		a := w.acks[id]
		if a.era != w.era {
			continue
		}
		switch i := w.intents[id]; {
		case i == nil:
			w.broken("INV3", "%s was told of %s (%s), which is lost", a.customer, id, a.state)
		case a.state.Terminal() && a.state != journal.Manual && a.state != i.State:
			w.broken("INV3", "%s was told that %s is %s, and it is %s", a.customer, id, a.state, i.State)
		}
	}
	for _, kind := range []string{"lock", "open", "manual"} {
		w.disk.under(string(store.Key(tenant, kind)), func(k string, v []byte) {
			w.broken("INV5", "an entry under %s is left: %q %q", kind, k, v)
		})
	}
	w.disk.under(string(store.Key("work")), func(k string, _ []byte) {
		w.broken("INV5", "a work entry is left: %q", k)
	})
	// No secret is in what was logged, nor in the store, where it would be
	// sealed.
	for _, text := range w.logged {
		w.secrets("a log entry", text)
	}
	for _, k := range w.disk.keys {
		for _, v := range w.disk.cells[k] {
			w.secretsIn("the store under "+k, v.value)
		}
	}
}

// secrets checks that a text that leaves the portal holds none.
func (w *world) secrets(where, text string) {
	for _, c := range w.canaries {
		if strings.Contains(text, c) {
			w.broken("INV8", "%s holds the cookie of a session", where)
		}
	}
}

func (w *world) secretsIn(where string, text []byte) {
	for _, c := range w.canaries {
		if bytes.Contains(text, []byte(c)) {
			w.broken("INV8", "%s holds the cookie of a session", where)
		}
	}
}

// journalOfLogs is the core of a zap logger that looks for secrets.
type journalOfLogs struct {
	w      *world
	fields []zapcore.Field
}

func (l *journalOfLogs) Enabled(zapcore.Level) bool { return true }

func (l *journalOfLogs) With(fields []zapcore.Field) zapcore.Core {
	return &journalOfLogs{l.w, append(slices.Clone(l.fields), fields...)}
}

func (l *journalOfLogs) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(e, l)
}

func (l *journalOfLogs) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if l.w.gone() {
		return nil
	}
	text := []string{e.Message}
	for _, f := range append(slices.Clone(l.fields), fields...) {
		switch {
		case f.Type == zapcore.ErrorType:
			if err, ok := f.Interface.(error); ok {
				text = append(text, err.Error())
			}
		case f.Type == zapcore.StringType:
			text = append(text, f.String)
		case f.Key == "panic":
			l.w.broken("PANIC", "%v", f.Interface)
		}
	}
	l.w.count("log entries")
	line := strings.Join(text, " ")
	l.w.logged = append(l.w.logged, line)
	if l.w.tracing {
		l.w.trace = append(l.w.trace, strings.Repeat(" ", 14)+"log "+line)
	}
	return nil
}

func (l *journalOfLogs) Sync() error { return nil }
