package journal_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
)

// TestPage reads a list in pages and sees every intent once, and none of
// another customer whose name begins alike.
func TestPage(t *testing.T) {
	j, _ := setUp(t)
	want := map[string][]string{}
	for n := range 7 {
		i := intent(fmt.Sprintf("id%02d", n), fmt.Sprintf("sub_%d", n))
		if n%2 == 1 {
			i.Customer += "x"
		}
		if _, created, err := j.Plan(t.Context(), i, 0); err != nil || !created {
			t.Fatal(created, err)
		}
		want[i.Customer] = append(want[i.Customer], i.ID)
		want[""] = append(want[""], i.ID)
	}
	for customer, ids := range want {
		for limit := 1; limit <= 8; limit++ {
			var got []string
			after, pages := "", 0
			for {
				list, next, err := j.Page(t.Context(), customer, after, limit)
				if err != nil || len(list) > limit {
					t.Fatal(len(list), err)
				}
				for _, i := range list {
					got = append(got, i.ID)
				}
				if pages++; next == "" {
					break
				}
				after = next
			}
			slices.Sort(got)
			if !slices.Equal(got, ids) {
				t.Errorf("customer %q by %d: %q, want %q", customer, limit, got, ids)
			}
			if full := (len(ids) + limit - 1) / limit; pages != full {
				t.Errorf("customer %q by %d: %d pages, want %d", customer, limit, pages, full)
			}
		}
	}
	if _, _, err := j.Page(t.Context(), "", "no cursor!", 1); !errors.Is(err, journal.ErrCursor) {
		t.Errorf("a cursor that is none: %v", err)
	}
}
