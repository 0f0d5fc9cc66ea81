// Package vendorapi is what the vendor's backend calls. POST
// /v1/billing_portal/sessions makes a link for one customer. It is
// wire-compatible with Stripe's endpoint of that name
// (https://docs.stripe.com/api/customer_portal/sessions/create), so that an
// unmodified Stripe SDK pointed at the portal's origin, with a key of the
// portal's own, makes links to this portal. Under /v1/portal/ is what Stripe has
// nothing for: listing and ending the sessions that links were exchanged for, and
// looking customers up.
package vendorapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// The endpoints' paths.
const (
	Path         = "/v1/billing_portal/sessions" // POST makes a link
	PathSessions = "/v1/portal/sessions"         // GET lists a customer's sessions
	PathRevoke   = "/v1/portal/sessions/revoke"  // POST ends sessions
	// PathCustomers looks customers up, for the vendor's staff (GET).
	PathCustomers = "/v1/portal/customers"
)

const (
	maxBody = 64 << 10
	// maxReturnURL is what a link can carry.
	maxReturnURL = 2048
	// keepKeys is how long an Idempotency-Key is remembered, as at Stripe.
	keepKeys = 24 * time.Hour
	// minKey keeps a short word from being an API key.
	minKey = 20
)

// Options are what the API needs.
type Options struct {
	Tenant string
	Origin string
	// Keys are the portal's API keys. Only their hashes are kept.
	Keys  []string
	Store store.Store
	// Sessions lists and ends sessions.
	Sessions *session.Manager
	// Find returns the customer, or a NotFound error.
	Find func(ctx context.Context, customer string) (billing.Customer, error)
	// Search returns the customers with a reference or an e-mail, at most 20.
	Search func(ctx context.Context, q billing.CustomerQuery) ([]billing.Customer, error)
	// Sign makes the token of the claims, with the portal's current key.
	Sign func(link.Claims) (string, error)
	// Issuer is the portal's own name as a signer.
	Issuer string
	// AllowedReturn says whether a return_url may be used; DefaultReturn is
	// taken where a request has none.
	AllowedReturn func(string) bool
	DefaultReturn string
	// Configurations are the names of the policies besides the default one.
	Configurations []string
	LiveMode       bool
	Log            *zap.Logger
	Now            func() time.Time
	Rand           io.Reader
}

// API is the handler of everything under /v1/.
type API struct {
	Options
	keys   [][sha256.Size]byte
	host   string // of Origin
	secure bool
}

// CheckKey says what is wrong with an API key, without repeating it.
func CheckKey(key string) error {
	switch {
	case looksLikeStripe(key):
		return errors.New("this is a Stripe secret key: choose a key of the portal's own (for example 32 random bytes in hex) and keep the Stripe key to provider stripe")
	case len(key) < minKey:
		return fmt.Errorf("an API key needs at least %d characters", minKey)
	case strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }):
		return errors.New("an API key is printable ASCII without spaces and colons")
	}
	return nil
}

func looksLikeStripe(key string) bool {
	return strings.HasPrefix(key, "sk_") || strings.HasPrefix(key, "rk_")
}

// New checks o. Without keys every request is answered with 401.
func New(o Options) (*API, error) {
	scheme, host, _ := strings.Cut(o.Origin, "://")
	a := &API{Options: o, host: host, secure: scheme == "https"}
	for _, k := range o.Keys {
		if err := CheckKey(k); err != nil {
			return nil, err
		}
		a.keys = append(a.keys, sha256.Sum256([]byte(k)))
	}
	a.Options.Keys = nil
	return a, nil
}

// apiError is Stripe's error object
// (https://docs.stripe.com/api/errors).
type apiError struct {
	status  int
	Type    string `json:"type"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
	Param   string `json:"param,omitempty"`
}

func invalid(code, param, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, Type: "invalid_request_error", Code: code, Param: param, Message: fmt.Sprintf(format, args...)}
}

// ServeHTTP answers every request under /v1/.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	requestID := "req_" + a.random(14)
	h := w.Header()
	h.Set("Request-Id", requestID)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if a.secure {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	if v := r.Header.Get("Stripe-Version"); len(v) <= 40 && v != "" {
		h.Set("Stripe-Version", v)
	}
	body, replayed, e := a.answer(w, r, requestID)
	if e != nil {
		// A 5xx may be tried again under the same key; an SDK must not do so
		// with anything else.
		h.Set("Stripe-Should-Retry", fmt.Sprint(e.status >= 500))
		if e.status >= 500 {
			a.Log.Error("a vendor's request failed", zap.String("request_id", requestID), zap.String("path", r.URL.Path), zap.String("reason", e.Message))
		} else {
			a.Log.Info("refused a vendor's request", zap.String("request_id", requestID), zap.Int("status", e.status),
				zap.String("code", e.Code), zap.String("param", e.Param))
		}
		writeJSON(w, e.status, map[string]any{"error": e})
		return
	}
	if replayed {
		h.Set("Idempotent-Replayed", "true")
	}
	h.Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// random returns n random characters of base32.
func (a *API) random(n int) string {
	b := make([]byte, (n*5+7)/8)
	if _, err := io.ReadFull(a.Rand, b); err != nil {
		panic(fmt.Sprintf("vendorapi: no randomness: %v", err)) // crypto/rand never fails
	}
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b))[:n]
}

// answer is the gate of every endpoint: the portal's own host, an API key, a
// path and a method that exist.
func (a *API) answer(w http.ResponseWriter, r *http.Request, requestID string) (body []byte, replayed bool, _ *apiError) {
	if !strings.EqualFold(r.Host, a.host) {
		return nil, false, &apiError{status: http.StatusMisdirectedRequest, Type: "invalid_request_error", Message: "This host is not the portal's. Use " + a.Origin + "."}
	}
	keyHash, e := a.authenticate(r)
	if e != nil {
		if e.status == http.StatusUnauthorized {
			w.Header().Set("Www-Authenticate", `Bearer realm="billing portal"`)
		}
		return nil, false, e
	}
	path, method := r.URL.EscapedPath(), http.MethodPost
	switch path {
	case Path, PathRevoke:
	case PathSessions, PathCustomers:
		method = http.MethodGet
	default:
		return nil, false, &apiError{
			status: http.StatusNotFound, Type: "invalid_request_error",
			Message: "Unrecognized request URL (" + r.Method + "). This is a billing portal: it has POST " + Path + " and nothing else of Stripe's API (use a separate client for it), GET " + PathSessions + ", POST " + PathRevoke + " and GET " + PathCustomers + ".",
		}
	}
	if r.Method != method {
		w.Header().Set("Allow", method)
		return nil, false, &apiError{status: http.StatusMethodNotAllowed, Type: "invalid_request_error", Message: "Use " + method + "."}
	}
	for _, name := range []string{"Stripe-Account", "Stripe-Context"} {
		if r.Header.Get(name) != "" {
			return nil, false, invalid("", "", "The header %s is not supported: this portal serves one account.", name)
		}
	}
	switch path {
	case PathSessions:
		body, e = a.listSessions(r)
	case PathCustomers:
		body, e = a.listCustomers(r)
	case PathRevoke:
		body, e = a.revokeSessions(w, r, requestID)
	default:
		body, replayed, e = a.create(w, r, keyHash)
	}
	return body, replayed, e
}

func (a *API) create(w http.ResponseWriter, r *http.Request, keyHash [sha256.Size]byte) (body []byte, replayed bool, _ *apiError) {
	idem, e := idempotencyKey(r)
	if e != nil {
		return nil, false, e
	}
	if idem != "" {
		w.Header().Set("Idempotency-Key", idem)
	}
	form, e := readForm(w, r)
	if e != nil {
		return nil, false, e
	}
	req, e := a.parse(form)
	if e != nil {
		return nil, false, e
	}
	return a.mint(r.Context(), keyHash, idem, form, req)
}

// authenticate returns the hash of the key. Both of Stripe's ways are taken: a
// Bearer token, and Basic with the key as user name.
func (a *API) authenticate(r *http.Request) ([sha256.Size]byte, *apiError) {
	var none [sha256.Size]byte
	denied := func(format string) (hash [sha256.Size]byte, e *apiError) {
		return none, &apiError{status: http.StatusUnauthorized, Type: "invalid_request_error", Message: format}
	}
	var key string
	switch values := r.Header.Values("Authorization"); {
	case len(values) == 0:
		return denied("You did not provide an API key. Send 'Authorization: Bearer KEY' with a key of this portal.")
	case len(values) > 1:
		return denied("The Authorization header is there more than once.")
	default:
		scheme, rest, _ := strings.Cut(values[0], " ")
		if strings.EqualFold(scheme, "bearer") {
			key = rest
		} else if user, pass, ok := r.BasicAuth(); ok && pass == "" {
			key = user
		}
	}
	if looksLikeStripe(key) {
		return denied("This is a Stripe secret key. Never send it here: use an API key of this portal (api_key in its configuration), and a separate SDK client for it.")
	}
	hash := sha256.Sum256([]byte(key))
	found := 0
	for _, k := range a.keys {
		found |= subtle.ConstantTimeCompare(k[:], hash[:])
	}
	if found == 0 {
		return denied("Invalid API key provided. Use an API key of this portal (api_key in its configuration).")
	}
	return hash, nil
}

func idempotencyKey(r *http.Request) (string, *apiError) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	k := values[0]
	if len(values) > 1 || k == "" || len(k) > 255 {
		return "", invalid("", "", "The header Idempotency-Key needs one value of 1 to 255 characters.")
	}
	return k, nil
}

func readForm(w http.ResponseWriter, r *http.Request) (url.Values, *apiError) {
	if r.URL.RawQuery != "" {
		return nil, invalid("", "", "Send parameters in the body, form-encoded, not in the URL.")
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, &apiError{status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Message: "Send the body without a Content-Encoding."}
	}
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if t, _, err := mime.ParseMediaType(ct); err != nil || t != "application/x-www-form-urlencoded" || len(r.Header.Values("Content-Type")) > 1 {
			return nil, &apiError{status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Message: "Send the parameters as application/x-www-form-urlencoded."}
		}
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, &apiError{status: http.StatusRequestEntityTooLarge, Type: "invalid_request_error", Message: fmt.Sprintf("The body is over %d bytes.", maxBody)}
		}
		return nil, invalid("", "", "The body could not be read.")
	}
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		return nil, invalid("", "", "The body is not form-encoded.")
	}
	return form, nil
}

// request is a parsed request.
type request struct {
	customer, returnURL, locale, configuration string
	actor                                      link.Actor
	role, reason                               string
	permissions                                []string
}

// unsupported are parameters of Stripe's and of ours that this version does
// not know what to do with yet. Ignoring them could widen what a session may
// do, so they are refused.
var unsupported = []string{"after_expiration", "customer_account", "expand", "flow_data", "on_behalf_of"}

// locales are Stripe's (the enum of the sessions endpoint). Those without
// texts of ours fall back.
var locales = strings.Fields("auto bg cs da de el en en-AU en-CA en-GB en-IE en-IN en-NZ en-SG es es-419 et fi fil fr fr-CA hr hu id it " +
	"ja ko lt lv ms mt nb nl pl pt pt-BR ro ru sk sl sv th tr vi zh zh-HK zh-TW en-XA")

var permissionParam = regexp.MustCompile(`^portal\[permissions\]\[([0-9]{0,3})\]$`)

var validConfiguration = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (a *API) parse(form url.Values) (request, *apiError) {
	var req request
	scalars := map[string]*string{
		"customer": &req.customer, "return_url": &req.returnURL, "locale": &req.locale, "configuration": &req.configuration,
		"portal[actor][id]": &req.actor.ID, "portal[actor][email]": &req.actor.Email, "portal[actor][name]": &req.actor.Name,
		"portal[role]": &req.role, "portal[reason]": &req.reason,
	}
	permissions := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(form)) {
		values := form[name]
		if m := permissionParam.FindStringSubmatch(name); m != nil {
			if m[1] != "" && len(values) > 1 {
				return request{}, invalid("", name, "Received %s more than once.", name)
			}
			for i, v := range values {
				permissions[fmt.Sprintf("%04s.%04d", m[1], i)] = v
			}
			continue
		}
		to, ok := scalars[name]
		if !ok {
			top, _, _ := strings.Cut(name, "[")
			if slices.Contains(unsupported, top) {
				return request{}, invalid("parameter_unknown", top, "The parameter %s is not supported by this portal.", top)
			}
			return request{}, invalid("parameter_unknown", printable(name), "Received unknown parameter: %s", printable(name))
		}
		if len(values) > 1 {
			return request{}, invalid("", name, "Received %s more than once.", name)
		}
		*to = values[0]
	}
	if len(permissions) > 0 {
		// An empty list permits nothing; Stripe's encoding of one is a single
		// empty element.
		req.permissions = []string{}
		for _, k := range slices.Sorted(maps.Keys(permissions)) {
			if p := permissions[k]; p != "" {
				if !slices.Contains(policy.Actions, p) {
					return request{}, invalid("", "portal[permissions]", "Invalid portal[permissions]: must be one of %s.", strings.Join(policy.Actions, ", "))
				}
				req.permissions = append(req.permissions, p)
			}
		}
	}
	return req, a.validate(&req)
}

func (a *API) validate(req *request) *apiError {
	switch {
	case req.customer == "":
		return missing("customer")
	case !possibleCustomer(req.customer):
		return noCustomer(req.customer)
	case len(req.returnURL) > maxReturnURL:
		return invalid("", "return_url", "Invalid return_url: at most %d bytes.", maxReturnURL)
	case req.returnURL != "" && !a.AllowedReturn(req.returnURL):
		return invalid("", "return_url", "Not a valid return_url: its origin is not among those of return_to in the portal's configuration.")
	case req.locale != "" && !slices.Contains(locales, req.locale):
		return invalid("", "locale", "Invalid locale: must be one of %s.", strings.Join(locales[:len(locales)-1], ", "))
	case req.configuration != "" && (!validConfiguration.MatchString(req.configuration) || !slices.Contains(a.Configurations, req.configuration)):
		return &apiError{
			status: http.StatusBadRequest, Type: "invalid_request_error", Code: "resource_missing", Param: "configuration",
			Message: fmt.Sprintf("No such configuration: '%s'. The portal's named policies are: %s.", printable(req.configuration), cmp.Or(strings.Join(a.Configurations, ", "), "none")),
		}
	case req.role != "" && req.role != policy.Support && !slices.Contains(policy.Roles, req.role):
		return invalid("", "portal[role]", "Invalid portal[role]: must be one of %s, %s.", strings.Join(policy.Roles, ", "), policy.Support)
	case req.role == policy.Support && req.actor.ID == "":
		return invalid("parameter_missing", "portal[actor][id]", "Missing required param: portal[actor][id]. With portal[role]=support it names the member of your staff who looks.")
	case req.role == policy.Support && req.permissions != nil:
		return invalid("", "portal[permissions]", "Invalid portal[permissions]: support looks and changes nothing, whatever is permitted.")
	case req.role != policy.Support && req.reason != "":
		return invalid("", "portal[reason]", "Invalid portal[reason]: it goes with portal[role]=support only.")
	case utf8.RuneCountInString(req.reason) > maxReason || !isText(req.reason):
		return invalid("", "portal[reason]", "Invalid portal[reason]: at most %d characters of text without control characters.", maxReason)
	}
	for _, f := range []struct{ name, value string }{
		{"id", req.actor.ID}, {"email", req.actor.Email}, {"name", req.actor.Name},
	} {
		if len(f.value) > 255 || !isText(f.value) {
			param := "portal[actor][" + f.name + "]"
			return invalid("", param, "Invalid %s: at most 255 bytes of text without control characters.", param)
		}
	}
	if req.locale == "auto" {
		req.locale = ""
	}
	return nil
}

// maxReason is what a link can carry, in characters.
const maxReason = 200

func isText(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError })
}

func missing(param string) *apiError {
	return invalid("parameter_missing", param, "Missing required param: %s.", param)
}

// possibleCustomer reports whether a provider could have such a customer.
func possibleCustomer(id string) bool {
	return len(id) <= 255 && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

func noCustomer(id string) *apiError {
	return invalid("resource_missing", "customer", "No such customer: '%s'", printable(id))
}

// printable is s as an error may repeat it.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 80)]
}

// saved is the answer kept under an Idempotency-Key.
type saved struct {
	Request  string          `json:"request"` // hash of key and parameters
	Response json.RawMessage `json:"response"`
}

func (a *API) mint(ctx context.Context, keyHash [sha256.Size]byte, idem string, form url.Values, req request) ([]byte, bool, *apiError) {
	fingerprint := sha256.Sum256([]byte(form.Encode()))
	request := hex.EncodeToString(fingerprint[:])
	idemKey := store.Key(a.Tenant, "idempotency", string(keyHash[:8]), idem)
	if idem != "" {
		if old, ok, e := a.replay(ctx, idemKey, request); e != nil || ok {
			return old, ok, e
		}
	}
	switch _, err := a.Find(ctx, req.customer); billing.FaultOf(err) {
	case "":
	case billing.NotFound:
		return nil, false, noCustomer(req.customer)
	default:
		return nil, false, unavailable("The payment provider did not answer, so the customer could not be looked up. Try again.", err, a.Log)
	}
	body, err := a.session(ctx, req)
	if errors.Is(err, link.ErrTooLong) {
		return nil, false, invalid("", "return_url", "The link would be too long: shorten return_url and the portal[actor] fields.")
	}
	if err != nil {
		return nil, false, unavailable("The link could not be made. Try again.", err, a.Log)
	}
	if idem == "" {
		return body, false, nil
	}
	value, err := json.Marshal(saved{Request: request, Response: body})
	if err != nil {
		return nil, false, unavailable("The link could not be made. Try again.", err, a.Log)
	}
	until := a.Now().Add(keepKeys)
	var earlier []byte
	err = a.Store.Update(ctx, func(tx store.Tx) error {
		earlier = nil
		old, err := tx.Get(idemKey)
		if err == nil {
			earlier = old
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return store.PutExpiring(tx, a.Tenant, idemKey, value, until)
	})
	if err != nil {
		return nil, false, unavailable("The link could not be made. Try again.", err, a.Log)
	}
	if earlier != nil {
		return decodeSaved(earlier, request)
	}
	return body, false, nil
}

func (a *API) replay(ctx context.Context, key []byte, request string) ([]byte, bool, *apiError) {
	values, err := a.Store.GetAll(ctx, key)
	if err != nil {
		return nil, false, unavailable("The link could not be made. Try again.", err, a.Log)
	}
	if values[0] == nil {
		return nil, false, nil
	}
	return decodeSaved(values[0], request)
}

func decodeSaved(value []byte, request string) ([]byte, bool, *apiError) {
	var s saved
	if err := json.Unmarshal(value, &s); err != nil || s.Request != request {
		return nil, false, &apiError{
			status: http.StatusBadRequest, Type: "idempotency_error",
			Message: "Keys for idempotent requests can only be used with the same parameters they were first used with.",
		}
	}
	return s.Response, true, nil
}

func unavailable(message string, err error, log *zap.Logger) *apiError {
	log.Warn("a vendor's request failed", zap.Error(err))
	return &apiError{status: http.StatusServiceUnavailable, Type: "api_error", Message: message}
}

// session makes the link and Stripe's object around it
// (https://docs.stripe.com/api/customer_portal/sessions/object).
func (a *API) session(ctx context.Context, req request) ([]byte, error) {
	jti, err := link.NewID(a.Rand)
	if err != nil {
		return nil, err
	}
	generation, err := session.Generation(ctx, a.Store)
	if err != nil {
		return nil, err
	}
	now := a.Now().UTC().Truncate(time.Second)
	token, err := a.Sign(link.Claims{
		Issuer: a.Issuer, Audience: a.Origin, Subject: req.customer,
		IssuedAt: now, Expires: now.Add(link.MaxLifetime), ID: jti, Generation: generation,
		ReturnURL: req.returnURL, Locale: req.locale, Configuration: req.configuration,
		Actor: req.actor, Role: req.role, Permissions: req.permissions, Reason: req.reason,
	})
	if err != nil {
		return nil, err
	}
	returnURL := req.returnURL
	if returnURL == "" {
		returnURL = a.DefaultReturn
	}
	return json.Marshal(map[string]any{
		"id": "bps_" + a.random(24), "object": "billing_portal.session",
		"configuration": orNull(req.configuration), "created": now.Unix(), "customer": req.customer,
		"customer_account": nil, "flow": nil, "livemode": a.LiveMode, "locale": orNull(req.locale),
		"on_behalf_of": nil, "return_url": returnURL, "url": a.Origin + "/enter?token=" + token,
	})
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}
