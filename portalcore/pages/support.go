package pages

import (
	"errors"
	"net/http"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// support is the ribbon over the pages of the vendor's staff.
func (v *visit) support() *templates.Support {
	if !v.signedIn || !v.sess.Support() {
		return nil
	}
	return &templates.Support{Staff: v.sess.Staff(), Customer: v.knownName(), Ends: v.sess.Expires}
}

// traced lets the vendor's staff look once it is written down what they look at,
// and lets them send nothing but what ends their own session. Where it cannot be
// written down nothing is shown.
func (v *visit) traced() bool {
	if !v.sess.Support() {
		return true
	}
	what, sends := v.r.URL.EscapedPath(), v.r.Method == http.MethodPost
	if sends {
		if what == pathRefresh || what == pathEndOne && v.form[fieldSession] == v.sess.ID() {
			return true
		}
		what = http.MethodPost + " " + what
		v.Log.Warn("support sent a form", zap.String("request_id", v.id), zap.String("form", what), zap.String("actor", v.sess.Actor.ID))
	}
	switch err := v.Sessions.View(v.r.Context(), &v.sess, what, v.id); {
	case errors.Is(err, session.ErrTooMuch):
		v.message(http.StatusTooManyRequests, templates.Message{Kind: "too_many"})
		return false
	case err != nil:
		v.unavailable("writing down what support looks at", err)
		return false
	case sends:
		v.denied(policy.Decision{Verdict: policy.Deny, Why: "role"}, "", "")
		return false
	}
	return true
}
