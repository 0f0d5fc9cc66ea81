package stripe

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// The cursor of a balance comes from a browser: what is no cursor is not found,
// and what is one goes into requests as it came.
func FuzzBalanceCursor(f *testing.F) {
	for _, s := range []string{
		"", "a", "not a cursor", cursor{{"a", ""}, {"a", "cbtxn_1"}}.String(), cursor{{"b", "cbtxn_1"}, {"i", "cbtxn_2"}}.String(), cursor{{"n", ""}, {"b", "cbtxn_2"}}.String(),
		base64.RawURLEncoding.EncodeToString([]byte("bcbtxn_1 acbtxn_2")), base64.RawURLEncoding.EncodeToString([]byte("b i")), base64.RawURLEncoding.EncodeToString([]byte("nx n")),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, newer, err := parseCursor(s)
		if err != nil {
			if billing.FaultOf(err) != billing.NotFound {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		for _, e := range c {
			if newer == (e.mode == "a") || e.mode == "n" && e.id != "" || newer && e.mode != "n" && e.id == "" || strings.Contains(e.id, " ") {
				t.Fatalf("%q is read as %+v", s, c)
			}
		}
		again, _, err := parseCursor(c.String())
		if s != "" && (err != nil || again != c) {
			t.Fatalf("%q is read as %+v, and written and read again as %+v, %v", s, c, again, err)
		}
	})
}

// merged walks over two lists as Balance does over Stripe's, which hand out
// pages in the same way.
func TestBalanceMerge(t *testing.T) {
	day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	// Every way of laying out up to five entries of the balance and the credits
	// in time, two of them at one time.
	for layout := range 1 << 5 {
		for n := range 6 {
			var lists [2][]billing.BalanceEntry
			for i := range n {
				which := layout >> i & 1
				at := day.Add(-time.Duration(i) * time.Hour)
				if i == 3 {
					at = at.Add(time.Hour)
				}
				lists[which] = append(lists[which], billing.BalanceEntry{ID: fmt.Sprintf("%d_%d", which, i), Time: at})
			}
			all := slices.Concat(lists[0], lists[1])
			slices.SortStableFunc(all, func(a, b billing.BalanceEntry) int { return b.Time.Compare(a.Time) })
			for limit := 1; limit <= 3; limit++ {
				walk(t, lists, all, limit)
			}
		}
	}
}

func walk(t *testing.T, lists [2][]billing.BalanceEntry, all []billing.BalanceEntry, limit int) {
	t.Helper()
	read := func(list []billing.BalanceEntry, e edge) part {
		at := slices.IndexFunc(list, func(x billing.BalanceEntry) bool { return x.ID == e.id })
		if e.id != "" && at < 0 {
			t.Fatalf("no entry %s", e.id)
		}
		switch e.mode {
		case "a":
			list = list[at+1:]
			return part{list[:min(limit, len(list))], len(list) > limit}
		case "b":
			return part{list[max(at-limit, 0):at], at > limit}
		case "i":
			return part{list[max(at-limit, 0) : at+1], at > limit}
		}
		return part{}
	}
	page := func(s string) (entries []billing.BalanceEntry, newer, older string) {
		c, up, err := parseCursor(s)
		if err != nil {
			t.Fatal(err)
		}
		return merge(c, up, [2]part{read(lists[0], c[0]), read(lists[1], c[1])}, limit, s == "")
	}
	same := func(got []billing.BalanceEntry, newer, older string, from int) {
		t.Helper()
		to := min(from+limit, len(all))
		if !slices.EqualFunc(got, all[from:to], func(a, b billing.BalanceEntry) bool { return a.ID == b.ID }) || (newer != "") != (from > 0) || (older != "") != (to < len(all)) {
			t.Fatalf("%d at a time from %d of %v: %v, newer %q, older %q", limit, from, all, got, newer, older)
		}
	}
	from := 0
	got, newer, older := page("")
	for same(got, newer, older, from); older != ""; same(got, newer, older, from) {
		from += limit
		got, newer, older = page(older)
	}
	for newer != "" {
		from -= limit
		got, newer, older = page(newer)
		same(got, newer, older, from)
	}
}
