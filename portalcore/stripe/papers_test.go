package stripe_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
)

// roundTrip is a transport without a network, so that time can be the test's.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// dripping is a body that gives size bytes, per at a time, every pause.
type dripping struct {
	ctx   context.Context
	size  int
	per   int
	pause time.Duration
	given int
}

func (d *dripping) Read(b []byte) (int, error) {
	if d.given == d.size {
		return 0, io.EOF
	}
	if d.given > 0 {
		select {
		case <-time.After(d.pause):
		case <-d.ctx.Done():
			return 0, d.ctx.Err()
		}
	}
	n := copy(b[:min(len(b), d.per, d.size-d.given)], "%PDF-1.7"[min(d.given, 8):])
	for i := n; i < min(len(b), d.per, d.size-d.given); i++ {
		b[i] = ' '
		n++
	}
	d.given += n
	return n, nil
}

func (d *dripping) Close() error { return nil }

// TestDocumentDrips: a file that comes a few bytes at a time is cut off soon; a
// slow one that gets on, and a slow reader, are not.
func TestDocumentDrips(t *testing.T) {
	for _, c := range []struct {
		name      string
		size, per int
		pause     time.Duration
		rest      time.Duration // that the reader takes between its reads
		ok        bool
		within    time.Duration
	}{
		{name: "a byte a second", size: 10_000, per: 8, pause: time.Second, within: 15 * time.Second},
		{name: "stops", size: 10_000, per: 5_000, pause: time.Hour, within: 15 * time.Second},
		{name: "slow and steady", size: 1_000_000, per: 20_000, pause: 200 * time.Millisecond, ok: true, within: time.Minute},
		{name: "a slow reader", size: 300, per: 10, rest: 2 * time.Second, ok: true, within: 90 * time.Second},
		{name: "too long for all patience", size: 20 << 20, per: 20_000, pause: 200 * time.Millisecond, within: 130 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				p, err := stripe.New(stripe.Options{Key: testKey, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					if r.URL.Host == "api.stripe.com" {
						return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(
							`{"id":"in_1","object":"invoice","customer":"cus_1","status":"paid","invoice_pdf":"https://pay.stripe.com/x"}`))}, nil
					}
					return &http.Response{
						StatusCode: 200, ContentLength: -1, Header: http.Header{"Content-Type": {"application/pdf"}},
						Body: &dripping{ctx: r.Context(), size: c.size, per: c.per, pause: c.pause},
					}, nil
				})})
				if err != nil {
					t.Fatal(err)
				}
				d, err := p.Document(t.Context(), "cus_1", billing.DocumentRef{Invoice: "in_1"})
				if err != nil {
					t.Fatal(err)
				}
				b, n := make([]byte, 4<<10), 0
				for err == nil {
					var k int
					k, err = d.Body.Read(b)
					n += k
					time.Sleep(c.rest)
				}
				if errors.Is(err, io.EOF) != c.ok || c.ok && n != c.size || time.Since(start) > c.within {
					t.Errorf("%d bytes of %d, %v after %s", n, c.size, err, time.Since(start))
				}
				_ = d.Body.Close()
			})
		})
	}
}

// TestDocumentHeaderHangs: a host that takes the request and never answers.
func TestDocumentHeaderHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p, err := stripe.New(stripe.Options{Key: testKey, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "api.stripe.com" {
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(
					`{"id":"in_1","object":"invoice","customer":"cus_1","status":"paid","invoice_pdf":"https://pay.stripe.com/x"}`))}, nil
			}
			<-r.Context().Done()
			return nil, r.Context().Err()
		})})
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Document(t.Context(), "cus_1", billing.DocumentRef{Invoice: "in_1"})
		if billing.FaultOf(err) != billing.Unavailable || time.Since(start) > 31*time.Second {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}

// An invoice's lines are read page by page up to a bound, and what is left out
// is told; the stages are two, however many lines there are.
func TestInvoiceLinesAreBounded(t *testing.T) {
	for have, want := range map[int]int{0: 0, 100: 100, 250: 250, 501: 500} {
		var calls atomic.Int32
		f := &fake{by: map[string]http.HandlerFunc{
			"GET /v1/invoices/in_1":    says(200, `{"id":"in_1","object":"invoice","customer":"cus_1","status":"paid","currency":"usd"}`),
			"GET /v1/credit_notes":     says(200, `{"object":"list","data":[{"id":"cn_1","object":"credit_note","customer":"cus_2","invoice":"in_1"}]}`),
			"GET /v1/invoice_payments": says(200, `{"object":"list","data":[]}`),
			"GET /v1/invoices/in_1/lines": func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				var from int
				_, _ = fmt.Sscanf(r.URL.Query().Get("starting_after"), "il_%d", &from)
				var data []string
				for i := from + 1; i <= min(from+100, have); i++ {
					data = append(data, fmt.Sprintf(`{"id":"il_%d","object":"line_item","amount":%d,"currency":"usd"}`, i, i))
				}
				_, _ = fmt.Fprintf(w, `{"object":"list","data":[%s],"has_more":%v}`, strings.Join(data, ","), from+100 < have)
			},
		}}
		p, _ := open(t, f, stripe.Options{})
		d, err := p.Invoice(t.Context(), "cus_1", "in_1")
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Lines) != want || d.MoreLines != (have > want) {
			t.Errorf("%d lines of %d, more %v", len(d.Lines), have, d.MoreLines)
		}
		for i, l := range d.Lines {
			if l.Amount.Amount != int64(i+1) {
				t.Fatalf("line %d is %d", i, l.Amount.Amount)
			}
		}
		if len(d.CreditNotes) != 0 {
			t.Error("another customer's credit note is there")
		}
		if n := calls.Load(); n > 5 {
			t.Errorf("%d calls for the lines", n)
		}
	}
}

// TestInvoiceDiscountAndTax: what the sandbox does not have, a discount and an
// inclusive tax, is read as Stripe writes it; a percentage keeps its digits.
func TestInvoiceDiscountAndTax(t *testing.T) {
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/invoices/in_1": says(200, `{"id":"in_1","object":"invoice","customer":"cus_1","status":"paid","currency":"usd","starting_balance":-700,"ending_balance":-200,
			"total_discount_amounts":[{"amount":250,"discount":{"id":"di_1","object":"discount","source":{"coupon":{"id":"c","name":"Spring"}}}},{"amount":5,"discount":"di_2"}],
			"total_pretax_credit_amounts":[{"amount":40,"type":"credit_balance_transaction"},{"amount":250,"type":"discount"}],
			"total_taxes":[{"amount":19,"tax_behavior":"inclusive","taxable_amount":100,"tax_rate_details":{"tax_rate":{"id":"txr_1","display_name":"VAT","percentage":8.8750}}},
				{"amount":1,"tax_behavior":"exclusive","taxable_amount":null,"tax_rate_details":{"tax_rate":"txr_2"}}]}`),
		"GET /v1/invoices/in_1/lines": says(200, `{"object":"list","data":[]}`),
		"GET /v1/credit_notes":        says(200, `{"object":"list","data":[]}`),
		"GET /v1/invoice_payments":    says(200, `{"object":"list","data":[]}`),
	}}
	p, _ := open(t, f, stripe.Options{})
	d, err := p.Invoice(t.Context(), "cus_1", "in_1")
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Discounts) != 2 || d.Discounts[0].Description != "Spring" || d.Discounts[0].Amount.Amount != -250 || d.Discounts[1].Description == "" {
		t.Errorf("discounts %+v", d.Discounts)
	}
	if len(d.TaxLines) != 2 || d.TaxLines[0].Name != "VAT" || d.TaxLines[0].Percent != "8.875" || !d.TaxLines[0].Inclusive || d.TaxLines[1].Percent != "" || d.TaxLines[1].Name == "" {
		t.Errorf("taxes %+v", d.TaxLines)
	}
	if d.FromCredits.Amount != 40 || d.FromBalance.Amount != 500 {
		t.Errorf("from credits %+v, from the balance %+v", d.FromCredits, d.FromBalance)
	}
}

// An answer to a search counts where it is exactly what was asked for.
func TestSearchIsExact(t *testing.T) {
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/customers": says(200, `{"object":"list","data":[{"id":"cus_1","object":"customer","email":"A@example.com"},{"id":"cus_2","object":"customer","email":"a@example.com"}]}`),
		"GET /v1/customers/search": says(200, `{"object":"search_result","data":[{"id":"cus_1","object":"customer","metadata":{"portal_reference":"abc"}},
			{"id":"cus_2","object":"customer","metadata":{"portal_reference":"a'b\\"}},{"id":"cus_3","object":"customer","metadata":{"other":"a'b\\"}}]}`),
	}}
	p, _ := open(t, f, stripe.Options{})
	for _, q := range []billing.CustomerQuery{{Email: "a@example.com"}, {Reference: `a'b\`}} {
		list, err := p.Search(t.Context(), q)
		if err != nil || len(list) != 1 || list[0].ID != "cus_2" {
			t.Errorf("%+v: %+v, %v", q, list, err)
		}
	}
	if got, want := f.seen[1].URL.Query().Get("query"), `metadata['portal_reference']:'a\'b\\'`; got != want {
		t.Errorf("query %s, want %s", got, want)
	}
}

// TestTaxIDDeleted: a DELETE has no key. Answers that are lost, or that are not
// what a DELETE gives, are settled by reading.
func TestTaxIDDeleted(t *testing.T) {
	const one = `{"id":"txi_1","object":"tax_id","customer":"cus_1","type":"eu_vat","value":"DE123456789"}`
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/customers/cus_1":               says(200, `{"id":"cus_1","object":"customer","tax_ids":{"object":"list","data":[`+one+`]}}`),
		"GET /v1/customers/cus_1/tax_ids/txi_1": says(200, one),
	}}
	p, _ := open(t, f, stripe.Options{})
	v, err := p.Preview(t.Context(), "cus_1", billing.Action{Kind: billing.UpdateTaxID, TaxID: &billing.TaxIDChange{Remove: "txi_1"}}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	st := v.Steps[0]
	for _, c := range []struct {
		status int
		body   string
		want   billing.Fault
	}{
		{200, `{"id":"txi_1","object":"tax_id","deleted":true}`, ""},
		{404, `{"error":{"type":"invalid_request_error","code":"resource_missing"}}`, ""},
		{200, `{"id":"txi_2","object":"tax_id","deleted":true}`, billing.Unknown},
		{200, `{"id":"txi_1","object":"tax_id"}`, billing.Unknown},
		{200, `garbage`, billing.Unknown},
		{500, `{"error":{"type":"api_error"}}`, billing.Unknown},
		{429, `{"error":{"type":"invalid_request_error","code":"rate_limit"}}`, billing.Retryable},
		{403, `{"error":{"type":"invalid_request_error"}}`, billing.Refused},
	} {
		f.by["DELETE /v1/customers/cus_1/tax_ids/txi_1"] = says(c.status, c.body)
		res, err := p.Execute(t.Context(), "cus_1", st, "k")
		if billing.FaultOf(err) != c.want || err == nil && res.State != billing.Done {
			t.Errorf("%d %s: %+v, %v", c.status, c.body, res, err)
		}
	}
	if o, _, err := p.Outcome(t.Context(), "cus_1", st, "k", nil); err != nil || o != billing.NotApplied {
		t.Errorf("while it is there: %s, %v", o, err)
	}
	delete(f.by, "GET /v1/customers/cus_1/tax_ids/txi_1")
	if o, _, err := p.Outcome(t.Context(), "cus_1", st, "k", nil); err != nil || o != billing.Applied {
		t.Errorf("once it is gone: %s, %v", o, err)
	}
	for _, r := range f.seen {
		if r.Method == http.MethodDelete && r.Header.Get("Idempotency-Key") != "" {
			t.Error("a DELETE went out with a key")
		}
	}
}
