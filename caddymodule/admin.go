package caddymodule

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/outbox"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

const (
	adminBase = "/billing_portal/"
	// maxAdminBody is more than any operation needs.
	maxAdminBody = 16 << 10
	// adminTimeout bounds an operation; a backup takes as long as it takes.
	adminTimeout = 30 * time.Second
)

// adminAPI is what operators ask and tell the portals of the config that runs,
// under /billing_portal/ of Caddy's admin endpoint. Bodies and answers are JSON.
//
// The endpoint has no login of its own: who reaches it is an operator. Caddy
// keeps web pages out by their origin. No answer has a cookie, a link or a key.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.billing_portal",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// operation is one route's work with the app of the running config. Nothing of
// the config is kept in adminAPI: Caddy goes on with the router of a config that
// was refused.
type operation func(w http.ResponseWriter, r *http.Request, a *App) error

// Routes returns the routes.
func (adminAPI) Routes() []caddy.AdminRoute {
	routes := []caddy.AdminRoute{
		route(http.MethodGet, "tenants", adminTenants),
		route(http.MethodGet, "status", adminStatus),
		route(http.MethodGet, "intents", adminIntents),
		route(http.MethodPost, "intents/settle", adminSettle),
		route(http.MethodGet, "customers", adminCustomers),
		route(http.MethodGet, "sessions", adminSessions),
		route(http.MethodPost, "sessions/revoke", adminRevoke),
		route(http.MethodGet, "events", adminEvents),
		route(http.MethodPost, "events/resend", adminResend),
		route(http.MethodPost, "restored", adminRestored),
		route(http.MethodPost, "backup", adminBackup),
	}
	return append(slices.Clip(routes), caddy.AdminRoute{Pattern: adminBase, Handler: caddy.AdminHandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		paths := make([]string, len(routes))
		for i, known := range routes {
			paths[i] = known.Pattern
		}
		return refuse(http.StatusNotFound, "there is no %s: there are %s", r.URL.Path, strings.Join(paths, ", "))
	})})
}

func route(method, path string, do operation) caddy.AdminRoute {
	return caddy.AdminRoute{Pattern: adminBase + path, Handler: caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if r.Method != method {
			w.Header().Set("Allow", method)
			return refuse(http.StatusMethodNotAllowed, "%s takes %s, not %s", r.URL.Path, method, r.Method)
		}
		a, err := holdActiveApp()
		if err != nil {
			return err
		}
		defer a.dropLogged()
		w.Header().Set("Cache-Control", "no-store")
		return apiError(do(w, r, a))
	})}
}

// refuse is an answer that says what was wrong.
func refuse(status int, format string, args ...any) caddy.APIError {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

var errNoPortal = refuse(http.StatusNotFound, "the config that runs has no billing portal")

// apiError gives an error of the core its status.
func apiError(err error) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[caddy.APIError](err); ok {
		return known
	}
	status := http.StatusInternalServerError
	if _, ok := errors.AsType[*portalcore.InputError](err); ok {
		status = http.StatusBadRequest
	}
	if billing.FaultOf(err) == billing.Unavailable || billing.FaultOf(err) == billing.Retryable {
		status = http.StatusServiceUnavailable
	}
	for cause, s := range map[error]int{
		store.ErrNotFound:        http.StatusNotFound,
		session.ErrNone:          http.StatusNotFound,
		outbox.ErrNoEvent:        http.StatusNotFound,
		portalcore.ErrNoEvents:   http.StatusNotFound,
		journal.ErrNotManual:     http.StatusConflict,
		store.ErrUnavailable:     http.StatusServiceUnavailable,
		store.ErrUnknown:         http.StatusServiceUnavailable,
		store.ErrClosed:          http.StatusServiceUnavailable,
		context.DeadlineExceeded: http.StatusServiceUnavailable,
	} {
		if errors.Is(err, cause) {
			status = s
		}
	}
	return caddy.APIError{HTTPStatus: status, Err: err}
}

// holdActiveApp returns the app of the config that runs, held: drop it. It waits
// for nothing.
func holdActiveApp() (*App, error) {
	// A second try: a reload may end the config between the two steps.
	for range 2 {
		mod, err := caddy.ActiveContext().AppIfConfigured("billing_portal")
		if err != nil {
			return nil, errNoPortal
		}
		if a, ok := mod.(*App); ok && a.hold() {
			return a, nil
		}
	}
	return nil, refuse(http.StatusServiceUnavailable, "the config is being replaced: try again in a moment")
}

// tenantNames are the app's tenants in order.
func (a *App) tenantNames() []string { return slices.Sorted(maps.Keys(a.sites)) }

// tenant finds a tenant by its name; "" will do where there is one only.
func (a *App) tenant(name string) (*site, error) {
	names := a.tenantNames()
	if len(names) == 0 {
		return nil, errNoPortal
	}
	if name == "" {
		if len(names) > 1 {
			return nil, refuse(http.StatusBadRequest, "tenant is missing: there are %s", strings.Join(names, ", "))
		}
		name = names[0]
	}
	s, ok := a.sites[name]
	if !ok {
		return nil, refuse(http.StatusNotFound, "there is no tenant %q: there are %s", name, strings.Join(names, ", "))
	}
	return s, nil
}

// query reads the parameters of a URL, each at most once and none but these. A
// misspelt one that is passed over would list something else.
func query(r *http.Request, names ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the query cannot be read: %v", err)
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			return nil, refuse(http.StatusBadRequest, "there is no parameter %q: there are %s", name, cmp.Or(strings.Join(names, ", "), "none"))
		}
		if len(values) > 1 {
			return nil, refuse(http.StatusBadRequest, "the parameter %q is there twice", name)
		}
	}
	return q, nil
}

// limit reads the parameter limit; 0 where there is none.
func limit(q url.Values) (int, error) {
	if !q.Has("limit") {
		return 0, nil
	}
	n, err := strconv.Atoi(q.Get("limit"))
	if err != nil || n < 1 || n > portalcore.MaxList {
		return 0, refuse(http.StatusBadRequest, "limit: want 1 to %d", portalcore.MaxList)
	}
	return n, nil
}

// body reads a request's JSON object, strictly.
func body(w http.ResponseWriter, r *http.Request, into any) error {
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return refuse(http.StatusUnsupportedMediaType, "want a body of Content-Type application/json")
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); more == nil || !errors.Is(more, io.EOF) {
			err = errors.New("there is something after the object")
			if _, ok := errors.AsType[*http.MaxBytesError](more); ok {
				err = more
			}
		}
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return refuse(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", maxAdminBody)
	}
	if err != nil {
		return refuse(http.StatusBadRequest, "the body is not the JSON object that is wanted: %v", err)
	}
	return nil
}

func answer(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// adminTenant is a tenant in the answer of tenants.
type adminTenant struct {
	Name   string `json:"name"`
	Origin string `json:"origin"`
}

func adminTenants(w http.ResponseWriter, r *http.Request, a *App) error {
	if _, err := query(r); err != nil {
		return err
	}
	list := []adminTenant{}
	for _, name := range a.tenantNames() {
		list = append(list, adminTenant{name, a.sites[name].tenant.Origin})
	}
	return answer(w, map[string]any{"tenants": list})
}

// statusAnswer is the answer of status.
type statusAnswer struct {
	Store   storeStatus         `json:"store"`
	Tenants []portalcore.Status `json:"tenants"`
}

// storeStatus says which store it is and since when it remembers.
type storeStatus struct {
	Kind string `json:"kind"`
	store.Guard
}

func adminStatus(w http.ResponseWriter, r *http.Request, a *App) error {
	if _, err := query(r); err != nil {
		return err
	}
	if len(a.sites) == 0 {
		return errNoPortal
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	out := statusAnswer{Store: storeStatus{Kind: storeKind(a.storage)}, Tenants: []portalcore.Status{}}
	err := a.store.View(ctx, func(tx store.Tx) (err error) {
		out.Store.Guard, err = store.ReadGuard(tx)
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range a.tenantNames() {
		s, err := a.sites[name].portal.Status(ctx)
		if err != nil {
			return fmt.Errorf("tenant %s: %w", name, err)
		}
		out.Tenants = append(out.Tenants, s)
	}
	return answer(w, out)
}

func adminIntents(w http.ResponseWriter, r *http.Request, a *App) error {
	q, err := query(r, "tenant", "state", "customer", "limit", "after")
	if err != nil {
		return err
	}
	s, err := a.tenant(q.Get("tenant"))
	if err != nil {
		return err
	}
	n, err := limit(q)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	page, err := s.portal.Intents(ctx, portalcore.IntentQuery{
		State: q.Get("state"), Customer: q.Get("customer"), Limit: n, After: q.Get("after"),
	})
	if err != nil {
		return err
	}
	return answer(w, page)
}

// settleRequest is the body of intents/settle.
type settleRequest struct {
	Tenant   string `json:"tenant,omitempty"`
	Intent   string `json:"intent"`
	Customer string `json:"customer,omitempty"`
	State    string `json:"state"`
	By       string `json:"by"`
	Note     string `json:"note,omitempty"`
}

func adminSettle(w http.ResponseWriter, r *http.Request, a *App) error {
	var in settleRequest
	s, err := order(w, r, a, &in, &in.Tenant)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	i, err := s.portal.SettleManual(ctx, portalcore.Settlement{
		Intent: in.Intent, Customer: in.Customer, State: in.State, By: in.By, Note: in.Note,
	})
	if err != nil {
		return err
	}
	return answer(w, i)
}

// order reads the body of a POST and finds the tenant that it is about.
func order(w http.ResponseWriter, r *http.Request, a *App, into any, tenant *string) (*site, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	if err := body(w, r, into); err != nil {
		return nil, err
	}
	return a.tenant(*tenant)
}

// customersAnswer is the answer of customers.
type customersAnswer struct {
	Customers []portalcore.CustomerStatus `json:"customers"`
}

func adminCustomers(w http.ResponseWriter, r *http.Request, a *App) error {
	q, err := query(r, "tenant", "reference", "email")
	if err != nil {
		return err
	}
	s, err := a.tenant(q.Get("tenant"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	list, err := s.portal.Customers(ctx, billing.CustomerQuery{Reference: q.Get("reference"), Email: q.Get("email")})
	if err != nil {
		return err
	}
	return answer(w, customersAnswer{list})
}

// sessionsAnswer is the answer of sessions.
type sessionsAnswer struct {
	Sessions []portalcore.SessionStatus `json:"sessions"`
}

func adminSessions(w http.ResponseWriter, r *http.Request, a *App) error {
	q, err := query(r, "tenant", "customer")
	if err != nil {
		return err
	}
	s, err := a.tenant(q.Get("tenant"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	list, err := s.portal.Sessions(ctx, q.Get("customer"))
	if err != nil {
		return err
	}
	return answer(w, sessionsAnswer{list})
}

// revokeRequest is the body of sessions/revoke.
type revokeRequest struct {
	Tenant   string `json:"tenant,omitempty"`
	Session  string `json:"session,omitempty"`
	Customer string `json:"customer,omitempty"`
	All      bool   `json:"all,omitempty"`
	By       string `json:"by"`
}

// revokeAnswer is the answer of sessions/revoke.
type revokeAnswer struct {
	// Known is false where no customer with that id was ever here.
	Known bool `json:"known"`
}

func adminRevoke(w http.ResponseWriter, r *http.Request, a *App) error {
	var in revokeRequest
	s, err := order(w, r, a, &in, &in.Tenant)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	known, err := s.portal.RevokeSessions(ctx, portalcore.Revocation{Session: in.Session, Customer: in.Customer, All: in.All, By: in.By})
	if err != nil {
		return err
	}
	return answer(w, revokeAnswer{known})
}

// eventsAnswer is the answer of events.
type eventsAnswer struct {
	Events []outbox.DeadEvent `json:"events"`
}

func adminEvents(w http.ResponseWriter, r *http.Request, a *App) error {
	q, err := query(r, "tenant", "limit")
	if err != nil {
		return err
	}
	s, err := a.tenant(q.Get("tenant"))
	if err != nil {
		return err
	}
	n, err := limit(q)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	list, err := s.portal.DeadEvents(ctx, n)
	if err != nil {
		return err
	}
	return answer(w, eventsAnswer{list})
}

// resendRequest is the body of events/resend.
type resendRequest struct {
	Tenant string `json:"tenant,omitempty"`
	Event  string `json:"event,omitempty"`
	All    bool   `json:"all,omitempty"`
	By     string `json:"by"`
}

// resendAnswer is the answer of events/resend.
type resendAnswer struct {
	Resent int `json:"resent"`
}

func adminResend(w http.ResponseWriter, r *http.Request, a *App) error {
	var in resendRequest
	s, err := order(w, r, a, &in, &in.Tenant)
	if err != nil {
		return err
	}
	if in.All == (in.Event != "") {
		return refuse(http.StatusBadRequest, "event, all: want one of them")
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	n, err := s.portal.ResendEvents(ctx, in.Event, in.By)
	if err != nil {
		return err
	}
	return answer(w, resendAnswer{n})
}

// restoredRequest is the body of restored.
type restoredRequest struct {
	By   string `json:"by"`
	Note string `json:"note,omitempty"`
}

// operatorSaid begins the reason of a store's new generation.
const operatorSaid = "an operator said that the store was put back to an earlier state: "

// adminRestored takes an operator's word that the database was put back to an
// earlier state, which the store cannot always see for itself.
func adminRestored(w http.ResponseWriter, r *http.Request, a *App) error {
	if _, err := query(r); err != nil {
		return err
	}
	var in restoredRequest
	if err := body(w, r, &in); err != nil {
		return err
	}
	if len(a.sites) == 0 {
		return errNoPortal
	}
	ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
	defer cancel()
	// Written down first, as every order is.
	for _, name := range a.tenantNames() {
		if err := a.sites[name].portal.NoteRestored(ctx, in.By, in.Note); err != nil {
			return fmt.Errorf("tenant %s: %w", name, err)
		}
	}
	guard, err := store.MarkRestored(ctx, a.store, rand.Reader, time.Now(), operatorSaid+in.By)
	if err != nil {
		return err
	}
	a.logger.Warn("the store was put back to an earlier state, an operator said; sessions and links from before are over, and what was under way is settled by reading",
		zap.String("by", in.By), zap.Time("restored", guard.Restored))
	return answer(w, guard)
}

// Interface guards
var _ caddy.AdminRouter = adminAPI{}
