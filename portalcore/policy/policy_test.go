package policy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
)

func price(id string, amount string, iv billing.Interval, n int) billing.Price {
	return billing.Price{ID: id, Currency: "usd", UnitAmount: decimal.RequireFromString(amount), Interval: iv, IntervalCount: n, Active: true}
}

var (
	basicM  = price("p_basic_m", "1000", billing.Month, 1)
	basicY  = price("p_basic_y", "10000", billing.Year, 1)
	teamM   = price("p_team_m", "2000", billing.Month, 1)
	teamY   = price("p_team_y", "20000", billing.Year, 1)
	sideM   = price("p_side_m", "2000", billing.Month, 1)
	sideQ   = price("p_side_q", "6000.5", billing.Month, 3)
	sideEUR = billing.Price{ID: "p_side_eur", Currency: "eur", UnitAmount: decimal.NewFromInt(900), Interval: billing.Month, IntervalCount: 1}
	legacy  = price("p_legacy", "1500", billing.Month, 1)
)

func catalogue(t *testing.T) *billing.Catalogue {
	t.Helper()
	c, err := billing.NewCatalogue([]billing.Plan{
		{Key: "basic", Name: "Basic", Rank: 1, Prices: []billing.Price{basicM, basicY}},
		{Key: "team", Name: "Team", Rank: 2, Prices: []billing.Price{teamM, teamY}},
		{Key: "side", Name: "Side", Rank: 2, Prices: []billing.Price{sideM, sideQ, sideEUR}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

func TestDirections(t *testing.T) {
	cat := catalogue(t)
	for _, tt := range []struct {
		name     string
		from     billing.Price
		quantity int64
		to       string
		want     string
		overall  policy.Direction
	}{
		{"higher rank", basicM, 3, "p_team_m/3", "upgrade", policy.Upgrade},
		{"lower rank", teamM, 3, "p_basic_m/3", "downgrade", policy.Downgrade},
		{"lower rank for more seats", teamM, 3, "p_basic_m/9", "downgrade upgrade", policy.Mixed},
		{"higher rank for fewer seats", basicM, 3, "p_team_m/1", "upgrade downgrade", policy.Mixed},
		{"equal rank, equal price", teamM, 1, "p_side_m/1", "crossgrade", policy.Crossgrade},
		{"equal rank, dearer by half a cent in three months", teamM, 1, "p_side_q/1", "upgrade interval_longer", policy.Mixed},
		{"equal rank, other currency", teamM, 1, "p_side_eur/1", "crossgrade", policy.Crossgrade},
		{"same plan, longer", basicM, 1, "p_basic_y/1", "interval_longer", policy.IntervalLonger},
		{"same plan, shorter", basicY, 1, "p_basic_m/1", "interval_shorter", policy.IntervalShorter},
		{"same plan, shorter, fewer", basicY, 2, "p_basic_m/1", "interval_shorter downgrade", policy.Mixed},
		{"more seats", basicM, 1, "p_basic_m/2", "upgrade", policy.Upgrade},
		{"fewer seats", basicM, 2, "p_basic_m/1", "downgrade", policy.Downgrade},
		{"nothing", basicM, 2, "p_basic_m/2", "", ""},
		{"out of the catalogue, to a dearer plan", legacy, 1, "p_team_m/1", "upgrade", policy.Upgrade},
		{"out of the catalogue, to a cheaper plan", legacy, 1, "p_basic_m/1", "downgrade", policy.Downgrade},
		{"more seats of a price outside the catalogue", legacy, 1, "p_legacy/2", "upgrade", policy.Upgrade},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := &billing.Subscription{Items: []billing.Item{{ID: "si_1", Price: tt.from, Quantity: tt.quantity}}}
			id, q, _ := strings.Cut(tt.to, "/")
			parts, ok := policy.PartsOf(cat, sub, []billing.ItemChange{{Item: "si_1", Price: id, Quantity: int64(q[0] - '0')}})
			if !ok {
				t.Fatal("refused")
			}
			var got []string
			for _, p := range parts {
				got = append(got, string(p.Direction))
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("parts: got %q, want %q", s, tt.want)
			}
			if o := policy.Overall(parts); o != tt.overall {
				t.Errorf("overall: got %q, want %q", o, tt.overall)
			}
		})
	}
	sub := &billing.Subscription{Items: []billing.Item{{ID: "si_1", Price: basicM, Quantity: 1}}}
	for _, ch := range []billing.ItemChange{{Item: "si_2", Price: "p_team_m", Quantity: 1}, {Item: "si_1", Price: "p_legacy", Quantity: 1}, {Item: "si_1", Price: "", Quantity: 1}} {
		if _, ok := policy.PartsOf(cat, sub, []billing.ItemChange{ch}); ok {
			t.Errorf("%+v: accepted", ch)
		}
	}
}

func TestMixedGoesByItsStrictestPart(t *testing.T) {
	p, err := policy.New([]policy.Rule{
		{Verdict: policy.Allow, Actions: []string{policy.ChangePlan}, Directions: []policy.Direction{policy.Upgrade, policy.Crossgrade}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		parts []policy.Part
		want  bool
	}{
		{[]policy.Part{{Direction: policy.Upgrade}}, true},
		{[]policy.Part{{Direction: policy.Upgrade}, {Direction: policy.Crossgrade}}, true},
		{[]policy.Part{{Direction: policy.Upgrade}, {Direction: policy.Downgrade}}, false},
		{[]policy.Part{{Direction: policy.Upgrade}, {Direction: policy.IntervalLonger}}, false},
		{nil, false},
	} {
		d := p.Decide(policy.Request{Action: policy.ChangePlan, Role: policy.Owner, Parts: tt.parts})
		if d.Allowed() != tt.want {
			t.Errorf("%v: got %v, want %v", tt.parts, d.Allowed(), tt.want)
		}
	}
}

func TestDecide(t *testing.T) {
	rules := []policy.Rule{
		{Verdict: policy.Allow, Actions: []string{policy.ChangePlan}, Directions: []policy.Direction{policy.Upgrade}},
		{Verdict: policy.Allow, Actions: []string{policy.ChangePlan}, Directions: []policy.Direction{policy.Downgrade}, Roles: []string{policy.Owner}, To: []string{"basic"}},
		{Verdict: policy.Deny, Actions: []string{policy.ChangePlan}, From: []string{"side"}, Text: "Write to us."},
		{Verdict: policy.Allow, Actions: []string{policy.Cancel}},
		{Verdict: policy.Deny, Actions: []string{policy.Cancel}, From: []string{"team"}},
		{Verdict: policy.Deny, Actions: []string{policy.Cancel}, From: []string{"team"}, Text: "Call us."},
		{Verdict: policy.Allow, Actions: []string{policy.UpdateDetails}, Roles: []string{policy.Owner, policy.Billing, policy.Viewer}},
		{Verdict: policy.Allow, Actions: []string{policy.UpdatePaymentMethod}},
	}
	p, err := policy.New(rules, []string{"basic", "team", "side"})
	if err != nil {
		t.Fatal(err)
	}
	up := []policy.Part{{Direction: policy.Upgrade, From: "basic", To: "team"}}
	down := []policy.Part{{Direction: policy.Downgrade, From: "team", To: "basic"}}
	for _, tt := range []struct {
		name string
		req  policy.Request
		want policy.Decision
	}{
		{"upgrade", policy.Request{Action: policy.ChangePlan, Role: policy.Billing, Parts: up}, policy.Decision{Verdict: policy.Allow}},
		{"upgrade by a viewer", policy.Request{Action: policy.ChangePlan, Role: policy.Viewer, Parts: up}, policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{"downgrade by the owner", policy.Request{Action: policy.ChangePlan, Role: policy.Owner, Parts: down}, policy.Decision{Verdict: policy.Allow}},
		{"downgrade by billing", policy.Request{Action: policy.ChangePlan, Role: policy.Billing, Parts: down}, policy.Decision{Verdict: policy.Deny, Why: "policy"}},
		{"downgrade to another plan", policy.Request{Action: policy.ChangePlan, Role: policy.Owner, Parts: []policy.Part{{Direction: policy.Downgrade, To: "side"}}}, policy.Decision{Verdict: policy.Deny, Why: "policy"}},
		{"denied from", policy.Request{Action: policy.ChangePlan, Role: policy.Owner, Parts: []policy.Part{{Direction: policy.Upgrade, From: "side"}}}, policy.Decision{Verdict: policy.Deny, Why: "policy", Text: "Write to us."}},
		{"any direction", policy.Request{Action: policy.ChangePlan, Role: policy.Billing, AnyDirection: true}, policy.Decision{Verdict: policy.Allow}},
		{"any direction, viewer", policy.Request{Action: policy.ChangePlan, Role: policy.Viewer, AnyDirection: true}, policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{"cancel", policy.Request{Action: policy.Cancel, Role: policy.Owner, From: "basic"}, policy.Decision{Verdict: policy.Allow}},
		{"cancel denied, with the text", policy.Request{Action: policy.Cancel, Role: policy.Owner, From: "team"}, policy.Decision{Verdict: policy.Deny, Why: "policy", Text: "Call us."}},
		{"resume follows cancel", policy.Request{Action: policy.Resume, Role: policy.Owner, From: "team"}, policy.Decision{Verdict: policy.Allow}},
		{"details by a viewer named in the rule", policy.Request{Action: policy.UpdateDetails, Role: policy.Viewer}, policy.Decision{Verdict: policy.Allow}},
		{"narrowed away", policy.Request{Action: policy.Cancel, Role: policy.Owner, Permissions: []string{policy.UpdateDetails}}, policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{"narrowed to nothing", policy.Request{Action: policy.Cancel, Role: policy.Owner, Permissions: []string{}}, policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{"narrowed to it", policy.Request{Action: policy.Cancel, Role: policy.Owner, Permissions: []string{policy.Cancel}}, policy.Decision{Verdict: policy.Allow}},
		{"narrowing never widens", policy.Request{Action: policy.ChangePlan, Role: policy.Billing, Permissions: []string{policy.ChangePlan}, Parts: down}, policy.Decision{Verdict: policy.Deny, Why: "policy"}},
		{"unknown role", policy.Request{Action: policy.Cancel, Role: "root"}, policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{"no role", policy.Request{Action: policy.Cancel}, policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{"unknown action", policy.Request{Action: "refund", Role: policy.Owner}, policy.Decision{Verdict: policy.Deny, Why: "policy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := p.Decide(tt.req); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestAnyDirection holds that "some change" is allowed only where one survives
// the rules that deny.
func TestAnyDirection(t *testing.T) {
	allow := func(r policy.Rule) policy.Rule {
		r.Verdict, r.Actions = policy.Allow, []string{policy.ChangePlan}
		return r
	}
	deny := func(r policy.Rule) policy.Rule {
		r.Verdict, r.Actions = policy.Deny, []string{policy.ChangePlan}
		return r
	}
	for name, tt := range map[string]struct {
		rules []policy.Rule
		role  string
		from  string
		want  bool
	}{
		"nothing":                    {nil, policy.Owner, "basic", false},
		"all":                        {[]policy.Rule{allow(policy.Rule{})}, policy.Owner, "basic", true},
		"to one plan":                {[]policy.Rule{allow(policy.Rule{To: []string{"team"}})}, policy.Owner, "basic", true},
		"from another plan":          {[]policy.Rule{allow(policy.Rule{From: []string{"team"}})}, policy.Owner, "basic", false},
		"from a plan not known here": {[]policy.Rule{allow(policy.Rule{From: []string{"team"}})}, policy.Owner, "", true},
		"a role is denied everything": {
			[]policy.Rule{allow(policy.Rule{}), deny(policy.Rule{Roles: []string{policy.Billing}})}, policy.Billing, "basic", false,
		},
		"another role is":      {[]policy.Rule{allow(policy.Rule{}), deny(policy.Rule{Roles: []string{policy.Billing}})}, policy.Owner, "basic", true},
		"one direction is":     {[]policy.Rule{allow(policy.Rule{}), deny(policy.Rule{Directions: []policy.Direction{policy.Downgrade}})}, policy.Owner, "basic", true},
		"the only one is":      {[]policy.Rule{allow(policy.Rule{Directions: []policy.Direction{policy.Upgrade}}), deny(policy.Rule{Directions: []policy.Direction{policy.Upgrade}})}, policy.Owner, "basic", false},
		"this plan is":         {[]policy.Rule{allow(policy.Rule{}), deny(policy.Rule{From: []string{"basic"}})}, policy.Owner, "basic", false},
		"a viewer by default":  {[]policy.Rule{allow(policy.Rule{})}, policy.Viewer, "basic", false},
		"a viewer named so is": {[]policy.Rule{allow(policy.Rule{Roles: []string{policy.Viewer}})}, policy.Viewer, "basic", true},
	} {
		p, err := policy.New(tt.rules, nil)
		if err != nil {
			t.Fatal(err)
		}
		d := p.Decide(policy.Request{Action: policy.ChangePlan, Role: tt.role, AnyDirection: true, From: tt.from})
		if d.Allowed() != tt.want {
			t.Errorf("%s: %+v, want %v", name, d, tt.want)
		}
	}
}

// Everything is denied where no policy speaks: for every action, role and
// direction.
func TestDefaultDeny(t *testing.T) {
	empty, err := policy.New(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*policy.Policy{nil, empty} {
		for _, a := range policy.Actions {
			for _, role := range policy.Roles {
				for _, d := range slices.Concat(policy.Directions, []policy.Direction{policy.Mixed, ""}) {
					r := policy.Request{Action: a, Role: role, Parts: []policy.Part{{Direction: d}}}
					if p.Decide(r).Allowed() {
						t.Errorf("%+v: allowed", r)
					}
				}
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		rule policy.Rule
		want string
	}{
		{policy.Rule{Verdict: "review", Actions: []string{"cancel"}}, "want allow or deny"},
		{policy.Rule{Verdict: policy.Allow}, "names no action"},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"refund"}}, `unknown action "refund": want one of change_plan`},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"cancel"}, Directions: []policy.Direction{"upgrade"}}, "only change_plan has directions"},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"change_plan"}, Directions: []policy.Direction{"mixed"}}, `unknown direction "mixed"`},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"cancel"}, Roles: []string{"root"}}, `unknown role "root"`},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"cancel"}, From: []string{"gold"}}, `unknown plan "gold": the catalogue has basic`},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"cancel"}, To: []string{"basic"}}, "only change_plan goes to a plan"},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"cancel"}, Text: "hi"}, "belongs to a deny rule"},
		{policy.Rule{Verdict: policy.Deny, Actions: []string{"view_all"}}, "view_invoices, view_usage, view_balance"},
		{policy.Rule{Verdict: policy.Deny, Actions: []string{"view_usage"}, From: []string{"basic"}}, "view_usage is not about one plan"},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"view_usage"}, Roles: []string{"owner"}}, "deny it to the others instead"},
		{policy.Rule{Verdict: policy.Allow, Actions: []string{"cancel"}, Roles: []string{"support"}}, `unknown role "support"`},
	} {
		_, err := policy.New([]policy.Rule{tt.rule}, []string{"basic"})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.rule, err, tt.want)
		}
	}
}
