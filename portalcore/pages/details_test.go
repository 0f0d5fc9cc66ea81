package pages

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// An address form asks for what its country uses, in its order and by its
// names; another country is shown before it is asked for, and nothing is saved
// by looking.
func TestAddressByCountry(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	const path = "/details/address"
	form := formOf(t, b.get(path).Body.String(), path)
	first := with(form, "country", "US", "line1", "1 Main St", "city", "Springfield", "state", "", "postal_code", "")
	var page string
	e.unchanged("another country is chosen", func() {
		w := b.post(path, first)
		if page = w.Body.String(); w.Code != 200 || !strings.Contains(page, "These are the fields for the country you chose") {
			t.Fatalf("%d", w.Code)
		}
	})
	order := []string{`name="line1"`, `name="city"`, `<select id="state"`, `>California<`, "ZIP code", `name="postal_code"`}
	at := 0
	for _, want := range order {
		i := strings.Index(page[at:], want)
		if i < 0 {
			t.Fatalf("%q is not after the ones before it", want)
		}
		at += i
	}
	if strings.Contains(page, "There is a problem") || !strings.Contains(page, `value="Springfield"`) {
		t.Error("the entries were judged or lost")
	}
	us := formOf(t, page, path)
	for _, tc := range []struct {
		change []string
		field  string
	}{
		{[]string{"state", "", "postal_code", "97403"}, "state"},
		{[]string{"state", "Atlantis", "postal_code", "97403"}, "state"},
		{[]string{"state", "OR", "postal_code", ""}, "postal_code"},
		{[]string{"state", "OR", "postal_code", "9740"}, "postal_code"},
		{[]string{"state", "OR", "postal_code", "97403", "line1", ""}, "line1"},
		{[]string{"state", "OR", "postal_code", "97403", "city", "\u202eSpringfield"}, "city"},
		{[]string{"state", "OR", "postal_code", "97403", "city", strings.Repeat("x", 10_000)}, "city"},
	} {
		f := with(us, append([]string{"country", "US", "line1", "1 Main St", "city", "Springfield"}, tc.change...)...)
		e.unchanged(tc.field, func() {
			if w := b.post(path, f); w.Code != 422 || !strings.Contains(w.Body.String(), `href="#`+tc.field+`"`) {
				t.Errorf("%v: %d, want a message at %s", tc.change, w.Code, tc.field)
			}
		})
	}
	good := with(us, "country", "US", "line1", "1 Main St", "city", "Springfield", "state", "oregon", "postal_code", "97403")
	done := location(t, b.post(path, good), "/done/")
	if a := e.intent(done).Action.Details.Address; a == nil || *a != (billing.Address{Line1: "1 Main St", City: "Springfield", State: "OR", PostalCode: "97403", Country: "US"}) {
		t.Errorf("%+v", a)
	}
	if page := b.get("/payment").Body.String(); !strings.Contains(page, "Springfield, OR 97403") {
		t.Error("the address is not written as the country writes it")
	}
}

// What is stored stays to be chosen though the country's list has another word
// for it, and what the country does not ask for is not lost.
func TestStoredAddressIsKept(t *testing.T) {
	e := newEnv(t)
	e.provider.accounts["cus_a"].Customer.Address = billing.Address{Line1: "x", City: "Cork", State: "Corcaigh", PostalCode: "A65 F4E2", Country: "IE"}
	b := e.signedIn("cus_a")
	const path = "/details/address"
	page := b.get(path).Body.String()
	if !strings.Contains(page, `<option value="Corcaigh" selected>`) || !strings.Contains(page, "Eircode") {
		t.Fatal("the stored county is not there")
	}
	location(t, b.post(path, with(formOf(t, page, path), "country", "IE", "line1", "y", "city", "Cork", "state", "Corcaigh", "postal_code", "A65 F4E2")), "/done/")
	if a := e.provider.accounts["cus_a"].Customer.Address; a.State != "Corcaigh" || a.PostalCode != "A65 F4E2" || a.Line1 != "y" {
		t.Errorf("%+v", a)
	}
	e.provider.accounts["cus_a"].Customer.Address = billing.Address{Line1: "x", City: "Berlin", State: "BE", PostalCode: "10827", Country: "DE"}
	if page := e.signedIn("cus_a").get(path).Body.String(); !strings.Contains(page, `name="state" type="text" value="BE"`) {
		t.Error("a state that Germany does not ask for is not shown, and would be lost")
	}
}

func TestInvoiceFields(t *testing.T) {
	e := newEnv(t)
	e.provider.accounts["cus_a"].Customer.InvoiceFields = []billing.InvoiceField{{Name: "Cost centre", Value: "R&D"}, {Name: "po number", Value: "1"}}
	b := e.signedIn("cus_a")
	const path = "/details/invoice-fields"
	page := b.get(path).Body.String()
	for _, want := range []string{`name="purchase_order" type="text" value="1"`, `name="field_name_1" type="text" value="Cost centre"`, `name="field_value_1" type="text" value="R&amp;D"`} {
		if !strings.Contains(page, want) {
			t.Fatalf("no %s", want)
		}
	}
	form := with(formOf(t, page, path), "purchase_order", "1", "field_name_1", "Cost centre", "field_value_1", "R&D")
	for _, tc := range []struct {
		change []string
		field  string
	}{
		{[]string{"field_value_2", "no name"}, "field_name_2"},
		{[]string{"field_name_2", "no text"}, "field_value_2"},
		{[]string{"field_name_2", "COST centre", "field_value_2", "x"}, "field_name_2"},
		{[]string{"field_name_2", "PO Number", "field_value_2", "x"}, "field_name_2"},
		{[]string{"field_name_2", strings.Repeat("n", 41), "field_value_2", "x"}, "field_name_2"},
		{[]string{"purchase_order", strings.Repeat("n", 141)}, "purchase_order"},
		{[]string{"purchase_order", "a\x00b"}, "purchase_order"},
	} {
		e.unchanged(tc.field, func() {
			w := b.post(path, with(form, tc.change...))
			if w.Code != 422 || !strings.Contains(w.Body.String(), `href="#`+tc.field+`"`) || !strings.Contains(w.Body.String(), "R&amp;D") {
				t.Errorf("%v: %d, want a message at %s and the rest kept", tc.change, w.Code, tc.field)
			}
		})
	}
	done := location(t, b.post(path, with(form, "purchase_order", " 4711 ", "field_name_3", "Project", "field_value_3", "=1+1")), "/done/")
	want := []billing.InvoiceField{{Name: "PO number", Value: "4711"}, {Name: "Cost centre", Value: "R&D"}, {Name: "Project", Value: "=1+1"}}
	if got := e.intent(done).Action.Details.InvoiceFields; got == nil || !slices.Equal(*got, want) {
		t.Errorf("%+v", got)
	}
	form = formOf(t, b.get(path).Body.String(), path)
	none := url.Values{"nonce": form["nonce"], "version": form["version"]}
	done = location(t, b.post(path, none), "/done/")
	if got := e.intent(done).Action.Details.InvoiceFields; got == nil || len(*got) != 0 {
		t.Errorf("to take all off: %+v", got)
	}
}

func TestInvoiceLanguage(t *testing.T) {
	e := newEnv(t)
	b := e.signedIn("cus_a")
	const path = "/details/language"
	page := b.get(path).Body.String()
	for _, want := range []string{`<option value="de" lang="de">Deutsch<`, `<option value="pt-BR"`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", want)
		}
	}
	form := formOf(t, page, path)
	for _, bad := range []string{"xx", "de-AT-1996", "../etc", strings.Repeat("d", 36)} {
		e.unchanged(bad, func() {
			if w := b.post(path, with(form, "locale", bad)); w.Code != 422 || !strings.Contains(w.Body.String(), `href="#locale"`) {
				t.Errorf("%q: %d", bad, w.Code)
			}
		})
	}
	done := location(t, b.post(path, with(form, "locale", "fr-CA")), "/done/")
	if got := e.intent(done).Action.Details.Locale; got == nil || *got != "fr-CA" {
		t.Errorf("%v", got)
	}
}

func TestTaxIDs(t *testing.T) {
	e := newEnv(t)
	e.provider.accounts["cus_b"].Customer.TaxIDs = []billing.TaxID{{ID: "txi_theirs", Type: "us_ein", Country: "US", Value: "12-3456789"}}
	b := e.signedIn("cus_a")
	const path = "/details/tax-ids"
	form := formOf(t, b.get(path).Body.String(), path)
	for _, tc := range []struct{ kind, value, field string }{
		{"eu_vat:DE", "DE12", "tax_id_value"},
		{"eu_vat:DE", "", "tax_id_value"},
		{"eu_vat:DE", strings.Repeat("1", 10_000), "tax_id_value"},
		{"eu_vat:DE", "DE123456789\u202e", "tax_id_value"},
		{"", "DE123456789", "tax_id_type"},
		{"eu_vat", "DE123456789", "tax_id_type"},
		{"made_up:DE", "DE123456789", "tax_id_type"},
	} {
		e.unchanged(tc.kind+" "+tc.field, func() {
			w := b.post(path, with(form, "tax_id_type", tc.kind, "tax_id_value", tc.value))
			if w.Code != 422 || !strings.Contains(w.Body.String(), `href="#`+tc.field+`"`) {
				t.Errorf("%s %.20q: %d, want a message at %s", tc.kind, tc.value, w.Code, tc.field)
			}
		})
	}
	if w := b.post(path, with(form, "tax_id_type", "eu_vat:DE", "tax_id_value", "DE12")); !strings.Contains(w.Body.String(), `value="DE12"`) || !strings.Contains(w.Body.String(), "DE123456789") {
		t.Error("the entry is lost, or the message has no example")
	}
	done := location(t, b.post(path, with(form, "tax_id_type", "eu_vat:DE", "tax_id_value", " de 123.456-789 ")), "/done/")
	if c := e.intent(done).Action.TaxID; c == nil || *c != (billing.TaxIDChange{Type: "eu_vat", Value: "DE123456789"}) {
		t.Errorf("%+v", c)
	}
	mine := templates.PathTaxID + "txi_de123456789"
	if page := b.get(path).Body.String(); !strings.Contains(page, mine) {
		t.Fatal("the tax id is not listed")
	}
	for _, id := range []string{"txi_theirs", "txi_none"} {
		e.unchanged(id, func() {
			if w := b.get(templates.PathTaxID + id); w.Code != http.StatusNotFound {
				t.Errorf("%s: %d", id, w.Code)
			}
			if w := b.post(templates.PathTaxID+id, with(form, "remove", "1", "nonce", "0123456789abcdefghijklmnop")); w.Code != http.StatusNotFound {
				t.Errorf("removing %s: %d", id, w.Code)
			}
		})
	}
	replace := formOf(t, b.get(mine).Body.String(), mine)
	done = location(t, b.post(mine, with(replace, "tax_id_type", "eu_vat:FR", "tax_id_value", "FRAB123456789")), "/done/")
	if c := e.intent(done).Action.TaxID; *c != (billing.TaxIDChange{Remove: "txi_de123456789", Type: "eu_vat", Value: "FRAB123456789"}) {
		t.Errorf("%+v", c)
	}
	mine = templates.PathTaxID + "txi_frab123456789"
	gone := formOf(t, b.get(mine).Body.String(), mine)
	done = location(t, b.post(mine, with(gone, "remove", "1")), "/done/")
	if c := e.intent(done).Action.TaxID; *c != (billing.TaxIDChange{Remove: "txi_frab123456789"}) {
		t.Errorf("%+v", c)
	}
	if ids := e.provider.accounts["cus_a"].Customer.TaxIDs; len(ids) != 0 {
		t.Errorf("%+v", ids)
	}
	e.provider.refuse = "tax_id_invalid"
	form = formOf(t, b.get(path).Body.String(), path)
	if w := b.post(path, with(form, "tax_id_type", "eu_vat:DE", "tax_id_value", "DE123456789")); w.Code != 422 || !strings.Contains(w.Body.String(), "does not take this number") {
		t.Errorf("refused by the provider: %d", w.Code)
	}
}
