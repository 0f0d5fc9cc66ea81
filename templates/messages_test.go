package templates

import (
	"encoding/json"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"
)

// catalogueFile reads en.json as it is, so that what the loader does is held
// to it.
func catalogueFile(t *testing.T) map[string]map[string]string {
	t.Helper()
	buf, err := messageFiles.ReadFile("messages/en.json")
	if err != nil {
		t.Fatal(err)
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(buf, &raw); err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]string{}
	for k, v := range raw {
		var s string
		if json.Unmarshal(v, &s) == nil {
			out[k] = map[string]string{"other": s}
			continue
		}
		m := map[string]string{}
		if err := json.Unmarshal(v, &m); err != nil {
			t.Fatalf("%s: %v", k, err)
		}
		out[k] = m
	}
	return out
}

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

func TestMessagesHavePluralForms(t *testing.T) {
	for key, forms := range catalogueFile(t) {
		// CLDR: English whole numbers take "one" and "other".
		names := slices.Sorted(maps.Keys(forms))
		if !slices.Equal(names, []string{"other"}) && !slices.Equal(names, []string{"one", "other"}) {
			t.Errorf("%s has the forms %v", key, names)
		}
		if len(forms) == 2 && !strings.Contains(forms["other"], "{count}") {
			t.Errorf("%s has plural forms and no {count}", key)
		}
		if len(forms) == 1 && strings.Contains(forms["other"], "{count}") {
			t.Errorf("%s counts without plural forms", key)
		}
		for _, s := range forms {
			if strings.ContainsAny(s, "<>&\"'") {
				t.Errorf("%s holds markup or a straight quote: %s", key, s)
			}
		}
	}
}

func TestPseudoLocale(t *testing.T) {
	for key, forms := range catalogueFile(t) {
		for form, s := range forms {
			p := pseudoText(s)
			if want, got := placeholder.FindAllString(s, -1), placeholder.FindAllString(p, -1); !slices.Equal(want, got) {
				t.Errorf("%s %s: placeholders %v became %v", key, form, want, got)
			}
			if !strings.HasPrefix(p, "⟦") || !strings.HasSuffix(p, "⟧") {
				t.Errorf("%s: no brackets: %s", key, p)
			}
			bare, was := placeholder.ReplaceAllString(p, ""), placeholder.ReplaceAllString(s, "")
			if n, m := utf8.RuneCountInString(bare), utf8.RuneCountInString(was); m > 10 && (n < m*13/10 || n > m*2) {
				t.Errorf("%s: %d letters became %d: %s", key, m, n, p)
			}
			if strings.ContainsAny(bare, "abcdefghijklmnoprstuvwyz") {
				t.Errorf("%s: letters without accent: %s", key, p)
			}
		}
	}
}

// TestPseudoPages shows that every word of ours on every page went through the
// catalogue: in the pseudo-locale none is left without an accent. Values from
// outside are all "7" there.
func TestPseudoPages(t *testing.T) {
	opt := options()
	opt.Theme.Name, opt.ProviderName = "7", "7"
	r := renderer(t, opt)
	plainWord := regexp.MustCompile(`[A-Za-z]{2,}`)
	for name, p := range fixtures() {
		eachString(p, func(path, s string) string {
			if isEnum(path) || strings.Contains(path, "Currency") {
				return s
			}
			return "7"
		})
		doc := parsePage(t, r, Pseudo, p)
		var walk func(n *html.Node)
		walk = func(n *html.Node) {
			if n.Type == html.ElementNode && (n.Data == "bdi" || n.Data == "time" || n.Data == "code" || attr(n, "translate") == "no") {
				return
			}
			if n.Type == html.TextNode {
				for _, w := range plainWord.FindAllString(n.Data, -1) {
					// Times inside messages carry the zone and months of the date library.
					t.Errorf("%s: %q is in no catalogue: %q", name, w, n.Data)
				}
			}
			for c := n.FirstChild; c != nil; c = c.NextSibling {
				walk(c)
			}
		}
		walk(find(doc, "main"))
		walk(find(doc, "header"))
		walk(find(doc, "footer"))
	}
}

var action = regexp.MustCompile(`(?s)\{\{.*?\}\}`)

// TestNoBareText: in the templates themselves every text and every attribute
// that is read out comes from an action.
func TestNoBareText(t *testing.T) {
	readOut := []string{"title", "alt", "aria-label", "placeholder", "label", "content"}
	err := fs.WalkDir(pageFiles, "html", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := pageFiles.ReadFile(path)
		if err != nil {
			return err
		}
		z := html.NewTokenizer(strings.NewReader(action.ReplaceAllString(string(b), "")))
		for {
			switch z.Next() {
			case html.ErrorToken:
				return nil
			case html.TextToken:
				if text := strings.TrimSpace(string(z.Raw())); text != "" {
					t.Errorf("%s: bare text %q", path, text)
				}
			case html.StartTagToken, html.SelfClosingTagToken:
				tok := z.Token()
				if tok.Data == "style" || tok.Data == "script" && !slices.ContainsFunc(tok.Attr, func(a html.Attribute) bool { return a.Key == "src" }) {
					t.Errorf("%s: an inline <%s> is forbidden by the content security policy", path, tok.Data)
				}
				for _, a := range tok.Attr {
					if slices.Contains(readOut, a.Key) && tok.Data != "meta" && strings.ContainsFunc(a.Val, unicode.IsLetter) {
						t.Errorf("%s: %s=%q is no action", path, a.Key, a.Val)
					}
					if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
						t.Errorf("%s: <%s %s> is forbidden by the content security policy", path, tok.Data, a.Key)
					}
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKeys holds templates and code to the catalogue: no key missing, none
// left over.
func TestKeys(t *testing.T) {
	var source strings.Builder
	files, err := sources(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range files {
		source.WriteString(s)
	}
	catalogue := catalogueFile(t)
	used := map[string]bool{}
	prefixes := []string{"error.field.", "method.", "per.", "zip."} // from code, by value
	for _, m := range regexp.MustCompile(`\b(?:T|S) "([a-z0-9_.]+)"`).FindAllStringSubmatch(source.String(), -1) {
		used[m[1]] = true
	}
	for _, m := range regexp.MustCompile(`"(?:Label|Caption|Hint)" "([a-z0-9_.]+)"`).FindAllStringSubmatch(source.String(), -1) {
		used[m[1]] = true
	}
	for _, m := range regexp.MustCompile(`\(key "([a-z0-9_.]+)" [^ ]+ "([a-z_]+)"\)`).FindAllStringSubmatch(source.String(), -1) {
		used[m[1]+"."+m[2]] = true
		prefixes = append(prefixes, m[1]+".")
	}
	for _, how := range []string{"pay", "free", "invoice"} { // composed in confirm-text
		for _, what := range []string{"plan", "quantity", "both", "interval.month"} {
			used["preview."+how+"."+what] = true
		}
		prefixes = append(prefixes, "preview."+how+".interval.")
	}
	prefixes = append(prefixes, "field.")                  // composed in fieldWord
	for _, state := range []string{"waiting", "refused"} { // composed in receipt-title
		used["receipt."+state+".other"] = true
	}
	for _, k := range []string{"format.stamp", "format.day_month", "format.month_year", "field.name", "error.field.invalid"} {
		used[k] = true
	}
	for k := range statusTags {
		used["status."+k] = true
	}
	for k := range paymentTags {
		used["receipt.payment."+k] = true
	}
	for _, k := range []string{
		"receipt.payment.other", "receipt.waiting.card_declined", "receipt.refused.card_declined", "status.ending.on", "invoice.status.paid", "invoice.status.pending", "invoice.status.failed", "invoice.status.open",
		"invoice.status.other", "invoice.status.void", "invoice.status.uncollectible", "status.other",
	} {
		used[k] = true
	}
	for k := range used {
		if catalogue[k] == nil {
			t.Errorf("no message %s", k)
		}
	}
	for k := range catalogue {
		if !used[k] && !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(k, p) }) {
			t.Errorf("message %s is not used", k)
		}
	}
	for _, kind := range messageKinds {
		if catalogue["message."+kind] == nil {
			t.Errorf("message kind %s has no title", kind)
		}
		if kind != "provider_down" && kind != "provider_down_nothing_sent" && catalogue["message.text."+kind] == nil {
			t.Errorf("message kind %s has no text", kind)
		}
	}
}

func TestParseText(t *testing.T) {
	for _, bad := range []string{"{", "{}", "a } b", "{b}open", "{/b}", "{b}{s}x{/s}{/b}", "{Amount}", "{a b}"} {
		if _, err := parseText(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}
