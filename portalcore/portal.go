// Package portalcore is the billing portal as a plain net/http handler: it
// wires the rooms below it and knows nothing of the server it runs in.
package portalcore

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/account"
	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/invoices"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/outbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/pages"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/vendorapi"
	"github.com/portalcore/caddy-billing-portal/portalcore/webhook"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	// recoverEvery is how often unsettled intents are looked for.
	recoverEvery = 2 * time.Second
	// startRecoveryAtMost is the longest pause before recovery at the start is
	// tried again where it failed: it may read the whole journal.
	startRecoveryAtMost = time.Minute
	// deliverEvery is how often events are looked for that are due.
	deliverEvery = time.Second
	// indexEvery is how often work on the invoice indexes is looked for.
	indexEvery = 5 * time.Second
	// quietFor is how long the same failure of background work is not logged
	// again.
	quietFor = time.Minute
	// sweepEvery is how often what has expired is deleted; sweepBatch is how
	// much of it in one transaction.
	sweepEvery = time.Minute
	sweepBatch = 500
	// rotateEvery is how often the portal asks for its signing keys: twice before
	// another node signs with one that it has made.
	rotateEvery = session.KeyAhead / 2
	// resolveEvery is how often the catalogue is read again.
	resolveEvery = 10 * time.Minute
	// retryResolve is how soon it is tried again after a failure.
	retryResolve = 15 * time.Second
	// resolveTimeout bounds reading the catalogue, at the start too.
	resolveTimeout = 5 * time.Second
	// leaseTime is how long a step may take before another takes the intent
	// over; longer than one provider call.
	leaseTime = time.Minute
)

// Portal serves one tenant. Use New, then Start, then Run beside ServeHTTP.
type Portal struct {
	opt       Options
	tenant    Tenant
	log       *zap.Logger
	policies  map[string]*policy.Policy
	corridor  *act.Corridor
	sessions  *session.Manager
	api       *vendorapi.API
	pages     *pages.Pages
	journal   *journal.Journal
	catalogue atomic.Pointer[billing.Catalogue]
	keys      atomic.Pointer[ownKeys]
	host      string // of the origin
	webhook   *webhook.Handler
	outbox    *outbox.Outbox // nil without a URL
	invoices  *invoices.Index

	// settled is set where an event may have been put and delivery was not woken
	// yet.
	settled     atomic.Bool
	wakeRecover chan struct{}
	wakeDeliver chan struct{}
	wakeIndex   chan struct{}
}

// ownKeys are the portal's signing keys with the trust that is built on them.
type ownKeys struct {
	all   []link.Key // the one to sign with first
	trust *link.Trust
}

// ownIssuer is the "iss" of the portal's own links.
const ownIssuer = "portal"

// New checks o and builds a portal. It does no I/O; Start does.
func New(o Options) (*Portal, error) {
	t, policies, err := checkTenant(o.Tenant)
	if err != nil {
		return nil, err
	}
	if o.Store == nil || o.Provider == nil || o.Logger == nil {
		return nil, errors.New("portalcore: Store, Provider and Logger are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	_, host, _ := strings.Cut(t.Origin, "://")
	p := &Portal{
		opt: o, tenant: t, log: o.Logger, policies: policies, host: host,
		wakeRecover: make(chan struct{}, 1), wakeDeliver: make(chan struct{}, 1), wakeIndex: make(chan struct{}, 1),
	}
	p.journal = &journal.Journal{
		Store: o.Store, Tenant: t.Name, Now: o.Now, Process: o.Process, Exclusive: o.ExclusiveStore,
		LeaseTime: leaseTime, Changed: session.BumpVersion, Version: session.Version,
	}
	if t.EventsURL != "" {
		p.outbox, err = outbox.New(outbox.Options{
			Store: o.Store, Tenant: t.Name, Now: o.Now, Rand: o.Rand, Process: o.Process,
			URL: t.EventsURL, Secrets: t.EventsSecrets, Log: o.Logger,
		})
		if err != nil {
			return nil, err
		}
		p.journal.Settled = p.putEvent
	}
	p.invoices, err = invoices.New(invoices.Options{
		Store: o.Store, Tenant: t.Name, Provider: o.Provider, Now: o.Now, Process: cmp.Or(o.Process, "portal"),
		Wake: func() { wake(p.wakeIndex) }, Log: o.Logger,
	})
	if err != nil {
		return nil, err
	}
	p.webhook, err = webhook.New(webhook.Options{
		Store: o.Store, Tenant: t.Name, Parse: o.Provider.ParseEvent, Wake: p.journal.Wake,
		Invoice: p.invoices.Note, Recover: func() { wake(p.wakeRecover); wake(p.wakeIndex) }, Now: o.Now, Rand: o.Rand, Log: o.Logger,
	})
	if err != nil {
		return nil, err
	}
	p.sessions = &session.Manager{
		Store: o.Store, Tenant: t.Name, Now: o.Now, Rand: o.Rand, Idle: t.Idle, Absolute: t.Absolute, DefaultRole: t.DefaultRole,
		Limit: t.SessionLimit, Log: o.Logger,
	}
	accounts, err := account.New(o.Provider, o.Now, t.AccountMaxAge)
	if err != nil {
		return nil, err
	}
	p.corridor = &act.Corridor{
		Store: o.Store, Tenant: t.Name, Provider: o.Provider, Accounts: accounts, Journal: p.journal,
		Policy: func(name string) *policy.Policy { return policies[name] }, Catalogue: p.catalogue.Load,
		ReturnURL: func(intent string) string { return pages.ReturnURL(t.Origin, intent) },
		Now:       o.Now, Rand: o.Rand, Log: o.Logger,
	}
	caps := o.Provider.Capabilities()
	allowed, err := pages.ReturnTo(t.ReturnTo)
	if err != nil {
		return nil, err
	}
	p.api, err = vendorapi.New(vendorapi.Options{
		Tenant: t.Name, Origin: t.Origin, Keys: t.APIKeys, Store: o.Store, Sessions: p.sessions, Find: o.Provider.Find, Search: o.Provider.Search,
		Sign:   func(c link.Claims) (string, error) { return link.Mint(p.keys.Load().all[0], c) },
		Issuer: ownIssuer, AllowedReturn: allowed, DefaultReturn: t.ReturnTo[0],
		Configurations: slices.DeleteFunc(slices.Sorted(maps.Keys(policies)), func(n string) bool { return n == "" }),
		LiveMode:       caps.LiveMode, Log: o.Logger, Now: o.Now, Rand: o.Rand,
	})
	if err != nil {
		return nil, err
	}
	renderer, err := t.renderer(caps)
	if err != nil {
		return nil, err
	}
	p.pages, err = pages.New(pages.Options{
		Origin: t.Origin, ReturnTo: t.ReturnTo, AlwaysAsk: t.Entry == EntryConfirm,
		Trust: func() *link.Trust { return p.keys.Load().trust }, Sessions: p.sessions, Corridor: p.corridor,
		Renderer: renderer, Invoices: p.invoices, Logo: t.Brand.Logo, LogoType: t.Brand.LogoType,
		Now: o.Now, Rand: o.Rand, Log: o.Logger, SkipAccessLog: o.SkipAccessLog,
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// CheckTenant is the part of New that needs neither store nor provider: what
// can be said of a config before anything is opened.
func CheckTenant(t Tenant) error {
	t, _, err := checkTenant(t)
	if err != nil {
		return err
	}
	// A bad page or theme is found before anything is opened, too; New draws with
	// its own.
	_, err = t.renderer(billing.Capabilities{Name: "provider", Exponent: func(string) int { return 2 }})
	return err
}

func (t *Tenant) renderer(caps billing.Capabilities) (*templates.Renderer, error) {
	loc, err := time.LoadLocation(cmp.Or(t.Brand.TimeZone, "UTC"))
	if err != nil {
		return nil, fmt.Errorf("brand: time_zone %q: %w", t.Brand.TimeZone, err)
	}
	theme := templates.Theme{Name: t.Brand.Name, AccentLight: t.Brand.AccentLight, AccentDark: t.Brand.AccentDark}
	if len(t.Brand.Logo) > 0 {
		theme.LogoURL = pages.LogoPath(t.Brand.Logo, t.Brand.LogoType)
	}
	return templates.New(templates.Options{
		Theme: theme, Exponent: caps.Exponent, Location: loc,
		HelpURL: t.Brand.HelpURL, LegalURL: t.Brand.LegalURL, PrivacyURL: t.Brand.PrivacyURL,
		ProviderName: caps.Name, Override: t.Brand.Templates,
	})
}

// Start reads or makes the tenant's keys and its record of sessions, resolves the catalogue against the
// provider where it can be reached (a plan whose price is not there is an
// error; a provider that does not answer is a warning, and the catalogue is
// resolved later). Run recovers what a dead process left behind.
func (p *Portal) Start(ctx context.Context) error {
	if err := p.loadKeys(ctx); err != nil {
		return err
	}
	if err := p.sessions.Prepare(ctx); err != nil {
		return fmt.Errorf("making the tenant's record of sessions: %w", err)
	}
	if err := p.resolve(ctx); err != nil {
		if _, ok := errors.AsType[*unreachableError](err); !ok {
			return err
		}
		p.log.Warn("the provider did not answer, so the catalogue is not known yet; nothing can be changed until it does", zap.Error(err))
	}
	return nil
}

func (p *Portal) loadKeys(ctx context.Context) error {
	keys, err := session.OwnKeys(ctx, p.opt.Store, p.tenant.Name, p.opt.Rand, p.opt.Now())
	if err != nil {
		return err
	}
	same := func(a, b link.Key) bool { return a.ID == b.ID }
	if old := p.keys.Load(); old != nil && slices.EqualFunc(old.all, keys, same) {
		return nil
	}
	issuers := append([]link.Issuer{{Name: ownIssuer, Own: true, Keys: keys}}, p.tenant.Trust...)
	trust, err := link.NewTrust(p.tenant.Origin, issuers...)
	if err != nil {
		return err
	}
	p.keys.Store(&ownKeys{all: keys, trust: trust})
	return nil
}

// unreachableError says that the provider could not be asked.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// resolve makes the catalogue out of the config and what the provider has.
func (p *Portal) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	prices, err := p.opt.Provider.Prices(ctx)
	if err != nil {
		return &unreachableError{fmt.Errorf("reading the provider's prices: %w", err)}
	}
	var cat billing.Catalogue
	if len(p.tenant.Plans) == 0 {
		cat, err = billing.CatalogueFromMetadata(prices)
	} else {
		cat, err = resolvePlans(p.tenant.Plans, prices)
	}
	if err != nil {
		return err
	}
	if err := p.checkPolicies(&cat); err != nil {
		return err
	}
	p.catalogue.Store(&cat)
	return nil
}

// checkPolicies refuses a rule about a plan that nobody sells: a misspelt plan
// in a rule that denies would allow.
func (p *Portal) checkPolicies(cat *billing.Catalogue) error {
	plans := make([]string, len(cat.Plans))
	for i, plan := range cat.Plans {
		plans[i] = plan.Key
	}
	for _, name := range slices.Sorted(maps.Keys(p.policies)) {
		if err := p.policies[name].CheckPlans(plans); err != nil {
			return fmt.Errorf("policy %q: %w", name, err)
		}
	}
	return nil
}

func resolvePlans(configs []PlanConfig, prices []billing.Price) (billing.Catalogue, error) {
	var plans []billing.Plan
	for _, c := range configs {
		plan := c.Plan
		for _, ref := range c.PriceRefs {
			i := slices.IndexFunc(prices, func(pr billing.Price) bool { return pr.LookupKey == ref || pr.ID == ref })
			if i < 0 {
				return billing.Catalogue{}, fmt.Errorf("catalogue: plan %q: the provider has no active recurring price with lookup key or id %q", c.Key, ref)
			}
			plan.Prices = append(plan.Prices, prices[i])
		}
		plans = append(plans, plan)
	}
	return billing.NewCatalogue(plans)
}

// Run does the portal's background work (recovery, telling the vendor's backend,
// sweeping, key rotation, reading the catalogue again) until ctx ends. It
// returns when all of it has stopped. Several nodes can run it side by side:
// what must be done once is leased in the store.
func (p *Portal) Run(ctx context.Context) {
	var loops sync.WaitGroup
	defer loops.Wait()
	// Recovery waits for the provider; the rest must not wait for it.
	loops.Go(func() {
		r := recovery{p: p}
		if err := r.look(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("recovery at the start failed; it is tried again", zap.Error(err))
		}
		// Woken by the provider's events, and by the clock all the same: an event
		// may never come.
		p.every(ctx, recoverEvery, p.wakeRecover, func() error { return r.look(ctx) })
	})
	if p.outbox != nil {
		loops.Go(func() {
			p.every(ctx, deliverEvery, p.wakeDeliver, func() error {
				_, err := p.outbox.Deliver(ctx)
				return err
			})
		})
	}
	loops.Go(func() { p.every(ctx, indexEvery, p.wakeIndex, func() error { return p.index(ctx) }) })
	loops.Go(func() { p.every(ctx, sweepEvery, nil, func() error { return p.sweep(ctx) }) })
	loops.Go(func() { p.every(ctx, rotateEvery, nil, func() error { return p.loadKeys(ctx) }) })
	resolving := complaints{log: p.log}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(p.resolveIn()):
			resolving.told(ctx, p.resolve(ctx))
		}
	}
}

// index reads invoices for the indexes that want some, and goes on at once where
// there may be more to read.
func (p *Portal) index(ctx context.Context) error {
	more, err := p.invoices.Work(ctx)
	if more && err == nil {
		wake(p.wakeIndex)
	}
	return err
}

// recovery is the loop that recovers.
type recovery struct {
	p       *Portal
	started bool // what processes left behind that are gone was looked at
	failed  time.Time
	pause   time.Duration // from failed on
	why     error         // it failed, until it gets to its end: one complaint, not a new one whenever it is tried
}

// look recovers what is due. Until it got to its end once, it also looks at what
// processes left behind that are gone.
func (r *recovery) look(ctx context.Context) error {
	defer r.p.wakeDelivery()
	if !r.started && (r.pause == 0 || time.Since(r.failed) >= r.pause) {
		_, err := r.p.corridor.Recover(ctx, true)
		if err == nil {
			r.started, r.why = true, nil
			return nil
		}
		r.failed, r.pause = time.Now(), min(max(2*r.pause, recoverEvery), startRecoveryAtMost)
		r.why = fmt.Errorf("looking at what was left behind: %w", err)
	}
	_, err := r.p.corridor.Recover(ctx, false)
	return errors.Join(r.why, err)
}

// every does work at an interval, and when it is woken, until ctx ends.
func (p *Portal) every(ctx context.Context, interval time.Duration, woken <-chan struct{}, work func() error) {
	t := time.NewTicker(interval)
	defer t.Stop()
	failing := complaints{log: p.log}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-woken:
		}
		failing.told(ctx, work())
	}
}

// complaints logs failures of one kind of work, and the same one not more often
// than every quietFor: a store that is away must not fill the disk with lines.
type complaints struct {
	log  *zap.Logger
	last string
	at   time.Time
}

func (c *complaints) told(ctx context.Context, err error) {
	if err == nil {
		c.last = ""
		return
	}
	if ctx.Err() != nil || err.Error() == c.last && time.Since(c.at) < quietFor {
		return
	}
	c.last, c.at = err.Error(), time.Now()
	c.log.Error("background work failed; it is tried again", zap.Error(err))
}

// wake makes a loop go on at once. It never waits: what is woken already goes on
// once.
func wake(loop chan<- struct{}) {
	select {
	case loop <- struct{}{}:
	default:
	}
}

// wakeDelivery is called when a transaction may have put an event and has been
// committed.
func (p *Portal) wakeDelivery() {
	if p.settled.Swap(false) {
		wake(p.wakeDeliver)
	}
}

// eventTypes are what the vendor's backend is told when an intent ends.
var eventTypes = map[journal.State]string{
	journal.Succeeded: "action.succeeded", journal.Refused: "action.refused", journal.Partial: "action.partial",
	journal.NotApplied: "action.not_applied", journal.Cancelled: "action.cancelled", journal.Manual: "action.needs_attention",
}

// eventData is the data of such an event.
type eventData struct {
	ID        string    `json:"id"`
	Reference string    `json:"reference"`
	Customer  string    `json:"customer"`
	Action    string    `json:"action"`
	Object    string    `json:"object"`
	Objects   []string  `json:"objects,omitempty"`
	State     string    `json:"state"`
	Created   time.Time `json:"created"`
	Updated   time.Time `json:"updated"`
}

// putEvent is the journal's Settled. All of the event comes from the intent, so
// that a transaction that runs again puts the same one, and a store that was
// restored tells the same thing under the same id.
func (p *Portal) putEvent(tx store.Tx, i *journal.Intent) error {
	typ, ok := eventTypes[i.State]
	if !ok {
		return fmt.Errorf("portalcore: no event for an intent that is %s", i.State)
	}
	data, err := json.Marshal(eventData{
		ID: i.ID, Reference: i.Reference(), Customer: i.Customer, Action: string(i.Action.Kind), Object: i.Object, Objects: i.Objects,
		State: string(i.State), Created: i.Created, Updated: i.Updated,
	})
	if err != nil {
		return err
	}
	p.settled.Store(true)
	return p.outbox.Put(tx, outbox.Event{
		ID: "evt_" + i.ID + "_" + string(i.State), Type: typ, Time: i.Updated, Customer: i.Customer, Data: data,
	})
}

// resolveIn is soon while the provider has not said what is sold.
func (p *Portal) resolveIn() time.Duration {
	if p.catalogue.Load() == nil {
		return retryResolve
	}
	return resolveEvery
}

func (p *Portal) sweep(ctx context.Context) error {
	for {
		n, err := store.Sweep(ctx, p.opt.Store, p.tenant.Name, p.opt.Now(), sweepBatch)
		if err != nil || n < sweepBatch {
			return err
		}
	}
}

// Close stops what the caches run in the background. Nothing may be served any
// more.
func (p *Portal) Close() {
	p.pages.Close()
	p.corridor.Accounts.Close()
	if p.outbox != nil {
		p.outbox.Close()
	}
}

// ServeHTTP answers every request to the tenant's origin.
func (p *Portal) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/v1/"):
		p.api.ServeHTTP(w, r)
	case r.URL.Path == webhook.Path:
		p.serveWebhook(w, r)
	default:
		p.pages.ServeHTTP(w, r)
		p.wakeDelivery()
	}
}

// serveWebhook takes the provider's events, on the tenant's origin only.
func (p *Portal) serveWebhook(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	if strings.HasPrefix(p.tenant.Origin, "https:") {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	if !strings.EqualFold(r.Host, p.host) {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(http.StatusMisdirectedRequest)
		_, _ = io.WriteString(w, "This is not the address of the billing portal.\n")
		return
	}
	p.webhook.ServeHTTP(w, r)
}
