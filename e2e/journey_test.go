package e2e

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// enterAs goes the way of a customer: signs in to the vendor's app, opens its
// settings and follows "Billing & payment".
func (b *browser) enterAs(d *demo, name string) {
	b.t.Helper()
	b.open(d.VendorApp)
	b.click(name)
	b.click("Settings")
	b.click("Billing & payment")
	b.sees("Billing for " + name)
	if got := b.url(); got != d.Portal+"/" {
		b.t.Fatalf("the link led to %s, want the portal's clean address %s/", got, d.Portal)
	}
}

// visitor is a client that has the browser's cookies, for requests beside it.
func (b *browser) visitor(portal string) *visitor {
	b.t.Helper()
	v := newVisitor(b.t, portal)
	u, err := url.Parse(portal)
	if err != nil {
		b.t.Fatal(err)
	}
	v.Client.Jar.SetCookies(u, b.cookies(portal))
	return v
}

// TestJourney is the main job, the way a customer does it: from the vendor's
// app into the portal, the plan changed, the card changed, an invoice fetched,
// and back.
func TestJourney(t *testing.T) {
	const customer = "cus_northwind"
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.open(d.VendorApp)
	b.inspect("vendor-sign-in")
	b.click("Northwind Ltd")
	b.click("Settings")
	b.inspect("vendor-settings")
	b.enterAs(d, "Northwind Ltd")
	b.sees("Next payment", "Your plan", "Latest invoices", "Visa ending 4242")
	b.inspect("overview")

	b.click("Change plan")
	b.inspect("plan")
	b.click("See what plan “Team” costs you")
	b.sees("Check your change", "From", "To", "Total today", "Paid with Visa ending 4242")
	b.inspect("preview")
	b.click("and switch to plan “Team”")
	b.sees("You are now on plan “Team”", "Reference", "Paid", "What happens next")
	b.inspect("receipt-plan")
	if got := changes(t, d.Control, customer); len(got) != 1 || got[0].Object != "sub_northwind" {
		t.Errorf("changes at the provider: %+v", got)
	}

	b.click("Overview")
	b.sees("Team")
	b.open(d.Portal + "/payment")
	b.inspect("payment")
	b.click("Add a payment method")
	b.sees("You are going to Sandbox")
	b.inspect("payment-add")
	b.click("Continue to Sandbox")
	b.arriveAt("/_sandbox/")
	b.sees("no real money")
	b.inspect("sandbox-card")
	b.check("5555")
	b.click("Add card")
	b.arriveAt("/done/")
	b.sees("Your payment method is saved", "Mastercard ending 4444 pays from now on.")
	b.inspect("receipt-card")
	b.open(d.Portal + "/payment")
	b.sees("Mastercard ending 4444", "Default")

	b.click("Invoices")
	b.sees("Your invoices, newest first")
	b.inspect("invoices")
	b.readInvoice(d.Portal)

	b.click("Back to Acme Boards")
	if got := b.url(); got != d.VendorApp+"/settings" {
		t.Errorf("the way back led to %s", got)
	}
}

// readInvoice fetches the first PDF on the page and reads it back.
func (b *browser) readInvoice(portal string) {
	b.t.Helper()
	var link, row string
	b.js(`document.querySelector('a[href$="/pdf"]').getAttribute("href")`, &link)
	b.js(`document.querySelector('a[href$="/pdf"]').closest("tr, li").innerText`, &row)
	text := b.pdfText(portal, link)
	for _, want := range []string{"Northwind Ltd", "Total"} {
		if !strings.Contains(text, want) {
			b.t.Errorf("the PDF has no %q:\n%s", want, text)
		}
	}
	number := ""
	for field := range strings.FieldsSeq(row) {
		if strings.Contains(text, field) && strings.Count(field, "-") == 1 {
			number = field
		}
	}
	if number == "" {
		b.t.Errorf("the PDF does not name the invoice of %q:\n%s", row, text)
	}
	// Without the session the address is worth nothing.
	if p := newVisitor(b.t, portal).get(b.t, link); p.status != http.StatusUnauthorized || strings.HasPrefix(p.body, "%PDF") {
		b.t.Errorf("the invoice without a session: %d", p.status)
	}
}

// pdfText is the text of the PDF behind a link.
func (b *browser) pdfText(portal, link string) string {
	b.t.Helper()
	p := b.visitor(portal).get(b.t, link)
	if p.status != http.StatusOK || p.header.Get("Content-Type") != "application/pdf" || !strings.HasPrefix(p.header.Get("Content-Disposition"), "attachment;") {
		b.t.Fatalf("%s: %d %v", link, p.status, p.header)
	}
	file := filepath.Join(b.t.TempDir(), "invoice.pdf")
	if err := os.WriteFile(file, []byte(p.body), 0o600); err != nil {
		b.t.Fatal(err)
	}
	text, err := exec.Command("pdftotext", "-layout", file, "-").CombinedOutput()
	if err != nil {
		b.t.Fatalf("pdftotext: %v\n%s", err, text)
	}
	return string(text)
}

func TestCancelAndKeep(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Northwind Ltd")
	b.click("Cancel plan")
	b.sees("Cancel plan “Basic”")
	b.inspect("cancel")
	b.click("Cancel plan “Basic”")
	b.sees("Plan “Basic” is cancelled", "Reference")
	b.inspect("receipt-cancel")
	b.click("Keep plan “Basic” after all")
	b.sees("Plan “Basic” goes on")
	b.inspect("receipt-resume")
	b.click("Overview")
	b.sees("Renews on")
	var kinds []string
	for _, e := range effects(t, d.Control, "cus_northwind") {
		kinds = append(kinds, e.Kind)
	}
	if len(kinds) != 2 {
		t.Errorf("effects %v, want one cancellation and one resumption", kinds)
	}
}

func TestChangeQuantityAndInterval(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Northwind Ltd")
	b.click("Change plan")
	for _, bad := range []struct{ value, says string }{
		{"0", "quantity of 1 or more"}, {"-3", "whole number"}, {"2.5", "whole number"}, {"99999999999", "There is a problem"}, {"four", "whole number"}, {"", "There is a problem"},
	} {
		b.fill("quantity", bad.value)
		b.click("See what this quantity costs you")
		b.sees("There is a problem", bad.says)
	}
	b.inspect("plan-error")
	b.fill("quantity", "6")
	b.click("See what this quantity costs you")
	b.sees("Check your change", "change the quantity to 6")
	b.click("and change the quantity to 6")
	b.sees("Plan “Basic” is changed", "Reference")
	b.open(d.Portal + "/plan")
	b.click("Yearly")
	b.inspect("plan-yearly")
	if got := changes(t, d.Control, "cus_northwind"); len(got) != 1 {
		t.Errorf("changes %+v, want exactly one", got)
	}
}

func TestEditDetails(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Northwind Ltd")
	for _, tt := range []struct {
		section, save string
		wrong         map[string]string
		right         map[string]string
		shown         []string
	}{
		{"name", "Save name", map[string]string{"name": ""}, map[string]string{"name": "Northwind & Söhne <GmbH>"}, []string{"Northwind & Söhne <GmbH>"}},
		{"email", "Save e-mail address", map[string]string{"email": "nobody"}, map[string]string{"email": "pay@northwind.example.com"}, []string{"pay@northwind.example.com"}},
		{"phone", "Save phone number", map[string]string{"phone": "abc"}, map[string]string{"phone": "+1 206 555 0199"}, []string{"+1 206 555 0199"}},
		{
			"address", "Save address",
			map[string]string{"line1": "", "city": ""},
			map[string]string{"line1": "12 Pike Street", "city": "Seattle", "postal_code": "98101", "country": "US"},
			[]string{"12 Pike Street", "Seattle", "98101"},
		},
	} {
		b.open(d.Portal + "/details/" + tt.section)
		b.inspect("details-" + tt.section)
		for k, v := range tt.wrong {
			b.fill(k, v)
		}
		b.click(tt.save)
		b.sees("There is a problem")
		if tt.section == "address" {
			b.inspect("details-error")
		}
		for k, v := range tt.right {
			b.fill(k, v)
		}
		b.click(tt.save)
		b.sees("Your billing details are saved", "Reference")
		b.open(d.Portal + "/payment")
		b.sees(tt.shown...)
	}
	if got := effects(t, d.Control, "cus_northwind"); len(got) != 4 {
		t.Errorf("effects %+v, want 4", got)
	}
}

// TestDeclinedUpgradeWaits shows an upgrade whose payment the bank declines: it
// waits, can be dropped, and is done once another card pays.
func TestDeclinedUpgradeWaits(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Initech Inc")
	upgrade := func() {
		t.Helper()
		b.open(d.Portal + "/plan")
		b.click("See what plan “Team” costs you")
		b.click("and switch to plan “Team”")
		b.sees("Your bank declined the payment", "Your change waits until", "Use another card", "Drop this change")
	}
	upgrade()
	b.inspect("receipt-declined")
	b.open(d.Portal + "/")
	b.sees("Action needed", "Basic")
	b.inspect("overview-waiting")
	b.click("See what to do")
	b.click("Drop this change")
	b.sees("The waiting change is dropped")
	b.inspect("receipt-dropped")
	b.open(d.Portal + "/")
	b.seesNot("Action needed")
	b.sees("Basic")

	upgrade()
	b.click("Use another card")
	b.click("Continue to Sandbox")
	b.arriveAt("/_sandbox/")
	b.click("Add card")
	b.arriveAt("/done/")
	b.sees("Your payment method is saved")
	b.open(d.Portal + "/")
	b.seesNot("Action needed")
	b.sees("Team")
}

// TestConfirmationAtTheBank shows a card that asks for confirmation (3-D
// Secure): the change waits, and is done once it is confirmed.
func TestConfirmationAtTheBank(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Hooli SARL")
	b.open(d.Portal + "/plan")
	b.click("See what plan “Team” costs you")
	b.click("and switch to plan “Team”")
	b.sees("Your bank asks you to confirm the payment")
	b.inspect("receipt-confirm")
	b.click("at Sandbox")
	b.arriveAt("/_sandbox/")
	b.inspect("sandbox-confirm")
	b.click("Confirm")
	b.arriveAt("/done/")
	b.sees("You are now on plan “Team”")
}

// TestEntry walks the ways in that do not lead in at once.
func TestEntry(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	link := mint(t, d.Portal, d.APIKey, "cus_northwind")
	b.open("about:blank")
	b.open(link) // typed in: no site led here
	b.sees("Open billing?", "Account cus_northwind")
	b.inspect("enter")
	b.open(link) // looking burns nothing
	b.click("Open billing")
	b.sees("Billing for Northwind Ltd")
	if strings.Contains(b.url(), "token") {
		t.Errorf("the token is in the address: %s", b.url())
	}
	// On a phone the way out is in the menu.
	b.size(390, false)
	var open bool
	b.js(`document.querySelector("details.menu").open = true`, &open)
	b.shot("menu-390-light")
	b.click("Sign out")
	b.size(1280, false)
	b.sees("You are signed out")
	b.inspect("signed-out")
	b.open(d.Portal + "/")
	b.sees("Open billing from Acme Boards")
	b.inspect("not-signed-in")
	b.open(link)
	b.click("Open billing")
	b.sees("This link was already used")
	b.inspect("link-used")
	b.open(link[:len(link)-4] + "AAAA")
	b.sees("This link doesn’t work")
	b.inspect("link-invalid")
	b.open(d.Portal + "/no-such-page")
	b.inspect("not-found-signed-out")
	b.enterAs(d, "Globex GmbH")
	b.open(mint(t, d.Portal, d.APIKey, "cus_northwind"))
	b.sees("This browser has another account’s billing open. It will be signed out.")
	b.inspect("enter-replaces")
}

// TestEveryCustomersPages looks at the pages of all customers of the demo,
// each in another situation, in English and in the longer pseudo-locale.
func TestEveryCustomersPages(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	for _, c := range d.Customers {
		t.Run(c.ID, func(t *testing.T) {
			b := newBrowser(t)
			b.enterAs(d, c.Name)
			b.inspect("overview-" + c.ID)
			b.open(d.Portal + "/plan")
			b.inspect("plan-" + c.ID)
		})
	}
	t.Run("longer texts", func(t *testing.T) {
		b := newBrowser(t)
		b.open(mint(t, d.Portal, d.APIKey, "cus_pastdue", "locale", "en-XA"))
		b.submitFirst("/enter")
		for _, path := range []string{"/", "/plan", "/payment", "/payment/add", "/details/address", "/invoices", "/cancel"} {
			b.open(d.Portal + path)
			b.inspect("long" + strings.ReplaceAll(path, "/", "-"))
		}
	})
	t.Run("viewer", func(t *testing.T) {
		b := newBrowser(t)
		b.open(mint(t, d.Portal, d.APIKey, "cus_northwind", "portal[role]", "viewer"))
		b.click("Open billing")
		b.seesNot("Add a payment method")
		b.inspect("overview-viewer")
		b.open(d.Portal + "/plan")
		b.sees("You can look but not change.")
		b.inspect("plan-viewer")
	})
}

// TestErrorPages looks at the pages that nobody wants to see.
func TestErrorPages(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Northwind Ltd")
	b.open(d.Portal + "/no-such-page")
	b.sees("Page not found")
	b.inspect("not-found-signed-in")
	b.open(d.Portal + "/cancel?subscription=sub_globex")
	b.sees("Page not found")
	b.open(d.Portal + "/plan")
	b.click("See what plan “Team” costs you")
	control(t, d.Control, "/fault", map[string]any{"on": "any", "times": 1, "kind": "error-500-before"}, nil)
	b.click("and switch to plan “Team”")
	b.sees("Nothing was sent, nothing changed")
	b.inspect("provider-down")
	b.open(d.Portal + "/plan")
	b.click("See what plan “Team” costs you")
	control(t, d.Control, "/fault", map[string]any{"on": "execute", "times": 3, "kind": "error-500-after"}, nil)
	b.click("and switch to plan “Team”")
	b.sees("We are checking your change", "Please don’t send it again.")
	b.inspect("checking")
	b.open(d.Portal + "/")
	b.sees("Being checked")
	b.inspect("overview-checking")
	eventually(t, "the change is settled", func() bool {
		list := intents(t, d.Control, "cus_northwind")
		return len(list) == 1 && list[0].State == "succeeded"
	})
	b.open(d.Portal + "/")
	b.seesNot("Being checked")
	b.sees("Team")
	if got := changes(t, d.Control, "cus_northwind"); len(got) != 1 {
		t.Errorf("changes %+v, want exactly one", got)
	}
}

// TestTimePasses moves the sandbox's clock over a renewal and the end of a
// trial and looks at what the customer sees.
func TestTimePasses(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Umbrella Foods")
	b.sees("Trial")
	control(t, d.Control, "/clock", map[string]string{"advance": (24 * 45 * time.Hour).String()}, nil)
	b.enterAs(d, "Umbrella Foods")
	b.seesNot("your trial of plan")
	b.sees("Active", "Paid")
	b.inspect("overview-after-trial")
}

// TestJourneyAtStripe is the main job over Stripe's API: a portal from a
// Caddyfile, its plan changed, a card entered on the provider's page on another
// site, an invoice fetched.
func TestJourneyAtStripe(t *testing.T) {
	const customer = "cus_northwind"
	w := startStripeWorld(t)
	b := newBrowser(t)
	b.open(mint(t, w.portal, w.key, customer))
	b.sees("Open billing?")
	b.click("Open billing")
	b.sees("Billing for Northwind Ltd", "Next payment", "Basic", "Visa ending 4242")
	b.inspect("stripe-overview")
	b.click("Change plan")
	b.click("See what plan “Team” costs you")
	b.sees("Check your change", "Total today")
	b.inspect("stripe-preview")
	b.click("and switch to plan “Team”")
	b.sees("You are now on plan “Team”", "Reference")
	if got := changes(t, w.stripe.Control, customer); len(got) != 1 {
		t.Errorf("changes at Stripe: %+v", got)
	}
	b.open(w.portal + "/payment")
	b.click("Add a payment method")
	b.sees("You are going to Stripe to enter your card or bank account.")
	b.click("Continue to Stripe")
	b.arriveAt("/pages/card/")
	if strings.HasPrefix(b.url(), w.portal) {
		t.Errorf("the card page %s is on the portal's own site", b.url())
	}
	b.check("5555")
	b.click("Add card")
	b.arriveAt("/done/")
	b.sees("Your payment method is saved", "Mastercard ending 4444 pays from now on.")
	b.click("Invoices")
	b.readInvoice(w.portal)
	b.open(w.portal + "/details/address")
	b.fill("line1", "12 Pike Street")
	b.click("Save address")
	b.sees("Your billing details are saved")
	b.open(w.portal + "/details/email")
	b.fill("email", "pay@northwind.example.com")
	b.click("Save e-mail address")
	b.sees("Your billing details are saved")
	b.open(w.portal + "/cancel")
	b.click("Cancel plan “Team”")
	b.sees("Plan “Team” is cancelled")
	b.click("Keep plan “Team” after all")
	b.sees("Plan “Team” goes on")
	b.open(w.portal + "/plan")
	b.sees("doesn’t offer this here") // a downgrade, which no rule allows
}
