package stripe

import (
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// api answers without a network, by "METHOD path", so that its time can be a
// bubble's.
type api struct {
	mu    sync.Mutex
	by    map[string]func(*http.Request) (int, string)
	calls map[string]int
}

func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	name := r.Method + " " + r.URL.Path
	a.mu.Lock()
	a.calls[name]++
	f := a.by[name]
	a.mu.Unlock()
	status, body := http.StatusOK, `{"object":"list","data":[]}`
	if f != nil {
		status, body = f(r)
	}
	if status == 0 {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"Date": {"Mon, 02 Mar 2026 10:00:00 GMT"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

func (a *api) open(t *testing.T, rate int) *Provider {
	a.calls = map[string]int{}
	p, err := New(Options{Key: "rk_test_0123456789", Transport: a, RequestsPerSecond: rate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func says(status int, body string) func(*http.Request) (int, string) {
	return func(*http.Request) (int, string) { return status, body }
}

// after answers late.
func after(d time.Duration, f func(*http.Request) (int, string)) func(*http.Request) (int, string) {
	return func(r *http.Request) (int, string) { time.Sleep(d); return f(r) }
}

const (
	acme    = `{"id":"cus_1","object":"customer","name":"Acme","invoice_settings":{"default_payment_method":{"id":"pm_old","object":"payment_method","type":"card","customer":"cus_1","card":{"brand":"visa","last4":"1111"}}}}`
	methods = "GET /v1/customers/cus_1/payment_methods"
	preview = "POST /v1/invoices/create_preview"
)

// subsPage is a page of subscriptions from n on, each to a product of its own.
func subsPage(from, n int, more bool) string {
	var data []string
	for i := from; i < from+n; i++ {
		data = append(data, fmt.Sprintf(`{"id":"sub_%d","object":"subscription","customer":"cus_1","status":"active","currency":"usd","created":%d,"collection_method":"charge_automatically",
			"items":{"object":"list","data":[{"id":"si_%d","quantity":1,"current_period_start":1700000000,"current_period_end":%d,
			"price":{"id":"price_%d","object":"price","active":true,"currency":"usd","unit_amount":1000,"metadata":{"a":"b"},"product":"prod_%d","recurring":{"interval":"month","interval_count":1}}}]}}`,
			i, 1700000000-i, i, 1800000000+i, i%120, i%120))
	}
	return fmt.Sprintf(`{"object":"list","has_more":%t,"data":[%s]}`, more, strings.Join(data, ","))
}

func listed(r *http.Request) (int, string) {
	var data []string
	for _, id := range r.URL.Query()["ids[]"] {
		data = append(data, fmt.Sprintf(`{"id":%q,"name":"Product of %s","metadata":{"c":"d"}}`, id, id))
	}
	return 200, `{"object":"list","data":[` + strings.Join(data, ",") + `]}`
}

func big() *api {
	return &api{by: map[string]func(*http.Request) (int, string){
		"GET /v1/customers/cus_1": says(200, acme),
		methods:                   says(200, `{"object":"list","has_more":true,"data":[{"id":"pm_new","object":"payment_method","type":"card","customer":"cus_1","card":{"brand":"visa","last4":"2222"}}]}`),
		"GET /v1/subscriptions": func(r *http.Request) (int, string) {
			if r.URL.Query().Get("starting_after") == "" {
				return 200, subsPage(0, 100, true)
			}
			return 200, subsPage(100, 100, false)
		},
		"GET /v1/products": listed,
		preview:            says(200, `{"object":"invoice","currency":"usd","total":1000}`),
	}}
}

// TestBigAccount holds that 200 subscriptions to 120 products take eleven
// calls, and no longer than the chain of their pages and one call behind it.
func TestBigAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := big()
		for name, f := range a.by {
			a.by[name] = after(100*time.Millisecond, f)
		}
		p := a.open(t, 25)
		begin := time.Now()
		acc, err := p.Account(t.Context(), "cus_1")
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 300*time.Millisecond {
			t.Errorf("took %s, the chain is 300 ms", took)
		}
		want := map[string]int{"GET /v1/customers/cus_1": 1, methods: 1, "GET /v1/subscriptions": 2, "GET /v1/invoices": 1, "GET /v1/products": 2, preview: 3}
		for name, n := range a.calls {
			if strings.Contains(name, "invoices") && name != preview {
				continue // how many lists of invoices there are is not this test's
			}
			if n != want[name] {
				t.Errorf("%d of %s, want %d", n, name, want[name])
			}
		}
		if len(acc.Subscriptions) != 200 || len(acc.Upcoming) != 3 || acc.Subscriptions[150].Items[0].Price.ProductName != "Product of prod_30" || acc.Failed != nil {
			t.Errorf("%d subscriptions, %d upcoming, %+v, failed %v", len(acc.Subscriptions), len(acc.Upcoming), acc.Subscriptions[150].Items[0].Price, acc.Failed)
		}
		// The default is behind the hundred that one list holds.
		if _, ok := acc.PaymentMethod("pm_old"); !ok || len(acc.PaymentMethods) != 2 {
			t.Errorf("payment methods %+v", acc.PaymentMethods)
		}
		same := func(i, j int) bool {
			x, y := acc.Subscriptions[i].Items[0].Price, acc.Subscriptions[j].Items[0].Price
			return x.ID == y.ID && reflect.ValueOf(x.Metadata).Pointer() == reflect.ValueOf(y.Metadata).Pointer()
		}
		if !same(5, 125) || acc.Subscriptions[5].Items[0].Price.Metadata["c"] != "d" {
			t.Error("one price's metadata is held twice")
		}
	})
}

// TestSectionFails holds that a section that hangs or fails is cut off soon and
// named, and that without the customer or the subscriptions there is no
// account, at once.
func TestSectionFails(t *testing.T) {
	hangs, down := says(0, ""), says(500, `{"error":{"type":"api_error"}}`)
	for _, tt := range []struct {
		call    string
		section billing.Section
	}{
		{methods, billing.SectionPaymentMethods},
		{"GET /v1/invoices", billing.SectionInvoices},
		{"GET /v1/invoices", billing.SectionDebts},
		{preview, billing.SectionUpcoming},
	} {
		for name, f := range map[string]func(*http.Request) (int, string){"hangs": hangs, "500": down, "garbage": says(200, `{"obj`)} {
			t.Run(string(tt.section)+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := big()
					a.by[tt.call] = f
					if tt.call == "GET /v1/invoices" {
						a.by[tt.call] = func(r *http.Request) (int, string) {
							if (r.URL.Query().Get("status") == "open") != (tt.section == billing.SectionDebts) {
								return 200, `{"object":"list","data":[]}`
							}
							return f(r)
						}
					}
					begin := time.Now()
					acc, err := a.open(t, 100).Account(t.Context(), "cus_1")
					if err != nil || !slices.Equal(acc.Failed, []billing.Section{tt.section}) {
						t.Fatalf("failed %v, error %v", acc.Failed, err)
					}
					if took := time.Since(begin); took > sectionTimeout {
						t.Errorf("took %s", took)
					}
					if len(acc.Subscriptions) != 200 || (len(acc.PaymentMethods) == 0) != (tt.section == billing.SectionPaymentMethods) ||
						(len(acc.Upcoming) == 0) != (tt.section == billing.SectionUpcoming) {
						t.Errorf("%d subscriptions, %d methods, %d upcoming", len(acc.Subscriptions), len(acc.PaymentMethods), len(acc.Upcoming))
					}
				})
			})
		}
	}
	for _, call := range []string{"GET /v1/customers/cus_1", "GET /v1/subscriptions", "GET /v1/products"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := big()
				a.by[call], a.by[methods] = down, hangs
				begin := time.Now()
				_, err := a.open(t, 100).Account(t.Context(), "cus_1")
				if billing.FaultOf(err) != billing.Unavailable || billing.CodeOf(err) != "provider_error" || time.Since(begin) != 0 {
					t.Errorf("error %v after %s", err, time.Since(begin))
				}
			})
		})
	}
}

// TestReadsWaitOut holds that a read that Stripe has no time for waits and is
// made again, within its deadline, and that a change is made once.
func TestReadsWaitOut(t *testing.T) {
	busy := func(n int, code string, f func(*http.Request) (int, string)) func(*http.Request) (int, string) {
		var mu sync.Mutex
		return func(r *http.Request) (int, string) {
			mu.Lock()
			defer mu.Unlock()
			if n--; n >= 0 {
				return 429, fmt.Sprintf(`{"error":{"type":"invalid_request_error","code":%q}}`, code)
			}
			return f(r)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		a := big()
		for name, f := range a.by {
			a.by[name] = busy(2, "rate_limit", f)
		}
		a.by[methods] = busy(1, "lock_timeout", says(200, `{"object":"list","data":[]}`))
		acc, err := a.open(t, 25).Account(t.Context(), "cus_1")
		if err != nil || len(acc.Failed) != 0 || len(acc.Subscriptions) != 200 {
			t.Errorf("failed %v, %d subscriptions, %v", acc.Failed, len(acc.Subscriptions), err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := &api{by: map[string]func(*http.Request) (int, string){"GET /v1/customers/cus_1": busy(1000, "rate_limit", nil)}}
		begin := time.Now()
		_, err := a.open(t, 25).Find(t.Context(), "cus_1")
		if billing.CodeOf(err) != "rate_limit" || time.Since(begin) > 31*time.Second || a.calls["GET /v1/customers/cus_1"] < 3 {
			t.Errorf("%v after %s and %v", err, time.Since(begin), a.calls)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := big()
		a.by["GET /v1/subscriptions/sub_1"] = says(200, strings.TrimSuffix(strings.TrimPrefix(subsPage(1, 1, false), `{"object":"list","has_more":false,"data":[`), "]}"))
		a.by["POST /v1/subscriptions/sub_1"] = busy(1, "rate_limit", nil)
		step := billing.Step{Kind: stepCancel, Object: "sub_1", Params: []byte(`{"form":"cancel_at_period_end=true"}`)}
		_, err := a.open(t, 25).Execute(t.Context(), "cus_1", step, "key")
		if billing.FaultOf(err) != billing.Retryable || a.calls["POST /v1/subscriptions/sub_1"] != 1 {
			t.Errorf("%v after %v", err, a.calls)
		}
	})
}

// TestProductsOnce holds that customers who read the same products at once
// share one list and for a while know it.
func TestProductsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{by: map[string]func(*http.Request) (int, string){"GET /v1/products": after(time.Second, listed)}}
		p := a.open(t, 1000)
		subs := []subscription{{Items: list[subscriptionItem]{Data: []subscriptionItem{{Price: price{Product: expandable[product]{ID: "prod_1"}}}}}}}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				by, err := p.products(t.Context(), subs)
				if err != nil || by["prod_1"].Name != "Product of prod_1" {
					t.Errorf("got %v, %v", by, err)
				}
			})
		}
		wg.Wait()
		if _, err := p.products(t.Context(), subs); err != nil || a.calls["GET /v1/products"] != 1 {
			t.Errorf("%v, %v", a.calls, err)
		}
		time.Sleep(productsAge)
		if _, err := p.products(t.Context(), subs); err != nil || a.calls["GET /v1/products"] != 2 {
			t.Errorf("later: %v, %v", a.calls, err)
		}
	})
}
