package caddymodule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("billing_portal", parseGlobal)
	httpcaddyfile.RegisterDirective("billing_portal", parseDirective)
	// Before templates: a template engine after us would evaluate what visitors
	// typed into our pages.
	httpcaddyfile.RegisterDirectiveOrder("billing_portal", httpcaddyfile.Before, "templates")
}

func parseGlobal(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		return nil, d.Errf("the global option billing_portal is there twice: write one block")
	}
	a := new(App)
	if err := a.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "billing_portal", Value: caddyconfig.JSON(a, nil)}, nil
}

// parseDirective does what httpcaddyfile.RegisterHandlerDirective would, but
// refuses a matcher: behind one, the pages that the portal links to would be
// somebody else's.
func parseDirective(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	if h.NextArg() && (strings.HasPrefix(h.Val(), "/") || strings.HasPrefix(h.Val(), "@")) {
		return nil, h.Errf("billing_portal takes no matcher (%s): a portal owns its whole origin, so give it a site block with a host of its own, and take the matcher out", h.Val())
	}
	h.Reset()
	h.Next()                          // the directive's name again
	all, err := h.ExtractMatcherSet() // "*" at most
	if err != nil {
		return nil, err
	}
	x := new(Handler)
	if err := x.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return h.NewRoute(all, x), nil
}

// UnmarshalCaddyfile reads the global option:
//
//	billing_portal {
//		store    badger [<directory>]
//		seal_key <placeholder> [<placeholder of a previous key>...]
//	}
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("the global option billing_portal takes no argument: write its settings in a block")
	}
	return block(d, "the global option billing_portal", subdirectives{
		"store": {once, func() error {
			raw, err := guest[Storage](d, "store", "billing_portal.stores.", "module")
			a.StoreRaw = raw
			return err
		}},
		"seal_key": {once, func() error {
			args := d.RemainingArgs()
			if len(args) == 0 {
				return d.Errf("seal_key takes a placeholder like {env.NAME} or {file./path/to/secret}, and after it those of previous keys that values may still be sealed with")
			}
			for i, arg := range args {
				what := "seal_key"
				if i > 0 {
					what = previousSealKey(i - 1)
				}
				if err := checkSecret(what, arg); err != nil {
					return d.WrapErr(err)
				}
			}
			a.SealKey, a.PreviousSealKeys = args[0], args[1:]
			return nil
		}},
	})
}

// UnmarshalCaddyfile reads the directive. Secrets are placeholders; see
// docs/configuration.md for the meaning of each part.
//
//	billing_portal {
//		origin    <https://host[:port]>
//		name      <name>
//		provider  stripe {
//			api_key <placeholder>
//		}
//		provider  sandbox {
//			data_dir <directory>
//		}
//		api_key   <placeholder>                 # repeatable
//		trust     <issuer> {                    # repeatable
//			key <ed25519|es256> <pem, jwk or path> [<kid>]   # repeatable
//			allow_plain_jwt
//		}
//		return_to <url...>                      # repeatable
//		entry     same_site|confirm
//		default_role owner|billing|viewer
//		session {
//			idle     <duration>
//			absolute <duration>
//			limit    <number>
//		}
//		events {
//			url    <https://…>
//			secret <placeholder> [<placeholder of the old one>]
//		}
//		account_max_age <duration>
//		catalogue {
//			plan <key> {                        # repeatable
//				name    <text>
//				rank    <number>
//				text    <text>
//				prices  <lookup key or id...>   # repeatable
//				feature <text>                  # repeatable
//				limit   <name> <number>         # repeatable
//				min_quantity <number>
//				max_quantity <number>
//			}
//		}
//		policy [<name>] {                       # one without name, and named ones
//			allow <action...> [<direction...>] {
//				role <role...>
//				from <plan...>
//				to   <plan...>
//			}
//			deny  <action...> [<direction...>] ["<text>"] {
//				…
//			}
//		}
//		brand {
//			name      <text>
//			logo      <path>
//			accent    "<#rrggbb>" ["<#rrggbb on dark pages>"]
//			help      <url>
//			legal     <url>
//			privacy   <url>
//			time_zone <name>
//			templates <directory>
//		}
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.Errf("billing_portal takes no argument: a portal owns its whole origin, which stands in its block")
	}
	t := &h.Tenant
	return block(d, "billing_portal", subdirectives{
		"origin": {once, func() error { return oneArg(d, &t.Origin) }},
		"name":   {once, func() error { return oneArg(d, &t.Name) }},
		"provider": {once, func() error {
			raw, err := guest[ProviderModule](d, "provider", "billing_portal.providers.", "name")
			t.ProviderRaw = raw
			return err
		}},
		"api_key": {repeated, func() error {
			return secretArg(d, "api_key", func(v string) { t.APIKeys = append(t.APIKeys, v) })
		}},
		"trust":           {repeated, func() error { return t.parseTrust(d) }},
		"return_to":       {repeated, func() error { return moreArgs(d, &t.ReturnTo) }},
		"entry":           {once, func() error { return oneArg(d, &t.Entry) }},
		"default_role":    {once, func() error { return oneArg(d, &t.DefaultRole) }},
		"session":         {once, func() error { return t.parseSession(d) }},
		"events":          {once, func() error { return t.parseEvents(d) }},
		"account_max_age": {once, func() error { return durationArg(d, &t.AccountMaxAge) }},
		"catalogue":       {once, func() error { return t.parseCatalogue(d) }},
		"policy":          {repeated, func() error { return t.parsePolicy(d) }},
		"brand":           {once, func() error { return t.parseBrand(d) }},
	})
}

func (t *Tenant) parseTrust(d *caddyfile.Dispenser) error {
	var tr Trust
	if err := oneArg(d, &tr.Name); err != nil {
		return err
	}
	for _, other := range t.Trust {
		if other.Name == tr.Name {
			return d.Errf("trust %s is there twice: write all its keys in one block", tr.Name)
		}
	}
	err := block(d, "trust", subdirectives{
		"key": {repeated, func() error {
			args := d.RemainingArgs()
			if len(args) < 2 || len(args) > 3 {
				return d.Errf("key takes an algorithm, a public key and optionally its kid: key ed25519 /path/to/key.pub")
			}
			k := TrustKey{Key: args[1]}
			switch strings.ToLower(args[0]) {
			case "ed25519", "eddsa":
				k.Algorithm = link.EdDSA
			case "es256":
				k.Algorithm = link.ES256
			default:
				return d.Errf("key algorithm %q: want ed25519 or es256", args[0])
			}
			if len(args) == 3 {
				k.ID = args[2]
			}
			tr.Keys = append(tr.Keys, k)
			return nil
		}},
		"allow_plain_jwt": {once, func() error {
			tr.AllowPlainJWT = true
			return noArgs(d)
		}},
	})
	if err != nil {
		return err
	}
	if len(tr.Keys) == 0 {
		return d.Errf("trust %s has no key: write key ed25519 /path/to/key.pub", tr.Name)
	}
	t.Trust = append(t.Trust, tr)
	return nil
}

func (t *Tenant) parseSession(d *caddyfile.Dispenser) error {
	if err := noArgs(d); err != nil {
		return err
	}
	t.Session = new(Session)
	return block(d, "session", subdirectives{
		"idle":     {once, func() error { return durationArg(d, &t.Session.Idle) }},
		"absolute": {once, func() error { return durationArg(d, &t.Session.Absolute) }},
		"limit": {once, func() error {
			n, err := numberArg(d)
			if err == nil && n < 1 {
				err = d.Errf("session limit: want 1 or more")
			}
			t.Session.Limit = int(n)
			return err
		}},
	})
}

func (t *Tenant) parseEvents(d *caddyfile.Dispenser) error {
	if err := noArgs(d); err != nil {
		return err
	}
	t.Events = new(Events)
	return block(d, "events", subdirectives{
		"url": {once, func() error { return oneArg(d, &t.Events.URL) }},
		"secret": {once, func() error {
			args := d.RemainingArgs()
			if len(args) < 1 || len(args) > 2 {
				return d.Errf("secret takes a placeholder like {env.NAME} or {file./path/to/secret}, and after it that of the old secret while it is changed")
			}
			for i, arg := range args {
				if err := checkSecret(fmt.Sprintf("events: secret %d", i+1), arg); err != nil {
					return d.WrapErr(err)
				}
			}
			t.Events.Secrets = args
			return nil
		}},
	})
}

func (t *Tenant) parseCatalogue(d *caddyfile.Dispenser) error {
	if err := noArgs(d); err != nil {
		return err
	}
	return block(d, "catalogue", subdirectives{"plan": {repeated, func() error {
		var p Plan
		if err := oneArg(d, &p.Key); err != nil {
			return err
		}
		for _, other := range t.Catalogue {
			if other.Key == p.Key {
				return d.Errf("plan %s is there twice", p.Key)
			}
		}
		err := block(d, "plan", subdirectives{
			"name": {once, func() error { return oneArg(d, &p.Name) }},
			"rank": {once, func() error {
				n, err := numberArg(d)
				p.Rank = int(n)
				return err
			}},
			"text":    {once, func() error { return oneArg(d, &p.Text) }},
			"prices":  {repeated, func() error { return moreArgs(d, &p.Prices) }},
			"feature": {repeated, func() error { return appendArg(d, &p.Features) }},
			"limit": {repeated, func() error {
				var l PlanLimit
				var value string
				name := d.Val()
				if !d.AllArgs(&l.Name, &value) {
					return d.Errf("%s takes a name and a number, like: limit projects 10", name)
				}
				var err error
				if l.Value, err = strconv.ParseInt(value, 10, 64); err != nil {
					return d.Errf("limit %s: %q is not a whole number", l.Name, value)
				}
				p.Limits = append(p.Limits, l)
				return nil
			}},
			"min_quantity": {once, func() (err error) { p.MinQuantity, err = numberArg(d); return err }},
			"max_quantity": {once, func() (err error) { p.MaxQuantity, err = numberArg(d); return err }},
		})
		t.Catalogue = append(t.Catalogue, p)
		return err
	}}})
}

func (t *Tenant) parsePolicy(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) > 1 {
		return d.Errf("policy takes at most one argument, its name")
	}
	var rules []Rule
	rule := func() error {
		r, err := parseRule(d)
		rules = append(rules, r)
		return err
	}
	err := block(d, "policy", subdirectives{"allow": {repeated, rule}, "deny": {repeated, rule}})
	if err != nil {
		return err
	}
	if len(rules) == 0 {
		return d.Errf("the policy has no rule: without one nothing is allowed, which is also what no policy means")
	}
	if len(args) == 0 {
		if t.Policy != nil {
			return d.Errf("there are two policies without a name: write one, or name the other")
		}
		t.Policy = rules
		return nil
	}
	if _, ok := t.Policies[args[0]]; ok {
		return d.Errf("policy %s is there twice", args[0])
	}
	if t.Policies == nil {
		t.Policies = make(map[string][]Rule)
	}
	t.Policies[args[0]] = rules
	return nil
}

// unsupportedRuleWords are words of later versions, which must not be taken
// for something else in this one.
var unsupportedRuleWords = []string{"at_period_end", "now", "when", "if", "review", "cel"}

func unsupportedRuleWord(d *caddyfile.Dispenser, verdict, word string) error {
	return d.Errf("%s: %q is not supported in this version: changes take effect at once, and rules have no conditions yet", verdict, word)
}

func parseRule(d *caddyfile.Dispenser) (Rule, error) {
	r := Rule{Verdict: d.Val()}
	words := d.RemainingArgsAsTokens()
	for i, w := range words {
		switch {
		case w.Quoted():
			if i != len(words)-1 {
				return r, d.Errf("%s: the text for the customer comes last", r.Verdict)
			}
			r.Text = w.Text
		case slices.Contains(policy.Names(), w.Text):
			r.Actions = append(r.Actions, w.Text)
		case slices.Contains(policy.Directions, policy.Direction(w.Text)):
			r.Directions = append(r.Directions, w.Text)
		case slices.Contains(unsupportedRuleWords, w.Text):
			return r, unsupportedRuleWord(d, r.Verdict, w.Text)
		default:
			return r, d.Errf("%s: %q is no action (%s), no direction (%s), and not in quotes as a text for the customer", r.Verdict, w.Text,
				strings.Join(policy.Names(), ", "), directions())
		}
	}
	subs := subdirectives{
		"role": {repeated, func() error { return moreArgs(d, &r.Roles) }},
		"from": {repeated, func() error { return moreArgs(d, &r.From) }},
		"to":   {repeated, func() error { return moreArgs(d, &r.To) }},
	}
	for _, w := range unsupportedRuleWords {
		subs[w] = subdirective{later, func() error { return unsupportedRuleWord(d, r.Verdict, w) }}
	}
	if err := block(d, r.Verdict, subs); err != nil {
		return r, err
	}
	if _, err := policy.New(rules([]Rule{r}), nil); err != nil {
		return r, d.WrapErr(err)
	}
	return r, nil
}

func directions() string {
	s := make([]string, 0, len(policy.Directions))
	for _, d := range policy.Directions {
		s = append(s, string(d))
	}
	return strings.Join(s, ", ")
}

func (t *Tenant) parseBrand(d *caddyfile.Dispenser) error {
	if err := noArgs(d); err != nil {
		return err
	}
	b := new(Brand)
	t.Brand = b
	return block(d, "brand", subdirectives{
		"name": {once, func() error { return oneArg(d, &b.Name) }},
		"logo": {once, func() error { return oneArg(d, &b.Logo) }},
		"accent": {once, func() error {
			args := d.RemainingArgs()
			if len(args) < 1 || len(args) > 2 {
				return d.Errf(`accent takes a colour, and optionally one for dark pages, in quotes because a bare # begins a comment: accent "#1F5FD6"`)
			}
			b.AccentLight = args[0]
			if len(args) == 2 {
				b.AccentDark = args[1]
			}
			return nil
		}},
		"help":      {once, func() error { return oneArg(d, &b.HelpURL) }},
		"legal":     {once, func() error { return oneArg(d, &b.LegalURL) }},
		"privacy":   {once, func() error { return oneArg(d, &b.PrivacyURL) }},
		"time_zone": {once, func() error { return oneArg(d, &b.TimeZone) }},
		"templates": {once, func() error { return oneArg(d, &b.Templates) }},
	})
}

// How often a subdirective may stand in its block.
type times int

const (
	once times = iota
	repeated
	later // known, but refused in this version: not listed as accepted
)

type subdirective struct {
	times times
	parse func() error
}

type subdirectives map[string]subdirective

// block reads a block of subdirectives, if there is one. What is not known, or
// there twice without being repeatable, is an error that names what is
// accepted: a typo that is passed over could switch a safeguard off.
func block(d *caddyfile.Dispenser, in string, subs subdirectives) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		sub, ok := subs[name]
		if !ok {
			return d.Errf("%s has no subdirective %q: it takes %s", in, name, accepted(subs))
		}
		if sub.times == once && seen[name] {
			return d.Errf("%s has %s twice: it may stand there once", in, name)
		}
		seen[name] = true
		if err := sub.parse(); err != nil {
			return err
		}
	}
	return nil
}

func accepted(subs subdirectives) string {
	names := slices.Sorted(maps.Keys(subs))
	names = slices.DeleteFunc(names, func(n string) bool { return subs[n].times == later })
	return strings.Join(names, ", ")
}

func oneArg(d *caddyfile.Dispenser, to *string) error {
	name := d.Val()
	if args := d.RemainingArgs(); len(args) != 1 || args[0] == "" {
		return d.Errf("%s takes one argument", name)
	} else {
		*to = args[0]
	}
	return nil
}

func appendArg(d *caddyfile.Dispenser, to *[]string) error {
	var v string
	if err := oneArg(d, &v); err != nil {
		return err
	}
	*to = append(*to, v)
	return nil
}

func moreArgs(d *caddyfile.Dispenser, to *[]string) error {
	name := d.Val()
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Errf("%s takes one or more arguments", name)
	}
	*to = append(*to, args...)
	return nil
}

func noArgs(d *caddyfile.Dispenser) error {
	name := d.Val()
	if len(d.RemainingArgs()) > 0 {
		return d.Errf("%s takes no argument", name)
	}
	return nil
}

// secretArg reads a placeholder for a secret. Its errors do not print what was
// written there.
func secretArg(d *caddyfile.Dispenser, what string, set func(string)) error {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.Errf("%s takes one argument, a placeholder like {env.NAME} or {file./path/to/secret}", what)
	}
	if err := checkSecret(what, args[0]); err != nil {
		return d.WrapErr(err)
	}
	set(args[0])
	return nil
}

func numberArg(d *caddyfile.Dispenser) (int64, error) {
	name := d.Val()
	var v string
	if err := oneArg(d, &v); err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil {
		return 0, d.Errf("%s: %q is not a whole number", name, v)
	}
	return n, nil
}

func durationArg(d *caddyfile.Dispenser, to *caddy.Duration) error {
	name := d.Val()
	var v string
	if err := oneArg(d, &v); err != nil {
		return err
	}
	dur, err := caddy.ParseDuration(v)
	if err != nil || dur <= 0 {
		return d.Errf("%s: %q is not a duration like 30m or 8h", name, v)
	}
	*to = caddy.Duration(dur)
	return nil
}

// guest reads a module of another namespace: "provider stripe { … }".
func guest[T any](d *caddyfile.Dispenser, what, namespace, inlineKey string) ([]byte, error) {
	if !d.NextArg() {
		return nil, d.Errf("%s takes the name of a module: %s", what, guests(namespace))
	}
	name := d.Val()
	if _, err := caddy.GetModule(namespace + name); err != nil {
		return nil, d.Errf("there is no %s %q in this build of Caddy: there is %s", what, name, guests(namespace))
	}
	unm, err := caddyfile.UnmarshalModule(d, namespace+name)
	if err != nil {
		return nil, err
	}
	if _, ok := unm.(T); !ok {
		return nil, d.Errf("module %s%s (%T) is not a %s of the portal", namespace, name, unm, what)
	}
	return caddyconfig.JSONModuleObject(unm, inlineKey, name, nil), nil
}

func guests(namespace string) string {
	mods := caddy.GetModules(strings.TrimSuffix(namespace, "."))
	names := make([]string, 0, len(mods))
	for _, m := range mods {
		names = append(names, m.ID.Name())
	}
	return strings.Join(names, ", ")
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
