package templates

import (
	"embed"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/nicksnyder/go-i18n/v2/i18n"
	i18ntemplate "github.com/nicksnyder/go-i18n/v2/i18n/template"
	"golang.org/x/text/language"
)

// Pseudo is the locale made out of the English texts: accents, about 40 %
// longer, in brackets. It shows texts that never went through the catalogue
// and layouts that are too tight.
const Pseudo = "en-XA"

//go:embed messages/*.json
var messageFiles embed.FS

// text is a message, cut once into literals, placeholders and marks, so that
// a page does not parse it again. It satisfies go-i18n's ParsedTemplate.
type text struct{ parts []part }

type part struct {
	raw, escaped string // a literal, as plain text and as HTML
	arg          string // or the name of a placeholder
	open, close  string // or a mark, as HTML; nothing in plain text
}

// marks are the only markup a message can hold. Everything else in it is
// escaped.
var marks = map[string]part{
	"b":  {open: "<strong>"},
	"/b": {close: "</strong>"},
	"s":  {open: `<span class="small">`},
	"/s": {close: "</span>"},
	"h":  {open: `<span class="hidden">`}, // heard, not seen
	"/h": {close: "</span>"},
}

// parseText cuts a message: "Pay {amount} and {b}switch{/b}".
func parseText(src string) (*text, error) {
	t := &text{}
	depth := ""
	for src != "" {
		lit, rest, found := strings.Cut(src, "{")
		if strings.Contains(lit, "}") {
			return nil, fmt.Errorf("message %q has a } without its {", src)
		}
		if lit != "" {
			t.parts = append(t.parts, part{raw: lit, escaped: template.HTMLEscapeString(lit)})
		}
		if !found {
			break
		}
		name, rest, found := strings.Cut(rest, "}")
		if !found || name == "" {
			return nil, fmt.Errorf("message %q has a { without its }", src)
		}
		if m, ok := marks[name]; ok {
			if opening := m.open != ""; opening != (depth == "") || !opening && "/"+depth != name {
				return nil, fmt.Errorf("message %q: marks do not pair up at {%s}", src, name)
			}
			depth = ""
			if m.open != "" {
				depth = name
			}
			t.parts = append(t.parts, m)
		} else {
			if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsLower(r) && !unicode.IsDigit(r) && r != '_' }) {
				return nil, fmt.Errorf("message %q: {%s} is no placeholder", src, name)
			}
			t.parts = append(t.parts, part{arg: name})
		}
		src = rest
	}
	if depth != "" {
		return nil, fmt.Errorf("marks do not pair up: {%s} stays open", depth)
	}
	return t, nil
}

// args are a message's placeholders.
type args struct {
	pairs []any          // "name", value, …
	named map[string]any // or by name
}

func (a args) get(name string) (any, bool) {
	for i := 0; i+1 < len(a.pairs); i += 2 {
		if a.pairs[i] == name {
			return a.pairs[i+1], true
		}
	}
	v, ok := a.named[name]
	return v, ok
}

// call is what a message is executed with.
type call struct {
	local *local
	args  args
	html  bool
}

// Execute fills in the placeholders. It implements go-i18n's ParsedTemplate.
func (t *text) Execute(data any) (string, error) {
	c, ok := data.(call)
	if !ok {
		return "", fmt.Errorf("message executed with %T", data)
	}
	var b strings.Builder
	for i := range t.parts {
		p := &t.parts[i]
		switch {
		case p.arg != "":
			v, ok := c.args.get(p.arg)
			if !ok {
				return "", fmt.Errorf("no value for placeholder {%s}", p.arg)
			}
			if err := c.local.write(&b, v, c.html); err != nil {
				return "", err
			}
		case !c.html:
			b.WriteString(p.raw)
		case p.raw != "":
			b.WriteString(p.escaped)
		default:
			b.WriteString(p.open)
			b.WriteString(p.close)
		}
	}
	return b.String(), nil
}

// textParser makes go-i18n understand our message syntax.
type textParser struct{}

func (textParser) Cacheable() bool { return true }

func (textParser) Parse(src, _, _ string) (i18ntemplate.ParsedTemplate, error) { return parseText(src) }

// messages are the texts of one locale.
type messages struct {
	plain map[string]*text    // that need no plural form
	forms map[string]struct{} // that do
	loc   *i18n.Localizer     // chooses the plural form
}

// loadMessages reads the catalogues and makes the pseudo-locale. The first of
// the locales is the one that everything falls back to.
func loadMessages() (locales []string, byLocale map[string]*messages, err error) {
	bundle := i18n.NewBundle(language.English)
	buf, err := messageFiles.ReadFile("messages/en.json")
	if err != nil {
		return nil, nil, err
	}
	file, err := bundle.ParseMessageFileBytes(buf, "en.json")
	if err != nil {
		return nil, nil, fmt.Errorf("reading messages: %w", err)
	}
	pseudo := make([]*i18n.Message, len(file.Messages))
	for i, m := range file.Messages {
		pseudo[i] = pseudoMessage(m)
	}
	if err := bundle.AddMessages(language.MustParse(Pseudo), pseudo...); err != nil {
		return nil, nil, err
	}
	byLocale = map[string]*messages{}
	for _, set := range []struct {
		locale string
		list   []*i18n.Message
	}{{"en", file.Messages}, {Pseudo, pseudo}} {
		ms := &messages{plain: map[string]*text{}, forms: map[string]struct{}{}, loc: i18n.NewLocalizer(bundle, set.locale)}
		for _, m := range set.list {
			for _, src := range pluralForms(m) {
				t, err := parseText(src)
				if err != nil {
					return nil, nil, fmt.Errorf("%s: message %s: %w", set.locale, m.ID, err)
				}
				if len(pluralForms(m)) == 1 {
					ms.plain[m.ID] = t
				} else {
					ms.forms[m.ID] = struct{}{}
				}
			}
		}
		locales = append(locales, set.locale)
		byLocale[set.locale] = ms
	}
	return locales, byLocale, nil
}

// pluralForms returns the forms of m that are there, by CLDR's names.
func pluralForms(m *i18n.Message) map[string]string {
	f := map[string]string{"zero": m.Zero, "one": m.One, "two": m.Two, "few": m.Few, "many": m.Many, "other": m.Other}
	maps.DeleteFunc(f, func(_, v string) bool { return v == "" })
	return f
}

func (ms *messages) has(key string) bool {
	_, ok := ms.forms[key]
	return ok || ms.plain[key] != nil
}

var errNoMessage = errors.New("no such message")

// say renders a message. A message with plural forms takes its form from the
// placeholder "count".
func (ms *messages) say(key string, c call) (string, error) {
	if t, ok := ms.plain[key]; ok {
		s, err := t.Execute(c)
		if err != nil {
			return "", fmt.Errorf("message %s: %w", key, err)
		}
		return s, nil
	}
	if _, ok := ms.forms[key]; !ok {
		return "", fmt.Errorf("message %s: %w", key, errNoMessage)
	}
	count, ok := c.args.get("count")
	if !ok {
		return "", fmt.Errorf("message %s: no value for its plural form: pass \"count\"", key)
	}
	return ms.loc.Localize(&i18n.LocalizeConfig{
		MessageID: key, PluralCount: count, TemplateData: c, TemplateParser: textParser{},
	})
}

var accents = strings.NewReplacer(
	"a", "á", "b", "ƀ", "c", "ç", "d", "ð", "e", "é", "f", "ƒ", "g", "ĝ", "h", "ĥ", "i", "î", "j", "ĵ", "k", "ķ", "l", "ļ", "m", "ɱ",
	"n", "ñ", "o", "ö", "p", "þ", "r", "ŕ", "s", "š", "t", "ţ", "u", "û", "v", "ṽ", "w", "ŵ", "y", "ý", "z", "ž",
	"A", "Å", "B", "Ɓ", "C", "Ç", "D", "Ð", "E", "É", "F", "Ƒ", "G", "Ĝ", "H", "Ĥ", "I", "Î", "J", "Ĵ", "K", "Ķ", "L", "Ļ", "M", "Ṁ",
	"N", "Ñ", "O", "Ö", "P", "Þ", "R", "Ŕ", "S", "Š", "T", "Ţ", "U", "Û", "V", "Ṽ", "W", "Ŵ", "Y", "Ý", "Z", "Ž",
)

// pseudoText accents the letters outside {placeholders}, appends about 40 %
// and puts brackets round the whole.
func pseudoText(src string) string {
	if src == "" {
		return ""
	}
	var b strings.Builder
	letters := 0
	b.WriteString("⟦")
	for src != "" {
		lit, rest, found := strings.Cut(src, "{")
		letters += len(lit)
		b.WriteString(accents.Replace(lit))
		if !found {
			break
		}
		name, rest, _ := strings.Cut(rest, "}")
		b.WriteString("{" + name + "}")
		src = rest
	}
	filler := slices.Repeat([]string{"ñö", "ţéļļ", "šå", "ŵîð", "ļåñĝ"}, 1+letters/40)
	for i, n := 0, letters*2/5; n > 0 && i < len(filler); i++ {
		b.WriteString(" " + filler[i])
		n -= len([]rune(filler[i])) + 1
	}
	b.WriteString("⟧")
	return b.String()
}

func pseudoMessage(m *i18n.Message) *i18n.Message {
	p := *m
	for _, f := range []*string{&p.Zero, &p.One, &p.Two, &p.Few, &p.Many, &p.Other} {
		*f = pseudoText(*f)
	}
	return &p
}
