package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/badger"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres"
	"github.com/portalcore/caddy-billing-portal/portalcore/store/postgres/pgtest"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/stripetest"
)

const (
	// tenant is the portal's name, under which its records stand in the store.
	tenant = "campaign"
	// customers have a subscription and act on it. Links are redeemed for
	// strangers, too, one each.
	customers = 16
	// actors act at the same time, each for one customer at a time; redeemers
	// redeem links.
	actors    = 3
	redeemers = 2
	// burst is how many browsers open one link at once.
	burst = 64

	// reach is how long the portal has to come to a failpoint before it is
	// killed from outside; reachUnsettled where it first has to give up on a
	// provider that gives no answer.
	reach          = 1500 * time.Millisecond
	reachUnsettled = 5 * time.Second
	// startTime is how long a start may take: a store that was killed must be
	// back at once.
	startTime = 30 * time.Second
)

var buildTags = []string{"portal_test_failpoints", "portal_test_noguard"}

// world is the portal that dies, the provider that lives, and who talks to
// them.
type world struct {
	o      options
	dir    string
	binary string
	origin string
	key    string // of the vendor's API
	vendor link.Key

	dsn    string // of PostgreSQL; "" for Badger
	ledger *sandbox.Ledger
	faults sandbox.Faults
	closes []func()
	config string
	env    []string

	proc       *os.Process
	exited     chan struct{}
	state      *os.ProcessState
	starts     time.Duration
	startCount int

	kept *http.Transport // keeps connections
	once *http.Transport // one request each, and never one again by itself

	people  chan *customer // who is not acting right now
	facts   facts
	effects int
	bursts  atomic.Int64
}

// root is the repository, found from the package's own directory or from the
// one that the command was started in.
func root() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the repository: %w", err)
	}
	dir := filepath.Dir(strings.TrimSpace(string(out)))
	if _, err := os.Stat(filepath.Join(dir, "e2e", "campaign")); err != nil {
		return "", fmt.Errorf("run it in the portal's repository: %w", err)
	}
	return dir, nil
}

// build builds the portal to be killed. args are further arguments of go build.
func build(ctx context.Context, out string, args ...string) error {
	dir, err := root()
	if err != nil {
		return err
	}
	args = append([]string{"build", "-o", out, "-tags", strings.Join(buildTags, ",")}, args...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/caddy")...) //nolint:gosec // the project's own
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the portal: %w\n%s", err, msg)
	}
	return nil
}

func newWorld(ctx context.Context, o options) (_ *world, err error) {
	w := &world{
		o: o, dir: o.dir, binary: o.binary, key: "bpk_campaign_0123456789abcdef",
		kept: &http.Transport{MaxIdleConnsPerHost: 256}, once: &http.Transport{DisableKeepAlives: true},
		people: make(chan *customer, customers),
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.dir, err = filepath.Abs(w.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return nil, err
	}
	if w.binary == "" {
		w.binary = filepath.Join(w.dir, "caddy")
		if err := build(ctx, w.binary); err != nil {
			return nil, err
		}
	}
	history, err := os.Create(filepath.Join(w.dir, "history.jsonl"))
	if err != nil {
		return nil, err
	}
	w.closes = append(w.closes, func() { _ = history.Close() })
	w.facts.history = json.NewEncoder(history)
	if err := w.startDatabase(); err != nil {
		return nil, err
	}
	provider, providerKey, err := w.startProvider(ctx)
	if err != nil {
		return nil, err
	}
	return w, w.configure(provider, providerKey)
}

// startDatabase starts PostgreSQL where the portal's store is there.
func (w *world) startDatabase() error {
	switch w.o.store {
	case "", "badger":
		return nil
	case "postgres":
	default:
		return fmt.Errorf("store %q is not badger or postgres", w.o.store)
	}
	server, err := pgtest.New()
	if err != nil {
		return err
	}
	w.closes = append(w.closes, func() { _ = server.Close() })
	w.dsn = server.DSN("postgres")
	return nil
}

// startProvider serves Stripe's API from this process.
func (w *world) startProvider(ctx context.Context) (base, key string, err error) {
	sealer, err := store.NewSealer(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		return "", "", err
	}
	// It is not the ledger whose durability is tried.
	db, err := badger.Open(filepath.Join(w.dir, "ledger"), badger.Options{Sealer: sealer, NoSync: true})
	if err != nil {
		return "", "", err
	}
	w.closes = append(w.closes, func() { _ = db.Close() })
	if w.ledger, err = sandbox.Open(ctx, db, sandbox.Options{}); err != nil {
		return "", "", err
	}
	if _, err := sandbox.Seed(ctx, w.ledger); err != nil { // its prices
		return "", "", err
	}
	for i := range customers {
		c := &customer{id: fmt.Sprintf("cus_actor_%02d", i), rnd: randv2.New(randv2.NewPCG(w.o.seed, uint64(i)+1))} //nolint:gosec // choices of a test
		c.sub = "sub_" + c.id[4:]
		if err := w.openAccount(ctx, c); err != nil {
			return "", "", fmt.Errorf("opening an account: %w", err)
		}
		w.people <- c
	}
	key = "sk_test_" + rand.Text()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	srv := &http.Server{Handler: stripetest.New(w.ledger, &w.faults, stripetest.Options{Key: key}), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	w.closes = append(w.closes, func() { _ = srv.Close() })
	return "http://" + ln.Addr().String(), key, nil
}

func (w *world) openAccount(ctx context.Context, c *customer) error {
	one, name, mail := int64(1), "Customer "+c.id, c.id+"@example.com"
	if _, err := w.ledger.CreateCustomer(ctx, sandbox.Call{}, sandbox.CustomerParams{ID: c.id, Name: &name, Email: &mail}); err != nil {
		return err
	}
	card, err := w.ledger.AddCard(ctx, sandbox.Call{}, c.id, sandbox.CardParams{Number: "4242424242424242"})
	if err != nil {
		return err
	}
	if _, err := w.ledger.UpdateCustomer(ctx, sandbox.Call{}, c.id, sandbox.CustomerParams{DefaultPaymentMethod: &card.ID}); err != nil {
		return err
	}
	_, err = w.ledger.CreateSubscription(ctx, sandbox.Call{}, sandbox.SubscriptionCreate{
		ID: c.sub, Customer: c.id, Items: []sandbox.ItemParams{{Price: "price_basic_monthly", Quantity: &one}},
	})
	return err
}

// configure writes the portal's Caddyfile.
func (w *world) configure(provider, providerKey string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.origin = "http://" + ln.Addr().String()
	if err := ln.Close(); err != nil {
		return err
	}
	if w.vendor, err = link.GenerateKey(rand.Reader); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(w.vendor.Public)
	if err != nil {
		return err
	}
	public := filepath.Join(w.dir, "vendor.pub")
	if err := os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	if _, err := store.LoadOrCreateSealKeyFile(w.sealKeyFile()); err != nil {
		return err
	}
	place := "store badger " + w.storeDir()
	if w.dsn != "" {
		place = "store postgres {env.DATABASE_URL}"
	}
	w.config = filepath.Join(w.dir, "Caddyfile")
	w.env = append(os.Environ(), "HOME="+w.dir, "XDG_DATA_HOME="+w.dir, "XDG_CONFIG_HOME="+w.dir, "STRIPE_KEY="+providerKey, "PORTAL_KEY="+w.key, "DATABASE_URL="+w.dsn)
	return os.WriteFile(w.config, fmt.Appendf(nil, `{
	admin off
	persist_config off
	auto_https off
	grace_period 1s
	billing_portal {
		%s
		seal_key {file.%s}
	}
}

%s {
	billing_portal {
		origin %s
		name %s
		provider stripe {
			api_key {env.STRIPE_KEY}
			base_url %s
		}
		api_key {env.PORTAL_KEY}
		trust vendor {
			key ed25519 %s
		}
		return_to http://localhost/settings
		session {
			idle 12h
			absolute 24h
		}
		policy {
			allow change_plan
			allow cancel
		}
		brand {
			name Campaign
		}
	}
}
`, place, w.sealKeyFile(), w.origin, w.origin, tenant, provider, public), 0o600)
}

func (w *world) storeDir() string { return filepath.Join(w.dir, "store") }

func (w *world) sealKeyFile() string { return filepath.Join(w.dir, "seal.key") }

func (w *world) describe() string {
	place := "Badger in " + w.storeDir()
	if w.dsn != "" {
		place = "PostgreSQL"
	}
	return fmt.Sprintf("portal on %s, %d customers, %d actors, %d redeemers and bursts of %d", place, customers, actors, redeemers, burst)
}

func (w *world) close() {
	if w.proc != nil {
		_ = w.kill()
	}
	for _, closeIt := range slices.Backward(w.closes) {
		closeIt()
	}
	w.closes = nil
}

// launch starts the portal and does not wait for it.
func (w *world) launch(failpoint string) error {
	log, err := os.OpenFile(filepath.Join(w.dir, "portal.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(w.binary, "run", "--config", w.config, "--adapter", "caddyfile") //nolint:gosec // the project's own
	cmd.Env = append(w.env, "PORTAL_FAILPOINT="+failpoint)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the portal: %w", err)
	}
	w.proc, w.exited = cmd.Process, make(chan struct{})
	go func(exited chan struct{}) {
		_ = cmd.Wait()
		w.state = cmd.ProcessState
		close(exited)
	}(w.exited)
	return nil
}

// ready waits until the portal answers. It reports false where it died before.
func (w *world) ready(ctx context.Context, began time.Time) (bool, error) {
	for {
		select {
		case <-w.exited:
			return false, w.diedOfItself()
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(4 * time.Millisecond):
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.origin+"/robots.txt", nil)
		if err != nil {
			return false, err
		}
		if res, err := w.once.RoundTrip(r); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				w.starts += time.Since(began)
				w.startCount++
				return true, nil
			}
		}
		if time.Since(began) > startTime {
			return false, fmt.Errorf("the portal does not answer %s after its start\n%s", startTime, w.logTail())
		}
	}
}

// diedOfItself is an error unless the portal, which has ended, was killed.
func (w *world) diedOfItself() error {
	if status, ok := w.state.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("the portal ended by itself: %s\n%s", w.state, w.logTail())
}

func (w *world) logTail() string {
	raw, err := os.ReadFile(filepath.Join(w.dir, "portal.log"))
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-4000):])
}

// kill is SIGKILL.
func (w *world) kill() error {
	_ = w.proc.Kill()
	<-w.exited
	w.proc = nil
	w.kept.CloseIdleConnections()
	return w.diedOfItself()
}

// stop ends the portal in peace.
func (w *world) stop() error {
	if err := w.proc.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-w.exited:
	case <-time.After(20 * time.Second):
		return fmt.Errorf("the portal did not end within 20 s of SIGTERM\n%s", w.logTail())
	}
	w.proc = nil
	w.kept.CloseIdleConnections()
	return nil
}

// cycle is a start, some work and a kill.
type cycle struct {
	rnd   *randv2.Rand
	point *point // where the portal kills itself; nil: at a random moment
}

// faultKinds are what the provider does wrong, with how long the portal waits
// for it.
var faultKinds = []sandbox.Fault{
	{Kind: sandbox.FaultTimeoutAfter, Latency: 50 * time.Millisecond},
	{Kind: sandbox.FaultTimeoutBefore, Latency: 50 * time.Millisecond},
	{Kind: sandbox.Fault500After},
	{Kind: sandbox.Fault500Before},
	{Kind: sandbox.FaultGarbage},
	{Kind: sandbox.FaultRateLimit},
	{Kind: sandbox.FaultLatency, Latency: 200 * time.Millisecond},
}

// cycle runs one and reports whether the portal died at its failpoint.
func (w *world) cycle(ctx context.Context, c cycle) (died bool, err error) {
	w.faults.Clear()
	unsettled := c.point != nil && c.point.fault
	if unsettled || c.rnd.IntN(3) == 0 {
		f := faultKinds[c.rnd.IntN(len(faultKinds))]
		f.On, f.Times = "execute", 1+c.rnd.IntN(2)
		if unsettled { // no definite answer, however often it is asked for
			f.Kind, f.Latency, f.Times = sandbox.FaultTimeoutAfter, 0, 4
		}
		if err := w.faults.Set(f); err != nil {
			return false, err
		}
	}
	failpoint := ""
	if c.point != nil {
		failpoint = fmt.Sprintf("%s:%d", c.point.name, 1+c.rnd.IntN(c.point.upTo))
	}
	began := time.Now()
	if err := w.launch(failpoint); err != nil {
		return false, err
	}
	// One kill in six comes while the portal starts and recovers, the others in
	// the middle of its work.
	var alarm <-chan time.Time
	if c.point == nil && c.rnd.IntN(6) == 0 {
		alarm = time.After(time.Duration(c.rnd.Int64N(int64(400 * time.Millisecond))))
	}
	startCtx, stopWaiting := context.WithCancel(ctx)
	defer stopWaiting()
	if alarm != nil {
		go func() {
			<-alarm
			stopWaiting()
		}()
	}
	up, err := w.ready(startCtx, began)
	if err != nil && !errors.Is(err, context.Canceled) {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if up {
		limit := reach
		switch {
		case unsettled:
			limit = reachUnsettled
		case c.point == nil:
			limit = 20*time.Millisecond + time.Duration(c.rnd.Int64N(int64(600*time.Millisecond)))
		}
		died = !w.work(ctx, c.rnd, limit)
	} else {
		select {
		case <-w.exited:
			died = true
		default:
		}
	}
	if err := w.kill(); err != nil {
		return false, err
	}
	return died, w.checkEffects(ctx)
}

// work lets the clients loose on the portal for a while, or until it dies,
// and checks meanwhile what they were told before.
// It reports whether it killed the portal.
func (w *world) work(ctx context.Context, rnd *randv2.Rand, limit time.Duration) bool {
	var shot atomic.Bool
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	proc, exited := w.proc, w.exited
	go func() {
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
			// In the middle of what they do.
			shot.Store(true)
			_ = proc.Kill()
		}
	}()
	// A request is cut off by the portal's death, not by the time being over.
	requests := context.WithoutCancel(ctx)
	var clients sync.WaitGroup
	seed := rnd.Uint64()
	clients.Go(func() { w.verifySome(requests, ctx.Done(), seed) })
	for range actors {
		clients.Go(func() { w.act(requests, ctx.Done()) })
	}
	for range redeemers {
		seed := rnd.Uint64()
		clients.Go(func() { w.redeem(requests, ctx.Done(), seed) })
	}
	clients.Wait()
	<-exited
	return shot.Load()
}

// checkEffects looks at what the provider did.
func (w *world) checkEffects(ctx context.Context) error {
	list, err := w.ledger.Effects(ctx, 0)
	if err != nil {
		return err
	}
	w.effects = 0
	for _, e := range list {
		if e.IdempotencyKey != "" {
			w.effects++
		}
	}
	for _, v := range doubles(list) {
		w.facts.violate("%s", v)
	}
	return nil
}

// finish starts the portal a last time, waits until everything is settled and
// checks all that was ever said.
func (w *world) finish(ctx context.Context, settle time.Duration) error {
	w.faults.Clear()
	began := time.Now()
	var intents []journal.Intent
	for open := 1; open > 0 && time.Since(began) < settle; {
		if err := w.lastStart(ctx); err != nil {
			return err
		}
		// Recovery has its own pace, and Badger no reader beside it.
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
			w.lookAtOpen(ctx)
		}
		var err error
		if intents, err = w.stopAndRead(ctx); err != nil {
			return err
		}
		open = len(w.facts.open())
		for i := range intents {
			if !intents[i].State.Terminal() {
				open++
			}
		}
	}
	if err := w.lastStart(ctx); err != nil {
		return err
	}
	w.verifyAll(ctx)
	intents, err := w.stopAndRead(ctx)
	if err != nil {
		return err
	}
	effects, err := w.ledger.Effects(ctx, 0)
	if err != nil {
		return err
	}
	for _, v := range settled(intents, effects) {
		w.facts.violate("%s", v)
	}
	for _, v := range w.facts.unknownTo(intents) {
		w.facts.violate("%s", v)
	}
	if err := w.checkBooks(ctx, intents); err != nil {
		return err
	}
	return w.checkEffects(ctx)
}

func (w *world) lastStart(ctx context.Context) error {
	if err := w.launch(""); err != nil {
		return err
	}
	if up, err := w.ready(ctx, time.Now()); err != nil || !up {
		return fmt.Errorf("the last start failed: %w", err)
	}
	return nil
}

func (w *world) stopAndRead(ctx context.Context) ([]journal.Intent, error) {
	if err := w.stop(); err != nil {
		return nil, err
	}
	return w.readStore(ctx)
}

// checkBooks compares what the customers have at the provider with the last
// change that succeeded.
func (w *world) checkBooks(ctx context.Context, intents []journal.Intent) error {
	for customer, want := range lastChanges(intents) {
		subs, err := w.ledger.Subscriptions(ctx, customer)
		if err != nil {
			return err
		}
		for _, s := range subs {
			if it := s.Items[0]; it.Price.ID != want.Price || it.Quantity != want.Quantity {
				w.facts.violate("%sthe last change of %s that succeeded is to %d of %s, the provider has %d of %s", lostFact, customer, want.Quantity, want.Price, it.Quantity, it.Price.ID)
			}
		}
	}
	return nil
}

// readStore reads the journal and the sessions from the portal's store, which
// nobody has open, and checks that no token stands behind two sessions.
func (w *world) readStore(ctx context.Context) (list []journal.Intent, err error) {
	db, err := w.openStore(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the portal's store: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := w.checkSpent(ctx, db); err != nil {
		return nil, err
	}
	j := &journal.Journal{Store: db, Tenant: tenant, Now: time.Now}
	return j.List(ctx, "", 1_000_000)
}

// closingStore is a store that its caller closes.
type closingStore interface {
	store.Store
	io.Closer
}

func (w *world) openStore(ctx context.Context) (closingStore, error) {
	key, err := store.LoadOrCreateSealKeyFile(w.sealKeyFile())
	if err != nil {
		return nil, err
	}
	sealer, err := store.NewSealer(key)
	if err != nil {
		return nil, err
	}
	if w.dsn != "" {
		return postgres.Open(ctx, postgres.Options{DSN: w.dsn, Sealer: sealer})
	}
	return badger.Open(w.storeDir(), badger.Options{Sealer: sealer})
}

// link makes a link: every other one is the vendor's own signature, the others
// are asked of the portal. The error says that no answer came.
func (w *world) link(ctx context.Context, rnd *randv2.Rand, customer string) (*token, error) {
	if rnd.IntN(2) == 0 {
		now := time.Now().UTC().Truncate(time.Second)
		id, err := link.NewID(rand.Reader)
		if err != nil {
			return nil, err
		}
		signed, err := link.Mint(w.vendor, link.Claims{
			Issuer: "vendor", Audience: w.origin, Subject: customer, IssuedAt: now, Expires: now.Add(link.MaxLifetime), ID: id,
		})
		if err != nil {
			return nil, err
		}
		return &token{URL: w.origin + "/enter?token=" + signed, Customer: customer, expires: now.Add(link.MaxLifetime)}, nil
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.origin+"/v1/billing_portal/sessions", strings.NewReader(url.Values{"customer": {customer}}.Encode()))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+w.key)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	asked := time.Now()
	res, err := w.kept.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var made struct{ URL string }
	if err := json.NewDecoder(res.Body).Decode(&made); err != nil {
		return nil, err
	}
	if made.URL == "" {
		return nil, fmt.Errorf("minting a link: %s", res.Status)
	}
	return &token{URL: made.URL, Customer: customer, expires: asked.Add(link.MaxLifetime)}, nil
}

func mapKeys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }
