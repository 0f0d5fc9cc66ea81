package portalcore

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/outbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/pages"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/portalcore/vendorapi"
)

// Tenant is one vendor's portal: one origin, one provider account, one set of
// policies. It is a value; New checks it.
type Tenant struct {
	// Name stands in every key of the store and must never change. Default:
	// the origin's host (with its port, where there is one).
	Name string
	// Origin is the portal's own origin: scheme, host and port, no path.
	// Required. https, or http on a loopback host (for the demo).
	Origin string
	// APIKeys are what the vendor's backend mints links with, one or more, 20
	// or more characters each. Only their hashes are kept.
	APIKeys []string
	// Trust are the vendor's own signers, without the portal itself.
	Trust []link.Issuer
	// ReturnTo are URLs in the vendor's app. The first is where "back" leads by
	// default; the origins of all are where a link's return_url may lead.
	// At least one.
	ReturnTo []string
	// Entry is EntrySameSite (the default) or EntryConfirm.
	Entry string
	// Plans is the catalogue of the config: plans whose prices are named by
	// lookup key or id. Empty: the catalogue comes from the provider's metadata.
	Plans []PlanConfig
	// Policies by name; the key "" is the policy of links that name none.
	// Without it such links may only look.
	Policies map[string][]policy.Rule
	// DefaultRole is the role of a link that names none. Default: owner.
	DefaultRole string
	// Idle and Absolute are how long a session lives. Defaults: 30 minutes,
	// 8 hours.
	Idle, Absolute time.Duration
	// SessionLimit is how many sessions a customer may have at once, at most
	// session.MaxLimit. Default: session.DefaultLimit.
	SessionLimit int
	// EventsURL is where the vendor's backend hears what became of its
	// customers' changes, and EventsSecrets sign what it hears: one, or the new
	// and the old one while it is changed (package outbox). Optional.
	EventsURL     string
	EventsSecrets []string
	// AccountMaxAge is how old an account on a page may be. Default: 1 minute.
	AccountMaxAge time.Duration
	// Brand is what the portal looks like.
	Brand Brand
}

// Ways to enter.
const (
	// EntrySameSite redeems a link at once on a top-level navigation from the
	// portal's own site, and asks first everywhere else.
	EntrySameSite = "same_site"
	// EntryConfirm always asks first.
	EntryConfirm = "confirm"
)

// PlanConfig is a plan as the config states it.
type PlanConfig struct {
	billing.Plan
	// PriceRefs are lookup keys or price ids at the provider.
	PriceRefs []string
}

// Brand is what the vendor's portal looks like.
type Brand struct {
	// Name is the vendor's name. Required.
	Name string
	// Logo is an image file: svg, png or webp. Optional.
	Logo []byte
	// LogoType is the logo's media type, "image/svg+xml", "image/png" or
	// "image/webp".
	LogoType string
	// AccentLight and AccentDark are "#rrggbb", or "".
	AccentLight, AccentDark string
	// HelpURL, LegalURL and PrivacyURL are links in the footer: https:, mailto:
	// or a path. Optional.
	HelpURL, LegalURL, PrivacyURL string
	// TimeZone is where dates are shown, an IANA name. Default: UTC.
	TimeZone string
	// Templates overrides pages by file name. Optional.
	Templates fs.FS
}

// Options are what a Portal needs from the shell around it.
type Options struct {
	Tenant   Tenant
	Store    store.Store
	Provider billing.Provider
	// Logger gets what operators read. Required.
	Logger *zap.Logger
	// Now is the clock of tokens, sessions and the journal. Default: time.Now.
	Now func() time.Time
	// Rand is the source of randomness. Default: crypto/rand.
	Rand io.Reader
	// Process names the operating-system process and stays the same over
	// reloads of the config.
	Process string
	// ExclusiveStore is true where no other process can have the store open.
	ExclusiveStore bool
	// SkipAccessLog is called with the context of a request whose URL may carry
	// a token, before it is answered, to keep it out of an access log. Optional.
	SkipAccessLog func(context.Context)
}

var (
	tenantName = regexp.MustCompile(`^[A-Za-z0-9._:\[\]-]{1,128}$`)
	policyName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// reservedNames are the first words of keys that belong to no one tenant.
var reservedNames = []string{"work", "outbox", "invoices"}

// checkTenant checks t, fills its defaults in and compiles its policies.
func checkTenant(t Tenant) (Tenant, map[string]*policy.Policy, error) {
	fail := func(err error) (Tenant, map[string]*policy.Policy, error) { return Tenant{}, nil, err }
	origin, err := pages.ParseOrigin(t.Origin)
	if err != nil {
		return fail(err)
	}
	t.Name = cmp.Or(t.Name, origin.Host)
	if !tenantName.MatchString(t.Name) {
		return fail(fmt.Errorf("name %q: want 1 to 128 letters, digits, dots, hyphens", t.Name))
	}
	if slices.Contains(reservedNames, t.Name) {
		return fail(fmt.Errorf("name %q: the store keeps that word for itself: choose another name", t.Name))
	}
	for i, k := range t.APIKeys {
		if err := vendorapi.CheckKey(k); err != nil {
			return fail(fmt.Errorf("api_key %d: %w", i+1, err))
		}
	}
	if len(t.APIKeys) == 0 && len(t.Trust) == 0 {
		return fail(errors.New("nobody could make a link: set an api_key for the vendor's backend, or trust a key that it signs with"))
	}
	for _, iss := range t.Trust {
		if iss.Name == ownIssuer {
			return fail(fmt.Errorf("trust: the name %q is the portal's own", ownIssuer))
		}
	}
	if len(t.Trust) > 0 {
		if _, err := link.NewTrust(t.Origin, t.Trust...); err != nil {
			return fail(err)
		}
	}
	if len(t.ReturnTo) == 0 {
		return fail(errors.New("return_to is required: a page of the vendor's app that the portal leads back to"))
	}
	if _, err := pages.ReturnTo(t.ReturnTo); err != nil {
		return fail(fmt.Errorf("return_to: %w", err))
	}
	t.Entry = cmp.Or(t.Entry, EntrySameSite)
	if t.Entry != EntrySameSite && t.Entry != EntryConfirm {
		return fail(fmt.Errorf("entry %q: want %s or %s", t.Entry, EntrySameSite, EntryConfirm))
	}
	t.DefaultRole = cmp.Or(t.DefaultRole, policy.Owner)
	if !slices.Contains(policy.Roles, t.DefaultRole) {
		return fail(fmt.Errorf("default_role %q: want one of %s", t.DefaultRole, strings.Join(policy.Roles, ", ")))
	}
	t.Idle, t.Absolute = cmp.Or(t.Idle, session.DefaultIdle), cmp.Or(t.Absolute, session.DefaultAbsolute)
	if t.Idle < time.Minute || t.Absolute < t.Idle || t.Absolute > 24*time.Hour {
		return fail(fmt.Errorf("session: idle %s and absolute %s: want 1m <= idle <= absolute <= 24h", t.Idle, t.Absolute))
	}
	if t.SessionLimit < 0 || t.SessionLimit > session.MaxLimit {
		return fail(fmt.Errorf("session: limit %d: want 1 to %d", t.SessionLimit, session.MaxLimit))
	}
	if err := t.checkEvents(); err != nil {
		return fail(err)
	}
	if t.AccountMaxAge < 0 || t.AccountMaxAge > time.Hour {
		return fail(fmt.Errorf("account_max_age %s: want at most 1h", t.AccountMaxAge))
	}
	plans, err := t.planKeys()
	if err != nil {
		return fail(err)
	}
	policies := map[string]*policy.Policy{}
	for _, name := range slices.Sorted(maps.Keys(t.Policies)) {
		if name != "" && !policyName.MatchString(name) {
			return fail(fmt.Errorf("policy %q: a name is 1 to 64 letters, digits, _ and -", name))
		}
		if policies[name], err = policy.New(t.Policies[name], plans); err != nil {
			return fail(err)
		}
	}
	if policies[""] == nil { // nothing may be done, and everything read
		if policies[""], err = policy.New(nil, plans); err != nil {
			return fail(err)
		}
	}
	if t.Brand.Name == "" {
		return fail(errors.New("brand: name is required: what customers know the vendor by"))
	}
	if len(t.Brand.Logo) > 0 && !slices.Contains([]string{"image/svg+xml", "image/png", "image/webp"}, t.Brand.LogoType) {
		return fail(fmt.Errorf("brand: logo of type %q: want an svg, png or webp file", t.Brand.LogoType))
	}
	return t, policies, nil
}

// checkEvents checks what an outbox needs to know, without a store.
func (t *Tenant) checkEvents() error {
	if t.EventsURL == "" {
		if len(t.EventsSecrets) > 0 {
			return errors.New("events: url is missing: where the vendor's backend takes events")
		}
		return nil
	}
	out, err := outbox.New(outbox.Options{
		Store: struct{ store.Store }{}, Tenant: t.Name, Now: time.Now, Rand: rand.Reader, Process: "check",
		URL: t.EventsURL, Secrets: t.EventsSecrets,
	})
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	out.Close()
	return nil
}

// planKeys are the keys of the config's plans, or nil where the catalogue
// comes from the provider.
func (t *Tenant) planKeys() ([]string, error) {
	var keys []string
	plans := make([]billing.Plan, 0, len(t.Plans))
	for _, p := range t.Plans {
		if len(p.PriceRefs) == 0 {
			return nil, fmt.Errorf("catalogue: plan %q has no prices", p.Key)
		}
		keys = append(keys, p.Key)
		plans = append(plans, p.Plan)
	}
	_, err := billing.NewCatalogue(plans)
	return keys, err
}
