package pages

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
)

func cents(n int64) billing.Money { return billing.Money{Amount: n, Currency: "eur"} }

// owe gives a customer debts of 58.80, a failed payment each, oldest first.
func (e *env) owe(customer string, ids ...string) *billing.Account {
	a := e.provider.accounts[customer]
	a.Subscriptions[0].Status = billing.PastDue
	for n, id := range ids {
		a.Debts = append(a.Debts, billing.Invoice{
			ID: id, Number: "N-" + id, Status: billing.InvoiceOpen, Subscription: a.Subscriptions[0].ID, Attempted: true, Failure: "insufficient_funds",
			Created: e.now().AddDate(0, 0, n-20), Total: cents(5880), AmountDue: cents(5880), AmountRemaining: cents(5880), HasDocument: true,
			Method: &a.PaymentMethods[0],
		})
	}
	return a
}

func (e *env) effects() string { return strings.Join(e.provider.effects, ", ") }

// payForm is the form of a page that pays, for its currency.
func payForm(t *testing.T, body, action string) url.Values {
	t.Helper()
	return with(formOf(t, body, action), "currency", "eur")
}

// pageSays checks what a page says, without its markup.
func pageSays(t *testing.T, body string, want ...string) {
	t.Helper()
	text := strings.Join(strings.Fields(tagsAway(body)), " ")
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("the page does not say %q: %s", w, text)
		}
	}
}

func tagsAway(s string) string {
	var b strings.Builder
	in := false
	for _, r := range s {
		switch {
		case r == '<':
			in = true
		case r == '>':
			in = false
		case !in && r != '\u2068' && r != '\u2069':
			b.WriteRune(r)
		}
	}
	return strings.ReplaceAll(b.String(), "\u00a0", " ")
}

// TestPayOverdue: from the overview in two clicks.
func TestPayOverdue(t *testing.T) {
	e := newEnv(t)
	e.owe("cus_a", "in_late").Debts[0].NextAttempt = e.now().AddDate(0, 0, 3)
	b := e.signedIn("cus_a")
	overview := b.get("/").Body.String()
	pageSays(t, overview, "Past due: €58.80 was due on 24 April 2026. The payment with Visa ending 4242 did not go through. There was not enough money in the account. The next try is on 17 May 2026")
	if !strings.Contains(overview, `class="button primary" href="/pay/in_late"`) {
		t.Errorf("the banner does not lead to paying it: %s", overview)
	}
	page := b.get("/pay/in_late").Body.String()
	pageSays(t, page, "Pay €58.80", "There was not enough money in the account.", "Pay with", "Mastercard ending 4444")
	if !strings.Contains(page, `value="pm_cus_a" autocomplete="off" checked`) || strings.Contains(page, `class="banner`) {
		t.Errorf("what pays is not chosen, or a banner asks for the same: %s", page)
	}
	form := with(payForm(t, page, "/pay/in_late"), "payment_method", "pm2_cus_a")
	done := location(t, b.post("/pay/in_late", form), "/done/")
	if e.effects() != "pay in_late 5880" {
		t.Fatalf("effects %s", e.effects())
	}
	i := e.intent(done)
	if i.Action.PaymentMethod != "pm2_cus_a" || i.State != journal.Succeeded || i.Action.ReturnURL == "" {
		t.Errorf("%+v", i)
	}
	pageSays(t, b.get(done).Body.String(), "You paid €58.80", "Plan “Basic” is active.", "Invoice N-in_late", "€58.80 with Mastercard ending 4444")
	// Posted again, from the same page: the same payment.
	if again := location(t, b.post("/pay/in_late", form), "/done/"); again != done || len(e.provider.effects) != 1 {
		t.Errorf("posted again: %s, effects %s", again, e.effects())
	}
	if s := b.get("/").Body.String(); strings.Contains(s, "Past due") {
		t.Errorf("still past due: %s", s)
	}
	// The page of what is paid leads to what is due: nothing.
	location(t, b.get("/pay/in_late"), "/pay")
	pageSays(t, b.get("/pay").Body.String(), "Nothing is due")
}

// TestBannerEverywhere holds that what is overdue stands on every page, with a
// button, in front of everything else, also while the provider is down.
func TestBannerEverywhere(t *testing.T) {
	e := newEnv(t)
	a := e.owe("cus_a", "in_1", "in_2", "in_3")
	a.Subscriptions[0].Pending = &billing.PendingUpdate{Items: []billing.Item{{Price: team, Quantity: 4}}, AmountDue: cents(2000), ExpiresAt: e.now().AddDate(0, 0, 1)}
	b := e.signedIn("cus_a")
	paths := []string{"/", "/plan", "/payment", "/invoices", "/devices", "/payment/add", "/cancel", "/payment/remove/pm_cus_a", "/payment/use/pm_cus_a", "/details/name", "/invoices/in_b/pdf"}
	for _, path := range paths {
		body := b.get(path).Body.String()
		pageSays(t, body, "Past due: 3 invoices, €176.40 in all. The oldest was due on 24 April 2026.", "Pay 3 invoices, €176.40")
		if strings.Count(body, `class="banner`) != 1 || !strings.Contains(body, `href="/pay">`) {
			t.Errorf("%s has not one banner that leads to paying: %s", path, body)
		}
		if n := strings.Count(body, " primary\"") + strings.Count(body, "button danger\""); n > 1 {
			t.Errorf("%s has %d primary buttons", path, n)
		}
	}
	e.provider.down = true
	for _, path := range []string{"/invoices", "/devices", "/invoices/in_cus_a/pdf"} {
		pageSays(t, b.get(path).Body.String(), "Past due: 3 invoices, €176.40 in all.")
	}
	e.provider.down = false
	viewer := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	body := viewer.get("/").Body.String()
	pageSays(t, body, "Past due: 3 invoices", "See what is due")
	if strings.Contains(body, "Pay 3 invoices") {
		t.Error("a viewer is offered to pay")
	}
	// Nobody else's.
	if s := e.signedIn("cus_b").get("/").Body.String(); strings.Contains(s, "Past due") {
		t.Error("another customer's debts are shown")
	}
	// Another session's cookie, none at all.
	if s := (&browser{env: e}).get("/").Body.String(); strings.Contains(s, "Past due") {
		t.Error("debts are shown to nobody in particular")
	}
}

// TestBannerKinds holds what the banner says about each kind of debt.
func TestBannerKinds(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(e *env, a *billing.Account)
		want []string
		not  string
	}{
		{"currencies", func(e *env, a *billing.Account) {
			e.owe("cus_a", "in_1", "in_2")
			a.Debts[1].AmountRemaining = billing.Money{Amount: 2000, Currency: "usd"}
		}, []string{"Past due: 2 invoices. €58.80 is overdue. $20.00 is overdue.", "See what is due"}, ""},
		{"by hand", func(e *env, a *billing.Account) {
			e.owe("cus_a", "in_1")
			d := &a.Debts[0]
			d.Attempted, d.SendInvoice, d.DueDate, d.Method, d.Failure = false, true, e.now().AddDate(0, 0, -2), nil, ""
			a.Subscriptions[0].SendInvoice = true
		}, []string{"Past due: €58.80 was due on 12 May 2026.", "Pay €58.80"}, "did not go through"},
		{"by hand, not due", func(e *env, a *billing.Account) {
			e.owe("cus_a", "in_1")
			d := &a.Debts[0]
			d.Attempted, d.SendInvoice, d.DueDate = false, true, e.now().AddDate(0, 0, 2)
			a.Subscriptions[0].Status = billing.Active
		}, nil, `class="banner`},
		{"on its way", func(e *env, a *billing.Account) {
			e.owe("cus_a", "in_1")
			a.Debts[0].Processing = true
		}, []string{"On its way: a payment of €58.80. From a bank account this usually takes 5 working days."}, "Past due: "},
		{"unheard-of reason", func(e *env, a *billing.Account) {
			e.owe("cus_a", "in_1")
			a.Debts[0].Failure = "stolen_card"
		}, []string{"Your bank declined it. It did not say why."}, "stolen"},
		{"no method", func(e *env, a *billing.Account) {
			e.owe("cus_a", "in_1")
			a.Debts[0].Method, a.Debts[0].Failure, a.PaymentMethods, a.Customer.DefaultPaymentMethod = nil, "", nil, ""
		}, []string{"There is no payment method to pay it with."}, "did not go through"},
		{"not said what", func(_ *env, a *billing.Account) {
			a.Subscriptions[0].Status, a.Failed = billing.PastDue, []billing.Section{billing.SectionDebts}
		}, []string{"Past due: a payment is overdue.", "See what is due"}, ""},
		{"waiting change", func(e *env, a *billing.Account) {
			a.Subscriptions[0].Pending = &billing.PendingUpdate{Items: []billing.Item{{Price: team, Quantity: 4}}, AmountDue: cents(2000), ExpiresAt: e.now().AddDate(0, 0, 1)}
		}, []string{"Action needed: your change to plan “Team” waits for its payment.", "Use another card", "Drop this change"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t)
			tc.set(e, e.provider.accounts["cus_a"])
			b := e.signedIn("cus_a")
			body := b.get("/invoices").Body.String()
			pageSays(t, body, tc.want...)
			if tc.not != "" && strings.Contains(body, tc.not) {
				t.Errorf("the page says %q: %s", tc.not, body)
			}
			if tc.name == "waiting change" {
				location(t, b.post("/drop", formOf(t, body, "/drop")), "/done/")
				if e.effects() != "drop_pending sub_a" {
					t.Errorf("effects %s", e.effects())
				}
			}
		})
	}
}

// TestPayAll pays several at once; one that is declined does not stop the
// others, and each says what became of it.
func TestPayAll(t *testing.T) {
	e := newEnv(t)
	e.owe("cus_a", "in_1", "in_2", "in_3")
	e.provider.declines = map[string]string{"in_2": "expired_card"}
	b := e.signedIn("cus_a")
	page := b.get("/pay").Body.String()
	pageSays(t, page, "Pay what is due", "Pay all 3, €176.40", "Invoice N-in_1", "Invoice N-in_2", "Invoice N-in_3", "Pay €58.80 for N-in_2")
	done := location(t, b.post("/pay", with(payForm(t, page, "/pay"), "payment_method", "pm_cus_a")), "/done/")
	if e.effects() != "pay in_1 5880, pay in_3 5880" || e.intent(done).State != journal.Partial {
		t.Fatalf("effects %s, state %s", e.effects(), e.intent(done).State)
	}
	body := b.get(done).Body.String()
	pageSays(t, body, "2 of 3 invoices are paid", "Not paid", "The card has expired.", "Pay €58.80 for N-in_2", "€117.60 with Visa ending 4242", "Use another card")
	if !strings.Contains(body, `href="/payment/add?pay=in_2"`) || !strings.Contains(body, `href="/pay/in_2"`) {
		t.Errorf("no way on for the one that is not paid: %s", body)
	}
}

// TestPayStates draws what a payment can end in.
func TestPayStates(t *testing.T) {
	for _, tc := range []struct {
		name  string
		set   func(*fake)
		state journal.State
		want  []string
	}{
		{"declined", func(f *fake) { f.declines = map[string]string{"in_1": "insufficient_funds"} }, journal.Refused, []string{
			"Your bank declined the payment", "€58.80 was not paid.", "There was not enough money in the account.", "Use another card", "Try again",
		}},
		{"at the bank", func(f *fake) {
			f.asks = map[string]*billing.Result{"in_1": {State: billing.AwaitingCustomer, Reason: "authentication_required", GoTo: "https://pay.example/3ds"}}
		}, journal.AwaitingCustomer, []string{"Your bank asks you to confirm the payment", "Confirm €58.80 at Payco", "Start again"}},
		{"on its way", func(f *fake) { f.asks = map[string]*billing.Result{"in_1": {State: billing.Processing}} }, journal.Processing, []string{
			"Your payment is on its way", "On its way", "usually takes 5 working days",
		}},
		{"being checked", func(f *fake) { f.fault = billing.Unknown }, journal.Unknown, []string{"We are checking your change", "Being checked"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t)
			e.owe("cus_a", "in_1")
			b := e.signedIn("cus_a")
			form := with(payForm(t, b.get("/pay/in_1").Body.String(), "/pay/in_1"), "payment_method", "pm_cus_a")
			tc.set(e.provider)
			done := location(t, b.post("/pay/in_1", form), "/done/")
			if got := e.intent(done).State; got != tc.state {
				t.Fatalf("state %s, want %s", got, tc.state)
			}
			pageSays(t, b.get(done).Body.String(), tc.want...)
			page := b.get("/pay/in_1").Body.String()
			switch tc.state {
			case journal.AwaitingCustomer:
				pageSays(t, page, "You started this payment at 14 May 2026, 15:02 UTC. It isn’t finished. Continue it")
				// There and back.
				e.provider.goes = true
				location(t, b.get(strings.Replace(done, "/done/", "/return/", 1)), done)
				pageSays(t, b.get(done).Body.String(), "You paid €58.80")
			case journal.Unknown:
				// Nobody pays it a second time meanwhile.
				pageSays(t, page, "We are checking a payment of it. Please don’t pay it again.")
				if strings.Contains(page, `action="/pay`) {
					t.Errorf("it can be paid again: %s", page)
				}
				e.provider.fault = ""
				again := with(form, "nonce_eur", "0123456789abcdefghijklmnop")
				if w := b.post("/pay/in_1", again); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), `href="`+done+`"`) {
					t.Errorf("paying it again: %d %s", w.Code, w.Body)
				}
				location(t, b.post(done, nil), done)
				if e.effects() != "pay in_1 5880" {
					t.Errorf("effects %s", e.effects())
				}
			}
		})
	}
}

// TestPaidAfterItFailed holds that nobody is told that nothing was charged for an
// invoice that is not owed any more: the bank's question was answered after its
// time, or another card paid it.
func TestPaidAfterItFailed(t *testing.T) {
	e := newEnv(t)
	a := e.owe("cus_a", "in_1", "in_2")
	b := e.signedIn("cus_a")
	e.provider.declines = map[string]string{"in_1": "expired_card"}
	done := location(t, b.post("/pay/in_1", with(payForm(t, b.get("/pay/in_1").Body.String(), "/pay/in_1"), "payment_method", "pm_cus_a")), "/done/")
	pageSays(t, b.get(done).Body.String(), "€58.80 was not paid.", "nothing was charged", "Not paid")
	a.Debts = a.Debts[1:]
	e.advance(2 * time.Minute)
	page := b.get(done).Body.String()
	pageSays(t, page, "Not due any more", "isn’t due any more: it was paid in another way")
	for _, lie := range []string{"was not paid", "nothing was charged", "Nothing was charged", `href="/pay/in_1"`} {
		if strings.Contains(page, lie) {
			t.Errorf("the receipt says %q: %s", lie, page)
		}
	}
}

// TestPaidMeanwhile holds that no sum is charged that was not shown.
func TestPaidMeanwhile(t *testing.T) {
	e := newEnv(t)
	a := e.owe("cus_a", "in_1", "in_2")
	b := e.signedIn("cus_a")
	all := with(payForm(t, b.get("/pay").Body.String(), "/pay"), "payment_method", "pm_cus_a")
	one := with(payForm(t, b.get("/pay/in_1").Body.String(), "/pay/in_1"), "payment_method", "pm_cus_a")
	a.Debts[0].AmountRemaining = cents(900)
	w := b.post("/pay", all)
	if w.Code != http.StatusConflict || len(e.provider.effects) != 0 {
		t.Fatalf("%d, effects %s", w.Code, e.effects())
	}
	pageSays(t, w.Body.String(), "What is due changed while you were here: now €67.80 instead of €117.60. Nothing was charged.", "Pay all 2, €67.80")
	w = b.post("/pay/in_1", one)
	pageSays(t, w.Body.String(), "now €9.00 instead of €58.80. Nothing was charged.", "Pay €9.00")
	location(t, b.post("/pay/in_1", with(payForm(t, w.Body.String(), "/pay/in_1"), "payment_method", "pm_cus_a")), "/done/")
	if e.effects() != "pay in_1 900" {
		t.Fatalf("effects %s", e.effects())
	}
	// Paid: what is left is shown instead.
	w = b.post("/pay/in_1", with(one, "nonce_eur", "0123456789abcdefghijklmnop"))
	if w.Code != http.StatusSeeOther && w.Code != http.StatusConflict || len(e.provider.effects) != 1 {
		t.Fatalf("%d, effects %s", w.Code, e.effects())
	}
}

// TestPayInput: what a form can be bent into changes nothing.
func TestPayInput(t *testing.T) {
	e := newEnv(t)
	e.owe("cus_a", "in_1", "in_2")
	e.owe("cus_b", "in_b")
	b := e.signedIn("cus_a")
	b.get("/pay")
	form := with(payForm(t, b.get("/pay/in_1").Body.String(), "/pay/in_1"), "payment_method", "pm_cus_a")
	for name, tc := range map[string]struct {
		path string
		form url.Values
		code int
	}{
		"another customer's invoice":    {"/pay/in_b", with(form, "invoices_eur", "in_b"), 404},
		"another customer's method":     {"/pay/in_1", with(form, "payment_method", "pm_cus_b"), 404},
		"no sum":                        {"/pay/in_1", with(form, "amount_eur", ""), 400},
		"a negative sum":                {"/pay/in_1", with(form, "amount_eur", "-5880"), 400},
		"a sum too large for a number":  {"/pay/in_1", with(form, "amount_eur", "99999999999999999999"), 400},
		"no currency":                   {"/pay/in_1", with(form, "currency", ""), 400},
		"a currency that is none":       {"/pay/in_1", with(form, "currency", "EUR"), 400},
		"another currency":              {"/pay/in_1", with(form, "currency", "usd"), 400},
		"no invoice":                    {"/pay/in_1", with(form, "invoices_eur", ""), 400},
		"an invoice twice":              {"/pay", with(form, "invoices_eur", "in_1,in_1"), 400},
		"an id with a path in it":       {"/pay", with(form, "invoices_eur", "in_1,../x"), 400},
		"an invoice of another page":    {"/pay/in_1", with(form, "invoices_eur", "in_2"), 400},
		"more than one payment can pay": {"/pay", with(form, "invoices_eur", "a"+strings.Repeat(",b", 20)), 400},
		"a method that is no id":        {"/pay/in_1", with(form, "payment_method", "pm 1"), 400},
		"a nonce that is none":          {"/pay/in_1", with(form, "nonce_eur", "x"), 400},
	} {
		if w := b.post(tc.path, tc.form); w.Code != tc.code {
			t.Errorf("%s: %d, want %d: %s", name, w.Code, tc.code, w.Body)
		}
	}
	for _, path := range []string{"/pay/in_b", "/transfer/in_b", "/payment/add?pay=in_b", "/payment/add?pay=in_1,in_b", "/payment/remove/pm_cus_b", "/payment/use/pm_cus_b", "/payment/add?pay=", "/pay/in_1/x"} {
		if w := b.get(path); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, w.Code)
		}
	}
	if len(e.provider.effects) != 0 {
		t.Errorf("effects %s", e.effects())
	}
	for name, c := range map[string]func(*link.Claims){
		"viewer":   func(c *link.Claims) { c.Role = "viewer" },
		"narrowed": func(c *link.Claims) { c.Permissions = []string{policy.UpdatePaymentMethod} },
		"denied":   func(c *link.Claims) { c.Configuration = "strict" },
	} {
		b := e.signedIn("cus_a", c)
		page := b.get("/pay").Body.String()
		pageSays(t, page, "Invoice N-in_1")
		if strings.Contains(page, "<form method=\"post\" action=\"/pay") || !strings.Contains(page, `class="why"`) {
			t.Errorf("%s may pay, or is not told why not: %s", name, page)
		}
		for _, path := range []string{"/payment/add?pay=in_1", "/transfer/in_1"} {
			if w := b.get(path); w.Code != http.StatusForbidden {
				t.Errorf("%s: %s: %d, want 403", name, path, w.Code)
			}
		}
		if w := b.post("/pay/in_1", form); w.Code != http.StatusForbidden || len(e.provider.effects) != 0 {
			t.Errorf("%s: %d, effects %s", name, w.Code, e.effects())
		}
	}
}

// TestPayUnseen: where a rule denies looking at invoices, only those who pay see
// what is owed, and nobody its papers.
func TestPayUnseen(t *testing.T) {
	e := newEnv(t)
	e.owe("cus_a", "in_1")
	rule := policy.Rule{Verdict: policy.Deny, Actions: []string{policy.ViewInvoices}, Text: "Ask accounting."}
	pol := must[*policy.Policy](t)(policy.New(append(slices.Clone(allowAll), rule), nil))
	e.corridor.Policy = func(string) *policy.Policy { return pol }
	viewer := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	w := viewer.get("/pay")
	pageSays(t, w.Body.String(), "Ask accounting.", "Past due: €58.80")
	if w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "N-in_1") || strings.Contains(w.Body.String(), `href="/pay"`) || strings.Contains(w.Body.String(), `href="/pay/`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	page := e.signedIn("cus_a").get("/pay").Body.String()
	if !strings.Contains(page, `action="/pay/in_1"`) || strings.Contains(page, "/pdf") {
		t.Errorf("who may pay cannot, or is offered the paper: %s", page)
	}
}

func FuzzInvoiceIDs(f *testing.F) {
	for _, s := range []string{"", ",", "in_1", "in_1,in_2", "in_1,in_1", "a/b", strings.Repeat("x,", 30), strings.Repeat("y", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ids, ok := invoiceIDs(s)
		if !ok {
			return
		}
		if strings.Join(ids, ",") != s || len(ids) == 0 || len(ids) > billing.MaxPay || slices.ContainsFunc(ids, func(id string) bool { return !validID(id) }) {
			t.Errorf("%q became %q", s, ids)
		}
	})
}

// TestPayInCurrencies has one button each, good for a payment each.
func TestPayInCurrencies(t *testing.T) {
	e := newEnv(t)
	a := e.owe("cus_a", "in_1", "in_2", "in_3")
	a.Debts[1].AmountRemaining, a.Debts[1].Total = billing.Money{Amount: 2000, Currency: "usd"}, billing.Money{Amount: 2000, Currency: "usd"}
	b := e.signedIn("cus_a")
	page := b.get("/pay").Body.String()
	pageSays(t, page, "Pay all 2, €117.60", "Pay 1, $20.00")
	form := with(payForm(t, page, "/pay"), "payment_method", "pm_cus_a")
	first := location(t, b.post("/pay", form), "/done/")
	second := location(t, b.post("/pay", with(form, "currency", "usd")), "/done/")
	if first == second || e.effects() != "pay in_1 5880, pay in_3 5880, pay in_2 2000" {
		t.Errorf("%s %s: effects %s", first, second, e.effects())
	}
}

// TestPayManyAtOnce bounds what one button pays.
func TestPayManyAtOnce(t *testing.T) {
	e := newEnv(t)
	var ids []string
	for n := range 25 {
		ids = append(ids, fmt.Sprintf("in_%02d", n))
	}
	e.owe("cus_a", ids...)
	b := e.signedIn("cus_a")
	page := b.get("/pay").Body.String()
	pageSays(t, page, "Pay the 20 oldest, €1,176.00")
	location(t, b.post("/pay", with(payForm(t, page, "/pay"), "payment_method", "pm_cus_a")), "/done/")
	if len(e.provider.effects) != 20 || e.provider.effects[0] != "pay in_00 5880" {
		t.Errorf("%d effects", len(e.provider.effects))
	}
}

// TestTransfer leads to the provider's page about an invoice that is paid by
// hand, and its address into no log.
func TestTransfer(t *testing.T) {
	e := newEnv(t)
	a := e.owe("cus_a", "in_1", "in_2")
	d := &a.Debts[0]
	d.Attempted, d.SendInvoice, d.DueDate, d.PaymentPage = false, true, e.now().AddDate(0, 0, -2), "https://invoice.payco.example/i/secret"
	b := e.signedIn("cus_a")
	page := b.get("/pay/in_1").Body.String()
	pageSays(t, page, "Bank details and payment page at Payco", "Due since 12 May 2026")
	skipped := e.skipped
	w := b.get("/transfer/in_1")
	if w.Code != 200 || w.Header().Get("Refresh") != "0; url=https://invoice.payco.example/i/secret" || e.skipped != skipped+1 {
		t.Errorf("%d %v, kept out of the access log: %d", w.Code, w.Header(), e.skipped-skipped)
	}
	if w := b.get("/transfer/in_2"); w.Code != http.StatusNotFound {
		t.Errorf("one that a card pays: %d", w.Code)
	}
	d.PaymentPage = "javascript:alert(1)"
	e.advance(2 * time.Minute)
	if w := b.get("/transfer/in_1"); w.Code != http.StatusNotFound || w.Header().Get("Refresh") != "" {
		t.Errorf("to nowhere: %d %v", w.Code, w.Header())
	}
	for _, entry := range e.logs.All() {
		if s := fmt.Sprint(entry.Message, entry.ContextMap()); strings.Contains(s, "secret") {
			t.Errorf("the address is in the log: %s", s)
		}
	}
}

// TestSectionsThatFail: nothing is done with what could not be read, and nothing
// is said to be empty.
func TestSectionsThatFail(t *testing.T) {
	e := newEnv(t)
	a := e.owe("cus_a", "in_1")
	a.Failed, a.PaymentMethods = []billing.Section{billing.SectionPaymentMethods}, nil
	b := e.signedIn("cus_a")
	for _, path := range []string{"/payment", "/pay"} {
		body := b.get(path).Body.String()
		pageSays(t, body, "We couldn’t load your payment methods.")
		for _, never := range []string{"No payment method", "no payment method", `action="/pay`, "/payment/remove/"} {
			if strings.Contains(body, never) {
				t.Errorf("%s says %q: %s", path, never, body)
			}
		}
	}
	location(t, b.get("/payment/remove/pm_cus_a"), "/payment")
	a.Failed, a.Debts = []billing.Section{billing.SectionDebts}, nil
	e.advance(2 * time.Minute)
	w := b.get("/pay")
	pageSays(t, w.Body.String(), "We couldn’t load what is due.")
	if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "Nothing is due") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	location(t, b.get("/payment/add?pay=in_1"), "/pay")
}

// TestMethods is the list: each by its type, with what it pays for.
func TestMethods(t *testing.T) {
	e := newEnv(t)
	a := e.provider.accounts["cus_a"]
	second := a.Subscriptions[0]
	second.ID, second.DefaultPaymentMethod, second.Version = "sub_a2", "pm2_cus_a", "s2"
	second.Items = []billing.Item{{ID: "si_2", Price: team, Quantity: 2, PeriodEnd: e.now().AddDate(0, 0, 40)}}
	byHand := a.Subscriptions[0]
	byHand.ID, byHand.SendInvoice = "sub_a3", true
	a.Subscriptions = append(a.Subscriptions, second, byHand)
	a.Upcoming = append(a.Upcoming, billing.Upcoming{Subscription: "sub_a2", Due: e.now().AddDate(0, 0, 40)})
	a.PaymentMethods[0].ExpMonth, a.PaymentMethods[1].ExpMonth, a.PaymentMethods[1].ExpYear = 5, 6, 2026
	a.PaymentMethods = append(a.PaymentMethods, billing.PaymentMethod{ID: "pm_old", Type: "card", Brand: "visa", Last4: "1111", ExpMonth: 4, ExpYear: 2026})
	slices.Reverse(a.PaymentMethods)
	b := e.signedIn("cus_a")
	body := b.get("/payment").Body.String()
	pageSays(t, body, "Pays for plan “Basic”, next on 31 May 2026", "Pays for plan “Team”, next on 23 June 2026 This plan has it as its own", "Expires this month",
		"Expires next month", "Expired 04/2026", "Choose what it pays for")
	if strings.Contains(body, "before your next payment") {
		t.Error("a card that lasts until its next payment is said not to")
	}
	if first := strings.Index(body, "4242"); first < 0 || first > strings.Index(body, "4444") || first > strings.Index(body, "1111") {
		t.Error("the default is not the first")
	}
	a.Upcoming[0].Due = e.now().AddDate(0, 0, 20)
	e.advance(2 * time.Minute)
	pageSays(t, b.get("/payment").Body.String(), "Expires this month, before your next payment")

	// One plan alone.
	use := b.get("/payment/use/pm_old").Body.String()
	pageSays(t, use, "What Visa ending 1111 pays for", "Only plan “Basic” Paid with Visa ending 4242 now.")
	form := formOf(t, use, "/payment/use/pm_old")
	e.unchanged("nothing chosen", func() {
		if w := b.post("/payment/use/pm_old", form); w.Code != http.StatusUnprocessableEntity || !strings.Contains(w.Body.String(), `href="#use"`) {
			t.Errorf("nothing chosen: %d", w.Code)
		}
	})
	if w := b.post("/payment/use/pm_old", with(form, "use", "sub_b")); w.Code != http.StatusNotFound {
		t.Errorf("another customer's plan: %d", w.Code)
	}
	done := location(t, b.post("/payment/use/pm_old", with(form, "use", "sub_a2")), "/done/")
	pageSays(t, b.get(done).Body.String(), "Your payment method is changed", "Visa ending 1111 pays for plan “Team” from now on.")
	if got := e.effects(); got != "set_default_payment_method sub_a2" {
		t.Errorf("effects %s", got)
	}
	done = location(t, b.post("/payment/use/pm2_cus_a", with(formOf(t, b.get("/payment/use/pm2_cus_a").Body.String(), "/payment/use/pm2_cus_a"), "use", "all")), "/done/")
	if i := e.intent(done); i.Action.Subscription != "" || i.Action.PaymentMethod != "pm2_cus_a" {
		t.Errorf("%+v", i.Action)
	}
}

// TestRemove: what pays is not removed, and the page says what to do first.
func TestRemove(t *testing.T) {
	e := newEnv(t)
	a := e.provider.accounts["cus_a"]
	b := e.signedIn("cus_a")
	body := b.get("/payment/remove/pm_cus_a").Body.String()
	pageSays(t, body, "Visa ending 4242 pays for plan “Basic”.", "Choose another default first.")
	if strings.Contains(body, `button danger`) {
		t.Error("the one that pays can be removed")
	}
	page := b.get("/payment/remove/pm2_cus_a").Body.String()
	pageSays(t, page, "It pays for nothing.", "Remove Mastercard ending 4444")
	form := formOf(t, page, "/payment/remove/pm2_cus_a")
	// Made the default in another tab: the provider says no, and the page why.
	a.Customer.DefaultPaymentMethod = "pm2_cus_a"
	w := b.post("/payment/remove/pm2_cus_a", form)
	if w.Code != http.StatusConflict || len(e.provider.effects) != 0 {
		t.Fatalf("%d, effects %s", w.Code, e.effects())
	}
	pageSays(t, w.Body.String(), "Mastercard ending 4444 pays for plan “Basic”.")
	a.Customer.DefaultPaymentMethod = "pm_cus_a"
	done := location(t, b.post("/payment/remove/pm2_cus_a", with(form, "nonce", "0123456789abcdefghijklmnop")), "/done/")
	if e.effects() != "remove_payment_method pm2_cus_a" {
		t.Errorf("effects %s", e.effects())
	}
	pageSays(t, b.get(done).Body.String(), "Your payment method is removed")
	if w := b.get("/payment/remove/pm2_cus_a"); w.Code != http.StatusNotFound {
		t.Errorf("removed, and its page: %d", w.Code)
	}
	pageSays(t, b.get("/payment/remove/pm_cus_a").Body.String(), "Add another before removing this one.")
	viewer := e.signedIn("cus_a", func(c *link.Claims) { c.Role = "viewer" })
	if s := viewer.get("/payment").Body.String(); strings.Contains(s, "/payment/remove/") {
		t.Error("a viewer is offered to remove it")
	}
	pageSays(t, viewer.get("/payment/remove/pm_cus_a").Body.String(), "You can look but not change.")
}

// TestAddMethodUses: what a new method is for, and what is paid with it at once.
func TestAddMethodUses(t *testing.T) {
	e := newEnv(t)
	a := e.owe("cus_a", "in_1")
	e.provider.waits = &billing.Result{State: billing.AwaitingCustomer, Reason: "enter_card", GoTo: "https://pay.example/setup"}
	b := e.signedIn("cus_a")
	page := b.get("/payment/add?pay=in_1").Body.String()
	pageSays(t, page, "As soon as it is entered, €58.80 is paid with it: 1 open invoice.", "Use it for", "Nothing else: keep it for later")
	if strings.Contains(page, "Only plan") {
		t.Error("a choice between one plan")
	}
	form := formOf(t, page, "/payment/add")
	// Another sum now: shown anew, and nobody sent anywhere.
	a.Debts[0].AmountRemaining = cents(900)
	w := b.post("/payment/add", with(form, "use", "none"))
	if w.Code != http.StatusConflict {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	pageSays(t, w.Body.String(), "now €9.00 instead of €58.80. Nothing was charged.")
	if !strings.Contains(w.Body.String(), `value="none" autocomplete="off" checked`) {
		t.Error("the choice is lost")
	}
	leave := location(t, b.post("/payment/add", with(formOf(t, w.Body.String(), "/payment/add"), "use", "none")), "/leave/")
	i := e.intent(strings.Replace(leave, "/leave/", "/done/", 1))
	if i.Action.Use != billing.UseNothing || !slices.Equal(i.Action.Invoices, []string{"in_1"}) {
		t.Errorf("%+v", i.Action)
	}
	// Back without having finished, twice; somebody else's; then finished.
	back := "/return/" + i.ID
	for range 2 {
		pageSays(t, b.get(location(t, b.get(back), "/done/")).Body.String(), "You came back without finishing. Nothing changed.")
	}
	if w := e.signedIn("cus_b").get(back); w.Code != http.StatusNotFound {
		t.Errorf("somebody else's: %d", w.Code)
	}
	if len(e.provider.effects) != 0 {
		t.Errorf("effects %s", e.effects())
	}
	e.provider.goes, e.provider.waits = true, nil
	done := location(t, b.get(back), "/done/")
	if e.effects() != "add_payment_method cus_a, pay in_1 900" {
		t.Fatalf("effects %s", e.effects())
	}
	pageSays(t, b.get(done).Body.String(), "Your payment method is saved", "It is kept for later.", "Invoice N-in_1", "Paid")
	if got := a.Customer.DefaultPaymentMethod; got != "pm_cus_a" {
		t.Errorf("default %s", got)
	}
	location(t, b.get(back), "/done/")
	if len(e.provider.effects) != 2 {
		t.Errorf("effects %s", e.effects())
	}

	// For one plan alone.
	second := a.Subscriptions[0]
	second.ID, second.Version = "sub_a2", "s2"
	a.Subscriptions = append(a.Subscriptions, second)
	e.advance(2 * time.Minute)
	page = b.get("/payment/add").Body.String()
	pageSays(t, page, "Only plan “Basic”")
	form = formOf(t, page, "/payment/add")
	done = location(t, b.post("/payment/add", with(form, "use", "sub_a2")), "/done/")
	if i := e.intent(done); i.Action.Use != billing.UseSubscription || i.Action.Subscription != "sub_a2" {
		t.Errorf("%+v", i.Action)
	}
	for _, use := range []string{"sub_b", "../x"} {
		if w := b.post("/payment/add", with(form, "use", use, "nonce", "0123456789abcdefghijklmnop")); w.Code != http.StatusNotFound {
			t.Errorf("for %s: %d", use, w.Code)
		}
	}
	if w := b.post("/payment/add", with(form, "currency", "eur", "nonce", "0123456789abcdefghijklmnop")); w.Code != http.StatusBadRequest {
		t.Errorf("a sum without invoices: %d", w.Code)
	}
}

func TestExpiry(t *testing.T) {
	for _, tc := range []struct {
		now  time.Time
		want string
	}{
		{time.Date(2026, 4, 30, 23, 59, 59, 0, time.UTC), "next_month"},
		{time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC), "this_month"},
		{time.Date(2026, 5, 31, 23, 59, 59, 0, time.UTC), "this_month"},
		{time.Date(2026, 5, 31, 23, 0, 0, 0, time.FixedZone("", -2*3600)), "expired"},
		{time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), "expired"},
		{time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC), ""},
		{time.Date(2025, 5, 31, 0, 0, 0, 0, time.UTC), ""},
		{time.Time{}, ""},
	} {
		if got := expiry(billing.PaymentMethod{ExpMonth: 5, ExpYear: 2026}, tc.now); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.now, got, tc.want)
		}
	}
	if got := expiry(billing.PaymentMethod{Type: "sepa_debit"}, time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)); got != "" {
		t.Errorf("an account expires: %q", got)
	}
}

// To make a method the default pays what a change waits for, so each page where
// that is done names the sum.
func TestWaitingSumIsNamed(t *testing.T) {
	e := newEnv(t)
	says := func(want bool) {
		t.Helper()
		b := e.signedIn("cus_a")
		for _, path := range []string{"/payment", "/payment/add", "/payment/use/pm2_cus_a"} {
			if got := strings.Contains(b.get(path).Body.String(), "also pays this, at once"); got != want {
				t.Errorf("%s names what waits: %v", path, got)
			}
		}
	}
	says(false)
	e.provider.accounts["cus_a"].Subscriptions[0].Pending = &billing.PendingUpdate{
		Items: []billing.Item{{Price: team, Quantity: 4}}, AmountDue: billing.Money{Amount: 12000, Currency: "eur"},
	}
	e.time = e.time.Add(2 * time.Minute)
	says(true)
}
