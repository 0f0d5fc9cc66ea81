// Package event signs and reads webhook events in Stripe's format. The Stripe
// adapter reads Stripe's with it; the sandbox, which stands in for Stripe, its
// own.
//
// Sources: https://docs.stripe.com/webhooks#verify-manually for the signature,
// https://docs.stripe.com/api/events/object for the event.
package event

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Tolerance is how far the time in a signature may be from the clock, in
// either direction. Five minutes is what Stripe's own libraries allow for the
// past; they take any time to come, which would let whoever got hold of one
// signed request keep it for later.
const Tolerance = 5 * time.Minute

// Header carries the signature.
const Header = "Stripe-Signature"

// Limits of what is looked at.
const (
	maxHeader     = 4 << 10
	maxSignatures = 32
	maxID         = 255
)

// Options say how to judge an event.
type Options struct {
	// Secrets are the endpoint's signing secrets (whsec_…), used as they are.
	// While one is rolled over there are two. Empty: billing.ErrNoWebhook.
	Secrets []string
	// LiveMode is the mode that events must be of.
	LiveMode bool
	// Now is the clock.
	Now time.Time
}

// Parse checks the signature of a request that was posted to a webhook
// endpoint and reads the event. body must be the request's, byte for byte. The
// errors are those of billing.Provider's ParseEvent.
func Parse(header http.Header, body []byte, o Options) (billing.Event, error) {
	if len(o.Secrets) == 0 {
		return billing.Event{}, billing.ErrNoWebhook
	}
	if err := verify(header, body, o); err != nil {
		return billing.Event{}, fmt.Errorf("%w: %w", billing.ErrSignature, err)
	}
	e, err := read(body, o.LiveMode)
	if err != nil {
		return billing.Event{}, fmt.Errorf("%w: %w", billing.ErrEvent, err)
	}
	return e, nil
}

// Sign is the value of Header for a body that is posted at a time: a signature
// for each secret.
func Sign(body []byte, at time.Time, secrets ...string) string {
	t := strconv.FormatInt(at.Unix(), 10)
	var b strings.Builder
	b.WriteString("t=" + t)
	for _, secret := range secrets {
		b.WriteString(",v1=" + hex.EncodeToString(sum(t, body, secret)))
	}
	return b.String()
}

func sum(t string, body []byte, secret string) []byte {
	m := hmac.New(sha256.New, []byte(secret))
	m.Write([]byte(t))
	m.Write([]byte{'.'})
	m.Write(body)
	return m.Sum(nil)
}

func verify(header http.Header, body []byte, o Options) error {
	values := header.Values(Header)
	switch {
	case len(values) == 0 || values[0] == "":
		return errors.New("there is no " + Header + " header")
	case len(values) > 1:
		return errors.New("there are several " + Header + " headers")
	case len(values[0]) > maxHeader:
		return errors.New("the " + Header + " header is too long")
	}
	t, given, err := split(values[0])
	if err != nil {
		return err
	}
	unix, err := strconv.ParseInt(t, 10, 64)
	if err != nil {
		return errors.New("the signature's time is not a number of seconds")
	}
	at := time.Unix(unix, 0)
	switch {
	case o.Now.Sub(at) > Tolerance:
		return fmt.Errorf("it was signed more than %s ago, or a clock is wrong", Tolerance)
	case at.Sub(o.Now) > Tolerance:
		return fmt.Errorf("it was signed more than %s in the future, or a clock is wrong", Tolerance)
	}
	// Every secret is tried with every signature: how long it takes does not
	// say which one it was.
	match := false
	for _, secret := range o.Secrets {
		want := sum(t, body, secret)
		for _, got := range given {
			if hmac.Equal(want, got) {
				match = true
			}
		}
	}
	if !match {
		return errors.New("no signature fits a secret of this endpoint")
	}
	return nil
}

// split takes "t=1492774577,v1=…,v1=…,v0=…" apart. t is as it stands there,
// because it is part of what is signed. Schemes other than v1 are ignored, so
// that nobody can choose a weaker one; v0 is what Stripe signs test events with
// as well. A v1 that is no SHA-256 in lower-case hex, as Stripe writes it, can
// fit nothing.
func split(value string) (t string, v1 [][]byte, err error) {
	for part := range strings.SplitSeq(value, ",") {
		name, v, ok := strings.Cut(part, "=")
		if !ok {
			return "", nil, errors.New("the signature header has a part that is not name=value")
		}
		switch name {
		case "t":
			if t != "" {
				return "", nil, errors.New("the signature header has more than one time")
			}
			if v == "" || len(v) > 12 || strings.Trim(v, "0123456789") != "" {
				return "", nil, errors.New("the signature's time is not a number of seconds")
			}
			t = v
		case "v1":
			sig, err := hex.DecodeString(v)
			if err != nil || len(sig) != sha256.Size || strings.ToLower(v) != v {
				continue
			}
			if v1 = append(v1, sig); len(v1) > maxSignatures {
				return "", nil, errors.New("the signature header has too many signatures")
			}
		}
	}
	if t == "" {
		return "", nil, errors.New("the signature header has no time")
	}
	if len(v1) == 0 {
		return "", nil, errors.New("the signature header has no v1 signature")
	}
	return t, v1, nil
}

// reference is a field that holds an id, or the object where it was expanded.
type reference string

func (r *reference) UnmarshalJSON(b []byte) error {
	var id string
	if len(b) > 0 && b[0] == '{' {
		var o struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(b, &o); err != nil {
			return err
		}
		id = o.ID
	} else if err := json.Unmarshal(b, &id); err != nil {
		return err
	}
	*r = reference(id)
	return nil
}

// posted is the part of an event that is read. The API version that the object
// was drawn for does not matter: nothing but who it belongs to is taken from
// it, and that has the same shape in all of them.
type posted struct {
	Object   string `json:"object"`
	ID       string `json:"id"`
	Type     string `json:"type"`
	Created  int64  `json:"created"`
	LiveMode *bool  `json:"livemode"`
	Account  string `json:"account"`
	Data     struct {
		Object struct {
			Object   string          `json:"object"`
			ID       string          `json:"id"`
			Customer json.RawMessage `json:"customer"`
			Invoice  json.RawMessage `json:"invoice"`
		} `json:"object"`
		Previous struct {
			Customer json.RawMessage `json:"customer"`
		} `json:"previous_attributes"`
	} `json:"data"`
}

// kinds are the objects, beside those of customer.* events, whose changes show
// on the portal's pages.
var kinds = []string{
	"billing.credit_grant", "charge", "checkout.session", "credit_note", "customer", "invoice", "invoiceitem", "payment_intent",
	"payment_method", "setup_intent", "subscription", "subscription_schedule",
}

func read(body []byte, live bool) (billing.Event, error) {
	var p posted
	if err := json.Unmarshal(body, &p); err != nil {
		return billing.Event{}, errors.New("the body is not the JSON of an event")
	}
	switch {
	case p.Object != "event":
		// Thin events (v2.core.event) name an object that would have to be read.
		return billing.Event{}, errors.New("the body is not a snapshot event: choose the payload style \"snapshot\" for the endpoint")
	case !strings.HasPrefix(p.ID, "evt_") || !word(p.ID):
		return billing.Event{}, errors.New("the event has no id")
	case !word(p.Type):
		return billing.Event{}, errors.New("the event has no type")
	case p.Created <= 0 || p.Created >= 1<<40:
		return billing.Event{}, errors.New("the event has no time")
	case p.LiveMode == nil || *p.LiveMode != live:
		return billing.Event{}, errors.New("the event is of the other mode (live or test) than the API key")
	case p.Account != "":
		// Set on events of connected accounts only; their customers are not ours.
		// (context alone is set on those that an organization's endpoint gets,
		// also for our own account.)
		return billing.Event{}, errors.New("the event is a connected account's: choose events on your own account for the endpoint")
	}
	e := billing.Event{ID: p.ID, Type: p.Type, Created: time.Unix(p.Created, 0).UTC(), LiveMode: *p.LiveMode}
	o := p.Data.Object
	switch {
	case o.Object == "customer":
		e.Customer = o.ID
	case strings.HasPrefix(p.Type, "customer.") || slices.Contains(kinds, o.Object):
		e.Customer = named(o.Customer)
		if e.Customer == "" { // a payment method that was detached
			e.Customer = named(p.Data.Previous.Customer)
		}
	}
	switch o.Object {
	case "invoice":
		if word(o.ID) {
			e.Invoice = o.ID
		}
	case "credit_note", "invoice_payment":
		e.Invoice = named(o.Invoice)
	}
	return e, nil
}

// named is the id that a field names, or "". A field of another shape names
// none: an object that is new to us must not make the event fail.
func named(raw json.RawMessage) string {
	var r reference
	if len(raw) == 0 || json.Unmarshal(raw, &r) != nil || !word(string(r)) {
		return ""
	}
	return string(r)
}

// word reports whether s is something like an id: not empty, not long, visible
// ASCII.
func word(s string) bool {
	return s != "" && len(s) <= maxID && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
