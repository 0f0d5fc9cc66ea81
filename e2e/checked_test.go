package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// checkedChange confirms a change of plan whose answer is lost, and leaves the
// browser on the page that says so.
func (b *browser) checkedChange(d *demo) {
	b.t.Helper()
	b.enterAs(d, "Northwind Ltd")
	b.click("Change plan")
	b.click("See what plan “Team” costs you")
	control(b.t, d.Control, "/fault", map[string]any{"on": "execute", "times": 1000, "kind": "error-500-before"}, nil)
	b.submitFirst(strings.TrimPrefix(b.url(), d.Portal))
	b.sees("We are checking your change", "Please don’t send it again", "Check again")
}

// asked is how often the page has asked for its state.
func (b *browser) asked() int {
	b.t.Helper()
	var n int
	b.js(`performance.getEntriesByType("resource").filter(e => e.name.includes("/state/")).length`, &n)
	return n
}

// eventually waits for a text without touching anything.
func (b *browser) eventually(text string, within time.Duration) {
	b.t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var page string
		// Between two pages there is none to ask.
		err := chromedp.Run(b.ctx, chromedp.Evaluate(`document.body ? document.body.innerText.replace(/[\u2066-\u2069]/g, "") : ""`, &page))
		if err == nil && strings.Contains(page, text) {
			return
		}
	}
	b.t.Fatalf("%q did not come within %s:\n%s", text, within, b.text())
}

// hide makes the page believe that its tab is hidden, or shown.
func (b *browser) hide(hidden bool) {
	b.t.Helper()
	word := map[bool]string{true: "true", false: "false"}[hidden]
	b.js(`Object.defineProperty(document, "hidden", {configurable: true, value: `+word+`}); document.dispatchEvent(new Event("visibilitychange")); true`, new(bool))
}

// TestCheckedTurnsIntoTheReceipt: the page of a change whose answer was lost
// asks by itself, ever more seldom and only while somebody looks, and becomes
// the receipt without a click once the provider has answered.
func TestCheckedTurnsIntoTheReceipt(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.checkedChange(d)
	at := b.url()
	b.sees("This page asks for the answer by itself.")
	b.inspect("checked")

	b.hide(true)
	time.Sleep(500 * time.Millisecond) // one that was under way
	before := b.asked()
	time.Sleep(5 * time.Second)
	if n := b.asked() - before; n != 0 {
		t.Errorf("a hidden page asked %d times", n)
	}
	b.hide(false)
	for end := time.Now().Add(5 * time.Second); b.asked() == before && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	if n := b.asked() - before; n != 1 {
		t.Errorf("shown again it asked %d times at once, want once", n)
	}
	b.open(at) // as a bookmark, or in another tab
	began := time.Now()
	b.eventually("This page asks for the answer by itself.", 5*time.Second)
	time.Sleep(time.Until(began.Add(7500 * time.Millisecond)))
	if n := b.asked(); n < 1 || n > 2 { // after 2 s and 6 s
		t.Errorf("it asked %d times in 7.5 s, want twice", n)
	}
	if b.url() != at {
		t.Errorf("it went to %s", b.url())
	}
	control(t, d.Control, "/fault", map[string]any{"times": 0}, nil)
	b.eventually("You are now on plan “Team”", time.Minute)
	if got := b.url(); got != at {
		t.Errorf("the receipt is at %s, want %s", got, at)
	}
	b.seesNot("This page asks", "Check again")
	b.inspect("checked-done")
	if got := changes(t, d.Control, "cus_northwind"); len(got) != 1 {
		t.Errorf("changes: %+v", got)
	}
}

// TestCheckedStopsAsking: with the session over, or the portal gone, the page
// says how it stands with the asking.
func TestCheckedStopsAsking(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.checkedChange(d)
	v := b.visitor(d.Portal)
	if p := v.post(t, "/sign-out", nil); p.status != http.StatusSeeOther {
		t.Fatalf("signing out: %d", p.status)
	}
	b.eventually("This page no longer asks by itself.", 20*time.Second)
	n := b.asked()
	time.Sleep(4 * time.Second)
	if b.asked() != n {
		t.Error("it went on asking")
	}

	control(t, d.Control, "/fault", map[string]any{"times": 0}, nil)
	d2 := startDemo(t, caddyBinary(t))
	b2 := newBrowser(t)
	b2.checkedChange(d2)
	d2.kill()
	b2.eventually("There is no connection right now.", 20*time.Second)
}

// TestCheckedWithoutScript: the button is all there is, and enough.
func TestCheckedWithoutScript(t *testing.T) {
	d := startDemo(t, caddyBinary(t))
	b := newBrowser(t)
	b.checkedChange(d)
	b.run(emulation.SetScriptExecutionDisabled(true))
	at := b.url()
	b.run(chromedp.Navigate(at), chromedp.WaitReady("h1", chromedp.ByQuery))
	v := b.visitor(d.Portal)
	p := v.get(t, strings.TrimPrefix(at, d.Portal))
	if p.status != http.StatusOK || p.header.Get("Refresh") != "" || strings.Contains(p.body, "http-equiv") {
		t.Errorf("%d: a page must not load itself again by the clock (WCAG 2.2.1)", p.status)
	}
	control(t, d.Control, "/fault", map[string]any{"times": 0}, nil)
	check := p.form(t, "/done/")
	if p := v.post(t, check.action, check.fields); p.status != http.StatusSeeOther || d.Portal+p.location != at {
		t.Fatalf("checking again: %d to %s", p.status, p.location)
	}
	if p := v.get(t, strings.TrimPrefix(at, d.Portal)); !strings.Contains(p.body, "You are now on plan") {
		t.Errorf("after checking again:\n%s", p.body)
	}
}
