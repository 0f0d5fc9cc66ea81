// Package stripe is the billing.Provider over Stripe's API.
//
// It speaks HTTP itself, with structs of its own, and does not use stripe-go.
// Four reasons: the SDK reads unit_amount_decimal into a float64 and loses
// digits (v85.1.0); it pins another API version than the one whose pending
// updates take metadata; it follows redirects with the secret key and invents
// an idempotency key for each call that has none; and whether a change may
// have happened depends on whether a byte was written to a connection, which
// its errors do not say. What the requests look like is held against Stripe's
// own stripe-mock, whose API version must equal Version.
//
// Retrying a change is the journal's business: this package sends it once. A
// read that Stripe has no time for (429) waits and is sent again. All requests
// under one key go through one limiter; see Options.RequestsPerSecond.
//
// Source of the API's rules: https://docs.stripe.com/api and
// https://docs.stripe.com/error-low-level.
package stripe

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe/event"
)

// Version is the API version that every request names, whatever the account's
// default is.
const Version = "2026-08-26.dahlia"

// KeyWindow is how long a used idempotency key is safe to send again. Stripe
// may forget keys that are 24 hours old; an hour is kept as a margin.
const KeyWindow = 23 * time.Hour

// Limits of what is read from Stripe.
const (
	maxBody         = 8 << 20          // a JSON answer
	maxDocument     = 20 << 20         // a PDF file
	writeTimeout    = 80 * time.Second // what Stripe's own clients wait
	documentTimeout = 2 * time.Minute  // from opening a PDF file to its last byte
)

// Options configure a Provider.
type Options struct {
	// Key is a secret key (sk_…) or, better, a restricted one (rk_…).
	// Required. It is never logged and never part of an error.
	Key string
	// BaseURL is the API's origin. Default: https://api.stripe.com. Plain
	// http is taken for loopback hosts only.
	BaseURL string
	// Transport carries the requests. Default: a clone of
	// http.DefaultTransport.
	Transport http.RoundTripper
	// Logger gets one debug line per request, without parameters. Default:
	// none.
	Logger *zap.Logger
	// Now is the local clock, used where an answer has no Date header.
	// Default: time.Now.
	Now func() time.Time
	// FilesHosts are hosts, beside Stripe's own (DefaultFilesHosts), that an
	// invoice's PDF file may be fetched from.
	FilesHosts []string
	// Timeout bounds one read. Default 30 s, at most 80 s. Changes always have
	// 80 s, as giving up early only makes their outcome unknown.
	Timeout time.Duration
	// RequestsPerSecond is the most that this process sends under Key in a
	// second; what is above waits, customers in turn, changes before reads.
	// Providers with the same Key and BaseURL share it, and the lowest counts.
	// Several nodes share what Stripe allows the account: give each its part.
	// Default: 25 with a test key, 80 with a live one, and the most that can be
	// set, 10,000, where BaseURL is on a loopback host.
	RequestsPerSecond int
	// WebhookSecrets are the signing secrets (whsec_…) of the endpoint that
	// Stripe posts events to; two while one is rolled over. They are never
	// logged and never part of an error. Default: none, and ParseEvent says
	// billing.ErrNoWebhook.
	WebhookSecrets []string
}

// DefaultFilesHosts are Stripe's hosts that serve invoice PDF files.
var DefaultFilesHosts = []string{
	"pay.stripe.com", "invoice.stripe.com", "invoicedata.stripe.com", "files.stripe.com",
}

// Provider is a billing.Provider over one Stripe account.
type Provider struct {
	key      string
	base     string
	loopback bool
	live     bool
	hosts    []string
	api      *http.Client
	files    *http.Client
	log      *zap.Logger
	now      func() time.Time
	timeout  time.Duration
	webhooks []string
	tiers    cache[tiering]
	meters   cache[meter]
	rate     int

	mu    sync.Mutex
	limit *limiter // nil before the first request

	known products
}

// New checks o and returns a Provider. It sends nothing.
func New(o Options) (*Provider, error) {
	prefix, rest, _ := strings.Cut(o.Key, "_")
	mode, tail, _ := strings.Cut(rest, "_")
	if (prefix != "sk" && prefix != "rk") || (mode != "live" && mode != "test") || tail == "" ||
		strings.ContainsFunc(o.Key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("stripe: the API key must be a secret key (sk_live_…, sk_test_…) or a restricted key (rk_live_…, rk_test_…); copy it from the dashboard's API keys page")
	}
	if o.BaseURL == "" {
		o.BaseURL = "https://api.stripe.com"
	}
	u, err := url.Parse(o.BaseURL)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" {
		return nil, errors.New("stripe: the base URL must be an origin like https://api.stripe.com")
	}
	loop := isLoopback(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || !loop) {
		return nil, fmt.Errorf("stripe: the base URL must be https (http is for loopback hosts only), not %q", u.Scheme+"://"+u.Host)
	}
	if o.Timeout < 0 || o.Timeout > writeTimeout {
		return nil, fmt.Errorf("stripe: the timeout must be between 0 and %s", writeTimeout)
	}
	for _, secret := range o.WebhookSecrets {
		if tail, ok := strings.CutPrefix(secret, "whsec_"); !ok || len(tail) < 16 || len(tail) > 255 ||
			strings.ContainsFunc(tail, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, errors.New("stripe: a webhook secret must be the signing secret of the endpoint (whsec_…); copy it from the dashboard's webhooks page")
		}
	}
	if o.RequestsPerSecond < 0 || o.RequestsPerSecond > maxRate {
		return nil, fmt.Errorf("stripe: the requests per second must be between 1 and %d", maxRate)
	}
	p := &Provider{
		rate:     o.RequestsPerSecond,
		known:    products{by: map[string]readProduct{}, reading: map[string]*productRead{}},
		webhooks: slices.Clone(o.WebhookSecrets),
		key:      o.Key, base: u.Scheme + "://" + u.Host, loopback: loop, live: mode == "live",
		log: o.Logger, now: o.Now, timeout: o.Timeout,
		hosts: append(slices.Clone(DefaultFilesHosts), o.FilesHosts...),
	}
	switch {
	case p.rate > 0:
	case loop:
		p.rate = maxRate
	case p.live:
		p.rate = defaultLiveRate
	default:
		p.rate = defaultTestRate
	}
	for i, h := range p.hosts {
		p.hosts[i] = strings.ToLower(h)
	}
	if p.log == nil {
		p.log = zap.NewNop()
	}
	if p.now == nil {
		p.now = time.Now
	}
	if p.timeout == 0 {
		p.timeout = 30 * time.Second
	}
	t := o.Transport
	if t == nil {
		d := http.DefaultTransport.(*http.Transport).Clone()
		// One overview makes up to nine requests side by side.
		d.MaxIdleConnsPerHost = 32
		t = d
	}
	p.api = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the key goes to one host only
	}}
	p.files = &http.Client{Transport: t, CheckRedirect: p.checkRedirect}
	return p, nil
}

// Close drops idle connections and p's part in the limiter of its key. What is
// on its way goes on.
func (p *Provider) Close() error {
	p.leave()
	p.api.CloseIdleConnections()
	return nil
}

// Capabilities implements billing.Provider.
func (p *Provider) Capabilities() billing.Capabilities {
	return billing.Capabilities{Name: "Stripe", LiveMode: p.live, KeyWindow: KeyWindow, Exponent: Exponent}
}

// ParseEvent implements billing.Provider for Stripe's snapshot events.
// Source: https://docs.stripe.com/webhooks.
func (p *Provider) ParseEvent(header http.Header, body []byte, now time.Time) (billing.Event, error) {
	return event.Parse(header, body, event.Options{Secrets: p.webhooks, LiveMode: p.live, Now: now})
}

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Exponent is how many decimals Stripe's minor unit of a currency has. It is
// Stripe's table and not ISO 4217's: ISK and UGX have no minor unit any more
// and are passed with two decimals all the same, MGA (one fifth) is passed
// without. Amounts of three-decimal currencies end in 0.
// Source: https://docs.stripe.com/currencies.
func Exponent(currency string) int {
	switch strings.ToLower(currency) {
	case "bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf":
		return 0
	case "bhd", "jod", "kwd", "omr", "tnd":
		return 3
	}
	return 2
}

var _ billing.Provider = (*Provider)(nil)
