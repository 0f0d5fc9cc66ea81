package billing_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

func TestAddressLines(t *testing.T) {
	for name, tt := range map[string]struct {
		language string
		a        billing.Address
		want     []string
	}{
		"Germany: code before the city": {"en", billing.Address{Line1: "Hauptstraße 5", City: "Berlin", PostalCode: "10827", Country: "DE"}, []string{"Hauptstraße 5", "10827 Berlin"}},
		"USA: one line":                 {"en", billing.Address{Line1: "1 Main St", Line2: "Floor 2", City: "Springfield", State: "OR", PostalCode: "97403", Country: "US"}, []string{"1 Main St", "Floor 2", "Springfield, OR 97403"}},
		"USA without a state":           {"en", billing.Address{Line1: "1 Main St", City: "Springfield", PostalCode: "97403", Country: "US"}, []string{"1 Main St", "Springfield 97403"}},
		"Japan to those who read it":    {"ja", billing.Address{Line1: "丸の内2-4-1", City: "千代田区", State: "東京都", PostalCode: "100-6390", Country: "JP"}, []string{"〒100-6390", "東京都", "丸の内2-4-1", "千代田区"}},
		"Japan in Latin letters":        {"de", billing.Address{Line1: "2-4-1 Marunouchi", State: "Tokyo", PostalCode: "100-6390", Country: "JP"}, []string{"2-4-1 Marunouchi", "Tokyo", "100-6390"}},
		"Brazil: city and state":        {"pt-BR", billing.Address{Line1: "Av. Paulista 1000", City: "São Paulo", State: "SP", PostalCode: "01310-100", Country: "BR"}, []string{"Av. Paulista 1000", "São Paulo-SP", "01310-100"}},
		"a field without a place":       {"en", billing.Address{Line1: "Hauptstraße 5", City: "Berlin", State: "BE", PostalCode: "10827", Country: "DE"}, []string{"Hauptstraße 5", "10827 Berlin", "BE"}},
		"no such country":               {"en", billing.Address{Line1: "x", City: "y", PostalCode: "z", Country: "QQ"}, []string{"x", "y", "z"}},
		"nothing":                       {"en", billing.Address{Country: "FR"}, nil},
		"only a code":                   {"en", billing.Address{PostalCode: "75002", Country: "FR"}, []string{"75002"}},
	} {
		if got := billing.AddressFormOf(tt.a.Country, tt.language).Lines(tt.a); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestAddressForm(t *testing.T) {
	us, gb, ie, ae := billing.AddressFormOf("US", "en"), billing.AddressFormOf("GB", "de"), billing.AddressFormOf("IE", "en"), billing.AddressFormOf("AE", "en")
	if want := []billing.AddressField{billing.FieldLines, billing.FieldCity, billing.FieldState, billing.FieldPostalCode}; !slices.Equal(us.Fields, want) || !us.Requires(billing.FieldState) {
		t.Errorf("US: %v, required %v", us.Fields, us.Required)
	}
	if !slices.Contains(us.Regions, billing.AddressRegion{Key: "CA", Name: "California"}) || us.PostalName != "zip" {
		t.Errorf("US: %v", us.Regions)
	}
	if gb.Asks(billing.FieldState) || gb.CityName != "post_town" {
		t.Errorf("GB: %v", gb.Fields)
	}
	if !ie.Asks(billing.FieldState) || ie.Requires(billing.FieldPostalCode) || ie.StateName != "county" {
		t.Errorf("IE: %v, required %v", ie.Fields, ie.Required)
	}
	if ae.Asks(billing.FieldPostalCode) || !slices.Contains(ae.Regions, billing.AddressRegion{Key: "Sharjah", Name: "Sharjah"}) {
		t.Errorf("AE: %v, %v", ae.Fields, ae.Regions)
	}
	if ar := billing.AddressFormOf("AE", "ar"); slices.Contains(ar.Regions, billing.AddressRegion{Key: "Sharjah", Name: "Sharjah"}) {
		t.Error("those who read Arabic get Latin names of the emirates")
	}
	for _, tt := range []struct {
		country, code string
		fits          bool
	}{
		{"US", "97403", true},
		{"US", "97403-1234", true},
		{"US", "9740", false},
		{"US", "x97403", false},
		{"US", "974031", false},
		{"GB", "ec1y 8sy", true},
		{"GB", "12345", false},
		{"DE", "10827", true},
		{"DE", "1082", false},
		{"AE", "anything", true},
		{"QQ", "anything", true},
	} {
		if got := billing.AddressFormOf(tt.country, "en").PostalCodeFits(tt.code); got != tt.fits {
			t.Errorf("%s %q: %v", tt.country, tt.code, got)
		}
	}
	if got := gb.Normal(billing.Address{City: "York", PostalCode: "yo1 7hh"}); got.PostalCode != "YO1 7HH" || got.City != "York" {
		t.Errorf("%+v", got)
	}
}

// Every country's form can be used: its pattern compiles and takes its own
// example, and an address with everything in it loses nothing.
func TestEveryAddressForm(t *testing.T) {
	full := billing.Address{Line1: "line one", Line2: "line two", City: "the city", State: "the state", PostalCode: "the code"}
	seen := 0
	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			country := string([]rune{a, b})
			for _, language := range []string{"en", "ar", "ja", "ko", "zh-Hans", "ru"} {
				f := billing.AddressFormOf(country, language)
				if f.PostalExample != "" {
					seen++
					if !f.PostalCodeFits(f.PostalExample) {
						t.Errorf("%s: its own example %q does not fit", country, f.PostalExample)
					}
				}
				got := strings.Join(f.Lines(full), "\n")
				for _, want := range []string{full.Line1, full.Line2, full.City, full.State, full.PostalCode} {
					if strings.Count(got, want) != 1 {
						t.Errorf("%s in %s: %q has %q %d times", country, language, got, want, strings.Count(got, want))
					}
				}
				if !f.Asks(billing.FieldLines) {
					t.Errorf("%s asks for no street", country)
				}
			}
		}
	}
	if seen < 100*6 {
		t.Errorf("only %d examples of postal codes", seen)
	}
}
