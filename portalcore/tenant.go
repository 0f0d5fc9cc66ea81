package portalcore

import (
	"io"
	"io/fs"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/templates"
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
	// HelpURL, LegalURL and PrivacyURL are links in the footer. Optional;
	// HelpURL may be a mailto: link.
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
	// SkipAccessLog is called for requests whose URL carries a token, before
	// they are answered, to keep them out of an access log. Optional.
	SkipAccessLog func(r RequestContext)
}

// RequestContext is the part of a request that SkipAccessLog may need.
type RequestContext interface{ Value(key any) any }

// theme is the tenant's templates.Theme.
func (b Brand) theme(logoPath string) templates.Theme {
	return templates.Theme{Name: b.Name, LogoURL: logoPath, AccentLight: b.AccentLight, AccentDark: b.AccentDark}
}
