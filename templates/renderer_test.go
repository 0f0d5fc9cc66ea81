package templates

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"golang.org/x/net/html"
)

var update = flag.Bool("update", false, "write the golden files anew")

var assetHash = regexp.MustCompile(`\.[0-9a-f]{16}\.`)

func renderer(t testing.TB, opt Options) *Renderer {
	t.Helper()
	r, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGolden holds every page in every state to a file that was looked at.
func TestGolden(t *testing.T) {
	r := renderer(t, options())
	for name, p := range fixtures() {
		var buf bytes.Buffer
		if err := r.Render(&buf, "en", p); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := assetHash.ReplaceAll(buf.Bytes(), []byte(".HASH."))
		file := filepath.Join("testdata", name+".html")
		if *update {
			if err := os.WriteFile(file, got, 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Errorf("%s: %v (run with -update, then look at it)", name, err)
		} else if !bytes.Equal(want, got) {
			t.Errorf("%s differs from its golden file; run with -update and look at the difference", name)
		}
	}
	if files, _ := filepath.Glob("testdata/*.html"); len(files) != len(fixtures()) {
		t.Errorf("%d golden files for %d fixtures", len(files), len(fixtures()))
	}
}

func BenchmarkOverview(b *testing.B) {
	r := renderer(b, options())
	p := fixtures()["overview"]
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Render(io.Discard, "en", p); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOverride(t *testing.T) {
	opt := options()
	opt.Override = fstest.MapFS{"enter.html": {Data: []byte(`{{define "title"}}{{S "enter.title"}}{{end}}{{define "main"}}<h1>Ours, {{.Body.Name}}</h1>{{end}}`)}}
	r := renderer(t, opt)
	var buf bytes.Buffer
	if err := r.Render(&buf, "en", fixtures()["enter"]); err != nil || !strings.Contains(buf.String(), "<h1>Ours, Northwind Ltd</h1>") {
		t.Errorf("%v\n%s", err, buf.String())
	}
	buf.Reset()
	if err := r.Render(&buf, "en", fixtures()["cancel"]); err != nil || !strings.Contains(buf.String(), "<h1>Cancel plan") {
		t.Errorf("a page that is not overridden: %v", err)
	}
	for _, c := range []struct{ name, source, want string }{
		{"plan.html", "{{define \"main\"}}\n{{if}}\n{{end}}", "plan.html:2"},
		{"plan.html", "{{define \"main\"}}\n{{nothing .}}{{end}}", "plan.html:2"},
		{"plan.html", "{{define \"title\"}}{{end}}{{define \"main\"}}\n\n{{.Body.NoSuchField}}{{end}}", "plan.html:3"},
		{"plan.html", "{{define \"title\"}}{{end}}{{define \"main\"}}\n{{T \"no.such.key\"}}{{end}}", "plan.html:2"},
		{"plan.html", "{{define \"title\"}}{{end}}{{define \"main\"}}\n<a href=\"{{if .Body.Change.Allowed}}\"{{end}}>{{end}}", "plan.html:2"},
		{"plans.html", "", "plans.html stands in for nothing"},
	} {
		opt.Override = fstest.MapFS{c.name: {Data: []byte(c.source)}}
		if _, err := New(opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.source, err, c.want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, f := range map[string]func(*Options){
		"no name":       func(o *Options) { o.Theme.Name = "" },
		"no exponent":   func(o *Options) { o.Exponent = nil },
		"logo off-site": func(o *Options) { o.Theme.LogoURL = "https://cdn.example/logo.svg" },
		"logo //":       func(o *Options) { o.Theme.LogoURL = "//cdn.example/logo.svg" },
		"bad accent":    func(o *Options) { o.Theme.AccentLight = "#FFF" },
	} {
		opt := options()
		f(&opt)
		if _, err := New(opt); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFooterLinks(t *testing.T) {
	for link, want := range map[string]bool{
		"": true, "https://acme.example/legal": true, "HTTPS://acme.example": true, "mailto:help@acme.example": true,
		"mailto:help@acme.example?subject=Billing": true, "/help": true, "/": true,
		"help@acme.example": false, "acme.example/legal": false, "help": false, "?help": false, "#help": false,
		"//acme.example/legal": false, `/\acme.example/legal`: false, "/\t/acme.example": false,
		"http://acme.example/legal": false, "https:": false, "https:///legal": false, "https:legal": false, "https://:443/": false,
		"mailto:": false, "mailto:help": false, "javascript:alert(1)": false, "data:text/html,x": false, "tel:+15550100": false,
	} {
		for name, set := range map[string]func(*Options){
			"help":    func(o *Options) { o.HelpURL = link },
			"legal":   func(o *Options) { o.LegalURL = link },
			"privacy": func(o *Options) { o.PrivacyURL = link },
		} {
			opt := options()
			set(&opt)
			if _, err := New(opt); (err == nil) != want || err != nil && !strings.Contains(err.Error(), "the "+name+" link") {
				t.Errorf("%s %q: %v, want it accepted: %v", name, link, err, want)
			}
		}
	}
}

func TestMatch(t *testing.T) {
	r := renderer(t, options())
	for _, c := range []struct {
		preferred []string
		want      string
	}{
		{nil, "en"},
		{[]string{""}, "en"},
		{[]string{"en-GB"}, "en"},
		{[]string{"en-AU,en;q=0.8"}, "en"},
		{[]string{"de-AT,de;q=0.9,en;q=0.1"}, "en"},
		{[]string{"en-XA"}, Pseudo},
		{[]string{"", "en-XA"}, Pseudo},
		{[]string{"xx-invalid-😀", "en-XA"}, Pseudo},
		{[]string{"zh", "en"}, "en"},
		{[]string{strings.Repeat("de,", 5000), "en-XA"}, Pseudo},
	} {
		if got := r.Match(c.preferred...); got != c.want {
			t.Errorf("%.60q: %s, want %s", c.preferred, got, c.want)
		}
	}
}

func TestAssets(t *testing.T) {
	r := renderer(t, options())
	for name, contentType := range map[string]string{"portal.css": "text/css; charset=utf-8", "theme.css": "text/css; charset=utf-8", "icons.svg": "image/svg+xml", "checked.js": "text/javascript; charset=utf-8"} {
		p := r.AssetPath(name)
		if !strings.HasPrefix(p, PathAssets) || !assetHash.MatchString(p) {
			t.Errorf("%s is at %q", name, p)
		}
		body, got, immutable, ok := r.Asset(p)
		if !ok || !immutable || got != contentType || len(body) == 0 {
			t.Errorf("%s: %d bytes, %s, %v, %v", p, len(body), got, immutable, ok)
		}
	}
	for _, p := range []string{"/assets/portal.css", "/assets/../model.go", "", "/assets/LICENSE-icons.txt"} {
		if _, _, _, ok := r.Asset(p); ok {
			t.Errorf("%s is served", p)
		}
	}
	red := options()
	red.Theme.AccentLight = "#B3211B"
	if r.AssetPath("theme.css") == renderer(t, red).AssetPath("theme.css") {
		t.Error("two themes have one name")
	}
}

func TestRenderWritesAllOrNothing(t *testing.T) {
	r := renderer(t, options())
	var buf bytes.Buffer
	if err := r.Render(&buf, "en", &Page{Body: 7}); err == nil || buf.Len() != 0 {
		t.Errorf("%v, %d bytes written", err, buf.Len())
	}
	if err := r.Render(&buf, "tlh", fixtures()["enter"]); err != nil || !strings.Contains(buf.String(), `lang="en"`) {
		t.Errorf("an unknown locale: %v", err)
	}
	var wait sync.WaitGroup
	want := buf.String()
	for range 8 {
		wait.Go(func() {
			for range 20 {
				var b bytes.Buffer
				if err := r.Render(&b, "en", fixtures()["enter"]); err != nil || b.String() != want {
					t.Errorf("a page drawn at the same time as others differs: %v", err)
				}
			}
		})
	}
	wait.Wait()
}

// TestFieldNames: the forms post the fields that package pages reads.
func TestFieldNames(t *testing.T) {
	r := renderer(t, options())
	names := map[string]bool{}
	for _, p := range fixtures() {
		each(parsePage(t, r, "en", p), func(n *html.Node) { names[attr(n, "name")] = true })
	}
	for _, f := range []string{
		FieldNonce, FieldVersion, FieldToken, FieldPrice, FieldQuantity, FieldName, FieldEmail, FieldPhone,
		FieldLine1, FieldLine2, FieldCity, FieldState, FieldPostalCode, FieldCountry, "subscription", FieldMethod, FieldUse, FieldCurrency, FieldAmount + "eur", FieldInvoices + "eur", FieldAgreed + "eur",
	} {
		if !names[f] {
			t.Errorf("no form posts %s", f)
		}
	}
}
