package invoices

import (
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shopspring/decimal"
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// MaxText is how long a text to search for can be, in characters. What follows
// is left out.
const MaxText = 100

// Status is what a list can be narrowed to.
type Status string

// The choices of Query.Status; "" is all. An overdue invoice is open too.
const (
	Open          Status = "open"
	Overdue       Status = "overdue"
	Paid          Status = "paid"
	Void          Status = "void"
	Uncollectible Status = "uncollectible"
)

// StatusChoices are all of them, in the order in which they are offered.
var StatusChoices = []Status{Open, Overdue, Paid, Void, Uncollectible}

// Query narrows a list. Zero members match everything.
type Query struct {
	// Text is looked for in number and description, word by word and whatever
	// the case and accents; or it is an amount as people write it ("58.80",
	// "58,80"), which the total has to be.
	Text         string
	Year         int // of Created, in Location
	Status       Status
	Subscription string

	// Now is the provider's time, which says what is overdue.
	Now      time.Time
	Location *time.Location
	// Exponent is the provider's number of decimals of a currency.
	Exponent func(currency string) int
}

// Search returns the entries that match, newest first.
func (v *View) Search(q Query) []Entry {
	m := q.matcher()
	var from, to time.Time
	if q.Year != 0 {
		from = time.Date(q.Year, 1, 1, 0, 0, 0, 0, q.Location)
		to = time.Date(q.Year+1, 1, 1, 0, 0, 0, 0, q.Location)
	}
	var out []Entry
	for i := range v.Entries {
		e := &v.Entries[i]
		if q.Year != 0 && (e.Created.Before(from) || !e.Created.Before(to)) ||
			q.Subscription != "" && e.Subscription != q.Subscription || !e.is(q.Status, q.Now) || !m.match(e) {
			continue
		}
		out = append(out, *e)
	}
	return out
}

func (e *Entry) is(s Status, now time.Time) bool {
	switch s {
	case "":
		return true
	case Open:
		return e.Status == billing.InvoiceOpen
	case Overdue:
		return e.pastDue(now)
	}
	return string(e.Status) == string(s)
}

// Totals are sums over a whole index, one per currency.
type Totals struct {
	// Open is what is to be paid now, Overdue the part of it that should have
	// been paid by now.
	Open, Overdue []Sum
	// Paid is what was paid on invoices of Year.
	Paid []Sum
	Year int
}

// Totals adds up. year is the one that Paid is for.
func (v *View) Totals(year int, now time.Time, loc *time.Location) Totals {
	t := Totals{Year: year}
	from, to := time.Date(year, 1, 1, 0, 0, 0, 0, loc), time.Date(year+1, 1, 1, 0, 0, 0, 0, loc)
	for i := range v.Entries {
		e := &v.Entries[i]
		if e.debt() {
			t.Open = addTo(t.Open, e.Currency, e.Remaining)
		}
		if e.pastDue(now) {
			t.Overdue = addTo(t.Overdue, e.Currency, e.Remaining)
		}
		if e.Paid != 0 && !e.Created.Before(from) && e.Created.Before(to) {
			t.Paid = addTo(t.Paid, e.Currency, e.Paid)
		}
	}
	t.Open, t.Overdue, t.Paid = sorted(t.Open), sorted(t.Overdue), sorted(t.Paid)
	return t
}

// Years are those that have invoices, the latest first.
func (v *View) Years(loc *time.Location) []int {
	var years []int
	for i := range v.Entries {
		if y := v.Entries[i].Created.In(loc).Year(); len(years) == 0 || years[len(years)-1] != y {
			years = append(years, y)
		}
	}
	return years
}

// Subscriptions are the ids of those that have invoices.
func (v *View) Subscriptions() map[string]bool {
	ids := map[string]bool{}
	for i := range v.Entries {
		if id := v.Entries[i].Subscription; id != "" {
			ids[id] = true
		}
	}
	return ids
}

// matcher is a query's text made ready.
type matcher struct {
	words    []string
	amounts  []decimal.Decimal // that the words are, by word; and last the whole text
	isAmount []bool
	exponent func(string) int
	folded   map[string]string // descriptions, of which many are alike
}

func (q *Query) matcher() *matcher {
	text := strings.TrimSpace(q.Text)
	if n := utf8.RuneCountInString(text); n > MaxText {
		text = string([]rune(text)[:MaxText])
	}
	m := &matcher{words: strings.Fields(fold(text)), exponent: q.Exponent, folded: map[string]string{}}
	for _, s := range append(slices.Clone(m.words), text) {
		d, ok := parseAmount(s)
		m.amounts, m.isAmount = append(m.amounts, d...), append(m.isAmount, ok)
		if !ok {
			m.amounts = append(m.amounts, decimal.Decimal{}, decimal.Decimal{})
		}
	}
	return m
}

func (m *matcher) match(e *Entry) bool {
	if len(m.words) == 0 || m.is(len(m.words), e) {
		return true
	}
	number, description := "", ""
	for i, w := range m.words {
		if i == 0 {
			number, description = fold(e.Number), m.fold(e.Description)
		}
		if !strings.Contains(number, w) && !strings.Contains(description, w) && !m.is(i, e) {
			return false
		}
	}
	return true
}

func (m *matcher) fold(s string) string {
	f, ok := m.folded[s]
	if !ok {
		f = fold(s)
		m.folded[s] = f
	}
	return f
}

// is reports whether the total is the amount that the i-th text is, by either
// reading of it.
func (m *matcher) is(i int, e *Entry) bool {
	if !m.isAmount[i] {
		return false
	}
	total := decimal.New(e.Total, -int32(m.exponent(e.Currency)))
	return total.Equal(m.amounts[2*i]) || total.Equal(m.amounts[2*i+1])
}

// parseAmount reads an amount as people write it, with a currency's sign or
// code around it or not. A single separator before three digits can be both a
// decimal sign and one between thousands: there are two readings, which are
// the same elsewhere.
func parseAmount(s string) ([]decimal.Decimal, bool) {
	s = strings.TrimFunc(s, func(r rune) bool {
		return unicode.Is(unicode.Sc, r) || unicode.IsLetter(r) || unicode.IsSpace(r) || isMark(r)
	})
	negative := false
	if rest, ok := strings.CutPrefix(strings.Replace(s, "\u2212", "-", 1), "-"); ok {
		negative, s = true, strings.TrimLeftFunc(rest, func(r rune) bool { return unicode.Is(unicode.Sc, r) || unicode.IsSpace(r) })
	}
	var digits strings.Builder // with every sign as "."
	kinds, seps := 0, 0
	var kind rune
	between := true // no digit stands before
	for _, r := range s {
		digit := r >= '0' && r <= '9'
		switch {
		case digit:
			digits.WriteRune(r)
		case between:
			return nil, false
		case r == '.' || r == ',':
			if r != kind {
				kind, kinds = r, kinds+1
			}
			seps++
			digits.WriteByte('.')
		case r != '\'' && r != '’' && !unicode.IsSpace(r):
			return nil, false
		}
		between = !digit
	}
	text := digits.String()
	if between || len(text) > 20 || kinds > 2 {
		return nil, false
	}
	whole := strings.ReplaceAll(text, ".", "")
	decimals := whole // the last separator as the decimal sign
	if i := strings.LastIndexByte(text, '.'); i >= 0 {
		decimals = strings.ReplaceAll(text[:i], ".", "") + text[i:]
		switch {
		case kinds == 1 && seps > 1: // 1.234.567
			decimals = whole
		case kinds == 2 || len(text)-i-1 != 3: // 1.234,50 and 58,8
			whole = decimals
		}
	}
	var out []decimal.Decimal
	for _, t := range []string{decimals, whole} {
		d, err := decimal.NewFromString(t)
		if err != nil {
			return nil, false
		}
		if negative {
			d = d.Neg()
		}
		out = append(out, d)
	}
	return out, true
}

func isMark(r rune) bool {
	return r >= 0x200B && r <= 0x200F || r >= 0x202A && r <= 0x202E || r >= 0x2066 && r <= 0x2069
}

// fold makes texts alike that differ in case, accents or width only.
func fold(s string) string {
	ascii := true
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			ascii = false
			break
		}
	}
	if ascii {
		return strings.ToLower(s)
	}
	s = strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) || isMark(r) {
			return -1
		}
		return r
	}, norm.NFKD.String(s))
	return cases.Fold().String(s)
}
