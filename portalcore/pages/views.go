package pages

import (
	"net/http"

	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// views is what the policy says about reading one of policy.Views.
func (v *visit) views(view string) policy.Decision {
	return v.Corridor.Policy(v.sess.Configuration).Decide(policy.Request{
		Action: view, Role: v.sess.Role, Permissions: v.sess.Permissions,
	})
}

// mayView reports whether this person may read one of policy.Views. Where not,
// it answers with a page that says who can.
func (v *visit) mayView(view string) bool {
	d := v.views(view)
	if d.Allowed() {
		return true
	}
	m := templates.Message{Kind: "view_denied", Text: d.Text}
	owner := policy.Request{Action: view, Role: policy.Owner}
	if v.Corridor.Policy(v.sess.Configuration).Decide(owner).Allowed() {
		m.Kind = "view_denied_role"
	}
	v.message(http.StatusForbidden, m)
	return false
}
