package templates

import (
	"fmt"
	"hash/maphash"
	"html/template"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bojanz/currency"
	"github.com/go-playground/locales"
	"github.com/go-playground/locales/en_GB"
	"github.com/shopspring/decimal"
	"golang.org/x/text/language"
	"golang.org/x/text/language/display"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// local writes values the way one locale does.
type local struct {
	locale   string // BCP 47, for lang=""
	messages *messages
	dates    locales.Translator
	money    *currency.Formatter
	regions  display.Namer
	zone     *time.Location
	exponent func(string) int
	// group and point stand in numbers: between thousands, before decimals.
	group, point string
	written      moneyCache
}

// moneyCache keeps amounts as they were written, since a page says the same
// sums again and again and writing one costs a tenth of a short page. It is a
// table of fixed size in which a later amount replaces an earlier one.
type moneyCache struct {
	seed  maphash.Seed
	slots [512]atomic.Pointer[writtenMoney]
}

type writtenMoney struct {
	money billing.Money
	text  string
}

func (l *local) moneyText(m billing.Money) string {
	slot := &l.written.slots[maphash.Comparable(l.written.seed, m)%uint64(len(l.written.slots))]
	if w := slot.Load(); w != nil && w.money == m {
		return w.text
	}
	w := &writtenMoney{m, l.amount(decimal.NewFromInt(m.Amount), m.Currency)}
	slot.Store(w)
	return w.text
}

// newLocal is the locale's formats. English dates are written "1 June 2026",
// which both sides of the Atlantic read alike.
func newLocal(locale string, ms *messages, zone *time.Location, exponent func(string) int) *local {
	f := currency.NewFormatter(currency.NewLocale("en"))
	dates := en_GB.New()
	signs := strings.FieldsFunc(dates.FmtNumber(1111111.5, 1), unicode.IsDigit)
	return &local{
		locale: locale, messages: ms, dates: dates, money: f, regions: display.English.Regions(), zone: zone, exponent: exponent,
		group: signs[0], point: signs[len(signs)-1],
		written: moneyCache{seed: maphash.MakeSeed()},
	}
}

// The kinds of value beside billing's own that a message takes.
type (
	words    string    // a text of the catalogue, already in the locale
	stamp    time.Time // date and time with zone; a plain time.Time is a date
	clock    time.Time // time of day with zone
	dayUTC   time.Time // the date in UTC, whatever the zone of the page
	monthUTC time.Time // its month
	rate     struct {  // an amount per period
		amount   decimal.Decimal // in minor units
		currency string
		interval billing.Interval
		count    int
	}
)

// write appends v as the locale writes it. Strings are nouns of the vendor or
// the customer: they are isolated (bdi), so that a name in another script does
// not turn the sentence round, and kept from translation.
func (l *local) write(b *strings.Builder, v any, html bool) error {
	switch v := v.(type) {
	case words:
		if html {
			b.WriteString(template.HTMLEscapeString(string(v)))
		} else {
			b.WriteString(string(v))
		}
	case string:
		isolate(b, "", clean(v), html)
	case *billing.Money:
		if v != nil {
			return l.write(b, *v, html)
		}
	case billing.Money:
		isolate(b, "money", l.moneyText(v), html)
	case time.Time:
		t := v.In(l.zone)
		instant(b, t.Format(time.DateOnly), l.dates.FmtDateLong(t), html)
	case stamp:
		t := time.Time(v).In(l.zone)
		s, err := l.say("format.stamp", false, "date", words(l.dates.FmtDateLong(t)), "time", words(l.clock(t)))
		if err != nil {
			return err
		}
		instant(b, t.UTC().Format(time.RFC3339), s, html)
	case clock:
		t := time.Time(v).In(l.zone)
		instant(b, t.UTC().Format(time.RFC3339), l.clock(t), html)
	case dayUTC:
		t := time.Time(v).UTC()
		instant(b, t.Format(time.DateOnly), l.dates.FmtDateLong(t), html)
	case monthUTC:
		t := time.Time(v).UTC()
		s, err := l.say("format.month_year", false, "month", words(l.dates.MonthWide(t.Month())), "year", words(strconv.Itoa(t.Year())))
		if err != nil {
			return err
		}
		instant(b, t.Format("2006-01"), s, html)
	case *decimal.Decimal:
		if v != nil {
			return l.write(b, *v, html)
		}
	case decimal.Decimal:
		isolate(b, "", l.decimal(v), html)
	case int:
		return l.write(b, int64(v), html)
	case int64:
		b.WriteString(l.number(v))
	case *billing.PaymentMethod:
		if v != nil {
			return l.write(b, *v, html)
		}
	case billing.PaymentMethod:
		return l.method(b, v, html)
	case billing.Price:
		return l.write(b, rate{v.UnitAmount, v.Currency, v.Interval, v.IntervalCount}, html)
	case rate:
		var amount any = exactly{v.amount, v.currency}
		if v.amount.IsInteger() && v.amount.BigInt().IsInt64() {
			amount = billing.Money{Amount: v.amount.IntPart(), Currency: v.currency}
		}
		s, err := l.say("per."+known(string(v.interval), "month", "day", "week", "year"), html,
			"count", max(v.count, 1), "amount", amount)
		if err != nil {
			return err
		}
		b.WriteString(s)
	case exactly:
		isolate(b, "money", l.amount(v.amount, v.currency), html)
	default:
		return fmt.Errorf("no way to write a %T", v)
	}
	return nil
}

// exactly is an amount in minor units that may have decimals.
type exactly struct {
	amount   decimal.Decimal
	currency string
}

func isolate(b *strings.Builder, class, s string, html bool) {
	if !html {
		b.WriteString("\u2068" + s + "\u2069")
		return
	}
	b.WriteString(`<bdi translate="no"`)
	if class != "" {
		b.WriteString(` class="` + class + `"`)
	}
	b.WriteByte('>')
	b.WriteString(template.HTMLEscapeString(s))
	b.WriteString("</bdi>")
}

func instant(b *strings.Builder, machine, s string, html bool) {
	if !html {
		b.WriteString(s)
		return
	}
	b.WriteString(`<time datetime="` + machine + `">`)
	b.WriteString(template.HTMLEscapeString(s))
	b.WriteString("</time>")
}

// clean takes out what would act beyond the string itself: bidirectional
// embeddings, overrides and isolates, and control characters.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 0x202A && r <= 0x202E, r >= 0x2066 && r <= 0x2069, r == utf8.RuneError:
			return -1
		case unicode.IsControl(r):
			return ' '
		}
		return r
	}, s)
}

// amount writes minor units as the locale writes money, with CLDR's number of
// digits and more where the amount has more. Nothing is rounded.
func (l *local) amount(minor decimal.Decimal, cur string) string {
	code := strings.ToUpper(cur)
	d := minor.Shift(-int32(l.exponent(strings.ToLower(cur))))
	if tiny := decimal.New(1, -5); !d.IsZero() && d.Abs().LessThan(tiny) {
		// The formatter would write it with an exponent, so it gets 1 more.
		return strings.Replace(l.amountOf(d.Add(decimal.NewFromInt(int64(d.Sign()))), code), "1", "0", 1)
	}
	return l.amountOf(d, code)
}

// amountOf writes an amount in major units.
func (l *local) amountOf(d decimal.Decimal, code string) string {
	a, err := currency.NewAmount(d.String(), code)
	if err != nil {
		return strings.TrimSpace(strings.Replace(d.String(), "-", "−", 1) + "\u00a0" + clean(code))
	}
	// The formatter rounds to MaxDigits, and makes NaN of what has no room for
	// them: it gets exactly as many as there are.
	f := *l.money
	digits, _ := currency.GetDigits(code)
	f.MaxDigits = uint8(min(max(int32(digits), -d.Exponent()), 200))
	s := f.Format(a)
	if d.IsNegative() {
		s = strings.Replace(s, "-", "−", 1)
	}
	return s
}

func (l *local) clock(t time.Time) string {
	zone := t.Format("MST")
	if zone[0] == '+' || zone[0] == '-' {
		zone = "UTC" + zone
	}
	return l.dates.FmtTimeShort(t) + " " + zone
}

func (l *local) number(n int64) string {
	if n > -1<<53 && n < 1<<53 {
		return l.dates.FmtNumber(float64(n), 0)
	}
	return strconv.FormatInt(n, 10)
}

// maxDecimals is how many decimals of a number that is not money are shown,
// unless all of them are zero.
const maxDecimals = 12

// decimal writes a number of any size with the locale's signs.
func (l *local) decimal(d decimal.Decimal) string {
	if r := d.Round(maxDecimals); !r.IsZero() {
		d = r
	}
	whole, fraction, found := strings.Cut(d.Abs().String(), ".")
	var b strings.Builder
	if d.IsNegative() {
		b.WriteString("−")
	}
	for i, digit := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteString(l.group)
		}
		b.WriteRune(digit)
	}
	if found {
		b.WriteString(l.point + fraction)
	}
	return b.String()
}

// country is the name of an ISO 3166-1 country in the locale, or the code
// where there is none.
func (l *local) country(code string) string {
	if region, err := language.ParseRegion(code); err == nil {
		if name := l.regions.Name(region); name != "" {
			return name
		}
	}
	return code
}

// known returns s if it is one of names, else fallback, so that a value from
// outside can stand in a message key.
func known(s, fallback string, names ...string) string {
	if slices.Contains(names, s) {
		return s
	}
	return fallback
}

func (l *local) say(key string, html bool, pairs ...any) (string, error) {
	return l.messages.say(key, call{local: l, args: args{pairs: pairs}, html: html})
}

// html is v for an HTML text.
func (l *local) html(v any) (template.HTML, error) {
	var b strings.Builder
	err := l.write(&b, v, true)
	return template.HTML(b.String()), err //nolint:gosec // write escapes
}
