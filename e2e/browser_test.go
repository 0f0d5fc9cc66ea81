package e2e

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	cdpage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// axeSource is axe-core (https://github.com/dequelabs/axe-core), MPL-2.0.
//
//go:embed testdata/axe.min.js
var axeSource string

// browser is one tab of a headless Chromium.
type browser struct {
	t   *testing.T
	ctx context.Context
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("no Chromium on this machine: scripts/test.sh installs it")
	}
	// Not t.TempDir: the browser still writes while it ends.
	profile, err := os.MkdirTemp(scratch, "profile-")
	if err != nil {
		t.Fatal(err)
	}
	// Not DefaultExecAllocatorOptions: a test browser asks nobody for anything.
	alloc, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.UserDataDir(profile), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("hide-scrollbars", true),
	)
	t.Cleanup(cancel)
	ctx, cancelTab := chromedp.NewContext(alloc)
	t.Cleanup(cancelTab)
	ctx, cancelTime := context.WithTimeout(ctx, 4*time.Minute)
	t.Cleanup(cancelTime)
	b := &browser{t: t, ctx: ctx}
	b.size(1280, false)
	return b
}

func (b *browser) run(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// size sets the window's width and the colour scheme.
func (b *browser) size(width int64, dark bool) {
	b.t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.run(
		emulation.SetDeviceMetricsOverride(width, 900, 1, width < 600),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme},
			{Name: "prefers-reduced-motion", Value: "reduce"}, // colours change at once
		}),
	)
}

// js evaluates an expression in the page.
func (b *browser) js(expression string, into any) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, chromedp.Evaluate(expression, into, chromedp.EvalAsValue)); err != nil {
		b.t.Fatalf("evaluating %.80q: %v", expression, err)
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.run(chromedp.Navigate(url))
}

func (b *browser) url() string {
	b.t.Helper()
	var s string
	b.run(chromedp.Location(&s))
	return s
}

// text is what a person reads on the page, with the isolation marks that the
// pages put round names and sums taken out.
func (b *browser) text() string {
	b.t.Helper()
	var s string
	b.js(`document.body.innerText.replace(/[\u2066-\u2069\u200e\u200f]/g, "").replace(/\u00a0|\u202f/g, " ")`, &s)
	return s
}

// sees fails where a text is not on the page.
func (b *browser) sees(texts ...string) {
	b.t.Helper()
	page := b.text()
	for _, s := range texts {
		if !strings.Contains(page, s) {
			b.shot("failed-" + strings.ReplaceAll(b.t.Name(), "/", "-"))
			b.t.Fatalf("%s: %q is not on the page:\n%s", b.url(), s, page)
		}
	}
}

// sees not fails where a text is on the page.
func (b *browser) seesNot(texts ...string) {
	b.t.Helper()
	page := b.text()
	for _, s := range texts {
		if strings.Contains(page, s) {
			b.t.Fatalf("%s: %q is on the page:\n%s", b.url(), s, page)
		}
	}
}

// click follows the first visible link or button whose text holds label, and
// waits for the page it leads to.
func (b *browser) click(label string) {
	b.t.Helper()
	quoted, err := json.Marshal(label)
	if err != nil {
		b.t.Fatal(err)
	}
	var found bool
	b.js(`(() => {
		const clean = s => s.replace(/[\u2066-\u2069\u200e\u200f]/g, "").replace(/\s+/g, " ").trim();
		const all = [...document.querySelectorAll("a[href], button, input[type=submit], summary")];
		const visible = e => e.getClientRects().length > 0;
		const e = all.find(e => visible(e) && clean(e.innerText || e.value) === `+string(quoted)+`) ||
			all.find(e => visible(e) && clean(e.innerText || e.value).includes(`+string(quoted)+`));
		if (!e) return false;
		window.leaving = true;
		e.click();
		return true;
	})()`, &found)
	if !found {
		b.shot("failed-" + strings.ReplaceAll(b.t.Name(), "/", "-"))
		b.t.Fatalf("%s: there is nothing to click that says %q:\n%s", b.url(), label, b.text())
	}
	b.arrive()
}

// arrive waits until another page has loaded.
func (b *browser) arrive() {
	b.t.Helper()
	for range 300 {
		var there bool
		err := chromedp.Run(b.ctx, chromedp.Evaluate(`window.leaving === undefined && document.readyState === "complete"`, &there))
		if err == nil && there {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.t.Fatalf("%s: no new page within 6 s:\n%s", b.url(), b.text())
}

// arriveAt waits for a page of that path, over pages that forward by
// themselves.
func (b *browser) arriveAt(path string) {
	b.t.Helper()
	var last error
	for range 300 {
		// A page that is just being left cannot be asked.
		var at string
		last = chromedp.Run(b.ctx, chromedp.Location(&at))
		if u, err := url.Parse(at); last == nil && err == nil && strings.HasPrefix(u.Path, path) {
			if last = chromedp.Run(b.ctx, chromedp.WaitReady("h1", chromedp.ByQuery)); last == nil {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	if last != nil {
		b.t.Fatalf("waiting for %s: %v", path, last)
	}
	b.t.Fatalf("still at %s, not at %s:\n%s", b.url(), path, b.text())
}

// submitFirst posts the page's first form to that path, whatever its button
// says.
func (b *browser) submitFirst(path string) {
	b.t.Helper()
	var found bool
	b.js(fmt.Sprintf(`(() => {
		const f = document.querySelector('form[action=%q]');
		if (!f) return false;
		window.leaving = true;
		f.querySelector("button").click();
		return true;
	})()`, path), &found)
	if !found {
		b.t.Fatalf("%s: no form posts to %s:\n%s", b.url(), path, b.text())
	}
	b.arrive()
}

// cookies are the browser's cookies for an address.
func (b *browser) cookies(address string) []*http.Cookie {
	b.t.Helper()
	var list []*http.Cookie
	b.run(chromedp.ActionFunc(func(ctx context.Context) error {
		all, err := network.GetCookies().WithURLs([]string{address}).Do(ctx)
		for _, c := range all {
			list = append(list, &http.Cookie{Name: c.Name, Value: c.Value})
		}
		return err
	}))
	return list
}

// fill types into the field with that id or name.
func (b *browser) fill(field, value string) {
	b.t.Helper()
	v, err := json.Marshal(value)
	if err != nil {
		b.t.Fatal(err)
	}
	var found bool
	b.js(fmt.Sprintf(`(() => {
		const e = document.getElementById(%q) || document.querySelector("[name=%s]");
		if (!e) return false;
		e.value = %s;
		return true;
	})()`, field, field, v), &found)
	if !found {
		b.t.Fatalf("%s: there is no field %q", b.url(), field)
	}
}

// check chooses the radio button whose label holds text.
func (b *browser) check(text string) {
	b.t.Helper()
	var found bool
	b.js(fmt.Sprintf(`(() => {
		const l = [...document.querySelectorAll("label")].find(l => l.innerText.includes(%q));
		if (!l) return false;
		l.click();
		return true;
	})()`, text), &found)
	if !found {
		b.t.Fatalf("%s: nothing to choose says %q:\n%s", b.url(), text, b.text())
	}
}

// shots is where screenshots go, or "".
func shots() string { return os.Getenv("E2E_SCREENSHOTS") }

// shot saves a picture of the whole page, where pictures are asked for.
func (b *browser) shot(name string) {
	b.t.Helper()
	if shots() == "" {
		return
	}
	var png []byte
	b.run(chromedp.ActionFunc(func(ctx context.Context) (err error) {
		png, err = cdpage.CaptureScreenshot().WithCaptureBeyondViewport(true).Do(ctx)
		return err
	}))
	if err := os.MkdirAll(shots(), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shots(), name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// variants are the ways in which each page is looked at; axe says in which of
// them axe-core looks too (what it sees differs by scheme and by layout).
var variants = []struct {
	name      string
	width     int64
	dark, axe bool
}{
	{"1280-light", 1280, false, true},
	{"1280-dark", 1280, true, true},
	{"390-light", 390, false, true},
	{"390-dark", 390, true, false},
	{"320-light", 320, false, false},
}

// inspect checks what holds of every page: no accessibility violations
// (axe-core), no sideways scrolling, nothing inline, one h1, a title, and text
// of 14 px or more. It looks at every variant and takes a picture of each.
func (b *browser) inspect(name string) {
	b.t.Helper()
	for _, v := range variants {
		b.size(v.width, v.dark)
		if v.axe {
			b.axe(name + " " + v.name)
		}
		var problems []string
		b.js(`(() => {
			const p = [];
			const root = document.documentElement;
			if (root.scrollWidth > root.clientWidth) {
				const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).pop();
				p.push("scrolls sideways: " + root.scrollWidth + " > " + root.clientWidth + (wide ? ": " + wide.outerHTML.slice(0, 200) : ""));
			}
			for (const e of document.querySelectorAll("[style]")) p.push("inline style on " + e.tagName);
			for (const e of document.querySelectorAll("script:not([src]), style")) p.push("inline " + e.tagName);
			for (const e of document.querySelectorAll("*")) for (const a of e.attributes) if (a.name.startsWith("on")) p.push("handler " + a.name);
			if (document.querySelectorAll("h1").length !== 1) p.push(document.querySelectorAll("h1").length + " h1");
			if (!document.title || !root.lang) p.push("no title or lang");
			for (const e of document.querySelectorAll("button[disabled]")) p.push("disabled button " + e.innerText);
			const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
			for (let n; n = walk.nextNode();) {
				if (!n.data.trim() || !n.parentElement.getClientRects().length) continue;
				const size = parseFloat(getComputedStyle(n.parentElement).fontSize);
				if (size < 14) p.push("text of " + size + "px: " + n.data.trim().slice(0, 30));
			}
			return p;
		})()`, &problems)
		for _, p := range problems {
			b.t.Errorf("%s %s: %s", name, v.name, p)
		}
		if v.width != 320 {
			b.shot(name + "-" + v.name)
		}
	}
	b.size(1280, false)
}

// axe runs axe-core over the page.
func (b *browser) axe(name string) {
	b.t.Helper()
	var violations []struct {
		ID, Help string
		Nodes    []struct{ HTML, FailureSummary string }
	}
	var loaded bool
	b.js(`typeof axe === "object"`, &loaded)
	if !loaded {
		b.run(chromedp.Evaluate(axeSource, nil))
	}
	expression := `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations.map(v => ({ID: v.id, Help: v.help, Nodes: v.nodes.map(n => ({HTML: n.html, FailureSummary: n.failureSummary}))})))`
	if err := chromedp.Run(b.ctx, chromedp.Evaluate(expression, &violations, awaitPromise)); err != nil {
		b.t.Fatalf("%s: axe: %v", name, err)
	}
	for _, v := range violations {
		for _, n := range v.Nodes {
			b.t.Errorf("%s: axe: %s (%s): %s\n%s", name, v.ID, v.Help, n.HTML, n.FailureSummary)
		}
	}
}

// awaitPromise makes an evaluation wait for its promise.
func awaitPromise(p *runtime.EvaluateParams) *runtime.EvaluateParams {
	return p.WithAwaitPromise(true).WithReturnByValue(true)
}
