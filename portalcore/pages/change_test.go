package pages

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/audit"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/store"
	"github.com/portalcore/caddy-billing-portal/templates"
)

func with(f url.Values, pairs ...string) url.Values {
	out := url.Values{}
	maps.Copy(out, f)
	for i := 0; i < len(pairs); i += 2 {
		out.Set(pairs[i], pairs[i+1])
	}
	return out
}

// previewed chooses Team for 4 and returns the preview's path and form.
func (b *browser) previewed() (string, url.Values) {
	b.t.Helper()
	choose := formOf(b.t, b.get("/plan").Body.String(), "/plan")
	path := location(b.t, b.post("/plan", with(choose, "price", "price_team", "quantity", "4")), "/check/")
	w := b.get(path)
	if w.Code != 200 {
		b.t.Fatalf("preview: %d %s", w.Code, w.Body)
	}
	return path, formOf(b.t, w.Body.String(), path)
}

func (e *env) intent(path string) journal.Intent {
	e.t.Helper()
	id := path[strings.LastIndexByte(path, '/')+1:]
	return must[journal.Intent](e.t)(e.corridor.Journal.Get(context.Background(), "cus_a", id))
}

func TestChangePlan(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, form := b.previewed()
	body := b.get(path).Body.String()
	for _, want := range []string{"Basic", "Team", "120.00", "10 projects"} {
		if !strings.Contains(body, want) {
			t.Errorf("the preview lacks %q", want)
		}
	}
	// Eight times the same form is one change, and one receipt.
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
			r.Host = host
			r.Header.Set("Cookie", "__Host-bp="+b.cookie)
			r.Header.Set("Content-Type", formType)
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			w := httptest.NewRecorder()
			e.pages.ServeHTTP(w, r)
			mu.Lock()
			defer mu.Unlock()
			seen[w.Header().Get("Location")] = true
		})
	}
	wg.Wait()
	if len(seen) != 1 || len(e.provider.effects) != 1 {
		t.Fatalf("locations %v, effects %v; want one of each", seen, e.provider.effects)
	}
	var done string
	for done = range seen {
	}
	w := b.get(done)
	if w.Code != 200 || !strings.Contains(w.Body.String(), "Team") || !strings.Contains(w.Body.String(), "120.00") {
		t.Errorf("receipt: %d %s", w.Code, w.Body)
	}
	if location(t, b.get(path), "/done/") != done {
		t.Error("back to the preview does not lead to the receipt")
	}
	if !strings.Contains(b.get("/").Body.String(), "Team") {
		t.Error("the overview still shows the old plan")
	}
	// Another customer, and another session of the same one.
	if w := e.signedIn("cus_b").get(done); w.Code != 404 {
		t.Errorf("another customer's receipt: %d, want 404", w.Code)
	}
	if w := e.signedIn("cus_a").get(done); w.Code != 200 {
		t.Errorf("own receipt in another session: %d", w.Code)
	}
}

func TestQuantityAndPrice(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	choose := formOf(t, b.get("/plan").Body.String(), "/plan")
	for _, tc := range []struct{ price, quantity, anchor string }{
		{"price_team", "0", "quantity"},
		{"price_team", "-1", "quantity"},
		{"price_team", "1.5", "quantity"},
		{"price_team", "1e3", "quantity"},
		{"price_team", "0x10", "quantity"},
		{"price_team", "", "quantity"},
		{"price_team", "99999999999999999999", "quantity"},
		{"price_team", "1000000000000000000", "quantity"},
		{"price_team", "٣", "quantity"},
		{"price_team", "４", "quantity"},
		{"price_team", "4 4", "quantity"},
		{"price_team", "+4", "quantity"},
		{"price_team", "1", "quantity"},
		{"price_team", "101", "quantity"},
		{"price_team", "NaN", "quantity"},
		{"price_team", "<script>", "quantity"},
		{"price_legacy", "4", "offers-title"},
		{"price_nothing", "4", "offers-title"},
		{"", "4", "offers-title"},
		{"price_team'--", "4", "offers-title"},
		{"price_basic", "4", "offers-title"},
	} {
		e.unchanged(tc.price+" "+tc.quantity, func() {
			w := b.post("/plan", with(choose, "price", tc.price, "quantity", tc.quantity))
			body := w.Body.String()
			if w.Code != http.StatusUnprocessableEntity || !strings.Contains(body, `href="#`+tc.anchor+`"`) || strings.Contains(body, "<script>") {
				t.Errorf("price %q, quantity %q: %d, want 422 with a message at %s", tc.price, tc.quantity, w.Code, tc.anchor)
			}
			if tc.quantity == "101" && !strings.Contains(body, `value="101"`) {
				t.Error("the entry is lost")
			}
		})
	}
	// Several at once are fine.
	location(t, b.post("/plan", with(choose, "price", "price_team", "quantity", " 5 ")), "/check/")
	// Fields nobody asked for do not reach the provider.
	path := location(t, b.post("/plan", with(choose, "price", "price_team", "quantity", "6", "amount", "1", "trial_end", "now", "customer", "cus_b", "discounts[0]", "x")), "/check/")
	form := formOf(t, b.get(path).Body.String(), path)
	done := location(t, b.post(path, with(form, "quantity", "1", "price", "price_basic", "customer", "cus_b")), "/done/")
	raw, _ := json.Marshal(e.intent(done))
	if strings.Contains(string(raw), "trial_end\":\"now") || strings.Contains(string(raw), "cus_b") || e.intent(done).Action.Items[0].Quantity != 6 {
		t.Errorf("the intent took fields from the form: %s", raw)
	}
}

func TestForeignObjects(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	choose := formOf(t, b.get("/plan").Body.String(), "/plan")
	cancel := formOf(t, b.get("/cancel").Body.String(), "/cancel")
	method := formOf(t, b.get("/payment").Body.String(), "/payment/default")
	for _, id := range []string{"sub_b", "sub_none", "cus_a", "", "../sub_a", "sub_a\x00", "sub_a ", "pm_cus_b", "in_cus_a", "si_sub_a"} {
		e.unchanged(id, func() {
			for path, f := range map[string]url.Values{
				"/plan":            with(choose, "subscription", id, "price", "price_team", "quantity", "4"),
				"/cancel":          with(cancel, "subscription", id),
				"/resume":          with(cancel, "subscription", id),
				"/drop":            with(cancel, "subscription", id),
				"/payment/default": with(method, "payment_method", id),
			} {
				w := b.post(path, f)
				if w.Code != 404 && (path != "/plan" || id != "" || w.Code != 400) {
					t.Errorf("%s with %q: %d, want 404", path, id, w.Code)
				}
			}
		})
	}
	// Answers for another customer's object and for none are the same.
	clean := func(w *httptest.ResponseRecorder) string {
		return strings.ReplaceAll(w.Body.String(), w.Header().Get("X-Request-Id"), "")
	}
	if clean(b.post("/cancel", with(cancel, "subscription", "sub_b"))) != clean(b.post("/cancel", with(cancel, "subscription", "sub_none"))) {
		t.Error("another customer's subscription can be told from none")
	}
}

func (e *env) audits(customer string) []audit.Record {
	var list []audit.Record
	err := e.store.View(context.Background(), func(tx store.Tx) (err error) {
		list, err = audit.Latest(tx, host, customer, 100)
		return err
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return list
}

func TestDenied(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a", func(c *link.Claims) { c.Configuration = "strict" })
	nonce := "0123456789abcdefghijklmnop"
	before := len(e.dump())
	w := b.post("/cancel", url.Values{"subscription": {"sub_a"}, "nonce": {nonce}})
	if w.Code != 403 || !strings.Contains(w.Body.String(), "Please talk to us.") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	list := e.audits("cus_a")
	if len(list) != 1 || list[0].Event != "denied" || list[0].RequestID != w.Header().Get("X-Request-Id") || len(e.dump()) != before+1 {
		t.Errorf("audit %+v, %d new records; want one", list, len(e.dump())-before)
	}
	viewer := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	for path, f := range map[string]url.Values{
		"/cancel":          {"subscription": {"sub_a"}, "nonce": {nonce}},
		"/payment/add":     {"nonce": {nonce}},
		"/payment/default": {"payment_method": {"pm2_cus_a"}, "nonce": {nonce}},
		"/details/name":    {"name": {"Mallory"}, "nonce": {nonce}},
		"/plan":            {"subscription": {"sub_a"}, "price": {"price_team"}, "quantity": {"4"}},
	} {
		if w := viewer.post(path, f); w.Code != 403 {
			t.Errorf("viewer: POST %s: %d, want 403", path, w.Code)
		}
	}
	// A downgrade is not allowed, however it is dressed up.
	owner := e.signedIn("cus_a")
	for _, q := range []string{"3"} {
		if w := owner.post("/plan", url.Values{"subscription": {"sub_a"}, "price": {"price_team"}, "quantity": {q}}); w.Code != 403 {
			t.Errorf("upgrade with fewer seats: %d, want 403", w.Code)
		}
	}
	if len(e.provider.effects) != 0 {
		t.Errorf("effects %v", e.provider.effects)
	}
}

func TestStaleNonces(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, form := b.previewed()
	foreign := e.signedIn("cus_a")
	// Another session's nonce: a fresh preview of one's own, nothing sent.
	if got := location(t, foreign.post(path, form), "/check/"); got == path {
		t.Error("a foreign nonce was taken")
	}
	if w := foreign.get(path); w.Code != 409 || !strings.Contains(w.Body.String(), "/plan") {
		t.Errorf("a foreign preview: %d, want 409", w.Code)
	}
	if w := foreign.post(path, url.Values{"nonce": form["nonce"]}); w.Code != 409 {
		t.Errorf("a foreign nonce and no fields: %d, want 409", w.Code)
	}
	if w := b.post(path, with(form, "nonce", "0123456789abcdefghijklmnop")); w.Code != 400 {
		t.Errorf("two nonces: %d, want 400", w.Code)
	}
	// Too old.
	e.advance(16 * time.Minute)
	if w := b.get(path); w.Code != 409 {
		t.Errorf("old preview: %d, want 409", w.Code)
	}
	fresh := location(t, b.post(path, form), "/check/")
	if fresh == path || len(e.provider.effects) != 0 {
		t.Errorf("old nonce leads to %s, effects %v", fresh, e.provider.effects)
	}
	// The numbers moved.
	e.provider.accounts["cus_a"].Subscriptions[0].Version = "s2"
	again := location(t, b.post(fresh, formOf(t, b.get(fresh).Body.String(), fresh)), "/check/")
	if again == fresh || len(e.provider.effects) != 0 {
		t.Errorf("moved numbers: %s, effects %v", again, e.provider.effects)
	}
	if !strings.Contains(b.get(again).Body.String(), "notice warn") {
		t.Error("the page does not say that the numbers moved")
	}
	location(t, b.post(again, formOf(t, b.get(again).Body.String(), again)), "/done/")
	// Changed since the page was drawn.
	cancel := formOf(t, b.get("/cancel").Body.String(), "/cancel")
	e.provider.accounts["cus_a"].Subscriptions[0].Version = "s9"
	if w := b.post("/cancel", cancel); w.Code != 409 || len(e.provider.effects) != 1 {
		t.Errorf("changed since: %d, effects %v", w.Code, e.provider.effects)
	}
}

func TestCancelAndResume(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	if !strings.Contains(b.get("/").Body.String(), `href="/cancel?subscription=sub_a"`) {
		t.Error("no way to cancel on the overview")
	}
	done := location(t, b.post("/cancel", formOf(t, b.get("/cancel?subscription=sub_a").Body.String(), "/cancel")), "/done/")
	body := b.get(done).Body.String()
	undo := formOf(t, body, "/resume")
	if undo.Get("subscription") != "sub_a" || undo.Get("version") == "" {
		t.Errorf("undo form %v", undo)
	}
	if to := location(t, b.get("/cancel?subscription=sub_a"), "/"); to != "/" {
		t.Errorf("cancelling twice leads to %s", to)
	}
	keep := formOf(t, b.get("/").Body.String(), "/resume")
	location(t, b.post("/resume", keep), "/done/")
	location(t, b.post("/resume", keep), "/done/")
	if w := b.post("/resume", undo); w.Code != 409 {
		t.Errorf("the receipt's undo after that: %d, want 409", w.Code)
	}
	if got := strings.Join(e.provider.effects, ","); got != "cancel sub_a,resume sub_a" {
		t.Errorf("effects %s", got)
	}
}

func TestAddMethod(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	for _, tc := range []struct{ goTo, refresh string }{
		{"https://pay.example/c/1?x=y&z", "0; url=https://pay.example/c/1?x=y&z"},
		{"http://localhost:9/card", "0; url=http://localhost:9/card"},
		{"http://pay.example/", ""},
		{"javascript:alert(1)", ""},
		{"https://pay.example/\r\nSet-Cookie: a=b", ""},
		{"//pay.example", ""},
		{"", ""},
	} {
		e.provider.waits = &billing.Result{State: billing.AwaitingCustomer, GoTo: tc.goTo, Reason: "enter_card"}
		form := formOf(t, b.get("/payment/add").Body.String(), "/payment/add")
		w := b.post("/payment/add", form)
		if tc.refresh == "" {
			to := location(t, w, "/done/")
			if w := b.get(strings.Replace(to, "/done/", "/leave/", 1)); w.Code != 303 || w.Header().Get("Refresh") != "" {
				t.Errorf("GoTo %q: leaves: %d %q", tc.goTo, w.Code, w.Header().Get("Refresh"))
			}
			continue
		}
		to := location(t, w, "/leave/")
		if again := location(t, b.post("/payment/add", form), "/leave/"); again != to {
			t.Error("posting twice makes two intents")
		}
		skipped := e.skipped
		page := b.get(to)
		if e.skipped != skipped+1 {
			t.Error("the access log keeps the provider's address in the answer's header")
		}
		if page.Code != 200 || page.Header().Get("Refresh") != tc.refresh || page.Header().Get("Location") != "" {
			t.Errorf("GoTo %q: %d, Refresh %q", tc.goTo, page.Code, page.Header().Get("Refresh"))
		}
		if w := e.signedIn("cus_b").get(to); w.Code != 404 {
			t.Errorf("another customer leaves by it: %d", w.Code)
		}
		i := e.intent(to)
		if i.Action.ReturnURL != origin+"/return/"+i.ID {
			t.Errorf("return URL %q", i.Action.ReturnURL)
		}
		// Back without having done anything, then having done it.
		back := "/return/" + i.ID
		done := location(t, b.get(back), "/done/")
		if !strings.Contains(b.get(done).Body.String(), `href="`+to+`"`) {
			t.Error("the receipt does not lead on to the provider")
		}
		if w := b.post(done, nil); location(t, w, done) != done {
			t.Error("check again")
		}
		e.provider.goes = true
		e.provider.waits = nil
		if w := b.send(httptest.NewRequest("HEAD", back, nil)); w.Code != 303 || e.intent(to).State != journal.AwaitingCustomer {
			t.Errorf("HEAD: %d, state %s", w.Code, e.intent(to).State)
		}
		location(t, b.get(back), "/done/")
		if got := e.intent(to).State; got != journal.Succeeded {
			t.Errorf("state %s, want succeeded", got)
		}
		if to := location(t, b.get(to), "/done/"); to != done {
			t.Error("a settled intent still leaves")
		}
		e.provider.goes = false
	}
}

func TestMakeDefault(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	form := formOf(t, b.get("/payment").Body.String(), "/payment/default")
	if form.Get("payment_method") != "pm2_cus_a" {
		t.Fatalf("form %v", form)
	}
	done := location(t, b.post("/payment/default", form), "/done/")
	if location(t, b.post("/payment/default", form), "/done/") != done || len(e.provider.effects) != 1 {
		t.Errorf("effects %v", e.provider.effects)
	}
	if !strings.Contains(b.get(done).Body.String(), "4444") {
		t.Error("the receipt does not name the card")
	}
}

func TestDetails(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	form := formOf(t, b.get("/details/name").Body.String(), "/details/name")
	done := location(t, b.post("/details/name", with(form, "name", "  Northwind Ltd ", "email", "evil@example.com", "balance", "-100")), "/done/")
	d := e.intent(done).Action.Details
	if d == nil || d.Name == nil || *d.Name != "Northwind Ltd" || d.Email != nil || d.Phone != nil || d.Address != nil {
		t.Errorf("details %+v", d)
	}
	if !strings.Contains(b.get("/").Body.String(), "Northwind Ltd") {
		t.Error("the overview has the old name")
	}
	// Two tabs: the second notices.
	if w := b.post("/details/name", with(form, "nonce", "0123456789abcdefghijklmnop", "name", "Other")); w.Code != 409 {
		t.Errorf("from an old page: %d, want 409", w.Code)
	}
	address := url.Values{"line1": {"1 High St"}, "city": {"Oxford"}, "postal_code": {"ox1 4pg"}, "country": {"GB"}}
	for _, tc := range []struct {
		section string
		form    url.Values
		field   string // "" is fine
	}{
		{"name", url.Values{"name": {""}}, "name"},
		{"name", url.Values{"name": {"   "}}, "name"},
		{"name", url.Values{"name": {strings.Repeat("é", 151)}}, "name"},
		{"name", url.Values{"name": {strings.Repeat("é", 150)}}, ""},
		{"name", url.Values{"name": {"a\r\nb"}}, "name"},
		{"name", url.Values{"name": {"a\x00b"}}, "name"},
		{"name", url.Values{"name": {"a\u202Eb"}}, "name"},
		{"email", url.Values{"email": {"billing@example.com"}}, ""},
		{"email", url.Values{"email": {"Bob <b@example.com>"}}, "email"},
		{"email", url.Values{"email": {"b@localhost"}}, "email"},
		{"email", url.Values{"email": {"b@@example.com"}}, "email"},
		{"email", url.Values{"email": {"a@example.com,b@example.com"}}, "email"},
		{"email", url.Values{"email": {"a@example.com\nBcc: x@y.z"}}, "email"},
		{"email", url.Values{"email": {`"a b"@example.com`}}, "email"},
		{"email", url.Values{"email": {strings.Repeat("a", 250) + "@b.cd"}}, "email"},
		{"email", url.Values{"email": {"a@b."}}, "email"},
		{"phone", url.Values{"phone": {"+49 30 123-45"}}, ""},
		{"phone", url.Values{"phone": {""}}, ""},
		{"phone", url.Values{"phone": {"call me"}}, "phone"},
		{"phone", url.Values{"phone": {"+1234567890123456789012"}}, "phone"},
		{"address", address, ""},
		{"address", with(address, "country", "XX"), "country"},
		{"address", with(address, "country", "gb"), "country"},
		{"address", with(address, "country", ""), "country"},
		{"address", with(address, "country", "GBR"), "country"},
		{"address", with(address, "line1", ""), "line1"},
		{"address", with(address, "line2", strings.Repeat("x", 201)), "line2"},
	} {
		path := "/details/" + tc.section
		hidden := formOf(t, b.get(path).Body.String(), path)
		maps.Copy(hidden, tc.form)
		if tc.section == "address" {
			hidden.Set("form_country", tc.form.Get("country"))
		}
		if tc.field == "" {
			location(t, b.post(path, hidden), "/done/")
			continue
		}
		e.unchanged(tc.section, func() {
			if w := b.post(path, hidden); w.Code != 422 || !strings.Contains(w.Body.String(), `href="#`+tc.field+`"`) {
				t.Errorf("%s %v: %d, want 422 with a message at %s", tc.section, tc.form, w.Code, tc.field)
			}
		})
	}
}

// TestStates draws the receipt of every state, from the provider's answer on.
func TestStates(t *testing.T) {
	for _, tc := range []struct {
		name  string
		set   func(*fake)
		state journal.State
		want  string
	}{
		{"refused", func(f *fake) { f.fault = billing.Refused }, journal.Refused, `href="/plan?subscription=sub_a"`},
		{"unknown", func(f *fake) { f.fault = billing.Unknown }, journal.Unknown, "Check again"},
		{"waiting", func(f *fake) {
			f.waits = &billing.Result{State: billing.AwaitingCustomer, Reason: "card_declined", Until: time.Date(2026, 5, 15, 14, 0, 0, 0, time.UTC), GoTo: "https://pay.example/3ds"}
			f.accounts["cus_a"].Subscriptions[0].Pending = &billing.PendingUpdate{Items: []billing.Item{{Price: team, Quantity: 4}}, AmountDue: billing.Money{Amount: 12000, Currency: "eur"}}
		}, journal.AwaitingCustomer, `action="/drop"`},
		{"processing", func(f *fake) { f.waits = &billing.Result{State: billing.Processing} }, journal.Processing, "Check again"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t)
			b := e.signedIn("cus_a")
			path, form := b.previewed()
			tc.set(e.provider)
			done := location(t, b.post(path, form), "/done/")
			if i := e.intent(done); i.State != tc.state {
				t.Fatalf("state %s, want %s", i.State, tc.state)
			}
			w := b.get(done)
			if w.Code != 200 || !strings.Contains(w.Body.String(), tc.want) {
				t.Errorf("receipt: %d, lacks %q: %s", w.Code, tc.want, w.Body)
			}
			overview := b.get("/").Body.String()
			switch tc.state {
			case journal.Unknown:
				// Nothing else may be done to it, and everybody is told why.
				if !strings.Contains(overview, `href="`+done+`"`) || strings.Contains(overview, `href="/cancel?subscription=sub_a">Cancel`) && strings.Contains(overview, `class="button" href="/cancel`) {
					t.Errorf("the overview does not say that a change is being checked: %s", overview)
				}
				e.provider.fault = ""
				w := b.post("/plan", url.Values{"subscription": {"sub_a"}, "price": {"price_team"}, "quantity": {"4"}})
				if w.Code != 409 || !strings.Contains(w.Body.String(), `href="`+done+`"`) {
					t.Errorf("another change meanwhile: %d, want 409 that leads to the receipt", w.Code)
				}
				// The receipt stands while the provider is down, too.
				e.provider.down = true
				e.accounts.Drop("cus_a")
				if w := b.get(done); w.Code != 200 {
					t.Errorf("receipt while the provider is down: %d", w.Code)
				}
				e.provider.down = false
				location(t, b.post(done, nil), done)
				if i := e.intent(done); i.State != journal.Succeeded || len(e.provider.effects) != 1 {
					t.Errorf("after checking: %s, effects %v", i.State, e.provider.effects)
				}
			case journal.AwaitingCustomer:
				if !strings.Contains(overview, `href="`+done+`"`) {
					t.Error("the banner does not lead to what waits")
				}
				if !strings.Contains(w.Body.String(), `href="/leave/`) {
					t.Error("no way to the bank's page")
				}
				e.provider.waits = nil
				location(t, b.post("/drop", formOf(t, w.Body.String(), "/drop")), "/done/")
				if got := strings.Join(e.provider.effects, ","); got != "drop_pending sub_a" {
					t.Errorf("effects %s", got)
				}
			}
		})
	}
}

func TestRefusedPreview(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	e.provider.refuse = "currency_mismatch"
	w := b.post("/plan", url.Values{"subscription": {"sub_a"}, "price": {"price_team"}, "quantity": {"4"}})
	if w.Code != 409 || len(e.provider.effects) != 0 {
		t.Errorf("%d, effects %v", w.Code, e.provider.effects)
	}
}

// TestLateStoreFailure holds that a page never says "nothing was sent" once
// something was.
func TestLateStoreFailure(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, form := b.previewed()
	e.corridor.Journal.Store = &failsLater{Store: e.store, after: 2} // planned, sent, then no more
	w := b.post(path, form)
	location(t, w, "/done/")
	e.corridor.Journal.Store = e.store
	if body := b.get(w.Header().Get("Location")).Body.String(); !strings.Contains(body, "Check again") {
		t.Errorf("the receipt does not say that it is being checked: %s", body)
	}
}

type failsLater struct {
	store.Store
	mu    sync.Mutex
	after int
}

func (s *failsLater) Update(ctx context.Context, fn func(store.Tx) error) error {
	s.mu.Lock()
	s.after--
	left := s.after
	s.mu.Unlock()
	if left < 0 {
		return context.DeadlineExceeded
	}
	return s.Store.Update(ctx, fn)
}

// TestNoSecretsInLogs walks through a visit and looks for cookies and tokens.
func TestNoSecretsInLogs(t *testing.T) {
	e := newEnv(t)
	token := e.token("cus_a")
	b := &browser{env: e}
	b.get("/enter?token="+token, navigation)
	b.get("/enter?token="+token, navigation)
	path, form := b.previewed()
	b.post(path, form)
	e.provider.down = true
	b.get("/invoices")
	b.post("/enter", url.Values{"token": {token}})
	if e.logs.Len() == 0 {
		t.Fatal("nothing was logged")
	}
	signature := token[strings.LastIndexByte(token, '.')+1:]
	for _, entry := range e.logs.All() {
		line, _ := json.Marshal(entry.ContextMap())
		if text := entry.Message + string(line); strings.Contains(text, signature) || strings.Contains(text, b.cookie) || strings.Contains(text, form.Get("nonce")) {
			t.Errorf("a secret is in the log: %s", text)
		}
	}
}

// TestOthersIntents holds that somebody who may not begin a change may not move
// it on either, though all of an account's people may look at its receipts.
func TestOthersIntents(t *testing.T) {
	e := newEnv(t)
	owner := e.signedIn("cus_a")
	path, form := owner.previewed()
	e.provider.waits = &billing.Result{State: billing.AwaitingCustomer, Reason: "authentication_required", GoTo: "https://pay.example/3ds"}
	e.provider.accounts["cus_a"].Subscriptions[0].Pending = &billing.PendingUpdate{Items: []billing.Item{{Price: team, Quantity: 4}}, AmountDue: billing.Money{Amount: 12000, Currency: "eur"}}
	done := location(t, owner.post(path, form), "/done/")
	id := strings.TrimPrefix(done, "/done/")
	// The bank has agreed: whoever asks the provider next makes the change.
	e.provider.goes = true
	moves := []string{`href="/leave/`, `action="` + done, `action="/drop"`, `href="/payment/add"`, "pay.example"}
	for name, change := range map[string]func(*link.Claims){
		"viewer":                    func(c *link.Claims) { c.Role = "viewer" },
		"without the permission":    func(c *link.Claims) { c.Permissions = []string{policy.Cancel} },
		"under other rules":         func(c *link.Claims) { c.Configuration = "strict" },
		"under rules that are gone": func(c *link.Claims) { c.Configuration = "gone" },
	} {
		t.Run(name, func(t *testing.T) {
			b := e.signedIn("cus_a", change)
			w := b.get(done)
			if w.Code != 200 || !strings.Contains(w.Body.String(), "Reference") {
				t.Fatalf("the receipt: %d %s", w.Code, w.Body)
			}
			for _, s := range moves {
				if strings.Contains(w.Body.String(), s) {
					t.Errorf("the receipt has %s", s)
				}
			}
			e.unchanged(name, func() {
				if w := b.get("/leave/" + id); w.Code != 403 || w.Header().Get("Refresh") != "" || strings.Contains(w.Body.String(), "pay.example") {
					t.Errorf("leave: %d, Refresh %q: %s", w.Code, w.Header().Get("Refresh"), w.Body)
				}
				if w := b.post(done, nil); w.Code != 403 {
					t.Errorf("check again: %d, want 403", w.Code)
				}
				location(t, b.get("/return/"+id), done)
			})
			if got := e.intent(done).State; got != journal.AwaitingCustomer {
				t.Errorf("state %s: the change was moved on", got)
			}
		})
	}
	if w := owner.get(done); !strings.Contains(w.Body.String(), moves[0]) || !strings.Contains(w.Body.String(), moves[1]) {
		t.Errorf("the owner cannot go on: %s", w.Body)
	}
	// Another owner's session can.
	location(t, e.signedIn("cus_a").get("/return/"+id), done)
	if got := e.intent(done).State; got != journal.Succeeded {
		t.Errorf("state %s, want succeeded", got)
	}
}

// TestDirectionOfOthersIntents holds that the direction of a change counts for
// moving it on, too.
func TestDirectionOfOthersIntents(t *testing.T) {
	e := newEnv(t)
	up := must[*policy.Policy](t)(policy.New(allowAll, nil))
	down := must[*policy.Policy](t)(policy.New([]policy.Rule{
		{Verdict: policy.Allow, Actions: []string{policy.ChangePlan}, Directions: []policy.Direction{policy.Downgrade}},
	}, nil))
	e.corridor.Policy = func(name string) *policy.Policy { return map[string]*policy.Policy{"": up, "down": down}[name] }
	owner := e.signedIn("cus_a")
	path, form := owner.previewed()
	e.provider.waits = &billing.Result{State: billing.AwaitingCustomer, GoTo: "https://pay.example/3ds"}
	done := location(t, owner.post(path, form), "/done/")
	b := e.signedIn("cus_a", func(c *link.Claims) { c.Configuration = "down" })
	if w := b.get(strings.Replace(done, "/done/", "/leave/", 1)); w.Code != 403 {
		t.Errorf("leaving for an upgrade where only downgrades are allowed: %d, want 403", w.Code)
	}
	if w := b.get(done); strings.Contains(w.Body.String(), `href="/leave/`) {
		t.Error("the receipt leads on")
	}
}

// TestReceiptOutlivesTheCard holds that a receipt does not claim that it was
// paid with a card that was chosen later.
func TestReceiptOutlivesTheCard(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	path, form := b.previewed()
	done := location(t, b.post(path, form), "/done/")
	if w := b.get(done); !strings.Contains(w.Body.String(), "4242") {
		t.Errorf("the receipt does not say what paid: %s", w.Body)
	}
	e.advance(time.Minute)
	location(t, b.post("/payment/default", formOf(t, b.get("/payment").Body.String(), "/payment/default")), "/done/")
	w := b.get(done)
	if s := w.Body.String(); w.Code != 200 || strings.Contains(s, "4444") || strings.Contains(s, "4242") || !strings.Contains(s, "was paid.") {
		t.Errorf("after another card was chosen: %d %s", w.Code, s)
	}
}

// TestDroppedInvoice holds that the invoice of a change that was dropped is not
// offered: nobody owes it.
func TestDroppedInvoice(t *testing.T) {
	l := &look{acct: &billing.Account{}}
	for kind, want := range map[billing.ActionKind]bool{billing.DropPending: false, billing.ChangePlan: true} {
		i := journal.Intent{Action: billing.Action{Kind: kind}, Steps: []journal.Step{{Result: &billing.Result{Invoice: &billing.Invoice{ID: "in_1"}}}}}
		var body templates.Receipt
		if l.sums(&body, &i); (body.Invoice != nil) != want {
			t.Errorf("%s: invoice %v, want one: %t", kind, body.Invoice, want)
		}
	}
}
