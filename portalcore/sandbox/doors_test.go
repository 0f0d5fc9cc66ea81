package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/sandbox"
)

// knock sends a request to a door at 127.0.0.1:8080.
func knock(door http.Handler, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:8080"+path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	door.ServeHTTP(rec, r)
	return rec
}

func TestControl(t *testing.T) {
	d := newDesk(t)
	intents := func(context.Context) (any, error) {
		return map[string]any{"intents": []string{"one"}}, nil
	}
	door := sandbox.Control(d.Ledger, d.faults, intents)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
		header             []string
	}{
		{"GET", "/clock", "", 200, `{"now":"2026-03-10T12:00:00Z"}`, nil},
		{"POST", "/clock", `{"advance":"720h"}`, 200, `{"now":"2026-04-09T12:00:00Z"}`, nil},
		{"POST", "/clock", `{"advance":"-1h"}`, 400, "forward only", nil},
		{"POST", "/clock", `{"advance":720}`, 400, "advance", nil},
		{"POST", "/clock", `{}`, 400, "must be a duration", nil},
		{"POST", "/clock", `{"advance":"1h"} {}`, 400, "after the object", nil},
		{"POST", "/clock", `{"advance":"1h","x":1}`, 400, `unknown field \"x\"`, nil},
		{"POST", "/fault", `{"on":"any","times":2,"kind":"garbage","latency":"200ms"}`, 200, `{"ok":true}`, nil},
		{"POST", "/fault", `{"on":"all","kind":"garbage"}`, 400, `on \"all\" is not one of`, nil},
		{"POST", "/fault", `{"on":"any","kind":"garbage","latency":"soon"}`, 400, "latency must be", nil},
		{"POST", "/fault", `{"on":"any","kind":"garbage","times":-1}`, 400, "times -1", nil},
		{"GET", "/intents", "", 200, `{"intents":["one"]}`, nil},
		{"GET", "/effects?after=x", "", 400, "after must be", nil},
		{"GET", "/nothing", "", 404, "", nil},
		{"DELETE", "/clock", "", 405, "", nil},
		{"GET", "/clock", "", 200, "now", []string{"Host", "localhost:8080"}},
		{"GET", "/clock", "", 200, "now", []string{"Host", "[::1]:8080"}},
		{"GET", "/clock", "", 403, "loopback", []string{"Host", "evil.example"}},
		{"GET", "/clock", "", 403, "loopback", []string{"Host", "127.0.0.1.evil.example:8080"}},
		{"GET", "/clock", "", 403, "other origins", []string{"Origin", "https://evil.example"}},
		{"GET", "/clock", "", 403, "other origins", []string{"Origin", "null"}},
		{"GET", "/clock", "", 403, "other sites", []string{"Sec-Fetch-Site", "cross-site"}},
		{"GET", "/clock", "", 200, "now", []string{"Origin", "http://127.0.0.1:8080", "Sec-Fetch-Site", "same-origin"}},
	} {
		rec := knock(door, c.method, c.path, c.body, c.header...)
		if rec.Code != c.status || !strings.Contains(rec.Body.String(), c.want) {
			t.Errorf("%s %s %s %v: %d %s", c.method, c.path, c.body, c.header, rec.Code, rec.Body)
		}
		if c.want != "" && (rec.Header().Get("Content-Type") != "application/json" || !json.Valid(rec.Body.Bytes())) {
			t.Errorf("%s %s: not JSON: %s", c.method, c.path, rec.Body)
		}
	}
	if f, ok := d.faults.Take("preview"); !ok || f.Kind != sandbox.FaultGarbage || f.Latency != 200*time.Millisecond || f.Times != 2 {
		t.Errorf("fault %+v", f)
	}
	if rec := knock(door, "POST", "/fault", `{"times":0}`, "Content-Type", "application/json"); rec.Code != 200 {
		t.Errorf("dropping the faults: %d %s", rec.Code, rec.Body)
	}
	if f, ok := d.faults.Take("preview"); ok {
		t.Errorf("a fault is left: %+v", f)
	}
	var all []sandbox.Effect
	rec := knock(door, "GET", "/effects", "")
	if err := json.Unmarshal(rec.Body.Bytes(), &all); err != nil || len(all) < 8 {
		t.Fatal(err, rec.Body)
	}
	last := all[len(all)-1]
	for _, name := range []string{`"seq":`, `"time":`, `"customer":`, `"kind":`, `"object":`, `"idempotency_key":`} {
		if !strings.Contains(rec.Body.String(), name) {
			t.Errorf("effects lack %s", name)
		}
	}
	rec = knock(door, "GET", fmt.Sprintf("/effects?after=%d", last.Seq-1), "")
	all = nil
	if err := json.Unmarshal(rec.Body.Bytes(), &all); err != nil || len(all) != 1 || all[0] != last {
		t.Errorf("%v %s", err, rec.Body)
	}
	if rec = knock(sandbox.Control(d.Ledger, d.faults, nil), "GET", "/intents", ""); rec.Code != 404 {
		t.Errorf("no intents: %d", rec.Code)
	}
	broken := sandbox.Control(d.Ledger, d.faults, func(context.Context) (any, error) { return nil, errors.New("down") })
	if rec = knock(broken, "GET", "/intents", ""); rec.Code != 500 {
		t.Errorf("broken intents: %d", rec.Code)
	}
}

// FuzzControl sends any body to the doors that take one: the answer is JSON,
// 200 or 400, and what was taken was valid.
func FuzzControl(f *testing.F) {
	for _, s := range []string{`{"advance":"1h"}`, `{"on":"any","times":1,"kind":"garbage","latency":"1ms"}`, `{"on":"execute","kind":"latency"}`, `[`, `{"times":1e9}`, `null`, ``} {
		f.Add(s)
	}
	b := newBench(f, noon)
	var faults sandbox.Faults
	door := sandbox.Control(b.Ledger, &faults, nil)
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{"/clock", "/fault"} {
			before, err := b.Now(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			rec := knock(door, "POST", path, body)
			if rec.Code != 200 && rec.Code != 400 || !json.Valid(rec.Body.Bytes()) {
				t.Fatalf("%s %q: %d %s", path, body, rec.Code, rec.Body)
			}
			if now, err := b.Now(t.Context()); err != nil || now.Before(before) || rec.Code == 400 && !now.Equal(before) {
				t.Fatalf("%q moved the clock from %s to %s, %v", body, before, now, err)
			}
			fault, ok := faults.Take("execute")
			if !ok {
				fault, ok = faults.Take("account")
			}
			if !ok {
				fault, ok = faults.Take("preview")
			}
			if ok && (rec.Code != 200 || faults.Set(fault) != nil) {
				t.Fatalf("%q set %+v", body, fault)
			}
			faults.Clear()
		}
	})
}

// browse gets or posts a page of the sandbox without following redirects.
func browse(t *testing.T, method, target string, form url.Values, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	csp := res.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(string(raw), "<script") || strings.Contains(string(raw), "style=") {
		t.Errorf("%s: policy %q over %s", target, csp, raw)
	}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") && len(raw) > 0 && res.StatusCode != http.StatusSeeOther {
		for _, want := range []string{`<html lang="en">`, "<title>", "<h1>", "Sandbox: no real money"} {
			if !strings.Contains(string(raw), want) {
				t.Errorf("%s lacks %s", target, want)
			}
		}
	}
	return res, string(raw)
}

func TestPages(t *testing.T) {
	d := newDesk(t)
	srv := httptest.NewServer(http.StripPrefix("/pay", d.Pages()))
	defer srv.Close()
	p := sandbox.NewProvider(d.Ledger, nil, sandbox.ProviderOptions{Pages: srv.URL + "/pay/"})
	open := func(returnURL string) billing.Result {
		v, err := p.Preview(t.Context(), "cus_new", billing.Action{Kind: billing.AddPaymentMethod, ReturnURL: returnURL}, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		d.key++
		res, err := p.Execute(t.Context(), "cus_new", v.Steps[0], fmt.Sprint("session", d.key))
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := open(portal + "/back?a=1&b=2")
	r, body := browse(t, "GET", res.GoTo, nil)
	if r.StatusCode != 200 || !strings.Contains(body, `<label for="card0">`) || !strings.Contains(body, `value="`+works+`" checked`) || !strings.Contains(body, `href="../style.css"`) {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if r, body = browse(t, "GET", srv.URL+"/pay/style.css", nil); r.StatusCode != 200 || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/css") || body == "" {
		t.Errorf("style: %d", r.StatusCode)
	}
	r, body = browse(t, "POST", res.GoTo, url.Values{"do": {"add"}, "card": {refuses}})
	if r.StatusCode != 422 || !strings.Contains(body, `role="alert">Your card was declined.`) {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if r, _ = browse(t, "POST", res.GoTo, url.Values{"do": {"add"}, "card": {"4111111111111111"}}); r.StatusCode != 422 {
		t.Errorf("%d", r.StatusCode)
	}
	if r, _ = browse(t, "POST", res.GoTo, url.Values{"do": {"add"}, "card": {works}}, "Sec-Fetch-Site", "cross-site"); r.StatusCode != 403 {
		t.Errorf("a form of another site: %d", r.StatusCode)
	}
	r, body = browse(t, "POST", res.GoTo, url.Values{"do": {"cancel"}})
	if r.StatusCode != 200 || r.Header.Get("Refresh") != "0; url="+portal+"/back?a=1&b=2" || !strings.Contains(body, `<a href="`+portal+`/back?a=1&amp;b=2">`) {
		t.Errorf("%d %v %s", r.StatusCode, r.Header, body)
	}
	if s, err := d.CheckoutSession(t.Context(), res.Object); err != nil || s.Status != sandbox.SessionOpen {
		t.Errorf("%+v %v", s, err)
	}
	r, _ = browse(t, "POST", res.GoTo, url.Values{"do": {"add"}, "card": {works}})
	if s, err := d.CheckoutSession(t.Context(), res.Object); err != nil || s.Status != sandbox.SessionComplete || r.Header.Get("Refresh") == "" {
		t.Errorf("%+v %v", s, err)
	}
	// Posted again, it adds no second card.
	browse(t, "POST", res.GoTo, url.Values{"do": {"add"}, "card": {works}})
	if pms, err := d.PaymentMethods(t.Context(), "cus_new"); err != nil || len(pms) != 1 || pms[0].Last4 != "4242" {
		t.Errorf("%+v %v", pms, err)
	}
	// On its own origin the browser is redirected.
	res = open(srv.URL + "/back?session={CHECKOUT_SESSION_ID}")
	r, _ = browse(t, "POST", res.GoTo, url.Values{"do": {"add"}, "card": {asks}})
	if r.StatusCode != 303 || r.Header.Get("Location") != srv.URL+"/back?session="+res.Object {
		t.Errorf("%d %v", r.StatusCode, r.Header)
	}
	res = open(portal)
	d.advance(25 * time.Hour)
	if r, body = browse(t, "GET", res.GoTo, nil); r.Header.Get("Refresh") == "" || !strings.Contains(body, "expired") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if r, _ = browse(t, "GET", srv.URL+"/pay/card/cs_test_x", nil); r.StatusCode != 404 {
		t.Errorf("%d", r.StatusCode)
	}
}

// An open invoice has a page where it is paid by hand, with any payment method
// that is not kept.
func TestPayPage(t *testing.T) {
	d := newDesk(t)
	srv := httptest.NewServer(d.Pages())
	defer srv.Close()
	d.Provider = sandbox.NewProvider(d.Ledger, nil, sandbox.ProviderOptions{Pages: srv.URL})
	debt := d.account("cus_pastdue").Debts[0]
	pay := func(number string) (*http.Response, string) {
		return browse(t, "POST", debt.PaymentPage, url.Values{"do": {"pay"}, "card": {number}})
	}
	r, body := browse(t, "GET", debt.PaymentPage, nil)
	if r.StatusCode != 200 || !strings.Contains(body, debt.Number) || !strings.Contains(body, "$20.00") || !strings.Contains(body, `id="account0"`) {
		t.Fatalf("%d %s", r.StatusCode, body)
	}
	for number, problem := range map[string]string{declines: "Your card was declined.", refuses: "Your card was declined.", "4000000000000069": "Your card has expired.", "4111111111111111": "test cards only"} {
		if r, body = pay(number); r.StatusCode != 422 || !strings.Contains(body, problem) || !strings.Contains(body, debt.Number) {
			t.Errorf("%s: %d %s", number, r.StatusCode, body)
		}
	}
	if r, body = pay(asks); r.StatusCode != 200 || !strings.Contains(body, "Confirm your payment") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if v := d.account("cus_pastdue").Debts[0]; v.Failure != "authentication_required" || v.AmountRemaining != debt.AmountRemaining {
		t.Errorf("%+v", v)
	}
	if r, body = pay("DE89370400440532013000"); r.StatusCode != 200 || !strings.Contains(body, "on its way") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if r, body = pay(works); r.StatusCode != 200 || !strings.Contains(body, "on its way") {
		t.Errorf("paid twice: %d %s", r.StatusCode, body)
	}
	before := len(d.account("cus_pastdue").PaymentMethods)
	d.advance(5 * 24 * time.Hour)
	a := d.account("cus_pastdue")
	if len(a.Debts) != 0 || len(a.PaymentMethods) != before || a.Subscriptions[0].Status != billing.Active {
		t.Errorf("%+v", a)
	}
	if r, body = browse(t, "GET", debt.PaymentPage, nil); r.StatusCode != 200 || !strings.Contains(body, "is confirmed") {
		t.Errorf("%d %s", r.StatusCode, body)
	}
	if r, _ = browse(t, "POST", srv.URL+"/confirm/pi_x", url.Values{"do": {"pay"}, "card": {works}}); r.StatusCode != 404 {
		t.Errorf("%d", r.StatusCode)
	}
}

func TestConfirmPage(t *testing.T) {
	for _, do := range []string{"confirm", "decline"} {
		d := newDesk(t)
		srv := httptest.NewServer(d.Pages())
		defer srv.Close()
		d.Provider = sandbox.NewProvider(d.Ledger, nil, sandbox.ProviderOptions{Pages: srv.URL})
		act := plan(d.account("cus_3ds"), "price_team_monthly_eur", 2)
		if do == "confirm" {
			act.ReturnURL = portal + "/receipt"
		}
		p := d.preview("cus_3ds", act)
		res, st, key := d.carryOut("cus_3ds", p.Steps, nil)
		r, body := browse(t, "GET", res.GoTo, nil)
		if r.StatusCode != 200 || !strings.Contains(body, "Confirm your payment") || !strings.Contains(body, "€") || !strings.Contains(body, "3155") {
			t.Errorf("%d %s", r.StatusCode, body)
		}
		if r, _ = browse(t, "POST", res.GoTo, url.Values{}); r.StatusCode != 200 || d.account("cus_3ds").Subscriptions[0].Pending == nil {
			t.Errorf("an empty form: %d", r.StatusCode)
		}
		for range 2 { // twice: a double click is one answer
			r, body = browse(t, "POST", res.GoTo, url.Values{"do": {do}})
		}
		o, after := d.outcome("cus_3ds", st, key)
		s := d.account("cus_3ds").Subscriptions[0]
		if do == "confirm" {
			if o != billing.Applied || after.State != billing.Done || after.Invoice.AmountPaid != p.DueNow || s.Pending != nil || r.Header.Get("Refresh") != "0; url="+portal+"/receipt" {
				t.Errorf("%s %+v %+v %v", o, after, s, r.Header)
			}
			continue
		}
		if o != billing.Applied || after.State != billing.AwaitingCustomer || after.Reason != "card_declined" || s.Pending == nil || s.Pending.ConfirmURL != "" || !strings.Contains(body, "declined the payment") || r.Header.Get("Refresh") != "" {
			t.Errorf("%s %+v %+v %s", o, after, s, body)
		}
	}
}
