package policy_test

import (
	"testing"

	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
)

// Reading is allowed unless a rule denies it to the role; a link's permissions
// do not narrow it.
func TestViews(t *testing.T) {
	p, err := policy.New([]policy.Rule{
		{Verdict: policy.Allow, Actions: []string{policy.ViewInvoices}},
		{Verdict: policy.Deny, Actions: []string{policy.ViewBalance}, Roles: []string{policy.Viewer}},
		{Verdict: policy.Deny, Actions: []string{policy.ViewBalance}, Roles: []string{policy.Viewer}, Text: "Ask your owner."},
		{Verdict: policy.Deny, Actions: []string{policy.ViewUsage}},
	}, []string{"basic"})
	if err != nil {
		t.Fatal(err)
	}
	empty, err := policy.New(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	allowed := policy.Decision{Verdict: policy.Allow}
	for _, tt := range []struct {
		p      *policy.Policy
		action string
		role   string
		want   policy.Decision
	}{
		{p, policy.ViewInvoices, policy.Viewer, allowed},
		{p, policy.ViewBalance, policy.Owner, allowed},
		{p, policy.ViewBalance, policy.Support, allowed},
		{p, policy.ViewBalance, policy.Viewer, policy.Decision{Verdict: policy.Deny, Why: "policy", Text: "Ask your owner."}},
		{p, policy.ViewUsage, policy.Owner, policy.Decision{Verdict: policy.Deny, Why: "policy"}},
		{p, policy.ViewUsage, policy.Support, policy.Decision{Verdict: policy.Deny, Why: "policy"}},
		{p, policy.ViewInvoices, "root", policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{p, policy.ViewInvoices, "", policy.Decision{Verdict: policy.Deny, Why: "role"}},
		{empty, policy.ViewUsage, policy.Viewer, allowed},
		{nil, policy.ViewUsage, policy.Owner, policy.Decision{Verdict: policy.Deny, Why: "policy"}},
	} {
		for _, permissions := range [][]string{nil, {}, {policy.Cancel}} {
			if got := tt.p.Decide(policy.Request{Action: tt.action, Role: tt.role, Permissions: permissions}); got != tt.want {
				t.Errorf("%s for %q with %v: got %+v, want %+v", tt.action, tt.role, permissions, got, tt.want)
			}
		}
	}
}

// No rule lets the vendor's staff do anything, and no permission does.
func TestSupportDoesNothing(t *testing.T) {
	p, err := policy.New([]policy.Rule{{Verdict: policy.Allow, Actions: policy.Actions}, {Verdict: policy.Allow, Actions: policy.Actions, Roles: policy.Roles}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range policy.Actions {
		for _, permissions := range [][]string{nil, policy.Actions, {a}} {
			for _, parts := range [][]policy.Part{nil, {{Direction: policy.Upgrade}}} {
				for _, anyDirection := range []bool{false, true} {
					r := policy.Request{Action: a, Role: policy.Support, Permissions: permissions, Parts: parts, AnyDirection: anyDirection}
					if d := p.Decide(r); d.Allowed() || d.Why != "role" {
						t.Errorf("%+v: %+v", r, d)
					}
				}
			}
		}
	}
}
