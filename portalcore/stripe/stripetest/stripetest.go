// Package stripetest is the part of Stripe's HTTP API that package stripe
// calls, in front of the sandbox's ledger, with faults on request.
//
// It is strict where Stripe is: unknown parameters, wrong types and bad
// expansions refuse a call; idempotency keys, request ids and error objects
// are Stripe's. It is one ledger of ours all the same, written from Stripe's
// documentation, and never the only judge of what Stripe does: the shapes of
// requests are judged by Stripe's own stripe-mock, proration by an
// independent oracle, and the rest by an account at Stripe.
//
// Where it differs from Stripe on purpose: invoices are never drafts, updates
// make their invoice at once (always_invoice) or none,
// and an update's metadata is on the subscription also while the update
// waits.
package stripetest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// Version is the one API version that is spoken.
const Version = "2026-08-26.dahlia"

// Options configure the API.
type Options struct {
	// Key is the secret key that calls must carry. Required.
	Key string
	// Logger gets failures of the ledger itself. Default: none.
	Logger *zap.Logger
	// Webhooks, where not nil, posts events with whole objects.
	Webhooks *sandbox.Webhooks
}

type handler struct {
	l      *sandbox.Ledger
	faults *sandbox.Faults
	o      Options
	mux    *http.ServeMux
	secret []byte // signs file names

	mu    sync.Mutex
	saved map[string]answer // by idempotency key: the bytes that were answered
}

type answer struct {
	status int
	body   []byte
}

// New returns the API, the pages that it sends customers to, and its files,
// as one handler. faults may be nil.
func New(l *sandbox.Ledger, faults *sandbox.Faults, o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	h := &handler{l: l, faults: faults, o: o, mux: http.NewServeMux(), secret: make([]byte, 32), saved: map[string]answer{}}
	_, _ = rand.Read(h.secret)
	h.routes()
	if o.Webhooks != nil {
		o.Webhooks.SetDraw(func(ctx context.Context, kind, id string) (any, error) {
			drawn, err := h.draw(ctx, kind, id)
			if err != nil {
				return nil, err
			}
			b, err := completed(drawn)
			return json.RawMessage(b), err
		})
	}
	return h
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// call is one endpoint's work: it reads checked parameters and returns the
// object to answer with.
type call func(v *view, id string, a args, c sandbox.Call) (any, error)

func (h *handler) handle(pattern string, params map[string]*spec, fn call) {
	h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, params, fn) })
}

// operations are what faults name a call by: its own name, and what it is one
// of. An account previews its subscriptions as they are, without details.
func operations(r *http.Request, body []byte) []string {
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/create_preview") && bytes.Contains(body, []byte("subscription_details")):
		return []string{"preview"}
	case strings.HasSuffix(path, "/create_preview"):
		return []string{"upcoming", "preview"}
	case r.Method != http.MethodGet:
		return []string{"execute"}
	case strings.HasSuffix(path, "/payment_methods"):
		return []string{"payment_methods", "account"}
	case strings.HasSuffix(path, "/invoices") && r.URL.Query().Get("status") == "open":
		return []string{"debts", "account"}
	case strings.HasSuffix(path, "/invoices"):
		return []string{"invoices", "account"}
	}
	return []string{"account"}
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request, params map[string]*spec, fn call) {
	id := make([]byte, 7)
	_, _ = rand.Read(id)
	w.Header().Set("Request-Id", "req_"+hex.EncodeToString(id))
	w.Header().Set("Stripe-Version", Version)
	key := r.Header.Get("Idempotency-Key")
	if key != "" {
		w.Header().Set("Idempotency-Key", key)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		h.write(w, r, answerOf(invalid("", "", "The request is too large.")))
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if !h.authentic(r) {
		h.write(w, r, answerOf(&sandbox.Error{Status: http.StatusUnauthorized, Type: sandbox.InvalidRequest, Message: "Invalid API Key provided."}))
		return
	}
	if v := r.Header.Get("Stripe-Version"); v != Version {
		h.write(w, r, answerOf(invalid("", "", "This test server speaks version %s only, not %q.", Version, v)))
		return
	}
	fault, latency := h.take(r, body)
	// What went wrong after the change takes its time after the change, too.
	after := fault == sandbox.FaultTimeoutAfter || fault == sandbox.Fault500After || fault == sandbox.FaultGarbage
	if !after {
		pause(r.Context(), latency)
	}
	switch fault {
	case sandbox.FaultTimeoutBefore:
		panic(http.ErrAbortHandler)
	case sandbox.Fault500Before:
		h.write(w, r, internal)
		return
	case sandbox.FaultRateLimit:
		w.Header().Set("Stripe-Should-Retry", "true")
		h.write(w, r, answerOf(&sandbox.Error{Status: http.StatusTooManyRequests, Type: sandbox.InvalidRequest, Code: "rate_limit", Message: "Too many requests."}))
		return
	}
	replayed := false
	a := h.answer(r, params, fn, sandbox.Call{Key: key, Replayed: &replayed})
	if replayed {
		w.Header().Set("Idempotent-Replayed", "true")
		h.mu.Lock()
		if old, ok := h.saved[key]; ok {
			a = old
		}
		h.mu.Unlock()
	} else if key != "" && (a.status == http.StatusOK || a.status == http.StatusPaymentRequired) {
		if fault == sandbox.Fault500After {
			a = internal // Stripe keeps a 500 under its key and replays it
		}
		h.mu.Lock()
		h.saved[key] = a
		h.mu.Unlock()
	}
	if after {
		pause(r.Context(), latency)
	}
	switch fault {
	case sandbox.FaultTimeoutAfter:
		panic(http.ErrAbortHandler)
	case sandbox.Fault500After:
		a = internal
	case sandbox.FaultGarbage:
		a = answer{http.StatusOK, []byte(`{"object": "subscr`)}
	}
	h.write(w, r, a)
}

var internal = answer{http.StatusInternalServerError, []byte(`{"error":{"type":"api_error","message":"Something went wrong on our end."}}`)}

// authentic reports whether r carries the key, as Bearer or as Basic user.
func (h *handler) authentic(r *http.Request) bool {
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if user, _, basic := r.BasicAuth(); !ok && basic {
		got = user
	}
	return subtle.ConstantTimeCompare([]byte(got), []byte(h.o.Key)) == 1
}

func (h *handler) answer(r *http.Request, params map[string]*spec, fn call, c sandbox.Call) answer {
	a, e := parse(r, params)
	if e != nil {
		return answerOf(e)
	}
	v := &view{ctx: r.Context(), l: h.l, h: h, sub: r.PathValue("sub"), to: "http://" + r.Host}
	out, err := fn(v, r.PathValue("id"), a, c)
	if err != nil {
		var le *sandbox.Error
		if !errors.As(err, &le) {
			h.o.Logger.Error("stripetest: the ledger failed", zap.Error(err))
			return internal
		}
		return answerOf(le)
	}
	b, err := completed(out)
	if err != nil {
		h.o.Logger.Error("stripetest: encoding an answer", zap.Error(err))
		return internal
	}
	return answer{http.StatusOK, b}
}

func answerOf(e *sandbox.Error) answer {
	o := object{"type": e.Type, "message": e.Message}
	for k, v := range map[string]string{"code": e.Code, "decline_code": e.DeclineCode, "param": e.Param} {
		if v != "" {
			o[k] = v
		}
	}
	if e.PaymentIntent != "" {
		o["payment_intent"] = object{"id": e.PaymentIntent, "object": "payment_intent"}
	}
	b, _ := completed(object{"error": o}) // strings always encode
	return answer{e.Status, b}
}

func (h *handler) write(w http.ResponseWriter, r *http.Request, a answer) {
	if now, err := h.l.Now(r.Context()); err == nil {
		w.Header().Set("Date", now.Format(http.TimeFormat))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

// Files: invoice_pdf leads to another host than the API's, which redirects
// once more to where the file is, as Stripe's does. Neither takes a key.

func (h *handler) fileURL(to, invoice string) string {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(to, "http://"))
	if err != nil {
		host, port = strings.TrimPrefix(to, "http://"), ""
	}
	if host == "localhost" {
		host = "127.0.0.1"
	} else {
		host = "localhost"
	}
	if port != "" {
		host = net.JoinHostPort(host, port)
	}
	return "http://" + host + "/files/" + invoice + "/" + h.mac(invoice) + "/pdf"
}

func (h *handler) mac(invoice string) string {
	m := hmac.New(sha256.New, h.secret)
	m.Write([]byte(invoice))
	return hex.EncodeToString(m.Sum(nil)[:16])
}

func (h *handler) file(w http.ResponseWriter, r *http.Request) {
	id, mac := r.PathValue("id"), r.PathValue("mac")
	if r.Header.Get("Authorization") != "" {
		http.Error(w, "a key was sent to the files' host", http.StatusBadRequest)
		return
	}
	if !hmac.Equal([]byte(mac), []byte(h.mac(id))) {
		http.NotFound(w, r)
		return
	}
	if strings.HasPrefix(r.URL.Path, "/files/") {
		http.Redirect(w, r, "/storage/"+id+"/"+mac+"/pdf", http.StatusFound)
		return
	}
	pdf := h.l.InvoicePDF
	if strings.HasPrefix(id, "cn_") {
		pdf = h.l.CreditNotePDF
	}
	b, err := pdf(r.Context(), id)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/pdf")
	_, _ = w.Write(b)
}

// take uses up a fault and returns its kind and how long it takes.
func (h *handler) take(r *http.Request, body []byte) (sandbox.FaultKind, time.Duration) {
	f, ok := h.faults.Take(operations(r, body)...)
	if !ok {
		return "", 0
	}
	return f.Kind, f.Latency
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// The pages that a customer is sent to.

func (h *handler) cardURL(to, session string) string   { return to + "/pages/card/" + session }
func (h *handler) confirmURL(to, intent string) string { return to + "/pages/confirm/" + intent }
