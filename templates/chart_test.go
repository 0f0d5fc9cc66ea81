package templates

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// farWest is 12 hours behind UTC.
var farWest = time.FixedZone("far west", -12*3600)

// percent reads a share of the plot back.
func percent(t testing.TB, s string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !strings.HasSuffix(s, "%") {
		t.Fatalf("%q is no share", s)
	}
	return f
}

func TestAxis(t *testing.T) {
	for _, c := range []struct {
		low, high string
		whole     bool
		want      string
	}{
		{"0", "812", true, "[0 500 1000]"},
		{"0", "1000", true, "[0 500 1000]"},
		{"0", "1001", true, "[0 500 1000 1500]"},
		{"0", "6200", true, "[0 2000 4000 6000 8000]"},
		{"0", "3", true, "[0 1 2 3]"},
		{"0", "1", true, "[0 1]"},
		{"0", "1", false, "[0 0.5 1]"},
		{"0", "0", true, "[0 1]"},
		{"5", "7", true, "[0 2 4 6 8]"},
		{"-3", "7", true, "[-5 0 5 10]"},
		{"-9", "-2", true, "[-10 -5 0]"},
		{"0", "0.000001", false, "[0 0.0000005 0.000001]"},
		{"0", "1e30", true, "[0 500000000000000000000000000000 1000000000000000000000000000000]"},
	} {
		var got []string
		for _, d := range axis(dec(c.low), dec(c.high), c.whole) {
			got = append(got, d.String())
		}
		if s := "[" + strings.Join(got, " ") + "]"; s != c.want {
			t.Errorf("from %s to %s: %s, want %s", c.low, c.high, s, c.want)
		}
	}
}

func TestNumbers(t *testing.T) {
	l := english(t, farWest)
	for in, want := range map[string]string{
		"0": "0", "812": "812", "1234567": "1,234,567", "-1234": "−1,234", "1234.5": "1,234.5", "-0.25": "−0.25", "999999.999999999999": "999,999.999999999999",
		"0.1234567890123": "0.123456789012", "0.0000000000000001": "0.0000000000000001", "1e18": "1,000,000,000,000,000,000", "-1e18": "−1,000,000,000,000,000,000",
	} {
		if got := l.decimal(dec(in)); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

// checkChart holds a chart to its rules, whatever the points are.
func checkChart(t *testing.T, l *local, m Meter) {
	t.Helper()
	c, err := l.chart(m)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.Ticks); n < 2 || n > maxTicks {
		t.Errorf("%d ticks", n)
	}
	zero := false
	for i, tick := range c.Ticks {
		y := percent(t, tick.Y)
		if i > 0 && y >= percent(t, c.Ticks[i-1].Y) {
			t.Errorf("ticks do not rise: %v", c.Ticks)
		}
		if len([]rune(tick.Text)) > 8 {
			t.Errorf("a tick says %q", tick.Text)
		}
		zero = zero || tick.Text == "0" && tick.Y == c.Zero
	}
	if !zero {
		t.Errorf("zero is no tick: %v, %s", c.Ticks, c.Zero)
	}
	if len(c.Bars) > len(m.Points) {
		t.Errorf("%d bars for %d points", len(c.Bars), len(m.Points))
	}
	const slack = 0.002 // of rounding
	last := 0.0
	for _, b := range c.Bars {
		x, y, w, h := percent(t, b.X), percent(t, b.Y), percent(t, b.Width), percent(t, b.Height)
		if x < last-slack || w <= 0 || x+w > 100+slack || h <= 0 || y+h > 100+slack {
			t.Errorf("a bar outside or over another: %v", b)
		}
		last = x + w
		if base := percent(t, c.Zero); b.Kind != "missing" && y > base+slack || b.Kind != "missing" && y+h < base-slack {
			t.Errorf("a bar that does not stand on zero (%s): %v", c.Zero, b)
		}
	}
	wide, narrow := 0, 0
	for _, label := range c.Labels {
		wide++
		if label.Narrow {
			narrow++
		}
		if x := percent(t, label.X); x < 0 || x > 100 {
			t.Errorf("a label at %v", x)
		}
	}
	if len(m.Points) > 0 && (wide == 0 || narrow == 0) || wide > wideLabels || narrow > narrowDays {
		t.Errorf("%d labels, %d on a phone", wide, narrow)
	}
}

func TestChartOfManyPoints(t *testing.T) {
	l := english(t, farWest)
	for _, n := range []int{1, 2, 7, 28, 29, 30, 31, 92, 366, 400, 1200} {
		m := Meter{By: billing.Day}
		for i := range n {
			start := midnight(1, 1).AddDate(0, 0, i)
			m.Points = append(m.Points, Point{Start: start, End: start.AddDate(0, 0, 1), Value: decimal.NewFromInt(int64(i%7) + 1)})
		}
		checkChart(t, l, m)
		m.By = billing.Month
		checkChart(t, l, m)
	}
	// Labels are days in UTC, whatever the zone of the page.
	c, err := l.chart(meter())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, label := range c.Labels {
		got = append(got, label.Text)
	}
	if s := strings.Join(got, ", "); s != "1 May, 8 May, 15 May, 22 May, 29 May" {
		t.Error(s)
	}
	if c.Most == nil || c.Most.Start != midnight(5, 9) || !c.Open || !c.Later || c.Missing {
		t.Errorf("most %v", c.Most)
	}
}

func FuzzChart(f *testing.F) {
	for _, s := range []string{"812 40 0", "1e30 -1e30", "0.000001", "-5", "0 0 0", "1e40 1e-40", "999999.5 1000000", "m 5 m", "o5 l m 3", "0.0009"} {
		f.Add(s)
	}
	l := english(f, farWest)
	f.Fuzz(func(t *testing.T, s string) {
		m := Meter{By: billing.Day}
		for i, w := range strings.Fields(s) {
			p := Point{Start: midnight(1, 1).AddDate(0, 0, i), End: midnight(1, 1).AddDate(0, 0, i+1)}
			switch {
			case i >= 400:
				return
			case w == "m":
				p.State = PointMissing
			case w == "l":
				p.State = PointLater
			default:
				if strings.HasPrefix(w, "o") {
					p.State, w = PointOpen, w[1:]
				}
				d, err := decimal.NewFromString(w)
				// What is larger or finer never gets here: the pages refuse it.
				if err != nil || d.Exponent() < -40 || d.Exponent() > 40 || d.Coefficient().BitLen() > 256 {
					return
				}
				p.Value = d
			}
			m.Points = append(m.Points, p)
		}
		if len(m.Points) > 0 {
			checkChart(t, l, m)
		}
	})
}

func TestMeterWords(t *testing.T) {
	for _, c := range []struct {
		total string
		limit int64
		want  string
	}{
		{"0", 10, "0 ok 0.000%"},
		{"7.99", 10, "79 ok 79.000%"},
		{"8", 10, "80 warn 80.000%"},
		{"9.999", 10, "99 warn 99.000%"},
		{"10", 10, "100 danger 100.000%"},
		{"1e30", 1, "100000000000000000000000000000000 danger 100.000%"},
		{"-5", 10, "0 ok 0.000%"},
		{"0", 0, "0 ok 0.000%"},
		{"1", 0, "0 danger 100.000%"},
		{"1", -5, "0 danger 100.000%"},
	} {
		m := Meter{Total: dec(c.total), Limit: c.limit, HasLimit: true}
		if got := m.Percent().String() + " " + m.Tone() + " " + m.Width(); got != c.want {
			t.Errorf("%s of %d: %s, want %s", c.total, c.limit, got, c.want)
		}
	}
}

func TestUsageWords(t *testing.T) {
	r := renderer(t, options())
	iso := strings.NewReplacer("\u2068", "", "\u2069", "", " ", " ")
	for name, want := range map[string][]string{
		"usage": {
			"4,652 of 10,000 used (46%)", "About €11.40 so far, without tax. Final when the period closes on 1 June 2026.", "Most on 9 May 2026: 812.", "The dashed bar is still being counted.",
			"Show as table: API calls", "1 to 1,000€0.00€0.00", "1,001 to 10,000€0.002€5.00", "10,001 and more€0.00125€0.00", "Each unit costs what its step says",
		},
		"usage-limits":  {"8,190 of 10,000 used (81%)", "Close to the limit of your plan", "12,600 of 10,000 used (126%)", "The limit of your plan is reached", "4,652 used, none included", "not the sum of the rows", "We couldn’t load the last period", "€0.000004 for each unit", "All units cost what the step says"},
		"usage-year":    {"0.0000074 used", "units of 10 to the power of -6", "Hatched: no data.", "August 2025No data", "November 202560 so far", "Most in June 2025"},
		"usage-nothing": {"0 used", "No usage recorded since 1 May 2026."},
		"usage-none":    {"No usage-based prices in your plan.", "Back to the overview"},
		"usage-first":   {"There is no earlier period: your plan began in this one."},
		"usage-failed":  {"We couldn’t load your usage.", "Try again"},
		"balance":       {"€12.00 credit", "$4.00 owed", "Nothing is on it besides the credits below.", "Expires on 30 June 2026.", "Other change"},
	} {
		text := iso.Replace(textOf(find(parsePage(t, r, "en", fixtures()[name]), "main")))
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s does not say %q:\n%s", name, w, text)
			}
		}
	}
}
