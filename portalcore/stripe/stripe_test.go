package stripe_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "sk_test_veryverysecretvalue"

// fake is an API of canned answers by "METHOD path".
type fake struct {
	mu   sync.Mutex
	by   map[string]http.HandlerFunc
	seen []*http.Request
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	f.mu.Lock()
	f.seen = append(f.seen, r)
	h := f.by[r.Method+" "+r.URL.Path]
	f.mu.Unlock()
	if h == nil {
		http.Error(w, `{"error":{"type":"invalid_request_error","code":"resource_missing"}}`, http.StatusNotFound)
		return
	}
	h(w, r)
}

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Request-Id", "req_1")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// open returns a provider over f, and what it logs.
func open(t *testing.T, f http.Handler, o stripe.Options) (*stripe.Provider, *observer.ObservedLogs) {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	core, logs := observer.New(zap.DebugLevel)
	o.BaseURL, o.Logger = srv.URL, zap.New(core)
	if o.Key == "" {
		o.Key = testKey
	}
	p, err := stripe.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p, logs
}

const (
	customerJSON = `{"id":"cus_1","object":"customer","name":"Acme","email":"a@example.com"}`
	paidSub      = `{"id":"sub_1","object":"subscription","customer":"cus_1","status":"active","currency":"usd","collection_method":"charge_automatically",
		"items":{"object":"list","data":[{"id":"si_1","quantity":1,"current_period_start":1700000000,"current_period_end":1702592000,
		"price":{"id":"price_1","object":"price","active":true,"currency":"usd","unit_amount":1000,"unit_amount_decimal":"1000","product":"prod_1","recurring":{"interval":"month","interval_count":1}}}]}}`
)

// cancelStep is a step whose object a fake can serve.
func cancelStep() billing.Step {
	return billing.Step{Kind: "subscription.cancel", Object: "sub_1", Params: []byte(`{"form":"cancel_at_period_end=true"}`)}
}

func TestExecuteFaults(t *testing.T) {
	e := func(typ, code string) string {
		return fmt.Sprintf(`{"error":{"type":%q,"code":%q,"message":"Invalid API Key provided: sk_test_veryverysecretvalue."}}`, typ, code)
	}
	hijack := func(raw string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, raw)
			_ = c.Close()
		}
	}
	retry := func(v string, h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Stripe-Should-Retry", v); h(w, r) }
	}
	const card = `{"error":{"type":"card_error","code":%q,"decline_code":%q}}`
	for _, c := range []struct {
		name  string
		h     http.HandlerFunc
		fault billing.Fault
		code  string
	}{
		{"402 declined", says(402, fmt.Sprintf(card, "card_declined", "generic_decline")), billing.Refused, "card_declined"},
		{"402 stolen is a plain decline", says(402, fmt.Sprintf(card, "card_declined", "stolen_card")), billing.Refused, "card_declined"},
		{"402 funds", says(402, fmt.Sprintf(card, "card_declined", "insufficient_funds")), billing.Refused, "insufficient_funds"},
		{"402 expired", says(402, fmt.Sprintf(card, "expired_card", "")), billing.Refused, "expired_card"},
		{"400", says(400, e("invalid_request_error", "")), billing.Refused, "invalid_request"},
		{"401", says(401, e("invalid_request_error", "")), billing.Refused, "authentication"},
		{"403", says(403, e("invalid_request_error", "")), billing.Refused, "permission"},
		{"404", says(404, e("invalid_request_error", "resource_missing")), billing.Refused, "resource_missing"},
		{"429", says(429, e("invalid_request_error", "rate_limit")), billing.Retryable, "rate_limit"},
		{"429 lock", says(429, e("invalid_request_error", "lock_timeout")), billing.Retryable, "lock_timeout"},
		{"409 in use", says(409, e("idempotency_error", "idempotency_key_in_use")), billing.Retryable, "idempotency_key_in_use"},
		{"400 other parameters", says(400, e("idempotency_error", "")), billing.Unknown, "idempotency_error"},
		{"409 other parameters", says(409, e("idempotency_error", "")), billing.Unknown, "idempotency_error"},
		{"409 without a code", says(409, e("invalid_request_error", "")), billing.Unknown, "provider_error"},
		{"409 said to be retried", retry("true", says(409, e("invalid_request_error", ""))), billing.Retryable, "provider_error"},
		{"429 said not to be retried", retry("false", says(429, e("invalid_request_error", ""))), billing.Unknown, "rate_limit"},
		{"500", says(500, e("api_error", "")), billing.Unknown, "provider_error"},
		{"500 said to be retried", retry("true", says(500, e("api_error", ""))), billing.Unknown, "provider_error"},
		{"502 of a proxy", says(502, "<html>Bad Gateway</html>"), billing.Unknown, "bad_answer"},
		{"403 of a proxy", says(403, "<html>Forbidden</html>"), billing.Unknown, "bad_answer"},
		{"200 of a proxy", says(200, "<html>Welcome</html>"), billing.Unknown, "bad_answer"},
		{"200 empty", says(200, ""), billing.Unknown, "bad_answer"},
		{"200 with a tail", says(200, strings.Replace(paidSub, `"currency"`, `"cancel_at_period_end":true,"currency"`, 1)+"{}"), billing.Unknown, "bad_answer"},
		{"200 of another customer", says(200, strings.Replace(paidSub, "cus_1", "cus_2", 1)), billing.Unknown, "bad_answer"},
		{"200 of another object", says(200, customerJSON), billing.Unknown, "bad_answer"},
		{"200 without the change", says(200, paidSub), billing.Unknown, "bad_answer"},
		{"302", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusFound)
		}, billing.Unknown, "bad_answer"},
		{"reset", hijack(""), billing.Unknown, "unreachable"},
		{"truncated", hijack("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{\"id\":"), billing.Unknown, "unreachable"},
		{"truncated chunks", hijack("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\":"), billing.Unknown, "unreachable"},
		{"oversized", says(200, `{"x":"`+strings.Repeat("x", 9<<20)+`"}`), billing.Unknown, "unreachable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fake{by: map[string]http.HandlerFunc{"GET /v1/subscriptions/sub_1": says(200, paidSub), "POST /v1/subscriptions/sub_1": c.h}}
			p, logs := open(t, f, stripe.Options{})
			_, err := p.Execute(t.Context(), "cus_1", cancelStep(), "intent.0")
			if billing.FaultOf(err) != c.fault || billing.CodeOf(err) != c.code {
				t.Errorf("error %v, want %s %s", err, c.fault, c.code)
			}
			posts := 0
			for _, r := range f.seen {
				if r.Method == http.MethodPost {
					posts++
					if r.Header.Get("Idempotency-Key") != "intent.0" || r.Header.Get("Authorization") != "Bearer "+testKey {
						t.Errorf("headers %v", r.Header)
					}
				}
			}
			if posts != 1 {
				t.Errorf("sent %d times; retrying is the journal's business", posts)
			}
			secretFree(t, logs, err)
		})
	}
}

func secretFree(t *testing.T, logs *observer.ObservedLogs, err error) {
	t.Helper()
	all := fmt.Sprint(err)
	for _, l := range logs.All() {
		all += fmt.Sprint(l.Message, l.ContextMap())
	}
	if strings.Contains(all, "veryverysecret") {
		t.Errorf("the key is in the log or the error: %s", all)
	}
	if logs.Len() == 0 {
		t.Error("nothing was logged, so the check says nothing")
	}
}

// A request that did not leave is Retryable, whatever was asked.
func TestExecuteNothingLeft(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close() // refuses from now on
	p, err := stripe.New(stripe.Options{Key: testKey, BaseURL: "http://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Execute(t.Context(), "cus_1", cancelStep(), "intent.0")
	if billing.FaultOf(err) != billing.Retryable {
		t.Errorf("refused connection: %v", err)
	}

	// The read goes through and the change's own connection is refused.
	f := &fake{by: map[string]http.HandlerFunc{"GET /v1/subscriptions/sub_1": says(200, paidSub)}}
	srv := httptest.NewServer(f)
	defer srv.Close()
	var broken atomic.Bool
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, a string) (net.Conn, error) {
		if broken.Swap(true) {
			return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
		}
		return new(net.Dialer).DialContext(ctx, network, a)
	}}
	p, err = stripe.New(stripe.Options{Key: testKey, BaseURL: srv.URL, Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Execute(t.Context(), "cus_1", cancelStep(), "intent.0")
	if billing.FaultOf(err) != billing.Retryable || len(f.seen) != 1 {
		t.Errorf("%d requests, %v", len(f.seen), err)
	}
}

// A caller that gives up after the request left does not know.
func TestExecuteGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/subscriptions/sub_1":  says(200, paidSub),
		"POST /v1/subscriptions/sub_1": func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() },
	}}
	p, _ := open(t, f, stripe.Options{})
	if _, err := p.Execute(ctx, "cus_1", cancelStep(), "intent.0"); billing.FaultOf(err) != billing.Unknown {
		t.Errorf("given up: %v", err)
	}
}

// The object is read before anything is sent: another customer's, or one that
// cannot be an id, is never posted to.
func TestExecuteOwnership(t *testing.T) {
	f := &fake{by: map[string]http.HandlerFunc{"GET /v1/subscriptions/sub_1": says(200, paidSub)}}
	p, _ := open(t, f, stripe.Options{})
	for _, st := range []billing.Step{
		cancelStep(),
		{Kind: "subscription.cancel", Object: "../customers/cus_2", Params: []byte(`{}`)},
		{Kind: "invoice.void", Object: "in_1/../../x", Params: []byte(`{}`)},
		{Kind: "customer.update", Object: "cus_1", Params: []byte(`{"form":"name=x"}`)},
	} {
		if _, err := p.Execute(t.Context(), "cus_2", st, "k"); billing.FaultOf(err) != billing.NotFound {
			t.Errorf("%s %s: %v", st.Kind, st.Object, err)
		}
	}
	for _, r := range f.seen {
		if r.Method != http.MethodGet || strings.Contains(r.URL.Path, "..") {
			t.Errorf("sent %s %s", r.Method, r.URL.Path)
		}
	}
}

func TestReadFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		h     http.HandlerFunc
		fault billing.Fault
		code  string
	}{
		{"missing", says(404, `{"error":{"type":"invalid_request_error","code":"resource_missing"}}`), billing.NotFound, "resource_missing"},
		{"deleted", says(200, `{"id":"cus_1","object":"customer","deleted":true}`), billing.NotFound, "resource_missing"},
		{"another one", says(200, strings.Replace(customerJSON, "cus_1", "cus_2", 1)), billing.NotFound, "resource_missing"},
		{"bad key", says(401, `{"error":{"type":"invalid_request_error","message":"Invalid API Key provided: sk_test_veryverysecretvalue"}}`), billing.Unavailable, "authentication"},
		{"no permission", says(403, `{"error":{"type":"invalid_request_error"}}`), billing.Unavailable, "permission"},
		{"too many", says(429, `{"error":{"type":"invalid_request_error"}}`), billing.Unavailable, "rate_limit"},
		{"500", says(500, `{"error":{"type":"api_error"}}`), billing.Unavailable, "provider_error"},
		{"404 of a proxy", says(404, "not here"), billing.Unavailable, "bad_answer"},
		{"garbage", says(200, `{"id":`), billing.Unavailable, "bad_answer"},
		{"slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, billing.Unavailable, "unreachable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, logs := open(t, &fake{by: map[string]http.HandlerFunc{"GET /v1/customers/cus_1": c.h}}, stripe.Options{Timeout: 100 * time.Millisecond})
			_, err := p.Find(t.Context(), "cus_1")
			if billing.FaultOf(err) != c.fault || billing.CodeOf(err) != c.code {
				t.Errorf("error %v, want %s %s", err, c.fault, c.code)
			}
			secretFree(t, logs, err)
		})
	}
}

func TestDocument(t *testing.T) {
	pdf := "%PDF-1.7 hello"
	var files *httptest.Server
	hops := 0
	files = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range []string{"Authorization", "Referer", "Cookie", "Stripe-Version"} {
			if r.Header.Get(h) != "" {
				t.Errorf("the files' host was sent %s: %s", h, r.Header.Get(h))
			}
		}
		switch {
		case strings.HasPrefix(r.URL.Path, "/hop"):
			hops++
			if r.URL.Path == "/hop"+fmt.Sprint(hops) && r.URL.Query().Get("n") == fmt.Sprint(hops) {
				w.Header().Set("Content-Type", "application/pdf")
				_, _ = io.WriteString(w, pdf)
				return
			}
			http.Redirect(w, r, fmt.Sprintf("/hop%d?n=%s", hops+1, r.URL.Query().Get("n")), http.StatusFound)
		case r.URL.Path == "/away":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		case r.URL.Path == "/html":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, pdf)
		case r.URL.Path == "/script", r.URL.Path == "/short":
			w.Header().Set("Content-Type", "application/pdf")
			_, _ = io.WriteString(w, map[string]string{"/script": "<script>alert(1)</script>", "/short": "%PD"}[r.URL.Path])
		case r.URL.Path == "/gone":
			w.Header().Set("Content-Type", "application/pdf")
			w.WriteHeader(http.StatusGone)
		case r.URL.Path == "/big", r.URL.Path == "/endless":
			w.Header().Set("Content-Type", "application/pdf")
			if r.URL.Path == "/big" {
				w.Header().Set("Content-Length", fmt.Sprint(21<<20))
			}
			b := make([]byte, 1<<20)
			copy(b, pdf)
			for range 21 {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}
	}))
	defer files.Close()
	invoice := func(customer, status, url string) http.HandlerFunc {
		return says(200, fmt.Sprintf(`{"id":"in_1","object":"invoice","customer":%q,"status":%q,"invoice_pdf":%q}`, customer, status, url))
	}
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		want billing.Fault // "": it opens
		body string
	}{
		{"three redirects", invoice("cus_1", "paid", files.URL+"/hop1?n=4"), "", pdf},
		{"four redirects", invoice("cus_1", "paid", files.URL+"/hop1?n=5"), billing.Unavailable, ""},
		{"no redirect", invoice("cus_1", "paid", files.URL+"/hop1?n=1"), "", pdf},
		{"redirect away", invoice("cus_1", "paid", files.URL+"/away"), billing.Unavailable, ""},
		{"metadata service", invoice("cus_1", "paid", "http://169.254.169.254/"), billing.Unavailable, ""},
		{"foreign host", invoice("cus_1", "paid", "https://evil.example.com/x.pdf"), billing.Unavailable, ""},
		{"a host that ends alike", invoice("cus_1", "paid", "https://evilpay.stripe.com/x.pdf"), billing.Unavailable, ""},
		{"http on an allowed host", invoice("cus_1", "paid", "http://pay.stripe.com/x.pdf"), billing.Unavailable, ""},
		{"another port of an allowed host", invoice("cus_1", "paid", "https://pay.stripe.com:8443/x.pdf"), billing.Unavailable, ""},
		{"user name", invoice("cus_1", "paid", "https://a:b@pay.stripe.com/x.pdf"), billing.Unavailable, ""},
		{"file scheme", invoice("cus_1", "paid", "file:///etc/passwd"), billing.Unavailable, ""},
		{"not a PDF", invoice("cus_1", "paid", files.URL+"/html"), billing.Unavailable, ""},
		{"gone", invoice("cus_1", "paid", files.URL+"/gone"), billing.Unavailable, ""},
		{"big", invoice("cus_1", "paid", files.URL+"/big"), billing.Unavailable, ""},
		{"of another customer", invoice("cus_2", "paid", files.URL+"/hop1?n=1"), billing.NotFound, ""},
		{"draft", invoice("cus_1", "draft", files.URL+"/hop1?n=1"), billing.NotFound, ""},
		{"not made yet", invoice("cus_1", "open", ""), billing.Unavailable, ""},
		{"a page that says it is a PDF", invoice("cus_1", "paid", files.URL+"/script"), billing.Unavailable, ""},
		{"three bytes", invoice("cus_1", "paid", files.URL+"/short"), billing.Unavailable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			hops = 0
			p, logs := open(t, &fake{by: map[string]http.HandlerFunc{"GET /v1/invoices/in_1": c.h}}, stripe.Options{})
			d, err := p.Document(t.Context(), "cus_1", billing.DocumentRef{Invoice: "in_1"})
			if billing.FaultOf(err) != c.want {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			secretFree(t, logs, err)
			if ready := c.name != "not made yet"; err != nil && ready == (billing.CodeOf(err) == "not_ready") {
				t.Errorf("code %q", billing.CodeOf(err))
			}
			if err != nil {
				return
			}
			b, err := io.ReadAll(d.Body)
			if err = errors.Join(err, d.Body.Close()); err != nil || string(b) != c.body {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	t.Run("endless", func(t *testing.T) {
		p, _ := open(t, &fake{by: map[string]http.HandlerFunc{"GET /v1/invoices/in_1": invoice("cus_1", "paid", files.URL+"/endless")}}, stripe.Options{})
		d, err := p.Document(t.Context(), "cus_1", billing.DocumentRef{Invoice: "in_1"})
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, d.Body)
		if err == nil || n > 20<<20 {
			t.Errorf("%d bytes, %v", n, err)
		}
		_ = d.Body.Close()
	})
}

// The overview takes two dependent calls and no more: with a delay on every
// request it comes in under 1.2 times twice the delay.
func TestAccountChain(t *testing.T) {
	const delay = 300 * time.Millisecond
	slow := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(delay)
			w.Header().Set("Date", "Mon, 02 Mar 2026 10:00:00 GMT")
			_, _ = io.WriteString(w, body)
		}
	}
	many := `{"object":"list","has_more":false,"data":[`
	for i := range 6 {
		if i > 0 {
			many += ","
		}
		many += strings.ReplaceAll(strings.Replace(paidSub, `"sub_1"`, fmt.Sprintf(`"sub_%d"`, i), 1), "si_1", fmt.Sprintf("si_%d", i))
	}
	many += "]}"
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/customers/cus_1":                 slow(customerJSON),
		"GET /v1/customers/cus_1/payment_methods": slow(`{"object":"list","data":[]}`),
		"GET /v1/subscriptions":                   slow(many),
		"GET /v1/invoices":                        slow(`{"object":"list","data":[]}`),
		"GET /v1/products":                        slow(`{"object":"list","data":[{"id":"prod_1","name":"Team"}]}`),
		"POST /v1/invoices/create_preview":        slow(`{"object":"invoice","currency":"usd","total":1000}`),
	}}
	p, _ := open(t, f, stripe.Options{})
	var a billing.Account
	took := time.Hour
	for round := range 3 { // the machine may be busy once, the chain is always the same
		f.seen = nil
		start := time.Now()
		var err error
		if a, err = p.Account(t.Context(), "cus_1"); err != nil {
			t.Fatal(err)
		}
		took = min(took, time.Since(start))
		// The product's name is known for a while.
		if want := map[bool]int{true: 9, false: 8}[round == 0]; len(f.seen) != want {
			t.Errorf("%d requests, want %d", len(f.seen), want)
		}
	}
	if limit := delay * 24 / 10; took > limit {
		t.Errorf("took %s, the limit is %s", took, limit)
	}
	if len(a.Subscriptions) != 6 || len(a.Upcoming) != 3 || a.Subscriptions[0].Items[0].Price.ProductName != "Team" {
		t.Errorf("%d subscriptions, %d upcoming, %+v", len(a.Subscriptions), len(a.Upcoming), a.Subscriptions[0].Items[0].Price)
	}
	if want := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC); !a.AsOf.Equal(want) {
		t.Errorf("as of %s, the Date header says %s", a.AsOf, want)
	}
}

func TestAsOfTestClock(t *testing.T) {
	empty := says(200, `{"object":"list","data":[]}`)
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/customers/cus_1": says(200, `{"id":"cus_1","object":"customer","test_clock":{"id":"clock_1","frozen_time":1800000000}}`),
		"GET /v1/subscriptions":   empty, "GET /v1/invoices": empty, "GET /v1/customers/cus_1/payment_methods": empty,
	}}
	p, _ := open(t, f, stripe.Options{})
	a, err := p.Account(t.Context(), "cus_1")
	if err != nil || a.AsOf.Unix() != 1800000000 {
		t.Errorf("as of %s, %v", a.AsOf, err)
	}
	live, _ := open(t, f, stripe.Options{Key: "rk_live_veryverysecretvalue"})
	if _, err := live.Find(t.Context(), "cus_1"); err != nil || !live.Capabilities().LiveMode || p.Capabilities().LiveMode {
		t.Errorf("live mode %v, %v, %v", live.Capabilities().LiveMode, p.Capabilities().LiveMode, err)
	}
	last := f.seen[len(f.seen)-1]
	if strings.Contains(last.URL.RawQuery, "test_clock") {
		t.Error("test clocks were asked for in live mode")
	}
}

func TestPricesAreExactAndSellable(t *testing.T) {
	price := func(id, extra string) string {
		return fmt.Sprintf(`{"id":%q,"object":"price","active":true,"currency":"usd","type":"recurring","billing_scheme":"per_unit",
			"recurring":{"interval":"month","interval_count":1,"usage_type":"licensed"},"product":{"id":"prod_1","name":"P","active":true,"metadata":{"a":"product","b":"product"}},"metadata":{"a":"price"}%s}`, id, extra)
	}
	list := func(more bool, ps ...string) string {
		return fmt.Sprintf(`{"object":"list","has_more":%v,"data":[%s]}`, more, strings.Join(ps, ","))
	}
	f := &fake{by: map[string]http.HandlerFunc{"GET /v1/prices": func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("starting_after") == "" {
			_, _ = io.WriteString(w, list(true,
				price("price_exact", `,"unit_amount":null,"unit_amount_decimal":"0.123456789012"`),
				price("price_tiers", `,"billing_scheme":"tiered","unit_amount":null`),
				price("price_packs", `,"unit_amount":5,"transform_quantity":{"divide_by":10,"round":"up"}`),
				price("price_meter", `,"unit_amount":5,"recurring":{"interval":"month","interval_count":1,"usage_type":"metered"}`),
				price("price_gone", `,"unit_amount":5,"product":{"id":"prod_2","deleted":true}`)))
			return
		}
		if r.URL.Query().Get("starting_after") != "price_gone" {
			t.Errorf("the next page begins behind %q", r.URL.Query().Get("starting_after"))
		}
		_, _ = io.WriteString(w, list(false, price("price_last", `,"unit_amount":900,"unit_amount_decimal":"900"`)))
	}}}
	p, _ := open(t, f, stripe.Options{})
	ps, err := p.Prices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(ps) != 2 || ps[0].UnitAmount.String() != "0.123456789012" || ps[1].UnitAmount.String() != "900" {
		t.Errorf("prices %+v", ps)
	}
	if ps[0].Metadata["a"] != "price" || ps[0].Metadata["b"] != "product" {
		t.Errorf("metadata %v", ps[0].Metadata)
	}
}

// What would not go through, or would go wrong, is refused before it is sent.
func TestPreviewRefuses(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		code           string
	}{
		{"schedule", `"status":"active"`, `"status":"active","schedule":"sub_sched_1"`, "not_changeable"},
		{"paused", `"status":"active"`, `"status":"paused"`, "not_changeable"},
		{"incomplete", `"status":"active"`, `"status":"incomplete"`, "not_changeable"},
		{"more items than one page", `"items":{`, `"items":{"has_more":true,`, "not_changeable"},
		{"nothing changes", `"quantity":1`, `"quantity":3`, "invalid_request"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sub := strings.Replace(paidSub, c.from, c.to, 1)
			if sub == paidSub {
				t.Fatal("the case changes nothing")
			}
			f := &fake{by: map[string]http.HandlerFunc{"GET /v1/subscriptions/sub_1": says(200, sub)}}
			p, _ := open(t, f, stripe.Options{})
			_, err := p.Preview(t.Context(), "cus_1", billing.Action{Kind: billing.ChangePlan, Subscription: "sub_1", Items: []billing.ItemChange{{Item: "si_1", Price: "price_1", Quantity: 3}}}, time.Time{})
			if billing.FaultOf(err) != billing.Refused || billing.CodeOf(err) != c.code || len(f.seen) != 1 {
				t.Errorf("%d requests, %v", len(f.seen), err)
			}
		})
	}
}

func debited(status string) string {
	return `{"id":"in_2","object":"invoice","customer":"cus_1","status":"open","payments":{"data":[{"status":"open","payment":{"payment_intent":{"id":"pi_2","status":"` + status + `"}}}]}}`
}

// Bank debits cannot hold a change back: the step must not ask for it, and
// says that the bank's answer is still to come.
func TestBankDebit(t *testing.T) {
	sub := strings.Replace(paidSub, `"status":"active"`, `"status":"active","default_payment_method":{"id":"pm_1","object":"payment_method","type":"sepa_debit"}`, 1)
	changed := strings.Replace(strings.Replace(sub, `"quantity":1`, `"quantity":3`, 1), `"status":"active"`, `"status":"active","latest_invoice":{"id":"in_2","object":"invoice","status":"open","total":5}`, 1)
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/subscriptions/sub_1":      says(200, sub),
		"POST /v1/invoices/create_preview": says(200, `{"object":"invoice","currency":"usd","total":5,"amount_due":5}`),
		"POST /v1/subscriptions/sub_1":     says(200, changed),
		"GET /v1/invoices/in_2":            says(200, debited("processing")),
	}}
	p, _ := open(t, f, stripe.Options{})
	pv, err := p.Preview(t.Context(), "cus_1", billing.Action{Kind: billing.ChangePlan, Subscription: "sub_1", Items: []billing.ItemChange{{Item: "si_1", Price: "price_1", Quantity: 3}}}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Execute(t.Context(), "cus_1", pv.Steps[0], "intent.0")
	if err != nil || r.State != billing.Processing {
		t.Errorf("%+v, %v", r, err)
	}
	// Sent back by the bank, the invoice is a debt and the change stands.
	f.by["GET /v1/invoices/in_2"], f.by["GET /v1/subscriptions/sub_1"] = says(200, debited("requires_payment_method")), says(200, changed)
	if o, r, err := p.Outcome(t.Context(), "cus_1", pv.Steps[0], "intent.0", &r); err != nil || o != billing.Applied || r.State != billing.Done || r.Invoice.Status != billing.InvoiceOpen {
		t.Errorf("%s %+v, %v", o, r, err)
	}
	form := f.seen[slices.IndexFunc(f.seen, func(r *http.Request) bool {
		return r.URL.Path == "/v1/subscriptions/sub_1" && r.Method == http.MethodPost
	})].PostForm
	if form.Has("payment_behavior") || form.Get("proration_behavior") != "always_invoice" || form.Get("metadata[portal_step]") != "intent.0" ||
		form.Get("items[0][id]") != "si_1" || form.Get("items[0][quantity]") != "3" || form.Get("proration_date") == "" {
		t.Errorf("sent %v", form)
	}
}

func TestExponent(t *testing.T) {
	for c, want := range map[string]int{
		"usd": 2, "EUR": 2, "jpy": 0, "KRW": 0, "mga": 0, "isk": 2, "ugx": 2, "huf": 2, "twd": 2, "kwd": 3, "bhd": 3, "tnd": 3, "jod": 3, "omr": 3,
		"bif": 0, "clp": 0, "djf": 0, "gnf": 0, "kmf": 0, "pyg": 0, "rwf": 0, "vnd": 0, "vuv": 0, "xaf": 0, "xof": 0, "xpf": 0,
	} {
		if got := stripe.Exponent(c); got != want {
			t.Errorf("%s: %d, want %d", c, got, want)
		}
	}
}

func TestNew(t *testing.T) {
	for name, o := range map[string]stripe.Options{
		"no key":           {},
		"publishable key":  {Key: "pk_test_1234567890"},
		"webhook secret":   {Key: "whsec_1234567890"},
		"placeholder":      {Key: "{env.STRIPE_KEY}"},
		"key with newline": {Key: "sk_test_123\n456"},
		"only a prefix":    {Key: "sk_live_"},
		"plain http":       {Key: testKey, BaseURL: "http://api.stripe.com"},
		"path":             {Key: testKey, BaseURL: "https://api.stripe.com/v1"},
		"user":             {Key: testKey, BaseURL: "https://u:p@api.stripe.com"},
		"timeout":          {Key: testKey, Timeout: 81 * time.Second},
	} {
		if _, err := stripe.New(o); err == nil {
			t.Errorf("%s is taken", name)
		} else if tail := strings.TrimPrefix(o.Key, "sk_live_"); tail != "" && strings.Contains(err.Error(), tail) {
			t.Errorf("%s: the error repeats the key: %v", name, err)
		}
	}
	for _, o := range []stripe.Options{{Key: testKey}, {Key: "rk_live_abc"}, {Key: testKey, BaseURL: "http://localhost:1"}, {Key: testKey, BaseURL: "https://stripe.example.com/"}} {
		if _, err := stripe.New(o); err != nil {
			t.Error(err)
		}
	}
}
