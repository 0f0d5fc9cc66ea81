package e2e

import (
	"net/http"
	"slices"
	"testing"
	"time"
)

// TestColdOverviewNeedsTwoCalls puts 200 ms on every request to Stripe. The
// longest chain of dependent calls of an account is two (the subscriptions,
// then the preview of the next invoice of each), so a cold overview may take
// 1.2 times 400 ms, and a warm one asks nobody.
func TestColdOverviewNeedsTwoCalls(t *testing.T) {
	const each, chain = 200 * time.Millisecond, 2
	w := startStripeWorld(t)
	var cold, warm []time.Duration
	for range 5 {
		v := signIn(t, w.portal, w.key, "cus_northwind") // a new session reads the account anew
		control(t, w.stripe.Control, "/fault", map[string]any{"on": "any", "times": 1000, "kind": "latency", "latency": each.String()}, nil)
		for _, times := range []*[]time.Duration{&cold, &warm} {
			begin := time.Now()
			if p := v.get(t, "/"); p.status != http.StatusOK {
				t.Fatalf("overview: %d\n%s", p.status, p.body)
			}
			*times = append(*times, time.Since(begin))
		}
		control(t, w.stripe.Control, "/fault", map[string]any{"times": 0}, nil)
	}
	slices.Sort(cold)
	slices.Sort(warm)
	t.Logf("chain of %d calls of %s: cold overview median %s (bound %s), warm median %s", chain, each, cold[2], each*chain*12/10, warm[2])
	if cold[2] >= each*chain*12/10 {
		t.Errorf("the cold overview takes %s: more than 1.2 times its chain of calls", cold[2])
	}
	if cold[2] < each {
		t.Errorf("the cold overview takes %s: it cannot have asked Stripe, so this test shows nothing", cold[2])
	}
	if warm[2] > each/2 {
		t.Errorf("the warm overview takes %s: it asks Stripe", warm[2])
	}
}
