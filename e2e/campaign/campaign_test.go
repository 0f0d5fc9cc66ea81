package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// logged is a writer that prints to the test's log.
type logged struct{ t *testing.T }

func (l logged) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// TestCrashCampaign is the campaign in short.
func TestCrashCampaign(t *testing.T) {
	r, err := run(t.Context(), options{kills: 52, seed: uint64(time.Now().UnixNano()), settle: 4 * time.Minute, dir: t.TempDir(), out: logged{t}})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range r.violations {
		t.Error(v)
	}
	// It must have had something to lose.
	if r.facts < 100 || r.effects == 0 || r.tries == 0 || len(r.points) < 10 {
		t.Errorf("the campaign did too little: %s", r)
	}
}

// planted are faults that the campaign must find: a text of a file and what
// stands there instead.
var planted = []struct {
	name   string
	files  map[string][2]string
	points []point
	want   []string // beginnings of violations
}{
	{
		"a spent token is good again, and sending is not written down before",
		map[string][2]string{
			"portalcore/session/session.go": {"return ErrUsed", "_ = by"},
			"portalcore/act/run.go":         {"if err := c.Journal.Send(ctx, i, n, refs); err != nil {", "if _, err := refs, ctx.Err(); err != nil {"},
		},
		[]point{{name: "provider.execute.after", upTo: 2}},
		[]string{secondSession, lostFact + "intent"},
	},
	{
		"another key when it is sent again",
		map[string][2]string{
			"portalcore/act/run.go": {"c.Provider.Execute(callCtx, i.Customer, s.Step, s.Key)", `c.Provider.Execute(callCtx, i.Customer, s.Step, fmt.Sprint(s.Key, s.Attempts)[:len(s.Key)+min(1, s.Attempts-1)])`},
		},
		[]point{{name: "provider.execute.after", upTo: 2}},
		[]string{doubleEffect},
	},
}

// TestCampaignFindsPlantedFaults runs the campaign on portals that are wrong.
func TestCampaignFindsPlantedFaults(t *testing.T) {
	repository, err := root()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range planted {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			replace := map[string]string{}
			for name, change := range tt.files {
				raw, err := os.ReadFile(filepath.Join(repository, name))
				if err != nil {
					t.Fatal(err)
				}
				if n := strings.Count(string(raw), change[0]); n != 1 {
					t.Fatalf("%s has %q %d times, so the fault cannot be planted there: choose another place", name, change[0], n)
				}
				wrong := filepath.Join(dir, filepath.Base(name))
				if err := os.WriteFile(wrong, []byte(strings.Replace(string(raw), change[0], change[1], 1)), 0o600); err != nil {
					t.Fatal(err)
				}
				replace[filepath.Join(repository, name)] = wrong
			}
			raw, err := json.Marshal(map[string]any{"Replace": replace})
			if err != nil {
				t.Fatal(err)
			}
			overlay, bin := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "caddy")
			if err := os.WriteFile(overlay, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := build(t.Context(), bin, "-overlay", overlay); err != nil {
				t.Fatal(err)
			}
			r, err := run(t.Context(), options{kills: 12, seed: 1, settle: 20 * time.Second, dir: dir, binary: bin, points: tt.points, out: logged{t}})
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if !slices.ContainsFunc(r.violations, func(v string) bool { return strings.HasPrefix(v, want) }) {
					t.Errorf("nothing that begins with %q was reported: %q", want, r.violations)
				}
			}
		})
	}
}

// TestVerifierFindsDoctoredFacts holds a portal that is right to facts that it
// never gave.
func TestVerifierFindsDoctoredFacts(t *testing.T) {
	w, err := newWorld(t.Context(), options{dir: t.TempDir(), seed: 1, out: logged{t}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if err := w.launch(""); err != nil {
		t.Fatal(err)
	}
	if up, err := w.ready(t.Context(), time.Now()); err != nil || !up {
		t.Fatal(up, err)
	}
	c := <-w.people
	w.people <- c
	fresh := func() *token {
		tok, err := w.link(t.Context(), c.rnd, c.id)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	// What is right is not reported.
	in := fresh()
	s, answered := w.enter(t.Context(), in)
	if !answered || s == nil {
		t.Fatal("a link was not answered with a session")
	}
	done := w.facts.confirmed("nothing", c.id)
	delete(w.facts.intents, "nothing")
	w.verifyAll(t.Context())
	if len(w.facts.violations) > 0 {
		t.Fatalf("reported without reason: %q", w.facts.violations)
	}

	unused := fresh()
	w.facts.known(unused)
	unused.Spent = true
	w.facts.sessions = append(w.facts.sessions,
		&session{Customer: "cus_lost"}, // a cookie that was never set
		&session{Customer: "cus_back", cookies: s.cookies, left: true, Out: true})
	w.facts.intents["nothing"] = done
	w.verifyAll(t.Context())
	for _, want := range []string{
		secondSession + unused.URL,
		lostFact + "a session of cus_lost",
		lostFact + "the sign-out of a session of cus_back",
		lostFact + "the receipt of nothing",
	} {
		if !slices.ContainsFunc(w.facts.violations, func(v string) bool { return strings.HasPrefix(v, want) }) {
			t.Errorf("not reported: %q; reported: %q", want, w.facts.violations)
		}
	}
}

// TestBooksAreCompared gives the comparison of journal and provider's effects
// what must not be.
func TestBooksAreCompared(t *testing.T) {
	step := func(key string, done bool) journal.Step { return journal.Step{Key: key, Done: done} }
	in := func(state journal.State, steps ...journal.Step) []journal.Intent {
		return []journal.Intent{{ID: "i", Customer: "cus_1", State: state, Steps: steps}}
	}
	did := func(keys ...string) (list []sandbox.Effect) {
		for _, k := range keys {
			list = append(list, sandbox.Effect{Kind: "subscription.update", Object: "sub_1", Customer: "cus_1", IdempotencyKey: k})
		}
		return list
	}
	for _, tt := range []struct {
		name    string
		intents []journal.Intent
		effects []sandbox.Effect
		want    string // part of the only violation; "" for none
	}{
		{"succeeded and done", in(journal.Succeeded, step("i.0", true)), did("i.0"), ""},
		{"cancelled and not done", in(journal.Cancelled, step("i.0", false)), nil, ""},
		{"partial", in(journal.Partial, step("i.0", true), step("i.1", false)), did("i.0"), ""},
		{"cancelled and done", in(journal.Cancelled, step("i.0", false)), did("i.0"), "took effect"},
		{"succeeded and not done", in(journal.Succeeded, step("i.0", true)), nil, "never took effect"},
		{"succeeded half", in(journal.Succeeded, step("i.0", true), step("i.1", false)), did("i.0"), "a step that is not done"},
		{"not settled", in(journal.Unknown, step("i.0", false)), nil, "not settled"},
		{"manual", in(journal.Manual, step("i.0", false)), nil, "not settled"},
		{"done twice", in(journal.Succeeded, step("i.0", true)), did("i.0", "i.0"), doubleEffect},
		{"done without an intent", nil, did("x.0"), doubleEffect},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := append(doubles(tt.effects), settled(tt.intents, tt.effects)...)
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}

	f := facts{intents: map[string]*intent{"i": {ID: "i", Customer: "cus_1", State: "done"}}}
	if got := f.unknownTo(in(journal.Succeeded)); len(got) > 0 {
		t.Errorf("a receipt that is right: %q", got)
	}
	if got := f.unknownTo(in(journal.Cancelled)); len(got) != 1 {
		t.Errorf("shown as done and cancelled: %q", got)
	}
	if got := f.unknownTo(nil); len(got) != 1 {
		t.Errorf("shown and not in the journal: %q", got)
	}

	change := func(state journal.State, created int64, price string) journal.Intent {
		return journal.Intent{Customer: "cus_1", State: state, Created: time.Unix(created, 0), Steps: []journal.Step{{}}, Action: billing.Action{
			Kind: billing.ChangePlan, Items: []billing.ItemChange{{Price: price, Quantity: 1}},
		}}
	}
	last := lastChanges([]journal.Intent{change(journal.Succeeded, 3, "b"), change(journal.Succeeded, 1, "a"), change(journal.Refused, 4, "c")})
	if last["cus_1"].Price != "b" {
		t.Errorf("the last change that succeeded: %+v", last)
	}
}
