package pages

import (
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// freeText are the members in which a customer, the vendor or the provider can
// have written anything.
var freeText = []string{
	"Name", "Description", "Number", "Bank", "Brand", "Last4", "Wallet", "Email", "Phone", "Line1", "Line2", "City", "State", "PostalCode", "Country",
	"Value", "Failure", "ProductName", "Percent", "Event", "Memo", "Footer", "Locale",
}

// spoil writes text into all free texts below v.
func spoil(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			spoil(v.Elem(), text)
		}
	case reflect.Slice:
		for i := range v.Len() {
			spoil(v.Index(i), text)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			switch {
			case !v.Type().Field(i).IsExported():
			case f.Type() == reflect.TypeFor[string]() && slices.Contains(freeText, v.Type().Field(i).Name):
				f.SetString(text)
			default:
				spoil(f, text)
			}
		}
	}
}

var inputValue = regexp.MustCompile(` value="[^"]*"`)

// TestHostileTexts: whatever stands in the texts of a customer's account, its
// pages are drawn, with nothing in them that is markup or turns what follows
// around.
func TestHostileTexts(t *testing.T) {
	for name, text := range map[string]string{
		"long":    strings.Repeat("W", 10_000),
		"markup":  `</title><script>alert(1)</script>"'><img src=x onerror=y>{{.}}{env.HOME}`,
		"signs":   "a\u202e\u2066b\x00\x1b[31m\u0085\u2028\ufeffc\x7f\xff\xfe",
		"empty":   "",
		"formula": "=cmd|' /C calc'!A0;=1",
	} {
		t.Run(name, func(t *testing.T) {
			e, m := meteredEnv(t)
			acct := e.owe("cus_a", "in_1", "in_2")
			acct.Customer.TaxIDs = []billing.TaxID{{ID: "txi_1", Type: "eu_vat", Country: "DE", Value: "DE123456789"}}
			acct.Customer.InvoiceFields = []billing.InvoiceField{{Name: "x", Value: "y"}, {Name: "PO number", Value: "1"}}
			acct.Invoices = append(acct.Invoices, acct.Debts...)
			inv := billing.InvoiceDetail{
				Invoice: acct.Debts[0], Fields: []billing.InvoiceField{{}}, TaxIDs: []billing.TaxID{{Type: "eu_vat"}}, TaxLines: []billing.TaxLine{{Amount: cents(5)}},
				Discounts: []billing.Line{{Amount: cents(-5)}}, CreditNotes: []billing.CreditNote{{ID: "cn_a", Total: cents(5)}},
				Payments: []billing.Payment{{ID: "pi_1", Amount: cents(100), Status: billing.PaymentSucceeded, Method: &acct.PaymentMethods[0]}, {ID: "pi_2", Amount: cents(5), Status: billing.PaymentFailed}},
			}
			inv.Lines = []billing.Line{{Amount: cents(5)}}
			inv.AmountPaid = cents(100)
			grants := billing.BalancePage{Balances: []billing.Money{cents(-5)}, Grants: []billing.Grant{{ID: "g", Amount: cents(9), Left: cents(9)}}, Entries: []billing.BalanceEntry{{ID: "b", Type: text, Amount: cents(-5)}}}
			spoil(reflect.ValueOf(acct), text)
			spoil(reflect.ValueOf(&inv), text)
			spoil(reflect.ValueOf(&grants), text)
			m.edit = func(u *billing.Usage) { spoil(reflect.ValueOf(u), text) }
			acct.Customer.TaxIDs[0].Type = "eu_vat"
			e.provider.details = map[string]detail{"in_1": {"cus_a", inv}}
			e.provider.all = slices.Clone(acct.Invoices)
			e.provider.onBalance = func(string) (billing.BalancePage, error) { return grants, nil }
			b := e.signedIn("cus_a")
			for _, path := range []string{
				"/", "/subscriptions", "/plan", "/payment", "/payment/add", "/payment/use/pm_cus_a", "/payment/remove/pm_cus_a", "/pay", "/pay/in_1",
				"/invoices", "/invoices?q=a", "/invoices/in_1", "/invoices/in_1/receipt", "/usage", "/usage?period=last", "/balance", "/cancel",
				"/details/name", "/details/address", "/details/invoice-fields", "/details/language", "/details/tax-ids", "/tax-id/txi_1", "/devices",
			} {
				w := b.get(path)
				// An input holds what is stored, to be corrected.
				body := inputValue.ReplaceAllString(w.Body.String(), "")
				if w.Code != http.StatusOK {
					t.Errorf("%s: %d", path, w.Code)
				}
				if strings.Contains(body, "<script>alert") || strings.Contains(body, "<img src=x") || strings.ContainsAny(body, "\u202e\x00\x1b\u0085\x7f") || strings.Contains(body, "\u2066b") {
					i := strings.IndexAny(body, "\u202e\x00\x1b\u0085\x7f")
					t.Errorf("%s: the text comes through as it is: %q", path, body[max(i-100, 0):max(i+20, 0)])
				}
				if len(body) > 400_000 {
					t.Errorf("%s: %d bytes", path, len(body))
				}
			}
			for _, path := range []string{"/invoices.csv", "/usage.csv", "/invoices/in_cus_a/pdf"} {
				w := b.get(path)
				if w.Code != http.StatusOK || strings.ContainsAny(w.Header().Get("Content-Disposition"), "\r\n\x00<") || len(w.Header().Get("Content-Disposition")) > 1000 {
					t.Errorf("%s: %d %q", path, w.Code, w.Header())
				}
			}
		})
	}
}
