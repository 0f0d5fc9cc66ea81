// Package policy decides what a customer may do. Everything that changes
// something is denied unless a rule allows it; a rule that denies beats every
// rule that allows. Reading is allowed, except for the parts that a rule denies.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// Verdict is what a policy says about an action.
type Verdict string

const (
	Allow Verdict = "allow"
	Deny  Verdict = "deny"
)

// Roles a person can have in a session.
const (
	Owner   = "owner"
	Billing = "billing"
	Viewer  = "viewer"
)

// Support is the role of the vendor's own staff in a customer's session. They
// look, and nothing that they do is ever allowed: no rule speaks of it, and it
// is not among Roles.
const Support = "support"

// Roles lists the roles of a customer's people: those that rules speak of.
var Roles = []string{Owner, Billing, Viewer}

// Names of actions in rules and in a link's permissions.
const (
	ChangePlan          = "change_plan"
	Cancel              = "cancel"
	Resume              = "resume"
	UpdatePaymentMethod = "update_payment_method" // add one, make one the default
	RemovePaymentMethod = "remove_payment_method"
	PayInvoices         = "pay_invoices"
	UpdateDetails       = "update_details"
	UpdateTaxIDs        = "update_tax_ids"
)

// Actions lists all names of actions.
var Actions = []string{ChangePlan, Cancel, Resume, UpdatePaymentMethod, RemovePaymentMethod, PayInvoices, UpdateDetails, UpdateTaxIDs}

// Names of what a rule can deny reading.
const (
	ViewInvoices = "view_invoices"
	ViewUsage    = "view_usage"
	ViewBalance  = "view_balance"
)

// Views lists them. Each is allowed to everybody who has a session, unless a rule
// denies it; a link's permissions do not narrow reading.
var Views = []string{ViewInvoices, ViewUsage, ViewBalance}

// Names lists all that a rule can name.
func Names() []string { return slices.Concat(Actions, Views) }

// ActionOf is the name under which rules speak of an action.
func ActionOf(k billing.ActionKind) string {
	switch k {
	case billing.ChangePlan, billing.DropPending:
		return ChangePlan
	case billing.Cancel:
		return Cancel
	case billing.Resume:
		return Resume
	case billing.AddPaymentMethod, billing.SetDefaultPaymentMethod:
		return UpdatePaymentMethod
	case billing.RemovePaymentMethod:
		return RemovePaymentMethod
	case billing.PayInvoices:
		return PayInvoices
	case billing.UpdateDetails:
		return UpdateDetails
	case billing.UpdateTaxID:
		return UpdateTaxIDs
	}
	return ""
}

// Rule allows or denies an action. Empty members match everything, with one
// exception: an allow rule without Roles does not match a viewer, who may look
// and nothing more unless a rule names the role.
type Rule struct {
	Verdict    Verdict
	Actions    []string
	Directions []Direction // change_plan only
	Roles      []string
	From, To   []string // plan keys; From also matches cancel and resume
	Text       string   // for the customer, where the rule denies
}

// Policy is a checked list of rules.
type Policy struct {
	rules []Rule
}

// New checks rules. plans are the keys of the catalogue's plans; nil skips
// that check (the catalogue comes from the provider and is not known yet).
func New(rules []Rule, plans []string) (*Policy, error) {
	for i, r := range rules {
		at := func(format string, a ...any) error {
			return fmt.Errorf("policy rule %d: %s", i+1, fmt.Sprintf(format, a...))
		}
		if r.Verdict != Allow && r.Verdict != Deny {
			return nil, at("verdict %q: want allow or deny", r.Verdict)
		}
		if len(r.Actions) == 0 {
			return nil, at("names no action: want one or more of %s", strings.Join(Names(), ", "))
		}
		for _, a := range r.Actions {
			switch {
			case !slices.Contains(Names(), a):
				return nil, at("unknown action %q: want one of %s", a, strings.Join(Names(), ", "))
			case !slices.Contains(Views, a):
			case len(r.From) > 0:
				return nil, at("%s is not about one plan", a)
			case r.Verdict == Allow && len(r.Roles) > 0:
				return nil, at("%s is allowed to every role anyway: deny it to the others instead", a)
			}
		}
		if len(r.Directions) > 0 && !slices.Equal(r.Actions, []string{ChangePlan}) {
			return nil, at("only change_plan has directions")
		}
		for _, d := range r.Directions {
			if !slices.Contains(Directions, d) {
				return nil, at("unknown direction %q: want one of %s", d, joined(Directions))
			}
		}
		for _, role := range r.Roles {
			if !slices.Contains(Roles, role) {
				return nil, at("unknown role %q: want one of %s", role, strings.Join(Roles, ", "))
			}
		}
		if len(r.To) > 0 && !slices.Equal(r.Actions, []string{ChangePlan}) {
			return nil, at("only change_plan goes to a plan")
		}
		if r.Text != "" && r.Verdict != Deny {
			return nil, at("a text for the customer belongs to a deny rule")
		}
	}
	p := &Policy{rules: slices.Clone(rules)}
	if plans != nil {
		if err := p.CheckPlans(plans); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// CheckPlans says which plan a rule names that is not among plans: for a
// catalogue that is known only once the provider was asked.
func (p *Policy) CheckPlans(plans []string) error {
	for i, r := range p.rules {
		for _, name := range slices.Concat(r.From, r.To) {
			if !slices.Contains(plans, name) {
				return fmt.Errorf("policy rule %d: unknown plan %q: the catalogue has %s", i+1, name, strings.Join(plans, ", "))
			}
		}
	}
	return nil
}

func joined(ds []Direction) string {
	s := make([]string, len(ds))
	for i, d := range ds {
		s[i] = string(d)
	}
	return strings.Join(s, ", ")
}

// Request is what is to be decided.
type Request struct {
	Action string
	Role   string
	// Permissions narrow what the session may do: nil means no narrowing, an
	// empty list permits nothing.
	Permissions []string
	// Parts are the directions of a ChangePlan, one per part. Every part must
	// be allowed. AnyDirection asks whether there is a direction that would be.
	Parts        []Part
	AnyDirection bool
	// From is the plan key of the subscription that is cancelled or resumed.
	From string
}

// Decision is the answer.
type Decision struct {
	Verdict Verdict
	// Why, where denied: "role" (the person's role may only look), "policy".
	Why string
	// Text is the vendor's sentence of the rule that denied, or "".
	Text string
}

// Allowed reports whether the verdict is Allow.
func (d Decision) Allowed() bool { return d.Verdict == Allow }

// ErrDenied is wrapped by errors that carry a Decision.
var ErrDenied = errors.New("denied by policy")

// Decide answers r. A nil policy denies, reading too.
func (p *Policy) Decide(r Request) Decision {
	if slices.Contains(Views, r.Action) {
		return p.view(r)
	}
	if !slices.Contains(Roles, r.Role) { // Support too
		return Decision{Verdict: Deny, Why: "role"}
	}
	if r.Permissions != nil && !permits(r.Permissions, r.Action) {
		return Decision{Verdict: Deny, Why: "role"}
	}
	if p == nil {
		return Decision{Verdict: Deny, Why: "policy"}
	}
	if r.Action != ChangePlan {
		return p.one(r, Part{From: r.From})
	}
	if r.AnyDirection {
		return p.any(r)
	}
	if len(r.Parts) == 0 {
		return Decision{Verdict: Deny, Why: "policy"}
	}
	for _, part := range r.Parts {
		if d := p.one(r, part); !d.Allowed() {
			return d
		}
	}
	return Decision{Verdict: Allow}
}

// view decides about reading.
func (p *Policy) view(r Request) Decision {
	switch {
	case r.Role != Support && !slices.Contains(Roles, r.Role):
		return Decision{Verdict: Deny, Why: "role"}
	case p == nil:
		return Decision{Verdict: Deny, Why: "policy"}
	}
	out := Decision{Verdict: Allow}
	for i := range p.rules {
		rule := &p.rules[i]
		if rule.Verdict == Deny && rule.matches(r, Part{}) && out.Text == "" {
			out = Decision{Verdict: Deny, Why: "policy", Text: rule.Text}
		}
	}
	return out
}

// any allows where at least one change would be allowed: in some direction,
// from r.From (or from any plan that a rule names), to some plan.
func (p *Policy) any(r Request) Decision {
	froms, tos := []string{r.From}, []string{""}
	for _, rule := range p.rules {
		if r.From == "" {
			froms = append(froms, rule.From...)
		}
		tos = append(tos, rule.To...)
	}
	for _, from := range froms {
		for _, to := range tos {
			for _, d := range Directions {
				if p.one(r, Part{Direction: d, From: from, To: to}).Allowed() {
					return Decision{Verdict: Allow}
				}
			}
		}
	}
	return p.one(r, Part{From: r.From})
}

// permits also lets somebody who may cancel take the cancellation back.
func permits(permissions []string, action string) bool {
	return slices.Contains(permissions, action) ||
		action == Resume && slices.Contains(permissions, Cancel)
}

func (p *Policy) one(r Request, part Part) Decision {
	allowed := false
	var denied *Rule
	for i := range p.rules {
		rule := &p.rules[i]
		if !rule.matches(r, part) {
			continue
		}
		if rule.Verdict == Deny {
			if denied == nil || denied.Text == "" {
				denied = rule
			}
			continue
		}
		allowed = true
	}
	switch {
	case denied != nil:
		return Decision{Verdict: Deny, Why: "policy", Text: denied.Text}
	case allowed:
		return Decision{Verdict: Allow}
	case r.Role == Viewer:
		return Decision{Verdict: Deny, Why: "role"}
	}
	return Decision{Verdict: Deny, Why: "policy"}
}

func (r *Rule) matches(q Request, part Part) bool {
	action := slices.Contains(r.Actions, q.Action)
	// Who may cancel may take it back, unless a rule denies resume by name.
	if r.Verdict == Allow && q.Action == Resume && slices.Contains(r.Actions, Cancel) {
		action = true
	}
	return action && r.matchesRole(q.Role) &&
		(len(r.Directions) == 0 || slices.Contains(r.Directions, part.Direction)) &&
		(len(r.From) == 0 || slices.Contains(r.From, part.From)) &&
		(len(r.To) == 0 || slices.Contains(r.To, part.To))
}

func (r *Rule) matchesRole(role string) bool {
	if len(r.Roles) == 0 {
		return role != Viewer || r.Verdict == Deny
	}
	return slices.Contains(r.Roles, role)
}
