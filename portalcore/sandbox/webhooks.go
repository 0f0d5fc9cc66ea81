package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/event"
)

// apiVersion is what the events say they were drawn for.
const apiVersion = "2026-08-26.dahlia"

// retries are how long after a failed attempt an event is sent again; after
// the last it is given up. Stripe goes on for three days.
var retries = []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}

const (
	webhookTimeout = 10 * time.Second
	// lookEvery is how often what fell due by the clock alone is looked for.
	lookEvery = time.Second
	// holdAtMost is how long an event waits for the one that is to overtake it.
	holdAtMost = 2 * time.Second
)

// Webhooks posts a ledger's events to one endpoint, as Stripe posts its own:
// signed, one after another in the order of creation, again for a while when
// the endpoint fails. Make one with NewWebhooks and let it Run.
type Webhooks struct {
	ledger *Ledger
	opts   WebhookOptions
	client *http.Client
	wake   chan struct{}
	seed   string // makes ids of events unlike those of another run

	mu          sync.Mutex
	url, secret string
	seen        int64 // the last effect that events were made of
	waiting     []*posting
	held        *posting
	faults      []WebhookFault
	count       WebhookCount
}

// WebhookOptions configure Webhooks.
type WebhookOptions struct {
	// Draw returns an object, by Stripe's name of its kind and its id, in
	// Stripe's shape. Default: no more than id, object and customer.
	Draw func(ctx context.Context, kind, id string) (any, error)
	// Transport carries the requests. Default: a clone of
	// http.DefaultTransport.
	Transport http.RoundTripper
	// Logger gets what could not be sent, at debug level. Default: none.
	Logger *zap.Logger
}

// WebhookFaultKind is what goes wrong with an event.
type WebhookFaultKind string

// The faults of events.
const (
	// WebhookDelayed sends it Latency later, and those behind it meanwhile.
	WebhookDelayed WebhookFaultKind = "delayed"
	// WebhookDuplicated sends it twice.
	WebhookDuplicated WebhookFaultKind = "duplicated"
	// WebhookDropped does not send it.
	WebhookDropped WebhookFaultKind = "dropped"
	// WebhookReordered sends it behind the next one, or two seconds later where
	// none follows.
	WebhookReordered WebhookFaultKind = "reordered"
)

// WebhookFault is a fault of events to come.
type WebhookFault struct {
	Kind WebhookFaultKind
	// Times is how many events it happens to, 1 to 1,000.
	Times int
	// Latency is for WebhookDelayed: more than zero, at most a minute.
	Latency time.Duration
}

// WebhookCount tells what became of events. Sent counts those that the endpoint
// took (one that was duplicated twice), GivenUp those that failed to the end.
type WebhookCount struct {
	Made    int `json:"made"`
	Sent    int `json:"sent"`
	Dropped int `json:"dropped"`
	GivenUp int `json:"given_up"`
	Waiting int `json:"waiting"`
}

// posting is an event on its way.
type posting struct {
	id    string
	body  []byte
	at    time.Time // real time: when it may be sent
	tries int
}

// NewWebhooks makes the sender of l's events; the ledger has one. It sends
// nothing until Configure named an endpoint.
func NewWebhooks(l *Ledger, o WebhookOptions) *Webhooks {
	if o.Transport == nil {
		o.Transport = http.DefaultTransport.(*http.Transport).Clone()
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	w := &Webhooks{
		ledger: l, opts: o, wake: make(chan struct{}, 1), seed: rand.Text(),
		client: &http.Client{Transport: o.Transport, Timeout: webhookTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
	}
	l.webhooks.Store(w)
	return w
}

// SetDraw changes WebhookOptions.Draw.
func (w *Webhooks) SetDraw(draw func(ctx context.Context, kind, id string) (any, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opts.Draw = draw
}

// Configure names the endpoint: https, or http on a loopback host. Events are
// those of effects from now on, and what waits for the endpoint before goes
// there. An empty address turns events off.
func (w *Webhooks) Configure(ctx context.Context, address, secret string) error {
	if address != "" {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
			return errors.New("url must be https, or http on a loopback host")
		}
		if !strings.HasPrefix(secret, "whsec_") || len(secret) < 22 {
			return errors.New("secret must begin with whsec_ and go on with 16 characters or more")
		}
	}
	if _, err := w.ledger.present(ctx); err != nil { // what fell due before now is not told
		return err
	}
	var b book
	err := w.ledger.db.View(ctx, func(tx store.Tx) (err error) {
		b, err = readBook(tx)
		return err
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.url == "" {
		w.seen = b.Seq
	}
	w.url, w.secret = address, secret
	if address == "" {
		w.waiting, w.held = nil, nil
	}
	w.notice()
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// Fault adds a fault to come, behind those that are there already; Times 0
// takes all back.
func (w *Webhooks) Fault(f WebhookFault) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	kinds := []WebhookFaultKind{WebhookDelayed, WebhookDuplicated, WebhookDropped, WebhookReordered}
	switch {
	case f.Times == 0:
		w.faults = nil
		return nil
	case !slices.Contains(kinds, f.Kind):
		return fmt.Errorf("kind %q is not one of %q", f.Kind, kinds)
	case f.Times < 0 || f.Times > 1000:
		return fmt.Errorf("times %d is not 1 to 1000", f.Times)
	case f.Kind == WebhookDelayed && (f.Latency <= 0 || f.Latency > time.Minute):
		return fmt.Errorf("latency %s is not more than 0s and up to 1m", f.Latency)
	case len(w.faults) >= 1000:
		return errors.New("there are 1000 faults waiting already")
	}
	w.faults = append(w.faults, f)
	return nil
}

// Count tells what became of events so far.
func (w *Webhooks) Count() WebhookCount {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.count
	c.Waiting = len(w.waiting)
	if w.held != nil {
		c.Waiting++
	}
	return c
}

// notice makes Run look. It never waits.
func (w *Webhooks) notice() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run sends events until ctx ends.
func (w *Webhooks) Run(ctx context.Context) {
	defer w.client.CloseIdleConnections()
	t := time.NewTimer(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-t.C:
		}
		if err := w.collect(ctx); err != nil && ctx.Err() == nil {
			w.opts.Logger.Warn("sandbox: reading what to make events of failed; it is tried again", zap.Error(err))
		}
		t.Reset(w.flush(ctx))
	}
}

// collect makes events of the effects since the last look.
func (w *Webhooks) collect(ctx context.Context) error {
	w.mu.Lock()
	on, seen, draw := w.url != "", w.seen, w.opts.Draw
	w.mu.Unlock()
	if !on {
		return nil
	}
	effects, err := w.ledger.Effects(ctx, seen)
	if err != nil {
		return err
	}
	for _, e := range effects {
		told, err := w.ledger.told(ctx, e)
		if err != nil {
			return err
		}
		var made []*posting
		for n, x := range told {
			p, err := w.make(ctx, draw, e, n, x)
			if err != nil {
				return err
			}
			made = append(made, p)
		}
		w.mu.Lock()
		w.seen = e.Seq
		for _, p := range made {
			w.enter(p)
		}
		w.mu.Unlock()
	}
	return nil
}

// enter puts an event among those that wait, with the fault that is its.
func (w *Webhooks) enter(p *posting) {
	w.count.Made++
	overtaken := w.held
	w.held = nil
	var fault WebhookFault
	if len(w.faults) > 0 {
		fault = w.faults[0]
		if w.faults[0].Times--; w.faults[0].Times == 0 {
			w.faults = slices.Delete(w.faults, 0, 1)
		}
	}
	switch fault.Kind {
	case WebhookDropped:
		w.count.Dropped++
	case WebhookReordered:
		p.at = p.at.Add(holdAtMost)
		w.held = p
	case WebhookDelayed:
		p.at = p.at.Add(fault.Latency)
		w.waiting = append(w.waiting, p)
	case WebhookDuplicated:
		twin := *p
		w.waiting = append(w.waiting, p, &twin)
	default:
		w.waiting = append(w.waiting, p)
	}
	if overtaken != nil {
		overtaken.at = time.Now()
		w.waiting = append(w.waiting, overtaken)
	}
}

// flush sends what may be sent, and returns how long to wait for the next.
func (w *Webhooks) flush(ctx context.Context) time.Duration {
	w.mu.Lock()
	if w.held != nil && !time.Now().Before(w.held.at) {
		w.waiting, w.held = append(w.waiting, w.held), nil
	}
	list, address, secret := slices.Clone(w.waiting), w.url, w.secret
	w.mu.Unlock()
	next := lookEvery
	for _, p := range list {
		if d := time.Until(p.at); d > 0 {
			next = min(next, d)
			continue
		}
		err := w.post(ctx, address, secret, p.body)
		if ctx.Err() != nil {
			return next
		}
		w.mu.Lock()
		done := err == nil
		if done {
			w.count.Sent++
		} else if p.tries == len(retries) {
			done = true
			w.count.GivenUp++
		} else {
			d := retries[p.tries]
			p.tries++
			p.at = time.Now().Add(d)
			next = min(next, d)
		}
		if done {
			w.waiting = slices.DeleteFunc(w.waiting, func(x *posting) bool { return x == p })
		}
		w.mu.Unlock()
		if err != nil {
			w.opts.Logger.Debug("sandbox: posting an event failed", zap.String("event", p.id), zap.Int("tries", p.tries), zap.Bool("given_up", done), zap.Error(err))
		}
	}
	return next
}

func (w *Webhooks) post(ctx context.Context, address, secret string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "caddy-billing-portal sandbox")
	// The receiver's clock is this machine's, and not the ledger's.
	req.Header.Set(event.Header, event.Sign(body, w.ledger.opts.Now(), secret))
	res, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 4<<10)) // so that the connection can be used again
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("the endpoint answered %d", res.StatusCode)
	}
	return nil
}

// tale is an event to make: what happened to which object of whom.
type tale struct{ kind, object, id, customer string }

func (w *Webhooks) make(ctx context.Context, draw func(context.Context, string, string) (any, error), e Effect, n int, x tale) (*posting, error) {
	var o any = map[string]any{"id": x.id, "object": x.object, "customer": x.customer}
	if x.object == "customer" || x.customer == "" {
		o = map[string]any{"id": x.id, "object": x.object}
	}
	if draw != nil {
		var err error
		if o, err = draw(ctx, x.object, x.id); err != nil {
			return nil, fmt.Errorf("drawing %s %s: %w", x.object, x.id, err)
		}
	}
	data := map[string]any{"object": o}
	if x.kind == "payment_method.detached" { // the object does not say any more whose it was
		data["previous_attributes"] = map[string]any{"customer": x.customer}
	}
	made := &work{seed: sha256.Sum256(fmt.Appendf(nil, "%s %d %d", w.seed, e.Seq, n))}
	id := made.id("evt")
	body, err := json.Marshal(map[string]any{
		"id": id, "object": "event", "api_version": apiVersion, "created": e.Time.Unix(), "livemode": false, "pending_webhooks": 1,
		"request": map[string]any{"id": nil, "idempotency_key": orNil(e.IdempotencyKey)}, "type": x.kind, "data": data,
	})
	if err != nil {
		return nil, err
	}
	return &posting{id: id, body: body, at: time.Now()}, nil
}

func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// told is what Stripe tells about an effect, in its order. Objects are drawn as
// they are when the event is made, which may be later than the effect.
func (l *Ledger) told(ctx context.Context, e Effect) ([]tale, error) {
	one := func(kind, object, id string) tale { return tale{kind, object, id, e.Customer} }
	switch e.Kind {
	case "customer.create":
		return []tale{one("customer.created", "customer", e.Customer)}, nil
	case "customer.update", "balance.adjust":
		return []tale{one("customer.updated", "customer", e.Customer)}, nil
	case "tax_id.create":
		return []tale{one("customer.tax_id.created", "tax_id", e.Object)}, nil
	case "tax_id.verify":
		return []tale{one("customer.tax_id.updated", "tax_id", e.Object)}, nil
	case "tax_id.delete":
		return []tale{one("customer.tax_id.deleted", "tax_id", e.Object)}, nil
	case "credit_note.create":
		return []tale{one("credit_note.created", "credit_note", e.Object)}, nil
	case "credit_note.void":
		return []tale{one("credit_note.voided", "credit_note", e.Object)}, nil
	case "product.create":
		return []tale{one("product.created", "product", e.Object)}, nil
	case "price.create":
		return []tale{one("price.created", "price", e.Object)}, nil
	case "payment_method.attach":
		return []tale{one("payment_method.attached", "payment_method", e.Object)}, nil
	case "payment_method.detach":
		return []tale{one("payment_method.detached", "payment_method", e.Object)}, nil
	case "checkout_session.complete":
		s, err := l.CheckoutSession(ctx, e.Object)
		return []tale{
			one("payment_method.attached", "payment_method", s.PaymentMethod), one("setup_intent.succeeded", "setup_intent", s.SetupIntent),
			one("checkout.session.completed", "checkout.session", s.ID),
		}, err
	case "checkout_session.expire":
		return []tale{one("checkout.session.expired", "checkout.session", e.Object)}, nil
	case "invoice.pay", "invoice.retry", "invoice.void":
		inv, err := l.Invoice(ctx, e.Object)
		if err != nil {
			return nil, err
		}
		list, err := l.toldOf(ctx, inv)
		return append(list, one("customer.subscription.updated", "subscription", inv.Subscription)), err
	case "payment_intent.confirm", "payment_intent.decline", "payment_intent.settle", "payment_intent.fail":
		pi, err := l.PaymentIntent(ctx, e.Object)
		if err != nil {
			return nil, err
		}
		inv, err := l.Invoice(ctx, pi.Invoice)
		if err != nil {
			return nil, err
		}
		list, err := l.toldOf(ctx, inv)
		return append(list, one("customer.subscription.updated", "subscription", inv.Subscription)), err
	case "subscription.create":
		return l.toldWithInvoice(ctx, e, one("customer.subscription.created", "subscription", e.Object))
	case "subscription.update", "subscription.update_pending", "subscription.renew", "subscription.trial_end":
		return l.toldWithInvoice(ctx, e, one("customer.subscription.updated", "subscription", e.Object))
	case "subscription.pending_update_expire":
		return []tale{one("customer.subscription.pending_update_expired", "subscription", e.Object)}, nil
	case "subscription.expire":
		return []tale{one("customer.subscription.updated", "subscription", e.Object)}, nil
	case "credit_grant.create":
		return []tale{one("billing.credit_grant.created", "billing.credit_grant", e.Object)}, nil
	case "credit_grant.void", "credit_grant.expire":
		return []tale{one("billing.credit_grant.updated", "billing.credit_grant", e.Object)}, nil
	case "subscription.end": // its usage may make a last invoice
		return l.toldWithInvoice(ctx, e, one("customer.subscription.deleted", "subscription", e.Object))
	case "subscription.cancel", "subscription.end_unpaid":
		return []tale{one("customer.subscription.deleted", "subscription", e.Object)}, nil
	}
	return nil, nil
}

// toldWithInvoice tells of a subscription, and of the invoice that was made
// with it.
func (l *Ledger) toldWithInvoice(ctx context.Context, e Effect, of tale) ([]tale, error) {
	list := []tale{of}
	page, _, err := l.Invoices(ctx, InvoiceFilter{Subscription: e.Object, Limit: 100})
	if err != nil {
		return nil, err
	}
	for _, inv := range page {
		if inv.Created.Equal(e.Time) {
			more, err := l.toldOf(ctx, inv)
			return append(list, more...), err
		}
	}
	return list, nil
}

// toldOf tells how an invoice stands.
func (l *Ledger) toldOf(ctx context.Context, inv Invoice) ([]tale, error) {
	one := func(kind string) tale { return tale{kind, "invoice", inv.ID, inv.Customer} }
	var pi PaymentIntent
	if inv.PaymentIntent != "" {
		var err error
		if pi, err = l.PaymentIntent(ctx, inv.PaymentIntent); err != nil {
			return nil, err
		}
	}
	switch {
	case inv.VoidedAt.IsZero() && !inv.PaidAt.IsZero():
		list := []tale{one("invoice.paid")}
		if pi.Status == PaymentSucceeded {
			list = append([]tale{{"payment_intent.succeeded", "payment_intent", pi.ID, inv.Customer}}, list...)
		}
		return list, nil
	case !inv.VoidedAt.IsZero():
		return []tale{one("invoice.voided")}, nil
	case inv.Processing:
		return []tale{{"payment_intent.processing", "payment_intent", pi.ID, inv.Customer}}, nil
	case pi.Status == RequiresAction:
		return []tale{one("invoice.payment_action_required")}, nil
	case inv.Attempted:
		return []tale{{"payment_intent.payment_failed", "payment_intent", pi.ID, inv.Customer}, one("invoice.payment_failed")}, nil
	}
	return []tale{one("invoice.finalized")}, nil
}
