package billing_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

func price(id string, edit ...func(*billing.Price)) billing.Price {
	p := billing.Price{ID: id, LookupKey: id + "_key", ProductName: "Product", Currency: "usd", Interval: billing.Month, IntervalCount: 1, Active: true}
	for _, f := range edit {
		f(&p)
	}
	return p
}

func TestNewCatalogue(t *testing.T) {
	eur := price("eur", func(p *billing.Price) { p.Currency = "eur" })
	year := price("year", func(p *billing.Price) { p.Interval = billing.Year })
	c, err := billing.NewCatalogue([]billing.Plan{
		{Key: "team", Rank: 2, Prices: []billing.Price{price("m"), eur, year}}, {Key: "basic", Name: "Start", Rank: 1, Prices: []billing.Price{price("b")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Plans[0].Key != "basic" || c.Plans[0].Name != "Start" || c.Plans[1].Name != "Team" {
		t.Errorf("plans %+v: want them by rank, and the key as a name where there is none", c.Plans)
	}
	if p, ok := c.PlanOf("eur"); !ok || p.Key != "team" {
		t.Errorf("plan of a price: %+v, %v", p, ok)
	}
	if pr, ok := c.Price("year"); !ok || pr.Interval != billing.Year {
		t.Errorf("price: %+v, %v", pr, ok)
	}
	if _, ok := c.Price("other"); ok {
		t.Error("a price outside the catalogue was found")
	}
	var none billing.Catalogue
	if _, ok := none.PlanOf("m"); ok {
		t.Error("the zero catalogue offers something")
	}
	for want, plans := range map[string][]billing.Plan{
		"has no key":                       {{}},
		"is there twice":                   {{Key: "a"}, {Key: "a"}},
		"two prices for usd every 1 month": {{Key: "a", Prices: []billing.Price{price("x"), price("y")}}},
		`in plan "a" and in plan "b"`:      {{Key: "a", Prices: []billing.Price{price("x")}}, {Key: "b", Prices: []billing.Price{price("x")}}},
		"below its minimum":                {{Key: "a", MinQuantity: 5, MaxQuantity: 4}},
	} {
		if _, err := billing.NewCatalogue(plans); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestCatalogueFromMetadata(t *testing.T) {
	with := func(kv ...string) func(*billing.Price) {
		return func(p *billing.Price) {
			p.Metadata = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				p.Metadata[kv[i]] = kv[i+1]
			}
		}
	}
	full := with("portal_plan", "team", "portal_rank", "2", "portal_text", "For teams.", "portal_feature_1", "One", "portal_feature_2", "Two",
		"portal_feature_4", "not reached", "portal_limit_seats", "9", "portal_limit_projects", "50", "portal_min_quantity", "2", "portal_max_quantity", "20")
	year := func(p *billing.Price) { p.Interval = billing.Year }
	c, err := billing.CatalogueFromMetadata([]billing.Price{
		price("not offered"), price("archived", full, func(p *billing.Price) { p.Active = false }), price("m", full), price("y", full, year),
	})
	if err != nil || len(c.Plans) != 1 {
		t.Fatalf("%+v, %v", c.Plans, err)
	}
	got := fmt.Sprint(c.Plans[0].Key, c.Plans[0].Name, c.Plans[0].Rank, c.Plans[0].Text, c.Plans[0].Features, c.Plans[0].Limits,
		c.Plans[0].MinQuantity, c.Plans[0].MaxQuantity, len(c.Plans[0].Prices))
	if want := "teamProduct2For teams.[One Two] [{projects 50} {seats 9}]2 20 2"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, bad := range []string{"portal_rank", "portal_limit_seats", "portal_min_quantity", "portal_max_quantity"} {
		_, err := billing.CatalogueFromMetadata([]billing.Price{price("m", with("portal_plan", "team", bad, "many"))})
		if err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s=many: %v", bad, err)
		}
	}
}

// TestSameTerms holds that nobody is taken to have agreed to anything else:
// each change of a preview that a customer would care for makes other terms.
func TestSameTerms(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	usd := func(n int64) billing.Money { return billing.Money{Amount: n, Currency: "usd"} }
	make := func(edit func(*billing.Preview)) billing.Preview {
		p := billing.Preview{
			Action: billing.Action{Kind: billing.ChangePlan, Subscription: "sub", Items: []billing.ItemChange{{Item: "si", Price: "p", Quantity: 2}}},
			At:     at, ObjectVersion: "v", DueNow: usd(100), Total: usd(120), Tax: usd(20), FromBalance: usd(20), ToBalance: usd(0),
			Next: &billing.Upcoming{Due: at.Add(time.Hour), Total: usd(300)},
		}
		edit(&p)
		return p
	}
	same := make(func(*billing.Preview) {})
	for name, edit := range map[string]func(*billing.Preview){
		"nothing": func(*billing.Preview) {}, "the moment": func(p *billing.Preview) { p.At = at.Add(time.Second) },
		"the way back": func(p *billing.Preview) { p.Action.ReturnURL = "x" },
	} {
		if !same.SameTerms(make(edit)) {
			t.Errorf("%s changed: other terms", name)
		}
	}
	for name, edit := range map[string]func(*billing.Preview){
		"kind":         func(p *billing.Preview) { p.Action.Kind = billing.Cancel },
		"subscription": func(p *billing.Preview) { p.Action.Subscription = "other" },
		"price":        func(p *billing.Preview) { p.Action.Items[0].Price = "q" },
		"quantity":     func(p *billing.Preview) { p.Action.Items[0].Quantity = 3 },
		"version":      func(p *billing.Preview) { p.ObjectVersion = "w" },
		"due":          func(p *billing.Preview) { p.DueNow = usd(101) },
		"currency":     func(p *billing.Preview) { p.DueNow.Currency = "eur" },
		"total":        func(p *billing.Preview) { p.Total = usd(121) },
		"tax":          func(p *billing.Preview) { p.Tax = usd(21) },
		"credit":       func(p *billing.Preview) { p.ToBalance = usd(1) },
		"balance":      func(p *billing.Preview) { p.FromBalance = usd(21) },
		"trial":        func(p *billing.Preview) { p.EndsTrial = true },
		"next sum":     func(p *billing.Preview) { p.Next.Total = usd(301) },
		"next date":    func(p *billing.Preview) { p.Next.Due = at.Add(2 * time.Hour) },
		"no next":      func(p *billing.Preview) { p.Next = nil },
	} {
		if same.SameTerms(make(edit)) {
			t.Errorf("%s changed: the same terms", name)
		}
	}
}

func TestSubscriptionEnds(t *testing.T) {
	at := func(n int64) time.Time { return time.Unix(n, 0) }
	items := []billing.Item{{PeriodEnd: at(30)}, {PeriodEnd: at(20)}}
	for name, tt := range map[string]struct {
		s    billing.Subscription
		want time.Time
	}{
		"goes on":         {billing.Subscription{Items: items}, time.Time{}},
		"with its period": {billing.Subscription{Items: items, CancelAtPeriodEnd: true}, at(20)},
		"at a time":       {billing.Subscription{Items: items, CancelAtPeriodEnd: true, CancelAt: at(25)}, at(25)},
		"ended":           {billing.Subscription{Items: items, CancelAt: at(25), EndedAt: at(10)}, at(10)},
	} {
		if got := tt.s.Ends(); !got.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestFaultOf(t *testing.T) {
	refused := &billing.Error{Fault: billing.Refused, Code: "card_declined", Param: "pm_1", RequestID: "req_1", Err: errors.New("no")}
	if f, c := billing.FaultOf(fmt.Errorf("wrapped: %w", refused)), billing.CodeOf(fmt.Errorf("wrapped: %w", refused)); f != billing.Refused || c != "card_declined" {
		t.Errorf("%s, %s", f, c)
	}
	if f := billing.FaultOf(errors.New("anything")); f != billing.Unknown {
		t.Errorf("an error of another make is %q, want unknown: it may have changed something", f)
	}
	if billing.FaultOf(nil) != "" || billing.CodeOf(nil) != "" {
		t.Error("no error has a fault")
	}
	if s := refused.Error(); s != "provider: refused: card_declined (pm_1) [request req_1]: no" {
		t.Error(s)
	}
}
