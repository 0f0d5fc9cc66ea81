package main

import (
	"context"
	"fmt"
	randv2 "math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portalcore/caddy-billing-portal/e2e/browse"
)

// customer is one who acts: what their browser has, and what it waits for.
type customer struct {
	id, sub string
	rnd     *randv2.Rand
	s       *session
	link    *token       // sent without an answer
	doubt   *browse.Form // a confirmation sent without an answer
}

// visitor is the browser of a session.
func (w *world) visitor(s *session) *browse.Visitor {
	v := browse.New(w.origin, w.kept)
	u, _ := url.Parse(w.origin)
	v.Client.Jar.SetCookies(u, s.cookies)
	v.Client.Timeout = patience
	return v
}

// patience is how long a client waits for an answer.
const patience = 20 * time.Second

// enter opens a link in a new browser. It reports false where no answer came.
func (w *world) enter(ctx context.Context, t *token) (*session, bool) {
	v := browse.New(w.origin, w.once)
	v.Client.Timeout = patience
	known := w.facts.known(t)
	p, err := v.Do(ctx, t.URL, "same-site", nil)
	if err != nil {
		w.facts.unanswered(t)
		return nil, false
	}
	u, _ := url.Parse(w.origin)
	return w.facts.entered(t, known, p, v.Client.Jar.Cookies(u)), true
}

// act acts for one customer after the other until stop, or until the portal
// does not answer.
func (w *world) act(ctx context.Context, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case c := <-w.people:
			answered := w.step(ctx, c)
			w.people <- c
			if !answered {
				return
			}
		}
	}
}

// step is one thing that a customer does. It reports false where no answer
// came.
func (w *world) step(ctx context.Context, c *customer) bool {
	if c.s == nil {
		return w.signIn(ctx, c)
	}
	v := w.visitor(c.s)
	if c.doubt != nil { // the same form again
		return w.confirm(ctx, c, v, *c.doubt)
	}
	switch n := c.rnd.IntN(20); {
	case n < 3:
		answered := w.signOut(ctx, c.s)
		c.s = nil
		return answered
	case n < 8:
		return w.cancelOrResume(ctx, c, v)
	}
	return w.change(ctx, c, v)
}

func (w *world) signIn(ctx context.Context, c *customer) bool {
	t := c.link
	if t == nil {
		var err error
		if t, err = w.link(ctx, c.rnd, c.id); err != nil {
			return false
		}
	}
	s, answered := w.enter(ctx, t)
	if c.link = t; answered {
		c.link = nil
	}
	c.s = s
	return answered
}

func (w *world) signOut(ctx context.Context, s *session) bool {
	if !w.facts.leaving(s) {
		return true
	}
	p, err := w.visitor(s).Do(ctx, "/sign-out", "same-origin", url.Values{})
	if err != nil {
		return false
	}
	if p.Status == http.StatusSeeOther {
		w.facts.signedOut(s)
	} else {
		w.facts.odd("sign-out", p)
	}
	return true
}

// page asks for a page of the session's. ok is false where it is not there.
func (w *world) page(ctx context.Context, c *customer, v *browse.Visitor, target string, form url.Values) (p browse.Page, ok, answered bool) {
	p, err := v.Do(ctx, target, "same-origin", form)
	if err != nil {
		return p, false, false
	}
	switch p.Status {
	case http.StatusOK, http.StatusSeeOther:
		return p, true, true
	case http.StatusUnauthorized:
		w.facts.out(c.s, target)
		c.s, c.doubt = nil, nil
	default:
		w.facts.odd(what(target, form), p)
	}
	return p, false, true
}

// what names a request without its ids.
func what(target string, form url.Values) string {
	method := http.MethodGet
	if form != nil {
		method = http.MethodPost
	}
	path, _, _ := strings.Cut(target, "?")
	if i := strings.IndexByte(path[1:], '/'); i >= 0 {
		path = path[:i+2]
	}
	return method + " " + path
}

var prices = []string{"price_basic_monthly", "price_team_monthly", "price_business_monthly"}

// change takes another plan or quantity: form, preview, confirmation, receipt.
func (w *world) change(ctx context.Context, c *customer, v *browse.Visitor) bool {
	p, ok, answered := w.page(ctx, c, v, "/plan", nil)
	if !ok {
		return answered
	}
	f, ok := p.Form("/plan")
	if !ok {
		return true // an unsettled change is in the way
	}
	f.Fields.Set("price", prices[c.rnd.IntN(len(prices))])
	f.Fields.Set("quantity", strconv.Itoa(1+c.rnd.IntN(9)))
	if p, ok, answered = w.page(ctx, c, v, f.Action, f.Fields); !ok {
		return answered
	}
	if p, ok, answered = w.page(ctx, c, v, p.Location, nil); !ok {
		return answered
	}
	if f, ok = p.Form("/check/"); !ok {
		return true
	}
	return w.confirm(ctx, c, v, f)
}

func (w *world) cancelOrResume(ctx context.Context, c *customer, v *browse.Visitor) bool {
	p, ok, answered := w.page(ctx, c, v, "/cancel?subscription="+c.sub, nil)
	if !ok {
		return answered
	}
	if p.Status == http.StatusSeeOther { // cancelled already
		if p, ok, answered = w.page(ctx, c, v, "/", nil); !ok {
			return answered
		}
		if f, ok := p.Form("/resume"); ok {
			return w.confirm(ctx, c, v, f)
		}
		return true
	}
	if f, ok := p.Form("/cancel"); ok {
		return w.confirm(ctx, c, v, f)
	}
	return true
}

// confirm posts a form that changes something, and looks at the receipt. A form
// without an answer is posted again when the portal is back.
func (w *world) confirm(ctx context.Context, c *customer, v *browse.Visitor, f browse.Form) bool {
	for range 3 { // a fresh preview is confirmed, too
		c.doubt = &f
		p, ok, answered := w.page(ctx, c, v, f.Action, f.Fields)
		if !answered {
			return false
		}
		c.doubt = nil
		if !ok {
			return true
		}
		if id, done := strings.CutPrefix(p.Location, "/done/"); done {
			i := w.facts.confirmed(id, c.id)
			return w.receipt(ctx, i, v)
		}
		if p, ok, answered = w.page(ctx, c, v, p.Location, nil); !ok {
			return answered
		}
		if f, ok = p.Form("/check/"); !ok {
			return true
		}
	}
	return true
}

var receiptRE = regexp.MustCompile(`<section class="receipt (\w+)">\s*<svg class="icon icon-([a-z-]+)"`)

// stateOf reads a receipt: "done", "refused", "manual", "not applied" or, for
// what is not settled, "".
func stateOf(body string) (string, error) {
	m := receiptRE.FindStringSubmatch(body)
	if m == nil {
		return "", fmt.Errorf("no receipt in the page:\n%s", body)
	}
	switch {
	case m[1] == "ok":
		return "done", nil
	case m[2] == "hourglass":
		return "", nil
	case m[2] == "circle-x":
		return "refused", nil
	case m[1] == "danger":
		return "manual", nil
	}
	return "not applied", nil
}

// receipt looks at an intent's receipt. It reports false where no answer came.
func (w *world) receipt(ctx context.Context, i *intent, v *browse.Visitor) bool {
	p, err := v.Do(ctx, "/done/"+i.ID, "same-origin", nil)
	if err != nil {
		return false
	}
	w.facts.shown(i, p)
	return true
}

// redeem opens links for strangers until stop.
func (w *world) redeem(ctx context.Context, stop <-chan struct{}, seed uint64) {
	rnd := randv2.New(randv2.NewPCG(seed, 1)) //nolint:gosec // choices of a test
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rnd.Int64N(int64(8 * time.Millisecond)))):
		}
		t := w.facts.someUnanswered(rnd)
		if t == nil || rnd.IntN(3) > 0 {
			var err error
			if t, err = w.link(ctx, rnd, w.facts.stranger()); err != nil {
				return
			}
		}
		browsers := 1
		if rnd.IntN(6) == 0 {
			browsers = burst
			w.bursts.Add(1)
		}
		var wg sync.WaitGroup
		var made *session
		var mu sync.Mutex
		answered := true
		begin := make(chan struct{})
		for range browsers {
			wg.Go(func() {
				<-begin
				s, ok := w.enter(ctx, t)
				mu.Lock()
				defer mu.Unlock()
				answered = answered && ok
				if s != nil {
					made = s
				}
			})
		}
		close(begin)
		wg.Wait()
		if !answered {
			return
		}
		if made != nil && rnd.IntN(4) == 0 && !w.signOut(ctx, made) {
			return
		}
	}
}
