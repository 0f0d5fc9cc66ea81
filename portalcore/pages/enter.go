package pages

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/templates"
)

// enter is GET /enter. It redeems the link where a navigation of the vendor's
// own site brought it; everything else sees the interstitial and leaves the
// link as it is.
func (v *visit) enter() {
	token := v.form[templates.FieldToken]
	claims, issuer, ok := v.verify(token)
	if !ok {
		return
	}
	current, support, ok := v.currentSession()
	if !ok {
		return
	}
	// Another customer's session is never replaced without a click, nor a
	// customer's by one of the vendor's staff, or the other way round.
	replaces := current != "" && (current != claims.Subject || support != (claims.Role == policy.Support))
	if !v.AlwaysAsk && !replaces && plainNavigation(v.r) {
		v.redeem(claims, issuer, current)
		return
	}
	page := &templates.Page{ReturnURL: v.backURL(), Body: &templates.Enter{
		Name: v.accountName(claims), ID: claims.Subject, Token: token, Replaces: replaces,
	}}
	v.page(http.StatusOK, v.locale(""), page)
}

// enterConfirmed is the interstitial's button.
func (v *visit) enterConfirmed() {
	claims, issuer, ok := v.verify(v.form[templates.FieldToken])
	if !ok {
		return
	}
	current, _, ok := v.currentSession()
	if !ok {
		return
	}
	v.redeem(claims, issuer, current)
}

// verify checks the token, which is pure, and says what is wrong with it.
// From here on the link's language and way back are used.
func (v *visit) verify(token string) (link.Claims, *link.Issuer, bool) {
	claims, issuer, err := v.Trust().Verify(token, v.now)
	if claims.ReturnURL != "" && !allowedReturn(claims.ReturnURL, v.returns) {
		v.Log.Warn("link asks for a return URL that is not allowed; the default is used",
			zap.String("request_id", v.id), zap.String("issuer", claims.Issuer), zap.String("return_url", claims.ReturnURL))
		claims.ReturnURL = ""
	}
	v.sess.Locale, v.sess.ReturnURL = claims.Locale, claims.ReturnURL
	if err == nil {
		return claims, issuer, true
	}
	reason, kind := "unknown", link.Invalid
	if refused, ok := errors.AsType[*link.Error](err); ok {
		reason, kind = refused.Reason, refused.Kind
	}
	v.Log.Info("link refused", zap.String("request_id", v.id), zap.String("reason", reason), zap.String("issuer", claims.Issuer))
	if kind == link.Expired {
		v.message(http.StatusGone, templates.Message{Kind: "link_expired"})
	} else {
		v.message(http.StatusUnauthorized, templates.Message{Kind: "link_invalid"})
	}
	return link.Claims{}, nil, false
}

// currentSession is the customer that this browser is signed in as, or "", and
// whether as one of the vendor's staff.
func (v *visit) currentSession() (customer string, support, ok bool) {
	s, _, err := v.Sessions.Read(v.r.Context(), v.sessionCookie())
	switch {
	case err == nil:
		return s.Customer, s.Support(), true
	case errors.Is(err, session.ErrNone):
		return "", false, true
	}
	v.unavailable("reading a session", err)
	return "", false, false
}

// accountName names the account without asking the provider: a scanner that
// opens a link costs nothing. The link's actor names a person, not the account.
func (v *visit) accountName(c link.Claims) string {
	if s, ok := v.Corridor.Accounts.Peek(c.Subject); ok {
		return cmp.Or(s.Account.Customer.Name, s.Account.Customer.Email)
	}
	return ""
}

func (v *visit) redeem(c link.Claims, issuer *link.Issuer, current string) {
	s, cookie, err := v.Sessions.Redeem(v.r.Context(), c, issuer.Own, v.sessionCookie(), v.r.UserAgent())
	log := v.Log.With(zap.String("request_id", v.id), zap.String("issuer", c.Issuer), zap.String("customer", c.Subject))
	var soon *session.TooSoonError
	switch {
	case err == nil:
		log.Info("session opened", zap.String("session", s.Hash), zap.String("role", s.Role), zap.String("actor", s.Actor.ID))
		v.setCookie(cookie)
		v.redirect(templates.PathOverview)
	case errors.Is(err, session.ErrUsed):
		log.Info("link refused", zap.String("reason", "already used"))
		m := templates.Message{Kind: "link_used"}
		if current == c.Subject {
			// Back, reload, or a redeem whose answer was lost.
			m.Href, m.Link = templates.PathOverview, linkContinue
		}
		v.message(http.StatusGone, m)
	case errors.As(err, &soon):
		log.Warn("link refused", zap.String("reason", "from before the store's present generation"), zap.Duration("wait", soon.Wait))
		seconds := int((soon.Wait + time.Second - 1) / time.Second)
		v.w.Header().Set("Retry-After", strconv.Itoa(seconds))
		v.message(http.StatusServiceUnavailable, templates.Message{Kind: "link_too_soon", Seconds: seconds})
	case errors.Is(err, session.ErrForgotten):
		log.Warn("link refused", zap.String("reason", "of another generation of the store"))
		v.message(http.StatusGone, templates.Message{Kind: "link_expired"})
	default:
		v.unavailable("redeeming a link", err)
	}
}

// maxSignOut bounds the sessions that one request ends: the browser's own, and
// one that somebody put beside it. Each costs a look into the store.
const maxSignOut = 2

// signOut ends the session on the server, then the cookie. Where the store
// fails the session lives on, and the page says so.
func (v *visit) signOut() {
	values := v.cookieValues()
	for _, cookie := range values[:min(len(values), maxSignOut)] {
		if s, _, err := v.Sessions.Read(v.r.Context(), cookie); err == nil {
			v.sess.ReturnURL, v.sess.Locale = s.ReturnURL, s.Locale
		}
		if err := v.Sessions.End(v.r.Context(), cookie); err != nil {
			v.notSignedOut(err, templates.PathOverview, linkOverview)
			return
		}
	}
	v.expireCookie()
	v.redirect(pathSignedOut)
}

func (v *visit) signedOut() {
	v.message(http.StatusOK, templates.Message{Kind: "signed_out"})
}
