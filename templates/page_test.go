package templates

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/net/html"
)

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

func find(n *html.Node, tag string) *html.Node {
	if n.Type == html.ElementNode && n.Data == tag {
		return n
	}
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		if f := find(c, tag); f != nil {
			return f
		}
	}
	return nil
}

func each(n *html.Node, f func(*html.Node)) {
	f(n)
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		each(c, f)
	}
}

func textOf(n *html.Node) string {
	var b strings.Builder
	each(n, func(n *html.Node) {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
	})
	return strings.Join(strings.Fields(b.String()), " ")
}

func parsePage(t *testing.T, r *Renderer, locale string, p *Page) *html.Node {
	t.Helper()
	var buf bytes.Buffer
	if err := r.Render(&buf, locale, p); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(&buf)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// eachString calls f with every string that can be set below v and stores
// what it returns. The path names the field ("Body.Offers.Name").
func eachString(v any, f func(path, s string) string) {
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			if v.IsNil() {
				return
			}
			if v.Kind() == reflect.Pointer && v.Type().Elem().Kind() == reflect.Struct {
				c := reflect.New(v.Type().Elem()) // fixtures share pointers
				c.Elem().Set(v.Elem())
				if v.CanSet() {
					v.Set(c)
				}
				walk(v.Elem(), path)
				return
			}
			e := v.Elem()
			if v.Kind() == reflect.Interface && e.Kind() == reflect.Pointer {
				c := reflect.New(e.Type().Elem())
				c.Elem().Set(e.Elem())
				v.Set(c)
				e = c
			}
			walk(e, path)
		case reflect.Struct:
			if v.Type().PkgPath() == "time" || strings.HasSuffix(v.Type().PkgPath(), "decimal") {
				return
			}
			for i := range v.NumField() {
				walk(v.Field(i), path+"."+v.Type().Field(i).Name)
			}
		case reflect.Slice:
			if v.CanSet() && v.Len() > 0 {
				c := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
				reflect.Copy(c, v)
				v.Set(c)
			}
			for i := range v.Len() {
				walk(v.Index(i), path)
			}
		case reflect.String:
			if v.CanSet() {
				v.SetString(f(path, v.String()))
			}
		}
	}
	rv := reflect.ValueOf(v).Elem()
	for i := range rv.NumField() {
		walk(rv.Field(i), rv.Type().Field(i).Name)
	}
}

var enumField = regexp.MustCompile(`(^|\.)(Section|BackTo|Kind|State|Status|Why|Reason|Interval|Expiry|Direction|Type|Brand|Wallet|Link|Key|Field|Use|Period|By|TiersMode)$`)

func isEnum(path string) bool { return enumField.MatchString(path) }

// hostile are strings that customers, vendors and providers can send.
var hostile = []string{
	`<script>alert(1)</script>`,
	`"><img src=x onerror=alert(1)>`,
	`' onmouseover='alert(1)`,
	`javascript:alert(1)`,
	`{{.Body}}{b}x{/b}</title></textarea>`,
	"\u202Eevil\u2066\u202B\x00",
	`--><svg onload=alert(1)>`,
}

// TestNoTemplateActions holds that nothing a page shows can be an action of
// another template engine that comes after: Caddy's templates handler, which
// has {{env "SECRET"}}.
func TestNoTemplateActions(t *testing.T) {
	for _, h := range []string{`X{{env "HOME"}}Y`, `{{{{env "HOME"}}}}`, `{ {{`} {
		opt := options()
		opt.Theme.Name, opt.ProviderName = h, h
		r := renderer(t, opt)
		for name, p := range fixtures() {
			eachString(p, func(path, s string) string {
				if isEnum(path) {
					return s
				}
				return h
			})
			var buf bytes.Buffer
			if err := r.Render(&buf, "en", p); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(buf.String(), "{{") {
				t.Errorf("%s with %q has double braces", name, h)
			}
		}
	}
}

// TestHostileStrings puts hostile strings in every field of every page, with
// and without those that choose what is shown.
func TestHostileStrings(t *testing.T) {
	for _, h := range hostile {
		opt := options()
		opt.Theme.Name, opt.ProviderName = h, h
		r := renderer(t, opt)
		for _, all := range []bool{false, true} {
			for name, p := range fixtures() {
				eachString(p, func(path, s string) string {
					if isEnum(path) && !all {
						return s
					}
					return h
				})
				where := fmt.Sprintf("%s with %q", name, h)
				doc := parsePage(t, r, "en", p)
				each(doc, func(n *html.Node) {
					if n.Type == html.CommentNode {
						t.Errorf("%s: a comment", where)
					}
					if n.Type == html.TextNode && strings.ContainsAny(n.Data, "\u202A\u202B\u202D\u202E\x00") && n.Parent.Data != "option" {
						t.Errorf("%s: raw controls in a text: %q", where, n.Data)
					}
					if n.Type != html.ElementNode {
						return
					}
					if n.Data == "script" && (attr(n, "src") != r.AssetPath("checked.js") || n.FirstChild != nil) || n.Data == "style" || n.Data == "img" && attr(n, "src") != "/logo.svg" || n.Data == "svg" && attr(n, "aria-hidden") != "true" && attr(n, "class") != "chart" {
						t.Errorf("%s: an element <%s> came through", where, n.Data)
					}
					for _, a := range n.Attr {
						if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
							t.Errorf("%s: an attribute %s came through", where, a.Key)
						}
						if (a.Key == "href" || a.Key == "action") && strings.HasPrefix(a.Val, "javascript:") {
							t.Errorf("%s: %s=%s", where, a.Key, a.Val)
						}
					}
				})
				if n := strings.Count(textOf(find(doc, "body")), "<strong>"); n != 0 {
					t.Errorf("%s: markup was escaped twice", where)
				}
			}
		}
	}
}

var voidElements = regexp.MustCompile(`^(meta|link|img|input|br|hr|use|path)$`)

// TestWellFormed holds every page, in both locales, to the rules of HTML that
// browsers forgive and readers suffer from.
func TestWellFormed(t *testing.T) {
	r := renderer(t, options())
	for _, locale := range r.Locales() {
		for name, p := range fixtures() {
			t.Run(locale+"/"+name, func(t *testing.T) {
				var buf bytes.Buffer
				if err := r.Render(&buf, locale, p); err != nil {
					t.Fatal(err)
				}
				var open []string
				z := html.NewTokenizer(bytes.NewReader(buf.Bytes()))
				for tt := z.Next(); tt != html.ErrorToken; tt = z.Next() {
					raw := string(z.Raw())
					n, _ := z.TagName()
					switch name := string(n); tt {
					case html.StartTagToken:
						if !voidElements.MatchString(name) {
							open = append(open, name)
						}
					case html.EndTagToken:
						if len(open) == 0 || open[len(open)-1] != name {
							t.Fatalf("%s closes %v", raw, open)
						}
						open = open[:len(open)-1]
					}
				}
				if len(open) != 0 {
					t.Errorf("left open: %v", open)
				}
				checkDocument(t, parsePage(t, r, locale, p))
			})
		}
	}
}

func checkDocument(t *testing.T, doc *html.Node) {
	t.Helper()
	ids, labels, count := map[string]bool{}, map[string]bool{}, map[string]int{}
	each(doc, func(n *html.Node) {
		if n.Type != html.ElementNode {
			return
		}
		if n.Namespace == "" { // a drawing has a title of its own
			count[n.Data]++
		}
		if id := attr(n, "id"); id != "" {
			if ids[id] {
				t.Errorf("id %s is there twice", id)
			}
			ids[id] = true
		}
		if f := attr(n, "for"); f != "" {
			labels[f] = true
		}
	})
	for _, tag := range []string{"h1", "main", "title", "header", "footer"} {
		if count[tag] != 1 {
			t.Errorf("%d <%s>", count[tag], tag)
		}
	}
	if title := textOf(find(doc, "title")); strings.HasPrefix(title, "–") {
		t.Errorf("title is %q", title)
	}
	primary := 0
	each(doc, func(n *html.Node) {
		if n.Type != html.ElementNode {
			return
		}
		class := " " + attr(n, "class") + " "
		if strings.Contains(class, " button ") && (strings.Contains(class, " primary ") || strings.Contains(class, " danger ")) {
			primary++
		}
		switch n.Data {
		case "a", "button", "h1", "h2", "h3", "th", "summary", "label", "dt", "caption":
			if textOf(n) == "" {
				t.Errorf("an empty <%s>", n.Data)
			}
			if n.Data == "a" && attr(n, "href") == "" {
				t.Errorf("a link to nowhere: %s", textOf(n))
			}
		case "input", "select":
			if attr(n, "type") != "hidden" && (!labels[attr(n, "id")] || attr(n, "autocomplete") == "") {
				t.Errorf("input %s has no label or no autocomplete", attr(n, "name"))
			}
		case "form":
			// What changes nothing may be asked for by its address.
			acts := attr(n, "method") != "get"
			each(n, func(n *html.Node) { acts = acts || attr(n, "name") == FieldNonce })
			if acts && attr(n, "method") != "post" || attr(n, "action") == "" {
				t.Errorf("form to %q by %q", attr(n, "action"), attr(n, "method"))
			}
		case "svg":
			if attr(n, "role") == "img" {
				if title := find(n, "title"); title == nil || textOf(title) == "" || attr(n, "aria-labelledby") != attr(title, "id") {
					t.Error("a drawing without a title")
				}
			} else if attr(n, "aria-hidden") != "true" || textOf(n.Parent) == "" {
				t.Errorf("an icon without a word in <%s>", n.Parent.Data)
			}
		case "ul", "ol", "dl":
			if n.FirstChild == nil || strings.TrimSpace(textOf(n)) == "" && attr(n, "class") != "" {
				t.Errorf("an empty list in <%s class=%s>", n.Parent.Data, attr(n.Parent, "class"))
			}
		}
		if disabled := attr(n, "disabled"); disabled != "" {
			t.Error("a disabled control")
		}
		for _, key := range []string{"aria-describedby", "aria-labelledby"} {
			for ref := range strings.FieldsSeq(attr(n, key)) {
				if !ids[ref] {
					t.Errorf("%s=%s names nothing", key, ref)
				}
			}
		}
		if href := attr(n, "href"); strings.HasPrefix(href, "#") && !ids[href[1:]] {
			t.Errorf("link %s leads nowhere", href)
		}
	})
	if primary > 1 {
		t.Errorf("%d primary buttons", primary)
	}
}

// TestWords holds the sentences that carry money and promises.
func TestWords(t *testing.T) {
	r := renderer(t, options())
	iso := strings.NewReplacer("\u2068", "", "\u2069", "", "\u00a0", " ")
	words := map[string][]string{
		"overview":                           {"Billing for Northwind Ltd", "about €58.80 on 1 June 2026", "€49.00 per month", "4 at €12.25 per month each", "Renews on 1 June 2026.", "€12.00 credit", "United Kingdom"},
		"overview-past-due":                  {"Past due: €58.80 was due on 1 May 2026. The payment with Visa ending 4242 did not go through. There was not enough money in the account. The next try is on 17 May 2026, by itself.", "Pay €58.80", "€4.00 owed"},
		"overview-ending":                    {"Ending: plan “Team” ends on 1 June 2026.", "Keep plan “Team”", "Ends 1 June 2026"},
		"overview-waiting":                   {"€20.90 can be paid until 15 May 2026, 12:02 UTC; after that the change is dropped.", "See what to do", "Use another card", "Drop this change"},
		"preview":                            {"Pay €20.90 and switch to plan “Team”", "credit −€11.03", "14 May 2026, 13:02 UTC to 1 June 2026", "Paid with Visa ending 4242", "4 × Team", "Unused 1 × Basic", "Changes: Seats, 5 to 1,250", "In this plan: Rooms: 3", "Only in your plan now: Boards: 2"},
		"preview-balance":                    {"Pay €8.90 and change the quantity to 4", "From your balance credit −€12.00"},
		"preview-credit":                     {"Switch to plan “Basic”", "€31.00 goes to your balance, not to your card.", "The numbers changed while you were here. Nothing was charged."},
		"preview-moved":                      {"The price changed while you were here: now €20.90 instead of €21.60. Nothing was charged."},
		"preview-trial":                      {"Your trial ends now and you pay today.", "Pay €20.90 and switch to yearly payment"},
		"preview-invoiced":                   {"Switch to plan “Team” and get an invoice for €20.90", "due on 13 June 2026"},
		"preview-no-method":                  {"Add a payment method"},
		"receipt-cancel":                     {"Plan “Team” is cancelled", "It ends on 1 June 2026 and does not renew.", "Keep plan “Team” after all", "Until 1 June 2026"},
		"receipt-declined":                   {"Your bank declined the payment", "You are still on plan “Basic” and nothing was charged.", "Your change waits until 15 May 2026, 12:02 UTC.", "Use another card", "Drop this change", "Basic to Team"},
		"receipt-checking":                   {"We sent it at 13:02 UTC and have no answer yet. Please don’t send it again.", "Check again"},
		"receipt-refused":                    {"€20.90 was not paid."},
		"cancel":                             {"Cancel plan “Team”", "Keep plan “Team”"},
		"plan":                               {"See what plan “Enterprise” costs you", "€396.00 per month 4 at €99.00 per month each", "Seats: 1,250", "Every 3 months"},
		"plan-usage":                         {"Active Billed by usage Renews on", "Your plan Billed by usage Team", "€12.25 per month", "€114.00 per month 6, priced in steps"},
		"preview-usage":                      {"Pay as you go Billed by usage To"},
		"plan-ending":                        {"€290.00 per year", "€1,160.00 per year 4 at €290.00 per year each About €96.67 a month."},
		"message-link_too_soon":              {"again in 5 seconds."},
		"message-provider_down_nothing_sent": {"Stripe isn’t answering. Nothing was sent, nothing changed and you haven’t been charged."},
		"payment-empty":                      {"Seattle, WA 98122"},
		"leave-vendor":                       {"You are going to Acme", "Continue to Acme"},
	}
	maps.Copy(words, payWords)
	for name, want := range words {
		p := fixtures()[name]
		if p == nil {
			t.Fatalf("no fixture %s", name)
		}
		text := iso.Replace(textOf(find(parsePage(t, r, "en", p), "body")))
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s does not say %q:\n%s", name, w, text)
			}
		}
	}
	for name, p := range fixtures() {
		text := strings.ToLower(textOf(find(parsePage(t, r, "en", p), "main")))
		for _, never := range []string{"we e-mail", "is on its way to", "stolen", "fraud", "won’t be charged again", "oops"} {
			if strings.Contains(text, never) {
				t.Errorf("%s promises %q", name, never)
			}
		}
	}
}

// TestNounsAreIsolated: a plan's name stands in its own bdi in a sentence, and
// between isolates in a title.
func TestNounsAreIsolated(t *testing.T) {
	r := renderer(t, options())
	var buf bytes.Buffer
	if err := r.Render(&buf, "en", fixtures()["cancel"]); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"<title>Cancel plan “\u2068Team\u2069” – \u2068Acme\u2069 billing</title>",
		`Keep plan “<bdi translate="no">Team</bdi>”`,
		`<bdi translate="no" class="money">€49.00</bdi>`,
		`<time datetime="2026-06-01">1 June 2026</time>`,
	} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}
