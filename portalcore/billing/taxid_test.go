package billing_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// TestTaxIDTypes: the table agrees with itself, and each country of the EU has
// its VAT number.
func TestTaxIDTypes(t *testing.T) {
	seen := map[[2]string]bool{}
	for _, ty := range billing.TaxIDTypes("") {
		k := [2]string{ty.Type, ty.Country}
		if seen[k] {
			t.Errorf("%v is there twice", k)
		}
		seen[k] = true
		if ty.Name == "" {
			t.Errorf("%v has no name", k)
		}
		if got, ok := billing.CheckTaxID(ty.Type, ty.Example); !ok || got != ty.Example {
			t.Errorf("%v: the example %q becomes %q, %v", k, ty.Example, got, ok)
		}
		if c := billing.TaxIDCountry(ty.Type, ty.Example); c != ty.Country {
			t.Errorf("%v: the example's country is %q", k, c)
		}
	}
	for c := range strings.FieldsSeq("AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK") {
		list := billing.TaxIDTypes(c)
		if len(list) == 0 || list[0].Type != "eu_vat" {
			t.Errorf("the first type of %s is %v, want eu_vat", c, list)
		}
	}
	if list := billing.TaxIDTypes("GB"); len(list) != 2 || list[0].Type != "gb_vat" {
		t.Errorf("GB: %v", list)
	}
	if list := billing.TaxIDTypes("AQ"); list != nil {
		t.Errorf("AQ: %v", list)
	}
}

func TestCheckTaxID(t *testing.T) {
	for _, tt := range []struct {
		typ, value, want string
	}{
		{"eu_vat", " de 123-456.789 ", "DE123456789"},
		{"eu_vat", "DE\u00a0123\u202f456\u2011789", "DE123456789"},
		{"eu_vat", "XI123456789", "XI123456789"},
		{"eu_vat", "DE12345678", ""},
		{"eu_vat", "GR123456789", ""}, // Greece writes EL
		{"eu_vat", "123456789", ""},
		{"us_ein", "123456789", "12-3456789"},
		{"us_ein", "12-3456789", "12-3456789"},
		{"us_ein", "12 3456789", "12 3456789"},
		{"ch_vat", "che123456789mwst", "CHE-123.456.789 MWST"},
		{"ch_vat", "CHE123456789TVA", "CHE123456789TVA"},
		{"ch_vat", "CHE–123.456.789  TVA", "CHE-123.456.789 TVA"},
		{"ar_cuit", "20-12345678-6", "20-12345678-6"},
		{"mx_rfc", "ñab010203ab9", "ÑAB010203AB9"},
		{"gb_vat", "GB 980 7806 84", "GB980780684"},
		{"gb_vat", "GB1234567890", ""},
		{"eu_vat", "DE123456789\n", "DE123456789"},
		{"eu_vat", "DE123\n456789", ""},
		{"eu_vat", "DE\u202e123456789", ""},
		{"eu_vat", "DE１２３４５６７８９", ""},
		{"eu_vat", "", ""},
		{"", "DE123456789", ""},
		{"unknown", "DE123456789", ""},
		{"eu_vat", strings.Repeat(" ", 60) + "DE123456789", ""},
	} {
		got, ok := billing.CheckTaxID(tt.typ, tt.value)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s %q: %q, %v, want %q", tt.typ, tt.value, got, ok, tt.want)
		}
	}
}

func FuzzCheckTaxID(f *testing.F) {
	f.Add("eu_vat", "DE 123.456-789")
	f.Add("ch_vat", "CHE-123.456.789 MWST")
	f.Add("mx_rfc", "ÑAB010203AB9")
	f.Add("us_ein", "12\u2013 3456789")
	f.Add("my_itn", "c\x00 1234567890")
	f.Add("eu_vat", "\u202eDE123456789\xff")
	f.Fuzz(func(t *testing.T, typ, value string) {
		got, ok := billing.CheckTaxID(typ, value)
		if !ok {
			if got != "" {
				t.Fatalf("%q is refused and comes back as %q", value, got)
			}
			return
		}
		if again, ok := billing.CheckTaxID(typ, got); !ok || again != got {
			t.Fatalf("%q becomes %q, and that %q, %v", value, got, again, ok)
		}
		if len(got) > 2*billing.MaxTaxID || strings.ContainsFunc(got, func(r rune) bool {
			return r != 'Ñ' && (r < ' ' || r > '~')
		}) {
			t.Fatalf("%q becomes %q", value, got)
		}
		if !slices.ContainsFunc(billing.TaxIDTypes(""), func(ty billing.TaxIDType) bool { return ty.Type == typ }) {
			t.Fatalf("type %q is not in the table", typ)
		}
	})
}
