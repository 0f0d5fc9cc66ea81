package stripe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-mock/embedded"
	"github.com/stripe/stripe-mock/server"
	"github.com/stripe/stripe-mock/spec"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
)

// mock is Stripe's own stripe-mock, set up as its main does, with the strict
// version check.
func mock(t testing.TB) (http.Handler, *spec.Spec) {
	t.Helper()
	sp, err := server.LoadSpec(embedded.OpenAPISpec, "")
	if err != nil {
		t.Fatal(err)
	}
	fixtures, err := server.LoadFixtures(embedded.OpenAPIFixtures, "")
	if err != nil {
		t.Fatal(err)
	}
	stub, err := server.NewStubServer(fixtures, sp, true, false)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", stub.HandleRequest)
	return &server.DoubleSlashFixHandler{Mux: mux}, sp
}

// owner puts one customer's id into every answer of stripe-mock's, whose
// fixtures belong to anybody, and a pending update and a session's page where
// the test asks for them, so that the provider goes on to its next request.
type owner struct {
	t    *testing.T
	mock http.Handler
	mu   sync.Mutex
	seen map[string]bool
	// shapes are the spec's objects; expanded counts what was held against
	// them.
	shapes   map[string]*spec.Schema
	expanded int
	// asks makes every payment one that the customer has to confirm.
	asks bool
	edit func(path string, o map[string]any)
}

var objectID = regexp.MustCompile(`^(?:cus|sub|in|pm|pi|cs|price|cn|txi)_\w+$`)

func (o *owner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	rec := httptest.NewRecorder()
	o.mock.ServeHTTP(rec, r)
	if o.asks && rec.Code == http.StatusOK && strings.HasSuffix(r.URL.Path, "/pay") {
		o.mu.Lock()
		o.seen["POST /v1/invoices/{id}/pay"] = true
		o.mu.Unlock()
		w.WriteHeader(http.StatusPaymentRequired)
		_, _ = io.WriteString(w, `{"error":{"type":"card_error","code":"invoice_payment_intent_requires_action","message":"confirm"}}`)
		return
	}
	if rec.Code != http.StatusOK {
		o.t.Errorf("stripe-mock refuses %s %s\n%s\n%s", r.Method, r.URL, body, rec.Body)
	}
	if v := r.Header.Get("Stripe-Version"); v != stripe.Version {
		o.t.Errorf("%s %s names version %q", r.Method, r.URL.Path, v)
	}
	parts := strings.Split(r.URL.Path, "/")
	for i, p := range parts {
		if objectID.MatchString(p) {
			parts[i] = "{id}"
		}
	}
	o.mu.Lock()
	o.seen[r.Method+" "+strings.Join(parts, "/")] = true
	o.mu.Unlock()
	var v map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
		o.t.Errorf("stripe-mock answers %s", rec.Body)
	}
	o.expansions(r, body, v)
	own(v)
	if o.edit != nil {
		o.mu.Lock()
		o.edit(r.URL.Path, v)
		o.mu.Unlock()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// expansions checks what a request asks to expand, which stripe-mock does not:
// at most four levels, each a property that the spec says can be expanded.
func (o *owner) expansions(r *http.Request, body []byte, v map[string]any) {
	q := r.URL.Query()
	if r.Method == http.MethodPost {
		q, _ = url.ParseQuery(string(body))
	}
	for _, x := range q["expand[]"] {
		parts := strings.Split(x, ".")
		kind, _ := v["object"].(string)
		rest := parts
		if l, ok := v["data"].([]any); (kind == "list" || kind == "search_result") && ok && len(l) > 0 && parts[0] == "data" {
			kind, _ = l[0].(map[string]any)["object"].(string)
			rest = parts[1:]
		}
		o.mu.Lock()
		o.expanded++
		o.mu.Unlock()
		if len(parts) > 4 || !o.expandable(o.shapes[kind], rest) {
			o.t.Errorf("%s %s: %q cannot be expanded on a %s", r.Method, r.URL.Path, x, kind)
		}
	}
}

func (o *owner) expandable(s *spec.Schema, parts []string) bool {
	switch {
	case len(parts) == 0:
		return true
	case s == nil:
		return false
	case s.Ref != "":
		return o.expandable(o.shapes[strings.TrimPrefix(s.Ref, "#/components/schemas/")], parts)
	case s.Items != nil:
		return o.expandable(s.Items, parts)
	case len(s.AnyOf) > 0:
		return slices.ContainsFunc(s.AnyOf, func(x *spec.Schema) bool { return o.expandable(x, parts) })
	}
	return s.XExpandableFields != nil && slices.Contains(*s.XExpandableFields, parts[0]) && o.expandable(s.Properties[parts[0]], parts[1:])
}

func own(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			switch y := x.(type) {
			case string:
				if k == "customer" {
					v[k] = "cus_1"
				}
			case map[string]any:
				if k == "customer" {
					y["id"] = "cus_1"
				}
			}
			own(x)
		}
		if v["object"] == "customer" {
			v["id"] = "cus_1"
		}
	case []any:
		for _, x := range v {
			own(x)
		}
	}
}

// each calls fn on o and on every object below it that is of a type.
func each(v any, object string, fn func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		if v["object"] == object {
			fn(v)
		}
		for _, x := range v {
			each(x, object, fn)
		}
	case []any:
		for _, x := range v {
			each(x, object, fn)
		}
	}
}

func TestStripeMockVersionIsOurs(t *testing.T) {
	h, sp := mock(t)
	version := sp.Info.Version
	if version != stripe.Version {
		t.Fatalf("stripe-mock checks version %s, we send %s", version, stripe.Version)
	}
	// The strict check is on: another version is refused.
	r := httptest.NewRequest(http.MethodGet, "/v1/customers/cus_1", nil)
	r.Header.Set("Authorization", "Bearer sk_test_123456789")
	r.Header.Set("Stripe-Version", "2026-04-22.dahlia")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	if rec.Code != http.StatusBadRequest {
		t.Fatalf("another version got status %d", rec.Code)
	}
	// And an unknown parameter is.
	r = httptest.NewRequest(http.MethodPost, "/v1/subscriptions/sub_1", strings.NewReader("prorate_date=1"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Authorization", "Bearer sk_test_123456789")
	r.Header.Set("Stripe-Version", stripe.Version)
	rec = httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	if rec.Code != http.StatusBadRequest {
		t.Fatalf("an unknown parameter got status %d", rec.Code)
	}
}

// Every request that the provider can send is accepted by stripe-mock. The
// list at the end is complete: a request added to the provider without being
// sent here fails the test, as does one that is listed and not sent.
func TestStripeMockAcceptsEveryRequest(t *testing.T) {
	m, sp := mock(t)
	o := &owner{t: t, mock: m, shapes: sp.Components.Schemas, seen: map[string]bool{}}
	srv := httptest.NewServer(o)
	defer srv.Close()
	p, err := stripe.New(stripe.Options{Key: "rk_test_0123456789", BaseURL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	ctx := context.Background()
	const cus, taxID = "cus_1", "txi_1"

	// The fixtures' subscription as a live one, with items that have all a
	// change needs.
	var pending, sendInvoice, ownDefault, cancelling, cancelAt bool
	var item, newPrice, debt, listed string
	var product bool
	o.edit = func(path string, v map[string]any) {
		each(v, "subscription", func(s map[string]any) {
			s["status"], s["schedule"], s["cancel_at"], s["cancel_at_period_end"] = "active", nil, nil, cancelling
			s["currency"] = "usd"
			listed = s["id"].(string)
			if cancelAt {
				s["cancel_at"] = 4102444800
			}
			if sendInvoice {
				s["collection_method"] = "send_invoice"
			} else {
				s["collection_method"] = "charge_automatically"
			}
			s["default_payment_method"] = nil
			if ownDefault {
				s["default_payment_method"] = "pm_1"
			}
			s["pending_update"] = nil
			if pending {
				s["pending_update"] = map[string]any{"expires_at": 4102444800, "subscription_items": []any{}}
				if li, ok := s["latest_invoice"].(map[string]any); ok {
					li["status"] = "open"
				} else {
					s["latest_invoice"] = "in_1"
				}
			}
			for _, x := range s["items"].(map[string]any)["data"].([]any) {
				it := x.(map[string]any)
				item = it["id"].(string)
				it["quantity"], it["current_period_end"] = 2, 4102444800
			}
		})
		each(v, "price", func(pr map[string]any) {
			pr["active"], pr["billing_scheme"], pr["unit_amount"], pr["unit_amount_decimal"] = true, "per_unit", 1000, "1000"
			pr["recurring"] = map[string]any{"interval": "month", "interval_count": 1, "usage_type": "licensed"}
			pr["currency"], pr["transform_quantity"] = "usd", nil
			newPrice = "price_other"
			if strings.HasSuffix(path, "/products") {
				t.Error("a list of products holds a price")
			}
		})
		each(v, "product", func(map[string]any) { product = product || strings.HasSuffix(path, "/products") })
		each(v, "customer", func(c map[string]any) {
			c["tax_ids"] = map[string]any{"object": "list", "data": []any{map[string]any{"object": "tax_id", "id": taxID, "customer": cus}}}
		})
		each(v, "charge", func(c map[string]any) { c["customer"] = cus })
		each(v, "tax_id", func(x map[string]any) { x["id"] = taxID })
		each(v, "credit_note", func(n map[string]any) { n["id"] = "cn_1" })
		each(v, "payment_method", func(m map[string]any) { m["customer"] = cus })
		each(v, "invoice", func(i map[string]any) {
			if i["status"] == "draft" {
				i["status"] = "open"
			}
			i["billing_reason"] = "subscription_update"
			i["attempted"], i["amount_remaining"], i["collection_method"] = true, 500, "charge_automatically"
			i["parent"] = map[string]any{"subscription_details": map[string]any{"subscription": "sub_1"}}
			debt = i["id"].(string)
			i["payments"] = map[string]any{"object": "list", "data": []any{map[string]any{
				"object": "invoice_payment", "status": "open", "payment": map[string]any{
					"type": "payment_intent", "payment_intent": map[string]any{"object": "payment_intent", "id": "pi_1", "status": "requires_action"},
				},
			}}}
		})
		each(v, "checkout.session", func(c map[string]any) {
			c["mode"], c["url"] = "setup", "https://checkout.stripe.com/c/1"
		})
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	read := func() {
		t.Helper()
		_, err := p.Account(ctx, cus)
		must(err)
	}
	_, err = p.Prices(ctx)
	must(err)
	_, err = p.Find(ctx, cus)
	must(err)
	read()
	pending, ownDefault = true, true
	read()
	page, err := p.Invoices(ctx, cus, "", 10)
	must(err)
	_, err = p.Invoices(ctx, cus, "b2luXzE", 10) // "oin_1"
	must(err)
	_, err = p.Invoices(ctx, cus, "bmluXzE", 10) // "nin_1"
	must(err)
	if len(page.Invoices) == 0 {
		t.Error("the fixtures' invoice is missing")
	}
	// The PDF itself is on a host that the fixtures name; only the read of the
	// invoice is a request to the API.
	_, _ = p.Document(ctx, cus, billing.DocumentRef{Invoice: "in_1"})
	_, _ = p.Document(ctx, cus, billing.DocumentRef{Invoice: "in_1", CreditNote: "cn_1"})
	_, err = p.Invoice(ctx, cus, "in_1")
	must(err)
	for _, q := range []billing.CustomerQuery{{Email: "a@example.com"}, {Reference: `it's \ "x"`}, {Reference: cus}} {
		_, err := p.Search(ctx, q)
		must(err)
	}
	pending = false

	try := func(a billing.Action, refs map[string]string) {
		t.Helper()
		pv, err := p.Preview(ctx, cus, a, time.Unix(1_800_000_000, 0))
		if err != nil {
			t.Errorf("%s: %v", a.Kind, err)
			return
		}
		for _, s := range pv.Steps {
			s.Refs = refs
			// The fixtures do not show the change, so what the answers mean is
			// not asked here.
			_, _ = p.Execute(ctx, cus, s, "key."+s.Kind)
			_, _, _ = p.Outcome(ctx, cus, s, "key."+s.Kind, nil)
			_, _, _ = p.Outcome(ctx, cus, s, "key."+s.Kind, &billing.Result{State: billing.AwaitingCustomer, Refs: map[string]string{"checkout_session": "cs_1"}})
		}
	}
	change := func() billing.Action {
		return billing.Action{Kind: billing.ChangePlan, Subscription: "sub_1", Items: []billing.ItemChange{{Item: item, Price: newPrice, Quantity: 3}}}
	}
	try(change(), nil)
	sendInvoice = true
	try(change(), nil)
	sendInvoice = false
	pending = true
	try(billing.Action{Kind: billing.DropPending, Subscription: "sub_1"}, nil)
	refs := map[string]string{"payment_method": "pm_1"}
	try(billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: "https://billing.example.com/done"}, refs)
	try(billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1"}, nil)
	pending = false
	read()
	mine := listed // the id that the fixtures' list has
	try(billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: "pm_1", Subscription: mine}, nil)
	back := "https://billing.example.com/done"
	for _, asks := range []bool{false, true} {
		o.asks = asks
		try(billing.Action{Kind: billing.PayInvoices, Invoices: []string{debt}, ReturnURL: back}, nil)
		try(billing.Action{Kind: billing.PayInvoices, Invoices: []string{debt}, PaymentMethod: "pm_1", ReturnURL: back}, nil)
	}
	o.asks = false
	try(billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseSubscription, Subscription: mine, Invoices: []string{debt}, ReturnURL: back}, refs)
	try(billing.Action{Kind: billing.AddPaymentMethod, Use: billing.UseNothing, ReturnURL: back}, refs)
	try(billing.Action{Kind: billing.RemovePaymentMethod, PaymentMethod: "pm_2"}, nil)
	try(billing.Action{Kind: billing.Cancel, Subscription: "sub_1"}, nil)
	cancelling = true
	try(billing.Action{Kind: billing.Resume, Subscription: "sub_1"}, nil)
	cancelling, cancelAt = false, true
	try(billing.Action{Kind: billing.Resume, Subscription: "sub_1"}, nil)
	s := "x"
	fields, none := []billing.InvoiceField{{Name: "PO number", Value: "1"}, {Name: "b", Value: "c"}}, []billing.InvoiceField{}
	try(billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{
		Name: &s, Email: &s, Phone: &s, Address: &billing.Address{Line1: "a", Country: "DE"}, InvoiceFields: &fields, Locale: &s,
	}}, nil)
	try(billing.Action{Kind: billing.UpdateDetails, Details: &billing.Details{InvoiceFields: &none}}, nil)
	for _, ty := range billing.TaxIDTypes("") { // each type is one of Stripe's
		try(billing.Action{Kind: billing.UpdateTaxID, TaxID: &billing.TaxIDChange{Type: ty.Type, Value: ty.Example}}, nil)
	}
	try(billing.Action{Kind: billing.UpdateTaxID, TaxID: &billing.TaxIDChange{Remove: taxID}}, nil)
	if !product {
		t.Error("the list of products was never asked for")
	}

	if o.expanded < 10 {
		t.Errorf("only %d expansions were seen", o.expanded)
	}
	if o.expandable(o.shapes["subscription"], []string{"items", "data", "price", "owner"}) || o.expandable(o.shapes["customer"], []string{"name"}) {
		t.Error("the check lets everything through")
	}
	want := []string{
		"DELETE /v1/customers/{id}/tax_ids/{id}", "GET /v1/charges",
		"GET /v1/checkout/sessions", "GET /v1/checkout/sessions/{id}", "GET /v1/credit_notes", "GET /v1/credit_notes/{id}",
		"GET /v1/customers", "GET /v1/customers/search", "GET /v1/customers/{id}", "GET /v1/customers/{id}/payment_methods", "GET /v1/customers/{id}/tax_ids/{id}",
		"GET /v1/invoice_payments", "GET /v1/invoices", "GET /v1/invoices/{id}", "GET /v1/invoices/{id}/lines", "GET /v1/payment_intents", "GET /v1/payment_methods/{id}", "GET /v1/prices",
		"GET /v1/prices/{id}", "GET /v1/products", "GET /v1/subscriptions", "GET /v1/subscriptions/{id}",
		"POST /v1/checkout/sessions", "POST /v1/customers/{id}", "POST /v1/customers/{id}/tax_ids", "POST /v1/invoices/create_preview", "POST /v1/invoices/{id}/pay",
		"POST /v1/invoices/{id}/void", "POST /v1/payment_intents/{id}/confirm", "POST /v1/payment_methods/{id}/detach", "POST /v1/subscriptions/{id}",
	}
	var got []string
	for k := range o.seen {
		got = append(got, k)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("requests sent:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
