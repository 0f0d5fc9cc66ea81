package simulator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/portalcore/caddy-billing-portal/portalcore/act"
	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
	"github.com/portalcore/caddy-billing-portal/portalcore/journal"
	"github.com/portalcore/caddy-billing-portal/portalcore/link"
	"github.com/portalcore/caddy-billing-portal/portalcore/policy"
	"github.com/portalcore/caddy-billing-portal/portalcore/session"
)

// usedLink is a redirect token and how many sessions it made.
type usedLink struct {
	claims  link.Claims
	own     bool
	cookies int
}

// browserSession is a session that a browser was given.
type browserSession struct {
	cookie, customer string
	era              int
	expires          time.Time
	// over is set once it is certain that it may not be used any more, and why.
	over string
}

// end notes that sessions are over from now on.
func (w *world) end(why string, match func(*browserSession) bool) {
	for _, s := range w.sessions {
		if s.over == "" && match(s) {
			s.over = why
		}
	}
}

// mint makes a link, as the portal's own API or as the vendor.
func (w *world) mint(c *payer) *usedLink {
	w.lastTask++
	role := []string{policy.Owner, policy.Owner, policy.Owner, policy.Owner, policy.Owner, policy.Billing, policy.Billing, policy.Viewer}[w.rng.IntN(8)]
	l := &usedLink{own: w.chance(0.6)}
	signed := w.time().Add(time.Duration(w.rng.IntN(6000)-3000) * time.Millisecond).Truncate(time.Second)
	l.claims = link.Claims{
		Issuer: "vendor", Subject: c.id, ID: fmt.Sprintf("jti-0123456789-%d", w.lastTask), IssuedAt: signed, Role: role,
		Expires: signed.Add(link.MaxLifetime),
	}
	if l.own {
		l.claims.Issuer, l.claims.Generation = "portal", w.guard().Generation
	}
	if w.chance(0.1) {
		l.claims.Permissions = []string{policy.ChangePlan}
	}
	w.links[l.claims.ID] = l
	return l
}

// redeem posts a link to a portal.
func (w *world) redeem(l *usedLink, prior string) *browserSession {
	c := w.portal()
	if c == nil {
		return nil
	}
	var made *browserSession
	answered := w.serve("redeem", c, func() {
		// What link.Verify does with the clock.
		if now := c.now(); !now.Before(l.claims.Expires.Add(link.Skew)) || l.claims.IssuedAt.After(now.Add(link.Skew)) {
			w.count("link: outside of its time")
			return
		}
		s, cookie, err := c.sessions.Redeem(context.Background(), l.claims, l.own, prior, "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
		var soon *session.TooSoonError
		switch {
		case w.gone():
		case err == nil:
			w.canaries = append(w.canaries, cookie)
			w.count("redemptions")
			w.note("session for link %s", l.claims.ID)
			if l.cookies++; l.cookies > 1 {
				w.broken("INV1", "link %s made %d sessions", l.claims.ID, l.cookies)
			}
			if s.Customer != l.claims.Subject {
				w.broken("INV1", "a link for %s made a session of %s", l.claims.Subject, s.Customer)
			}
			made = &browserSession{cookie: cookie, customer: s.Customer, era: w.era, expires: s.Expires}
			w.sessions = append(w.sessions, made)
		case errors.Is(err, session.ErrUsed):
			w.count("link: used")
		case errors.As(err, &soon):
			w.count("link: too soon after a new generation")
		case errors.Is(err, session.ErrForgotten):
			w.count("link: of another generation")
		}
	})
	if !answered {
		return nil
	}
	return made
}

// request carries a request with a session to a portal, and tells whether it
// was answered.
func (w *world) request(name string, s *browserSession, fn func(c *portal, who act.Who)) bool {
	c := w.portal()
	if c == nil {
		w.sleep(time.Second)
		return false
	}
	if len(c.proc.portals) > 1 && w.chance(0.3) {
		c = c.proc.portals[len(c.proc.portals)-2] // it was on its way when the config changed
	}
	return w.serve(name, c, func() {
		over, era := s.over, w.era
		before, jumps := c.proc.node.clock(), c.proc.node.jumps
		got, rec, err := c.sessions.Read(context.Background(), s.cookie)
		if w.gone() {
			return
		}
		if err != nil {
			if errors.Is(err, session.ErrNone) {
				w.count("session: over")
			}
			return
		}
		switch {
		case over != "":
			w.broken("INV6", "a session of %s was let in, which %s", s.customer, over)
		case s.era != era:
			w.broken("INV6", "a session of %s from before the restore was let in", s.customer)
		case got.Customer != s.customer:
			w.broken("INV6", "a cookie of %s is %s", s.customer, got.Customer)
		case jumps == c.proc.node.jumps && !before.Before(s.expires):
			w.broken("INV6", "a session that ended at %s was let in at %s", s.expires, before)
		}
		w.count("requests let in")
		fn(c, act.Who{Session: got, Version: rec.Version, RequestID: strconv.FormatUint(w.cur.id, 10)})
	})
}

// together runs things at the same time and waits for all of them.
func (w *world) together(fns ...func()) {
	left, self := len(fns), w.cur
	for _, fn := range fns {
		w.spawn("tab", nil, w.between(0, 300*time.Millisecond), func() {
			fn()
			left--
			w.rouse(self)
		})
	}
	w.wait(time.Hour, func() bool { return left == 0 })
}

// think is a person taking their time.
func (w *world) think() {
	if w.chance(0.05) {
		w.sleep(w.between(time.Minute, 40*time.Minute))
		return
	}
	w.sleep(w.between(200*time.Millisecond, time.Minute))
}

// browse is what a person does with the portal.
func (w *world) browse(c *payer) {
	defer func() { w.browsing-- }()
	s := w.enterPortal(c, "")
	for range w.plan.actions {
		if w.over {
			return
		}
		w.think()
		if s == nil || w.chance(0.05) {
			prior := ""
			if s != nil {
				prior = s.cookie
			}
			was := s
			if s = w.enterPortal(c, prior); s == nil {
				s = was
				continue
			}
			if was != nil { // one session takes the place of the other
				w.end("was replaced", func(o *browserSession) bool { return o == was })
			}
		}
		w.act(c, s)
	}
}

// enterPortal follows a link: perhaps twice, perhaps somebody else has it too.
func (w *world) enterPortal(c *payer, prior string) *browserSession {
	for range 4 {
		l := w.mint(c)
		w.sleep(w.between(50*time.Millisecond, 2*time.Minute))
		if w.over {
			return nil
		}
		var s *browserSession
		use := func(prior string) func() {
			return func() {
				if got := w.redeem(l, prior); got != nil {
					s = got
				}
			}
		}
		switch w.rng.IntN(4) {
		case 0:
			w.count("link used by two at once")
			w.together(use(prior), use(""))
		case 1:
			w.count("link used by three at once")
			w.together(use(prior), use(""), use(""))
		default:
			use(prior)()
		}
		if s == nil || w.chance(0.2) { // the reply was lost, or somebody tries it again
			w.count("link used again")
			w.sleep(w.between(100*time.Millisecond, 3*time.Minute))
			use("")()
		}
		if s != nil {
			if w.chance(0.1) { // long after, when marks may be swept
				w.spawn("old link", nil, w.between(10*time.Minute, 5*time.Hour), func() { w.redeem(l, "") })
			}
			return s
		}
		w.sleep(w.between(time.Second, time.Minute))
	}
	return nil
}

// act is one thing that a person does.
func (w *world) act(c *payer, s *browserSession) {
	sub := c.subs[w.rng.IntN(len(c.subs))]
	switch w.rng.IntN(18) {
	case 0, 1, 2, 3, 4:
		to := []int{priceBasic, priceTeam, priceTeam, priceGrand}[w.rng.IntN(4)]
		w.change(s, billing.Action{
			Kind: billing.ChangePlan, Subscription: sub.id,
			Items: []billing.ItemChange{{Item: sub.item, Price: priceOf(to).ID, Quantity: 1}},
		})
	case 5, 6:
		w.do(s, billing.Action{Kind: billing.Cancel, Subscription: sub.id})
	case 7:
		w.do(s, billing.Action{Kind: billing.Resume, Subscription: sub.id})
	case 8:
		w.do(s, billing.Action{Kind: billing.DropPending, Subscription: sub.id})
	case 9:
		w.do(s, billing.Action{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: fmt.Sprintf("pm_%s%d", c.id[len("cus_"):], w.rng.IntN(2))})
	case 10:
		w.do(s, billing.Action{Kind: billing.AddPaymentMethod})
	case 11:
		w.hostile(c, s)
	case 12:
		w.leave(c, s)
	case 13:
		w.look(c, s)
	case 14, 15, 16:
		a := billing.Action{Kind: billing.PayInvoices, Invoices: w.some(c)}
		if w.chance(0.5) {
			a.PaymentMethod = c.method
		}
		w.change(s, a)
	case 17:
		w.do(s, billing.Action{Kind: billing.AddPaymentMethod, Invoices: w.some(c)})
	}
	if w.chance(0.5) {
		w.look(c, s)
	}
}

// some picks some of what a customer owes, paid or not.
func (w *world) some(c *payer) []string {
	var ids []string
	for len(ids) == 0 {
		for _, v := range c.debts {
			if w.chance(0.4) {
				ids = append(ids, v.id)
			}
		}
	}
	return ids
}

// look draws a page: what it shows is at least as new as what was settled
// before it was asked for.
func (w *world) look(c *payer, s *browserSession) {
	atLeast, era := w.versions[c.id], w.era
	w.request("look", s, func(p *portal, who act.Who) {
		// As account.Cached does, without its goroutine for readers that share.
		if snap, ok := p.accounts.Peek(c.id); ok && !snap.Stale && snap.Version >= who.Version {
			if age := p.now().Sub(snap.Read); age >= 0 && age < time.Minute {
				w.count("looks from the cache")
				w.shows(snap.Account, atLeast, era)
				return
			}
		}
		a, err := p.accounts.Fresh(context.Background(), c.id, who.Version)
		if err != nil || w.gone() {
			return
		}
		w.count("looks at the provider")
		w.shows(a, atLeast, era)
	})
}

func (w *world) shows(a billing.Account, atLeast, era int) {
	got, err := strconv.Atoi(a.Customer.Version)
	if err != nil || got < atLeast && era == w.era {
		w.broken("FRESH", "a page shows version %d of %s after %d was settled (%v)", got, a.Customer.ID, atLeast, err)
	}
}

// posted is what a browser was told about the form it posted.
func (w *world) posted(s *browserSession, ids *string, i journal.Intent, err error, began time.Duration) {
	switch {
	case err == nil && i.ID != "":
		// Who asks for a card page while one is open is sent to that one.
		if *ids != "" && *ids != i.ID && i.Action.Kind != billing.AddPaymentMethod {
			w.broken("INV2", "one form made two intents: %s and %s", *ids, i.ID)
		}
		*ids = i.ID
		w.told(s.customer, i, began)
		if i.State == journal.Succeeded {
			for n := range i.Steps {
				w.versions[s.customer] = max(w.versions[s.customer], w.prov.made[stepOf(i.Steps[n].Key)])
			}
		}
	case errors.Is(err, act.ErrNothingSent):
		w.count("refused: nothing was sent")
	case errors.Is(err, journal.ErrBusy):
		w.count("refused: object is busy")
	case errors.Is(err, policy.ErrDenied):
		w.count("refused: policy")
	case errors.Is(err, act.ErrNoPin):
		w.count("refused: no such preview")
	}
}

// change previews a change and confirms it, as people do: once, twice, in two
// tabs, and again where no answer came.
func (w *world) change(s *browserSession, a billing.Action) {
	var nonce string
	w.request("prepare", s, func(p *portal, who act.Who) {
		pin, err := p.corridor.Prepare(context.Background(), who, a)
		if err == nil && !w.gone() {
			w.count("previews")
			nonce = pin.Nonce
		}
	})
	if nonce == "" {
		return
	}
	w.think()
	id := ""
	confirm := func() {
		var got act.Confirmed
		var err error
		began := w.now
		answered := w.request("confirm", s, func(p *portal, who act.Who) {
			got, err = p.corridor.Confirm(context.Background(), who, nonce)
			w.count("confirmations")
		})
		switch {
		case !answered:
		case got.Fresh != nil:
			w.count("the numbers moved")
			nonce = got.Fresh.Nonce
			id = ""
		default:
			w.posted(s, &id, got.Intent, err, began)
		}
	}
	w.clicks(confirm)
	w.follow(s, id)
}

// do posts a form that needs no preview.
func (w *world) do(s *browserSession, a billing.Action) {
	nonce, err := act.NewNonce(w.ids)
	if err != nil {
		w.broken("SIM", "%v", err)
		return
	}
	id := ""
	w.clicks(func() {
		var i journal.Intent
		var err error
		began := w.now
		if w.request("do", s, func(p *portal, who act.Who) {
			if len(a.Invoices) > 0 {
				sum := billing.Money{Amount: owed * int64(len(a.Invoices)), Currency: "usd"}
				i, err = p.corridor.Agree(context.Background(), who, nonce, sum, a)
			} else {
				i, err = p.corridor.Do(context.Background(), who, nonce, "", a)
			}
			w.count("confirmations")
		}) {
			w.posted(s, &id, i, err, began)
		}
	})
	w.follow(s, id)
}

// clicks is how often and when a button is clicked.
func (w *world) clicks(click func()) {
	switch w.rng.IntN(5) {
	case 0:
		w.count("double click")
		w.together(click, click)
	case 1:
		w.count("confirmed in three tabs")
		w.together(click, click, click)
	case 2:
		click()
		w.count("confirmed again later")
		w.sleep(w.between(time.Second, 5*time.Minute))
		click()
	default:
		click()
	}
}

// follow is what a person does on the receipt.
func (w *world) follow(s *browserSession, id string) {
	if id == "" || w.over {
		return
	}
	if i := w.intents[id]; i != nil && i.State == journal.AwaitingCustomer && w.chance(0.8) {
		w.sleep(w.between(time.Second, 10*time.Minute))
		for n := range i.Steps {
			w.prov.visit(i.Steps[n].Key, w.chance(0.8))
		}
	}
	if w.chance(0.4) {
		w.sleep(w.between(time.Second, 5*time.Minute))
		began := w.now
		w.request("check again", s, func(p *portal, who act.Who) {
			i, err := p.corridor.Check(context.Background(), who.Customer, id)
			if err == nil && !w.gone() {
				w.count("checked again")
				w.told(s.customer, i, began)
			}
		})
	}
}

// hostile asks for what is not the customer's.
func (w *world) hostile(c *payer, s *browserSession) {
	var other *payer
	for _, o := range w.prov.customers {
		if o != c {
			other = o
		}
	}
	if other == nil {
		return
	}
	theirs := other.subs[0]
	w.request("hostile", s, func(p *portal, who act.Who) {
		nonce, err := act.NewNonce(w.ids)
		if err != nil {
			w.broken("SIM", "%v", err)
			return
		}
		for _, a := range []billing.Action{
			{Kind: billing.Cancel, Subscription: theirs.id},
			{Kind: billing.SetDefaultPaymentMethod, PaymentMethod: other.method},
			{Kind: billing.PayInvoices, Invoices: []string{other.debts[0].id}},
			{Kind: billing.PayInvoices, Invoices: []string{c.debts[0].id, other.debts[0].id}},
			{Kind: billing.AddPaymentMethod, Invoices: []string{other.debts[0].id}},
			{Kind: billing.ChangePlan, Subscription: theirs.id, Items: []billing.ItemChange{{Item: theirs.item, Price: priceOf(priceTeam).ID, Quantity: 1}}},
			{Kind: billing.ChangePlan, Subscription: c.subs[0].id, Items: []billing.ItemChange{{Item: theirs.item, Price: priceOf(priceTeam).ID, Quantity: 1}}},
		} {
			var err error
			if a.Kind == billing.ChangePlan || a.Kind == billing.PayInvoices {
				_, err = p.corridor.Prepare(context.Background(), who, a)
			} else {
				_, err = p.corridor.Do(context.Background(), who, nonce, "", a)
			}
			if err == nil {
				w.broken("INV7", "%s did %s to what is %s's", c.id, a.Kind, other.id)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(w.intents)) {
			i := w.intents[id]
			if i.Customer == c.id {
				continue
			}
			if _, err := p.corridor.Check(context.Background(), c.id, id); err == nil {
				w.broken("INV7", "%s saw intent %s of %s", c.id, id, i.Customer)
			}
			break
		}
		w.count("asked for what is another's")
	})
}

// leave ends sessions: this one, all of the customer's, one by its name, or all
// of the vendor's.
func (w *world) leave(c *payer, s *browserSession) {
	before := slices.Clone(w.sessions)
	had := func(o *browserSession) bool { return slices.Contains(before, o) }
	var err error
	switch w.rng.IntN(4) {
	case 0:
		done := false
		p := w.portal()
		if p == nil {
			return
		}
		if w.serve("sign out", p, func() { err = p.sessions.End(context.Background(), s.cookie); done = err == nil }) && done {
			w.count("signed out")
			w.end("was signed out", func(o *browserSession) bool { return o == s })
		}
	case 1:
		done := false
		if w.request("revoke all", s, func(p *portal, who act.Who) {
			done = p.sessions.RevokeCustomer(context.Background(), who.Customer) == nil
		}) && done {
			w.count("revoked all of a customer")
			w.end("was revoked with all of the customer's", func(o *browserSession) bool { return o.customer == c.id && had(o) })
		}
	case 2:
		done := false
		if w.request("revoke one", s, func(p *portal, who act.Who) {
			list, err := p.sessions.List(context.Background(), who.Customer, 10)
			if err != nil || len(list) == 0 {
				return
			}
			done = p.sessions.Revoke(context.Background(), who.Customer, who.ID()) == nil
		}) && done {
			w.count("revoked one session")
			w.end("was revoked by its name", func(o *browserSession) bool { return o == s })
		}
	case 3:
		p := w.portal()
		if p == nil || !w.chance(0.3) {
			return
		}
		done := false
		if w.serve("revoke the tenant's", p, func() { done = p.sessions.RevokeTenant(context.Background()) == nil }) && done {
			w.count("revoked all of the tenant")
			w.end("was revoked with all of the tenant's", had)
		}
	}
}
