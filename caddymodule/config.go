package caddymodule

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
)

const (
	maxLogo = 256 << 10
	maxKey  = 16 << 10
)

// Tenant is the configuration of one vendor's portal.
type Tenant struct {
	// Name stands in every key of the store and must never change: a tenant
	// with another name has other sessions and another journal. Default: the
	// host of Origin, with its port where Origin has one.
	Name string `json:"name,omitempty"`

	// Origin is the portal's own origin: scheme, host and port, without a path.
	// Required. It must be https; http is taken for loopback hosts only, for
	// demos and tests. It is what links point to and what a token must name, so
	// it is configured and never taken from a request. The site's own address
	// may differ, behind another proxy for example; a request whose Host is not
	// the origin's is refused.
	Origin string `json:"origin,omitempty"`

	// ProviderRaw is the payment provider, a module of the namespace
	// billing_portal.providers. Required.
	ProviderRaw json.RawMessage `json:"provider,omitempty" caddy:"namespace=billing_portal.providers inline_key=name"`

	// APIKeys are what the vendor's backend mints links with: as many as there
	// are backends, and both the old and the new one while a key is changed.
	// Each must be a placeholder ({env.NAME}, {file./path}) with 20 or more
	// characters behind it, and not a key of the payment provider. Empty: links
	// can only be signed by the vendor (Trust).
	APIKeys []string `json:"api_keys,omitempty"`

	// Trust are vendors' own signers of redirect tokens. Default: none.
	Trust []Trust `json:"trust,omitempty"`

	// ReturnTo are URLs in the vendor's app, at least one. The first is where
	// "back" leads by default; the origins of all are where a link's return_url
	// may lead.
	ReturnTo []string `json:"return_to,omitempty"`

	// Entry says when a link opens the portal at once. "same_site": on a
	// top-level navigation that comes from the portal's own site (the same
	// registrable domain); everything else gets a page with one button.
	// "confirm": always that page, for vendors who do not control every
	// subdomain. Default: same_site.
	Entry string `json:"entry,omitempty"`

	// DefaultRole is the role of a link that names none: owner, billing or
	// viewer. Default: owner.
	DefaultRole string `json:"default_role,omitempty"`

	// Session is how long sessions live, and how many. Default: see there.
	Session *Session `json:"session,omitempty"`

	// Events is where the vendor's backend hears what became of its customers'
	// changes. Default: nobody is told.
	Events *Events `json:"events,omitempty"`

	// AccountMaxAge is how old the account on a page may be before it is read
	// from the provider again. An action and "Refresh" always read. Default: 1m.
	// Zero means the default.
	AccountMaxAge caddy.Duration `json:"account_max_age,omitempty"`

	// Catalogue is what the vendor offers. Empty: plans come from the metadata
	// of the provider's prices (portal_plan, portal_rank, …). A price that is
	// not in the catalogue is shown only to customers who have it.
	Catalogue []Plan `json:"catalogue,omitempty"`

	// Policy is what customers may do where their link names no policy. Every
	// change is denied unless a rule allows it, and a rule that denies beats
	// all that allow. Empty: look only.
	Policy []Rule `json:"policy,omitempty"`

	// Policies are further policies by name. A link picks one with its
	// configuration member; it then stands instead of Policy.
	Policies map[string][]Rule `json:"policies,omitempty"`

	// Brand is what the portal looks like. Its name is required.
	Brand *Brand `json:"brand,omitempty"`
}

// Session is how long a session lives, and how many there are.
type Session struct {
	// Idle is how long without a request. Default: 30m. Zero means the default.
	Idle caddy.Duration `json:"idle,omitempty"`
	// Absolute is how long at most. Default: 8h. Zero means the default.
	Absolute caddy.Duration `json:"absolute,omitempty"`
	// Limit is how many sessions a customer can have at once, up to 100; one more
	// ends the one that was used least recently. Default: 20. Zero means the
	// default.
	Limit int `json:"limit,omitempty"`
}

// Events is where the vendor's backend hears what became of its customers'
// changes, as Standard Webhooks (https://www.standardwebhooks.com).
type Events struct {
	// URL is where events are posted: https, or http to a loopback host. Required.
	URL string `json:"url,omitempty"`
	// Secrets sign the events, each behind a placeholder: "whsec_" and 24 to 64
	// bytes in base64 (echo whsec_$(openssl rand -base64 32)). One, or the new and
	// the old one while it is changed. Required.
	Secrets []string `json:"secrets,omitempty"`
}

// Trust is one signer of redirect tokens: a backend of the vendor that signs
// links itself instead of asking for them.
type Trust struct {
	// Name is the exact "iss" of its tokens. Required.
	Name string `json:"name,omitempty"`
	// Keys are its public keys, at least one.
	Keys []TrustKey `json:"keys,omitempty"`
	// AllowPlainJWT also accepts tokens of type "JWT" beside
	// "portal-link+jwt", for libraries that cannot set the type. Default:
	// false.
	AllowPlainJWT bool `json:"allow_plain_jwt,omitempty"`
}

// TrustKey is a public key.
type TrustKey struct {
	// Algorithm is EdDSA (Ed25519) or ES256 (P-256). Required; the key is used
	// with no other.
	Algorithm string `json:"algorithm,omitempty"`
	// Key is the public key: PEM ("-----BEGIN PUBLIC KEY-----"), a JWK, a
	// placeholder for one of these, or the path of a file with one. Files are
	// read when the config is loaded. Required.
	Key string `json:"key,omitempty"`
	// ID is the "kid" that tokens name. Default: the JWK's kid, else the key's
	// JWK thumbprint (RFC 7638).
	ID string `json:"id,omitempty"`
}

// Plan is a plan the vendor offers.
type Plan struct {
	// Key names the plan in policies. Required, unique.
	Key string `json:"key,omitempty"`
	// Name is what customers read. Default: the key with a capital.
	Name string `json:"name,omitempty"`
	// Rank orders plans: a change to a higher rank is an upgrade. Plans of one
	// rank are compared by price. Default: 0.
	Rank int `json:"rank,omitempty"`
	// Text is one line about the plan. Default: none.
	Text string `json:"text,omitempty"`
	// Prices are lookup keys or ids of the provider's prices, one for every
	// currency and interval. Required.
	Prices []string `json:"prices,omitempty"`
	// Features are shown as a list, in this order. Default: none.
	Features []string `json:"features,omitempty"`
	// Limits are shown beside the features and compared between plans. Default:
	// none.
	Limits []PlanLimit `json:"limits,omitempty"`
	// MinQuantity is the smallest quantity that can be chosen. Default: 1.
	MinQuantity int64 `json:"min_quantity,omitempty"`
	// MaxQuantity is the largest quantity that can be chosen. Default: no limit
	// of the plan's.
	MaxQuantity int64 `json:"max_quantity,omitempty"`
}

// PlanLimit is a named number of a plan: "projects", 10.
type PlanLimit struct {
	// Name is what customers read. Required.
	Name string `json:"name,omitempty"`
	// Value is the number. Default: 0.
	Value int64 `json:"value"`
}

// Rule allows or denies actions.
type Rule struct {
	// Verdict is allow or deny. Required.
	Verdict string `json:"verdict,omitempty"`
	// Actions are what the rule is about, one or more of change_plan, cancel,
	// resume, update_payment_method, remove_payment_method, pay_invoices,
	// update_details, update_tax_ids. Allowing cancel allows
	// resume too.
	Actions []string `json:"actions,omitempty"`
	// Directions narrow change_plan: upgrade, downgrade, crossgrade,
	// interval_longer, interval_shorter. A change that goes several ways needs
	// all of them allowed. Default: all.
	Directions []string `json:"directions,omitempty"`
	// Roles narrow the rule to people: owner, billing, viewer. Default: all, but
	// an allow rule reaches a viewer only where it names the role.
	Roles []string `json:"roles,omitempty"`
	// From narrows the rule to customers on these plans. Default: all.
	From []string `json:"from,omitempty"`
	// To narrows change_plan to these plans. Default: all.
	To []string `json:"to,omitempty"`
	// Text is what a customer reads where the rule denies. Default: a general
	// sentence.
	Text string `json:"text,omitempty"`
}

// Brand is what the portal looks like.
type Brand struct {
	// Name is the vendor's name. Required.
	Name string `json:"name,omitempty"`
	// Logo is the path of an svg, png or webp file of at most 256 KiB, read when
	// the config is loaded. Default: the name as text.
	Logo string `json:"logo,omitempty"`
	// AccentLight is the accent colour on light pages, "#rrggbb". Default: the
	// portal's own.
	AccentLight string `json:"accent_light,omitempty"`
	// AccentDark is the accent colour on dark pages. Default: made from
	// AccentLight.
	AccentDark string `json:"accent_dark,omitempty"`
	// HelpURL is the footer's link to help, like LegalURL and PrivacyURL an
	// https: or mailto: URL, or a path that begins with a single "/". Default:
	// none.
	HelpURL string `json:"help_url,omitempty"`
	// LegalURL is the footer's link to legal terms. Default: none.
	LegalURL string `json:"legal_url,omitempty"`
	// PrivacyURL is the footer's link to the privacy notice. Default: none.
	PrivacyURL string `json:"privacy_url,omitempty"`
	// TimeZone is where dates are shown, a name like Europe/Berlin. Default:
	// UTC.
	TimeZone string `json:"time_zone,omitempty"`
	// Templates is a directory whose files stand instead of the portal's own
	// templates of the same name. Default: none.
	Templates string `json:"templates,omitempty"`
}

// tenant reads what the config names (secrets, keys, files) and returns the
// core's own value. It opens nothing that stays open.
func (t *Tenant) tenant() (portalcore.Tenant, error) {
	out := portalcore.Tenant{
		Name: t.Name, Origin: t.Origin, ReturnTo: t.ReturnTo, Entry: t.Entry,
		DefaultRole: t.DefaultRole, AccountMaxAge: time.Duration(t.AccountMaxAge),
	}
	fail := func(err error) (portalcore.Tenant, error) { return portalcore.Tenant{}, err }
	if out.Origin == "" {
		return fail(errors.New("origin is missing: write the portal's own origin, like https://billing.example.com"))
	}
	if t.Session != nil {
		out.Idle, out.Absolute, out.SessionLimit = time.Duration(t.Session.Idle), time.Duration(t.Session.Absolute), t.Session.Limit
	}
	if t.Events != nil {
		if t.Events.URL == "" {
			return fail(errors.New("events: url is missing: where your backend takes events"))
		}
		out.EventsURL = t.Events.URL
		for i, raw := range t.Events.Secrets {
			secret, err := expandSecret(fmt.Sprintf("events: secret %d", i+1), raw)
			if err != nil {
				return fail(err)
			}
			out.EventsSecrets = append(out.EventsSecrets, secret)
		}
	}
	for i, raw := range t.APIKeys {
		key, err := expandSecret(fmt.Sprintf("api_key %d", i+1), raw)
		if err != nil {
			return fail(err)
		}
		out.APIKeys = append(out.APIKeys, key)
	}
	for _, tr := range t.Trust {
		issuer, err := tr.issuer()
		if err != nil {
			return fail(err)
		}
		out.Trust = append(out.Trust, issuer)
	}
	for _, p := range t.Catalogue {
		out.Plans = append(out.Plans, p.plan())
	}
	out.Policies = make(map[string][]policy.Rule, 1+len(t.Policies))
	if len(t.Policy) > 0 {
		out.Policies[""] = rules(t.Policy)
	}
	for name, rs := range t.Policies {
		if name == "" {
			return fail(errors.New("policies has one without a name: the policy of links that name none is policy"))
		}
		out.Policies[name] = rules(rs)
	}
	if t.Brand != nil {
		b, err := t.Brand.brand()
		if err != nil {
			return fail(err)
		}
		out.Brand = b
	}
	return out, nil
}

func (t Trust) issuer() (link.Issuer, error) {
	out := link.Issuer{Name: t.Name, AllowPlainJWT: t.AllowPlainJWT}
	for i, k := range t.Keys {
		what := fmt.Sprintf("trust %s: key %d", t.Name, i+1)
		data, err := readText(what, k.Key, maxKey, isKeyText)
		if err != nil {
			return link.Issuer{}, err
		}
		key, err := link.ParsePublicKey(k.Algorithm, data)
		if err != nil {
			return link.Issuer{}, fmt.Errorf("%s: %w", what, err)
		}
		key.ID = cmp.Or(k.ID, key.ID)
		out.Keys = append(out.Keys, key)
	}
	return out, nil
}

// isKeyText tells a key from the path of one.
func isKeyText(s string) bool {
	s = strings.TrimSpace(s)
	return strings.HasPrefix(s, "{") || strings.Contains(s, "-----BEGIN")
}

func (p Plan) plan() portalcore.PlanConfig {
	out := portalcore.PlanConfig{PriceRefs: p.Prices, Plan: billing.Plan{
		Key: p.Key, Name: p.Name, Rank: p.Rank, Text: p.Text, Features: p.Features,
		MinQuantity: p.MinQuantity, MaxQuantity: p.MaxQuantity,
	}}
	for _, l := range p.Limits {
		out.Limits = append(out.Limits, billing.Limit{Name: l.Name, Value: l.Value})
	}
	return out
}

func rules(in []Rule) []policy.Rule {
	out := make([]policy.Rule, len(in))
	for i, r := range in {
		out[i] = policy.Rule{
			Verdict: policy.Verdict(r.Verdict), Actions: r.Actions,
			Roles: r.Roles, From: r.From, To: r.To, Text: r.Text,
		}
		for _, d := range r.Directions {
			out[i].Directions = append(out[i].Directions, policy.Direction(d))
		}
	}
	return out
}

// logoTypes are the media types of logos by the extension of their file.
var logoTypes = map[string]string{".svg": "image/svg+xml", ".png": "image/png", ".webp": "image/webp"}

func (b Brand) brand() (portalcore.Brand, error) {
	out := portalcore.Brand{
		Name: b.Name, AccentLight: b.AccentLight, AccentDark: b.AccentDark,
		HelpURL: b.HelpURL, LegalURL: b.LegalURL, PrivacyURL: b.PrivacyURL, TimeZone: b.TimeZone,
	}
	if b.Logo != "" {
		typ, ok := logoTypes[strings.ToLower(filepath.Ext(b.Logo))]
		if !ok {
			return portalcore.Brand{}, fmt.Errorf("brand logo %s: want a file that ends in .svg, .png or .webp", b.Logo)
		}
		data, err := readFile("brand logo", b.Logo, maxLogo)
		if err != nil {
			return portalcore.Brand{}, err
		}
		out.Logo, out.LogoType = data, typ
	}
	if b.Templates != "" {
		info, err := os.Stat(b.Templates)
		if err != nil {
			return portalcore.Brand{}, fmt.Errorf("brand templates: %w", err)
		}
		if !info.IsDir() {
			return portalcore.Brand{}, fmt.Errorf("brand templates: %s is not a directory", b.Templates)
		}
		out.Templates = os.DirFS(b.Templates)
	}
	return out, nil
}
