package pages

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"go.uber.org/zap"

	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
	"github.com/portalcore/caddy-billing-portal/templates"
)

const (
	pathEndOne   = "/devices/sign-out"
	pathEndAll   = "/devices/sign-out-all"
	fieldSession = "session"
	// endedField in the query of the list says that a device was just signed
	// out.
	endedField = "ended"
)

// mayEndOthers reports whether this person sees and ends other sessions of the
// customer than their own. A session that the vendor narrowed does not, whatever
// its role: it was made for one task.
func (v *visit) mayEndOthers() bool {
	if v.sess.Permissions != nil {
		return false
	}
	return v.sess.Role == policy.Owner || v.sess.Role == policy.Billing
}

// devices is GET /devices. It needs nothing of the provider.
func (v *visit) devices() {
	body := &templates.Devices{Ended: v.form[endedField] != "", Devices: []templates.Device{v.device(&v.sess)}}
	if v.mayEndOthers() {
		list, err := v.Sessions.List(v.r.Context(), v.sess.Customer, 0)
		if err != nil {
			v.unavailable("listing sessions", err)
			return
		}
		slices.SortStableFunc(list, func(a, b session.Session) int { return b.Seen.Compare(a.Seen) })
		for i := range list {
			if list[i].Hash != v.sess.Hash {
				body.Devices = append(body.Devices, v.device(&list[i]))
			}
		}
		body.EndAll = &templates.Form{Action: pathEndAll}
	}
	locale := ""
	if s, ok := v.Corridor.Accounts.Peek(v.sess.Customer); ok {
		locale = s.Account.Customer.Locale
	}
	v.page(http.StatusOK, v.locale(locale), &templates.Page{
		SignedIn: true, Customer: v.knownName(), ReturnURL: v.backURL(), CancelURL: v.knownCancelURL(), Banner: v.knownBanner(), Body: body,
	})
}

func (v *visit) device(s *session.Session) templates.Device {
	d := templates.Device{
		Browser: s.Device.Browser, System: s.Device.System, Person: person(s.Actor), Since: s.Created, Seen: s.Seen,
		Support: s.Support(), This: s.Hash == v.sess.Hash,
		End: templates.Form{Action: pathEndOne, Hidden: []templates.Field{{Name: fieldSession, Value: s.ID()}}},
	}
	if d.This {
		d.End = templates.Form{Action: templates.PathSignOut}
	}
	return d
}

// person is the name of an actor, else as much of the e-mail address as tells
// those apart who know each other.
func person(a link.Actor) string { return cmp.Or(a.Name, templates.MaskEmail(a.Email)) }

// endDevice is POST /devices/sign-out. A session that is not the customer's, or
// is over, looks the same as one that was ended: it is not there afterwards.
func (v *visit) endDevice() {
	id := v.form[fieldSession]
	own := id == v.sess.ID()
	if !own && !v.mayEndOthers() {
		v.message(http.StatusForbidden, templates.Message{Kind: "forbidden", Href: templates.PathDevices, Link: linkContinue})
		return
	}
	err := v.Sessions.Revoke(v.r.Context(), v.sess.Customer, id)
	switch {
	case err != nil && !errors.Is(err, session.ErrNone):
		v.notSignedOut(err, templates.PathDevices, linkRetry)
	case own:
		v.expireCookie()
		v.redirect(pathSignedOut)
	default:
		v.Log.Info("session ended by another", zap.String("request_id", v.id), zap.String("customer", v.sess.Customer),
			zap.String("by", v.sess.ID()), zap.Bool("there", err == nil))
		v.redirect(templates.PathDevices + "?" + endedField + "=1")
	}
}

// endAll is POST /devices/sign-out-all.
func (v *visit) endAll() {
	if !v.mayEndOthers() {
		v.message(http.StatusForbidden, templates.Message{Kind: "forbidden", Href: templates.PathDevices, Link: linkContinue})
		return
	}
	if err := v.Sessions.RevokeCustomer(v.r.Context(), v.sess.Customer); err != nil {
		v.notSignedOut(err, templates.PathDevices, linkRetry)
		return
	}
	v.Log.Info("all sessions of a customer ended", zap.String("request_id", v.id), zap.String("customer", v.sess.Customer), zap.String("by", v.sess.ID()))
	v.expireCookie()
	v.redirect(pathSignedOut)
}

// state is GET /state/{intent}: what the script on the page of an intent that is
// being checked asks. It reads the store and nothing else.
func (v *visit) state() {
	i, ok := v.intent()
	if !ok {
		return
	}
	body, err := json.Marshal(struct {
		State string `json:"state"`
	}{stateWord(i.State)})
	if err != nil {
		v.failed(err)
		return
	}
	v.send(http.StatusOK, "application/json", body)
}
