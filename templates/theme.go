package templates

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Theme is what a vendor may choose: its name, its logo, and one accent colour
// for each of the modes. Contrast is ours: everything else is derived from the
// accents, and a theme that cannot be read is refused.
type Theme struct {
	// Name is the vendor's name as customers know it. Required.
	Name string
	// LogoURL is a path on the portal's own origin ("/logo.svg"), or "" for
	// none. It stands beside the name and is decorative.
	LogoURL string
	// AccentLight and AccentDark are colours like "#1F5FD6". Default for
	// AccentLight: the portal's blue; for AccentDark: AccentLight, made
	// lighter until it can be seen on the dark surface.
	AccentLight, AccentDark string
}

// The portal's own colours that an accent must be read against.
type mode struct {
	name                string
	bg, surface         rgb
	dark                bool
	accent              rgb // where the theme has none
	weakShare           float64
	lightText, darkText rgb // candidates for text on the accent
}

var modes = [2]mode{
	{
		name: "light", bg: mustColour("#F7F8FA"), surface: mustColour("#FFFFFF"), accent: mustColour("#1F5FD6"), weakShare: 0.1,
		lightText: mustColour("#FFFFFF"), darkText: mustColour("#16181D"),
	},
	{
		name: "dark", bg: mustColour("#0F1216"), surface: mustColour("#171B21"), dark: true, accent: mustColour("#7FB0FF"), weakShare: 0.18,
		lightText: mustColour("#FFFFFF"), darkText: mustColour("#0B1B33"),
	},
}

const (
	readable = 4.5 // WCAG 2.2 1.4.3, text
	visible  = 3.0 // WCAG 2.2 1.4.11, controls
	// apart is what an accent must differ from the surface at the very least
	// for a filled button to look like one, its border aside.
	apart = 1.15
)

// css checks the theme and derives its style sheet.
func (t Theme) css() ([]byte, error) {
	light, dark := t.AccentLight, t.AccentDark
	if light == "" && dark != "" {
		return nil, fmt.Errorf("theme: a dark accent (%s) without a light one; give both, or only the light one", dark)
	}
	var b strings.Builder
	for i, m := range modes {
		accent, given := m.accent, []string{light, dark}[i]
		var err error
		switch {
		case given != "":
			accent, err = parseColour(given)
		case m.dark && light != "":
			accent, err = parseColour(light)
			accent = accent.shift(m.dark, func(c rgb) bool { return contrast(c, m.surface) >= readable })
		}
		if err != nil {
			return nil, fmt.Errorf("theme: %w", err)
		}
		vars, err := m.derive(accent)
		if err != nil {
			return nil, err
		}
		if m.dark {
			fmt.Fprintf(&b, "@media screen and (prefers-color-scheme: dark) {\n:root {\n%s}\n}\n", vars)
		} else {
			fmt.Fprintf(&b, ":root {\n%s}\n", vars)
		}
	}
	return []byte(b.String()), nil
}

// derive makes the mode's custom properties from its accent, and refuses, with
// the numbers, what cannot be read.
func (m mode) derive(accent rgb) (string, error) {
	if c := contrast(accent, m.surface); c < apart {
		return "", fmt.Errorf("theme: accent %s has a contrast of %.2f:1 to the %s surface %s, where %.2f:1 is the least that can be told apart; choose a %s one",
			accent, c, m.name, m.surface, apart, map[bool]string{false: "darker", true: "lighter"}[m.dark])
	}
	on := m.lightText
	if contrast(on, accent) < readable {
		on = m.darkText
	}
	if contrast(on, accent) < readable {
		on = rgb{}
	}
	// Hovering moves the fill away from its text, so it stays readable.
	hover := accent.lighter(map[bool]float64{false: -0.08, true: 0.08}[luminance(on) < luminance(accent)])
	weak := accent.mix(m.surface, m.weakShare)
	// The ink of links and selected borders: the accent, moved away from the
	// surfaces until it can be read on all of them.
	ink := accent.shift(m.dark, func(c rgb) bool {
		return contrast(c, m.surface) >= readable && contrast(c, m.bg) >= readable && contrast(c, weak) >= readable
	})
	edge := accent
	if contrast(accent, m.surface) < visible {
		edge = ink
	}
	for _, p := range []struct {
		what   string
		a, b   rgb
		atBest float64
	}{
		{"text on the accent", on, accent, readable},
		{"text on the accent under the pointer", on, hover, readable},
		{"links on the surface", ink, m.surface, readable},
		{"links on the page", ink, m.bg, readable},
		{"links on the weak accent", ink, weak, readable},
		{"the edge of a button", edge, m.surface, visible},
	} {
		if c := contrast(p.a, p.b); c < p.atBest {
			return "", fmt.Errorf("theme: accent %s in %s mode: %s (%s on %s) has a contrast of %.2f:1, and %.1f:1 is needed", accent, m.name, p.what, p.a, p.b, c, p.atBest)
		}
	}
	return fmt.Sprintf("--accent: %s;\n--accent-hover: %s;\n--on-accent: %s;\n--accent-ink: %s;\n--accent-weak: %s;\n--accent-edge: %s;\n",
		accent, hover, on, ink, weak, edge), nil
}

// rgb is a colour in sRGB, each part from 0 to 1.
type rgb [3]float64

func parseColour(s string) (rgb, error) {
	h, ok := strings.CutPrefix(s, "#")
	n, err := strconv.ParseUint(h, 16, 32)
	if !ok || err != nil || len(h) != 6 {
		return rgb{}, fmt.Errorf("%q is no colour; write six hexadecimal digits, like #1F5FD6", s)
	}
	return rgb{float64(n>>16&255) / 255, float64(n>>8&255) / 255, float64(n&255) / 255}, nil
}

// mustColour is parseColour for the constants of this file.
func mustColour(s string) rgb {
	c, err := parseColour(s)
	if err != nil {
		panic(err)
	}
	return c
}

func (c rgb) String() string {
	n := func(f float64) int { return int(math.Round(min(max(f, 0), 1) * 255)) }
	return fmt.Sprintf("#%02X%02X%02X", n(c[0]), n(c[1]), n(c[2]))
}

// round is c as a browser will see it, after it was written down.
func (c rgb) round() rgb { return mustColour(c.String()) }

// luminance is WCAG 2.2's relative luminance.
func luminance(c rgb) float64 {
	l := func(f float64) float64 {
		if f <= 0.04045 {
			return f / 12.92
		}
		return math.Pow((f+0.055)/1.055, 2.4)
	}
	return 0.2126*l(c[0]) + 0.7152*l(c[1]) + 0.0722*l(c[2])
}

// contrast is WCAG 2.2's contrast ratio, from 1 to 21.
func contrast(a, b rgb) float64 {
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func (c rgb) mix(with rgb, share float64) rgb {
	for i := range c {
		c[i] = c[i]*share + with[i]*(1-share)
	}
	return c.round()
}

// lighter moves c by d of HSL lightness, keeping its hue.
func (c rgb) lighter(d float64) rgb {
	hi, lo := max(c[0], c[1], c[2]), min(c[0], c[1], c[2])
	l, chroma := (hi+lo)/2, hi-lo
	sat, hue := 0.0, 0.0
	if chroma > 0 {
		sat = chroma / (1 - math.Abs(2*l-1))
		switch hi {
		case c[0]:
			hue = math.Mod((c[1]-c[2])/chroma+6, 6)
		case c[1]:
			hue = (c[2]-c[0])/chroma + 2
		default:
			hue = (c[0]-c[1])/chroma + 4
		}
	}
	l = min(max(l+d, 0), 1)
	chroma = (1 - math.Abs(2*l-1)) * sat
	x := chroma * (1 - math.Abs(math.Mod(hue, 2)-1))
	m := l - chroma/2
	out := [6]rgb{{chroma, x, 0}, {x, chroma, 0}, {0, chroma, x}, {0, x, chroma}, {x, 0, chroma}, {chroma, 0, x}}[int(hue)%6]
	for i := range out {
		out[i] += m
	}
	return out.round()
}

// shift moves c in small steps, lighter or darker, until it will do.
func (c rgb) shift(lighter bool, do func(rgb) bool) rgb {
	d := -0.01
	if lighter {
		d = 0.01
	}
	for i := 0; i <= 100; i++ {
		if s := c.lighter(float64(i) * d); do(s) {
			return s
		}
	}
	return c
}
