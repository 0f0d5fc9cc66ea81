package stripe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// form is a list of parameters in Stripe's bracket notation. Order is kept,
// so that a frozen step is the same bytes each time.
type form [][2]string

func (f *form) add(key, value string) { *f = append(*f, [2]string{key, value}) }

func (f *form) expand(fields ...string) {
	for _, x := range fields {
		f.add("expand[]", x)
	}
}

func (f form) encode() string {
	var b strings.Builder
	for i, kv := range f {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(url.QueryEscape(kv[0]))
		b.WriteByte('=')
		b.WriteString(url.QueryEscape(kv[1]))
	}
	return b.String()
}

// path joins the parts of a URL path, each escaped. An id that could be
// anything but one path segment is not a Stripe id.
func path(parts ...string) (string, bool) {
	var b strings.Builder
	b.WriteString("/v1")
	for _, s := range parts {
		if s == "" || len(s) > 255 || s == "." || s == ".." ||
			strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`/?#%\`, r) }) {
			return "", false
		}
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String(), true
}

// answer is a complete HTTP answer.
type answer struct {
	status    int
	header    http.Header
	body      []byte
	requestID string
	at        time.Time // the Date header
}

// apiError is the error object of Stripe's answers.
type apiError struct {
	Type        string `json:"type"`
	Code        string `json:"code"`
	DeclineCode string `json:"decline_code"`
	Param       string `json:"param"`
	Message     string `json:"message"`
}

// errorObject returns the error that a carries, or false where the body is
// not one of Stripe's (a proxy's page).
func (a *answer) errorObject() (apiError, bool) {
	var e struct {
		Error apiError `json:"error"`
	}
	if json.Unmarshal(a.body, &e) != nil || e.Error.Type == "" {
		return apiError{}, false
	}
	return e.Error, true
}

// sendError says that no complete answer came. wrote is false only where
// surely no byte of the request left.
type sendError struct {
	wrote     bool
	requestID string
	err       error
}

func (e *sendError) Error() string { return e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

// send waits for the request's turn and makes it. A read that Stripe has no
// time for (429) is made again when all may, within its deadline; a change is
// made once. body is the encoded form: the query of a GET, the body of a POST.
func (p *Provider) send(ctx context.Context, method, path, body, key string) (*answer, error) {
	l, t := p.limiter(), turnOf(ctx)
	if t.customer == "" {
		t.customer = customerIn(path, body)
	}
	queued, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var last *answer
	for range maxAttempts {
		done, err := l.acquire(queued, t)
		switch {
		case err != nil && last != nil:
			return last, nil
		case err != nil:
			return nil, &sendError{err: fmt.Errorf("%s %s: waiting for its turn: %w", method, path, err)}
		}
		begun := time.Now()
		a, err := p.sendNow(ctx, t, method, path, body, key)
		done()
		if err != nil {
			return nil, err
		}
		if a.status != http.StatusTooManyRequests {
			l.answered(begun)
			return a, nil
		}
		again, locked := a.again()
		if !locked {
			l.refused(begun, a)
		}
		if !again || !isRead(method, path) {
			return a, nil
		}
		if last = a; locked {
			pause(queued, lockPause)
		}
	}
	return last, nil
}

// sendNow makes one request.
func (p *Provider) sendNow(ctx context.Context, t turn, method, path, body, key string) (*answer, error) {
	timeout := p.timeout
	switch {
	case !isRead(method, path):
		timeout = writeTimeout
	case t.within > 0:
		timeout = min(timeout, t.within)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	target := p.base + path
	var rd io.Reader
	if method == http.MethodGet {
		if body != "" {
			target += "?" + body
		}
	} else {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, rd)
	if err != nil {
		return nil, &sendError{err: err}
	}
	// net/http would send a request with an idempotency key again by itself
	// when a connection breaks. Sending again is the journal's decision. It
	// looks for a body that it can get again, and for the header by its
	// canonical name, which is all that counts where there is no body.
	req.GetBody = nil
	req.Header.Set("Authorization", "Bearer "+p.key)
	req.Header.Set("Stripe-Version", Version)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "caddy-billing-portal")
	if rd != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if key != "" {
		req.Header[strings.ToLower("Idempotency-Key")] = []string{key}
	}
	start := time.Now()
	res, err := p.api.Do(req)
	if err != nil {
		// url.Error repeats the URL; the path and the cause are enough.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		p.log.Debug("stripe call failed", zap.String("method", method), zap.String("path", path),
			zap.Bool("connected", connected.Load()), zap.Duration("took", time.Since(start)), zap.Error(err))
		return nil, &sendError{wrote: connected.Load(), err: fmt.Errorf("%s %s: %w", method, path, err)}
	}
	defer func() { _ = res.Body.Close() }()
	id := res.Header.Get("Request-Id")
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	p.log.Debug("stripe call", zap.String("method", method), zap.String("path", path), zap.Int("status", res.StatusCode),
		zap.String("request_id", id), zap.Duration("took", time.Since(start)), zap.Error(err))
	if err == nil && len(b) > maxBody {
		err = fmt.Errorf("answer is over %d bytes", maxBody)
	}
	if err != nil {
		return nil, &sendError{wrote: true, requestID: id, err: fmt.Errorf("%s %s: %w", method, path, err)}
	}
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		at = p.now().UTC().Truncate(time.Second)
	}
	return &answer{status: res.StatusCode, header: res.Header, body: b, requestID: id, at: at.UTC()}, nil
}

// decode reads the one JSON object that a 2xx answer must be.
func (a *answer) decode(out any) error {
	d := json.NewDecoder(bytes.NewReader(a.body))
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("answer is not the JSON expected: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("answer has something behind its JSON")
	}
	return nil
}

// get reads one object or list. Errors are NotFound or Unavailable.
func (p *Provider) get(ctx context.Context, out any, f form, parts ...string) (*answer, error) {
	u, ok := path(parts...)
	if !ok {
		return nil, notFound(parts[len(parts)-1])
	}
	a, err := p.send(ctx, http.MethodGet, u, f.encode(), "")
	if err != nil {
		return nil, readFault(nil, err)
	}
	if a.status/100 != 2 {
		return nil, readFault(a, nil)
	}
	if err := a.decode(out); err != nil {
		return nil, readFault(a, err)
	}
	return a, nil
}

func notFound(what string) error {
	return &billing.Error{Fault: billing.NotFound, Code: "resource_missing", Param: what}
}

// readFault maps what went wrong with a read.
func readFault(a *answer, err error) error {
	e := &billing.Error{Fault: billing.Unavailable, Code: "unreachable", Err: err}
	if a == nil {
		if se, ok := errors.AsType[*sendError](err); ok {
			e.RequestID = se.requestID
		}
		return e
	}
	e.RequestID = a.requestID
	if err != nil {
		e.Code = "bad_answer"
		return e
	}
	o, ok := a.errorObject()
	if !ok {
		e.Code, e.Err = "bad_answer", fmt.Errorf("status %d without an error object", a.status)
		return e
	}
	e.Param, e.Err = o.Param, fmt.Errorf("status %d: %s %s: %s", a.status, o.Type, o.Code, redact(o.Message))
	switch {
	// A list of a customer that is not there is a 400 with this code.
	case a.status == http.StatusNotFound, o.Code == "resource_missing":
		e.Fault, e.Code = billing.NotFound, "resource_missing"
	case a.status == http.StatusUnauthorized:
		e.Code = "authentication"
	case a.status == http.StatusForbidden:
		e.Code = "permission"
	case a.status == http.StatusTooManyRequests:
		e.Code = "rate_limit"
	case a.status/100 == 4:
		e.Code = "invalid_request"
	default:
		e.Code = "provider_error"
	}
	return e
}

// previewFault is readFault for a preview, where a 400 or 402 is Stripe's
// judgement about the change asked for.
func previewFault(a *answer, err error) error {
	f := readFault(a, err)
	if a == nil || err != nil {
		return f
	}
	var e *billing.Error
	if (a.status == http.StatusBadRequest || a.status == http.StatusPaymentRequired) && errors.As(f, &e) && e.Code == "invalid_request" {
		e.Fault = billing.Refused
		if o, _ := a.errorObject(); o.Code == "invoice_upcoming_none" {
			e.Code = o.Code
		}
	}
	return f
}

// executeFault maps what went wrong with a change. The rule of the house: it
// is Refused only where Stripe itself said no, Retryable only where the
// request surely did not start to run, and Unknown in every other case.
//
//	no connection was made                            Retryable
//	timeout, reset, truncated or oversized answer     Unknown
//	402                                               Refused, the card's code
//	400, 401, 403, 404 with an error object           Refused
//	429, 409 key in use, lock_timeout                 Retryable
//	type idempotency_error                            Unknown (our own fault: alarm)
//	5xx, 3xx, anything without an error object        Unknown
//
// Stripe-Should-Retry: true makes a 4xx Retryable, false makes a Retryable
// one Unknown. It does not soften a 5xx: Stripe sends true with answers after
// which a change may stand.
func executeFault(a *answer, err error) error {
	e := &billing.Error{Fault: billing.Unknown, Code: "unreachable", Err: err}
	if a == nil {
		if se, ok := errors.AsType[*sendError](err); ok {
			e.RequestID = se.requestID
			if !se.wrote {
				e.Fault = billing.Retryable
			}
		}
		return e
	}
	e.RequestID = a.requestID
	if err != nil {
		e.Code = "bad_answer"
		return e
	}
	o, ok := a.errorObject()
	if !ok {
		e.Code, e.Err = "bad_answer", fmt.Errorf("status %d without an error object", a.status)
		return e
	}
	e.Param, e.Err = o.Param, fmt.Errorf("status %d: %s %s %s: %s", a.status, o.Type, o.Code, o.DeclineCode, redact(o.Message))
	switch {
	case o.Code == "idempotency_key_in_use" || o.Code == "lock_timeout":
		e.Fault, e.Code = billing.Retryable, o.Code
	case o.Type == "idempotency_error":
		e.Code = "idempotency_error"
		return e
	case a.status == http.StatusTooManyRequests:
		e.Fault, e.Code = billing.Retryable, "rate_limit"
	case a.status == http.StatusPaymentRequired:
		e.Fault, e.Code = billing.Refused, billing.DeclineCode(o.Code, o.DeclineCode)
	case a.status == http.StatusBadRequest:
		e.Fault, e.Code = billing.Refused, "invalid_request"
		if o.Code == "tax_id_invalid" {
			e.Code = o.Code
		}
	case a.status == http.StatusUnauthorized:
		e.Fault, e.Code = billing.Refused, "authentication"
	case a.status == http.StatusForbidden:
		e.Fault, e.Code = billing.Refused, "permission"
	case a.status == http.StatusNotFound:
		e.Fault, e.Code = billing.Refused, "resource_missing"
	case a.status/100 == 4:
		e.Code = "provider_error" // 409 and the like without a code we know
	default:
		e.Code = "provider_error"
		return e
	}
	switch a.header.Get("Stripe-Should-Retry") {
	case "true":
		e.Fault = billing.Retryable
	case "false":
		if e.Fault == billing.Retryable {
			e.Fault = billing.Unknown
		}
	}
	return e
}

// redact keeps a message of Stripe's from carrying a key into a log: errors
// about keys repeat a part of them.
func redact(msg string) string {
	for _, p := range []string{"sk_", "rk_", "pk_", "whsec_"} {
		for {
			i := strings.Index(msg, p)
			if i < 0 {
				break
			}
			j := i
			for j < len(msg) && msg[j] != ' ' && msg[j] != '.' && msg[j] != '\'' && msg[j] != '"' {
				j++
			}
			msg = msg[:i] + "[key]" + msg[j:]
		}
	}
	return msg
}

// parallel runs fns side by side and returns the first error in their order.
func parallel(fns ...func() error) error {
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() { errs[i] = fn() })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
