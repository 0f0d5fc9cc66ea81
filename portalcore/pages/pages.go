// Package pages serves everything that a customer's browser sees: the way in,
// the pages, the forms and their receipts. It decides nothing about money
// itself: sessions come from package session, accounts from package account,
// and every change goes through package act.
package pages

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/invoices"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	// cacheBytes bounds the rendered pages that are kept.
	cacheBytes = 64 << 20
	// cacheLife is longer than any key stays current: keys hold the minute.
	cacheLife = 2 * time.Minute
	// localeEntries bounds the remembered language negotiations.
	localeEntries = 1024
	// patience is how long a page waits for the provider where an older copy
	// of the account is at hand.
	patience = 2 * time.Second
	// refreshEvery is how often one customer's "Refresh" asks the provider.
	refreshEvery = 3 * time.Second
)

// Options are what the pages need. All members are required but those that say
// otherwise.
type Options struct {
	// Origin is the portal's own origin: scheme, host and port. https, or http
	// on a loopback host.
	Origin string
	// Sessions makes, reads and ends sessions.
	Sessions *session.Manager
	// Corridor carries changes out. Its Provider, Accounts, Journal, Policy
	// and Catalogue are read from too. Catalogue returns the same pointer until
	// the catalogue changes: rendered pages are kept for that pointer.
	Corridor *act.Corridor
	// Trust returns the signers whose links are accepted now.
	Trust func() *link.Trust
	// Invoices is the index of the customers' invoices.
	Invoices *invoices.Index
	// Renderer draws pages.
	Renderer *templates.Renderer
	// ReturnTo are URLs in the vendor's app. The first is where "back" leads by
	// default; the origins of all are where a link's return_url may lead.
	ReturnTo []string
	// AlwaysAsk shows the interstitial on every way in.
	AlwaysAsk bool
	// Logo is the vendor's logo, served at LogoPath(Logo, LogoType). Optional.
	Logo     []byte
	LogoType string
	// SkipAccessLog is called, before anything else, with the context of a
	// request whose URL may carry a token, or whose answer's header may name a
	// page at the provider that its address alone opens. Optional.
	SkipAccessLog func(ctx context.Context)
	// Log gets what operators read. No token and no cookie is in it.
	Log *zap.Logger
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Rand is the source of nonces and request ids. Default: crypto/rand.
	Rand io.Reader
}

// Pages serves one tenant. It is safe for concurrent use.
type Pages struct {
	Options
	host      string // of the origin, with its port
	cookie    string // the session cookie's name
	cookieEnd string // its attributes
	secure    bool   // https
	returns   []string
	header    map[string][]string // of every response
	routes    map[string]route
	logoPath  string
	cache     *otter.Cache[pageKey, []byte]
	locales   *otter.Cache[localeKey, string]
	usages    *shelf[billing.Usage]
	balances  *shelf[billing.BalancePage]
	countries map[string][]templates.Country // by locale

	takePatience time.Duration // how long a browser may keep a file waiting

	zipMu   sync.Mutex
	zipping map[string]bool // customers that a ZIP is being made for
}

// New checks o and returns the pages, to be closed with Close. It does no I/O.
func New(o Options) (*Pages, error) {
	o.Now = orNow(o.Now)
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	for name, missing := range map[string]bool{
		"Sessions": o.Sessions == nil, "Corridor": o.Corridor == nil, "Trust": o.Trust == nil,
		"Renderer": o.Renderer == nil, "Invoices": o.Invoices == nil, "Log": o.Log == nil, "ReturnTo": len(o.ReturnTo) == 0,
	} {
		if missing {
			return nil, fmt.Errorf("pages: Options.%s is missing", name)
		}
	}
	u, err := ParseOrigin(o.Origin)
	if err != nil {
		return nil, err
	}
	p := &Pages{Options: o, host: u.Host, secure: u.Scheme == "https", countries: map[string][]templates.Country{}, zipping: map[string]bool{}, takePatience: takePatience}
	if p.returns, err = returnOrigins(o.ReturnTo); err != nil {
		return nil, err
	}
	p.cookie, p.cookieEnd = "__Host-bp", "; Path=/; Secure; HttpOnly; SameSite=Lax"
	if !p.secure {
		// Ports of one host share a cookie jar, and Safari takes no __Host-
		// cookie over http.
		p.cookie, p.cookieEnd = "bp_"+cmp.Or(u.Port(), "80"), "; Path=/; HttpOnly; SameSite=Lax"
	}
	p.header = baseHeader(p.secure)
	if len(o.Logo) > 0 {
		p.logoPath = LogoPath(o.Logo, o.LogoType)
	}
	p.cache, err = otter.New(&otter.Options[pageKey, []byte]{
		MaximumWeight:    cacheBytes,
		Weigher:          func(_ pageKey, body []byte) uint32 { return uint32(len(body)) + 256 },
		ExpiryCalculator: otter.ExpiryWriting[pageKey, []byte](cacheLife),
	})
	if err != nil {
		return nil, err
	}
	p.locales, err = otter.New(&otter.Options[localeKey, string]{MaximumSize: localeEntries})
	if err != nil {
		return nil, err
	}
	if p.usages, err = newShelf(o.Now, usageWeight); err != nil {
		return nil, err
	}
	if p.balances, err = newShelf(o.Now, balanceWeight); err != nil {
		return nil, err
	}
	for _, l := range o.Renderer.Locales() {
		p.countries[l] = countriesIn(l)
	}
	p.routes = routes()
	return p, nil
}

// Close stops what the caches run in the background. The pages must not be
// served any more.
func (p *Pages) Close() {
	p.cache.StopAllGoroutines()
	p.usages.close()
	p.balances.close()
}

func orNow(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}

// LogoPath is where the pages serve a logo: a path that names its content.
func LogoPath(logo []byte, mediaType string) string {
	sum := sha256.Sum256(logo)
	ext := map[string]string{"image/svg+xml": ".svg", "image/png": ".png", "image/webp": ".webp"}[mediaType]
	return templates.PathAssets + "logo." + hex.EncodeToString(sum[:8]) + ext
}

func baseHeader(secure bool) map[string][]string {
	h := map[string][]string{
		"Content-Security-Policy": {templates.CSP},
		"X-Content-Type-Options":  {"nosniff"},
		// Not no-referrer: with it browsers send "Origin: null" with our own
		// forms. The address of a page never leaves our origin.
		"Referrer-Policy":              {"same-origin"},
		"Cross-Origin-Opener-Policy":   {"same-origin"},
		"Cross-Origin-Resource-Policy": {"same-origin"},
		"X-Frame-Options":              {"DENY"},
		"Permissions-Policy":           {"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"},
		"Cache-Control":                {"no-store"},
	}
	if secure {
		h["Strict-Transport-Security"] = []string{"max-age=31536000"}
	}
	return h
}

// route is what a path answers. A nil member is a method that it does not
// take.
type route struct {
	get, post func(*visit)
	// open routes work without a session.
	open bool
}

// Paths that package templates does not name.
const (
	pathCheck     = "/check/"
	pathDone      = "/done/"
	pathState     = "/state/"
	pathReturn    = "/return/"
	pathLeave     = "/leave/"
	pathCancel    = "/cancel"
	pathResume    = "/resume"
	pathDrop      = "/drop"
	pathDefault   = "/payment/default"
	pathRefresh   = "/refresh"
	pathSignedOut = "/signed-out"
)

// routes are the exact paths; those that end with "/" take one more segment,
// and "/invoices/" takes what invoicePath knows.
func routes() map[string]route {
	r := map[string]route{
		templates.PathOverview:       {get: (*visit).overview},
		templates.PathEnter:          {get: (*visit).enter, post: (*visit).enterConfirmed, open: true},
		templates.PathPlan:           {get: (*visit).plan, post: (*visit).choose},
		pathCheck:                    {get: (*visit).preview, post: (*visit).confirm},
		pathDone:                     {get: (*visit).receipt, post: (*visit).checkAgain},
		pathCancel:                   {get: (*visit).cancelPage, post: (*visit).cancel},
		pathResume:                   {post: (*visit).resume},
		pathDrop:                     {post: (*visit).drop},
		templates.PathPayment:        {get: (*visit).payment},
		templates.PathAddMethod:      {get: (*visit).addMethodPage, post: (*visit).addMethod},
		pathReturn:                   {get: (*visit).back},
		pathDefault:                  {post: (*visit).makeDefault},
		templates.PathUseMethod:      {get: (*visit).usePage, post: (*visit).use},
		templates.PathRemoveMethod:   {get: (*visit).removePage, post: (*visit).remove},
		templates.PathPay:            {get: (*visit).payPage, post: (*visit).pay},
		templates.PathPay + "/":      {get: (*visit).payPage, post: (*visit).pay},
		templates.PathTransfer:       {get: (*visit).transfer},
		templates.PathInvoices:       {get: (*visit).invoices},
		templates.PathInvoices + "/": {}, // by invoicePath
		templates.PathInvoicesCSV:    {get: (*visit).invoicesCSV},
		templates.PathInvoicesZIP:    {get: (*visit).invoicesZIP},
		templates.PathTaxIDs:         {get: (*visit).taxIDs, post: (*visit).saveTaxID},
		templates.PathTaxID:          {get: (*visit).taxID, post: (*visit).saveTaxID},
		templates.PathUsage:          {get: (*visit).usage},
		templates.PathUsageCSV:       {get: (*visit).usageCSV},
		templates.PathBalance:        {get: (*visit).balance},
		pathRefresh:                  {post: (*visit).refresh},
		pathState:                    {get: (*visit).state},
		templates.PathDevices:        {get: (*visit).devices},
		templates.PathPlans:          {get: (*visit).subscriptions},
		pathEndOne:                   {post: (*visit).endDevice},
		pathEndAll:                   {post: (*visit).endAll},
		templates.PathSignOut:        {post: (*visit).signOut, open: true},
		pathSignedOut:                {get: (*visit).signedOut, open: true},
		pathLeave:                    {get: (*visit).leave},
		templates.PathAssets:         {get: (*visit).asset, open: true},
		"/favicon.ico":               {get: (*visit).favicon, open: true},
		"/robots.txt":                {get: (*visit).robots, open: true},
	}
	for _, section := range sections {
		r[templates.PathDetails+section] = route{get: (*visit).details, post: (*visit).saveDetails}
	}
	return r
}

// find returns the route of a path and what stands in the path's place for an
// id. One spelling of a path is known and no other: an encoded, doubled or
// trailing character is another path.
func (p *Pages) find(path string) (route, string, bool) {
	if r, ok := p.routes[path]; ok && (path == "/" || !strings.HasSuffix(path, "/")) {
		return r, "", true
	}
	if len(path) < 2 || path[0] != '/' {
		return route{}, "", false
	}
	i := strings.LastIndexByte(path, '/') + 1
	if _, ok := p.routes[path[:i]]; !ok {
		i = strings.IndexByte(path[1:], '/') + 2
	}
	prefix, arg := path[:i], path[i:]
	if i == 1 {
		return route{}, "", false
	}
	r, ok := p.routes[prefix]
	if !ok || arg == "" {
		return route{}, "", false
	}
	if prefix == templates.PathInvoices+"/" {
		get, arg, ok := invoicePath(arg)
		return route{get: get}, arg, ok
	}
	if prefix != templates.PathAssets && !validID(arg) {
		return route{}, "", false
	}
	return r, arg, true
}

// visit is one request and its answer.
type visit struct {
	*Pages
	w   http.ResponseWriter
	r   *http.Request
	id  string // of the request
	now time.Time
	arg string // from the path
	form
	sess     session.Session
	rec      session.CustomerRecord
	signedIn bool
	wrote    bool
}

// ServeHTTP answers a request to the tenant's origin.
func (p *Pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v := &visit{Pages: p, w: w, r: r, now: p.Now()}
	path := r.URL.EscapedPath()
	// Also where somebody mistyped the path, the query may hold a live token.
	tokenInURL := path == templates.PathEnter || strings.Contains(r.URL.RawQuery, templates.FieldToken+"=")
	// Access logs keep an answer's header, and the address in this one's Refresh
	// is all that the provider asks for.
	secret := tokenInURL || strings.HasPrefix(path, pathLeave) || strings.HasPrefix(path, templates.PathTransfer)
	if secret && p.SkipAccessLog != nil {
		p.SkipAccessLog(r.Context())
	}
	h := w.Header()
	maps.Copy(h, p.header)
	if tokenInURL {
		// The page's own style sheet would be asked for with the whole address,
		// token and all, as its Referer, which access logs keep. The origin
		// alone is enough for the form's Origin header.
		h["Referrer-Policy"] = []string{"strict-origin"}
	}
	defer v.recover()
	v.id = p.requestID()
	h["X-Request-Id"] = []string{v.id}

	if !strings.EqualFold(r.Host, p.host) {
		v.text(http.StatusMisdirectedRequest, "This is not the address of the billing portal.\n")
		return
	}
	rt, arg, ok := p.find(path)
	if !ok {
		v.notFound()
		return
	}
	v.arg = arg
	handle := rt.get
	switch {
	case r.Method == http.MethodPost && rt.post != nil:
		handle = rt.post
		if !v.acceptPost() {
			return
		}
	case (r.Method == http.MethodGet || r.Method == http.MethodHead) && rt.get != nil:
		if !v.acceptQuery() {
			return
		}
	default:
		v.methodNotAllowed(rt)
		return
	}
	if !rt.open && (!v.signIn() || !v.traced()) {
		return
	}
	handle(v)
}

func (p *Pages) requestID() string {
	var b [16]byte
	if _, err := io.ReadFull(p.Rand, b[:]); err != nil {
		return "none"
	}
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// recover turns a panic into the 500 page.
func (v *visit) recover() {
	e := recover()
	if e == nil {
		return
	}
	if err, ok := e.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(e) // cuts a half-sent file off, as meant
	}
	v.Log.Error("panic while answering a request", zap.String("request_id", v.id),
		zap.String("path", v.r.URL.Path), zap.Any("panic", e), zap.ByteString("stack", debug.Stack()))
	if v.wrote {
		panic(http.ErrAbortHandler)
	}
	defer func() {
		// The page needs what may just have broken.
		if recover() != nil && !v.wrote {
			v.sorry()
		}
	}()
	v.message(http.StatusInternalServerError, templates.Message{Kind: "error"})
}

// sorry is the 500 page where no page can be drawn.
func (v *visit) sorry() {
	v.text(http.StatusInternalServerError, "Sorry, there is a problem. Reference: "+v.id+"\n")
}

func (v *visit) methodNotAllowed(rt route) {
	allow := "POST"
	if rt.get != nil {
		allow = "GET, HEAD"
		if rt.post != nil {
			allow += ", POST"
		}
	}
	v.w.Header().Set("Allow", allow)
	v.message(http.StatusMethodNotAllowed, templates.Message{Kind: "method_not_allowed"})
}

// signIn reads the session behind the cookie. Where there is none it answers
// itself, with a page and never with a redirect.
func (v *visit) signIn() bool {
	s, rec, err := v.Sessions.Read(v.r.Context(), v.sessionCookie())
	switch {
	case err == nil:
		v.sess, v.rec, v.signedIn = s, rec, true
		return true
	case errors.Is(err, session.ErrNone):
		kind := "session_ended"
		if len(v.cookieValues()) == 0 {
			kind = "not_signed_in"
		}
		v.message(http.StatusUnauthorized, templates.Message{Kind: kind})
	default:
		v.unavailable("reading a session", err)
	}
	return false
}

func (v *visit) who() act.Who {
	return act.Who{Session: v.sess, Version: v.rec.Version, RequestID: v.id}
}

// send writes an answer once.
func (v *visit) send(status int, contentType string, body []byte) {
	h := v.w.Header()
	h["Content-Type"] = []string{contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	v.wrote = true
	v.w.WriteHeader(status)
	if v.r.Method != http.MethodHead {
		_, _ = v.w.Write(body) // the browser went away
	}
}

func (v *visit) text(status int, s string) { v.send(status, "text/plain; charset=utf-8", []byte(s)) }

func (v *visit) redirect(to string) {
	v.w.Header().Set("Location", to)
	v.wrote = true
	v.w.WriteHeader(http.StatusSeeOther)
}

const htmlType = "text/html; charset=utf-8"

// page draws and sends.
func (v *visit) page(status int, locale string, page *templates.Page) {
	page.Support = v.support()
	var b bytes.Buffer
	if err := v.Renderer.Render(&b, locale, page); err != nil {
		v.Log.Error("could not draw a page", zap.String("request_id", v.id), zap.Error(err))
		v.sorry()
		return
	}
	v.send(status, htmlType, b.Bytes())
}

// message answers with a page of one text. Without an Href it leads to the
// overview of a signed-in customer, else to the vendor's app.
func (v *visit) message(status int, m templates.Message) {
	back := v.backURL()
	m.Status = status
	m.Provider = v.Corridor.Provider.Capabilities().Name
	if m.Href == "" {
		m.Href, m.Link = back, linkVendor
		if v.signedIn {
			m.Href, m.Link = templates.PathOverview, linkOverview
		}
	}
	page := &templates.Page{SignedIn: v.signedIn, ReturnURL: back, Body: &m}
	switch m.Kind {
	case "error", "unavailable", "unavailable_change", "sign_out_failed", "provider_down", "provider_down_nothing_sent", "refused", "denied", "forbidden", "view_denied", "view_denied_role":
		// Where a person may have to look it up; every answer's header has it.
		page.RequestID = v.id
	}
	locale := v.locale("")
	if v.signedIn {
		page.Customer, page.CancelURL, page.Banner = v.knownName(), v.knownCancelURL(), v.knownBanner()
		if s, ok := v.Corridor.Accounts.Peek(v.sess.Customer); ok {
			locale = v.locale(s.Account.Customer.Locale)
			page.Usage = hasUsage(&s.Account) && v.views(policy.ViewUsage).Allowed()
		}
	}
	v.page(status, locale, page)
}

// Links of message pages: keys under "link.".
const (
	linkVendor   = "vendor"
	linkOverview = "overview"
	linkPlan     = "plan"
	linkPayment  = "payment"
	linkInvoices = "invoices"
	linkReceipt  = "receipt"
	linkRetry    = "retry"
	linkContinue = "continue"
)

func (v *visit) notFound() {
	v.message(http.StatusNotFound, templates.Message{Kind: "not_found"})
}

func (v *visit) badRequest() {
	v.message(http.StatusBadRequest, templates.Message{Kind: "bad_request"})
}

// unavailable is the answer where our own store failed before anything was
// done. On the pages of a change that was sent before, whatever it was that
// failed, nobody may read that nothing was charged.
func (v *visit) unavailable(doing string, err error) {
	m := templates.Message{Kind: "unavailable"}
	switch strings.TrimSuffix(v.r.URL.Path, v.arg) {
	case pathDone, pathState, pathReturn, pathLeave:
		m = templates.Message{Kind: "unavailable_change", Href: pathDone + v.arg, Link: linkRetry}
	}
	v.storeFailed(doing, err, m)
}

// notSignedOut is the answer where the store did not take a sign-out: the
// session may live on, and the page says so. The cookie stays, so that it can be
// tried again.
func (v *visit) notSignedOut(err error, href, label string) {
	v.storeFailed("ending a session", err, templates.Message{Kind: "sign_out_failed", Href: href, Link: label})
}

func (v *visit) storeFailed(doing string, err error, m templates.Message) {
	if v.r.Context().Err() == nil {
		v.Log.Error("store failed", zap.String("request_id", v.id), zap.String("doing", doing), zap.Error(err))
	}
	v.w.Header().Set("Retry-After", "5")
	v.message(http.StatusServiceUnavailable, m)
}

type localeKey struct{ session, customer, accept string }

// locale is the language to answer in: the link's, else the customer's at the
// provider, else the browser's.
func (v *visit) locale(customer string) string {
	k := localeKey{session: v.sess.Locale, customer: customer}
	if accept := v.r.Header["Accept-Language"]; len(accept) == 1 && len(accept[0]) <= 500 {
		k.accept = accept[0]
	}
	if l, ok := v.locales.GetIfPresent(k); ok {
		return l
	}
	l := v.Renderer.Match(k.session, k.customer, k.accept)
	v.locales.Set(k, l)
	return l
}

func (v *visit) asset() {
	if v.r.URL.Path == v.logoPath && v.logoPath != "" {
		h := v.w.Header()
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
		// An SVG is a document of its own where it is opened by itself.
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox")
		v.send(http.StatusOK, v.LogoType, v.Logo)
		return
	}
	body, contentType, immutable, ok := v.Renderer.Asset(v.r.URL.Path)
	if !ok {
		v.notFound()
		return
	}
	if immutable {
		v.w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	v.send(http.StatusOK, contentType, body)
}

func (v *visit) favicon() {
	v.w.Header().Set("Cache-Control", "public, max-age=86400")
	v.wrote = true
	v.w.WriteHeader(http.StatusNoContent)
}

func (v *visit) robots() { v.text(http.StatusOK, "User-agent: *\nDisallow: /\n") }
