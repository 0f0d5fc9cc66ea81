package vendorapi

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
)

// sessionObject is a session as the vendor's backend sees it. Its id ends the
// session and opens nothing.
type sessionObject struct {
	ID       string      `json:"id"`
	Object   string      `json:"object"` // "portal.session"
	Actor    actorObject `json:"actor"`
	Created  int64       `json:"created"` // Unix seconds, as all times
	Customer string      `json:"customer"`
	Device   string      `json:"device"` // "Firefox on Linux", "Unknown browser"
	Expires  int64       `json:"expires_at"`
	LastSeen int64       `json:"last_seen"`
	LiveMode bool        `json:"livemode"`
	Role     string      `json:"role"`
}

type actorObject struct {
	ID    any `json:"id"`
	Email any `json:"email"`
	Name  any `json:"name"`
}

func actor(a link.Actor) actorObject {
	return actorObject{ID: orNull(a.ID), Email: orNull(a.Email), Name: orNull(a.Name)}
}

// listObject is Stripe's list (https://docs.stripe.com/api/pagination). A
// customer's sessions are few, so that a list is always whole.
type listObject[T any] struct {
	Object  string `json:"object"` // "list"
	Data    []T    `json:"data"`
	HasMore bool   `json:"has_more"`
	URL     string `json:"url"`
}

// readQuery reads the parameters of a GET.
func readQuery(r *http.Request, into map[string]*string) *apiError {
	if r.ContentLength != 0 {
		return invalid("", "", "Send parameters in the URL, without a body.")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || len(r.URL.RawQuery) > maxBody {
		return invalid("", "", "The query is not form-encoded.")
	}
	return scalars(query, into)
}

// listSessions is GET /v1/portal/sessions?customer=…: the customer's live
// sessions, newest first; none for a customer that never had one.
func (a *API) listSessions(r *http.Request) ([]byte, *apiError) {
	var customer string
	if e := readQuery(r, map[string]*string{"customer": &customer}); e != nil {
		return nil, e
	}
	switch {
	case customer == "":
		return nil, missing("customer")
	case !possibleCustomer(customer):
		return nil, noCustomer(customer)
	}
	list, err := a.Sessions.List(r.Context(), customer, 0)
	if err != nil {
		return nil, unavailable("The sessions could not be read. Try again.", err, a.Log)
	}
	out := listObject[sessionObject]{Object: "list", Data: make([]sessionObject, len(list)), URL: PathSessions}
	for i := range list {
		s := &list[i]
		out.Data[i] = sessionObject{
			ID: s.ID(), Object: "portal.session", Actor: actor(s.Actor), Created: s.Created.Unix(), Customer: s.Customer,
			Device: s.Device.String(), Expires: s.Expires.Unix(), LastSeen: s.Seen.Unix(), LiveMode: a.LiveMode, Role: s.Role,
		}
	}
	return encode(out)
}

// revocation says what was ended.
type revocation struct {
	Object   string `json:"object"` // "portal.session_revocation"
	All      bool   `json:"all"`
	Customer any    `json:"customer"`
	// Revoked is false only where one session was named and there was none to
	// end: it is unknown, over, or not the customer's that was named.
	Revoked bool `json:"revoked"`
	Session any  `json:"session"`
}

var sessionID = regexp.MustCompile(`^ses_[A-Za-z0-9_-]{43}$`)

// revokeSessions is POST /v1/portal/sessions/revoke with customer=… (all
// sessions of a customer), session=… (that one, only if it is the customer's
// where there is a customer=… too) or all=true (every session of the portal).
// They are over, on every node, once it has answered; doing it again is the
// same. Links that were made before and not used yet still open a session.
func (a *API) revokeSessions(w http.ResponseWriter, r *http.Request, requestID string) ([]byte, *apiError) {
	form, e := readForm(w, r)
	if e != nil {
		return nil, e
	}
	var customer, id, all string
	if e := scalars(form, map[string]*string{"customer": &customer, "session": &id, "all": &all}); e != nil {
		return nil, e
	}
	done := revocation{Object: "portal.session_revocation", All: all == "true", Customer: orNull(customer), Session: orNull(id), Revoked: true}
	var err error
	switch {
	case all != "" && all != "true":
		return nil, invalid("", "all", "Invalid all: must be true.")
	case done.All && (customer != "" || id != ""):
		return nil, invalid("", "all", "Send all=true alone: it ends the sessions of every customer.")
	case customer != "" && !possibleCustomer(customer):
		return nil, noCustomer(customer)
	case id != "" && !sessionID.MatchString(id):
		return nil, invalid("", "session", "Invalid session: an id looks like ses_… and comes from GET %s.", PathSessions)
	case done.All:
		err = a.Sessions.RevokeTenant(r.Context())
	case id != "":
		err = a.Sessions.Revoke(r.Context(), customer, id)
		if errors.Is(err, session.ErrNone) {
			done.Revoked, err = false, nil
		}
	case customer != "":
		err = a.Sessions.RevokeCustomer(r.Context(), customer)
	default:
		return nil, invalid("parameter_missing", "customer", "Missing required param: customer, session or all.")
	}
	if err != nil {
		return nil, unavailable("The sessions may not be ended yet. Try again: ending them twice is the same.", err, a.Log)
	}
	a.Log.Info("sessions revoked by the vendor", zap.String("request_id", requestID), zap.String("customer", customer),
		zap.String("session", id), zap.Bool("all", done.All), zap.Bool("revoked", done.Revoked))
	return encode(done)
}

func encode(v any) ([]byte, *apiError) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, &apiError{status: http.StatusInternalServerError, Type: "api_error", Message: "The answer could not be written."}
	}
	return body, nil
}

// scalars reads parameters that are there once or not at all, and refuses any
// other. An empty one says nothing: it is refused too, so that a missing
// variable in the vendor's backend never means "everybody".
func scalars(form url.Values, into map[string]*string) *apiError {
	for _, name := range slices.Sorted(maps.Keys(form)) {
		to, ok := into[name]
		switch values := form[name]; {
		case !ok:
			return invalid("parameter_unknown", printable(name), "Received unknown parameter: %s", printable(name))
		case len(values) > 1:
			return invalid("", name, "Received %s more than once.", name)
		case values[0] == "":
			return invalid("parameter_invalid_empty", name, "You passed an empty string for '%s'. Leave it out or give it a value.", name)
		default:
			*to = values[0]
		}
	}
	return nil
}
