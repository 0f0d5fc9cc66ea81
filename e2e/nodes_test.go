package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/e2e/browse"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
)

// roundsEnv sets how long the tests of several nodes take: rounds of races, and
// seconds of load before and after a promotion. Default: 10 rounds, 1 s.
//
//	PORTAL_NODES_ROUNDS=200 go test -count=1 -timeout 30m -run TestNodes -v ./e2e/
const roundsEnv = "PORTAL_NODES_ROUNDS"

func nodeRounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv(roundsEnv)
	if text == "" {
		return 10
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is no number of rounds", roundsEnv, text)
	}
	return n
}

// cluster is Caddy processes with one portal between them: one origin, one
// database, one provider. Each listens on the origin's port at a loopback
// address of its own, as machines behind a load balancer do; visitors choose.
type cluster struct {
	stripe struct{ URL, Control, Key string }
	portal string
	key    string
	nodes  []*node
}

type node struct {
	c         *cluster
	transport *http.Transport
	start     func()
	*process
}

func startCluster(t *testing.T, bin, dsn string, n int) *cluster {
	t.Helper()
	c := &cluster{key: "bpk_end_to_end_0123456789"}
	s := start(t, nil, stripetestBinary(t), "-listen", "127.0.0.1:0", "-data-dir", t.TempDir(), "-seed")
	s.ready(t, &c.stripe)
	_, port, err := net.SplitHostPort(freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	c.portal = "http://localhost:" + port
	for i := range n {
		ip := fmt.Sprintf("127.0.0.%d", i+2)
		nd := &node{c: c, transport: &http.Transport{
			MaxIdleConnsPerHost: 64,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(ip, port))
			},
		}}
		t.Cleanup(nd.transport.CloseIdleConnections)
		file := filepath.Join(t.TempDir(), "Caddyfile")
		config := fmt.Sprintf(`{
	admin %s
	persist_config off
	billing_portal {
		store postgres {env.DATABASE_URL}
		seal_key {env.SEAL_KEY}
	}
}

%s {
	bind %s
	billing_portal {
		origin %s
		provider stripe {
			api_key {env.STRIPE_KEY}
			base_url %s
		}
		api_key {env.PORTAL_KEY}
		return_to http://localhost/settings
		session {
			limit 100
		}
		policy {
			allow change_plan upgrade
			allow cancel
		}
		brand {
			name Acme
		}
	}
}
`, freeAddr(t), c.portal, ip, c.portal, c.stripe.URL)
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		env := []string{"STRIPE_KEY=" + c.stripe.Key, "PORTAL_KEY=" + c.key, "DATABASE_URL=" + dsn, "SEAL_KEY=" + strings.Repeat("5a", 32)}
		nd.start = func() {
			t.Helper()
			nd.process = start(t, env, bin, "run", "--config", file, "--adapter", "caddyfile")
		}
		nd.start()
		c.nodes = append(c.nodes, nd)
	}
	for i, nd := range c.nodes {
		eventually(t, fmt.Sprintf("node %d answers", i), func() bool {
			p, err := nd.visitor().do(t.Context(), http.MethodGet, "/robots.txt", "none", nil)
			return err == nil && p.status == http.StatusOK
		})
	}
	return c
}

// visitor is a new browser whose requests reach this node.
func (n *node) visitor() *visitor {
	return &visitor{browse.New(n.c.portal, n.transport)}
}

// at is the same browser, whose requests reach another node.
func (v *visitor) at(n *node) *visitor {
	c := *v.Client
	c.Transport = n.transport
	return &visitor{&browse.Visitor{Portal: v.Portal, Client: &c}}
}

// call is a request of the vendor's backend that reaches this node.
func (n *node) call(ctx context.Context, path string, form url.Values, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, n.c.portal+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+n.c.key)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := (&http.Client{Transport: n.transport, Timeout: time.Minute}).Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %s", path, res.Status, raw)
	}
	return json.Unmarshal(raw, into)
}

func (n *node) link(ctx context.Context, customer string) (string, error) {
	var s struct{ URL string }
	err := n.call(ctx, "/v1/billing_portal/sessions", url.Values{"customer": {customer}}, &s)
	return s.URL, err
}

// signIn mints a link here and opens it at another node.
func (n *node) signIn(t *testing.T, customer string, at *node) *visitor {
	t.Helper()
	link, err := n.link(t.Context(), customer)
	if err != nil {
		t.Fatal(err)
	}
	v := at.visitor()
	if p := v.enter(t, link); p.status != http.StatusSeeOther {
		t.Fatalf("opening a link: %d\n%s", p.status, p.body)
	}
	return v
}

// TestNodesRedeemOnce opens every link 64 times at once, spread over three
// nodes: one session. Without the amnesia guard too: it rests on the store.
func TestNodesRedeemOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, bin string }{{"with the guard", caddyBinary(t)}, {"without the guard", unguardedBinary(t)}} {
		t.Run(tt.name, func(t *testing.T) {
			srv := pgtest.Start(t)
			c := startCluster(t, tt.bin, srv.DSN(srv.Database(t)), 3)
			const clients = 64
			for round := range nodeRounds(t) {
				link, err := c.nodes[round%3].link(t.Context(), "cus_northwind")
				if err != nil {
					t.Fatal(err)
				}
				var in, gone atomic.Int64
				var winner atomic.Pointer[visitor]
				var ready, done sync.WaitGroup
				fire := make(chan struct{})
				ready.Add(clients)
				for i := range clients {
					v := c.nodes[i%3].visitor()
					done.Go(func() {
						ready.Done()
						<-fire
						p, err := v.do(t.Context(), http.MethodGet, link, "same-site", nil)
						switch {
						case err != nil:
							t.Error(err)
						case p.status == http.StatusSeeOther:
							in.Add(1)
							winner.Store(v)
						case p.status == http.StatusGone:
							gone.Add(1)
						default:
							t.Errorf("round %d: status %d", round, p.status)
						}
					})
				}
				ready.Wait()
				close(fire)
				done.Wait()
				if in.Load() != 1 || gone.Load() != clients-1 {
					t.Fatalf("round %d: %d sessions and %d refusals from one link", round, in.Load(), gone.Load())
				}
				for i, n := range c.nodes {
					if p := winner.Load().at(n).get(t, "/"); p.status != http.StatusOK {
						t.Errorf("round %d: the winner's session at node %d: %d", round, i, p.status)
					}
				}
			}
		})
	}
}

// TestNodesAgree holds that what one node was told counts on the next request
// at every other one: an end of sessions, and a change of plan.
func TestNodesAgree(t *testing.T) {
	t.Parallel()
	const customer = "cus_northwind"
	srv := pgtest.Start(t)
	c := startCluster(t, caddyBinary(t), srv.DSN(srv.Database(t)), 2)
	a, b := c.nodes[0], c.nodes[1]
	wantStatus := func(what string, v *visitor, want int) {
		t.Helper()
		for i, n := range c.nodes {
			if p := v.at(n).get(t, "/"); p.status != want {
				t.Errorf("%s, at node %d: %d, want %d", what, i, p.status, want)
			}
		}
	}
	for round := range 5 {
		first, second, third := a.signIn(t, customer, b), b.signIn(t, customer, a), a.signIn(t, customer, a)
		stranger := b.signIn(t, "cus_globex", a)
		for _, v := range []*visitor{first, second, third, stranger} {
			wantStatus("a session", v, http.StatusOK)
		}
		if p := first.at(a).post(t, "/sign-out", url.Values{}); p.status != http.StatusSeeOther {
			t.Fatalf("signing out: %d", p.status)
		}
		wantStatus("the browser that signed out", first, http.StatusUnauthorized)
		wantStatus("another session of the customer", second, http.StatusOK)

		var answer map[string]any
		if err := b.call(t.Context(), "/v1/portal/sessions/revoke", url.Values{"customer": {customer}}, &answer); err != nil {
			t.Fatal(err)
		}
		wantStatus("a session that the vendor ended at the other node", second, http.StatusUnauthorized)
		wantStatus("the third one", third, http.StatusUnauthorized)
		wantStatus("another customer's", stranger, http.StatusOK)
		if round > 0 {
			continue
		}

		// A change of plan at one node; the other one has the old account in
		// its cache.
		v := a.signIn(t, customer, a)
		if body := v.at(b).get(t, "/").body; strings.Contains(body, ">Team<") {
			t.Fatalf("the customer is on the plan already:\n%s", body)
		}
		confirm := v.choose(t, "price_team_monthly", "4")
		p := v.post(t, confirm.action, confirm.fields)
		if p.status != http.StatusSeeOther || !strings.Contains(v.get(t, p.location).body, "You are now on") {
			t.Fatalf("changing the plan: %d %s", p.status, p.location)
		}
		here, there := v.get(t, "/").body, v.at(b).get(t, "/").body
		if !strings.Contains(here, "Team") || !strings.Contains(there, "Team") {
			t.Errorf("the other node shows the old plan:\n%s", there)
		}
		if body := v.at(b).get(t, p.location).body; !strings.Contains(body, "You are now on") {
			t.Errorf("the receipt at the other node:\n%s", body)
		}
	}
}

// TestNodesKilledMidAction kills two nodes that are sending a change, one
// before and one after the provider applied it. The third one settles both once
// the lease has run out (a minute), and each happened once.
func TestNodesKilledMidAction(t *testing.T) {
	t.Parallel() // it waits most of the time
	srv := pgtest.Start(t)
	c := startCluster(t, caddyBinary(t), srv.DSN(srv.Database(t)), 3)
	last := c.nodes[2]
	type action struct {
		customer, kind string
		node           *node
		v              *visitor
		receipt        string
		killed         time.Time
	}
	actions := []*action{
		{customer: "cus_northwind", kind: "latency", node: c.nodes[0]},
		{customer: "cus_trial", kind: "timeout-after", node: c.nodes[1]},
	}
	for _, a := range actions {
		a.v = last.signIn(t, a.customer, a.node).at(a.node)
		confirm := a.v.choose(t, "price_team_monthly", "4")
		fault(t, c.stripe.Control, "execute", a.kind, "60s")
		began := time.Now()
		killDuring(t, a.v, confirm, a.node.process, func() bool {
			return time.Since(began) > time.Second && (len(changes(t, c.stripe.Control, a.customer)) == 1) == (a.kind == "timeout-after")
		})
		a.killed = time.Now()
		// Another node says that it is being checked, and takes no second change.
		a.v = a.v.at(last)
		p := a.v.post(t, confirm.action, confirm.fields)
		if p.status != http.StatusSeeOther || !strings.HasPrefix(p.location, "/done/") {
			t.Fatalf("%s: the form again at another node: %d %s", a.kind, p.status, p.location)
		}
		a.receipt = p.location
		if p := a.v.get(t, a.receipt); p.status != http.StatusOK || strings.Contains(p.body, doneTitle) {
			t.Errorf("%s: settled within the lease of the node that was killed: %d", a.kind, p.status)
		}
	}
	for _, a := range actions {
		done := false
		for time.Since(a.killed) < 2*time.Minute && !done {
			time.Sleep(500 * time.Millisecond)
			done = strings.Contains(a.v.get(t, a.receipt).body, doneTitle)
		}
		if !done {
			t.Fatalf("%s: not settled after two minutes", a.kind)
		}
		t.Logf("%s: settled %s after the node was killed", a.kind, time.Since(a.killed).Round(time.Second))
	}
	// The nodes come back and do nothing a second time.
	for _, a := range actions {
		a.node.start()
	}
	for _, a := range actions {
		eventually(t, "the node is back", func() bool {
			p, err := a.v.at(a.node).do(t.Context(), http.MethodGet, a.receipt, "same-origin", nil)
			return err == nil && strings.Contains(p.body, doneTitle)
		})
	}
	time.Sleep(2 * time.Second) // their recovery
	for _, a := range actions {
		if got := changes(t, c.stripe.Control, a.customer); len(got) != 1 {
			t.Errorf("%s: changes at the provider: %+v, want exactly one", a.kind, got)
		}
	}
}

// load is what visitors of a cluster were told, in good faith.
type load struct {
	mu        sync.Mutex
	redeemed  []string   // links that made a session
	in, out   []*visitor // whose session goes on, who signed out
	receipts  []string   // of changes that are done
	refused   atomic.Int64
	facts     atomic.Int64
	customers []string
}

// TestNodesPromotion kills the primary database under load and promotes its
// synchronous standby. What visitors were told is still so: links stay spent
// (without the guard, which would refuse them anyway), sessions go on, those
// who signed out are out, changes are done and were done once.
func TestNodesPromotion(t *testing.T) {
	t.Parallel()
	a := pgtest.Start(t)
	db := a.Database(t)
	b := a.Standby(t)
	c := startCluster(t, unguardedBinary(t), pgtest.MultiDSN(db, []*pgtest.Server{a, b}), 2)
	w := &load{customers: []string{"cus_globex", "cus_trial", "cus_initech"}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var workers sync.WaitGroup
	for i := range 6 {
		workers.Go(func() { w.comeAndGo(ctx, t, c, i) })
	}
	changer := c.nodes[0].signIn(t, "cus_northwind", c.nodes[0])
	workers.Go(func() { w.change(ctx, c, changer) })

	length := time.Duration(nodeRounds(t)) * 100 * time.Millisecond
	facts := func(n int64) {
		t.Helper()
		goal := w.facts.Load() + n
		eventually(t, fmt.Sprintf("%d more things happened", n), func() bool { return w.facts.Load() >= goal })
	}
	facts(30)
	time.Sleep(length)
	before := w.facts.Load()
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	b.Promote(t)
	promoted := time.Now()
	facts(30)
	t.Logf("%d things were acknowledged before the promotion; the 30th after it came %s later; %d were refused meanwhile", before, time.Since(promoted).Round(time.Millisecond), w.refused.Load())
	time.Sleep(length)
	cancel()
	workers.Wait()

	t.Logf("%d links redeemed, %d sessions go on, %d signed out, %d changes", len(w.redeemed), len(w.in), len(w.out), len(w.receipts))
	if len(w.redeemed) < 20 || len(w.out) < 5 || len(w.receipts) < 2 {
		t.Error("too little to show anything")
	}
	for i, link := range w.redeemed {
		if p := c.nodes[i%2].visitor().enter(t, link); p.status != http.StatusGone {
			t.Errorf("a link that was redeemed: %d, want 410", p.status)
		}
	}
	for i, v := range w.in {
		if p := v.at(c.nodes[i%2]).get(t, "/"); p.status != http.StatusOK {
			t.Errorf("a session: %d", p.status)
		}
	}
	for i, v := range w.out {
		if p := v.at(c.nodes[i%2]).get(t, "/"); p.status != http.StatusUnauthorized {
			t.Errorf("somebody who signed out: %d", p.status)
		}
	}
	for i, receipt := range w.receipts {
		if p := changer.at(c.nodes[i%2]).get(t, receipt); p.status != http.StatusOK || !strings.Contains(p.body, doneTitle) {
			t.Errorf("a change that was done: %d\n%s", p.status, p.body)
		}
	}
	keys := map[string]int{}
	for _, e := range changes(t, c.stripe.Control, "cus_northwind") {
		keys[e.IdempotencyKey]++
	}
	for key, n := range keys {
		if n != 1 {
			t.Errorf("%d effects under the key %s", n, key)
		}
	}
	if len(keys) < len(w.receipts) {
		t.Errorf("%d changes at the provider, %d were acknowledged", len(keys), len(w.receipts))
	}
}

// comeAndGo signs in, and out again every other time.
func (w *load) comeAndGo(ctx context.Context, t *testing.T, c *cluster, worker int) {
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(20 * time.Millisecond) // a session's limit is 100 per customer
		n := c.nodes[(worker+i)%2]
		link, err := n.link(ctx, w.customers[worker%len(w.customers)])
		if err != nil {
			w.refused.Add(1)
			continue
		}
		v := n.visitor()
		p, err := v.do(ctx, http.MethodGet, link, "same-site", nil)
		if err != nil || p.status != http.StatusSeeOther {
			if err == nil && p.status < 500 && p.status != http.StatusGone {
				t.Errorf("a link: %d", p.status)
			}
			w.refused.Add(1)
			continue
		}
		w.mu.Lock()
		w.redeemed = append(w.redeemed, link)
		w.mu.Unlock()
		w.facts.Add(1)
		if i%8 == 0 { // few enough for the limit
			w.mu.Lock()
			w.in = append(w.in, v)
			w.mu.Unlock()
			continue
		}
		p, err = v.at(c.nodes[i%2]).do(ctx, http.MethodPost, "/sign-out", "same-origin", url.Values{})
		if err != nil || p.status != http.StatusSeeOther {
			w.refused.Add(1)
			continue
		}
		w.mu.Lock()
		w.out = append(w.out, v)
		w.mu.Unlock()
		w.facts.Add(1)
	}
}

// change adds one seat after the other.
func (w *load) change(ctx context.Context, c *cluster, v *visitor) {
	for i := 0; ctx.Err() == nil; i++ {
		v := v.at(c.nodes[i%2])
		receipt, err := v.addSeat(ctx)
		if err != nil {
			w.refused.Add(1)
			if ctx.Err() == nil {
				time.Sleep(50 * time.Millisecond)
			}
			continue
		}
		w.mu.Lock()
		w.receipts = append(w.receipts, receipt)
		w.mu.Unlock()
		w.facts.Add(1)
	}
}

// doneTitle begins the title of a receipt of what is done.
const doneTitle = "<title>Done: "

// addSeat changes the plan's quantity and returns the receipt's address once it
// says that it is done.
func (v *visitor) addSeat(ctx context.Context) (string, error) {
	p, err := v.do(ctx, http.MethodGet, "/plan", "same-origin", nil)
	if err != nil {
		return "", err
	}
	if f, ok := p.find("/plan"); ok {
		n, _ := strconv.Atoi(f.fields.Get("quantity"))
		f.fields.Set("price", "price_team_monthly")
		f.fields.Set("quantity", strconv.Itoa(max(n, 3)+1))
		if p, err = v.do(ctx, http.MethodPost, f.action, "same-origin", f.fields); err != nil {
			return "", err
		}
	}
	if p.status != http.StatusSeeOther || !strings.HasPrefix(p.location, "/check/") {
		return "", fmt.Errorf("choosing: %d %s", p.status, p.location)
	}
	if p, err = v.do(ctx, http.MethodGet, p.location, "same-origin", nil); err != nil {
		return "", err
	}
	if f, ok := p.find("/check/"); ok {
		if p, err = v.do(ctx, http.MethodPost, f.action, "same-origin", f.fields); err != nil {
			return "", err
		}
	}
	if p.status != http.StatusSeeOther || !strings.HasPrefix(p.location, "/done/") {
		return "", fmt.Errorf("confirming: %d %s", p.status, p.location)
	}
	receipt := p.location
	if p, err = v.do(ctx, http.MethodGet, receipt, "same-origin", nil); err != nil {
		return "", err
	}
	if !strings.Contains(p.body, doneTitle) {
		return "", fmt.Errorf("the receipt: %d", p.status)
	}
	return receipt, nil
}

// find is form without ending the test.
func (p page) find(action string) (form, bool) {
	f, ok := browse.Page{Body: p.body}.Form(action)
	return form{f.Action, f.Fields}, ok
}
