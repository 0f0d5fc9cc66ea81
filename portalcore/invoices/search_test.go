package invoices

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

var now = time.Date(2026, 5, 14, 15, 2, 0, 0, time.UTC)

func exponent(currency string) int {
	return map[string]int{"jpy": 0, "kwd": 3}[currency] + map[string]int{"eur": 2, "usd": 2}[currency]
}

func query(change func(*Query)) Query {
	q := Query{Now: now, Location: time.UTC, Exponent: exponent}
	if change != nil {
		change(&q)
	}
	return q
}

func entry(id string, created time.Time, status billing.InvoiceStatus, total int64, currency, number, description string) Entry {
	e := Entry{ID: id, Created: created, Status: status, Total: total, Currency: currency, Number: number, Description: description, Subscription: "sub_" + id}
	switch status {
	case billing.InvoicePaid:
		e.Paid = total
	case billing.InvoiceOpen:
		e.Remaining = total
	}
	return e
}

func view() *View {
	late := entry("late", now.AddDate(0, -1, 0), billing.InvoiceOpen, 5880, "eur", "INV-104", "Größe L, Café")
	late.SendInvoice, late.Due = true, now.AddDate(0, 0, -1)
	debit := entry("debit", now.AddDate(0, -2, 0), billing.InvoiceOpen, 1900, "usd", "INV-103", "Team")
	debit.Processing, debit.Attempted = true, true
	change := entry("change", now.AddDate(0, -2, -1), billing.InvoiceOpen, 700, "eur", "", "Change that waits")
	change.ForPendingUpdate = true
	return &View{Entries: []Entry{
		late, debit, change,
		entry("yen", now.AddDate(0, -3, 0), billing.InvoicePaid, 1500, "jpy", "INV-102", "Team"),
		entry("dinar", now.AddDate(-1, 0, 0), billing.InvoicePaid, 12340, "kwd", "ＩＮＶ-101", "Team ＡＢ"),
		entry("big", time.Date(2025, 12, 31, 23, 30, 0, 0, time.UTC), billing.InvoicePaid, 123450, "eur", "INV-100", "Yearly"),
		entry("void", now.AddDate(-2, 0, 0), billing.InvoiceVoid, -500, "eur", "INV-9", "Cafe\u0301 au lait"),
	}}
}

func ids(list []Entry) string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.ID
	}
	return strings.Join(out, " ")
}

func TestSearch(t *testing.T) {
	for text, want := range map[string]string{
		"": "late debit change yen dinar big void", "INV-10": "late debit yen dinar big", "inv-104": "late", "cafe": "late void", "CAFÉ": "late void",
		"GRÖSSE": "late", "grosse": "late", "team": "debit yen dinar", "Team 103": "debit", "ab": "dinar", "change waits": "change", "waits nothing": "",
		"58.80": "late", "58,80": "late", "€58.80": "late", "58,8 EUR": "late", "EUR 58.80": "late", "58.8.0": "", "1500": "yen", "1,500": "yen", "12.34": "dinar", "12,340": "dinar",
		"1234.50": "big", "1,234.50": "big", "1.234,50": "big", "1 234,50 €": "big", "1\u202f234,50": "big", "-5": "void", "−5.00": "void", "-€5": "void",
		"%": "", "in_late": "", "late": "", strings.Repeat("x", 5000): "", "café \u200f": "late void",
	} {
		got := ids(view().Search(query(func(q *Query) { q.Text = text })))
		if got != want {
			t.Errorf("%.40q finds %q, want %q", text, got, want)
		}
	}
	for want, f := range map[string]func(*Query){
		"late debit change yen dinar big void": nil,
		"late debit change":                    func(q *Query) { q.Status = Open },
		"late":                                 func(q *Query) { q.Status = Overdue },
		"yen dinar big":                        func(q *Query) { q.Status = Paid },
		"void":                                 func(q *Query) { q.Status = Void },
		"debit":                                func(q *Query) { q.Subscription = "sub_debit" },
		"dinar big":                            func(q *Query) { q.Year = 2025 },
		"dinar":                                func(q *Query) { q.Year, q.Location = 2025, time.FixedZone("CET", 3600) },
		"yen":                                  func(q *Query) { q.Year, q.Status, q.Text = 2026, Paid, "team" },
	} {
		if got := ids(view().Search(query(f))); got != want {
			t.Errorf("found %q, want %q", got, want)
		}
	}
	if got := fmt.Sprint(view().Years(time.UTC)); got != "[2026 2025 2025 2024]" && got != "[2026 2025 2024]" {
		t.Errorf("years %s", got)
	}
}

func TestTotals(t *testing.T) {
	got := view().Totals(2025, now, time.UTC)
	want := Totals{
		Year: 2025, Open: []Sum{{Amount: 5880, Currency: "eur"}, {Amount: 1900, Currency: "usd"}}, Overdue: []Sum{{Amount: 5880, Currency: "eur"}},
		Paid: []Sum{{Amount: 123450, Currency: "eur"}, {Amount: 12340, Currency: "kwd"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// FuzzSearch: no text breaks a search, and whoever types a number or an amount
// as it is written finds the invoice.
// TestManySubscriptions: an index of as many subscriptions as invoices is looked
// through in one go.
func TestManySubscriptions(t *testing.T) {
	v := &View{Entries: make([]Entry, MaxEntries)}
	for n := range v.Entries {
		v.Entries[n].Subscription = fmt.Sprintf("sub_1QabcdefGhijklmnop%06d", n)
	}
	begun := time.Now()
	if n := len(v.Subscriptions()); n != MaxEntries {
		t.Errorf("%d subscriptions", n)
	}
	if took := time.Since(begun); took > time.Second { // some milliseconds
		t.Errorf("took %s", took)
	}
}

func FuzzSearch(f *testing.F) {
	for _, s := range []string{"58.80", "1.234,50", "−€5", "Größe", "\xff\xfe", "İ", strings.Repeat("1.", 60), "1e9", "٣", "ǅ\u0301"} {
		f.Add(s, int64(5880), "INV-104")
	}
	f.Fuzz(func(t *testing.T, text string, total int64, number string) {
		v := view()
		v.Entries[0].Total, v.Entries[0].Number = total, cut(number, 60)
		_ = v.Search(query(func(q *Query) { q.Text = text }))
		amount := fmt.Sprintf("%d.%02d", total/100, total%100)
		for _, s := range []string{v.Entries[0].Number, amount, strings.Replace(amount, ".", ",", 1)} {
			if s == amount && (total < 0 || total > 1<<50) || strings.ContainsFunc(s, isMark) {
				continue
			}
			if found := v.Search(query(func(q *Query) { q.Text = s })); !slices.ContainsFunc(found, func(e Entry) bool { return e.ID == "late" }) {
				t.Fatalf("%q does not find total %d, number %q", s, total, v.Entries[0].Number)
			}
		}
	})
}

// FuzzChunk: whatever the store gives back is an index or damaged, and what is
// read is written as it was.
func FuzzChunk(f *testing.F) {
	e := view().Entries[0]
	whole := appendEntry(appendEntry([]byte{chunkFormat}, &e), &view().Entries[6])
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	f.Add([]byte{chunkFormat, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F})
	f.Fuzz(func(t *testing.T, value []byte) {
		list, err := decodeChunk(nil, value)
		if err != nil {
			return
		}
		again := []byte{chunkFormat}
		for i := range list {
			again = appendEntry(again, &list[i])
		}
		second, err := decodeChunk(nil, again)
		if err != nil || !reflect.DeepEqual(list, second) {
			t.Fatalf("%v: read %+v, written and read again %+v", err, list, second)
		}
	})
}

// BenchmarkSearch reads an index of 5,000 invoices out of the store and
// searches it, as each look at the list does.
func BenchmarkSearch(b *testing.B) {
	e := newEnv(b, 5000)
	if _, err := e.nodes[0].Open(b.Context(), customer, 1); err != nil {
		b.Fatal(err)
	}
	e.settle()
	b.ReportAllocs()
	for b.Loop() {
		v, err := e.nodes[0].View(b.Context(), customer)
		if err != nil || len(v.Entries) != 5000 {
			b.Fatal(err)
		}
		if n := len(v.Search(query(func(q *Query) { q.Text = "groesse cafe" }))); n != 0 {
			b.Fatal(n)
		}
		if n := len(v.Search(query(func(q *Query) { q.Text, q.Year = "größe cafe", 2024 }))); n == 0 {
			b.Fatal("nothing found")
		}
		v.Totals(2026, now, time.UTC)
	}
}
