package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	randv2 "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portalcore/caddy-billing-portal/e2e/browse"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// facts are what the portal told its clients. An answer makes a fact; a request
// without one makes none.
type facts struct {
	mu         sync.Mutex
	history    *json.Encoder // every fact as it came, to look into afterwards
	tokens     []*token
	sessions   []*session
	intents    map[string]*intent
	strangers  int
	odds       map[string]int
	violations []string
	checks     int
}

// token is a redirect token that was sent to the portal.
type token struct {
	URL, Customer string
	expires       time.Time
	// Spent is set by an answer: a session, or that it was used already.
	Spent    bool
	sessions int
	waiting  bool // sent without an answer
	listed   bool
	tries    int // after it was spent
}

// session is a sign-in that was answered.
type session struct {
	Customer string
	cookies  []*http.Cookie
	// left: a sign-out was sent. Out: it was answered.
	left, Out bool
}

// intent is a confirmed change.
type intent struct {
	ID, Customer string
	// State is what the receipt showed, see stateOf.
	State string
}

func (f *facts) note(kind string, v any) {
	if f.history != nil {
		_ = f.history.Encode(map[string]any{"at": time.Now(), "fact": kind, "value": v})
	}
}

func (f *facts) violate(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.violateLocked(format, args...)
}

func (f *facts) violateLocked(format string, args ...any) {
	v := fmt.Sprintf(format, args...)
	if !slices.Contains(f.violations, v) {
		f.violations = append(f.violations, v)
		f.note("violation", v)
	}
}

// odd notes an answer that is none of the expected ones: a change in the way,
// the provider's faults. An internal error is never right.
func (f *facts) odd(what string, p browse.Page) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.odds == nil {
		f.odds = map[string]int{}
	}
	f.odds[fmt.Sprintf("%s %d", what, p.Status)]++
	if p.Status >= 500 && p.Status != http.StatusServiceUnavailable {
		f.violateLocked("%s: %d\n%s", what, p.Status, p.Body)
	}
}

func (f *facts) progress() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	done, out, spent := 0, 0, 0
	for _, i := range f.intents {
		if i.State == "done" {
			done++
		}
	}
	for _, s := range f.sessions {
		if s.Out {
			out++
		}
	}
	for _, t := range f.tokens {
		if t.Spent {
			spent++
		}
	}
	return fmt.Sprintf("%d tokens spent, %d sessions, %d signed out, %d changes confirmed, %d done, %d checks, other answers %v, %d violations",
		spent, len(f.sessions), out, len(f.intents), done, f.checks, f.odds, len(f.violations))
}

// acknowledged counts the facts.
func (f *facts) acknowledged() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.sessions) + len(f.intents)
	for _, t := range f.tokens {
		if t.Spent {
			n++
		}
	}
	for _, s := range f.sessions {
		if s.Out {
			n++
		}
	}
	for _, i := range f.intents {
		if i.State != "" {
			n++
		}
	}
	return n
}

func (f *facts) tokensTried() (tokens, tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tokens {
		if t.tries > 0 {
			tokens++
			tries += t.tries
		}
	}
	return tokens, tries
}

// stranger names a customer that nobody saw before.
func (f *facts) stranger() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.strangers++
	return fmt.Sprintf("cus_stranger_%07d", f.strangers)
}

// known reports, before a token is sent, whether it is known to be spent.
func (f *facts) known(t *token) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !t.listed {
		t.listed = true
		f.tokens = append(f.tokens, t)
	}
	if t.Spent {
		t.tries++
	}
	return t.Spent
}

func (f *facts) unanswered(t *token) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t.waiting = true
}

// someUnanswered returns a token of a stranger that was sent without an answer,
// or nil.
func (f *facts) someUnanswered(rnd *randv2.Rand) *token {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	n := len(f.tokens)
	for range 8 {
		if n == 0 {
			return nil
		}
		t := f.tokens[n-1-rnd.IntN(min(n, 40))]
		if t.waiting && !t.Spent && now.Before(t.expires) && strings.HasPrefix(t.Customer, "cus_stranger") {
			return t
		}
	}
	return nil
}

// entered takes the answer to a link in. known is what was known before it was
// sent.
func (f *facts) entered(t *token, known bool, p browse.Page, cookies []*http.Cookie) *session {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checks++
	switch p.Status {
	case http.StatusSeeOther:
		if known || t.sessions > 0 {
			f.violateLocked("%s%s of %s", secondSession, t.URL, t.Customer)
		}
		t.Spent = true
		t.sessions++
		s := &session{Customer: t.Customer, cookies: cookies}
		f.sessions = append(f.sessions, s)
		f.note("session", t)
		return s
	case http.StatusGone:
		if !t.Spent && strings.Contains(p.Body, "already used") {
			t.Spent = true
			f.note("spent", t)
		}
	default:
		f.violateLocked("a good link: %d\n%s", p.Status, p.Body)
	}
	return nil
}

func (f *facts) leaving(s *session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := !s.left
	s.left = true
	return first
}

func (f *facts) signedOut(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Out = true
	f.note("signed out", s)
}

// out is a 401 for a session.
func (f *facts) out(s *session, where string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.left {
		f.violateLocked("%sa session of %s (401 at %s)", lostFact, s.Customer, where)
		s.left = true
	}
}

func (f *facts) confirmed(id, customer string) *intent {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.intents[id]
	if i == nil {
		i = &intent{ID: id, Customer: customer}
		if f.intents == nil {
			f.intents = map[string]*intent{}
		}
		f.intents[id] = i
		f.note("confirmed", i)
	}
	return i
}

// shown takes a receipt in.
func (f *facts) shown(i *intent, p browse.Page) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checks++
	if p.Status != http.StatusOK {
		if p.Status == http.StatusNotFound || p.Status >= 500 && p.Status != http.StatusServiceUnavailable {
			f.violateLocked("%sthe receipt of %s for %s: %d", lostFact, i.ID, i.Customer, p.Status)
		}
		return
	}
	state, err := stateOf(p.Body)
	if err != nil {
		f.violateLocked("the receipt of %s: %v", i.ID, err)
		return
	}
	switch {
	case i.State == state:
	case i.State != "":
		f.violateLocked("%sthe receipt of %s for %s said %q and says %q", lostFact, i.ID, i.Customer, i.State, state)
	default:
		i.State = state
		f.note("receipt", i)
	}
}

// open lists the confirmed changes that are not known to be settled.
func (f *facts) open() []*intent {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*intent
	for _, i := range f.intents {
		if i.State == "" {
			list = append(list, i)
		}
	}
	return list
}

// sessionOf returns a live session of a customer, or nil.
func (f *facts) sessionOf(customer string) *session {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range slices.Backward(f.sessions) {
		if s.Customer == customer && !s.left {
			return s
		}
	}
	return nil
}

// probe checks one session: a live one is let in, a signed-out one is not. It
// asks for a receipt that there is not, which needs no provider. It reports
// false where no answer came.
func (w *world) probe(ctx context.Context, s *session) bool {
	f := &w.facts
	f.mu.Lock()
	out := s.Out // before it is asked: a sign-out may be answered meanwhile
	f.mu.Unlock()
	p, err := w.visitor(s).Do(ctx, "/done/none", "same-origin", nil)
	if err != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checks++
	switch {
	case p.Status != http.StatusUnauthorized && p.Status != http.StatusNotFound:
		f.violateLocked("a session of %s: %d\n%s", s.Customer, p.Status, p.Body)
	case out && p.Status == http.StatusNotFound:
		f.violateLocked("%sthe sign-out of a session of %s: it is in again", lostFact, s.Customer)
	case !s.left && p.Status == http.StatusUnauthorized:
		f.violateLocked("%sa session of %s", lostFact, s.Customer)
	}
	return true
}

// receiptAnyhow looks at a receipt with any session of its customer, a new one
// where there is none.
func (w *world) receiptAnyhow(ctx context.Context, rnd *randv2.Rand, i *intent) bool {
	s := w.facts.sessionOf(i.Customer)
	if s == nil {
		t, err := w.link(ctx, rnd, i.Customer)
		if err != nil {
			return false
		}
		var answered bool
		if s, answered = w.enter(ctx, t); s == nil {
			return answered
		}
	}
	return w.receipt(ctx, i, w.visitor(s))
}

// sample is some of the newest of a list and some of all.
func sample[T any](list []T, rnd *randv2.Rand, newest, any int) []T {
	out := slices.Clone(list[max(0, len(list)-newest):])
	for range min(any, len(list)) {
		out = append(out, list[rnd.IntN(len(list))])
	}
	return out
}

// verifySome checks a part of what was said until stop.
func (w *world) verifySome(ctx context.Context, stop <-chan struct{}, seed uint64) {
	rnd := randv2.New(randv2.NewPCG(seed, 2)) //nolint:gosec // choices of a test
	f := &w.facts
	f.mu.Lock()
	tokens, sessions := sample(f.spent(), rnd, 12, 12), sample(f.sessions, rnd, 12, 12)
	var intents []*intent
	for _, i := range f.intents { // in no order
		if intents = append(intents, i); len(intents) == 6 {
			break
		}
	}
	f.mu.Unlock()
	var work []func() bool
	for _, t := range tokens {
		work = append(work, func() bool { _, ok := w.enter(ctx, t); return ok })
	}
	for _, s := range sessions {
		work = append(work, func() bool { return w.probe(ctx, s) })
	}
	for _, i := range intents {
		work = append(work, func() bool { return w.receiptAnyhow(ctx, rnd, i) })
	}
	rnd.Shuffle(len(work), func(a, b int) { work[a], work[b] = work[b], work[a] })
	for _, do := range work {
		select {
		case <-stop:
			return
		default:
		}
		if !do() {
			return
		}
	}
}

// spent lists the tokens that are known to be spent and have not expired.
func (f *facts) spent() []*token {
	soon := time.Now().Add(2 * time.Second)
	var list []*token
	for _, t := range slices.Backward(f.tokens) {
		// They all live as long, so the older ones have expired, too.
		if !soon.Before(t.expires) {
			break
		}
		if t.Spent {
			list = append(list, t)
		}
	}
	slices.Reverse(list)
	return list
}

// verifyAll checks everything that was ever said, and tries every spent token
// that has not expired again.
func (w *world) verifyAll(ctx context.Context) {
	f := &w.facts
	f.mu.Lock()
	tokens, sessions := f.spent(), slices.Clone(f.sessions)
	intents := slices.Collect(maps.Values(f.intents))
	f.mu.Unlock()
	rnd := randv2.New(randv2.NewPCG(w.o.seed, 3)) //nolint:gosec // choices of a test
	for _, t := range tokens {
		if _, ok := w.enter(ctx, t); !ok && time.Now().Before(t.expires) {
			f.violate("the last start does not answer a link")
			return
		}
	}
	for _, s := range sessions {
		if !w.probe(ctx, s) {
			f.violate("the last start does not answer a session")
			return
		}
	}
	for _, i := range intents {
		if !w.receiptAnyhow(ctx, rnd, i) {
			f.violate("the last start does not answer a receipt")
			return
		}
	}
}

// lookAtOpen looks at the receipts of what is not settled.
func (w *world) lookAtOpen(ctx context.Context) {
	rnd := randv2.New(randv2.NewPCG(w.o.seed, 4)) //nolint:gosec // choices of a test
	for _, i := range w.facts.open() {
		w.receiptAnyhow(ctx, rnd, i)
	}
}

// unknownTo compares what receipts said with the journal.
func (f *facts) unknownTo(intents []journal.Intent) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	byID := map[string]journal.State{}
	for i := range intents {
		byID[intents[i].ID] = intents[i].State
	}
	var out []string
	for _, i := range f.intents {
		state, ok := byID[i.ID]
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("%sthe journal does not know intent %s, which %s was shown", lostFact, i.ID, i.Customer))
		case i.State == "done" && state != journal.Succeeded:
			out = append(out, fmt.Sprintf("%sintent %s was shown as done to %s, the journal says %s", lostFact, i.ID, i.Customer, state))
		}
	}
	return out
}

// doubles finds what the provider did more than once under one key.
func doubles(effects []sandbox.Effect) []string {
	type once struct{ key, kind, object string }
	seen := map[once]int{}
	var out []string
	for _, e := range effects {
		if e.IdempotencyKey == "" {
			continue
		}
		k := once{e.IdempotencyKey, e.Kind, e.Object}
		if seen[k]++; seen[k] == 2 {
			out = append(out, fmt.Sprintf("%s%s of %s for %s under key %s", doubleEffect, e.Kind, e.Object, e.Customer, e.IdempotencyKey))
		}
	}
	return out
}

// settled compares the journal with what the provider did: everything is
// settled, each step that is done took effect and no other, and nothing was done
// that no intent speaks of.
func settled(intents []journal.Intent, effects []sandbox.Effect) []string {
	did := map[string]bool{}
	for _, e := range effects {
		if e.IdempotencyKey != "" {
			did[e.IdempotencyKey] = true
		}
	}
	var out []string
	for i := range intents {
		in := &intents[i]
		if !in.State.Terminal() || in.State == journal.Manual {
			out = append(out, fmt.Sprintf("intent %s of %s (%s) is not settled: %s %s", in.ID, in.Customer, in.Action.Kind, in.State, in.LastError))
		}
		for n := range in.Steps {
			s := &in.Steps[n]
			switch effect := did[s.Key]; {
			case effect && !s.Done && in.State.Terminal():
				out = append(out, fmt.Sprintf("%sintent %s of %s (%s) is %s, but its step %s took effect", lostFact, in.ID, in.Customer, in.Action.Kind, in.State, s.Key))
			case !effect && s.Done:
				out = append(out, fmt.Sprintf("%sintent %s of %s (%s) is %s, but its step %s never took effect", lostFact, in.ID, in.Customer, in.Action.Kind, in.State, s.Key))
			}
			delete(did, s.Key)
		}
		if in.State == journal.Succeeded && in.Next() < len(in.Steps) {
			out = append(out, fmt.Sprintf("%sintent %s of %s succeeded with a step that is not done", lostFact, in.ID, in.Customer))
		}
	}
	for key := range did {
		out = append(out, fmt.Sprintf("%sunder key %s, which no intent has", doubleEffect, key))
	}
	return out
}

// lastChanges is, by customer, what the last change of plan that succeeded
// asked for.
func lastChanges(intents []journal.Intent) map[string]billing.ItemChange {
	last, at := map[string]billing.ItemChange{}, map[string]time.Time{}
	for i := range intents {
		in := &intents[i]
		if in.State != journal.Succeeded || in.Action.Kind != billing.ChangePlan || len(in.Steps) == 0 || len(in.Action.Items) != 1 {
			continue
		}
		// An object has one unsettled intent at a time, so they were sent in the
		// order in which they were made.
		if in.Created.After(at[in.Customer]) {
			last[in.Customer], at[in.Customer] = in.Action.Items[0], in.Created
		}
	}
	return last
}

// checkSpent holds that every session in the store stands behind a token of its
// own: a token that made a second session, whether anybody was told or not,
// names the second one only.
func (w *world) checkSpent(ctx context.Context, db store.Store) error {
	behind := map[string]bool{}
	err := scan(ctx, db, store.Key(tenant, "spent"), func(_ []string, value []byte) error {
		var mark struct{ Session string }
		if err := json.Unmarshal(value, &mark); err != nil {
			return err
		}
		behind[mark.Session] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the spent tokens: %w", err)
	}
	n := 0
	err = scan(ctx, db, store.Key(tenant, "session"), func(key []string, value []byte) error {
		n++
		if !behind[key[2]] {
			w.facts.violate("%sthe session %s in the store is not the one that its token names: %.200s", secondSession, key[2], value)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the sessions: %w", err)
	}
	if n == 0 || len(behind) < n {
		w.facts.violate("%sthe store has %d sessions and %d spent tokens", lostFact, n, len(behind))
	}
	return nil
}

// scan reads everything with a prefix.
func scan(ctx context.Context, db store.Store, prefix []byte, each func(key []string, value []byte) error) error {
	var from []byte
	for {
		var page []store.Entry
		err := db.View(ctx, func(tx store.Tx) (err error) {
			page, err = tx.Scan(prefix, from, 1000, false)
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range page {
			key, ok := store.Parts(e.Key)
			if !ok || len(key) < 3 {
				return fmt.Errorf("a key that is none: %q", e.Key)
			}
			if err := each(key, e.Value); err != nil {
				return err
			}
			from = append(e.Key, 0)
		}
		if len(page) < 1000 {
			return nil
		}
	}
}
