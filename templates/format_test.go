package templates

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

func english(t testing.TB, zone *time.Location) *local {
	t.Helper()
	_, byLocale, err := loadMessages()
	if err != nil {
		t.Fatal(err)
	}
	return newLocal("en", byLocale["en"], zone, stripeExponent)
}

func plain(t *testing.T, l *local, v any) string {
	t.Helper()
	var b strings.Builder
	if err := l.write(&b, v, false); err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("\u2068", "", "\u2069", "", "\u00a0", "_").Replace(b.String())
}

func TestMoney(t *testing.T) {
	l := english(t, time.UTC)
	for _, c := range []struct {
		minor, currency, want string
	}{
		{"2090", "eur", "€20.90"},
		{"-1103", "eur", "−€11.03"},
		{"0", "usd", "$0.00"},
		{"123456789", "usd", "$1,234,567.89"},
		{"5", "usd", "$0.05"},
		{"1234", "jpy", "¥1,234"},      // no decimals, at the provider and in CLDR
		{"100000", "isk", "ISK_1,000"}, // two decimals at Stripe, none in CLDR
		{"100050", "isk", "ISK_1,000.5"},
		{"12340", "kwd", "KWD_12.340"},
		{"1299", "cad", "CA$12.99"},
		{"12.5", "usd", "$0.125"}, // a unit price with decimals of the minor unit
		{"0.0375", "usd", "$0.000375"},
		{"9223372036854775807", "usd", "$92,233,720,368,547,758.07"},
		{"-100", "x<y", "−1_X<Y"}, // no currency at all: the number is still right
	} {
		if got := plain(t, l, exactly{decimal.RequireFromString(c.minor), c.currency}); got != c.want {
			t.Errorf("%s %s = %q, want %q", c.minor, c.currency, got, c.want)
		}
	}
}

// TestMoneyIsExact: whatever the amount, its digits are all there and no
// others.
func TestMoneyIsExact(t *testing.T) {
	l := english(t, time.UTC)
	random := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		minor := decimal.New(random.Int64()>>random.IntN(63), -int32(random.IntN(13)))
		currency := []string{"usd", "jpy", "kwd", "eur"}[random.IntN(4)]
		got := plain(t, l, exactly{minor, currency})
		digits := strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r == '.' {
				return r
			}
			return -1
		}, got)
		if d, err := decimal.NewFromString(digits); err != nil || !d.Equal(minor.Shift(-int32(stripeExponent(currency)))) {
			t.Fatalf("%s minor units of %s became %s", minor, currency, got)
		}
	}
}

// TestMoneyCache: more amounts than the cache has places, each written twice,
// stay apart.
func TestMoneyCache(t *testing.T) {
	l := english(t, time.UTC)
	for range 2 {
		for n := range int64(2000) {
			for _, currency := range []string{"eur", "usd"} {
				m := billing.Money{Amount: n, Currency: currency}
				if got, want := l.moneyText(m), l.amount(decimal.NewFromInt(n), currency); got != want {
					t.Fatalf("%v is written %q, want %q", m, got, want)
				}
			}
		}
	}
}

func TestDates(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 5, 31, 22, 30, 0, 0, time.UTC)
	for _, c := range []struct {
		zone *time.Location
		v    any
		want string
	}{
		{time.UTC, at, "31 May 2026"},
		{time.UTC, stamp(at), "31 May 2026, 22:30 UTC"},
		{berlin, at, "1 June 2026"},
		{berlin, stamp(at), "1 June 2026, 00:30 CEST"},
		{berlin, clock(at), "00:30 CEST"},
		{time.FixedZone("", 5*3600+1800), clock(at), "04:00 UTC+0530"},
	} {
		if got := plain(t, english(t, c.zone), c.v); got != c.want {
			t.Errorf("%v in %s = %q, want %q", c.v, c.zone, got, c.want)
		}
	}
}

func TestValues(t *testing.T) {
	l := english(t, time.UTC)
	three := price("p", 1000, billing.Month)
	three.IntervalCount = 3
	zero := price("p", 1000, billing.Year)
	zero.IntervalCount = 0
	for _, c := range []struct {
		v    any
		want string
	}{
		{team, "€12.25 per month"},
		{three, "€10.00 every 3 months"},
		{zero, "€10.00 per year"},
		{rate{decimal.NewFromInt(700), "usd", billing.Week, 1}, "$7.00 per week"},
		{rate{decimal.NewFromInt(700), "usd", "fortnight", 2}, "$7.00 every 2 months"},
		{*visa, "Visa ending 4242"},
		{*debit, "SEPA direct debit ending 3000"},
		{billing.PaymentMethod{Type: "card", Brand: "girocard", Last4: "1"}, "girocard ending 1"},
		{billing.PaymentMethod{Type: "card", Last4: "1"}, "Card ending 1"},
		{billing.PaymentMethod{Type: "card"}, "Card"},
		{billing.PaymentMethod{Type: "card", Brand: "visa", Last4: "4242", Wallet: "apple_pay"}, "Apple Pay (Visa ending 4242)"},
		{billing.PaymentMethod{Type: "card", Last4: "4242", Wallet: "google_pay"}, "Google Pay (card ending 4242)"},
		{billing.PaymentMethod{Type: "card", Brand: "visa", Last4: "4242", Wallet: "new_wallet"}, "New wallet (Visa ending 4242)"},
		{billing.PaymentMethod{Type: "us_bank_account", Last4: "6789", Bank: "STRIPE TEST BANK"}, "Bank account ending 6789"},
		{billing.PaymentMethod{Type: "link", Email: "ann@northwind.example"}, "Link a•••@northwind.example"},
		{billing.PaymentMethod{Type: "paypal", Email: "no address"}, "PayPal"},
		{billing.PaymentMethod{Type: "customer_balance"}, "Bank transfer"},
		{billing.PaymentMethod{Type: "new_pay", Last4: "12"}, "New pay ending 12"},
		{billing.PaymentMethod{Type: "magic"}, "Magic"},
		{billing.PaymentMethod{Type: "_7"}, "Payment method"},
		{billing.PaymentMethod{}, "Payment method"},
		{int64(1234567), "1,234,567"},
		{int64(-1 << 62), "-4611686018427387904"},
		{"a\u202Eb\nc", "ab c"},
	} {
		if got := plain(t, l, c.v); got != c.want {
			t.Errorf("%v = %q, want %q", c.v, got, c.want)
		}
	}
	if err := l.write(&strings.Builder{}, 1.5, true); err == nil {
		t.Error("a float was written")
	}
	if got := l.country("TR") + " " + l.country("??"); got != "Türkiye ??" && got != "Turkey ??" {
		t.Errorf("countries: %s", got)
	}
}
