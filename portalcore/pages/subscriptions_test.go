package pages

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// TestManySubscriptions holds that the overview of 200 subscriptions is short
// and shows what is urgent, and that the list has each of them once.
func TestManySubscriptions(t *testing.T) {
	e := newEnv(t)
	acct := e.provider.accounts["cus_a"]
	one := acct.Subscriptions[0]
	acct.Subscriptions = nil
	for i := range 200 {
		s := one
		s.ID = fmt.Sprintf("sub_%03d", i)
		s.Items = []billing.Item{one.Items[0]}
		s.Items[0].PeriodEnd = e.now().AddDate(0, 0, 300-i)
		switch i {
		case 3:
			s.Status = billing.PastDue
		case 4:
			s.CancelAtPeriodEnd = true
		}
		acct.Subscriptions = append(acct.Subscriptions, s)
	}
	b := e.signedIn("cus_a")
	body := b.get("/").Body.String()
	order := -1
	for i, id := range []string{"sub_003", "sub_004", "sub_199", "sub_198", "sub_190"} {
		at := strings.Index(body, "subscription="+id)
		if id == "sub_004" { // it ends, so there is a form to keep it
			at = strings.Index(body, `value="sub_004"`)
		}
		if at < order || at < 0 {
			t.Errorf("%d: %s is at %d, after %d", i, id, at, order)
		}
		order = at
	}
	if strings.Contains(body, "sub_189") || !strings.Contains(body, `href="/subscriptions"`) || !strings.Contains(body, "All 200 plans") {
		t.Error("the overview shows more than twelve, or does not lead to the rest")
	}
	seen := map[string]bool{}
	for n := 1; n <= 8; n++ {
		body := b.get(fmt.Sprintf("/subscriptions?page=%d", n)).Body.String()
		found := 0
		for i := range 200 {
			if id := fmt.Sprintf("sub_%03d", i); strings.Contains(body, `subscription=`+id+`"`) || strings.Contains(body, `value="`+id+`"`) {
				if seen[id] && i != 3 { // the banner and the footer may name one again
					t.Errorf("%s is on two pages", id)
				}
				seen[id] = true
				found++
			}
		}
		if found < 25 || strings.Contains(body, fmt.Sprintf("page=%d\"", n+1)) != (n < 8) || strings.Contains(body, "page=0") {
			t.Errorf("page %d has %d plans", n, found)
		}
	}
	if len(seen) != 200 {
		t.Errorf("%d of 200 plans are listed", len(seen))
	}
	for _, path := range []string{"/subscriptions?page=9", "/subscriptions?page=0", "/subscriptions?page=01", "/subscriptions?page=x", "/subscriptions?page=99999999999999999999"} {
		if w := b.get(path); w.Code != 404 {
			t.Errorf("%s: %d, want 404", path, w.Code)
		}
	}
	acct.Subscriptions = acct.Subscriptions[:12]
	e.advance(2 * time.Minute)
	if body := b.get("/").Body.String(); strings.Contains(body, `href="/subscriptions"`) {
		t.Error("twelve plans do not need a page of their own")
	} else if strings.Index(body, "subscription=sub_011") > strings.Index(body, "subscription=sub_000") {
		t.Error("the plan that renews later stands first")
	}
	acct.Upcoming = acct.Upcoming[:1]
	acct.Upcoming[0].Subscription, acct.Upcoming[0].Due = "sub_011", acct.Subscriptions[11].PeriodEnd()
	e.advance(2 * time.Minute)
	says(t, b.get("/payment").Body.String(), "Pays for plan “Basic”, next on 27 February 2027 Pays for plan “Basic”, next on 28 February 2027")
	acct.Subscriptions = nil
	e.advance(2 * time.Minute)
	if w := b.get("/subscriptions"); w.Code != 200 {
		t.Errorf("without a plan: %d", w.Code)
	}
}
