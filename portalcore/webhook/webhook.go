// Package webhook takes the provider's events. An event says "look again" and
// nothing more: it makes the customer's account be read anew and wakes what
// waits for the customer, and no fact is taken from it. So it does no harm
// that events come late, twice, in any order or never: what an event would
// have brought to light, the next look after account_max_age and the journal's
// own polling find as well.
package webhook

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
)

// Path is where a Handler is mounted on the tenant's origin.
const Path = "/webhook"

const (
	// maxBody is the largest event that is read. Stripe names no limit of its
	// own, but sends the same events to Amazon EventBridge, which takes 256 KiB;
	// an object in an event carries at most ten entries of each of its lists.
	maxBody = 1 << 20
	// usualBody is what every request may send; nearly all events are smaller.
	usualBody = 64 << 10
	// maxAtOnce is how many requests may send more at a time, which bounds the
	// memory that senders whose signature is not checked yet can take. Usual ones
	// need no place, so that a stranger who takes all of them keeps nothing but
	// large events out, and those for as long as readTimeout: Stripe sends again
	// what gets a 503.
	maxAtOnce = 64
	// readTimeout is how long the body may take.
	readTimeout = 10 * time.Second
	// writeTimeout is how long the store may take. Stripe waits longer.
	writeTimeout = 8 * time.Second
	// Remember is how long an event's id is kept to know it again. Stripe sends
	// one again for up to three days, and by hand for longer: then it is new,
	// and no more is lost than one look.
	// Source: https://docs.stripe.com/webhooks#retries.
	Remember = 7 * 24 * time.Hour
)

// Options configure a Handler. All but Log are required.
type Options struct {
	Store  store.Store
	Tenant string
	// Parse is the provider's ParseEvent.
	Parse func(header http.Header, body []byte, now time.Time) (billing.Event, error)
	// Wake makes, in the transaction that notes the event, what waits for the
	// customer due now: the journal's Wake.
	Wake func(tx store.Tx, customer string, now time.Time) error
	// Invoice makes, in that transaction, the invoice that an event is about be
	// read anew: the invoice index's Note.
	Invoice func(tx store.Tx, customer, invoice string, now time.Time) error
	// Recover is called once the event was noted and answered, so that what Wake
	// woke is looked at without waiting for the next round. It must return at
	// once.
	Recover func()
	Now     func() time.Time
	// Rand is the source of request ids.
	Rand io.Reader
	// Log gets why an event was refused, and failures. Default: nothing.
	Log *zap.Logger
}

// Handler answers the provider's requests to Path. The answers:
//
//	200  noted, known already, or about nobody who was ever here
//	400  not signed by the provider, or not an event: the log says why
//	404  no webhook secret is configured
//	405  not a POST
//	413  larger than 1 MiB
//	415  compressed
//	503  the store cannot take it now, or too many large ones at once: send it again
type Handler struct {
	o       Options
	slots   chan struct{}
	refused throttle
}

// New checks o and makes a Handler.
func New(o Options) (*Handler, error) {
	if o.Store == nil || o.Tenant == "" || o.Parse == nil || o.Wake == nil || o.Invoice == nil || o.Recover == nil || o.Now == nil || o.Rand == nil {
		return nil, errors.New("webhook: Store, Tenant, Parse, Wake, Invoice, Recover, Now and Rand are required")
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Handler{o: o, slots: make(chan struct{}, maxAtOnce)}, nil
}

// ServeHTTP takes one event.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := h.requestID()
	w.Header().Set("X-Request-ID", id)
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answer(w, http.StatusMethodNotAllowed, "This address takes events by POST.")
		return
	}
	body, status, err := h.read(w, r)
	if err != nil {
		h.refuse(r, id, status, err)
		if status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "5")
		}
		answer(w, status, http.StatusText(status)+".")
		return
	}
	now := h.o.Now()
	event, err := h.o.Parse(r.Header, body, now)
	switch {
	case errors.Is(err, billing.ErrNoWebhook):
		h.refuse(r, id, http.StatusNotFound, err)
		answer(w, http.StatusNotFound, "Not found.")
		return
	case err != nil:
		// What was wrong is the operator's to know, not the sender's.
		h.refuse(r, id, http.StatusBadRequest, err)
		answer(w, http.StatusBadRequest, "Not an event of the payment provider.")
		return
	}
	noted, err := h.note(r.Context(), event, now)
	if err != nil {
		h.o.Log.Error("could not note an event; the provider sends it again", zap.String("request_id", id),
			zap.String("event", event.ID), zap.String("type", event.Type), zap.Error(err))
		w.Header().Set("Retry-After", "5")
		answer(w, http.StatusServiceUnavailable, "Please send it again.")
		return
	}
	h.o.Log.Debug("event", zap.String("request_id", id), zap.String("event", event.ID), zap.String("type", event.Type), zap.Bool("noted", noted))
	answer(w, http.StatusOK, "OK.")
	if noted {
		_ = http.NewResponseController(w).Flush() // where it cannot flush, Recover returns at once all the same
		h.o.Recover()
	}
}

// errTooMany says that too many large events are being read.
var errTooMany = errors.New("too many large events at once")

// read reads the whole body as it is.
func (h *Handler) read(w http.ResponseWriter, r *http.Request) (body []byte, status int, err error) {
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, http.StatusUnsupportedMediaType, errors.New("the body is compressed, which the provider's are not")
	}
	if r.ContentLength > maxBody {
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes", maxBody)
	}
	// Not every writer has deadlines; a server's does.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(readTimeout))
	all := http.MaxBytesReader(w, r.Body, maxBody)
	body, err = io.ReadAll(io.LimitReader(all, usualBody))
	if err == nil && len(body) == usualBody {
		var rest []byte
		rest, err = h.readRest(all)
		body = append(body, rest...)
	}
	_ = rc.SetReadDeadline(time.Time{})
	_, large := errors.AsType[*http.MaxBytesError](err)
	switch {
	case errors.Is(err, errTooMany):
		return nil, http.StatusServiceUnavailable, err
	case large:
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes", maxBody)
	case err != nil:
		return nil, http.StatusBadRequest, errors.New("the body did not arrive")
	}
	return body, 0, nil
}

// readRest reads what is more than usual, if there is a place for it.
func (h *Handler) readRest(r io.Reader) ([]byte, error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
		return io.ReadAll(r)
	default:
		return nil, errTooMany
	}
}

// note makes the customer's account be looked at again, once for each event. It
// reports false where there was nothing to do: the event was noted before, or
// is about nobody whose account anyone ever looked at here. Then nothing is
// written, so that an account with many customers elsewhere costs no commits.
func (h *Handler) note(ctx context.Context, e billing.Event, now time.Time) (noted bool, err error) {
	if e.Customer == "" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	key := store.Key(h.o.Tenant, "webhook", e.ID)
	found, err := h.o.Store.GetAll(ctx, key, session.CustomerKey(h.o.Tenant, e.Customer))
	if err != nil {
		return false, fmt.Errorf("webhook: reading: %w", err)
	}
	if found[0] != nil || found[1] == nil {
		return false, nil
	}
	err = h.o.Store.Update(ctx, func(tx store.Tx) error {
		noted = false
		if _, err := tx.Get(key); !errors.Is(err, store.ErrNotFound) {
			return err // nil: somebody else was faster
		}
		known, err := session.BumpIfKnown(tx, h.o.Tenant, e.Customer)
		if err != nil || !known {
			return err
		}
		if err := h.o.Wake(tx, e.Customer, now); err != nil {
			return err
		}
		if e.Invoice != "" {
			if err := h.o.Invoice(tx, e.Customer, e.Invoice, now); err != nil {
				return err
			}
		}
		noted = true
		return store.PutExpiring(tx, h.o.Tenant, key, []byte{}, now.Add(Remember))
	})
	if err != nil {
		return false, fmt.Errorf("webhook: noting: %w", err)
	}
	return noted, nil
}

// refuse logs why a request was refused, up to so many a minute: a flood must
// not fill the disk.
func (h *Handler) refuse(r *http.Request, id string, status int, why error) {
	ok, unlogged := h.refused.take(h.o.Now())
	if !ok {
		return
	}
	h.o.Log.Warn("webhook refused", zap.String("request_id", id), zap.Int("status", status), zap.String("remote", r.RemoteAddr),
		zap.Uint64("unlogged", unlogged), zap.NamedError("reason", why))
}

func (h *Handler) requestID() string {
	var b [16]byte
	if _, err := io.ReadFull(h.o.Rand, b[:]); err != nil {
		return "none"
	}
	return hex.EncodeToString(b[:])
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}

// throttle lets a few lines a minute through and counts the rest.
type throttle struct {
	mu      sync.Mutex
	since   time.Time
	taken   int
	dropped uint64
}

const linesPerMinute = 10

// take reports whether a line may be written, and how many were not since the
// last one.
func (t *throttle) take(now time.Time) (ok bool, dropped uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := now.Sub(t.since); d >= time.Minute || d < 0 {
		t.since, t.taken = now, 0
	}
	if t.taken == linesPerMinute {
		t.dropped++
		return false, 0
	}
	t.taken++
	dropped, t.dropped = t.dropped, 0
	return true, dropped
}
