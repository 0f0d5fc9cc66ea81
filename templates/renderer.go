package templates

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/text/language"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// CSP is the Content-Security-Policy that the pages are made for and must be
// sent with, but the one that ScriptCSP is for: no script, no inline style, nothing from elsewhere. The policy's
// form-action also forbids that a form's answer redirects to another origin,
// in every hop; such a way goes over a page with Body Leave.
const CSP = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// ScriptCSP is the policy of a Receipt with a StateHref in the state "checking",
// the only page with a script: a file of ours that asks our own origin.
const ScriptCSP = CSP + "; script-src 'self'; connect-src 'self'"

//go:embed html/*.html
var pageFiles embed.FS

// layoutFile and partsFile are shared by all pages.
const (
	layoutFile = "layout.html"
	partsFile  = "parts.html"
)

// bodies are the pages: a file and the zero value of what it is drawn from.
var bodies = map[string]any{
	"overview.html": &Overview{}, "plan.html": &Plan{}, "preview.html": &Preview{}, "receipt.html": &Receipt{},
	"cancel.html": &Cancel{}, "payment.html": &Payment{}, "addmethod.html": &AddMethod{}, "leave.html": &Leave{},
	"details.html": &Details{}, "invoices.html": &Invoices{}, "devices.html": &Devices{}, "subscriptions.html": &Subscriptions{}, "enter.html": &Enter{}, "message.html": &Message{},
	"taxids.html": &TaxIDs{},
	"usage.html":  &Usage{}, "balance.html": &Balance{},
	"invoice.html": &Invoice{}, "paymentreceipt.html": &PaymentReceipt{},
	"pay.html": &Pay{}, "usemethod.html": &UseMethod{}, "removemethod.html": &RemoveMethod{},
}

// Options are what a Renderer is made from.
type Options struct {
	// Theme is the vendor's look. Its Name is required.
	Theme Theme
	// Exponent is the provider's number of decimals of a currency, given in
	// lower case (billing.Capabilities.Exponent). Required: providers differ
	// from ISO 4217.
	Exponent func(currency string) int
	// Location is the time zone of all dates and times. Default: UTC.
	Location *time.Location
	// HelpURL, LegalURL and PrivacyURL are the footer's links: https: or
	// mailto: URLs, or paths that begin with a single "/". "" leaves one out.
	HelpURL, LegalURL, PrivacyURL string
	// ProviderName is how customers know the provider ("Stripe"). Default:
	// the page speaks of the payment provider.
	ProviderName string
	// Override holds templates of the vendor's own that stand in for embedded
	// ones of the same name ("plan.html"). nil: none. A file with another
	// name, or one that does not parse, is an error.
	Override fs.FS
}

// Renderer draws pages. It is safe for concurrent use.
type Renderer struct {
	opt         Options
	locales     []string
	matcher     language.Matcher
	pages       map[string]map[string]*template.Template // locale, file
	locals      map[string]*local
	assets      map[string]*asset
	assetByPath map[string]*asset
	buffers     sync.Pool
}

// New parses everything once: templates, messages, theme.
func New(opt Options) (*Renderer, error) {
	opt.Location = cmp.Or(opt.Location, time.UTC)
	if err := opt.check(); err != nil {
		return nil, err
	}
	themeCSS, err := opt.Theme.css()
	if err != nil {
		return nil, err
	}
	r := &Renderer{
		opt: opt, pages: map[string]map[string]*template.Template{}, locals: map[string]*local{},
		assets: map[string]*asset{}, assetByPath: map[string]*asset{},
	}
	r.buffers.New = func() any { return new(bytes.Buffer) }
	for name, contentType := range map[string]string{
		"portal.css": "text/css; charset=utf-8", "icons.svg": "image/svg+xml", "checked.js": "text/javascript; charset=utf-8",
	} {
		body, err := assetFiles.ReadFile("assets/" + name)
		if err != nil {
			return nil, err
		}
		r.addAsset(name, contentType, body)
	}
	r.addAsset("theme.css", "text/css; charset=utf-8", themeCSS)

	locales, catalogues, err := loadMessages()
	if err != nil {
		return nil, err
	}
	r.locales = locales
	var tags []language.Tag
	for _, l := range locales {
		if l != Pseudo { // to a matcher it is nearer to British English than American is
			tags = append(tags, language.MustParse(l))
		}
	}
	r.matcher = language.NewMatcher(tags)

	source, err := sources(opt.Override)
	if err != nil {
		return nil, err
	}
	for _, locale := range locales {
		l := newLocal(locale, catalogues[locale], opt.Location, opt.Exponent)
		r.locals[locale] = l
		if r.pages[locale], err = r.parse(l, source); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (o *Options) check() error {
	switch {
	case o.Theme.Name == "":
		return errors.New("theme: the vendor's name is missing")
	case o.Exponent == nil:
		return errors.New("templates: Options.Exponent is missing; give the provider's table")
	case o.Theme.LogoURL != "" && (!strings.HasPrefix(o.Theme.LogoURL, "/") || strings.HasPrefix(o.Theme.LogoURL, "//")):
		return fmt.Errorf("theme: logo %q is no path on the portal's own origin; the content security policy lets no other image load", o.Theme.LogoURL)
	}
	for name, s := range map[string]string{"help": o.HelpURL, "legal": o.LegalURL, "privacy": o.PrivacyURL} {
		if s != "" && !isFooterLink(s) {
			return fmt.Errorf("brand: the %s link %q is no https: or mailto: URL and no path that begins with a single \"/\"; an e-mail address needs mailto: before it", name, s)
		}
	}
	return nil
}

// isFooterLink tells what leads somewhere from every page alike. A bare e-mail
// address or host would be a path beside the page, and browsers take "//" and
// "/\" for the beginning of a host.
func isFooterLink(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	switch u.Scheme {
	case "https":
		return u.Hostname() != ""
	case "mailto":
		return strings.Contains(u.Opaque, "@")
	case "":
		return strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "//") && !strings.HasPrefix(s, `/\`)
	}
	return false
}

// sources reads the embedded templates and puts the vendor's in their place.
func sources(override fs.FS) (map[string]string, error) {
	source := map[string]string{}
	read := func(files fs.FS, pattern string) error {
		names, err := fs.Glob(files, pattern)
		if err != nil {
			return err
		}
		for _, n := range names {
			b, err := fs.ReadFile(files, n)
			if err != nil {
				return fmt.Errorf("reading template: %w", err)
			}
			source[n[strings.LastIndexByte(n, '/')+1:]] = string(b)
		}
		return nil
	}
	if err := read(pageFiles, "html/*.html"); err != nil {
		return nil, err
	}
	if override == nil {
		return source, nil
	}
	known := make([]string, 0, len(source))
	for n := range source {
		known = append(known, n)
	}
	slices.Sort(known)
	if err := read(override, "*.html"); err != nil {
		return nil, err
	}
	for n := range source {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("template %s stands in for nothing; the names are %s", n, strings.Join(known, ", "))
		}
	}
	return source, nil
}

// parse makes one locale's pages, and draws each once, so that a template
// that cannot work is found now and not by a customer.
func (r *Renderer) parse(l *local, source map[string]string) (map[string]*template.Template, error) {
	funcs := r.funcs(l)
	base := template.New(layoutFile).Funcs(funcs)
	if _, err := base.Parse(source[layoutFile]); err != nil {
		return nil, err
	}
	if _, err := base.New(partsFile).Parse(source[partsFile]); err != nil {
		return nil, err
	}
	fold := folder{l, funcs["icon"].(func(string) (template.HTML, error)), r.AssetPath}
	pages := map[string]*template.Template{}
	for name, body := range bodies {
		t, err := base.Clone()
		if err != nil {
			return nil, err
		}
		if _, err := t.New(name).Parse(source[name]); err != nil {
			return nil, err
		}
		for _, part := range t.Templates() {
			if part.Tree == nil {
				continue
			}
			if err := fold.list(part.Tree, part.Tree.Root); err != nil {
				return nil, err
			}
		}
		if err := t.Execute(io.Discard, r.view(l.locale, &Page{Body: body, SignedIn: true})); err != nil {
			return nil, err
		}
		pages[name] = t
	}
	return pages, nil
}

// Match returns the supported locale that serves the preferences best, the
// first of which counts most. A preference is a language tag or an
// Accept-Language header; what does not parse is skipped. The result is always
// one that Render takes.
func (r *Renderer) Match(preferred ...string) string {
	for _, p := range preferred {
		if len(p) > 500 { // nobody speaks that many languages
			continue
		}
		tags, _, err := language.ParseAcceptLanguage(p)
		if err != nil || len(tags) == 0 {
			continue
		}
		if tags[0].String() == Pseudo {
			return Pseudo
		}
		// The matcher's tag may carry extensions; its index does not.
		if _, i, confidence := r.matcher.Match(tags...); confidence > language.No {
			return r.locales[i]
		}
	}
	return r.locales[0]
}

// Text is a message as plain text, without the marks that isolate nouns: for
// files.
func (r *Renderer) Text(locale, key string, pairs ...any) (string, error) {
	l, ok := r.locals[locale]
	if !ok {
		l = r.locals[r.Match(locale)]
	}
	s, err := l.say(key, false, pairs...)
	return strings.NewReplacer("\u2068", "", "\u2069", "").Replace(s), err
}

// Location is the time zone that pages write dates in.
func (r *Renderer) Location() *time.Location { return r.opt.Location }

// Locales are the locales that Render takes, the default one first.
func (r *Renderer) Locales() []string { return slices.Clone(r.locales) }

// Render draws p into w in one write, or writes nothing and returns an error.
// A locale that is not supported is replaced by the best match.
func (r *Renderer) Render(w io.Writer, locale string, p *Page) error {
	pages, ok := r.pages[locale]
	if !ok {
		locale = r.Match(locale)
		pages = r.pages[locale]
	}
	name := fileOf(p.Body)
	if name == "" {
		return fmt.Errorf("templates: no page for a body of type %T", p.Body)
	}
	buf := r.buffers.Get().(*bytes.Buffer)
	buf.Reset()
	defer r.buffers.Put(buf)
	if err := pages[name].Execute(buf, r.view(locale, p)); err != nil {
		return fmt.Errorf("drawing %s: %w", name, err)
	}
	page := buf.Bytes()
	// Caddy's templates handler, where an operator's route puts it before the
	// portal, runs what stands between double braces, "{{env `SECRET`}}" too.
	// No page has braces but from what somebody typed in.
	if bytes.Contains(page, []byte("{{")) {
		page = bytes.ReplaceAll(page, []byte("{"), []byte("&#123;"))
	}
	_, err := w.Write(page)
	return err
}

func fileOf(body any) string {
	switch body.(type) {
	case *Overview, Overview:
		return "overview.html"
	case *Plan, Plan:
		return "plan.html"
	case *Preview, Preview:
		return "preview.html"
	case *Receipt, Receipt:
		return "receipt.html"
	case *Cancel, Cancel:
		return "cancel.html"
	case *Payment, Payment:
		return "payment.html"
	case *AddMethod, AddMethod:
		return "addmethod.html"
	case *Leave, Leave:
		return "leave.html"
	case *TaxIDs, TaxIDs:
		return "taxids.html"
	case *Details, Details:
		return "details.html"
	case *Invoices, Invoices:
		return "invoices.html"
	case *Invoice, Invoice:
		return "invoice.html"
	case *PaymentReceipt, PaymentReceipt:
		return "paymentreceipt.html"
	case *Subscriptions, Subscriptions:
		return "subscriptions.html"
	case *Devices, Devices:
		return "devices.html"
	case *Usage, Usage:
		return "usage.html"
	case *Balance, Balance:
		return "balance.html"
	case *Enter, Enter:
		return "enter.html"
	case *Message, Message:
		return "message.html"
	case *Pay, Pay:
		return "pay.html"
	case *UseMethod, UseMethod:
		return "usemethod.html"
	case *RemoveMethod, RemoveMethod:
		return "removemethod.html"
	}
	return ""
}

// view is what a template sees: the page, and what is the vendor's.
type view struct {
	*Page
	Locale, Dir                   string
	Vendor, Logo                  string
	HelpURL, LegalURL, PrivacyURL string
	Provider                      string
	// Urgent is set where the banner's action is the page's primary one.
	Urgent bool
}

func (r *Renderer) view(locale string, p *Page) view {
	v := view{
		Page: p, Locale: locale, Dir: direction(locale), Vendor: r.opt.Theme.Name, Logo: r.opt.Theme.LogoURL, Provider: r.opt.ProviderName,
		HelpURL: r.opt.HelpURL, LegalURL: r.opt.LegalURL, PrivacyURL: r.opt.PrivacyURL,
	}
	v.Urgent = p.Banner != nil && p.Banner.Href != "" && !p.Banner.Beside && (p.Banner.Kind == "past_due" || p.Banner.Kind == "action_needed")
	return v
}

// direction is the writing direction of a locale, for dir="".
func direction(locale string) string {
	base, _ := language.MustParse(locale).Base()
	if slices.Contains([]string{"ar", "fa", "he", "ur"}, base.String()) {
		return "rtl"
	}
	return "ltr"
}

// funcs are the functions that templates call, bound to a locale.
func (r *Renderer) funcs(l *local) template.FuncMap {
	return template.FuncMap{
		// T is a message as HTML; S is one as plain text, for titles,
		// attributes and options. Placeholders follow in pairs.
		"T": func(key string, pairs ...any) (template.HTML, error) {
			s, err := l.say(key, true, pairs...)
			return template.HTML(s), err //nolint:gosec // messages are escaped when they are cut
		},
		"S": func(key string, pairs ...any) (words, error) {
			s, err := l.say(key, false, pairs...)
			return words(s), err
		},
		// FE is the message of a field error.
		"FE": func(e FieldError) (template.HTML, error) {
			key := "error.field." + e.Key
			if !l.messages.has(key) {
				key = "error.field.invalid"
			}
			s, err := l.messages.say(key, call{local: l, args: args{named: e.Args}, html: true})
			if err != nil { // a placeholder is missing: say less, but say it
				s, err = l.say("error.field.invalid", true)
			}
			return template.HTML(s), err //nolint:gosec // as above
		},
		// key is prefix.value if there is such a message, else
		// prefix.fallback.
		"key": func(prefix string, value any, fallback string) string {
			if k := fmt.Sprintf("%s.%v", prefix, value); l.messages.has(k) {
				return k
			}
			return prefix + "." + fallback
		},
		"show":       l.html,
		"statusTag":  func(s Subscription) (tag, error) { return l.statusTag(&s) },
		"invoiceTag": func(i billing.Invoice) (tag, error) { return l.invoiceTag(&i) },
		"paymentTag": func(p PaidInvoice) (tag, error) { return l.paymentTag(&p) },
		// isDecline reports whether a code says why a bank said no.
		"isDecline": func(code string) bool {
			return code != "authentication_required" && code != "payment_method_required" && l.messages.has("declined."+code)
		},
		"stamp":   func(t time.Time) stamp { return stamp(t) },
		"clock":   func(t time.Time) clock { return clock(t) },
		"rate":    totalRate,
		"icon":    icons(r.AssetPath("icons.svg"), r.assets["icons.svg"].body),
		"asset":   r.AssetPath,
		"dict":    dict,
		"neg":     billing.Money.Neg,
		"monthly": monthly,
		"less": func(a, b billing.Money) billing.Money {
			return billing.Money{Amount: a.Amount - b.Amount, Currency: a.Currency}
		},
		"samePeriod": func(a, b billing.Price) bool {
			return a.Interval == b.Interval && max(a.IntervalCount, 1) == max(b.IntervalCount, 1)
		},
		"country":      func(code string) (template.HTML, error) { return l.html(l.country(code)) },
		"addressLines": func(a billing.Address) []string { return billing.AddressFormOf(a.Country, l.locale).Lines(a) },
		"fieldName":    l.fieldName,
		"fieldInputs": func(n int) fieldInputs {
			name, value := InvoiceFieldInputs(n)
			return fieldInputs{name, value, n + 1}
		},
		"countryName":  l.country,
		"languageName": languageName,
		// fieldWord is the message for what a country calls a field
		// ("state.county"), or for the field.
		"fieldWord": func(label string) string {
			field, _, _ := strings.Cut(label, ".")
			for _, k := range []string{"field." + label, "field." + field} {
				if l.messages.has(k) {
					return k
				}
			}
			return "field.other"
		},
		"back": func(section string) (string, error) {
			return pathOf(known(section, "overview", "plan", "payment", "invoices"))
		},
		"path":        pathOf,
		"pdf":         InvoicePDFPath,
		"chart":       l.chart,
		"tiers":       tiers,
		"hasFlat":     hasFlat,
		"unitPrice":   unitPrice,
		"point":       pointName,
		"invoicePath": InvoicePath, "payPath": PayPath, "creditNotePDF": CreditNotePDFPath,
		"errorsAt": func(errs []FieldError, field string) []FieldError {
			return slices.DeleteFunc(slices.Clone(errs), func(e FieldError) bool { return e.Field != field })
		},
		// A wait is never said to be zero.
		"seconds": func(n int) int { return max(n, 1) },
	}
}
