package e2e

import (
	"encoding/csv"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// advance moves the demo's clock.
func advance(t *testing.T, d *demo, days int) {
	t.Helper()
	control(t, d.Control, "/clock", map[string]string{"advance": (time.Duration(days) * 24 * time.Hour).String()}, nil)
}

// newCard enters the card whose label on the sandbox's page has text, and comes
// back.
func (b *browser) newCard(text string) {
	b.t.Helper()
	b.click("Continue to Sandbox")
	b.arriveAt("/_sandbox/")
	b.check(text)
	b.click("Add card")
	b.arriveAt("/done/")
}

// TestPaymentMethods adds a card and comes back, makes it pay for one of two
// plans, then for everything, and removes the old one.
func TestPaymentMethods(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Wayne Enterprises")
	b.open(d.Portal + "/payment")
	b.sees("Visa ending 4242", "Pays for plan “Team”", "Pays for plan “Basic”")
	b.inspect("payment-two-plans")

	// The only one that pays cannot go.
	b.click("Remove")
	b.sees("It is your only payment method. Add another before removing this one.")
	b.inspect("remove-last")
	b.click("Back to payment")

	// Left without finishing: nothing changed.
	b.click("Add a payment method")
	b.inspect("add-choose")
	b.check("Nothing yet: keep it for later")
	b.click("Continue to Sandbox")
	b.arriveAt("/_sandbox/")
	b.click("Cancel and go back")
	b.arriveAt("/done/")
	b.sees("You came back without finishing. Nothing changed.")

	b.open(d.Portal + "/payment/add")
	b.check("Nothing yet: keep it for later")
	b.newCard("5555")
	b.sees("Your payment method is saved", "It is kept for later.")
	b.inspect("receipt-card-kept")

	b.open(d.Portal + "/payment")
	b.sees("Mastercard ending 4444", "Visa ending 4242")
	b.onCard("Mastercard ending 4444", "Choose what it pays for")
	b.inspect("payment-use")
	b.check("Only plan “Basic”")
	b.click("Use Mastercard ending 4444")
	b.sees("Mastercard ending 4444 pays for plan “Basic” from now on.")
	b.inspect("receipt-use")
	b.open(d.Portal + "/payment")
	b.inspect("payment-one-each")

	b.onCard("Visa ending 4242", "Remove")
	b.sees("Visa ending 4242 pays for plan “Team”.", "Choose another default first.")
	b.inspect("remove-in-use")
	b.open(d.Portal + "/payment")
	b.onCard("Mastercard ending 4444", "Pay everything with")
	b.sees("Mastercard ending 4444 pays from now on.")
	b.open(d.Portal + "/payment")
	b.onCard("Visa ending 4242", "Remove")
	b.sees("It is taken away at once.")
	b.inspect("remove")
	b.click("Remove Visa ending 4242")
	b.sees("Your payment method is removed", "Reference")
	b.inspect("receipt-removed")
	b.open(d.Portal + "/payment")
	b.seesNot("Visa ending 4242")
	b.sees("Mastercard ending 4444", "Pays for plan “Team”", "Pays for plan “Basic”")
}

// onCard follows a link or button on the card of a payment method.
func (b *browser) onCard(method, label string) {
	b.t.Helper()
	var found bool
	b.js(`(() => {
		const clean = s => s.replace(/[\u2066-\u2069\u200e\u200f]/g, "").replace(/\s+/g, " ").trim();
		const card = [...document.querySelectorAll("li.card")].find(c => clean(c.querySelector("h2, h3").innerText).includes(`+quote(method)+`));
		const e = card && [...card.querySelectorAll("a[href], button")].find(e => clean(e.innerText).includes(`+quote(label)+`));
		if (!e) return false;
		window.leaving = true;
		e.click();
		return true;
	})()`, &found)
	if !found {
		b.t.Fatalf("%s: the card of %s has no %q:\n%s", b.url(), method, label, b.text())
	}
	b.arrive()
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"` }

// TestPastDue falls past due as time goes by, sees it on every page, and pays
// with another card in one step; nothing is charged twice.
func TestPastDue(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Northwind Ltd")
	b.open(d.Portal + "/payment/add")
	b.check("Everything, from now on")
	b.newCard("0341") // can be stored, and is declined when it is charged
	b.sees("Your payment method is saved")
	b.open(d.Portal + "/")
	b.seesNot("Past due")
	advance(t, d, 20)
	b.enterAs(d, "Northwind Ltd")
	b.sees("Past due", "Your bank declined it.", "Pay $40.00")
	b.inspect("overview-past-due")
	for _, path := range []string{"/plan", "/payment", "/invoices", "/cancel", "/devices", "/details/name"} {
		b.open(d.Portal + path)
		b.sees("Past due", "Pay $40.00")
	}
	b.open(d.Portal + "/")
	b.click("Pay $40.00")
	b.sees("Pay $40.00", "Visa ending 0341")
	b.inspect("pay")
	// The card that was declined is declined again, and the page says so.
	b.click("Pay $40.00")
	b.sees("Your bank declined the payment", "$40.00 was not paid.", "Your bank declined it.")
	b.inspect("receipt-pay-declined")
	b.open(d.Portal + "/pay")
	b.click("Pay $40.00 with a new card or bank account")
	b.sees("$40.00", "is paid with it")
	b.inspect("add-and-pay")
	b.newCard("5555")
	b.sees("Your payment method is saved", "$40.00 with Mastercard ending 4444")
	b.inspect("receipt-add-and-pay")
	b.open(d.Portal + "/")
	b.seesNot("Past due")
	b.sees("Active")
	paid := 0
	for _, e := range effects(t, d.Control, "cus_northwind") {
		if e.Kind == "invoice.pay" {
			paid++
		}
	}
	if paid != 1 {
		t.Errorf("%d payments, want exactly one", paid)
	}
}

// TestOldInvoice finds an invoice of last year among more than 500 and reads
// its PDF.
func TestOldInvoice(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Oscorp Logistics")
	b.open(d.Portal + "/invoices")
	b.inspect("invoices-indexing")
	eventually(t, "the index of the invoices", func() bool {
		b.open(d.Portal + "/invoices")
		return regexp.MustCompile(`of 5\d\d`).MatchString(b.text())
	})
	b.inspect("invoices-indexed")
	year := time.Now().AddDate(-1, 0, 0).Format("2006")
	b.choose("year", year)
	b.choose("status", "paid")
	b.click("Show")
	b.inspect("invoices-last-year")
	var number, row string
	b.js(`[...document.querySelectorAll("table tbody tr")].at(-1).querySelector("th").innerText.trim()`, &number)
	b.fill("q", number)
	b.click("Show")
	b.js(`document.querySelectorAll("table tbody tr").length + " " + document.querySelector("table tbody tr").innerText`, &row)
	if !strings.HasPrefix(row, "1 ") || !strings.Contains(row, number) || !strings.Contains(row, year) {
		t.Fatalf("searching for %s: %s", number, row)
	}
	b.click(number)
	b.sees(number, "EC2N 4BQ", "Total", "Tax 20")
	b.inspect("invoice")
	total := regexp.MustCompile(`€[0-9.,]+`).FindString(row)
	var link string
	b.js(`document.querySelector('main a[href$="/pdf"]').getAttribute("href")`, &link)
	text := b.pdfText(d.Portal, link)
	for _, want := range []string{number, "Oscorp Logistics", "22 Bishopsgate", "London", "EC2N 4BQ", "Basic", "Total", strings.Trim(total, "€")} {
		if !strings.Contains(text, want) {
			t.Errorf("the PDF has no %q:\n%s", want, text)
		}
	}
}

// choose sets a select to a value.
func (b *browser) choose(name, value string) {
	b.t.Helper()
	var found bool
	b.js(`(() => {
		const s = document.querySelector("select[name=" + CSS.escape(`+quote(name)+`) + "]");
		if (!s || ![...s.options].some(o => o.value === `+quote(value)+`)) return false;
		s.value = `+quote(value)+`;
		return true;
	})()`, &found)
	if !found {
		b.t.Fatalf("%s: %s cannot be set to %q:\n%s", b.url(), name, value, b.text())
	}
}

// TestUsageByMonth reads a customer's usage: this period, against the last, and
// a year by months, with the figures of the chart in its table and in its file.
func TestUsageByMonth(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.enterAs(d, "Tyrell Analytics")
	b.inspect("overview-usage")
	b.click("Usage")
	b.sees("API calls", "Final when the period closes")
	b.inspect("usage")
	b.open(d.Portal + "/usage")
	b.choose("period", "year")
	b.choose("by", "month")
	b.click("Show")
	b.sees("API calls")
	b.inspect("usage-year")
	var used []string
	b.js(`[...document.querySelector("figure ~ details table, figure details table").tBodies[0].rows].map(r => r.cells[1].firstChild.textContent.replace(/\D/g, ""))`, &used)
	var link string
	b.js(`document.querySelector('a[href^="/usage.csv"]').getAttribute("href")`, &link)
	p := b.visitor(d.Portal).get(t, link)
	rows, err := csv.NewReader(strings.NewReader(p.body)).ReadAll()
	if err != nil || p.status != http.StatusOK || !strings.HasPrefix(p.header.Get("Content-Type"), "text/csv") || len(rows) != 13 || len(used) != 12 {
		t.Fatalf("%d months in the table, %d rows in the file: %d %v\n%s", len(used), len(rows), p.status, err, p.body)
	}
	for i, row := range rows[1:] {
		if row[3] != used[i] || used[i] == "" || used[i] == "0" {
			t.Errorf("the month from %s: %s in the file, %s in the table", row[1], row[3], used[i])
		}
	}
	b.open(d.Portal + "/balance")
	b.sees("Welcome to usage-based billing", "$25.00")
	b.inspect("balance")
}
