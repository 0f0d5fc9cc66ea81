package templates

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

func TestThemeRefuses(t *testing.T) {
	for _, c := range []struct {
		theme Theme
		want  string
	}{
		{Theme{AccentLight: "blue"}, "#1F5FD6"},
		{Theme{AccentLight: "#12345"}, "six hexadecimal digits"},
		{Theme{AccentLight: "#FFFFFF"}, "contrast of 1.00:1"},
		{Theme{AccentLight: "#1F5FD6", AccentDark: "#171B21"}, "dark surface #171B21"},
		{Theme{AccentDark: "#7FB0FF"}, "without a light one"},
	} {
		if _, err := c.theme.css(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.theme, err, c.want)
		}
	}
}

var property = regexp.MustCompile(`--([a-z-]+): (#[0-9A-F]{6});`)

func properties(css string) (light, dark map[string]rgb) {
	parts := strings.SplitN(css, "@media screen and (prefers-color-scheme: dark)", 2)
	read := func(s string) map[string]rgb {
		m := map[string]rgb{}
		for _, p := range property.FindAllStringSubmatch(s, -1) {
			m[p[1]] = mustColour(p[2])
		}
		return m
	}
	light, dark = read(parts[0]), map[string]rgb{}
	if len(parts) == 2 {
		dark = read(parts[1])
	}
	return light, dark
}

// TestThemeContrast: whatever accent is taken, everything drawn with it can be
// read in both modes.
func TestThemeContrast(t *testing.T) {
	colours := []string{"#1F5FD6", "#FFEB3B", "#000000", "#767676", "#777777", "#C8442B", "#00FF00", "#808080", "#FF00FF", "#0A0A0A", "#F5F5DC"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		colours = append(colours, fmt.Sprintf("#%06X", random.IntN(1<<24)))
	}
	taken := 0
	for _, c := range colours {
		css, err := Theme{AccentLight: c}.css()
		if err != nil {
			if !regexp.MustCompile(`\d\.\d\d:1`).MatchString(err.Error()) {
				t.Errorf("%s is refused without the numbers: %v", c, err)
			}
			continue
		}
		taken++
		light, dark := properties(string(css))
		for i, v := range []map[string]rgb{light, dark} {
			m := modes[i]
			for what, p := range map[string][3]any{
				"text on accent": {v["on-accent"], v["accent"], 4.5}, "text on hover": {v["on-accent"], v["accent-hover"], 4.5},
				"ink on surface": {v["accent-ink"], m.surface, 4.5}, "ink on bg": {v["accent-ink"], m.bg, 4.5}, "ink on weak": {v["accent-ink"], v["accent-weak"], 4.5},
				"edge": {v["accent-edge"], m.surface, 3.0},
			} {
				if got := contrast(p[0].(rgb), p[1].(rgb)); got < p[2].(float64) {
					t.Errorf("%s %s: %s is %.2f", c, m.name, what, got)
				}
			}
		}
	}
	if taken < len(colours)*9/10 {
		t.Errorf("only %d of %d accents are taken", taken, len(colours))
	}
}

// TestStyleSheet holds the style sheet to its own rules.
func TestStyleSheet(t *testing.T) {
	b, err := assetFiles.ReadFile("assets/portal.css")
	if err != nil {
		t.Fatal(err)
	}
	css := regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(string(b), "")
	for _, never := range []string{
		`\b(margin|padding|border|inset)-(left|right|top|bottom)\b`, `[{;\s](left|right|top|bottom|width|height|min-width|min-height)\s*:`,
		`text-align:\s*(left|right)`, `float\s*:`, `url\(`, `@import`, `@font-face`, `shadow`, `position:\s*(fixed|sticky)`, `text-transform`, `letter-spacing`, `animation`,
	} {
		if m := regexp.MustCompile(never).FindString(css); m != "" {
			t.Errorf("the style sheet has %q", m)
		}
	}
	for _, m := range regexp.MustCompile(`font-size:\s*([0-9.]+)rem`).FindAllStringSubmatch(css, -1) {
		if m[1] < "0.875" {
			t.Errorf("text of %s rem is below 14 px", m[1])
		}
	}
	light, dark := properties(css)
	for mode, v := range map[string]map[string]rgb{"light": light, "dark": dark} {
		for _, p := range []struct {
			fg, bg string
			min    float64
		}{
			{"text", "bg", 7},
			{"text", "surface", 7},
			{"muted", "bg", 4.5},
			{"muted", "surface", 4.5},
			{"muted", "sunken", 4.5},
			{"text", "sunken", 7},
			{"control", "surface", 3},
			{"control", "bg", 3},
			{"on-accent", "accent", 4.5},
			{"on-accent", "accent-hover", 4.5},
			{"accent-ink", "bg", 4.5},
			{"accent-ink", "surface", 4.5},
			{"focus", "bg", 3},
			{"focus", "surface", 3},
			{"ok", "ok-bg", 4.5},
			{"warn", "warn-bg", 4.5},
			{"danger", "danger-bg", 4.5},
			{"info", "info-bg", 4.5},
			{"danger", "bg", 4.5},
			{"danger", "surface", 4.5},
			{"on-danger", "danger", 4.5},
			{"on-danger", "danger-hover", 4.5},
			{"text", "ok-bg", 7},
			{"text", "warn-bg", 7},
			{"text", "danger-bg", 7},
			{"text", "info-bg", 7},
		} {
			if c := contrast(v[p.fg], v[p.bg]); c < p.min {
				t.Errorf("%s: %s on %s is %.2f, want %.1f", mode, p.fg, p.bg, c, p.min)
			}
		}
	}
}
