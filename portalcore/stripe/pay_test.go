package stripe_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/stripe"
)

const (
	noneJSON = `{"object":"list","data":[]}`
	hosted   = "https://invoice.stripe.com/i/1"
)

// owedJSON is an open invoice with one payment, of which payment says more.
func owedJSON(id, payment, url string) string {
	return fmt.Sprintf(`{"object":"invoice","id":%q,"customer":"cus_1","status":"open","currency":"usd","number":"N-%s","amount_remaining":500,"attempted":true,
		"collection_method":"charge_automatically","hosted_invoice_url":%q,"payments":{"object":"list","data":[{"status":"open","payment":{"type":"payment_intent","payment_intent":%s}}]}}`, id, id, url, payment)
}

// A payment that asks is confirmed with the page to come back to, under a key of
// its own; the hosted invoice page is where the customer goes when that fails.
func TestPayAsks(t *testing.T) {
	asks := `{"object":"payment_intent","id":"pi_1","status":"requires_action","next_action":{"type":"use_stripe_sdk"}}`
	redirect := func(url string) string {
		return `{"object":"payment_intent","id":"pi_1","status":"requires_action","next_action":{"type":"redirect_to_url","redirect_to_url":{"url":"` + url + `"}}}`
	}
	for name, c := range map[string]struct {
		status    int
		confirmed string
		goTo      string
	}{
		"confirmed":           {200, redirect("https://hooks.stripe.com/3d"), "https://hooks.stripe.com/3d"},
		"refused":             {400, `{"error":{"type":"invalid_request_error","code":"payment_intent_unexpected_state"}}`, hosted},
		"broken":              {500, `oops`, hosted},
		"another intent":      {200, strings.Replace(redirect("https://hooks.stripe.com/3d"), "pi_1", "pi_2", 1), hosted},
		"page that is unsafe": {200, redirect("javascript:alert(1)"), hosted},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{by: map[string]http.HandlerFunc{
				"GET /v1/customers/cus_1":               says(200, customerJSON),
				"GET /v1/payment_methods/pm_1":          says(200, `{"object":"payment_method","id":"pm_1","customer":"cus_1","type":"card"}`),
				"GET /v1/subscriptions":                 says(200, noneJSON),
				"GET /v1/payment_intents":               says(200, noneJSON),
				"GET /v1/invoices":                      says(200, `{"object":"list","data":[`+owedJSON("in_1", `"pi_1"`, hosted)+`]}`),
				"GET /v1/invoices/in_1":                 says(200, owedJSON("in_1", asks, hosted)),
				"POST /v1/invoices/in_1/pay":            says(402, `{"error":{"type":"card_error","code":"invoice_payment_intent_requires_action"}}`),
				"POST /v1/payment_intents/pi_1/confirm": says(c.status, c.confirmed),
			}}
			p, logs := open(t, f, stripe.Options{})
			v, err := p.Preview(t.Context(), "cus_1", billing.Action{Kind: billing.PayInvoices, Invoices: []string{"in_1"}, PaymentMethod: "pm_1", ReturnURL: "https://billing.example.com/back"}, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			r, err := p.Execute(t.Context(), "cus_1", v.Steps[0], "intent.0")
			if err != nil || r.State != billing.AwaitingCustomer || r.GoTo != c.goTo || r.Until.IsZero() {
				t.Errorf("%+v, %v", r, err)
			}
			var posts []string
			for _, r := range f.seen {
				if r.Method == http.MethodPost {
					posts = append(posts, r.URL.Path+" "+r.Header.Get("Idempotency-Key")+" "+r.PostForm.Encode())
				}
			}
			want := []string{
				"/v1/invoices/in_1/pay intent.0 off_session=false&payment_method=pm_1",
				"/v1/payment_intents/pi_1/confirm intent.0.confirm return_url=https%3A%2F%2Fbilling.example.com%2Fback",
			}
			if fmt.Sprint(posts) != fmt.Sprint(want) {
				t.Errorf("sent %q, want %q", posts, want)
			}
			for _, l := range logs.All() {
				if strings.Contains(fmt.Sprint(l.Message, l.ContextMap()), "invoice.stripe.com") {
					t.Errorf("the page is logged: %v", l)
				}
			}
			// Reading what became of it sends nothing.
			n := len(posts)
			f.seen = nil
			if o, after, err := p.Outcome(t.Context(), "cus_1", v.Steps[0], "intent.0", &r); err != nil || o != billing.Applied || after.GoTo != c.goTo || !after.Until.Equal(r.Until) {
				t.Errorf("%s %+v, %v after %d", o, after, err, n)
			}
			for _, r := range f.seen {
				if r.Method != http.MethodGet {
					t.Errorf("the outcome sent %s %s", r.Method, r.URL)
				}
			}
		})
	}
}

// Two calls say everything about the debts of a customer, however many there
// are, and one where no payment was tried. A page that is unsafe is not shown,
// and nothing of another customer's is.
func TestDebts(t *testing.T) {
	var owed []string
	for i := range 50 {
		page := hosted
		if i == 0 {
			page = "http://invoice.stripe.com/i/1"
		}
		owed = append(owed, owedJSON(fmt.Sprintf("in_%02d", i), fmt.Sprintf(`"pi_%02d"`, i), page))
	}
	list := `{"object":"list","data":[` + strings.Join(owed, ",") + `]}`
	intents := `{"object":"list","data":[
		{"id":"pi_01","status":"processing","payment_method":{"object":"payment_method","id":"pm_1","type":"sepa_debit","sepa_debit":{"last4":"3000","bank_code":"37040044","country":"DE"}}},
		{"id":"pi_02","status":"requires_payment_method","payment_method":null,"last_payment_error":{"code":"card_declined","decline_code":"stolen_card","payment_method":{"object":"payment_method","id":"pm_2","type":"card","card":{"last4":"0341"}}}},
		{"id":"pi_03","status":"requires_action","payment_method":{"object":"payment_method","id":"pm_3","type":"card","card":{"last4":"3155"}}}]}`
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/customers/cus_1":                 says(200, customerJSON),
		"GET /v1/customers/cus_1/payment_methods": says(200, `{"object":"list","data":[{"id":"pm_9","object":"payment_method","customer":"cus_1","type":"a_new_kind","a_new_kind":{"x":1}}]}`),
		"GET /v1/subscriptions":                   says(200, noneJSON),
		"GET /v1/payment_intents":                 says(200, intents),
		"GET /v1/invoices":                        says(200, list),
	}}
	p, _ := open(t, f, stripe.Options{})
	a, err := p.Account(t.Context(), "cus_1")
	if err != nil {
		t.Fatal(err)
	}
	at := func(id string) billing.Invoice {
		for _, v := range a.Debts {
			if v.ID == id {
				return v
			}
		}
		t.Fatalf("no debt %s", id)
		return billing.Invoice{}
	}
	if v := at("in_00"); v.PaymentPage != "" || v.Failure != "" || v.Method != nil {
		t.Errorf("%+v", v)
	}
	if v := at("in_01"); !v.Processing || v.PaymentPage != hosted || v.Method == nil || v.Method.Bank != "37040044" || v.Method.Country != "DE" {
		t.Errorf("%+v", v)
	}
	if v := at("in_02"); v.Failure != "card_declined" || v.Method == nil || v.Method.Last4 != "0341" {
		t.Errorf("%+v", v)
	}
	if v := at("in_03"); v.Failure != "authentication_required" || v.Method == nil {
		t.Errorf("%+v", v)
	}
	if pm := a.PaymentMethods[0]; pm != (billing.PaymentMethod{ID: "pm_9", Type: "a_new_kind"}) {
		t.Errorf("a method of a kind that nobody knows: %+v", pm)
	}
	if raw, _ := json.Marshal(a); strings.Contains(string(raw), "stolen") {
		t.Error("the account says what the card was declined for")
	}
	count := func() (n int) {
		for _, r := range f.seen {
			if r.URL.Path == "/v1/payment_intents" || r.URL.Query().Get("status") == "open" {
				n++
			}
		}
		return n
	}
	if len(a.Debts) != 50 || count() != 2 {
		t.Errorf("%d debts in %d calls", len(a.Debts), count())
	}
	f.seen = nil
	f.by["GET /v1/invoices"] = says(200, strings.ReplaceAll(list, `"attempted":true`, `"attempted":false`))
	if _, err := p.Account(t.Context(), "cus_1"); err != nil || count() != 1 {
		t.Errorf("nothing tried: %d calls, %v", count(), err)
	}
	f.by["GET /v1/invoices"] = says(200, strings.Replace(list, "cus_1", "cus_2", 1))
	if _, err := p.Preview(t.Context(), "cus_1", billing.Action{Kind: billing.PayInvoices, Invoices: []string{"in_02"}}, time.Time{}); billing.FaultOf(err) != billing.Unavailable {
		t.Errorf("a list that holds another customer's invoice: %v", err)
	}
}

// A payment method of the old kind, which the portal does not list, pays too.
func TestPayWithSource(t *testing.T) {
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/customers/cus_1": says(200, strings.Replace(customerJSON, `"object"`, `"default_source":"card_1","object"`, 1)),
		"GET /v1/subscriptions":   says(200, noneJSON),
		"GET /v1/payment_intents": says(200, noneJSON),
		"GET /v1/invoices":        says(200, `{"object":"list","data":[`+owedJSON("in_1", `"pi_1"`, hosted)+`]}`),
	}}
	p, _ := open(t, f, stripe.Options{})
	pay := billing.Action{Kind: billing.PayInvoices, Invoices: []string{"in_1"}}
	if v, err := p.Preview(t.Context(), "cus_1", pay, time.Time{}); err != nil || len(v.Steps) != 1 || v.DueNow.Amount != 500 {
		t.Errorf("%+v, %v", v, err)
	}
	f.by["GET /v1/customers/cus_1"] = says(200, customerJSON)
	if _, err := p.Preview(t.Context(), "cus_1", pay, time.Time{}); billing.CodeOf(err) != "payment_method_required" {
		t.Errorf("nothing to pay with: %v", err)
	}
}

// Of several payments of one invoice that is on its way counts, in whatever
// order they stand: who pays again pays twice.
func TestDebtWithSeveralPayments(t *testing.T) {
	payment := func(id string) string {
		return `{"status":"open","payment":{"type":"payment_intent","payment_intent":"` + id + `"}}`
	}
	for _, order := range [][]string{{"pi_sent", "pi_failed"}, {"pi_failed", "pi_sent"}} {
		owed := strings.Replace(owedJSON("in_1", `"x"`, hosted), payment("x"), payment(order[0])+","+payment(order[1]), 1)
		f := &fake{by: map[string]http.HandlerFunc{
			"GET /v1/customers/cus_1":                 says(200, customerJSON),
			"GET /v1/customers/cus_1/payment_methods": says(200, noneJSON),
			"GET /v1/subscriptions":                   says(200, noneJSON),
			"GET /v1/payment_intents": says(200, `{"object":"list","data":[{"id":"pi_sent","status":"processing"},
				{"id":"pi_failed","status":"requires_payment_method","last_payment_error":{"code":"card_declined"}}]}`),
			"GET /v1/invoices": says(200, `{"object":"list","data":[`+owed+`]}`),
		}}
		p, _ := open(t, f, stripe.Options{})
		a, err := p.Account(t.Context(), "cus_1")
		if err != nil || len(a.Debts) != 1 || !a.Debts[0].Processing {
			t.Errorf("%v: %+v, %v", order, a.Debts, err)
		}
	}
}

// A bank that declines for want of a confirmation leaves no payment that could be
// confirmed: nobody is sent to a page that charges them beside what the portal
// knows.
func TestDeclinedForWantOfConfirmation(t *testing.T) {
	none := `{"object":"payment_intent","id":"pi_1","status":"requires_payment_method","last_payment_error":{"code":"authentication_required"}}`
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/invoices/in_1":      says(200, owedJSON("in_1", none, hosted)),
		"POST /v1/invoices/in_1/pay": says(402, `{"error":{"type":"card_error","code":"card_declined","decline_code":"authentication_required"}}`),
	}}
	p, _ := open(t, f, stripe.Options{})
	step := billing.Step{Kind: "invoice.pay", Object: "in_1", Params: []byte(`{"form":"off_session=false","return_url":"https://billing.example.com/back"}`)}
	r, err := p.Execute(t.Context(), "cus_1", step, "intent.0")
	if billing.FaultOf(err) != billing.Refused || billing.CodeOf(err) != "authentication_required" {
		t.Errorf("%+v, %v", r, err)
	}
}

// What a change with a bank debit became is told by its own invoice, also where
// the subscription renewed before the debit was there.
func TestDebitThatOutlastsThePeriod(t *testing.T) {
	invoice := func(id, status, intent string, due int) string {
		return fmt.Sprintf(`{"object":"invoice","id":%q,"customer":"cus_1","status":%q,"currency":"usd","amount_due":%d,"payments":{"object":"list","data":[
			{"status":"open","payment":{"type":"payment_intent","payment_intent":{"object":"payment_intent","id":"pi_%s","status":%q}}}]}}`, id, status, due, id, intent)
	}
	f := &fake{by: map[string]http.HandlerFunc{
		"GET /v1/subscriptions/sub_1": says(200, strings.Replace(paidSub, `"items"`, `"latest_invoice":`+invoice("in_renewal", "open", "processing", 1000)+`,"items"`, 1)),
		"GET /v1/invoices/in_change":  says(200, invoice("in_change", "paid", "succeeded", 700)),
		"GET /v1/invoices/in_renewal": says(200, invoice("in_renewal", "open", "processing", 1000)),
	}}
	p, _ := open(t, f, stripe.Options{})
	step := billing.Step{Kind: "subscription.update", Object: "sub_1", Params: []byte(`{"form":"x=1","items":[{"item":"si_1","price":"price_1","quantity":1}],"invoice":"in_before","delayed":true}`)}
	last := &billing.Result{State: billing.Processing, Invoice: &billing.Invoice{ID: "in_change"}}
	o, r, err := p.Outcome(t.Context(), "cus_1", step, "intent.0", last)
	if err != nil || o != billing.Applied || r.State != billing.Done || r.Invoice == nil || r.Invoice.ID != "in_change" || r.Invoice.AmountDue.Amount != 700 {
		t.Errorf("%s %+v %+v, %v", o, r, r.Invoice, err)
	}
}
