package templates

import (
	"strconv"
	"time"

	"github.com/shopspring/decimal"

	"github.com/portalcore/caddy-billing-portal/portalcore/billing"
)

// chart is a bar chart, ready to be written as SVG. Everything stands in
// shares of the plot ("12.5%"), so that bars stretch with the page while texts
// keep their size, which a viewBox would scale with them.
type chart struct {
	Bars   []chartBar
	Ticks  []chartTick
	Labels []chartLabel
	Zero   string // where the base line is, from the top
	// Most is the point with the largest value, nil where nothing was used.
	Most *Point
	// Power says that a tick stands for its number times 10 to the power of it.
	Power int
	// Open, Later and Missing say which kinds of points there are besides the
	// finished ones.
	Open, Later, Missing bool
}

// chartBar is what one point is drawn as. Kind is the class: "column",
// "column open" or "missing".
type chartBar struct{ X, Y, Width, Height, Kind string }

// chartTick is a line across the plot with its number.
type chartTick struct{ Y, Text string }

// chartLabel names a point below the plot. Narrow ones have room on a phone
// too.
type chartLabel struct {
	X, Anchor, Text string
	Narrow          bool
}

const (
	// maxTicks is how many lines a chart has at most.
	maxTicks = 5
	// most labels below a chart, and on a phone, by the width of a point.
	wideLabels, narrowDays, narrowMonths = 8, 4, 2
	// gapless is how many bars leave no room for gaps.
	gapless = 120
)

// axis returns the lines of a chart for values from low to high: multiples of
// a round number, rising, at most maxTicks, zero among them and no value
// outside. whole asks for whole numbers.
func axis(low, high decimal.Decimal, whole bool) []decimal.Decimal {
	zero := decimal.Zero
	low, high = decimal.Min(low, zero), decimal.Max(high, zero)
	if low.Equal(high) {
		high = decimal.NewFromInt(1)
	}
	step := roundUp(high.Sub(low).Shift(-1))
	if one := decimal.NewFromInt(1); whole && step.LessThan(one) {
		step = one
	}
	for {
		first, rest := low.QuoRem(step, 0)
		if rest.IsNegative() {
			first = first.Sub(decimal.NewFromInt(1))
		}
		last, rest := high.QuoRem(step, 0)
		if rest.IsPositive() {
			last = last.Add(decimal.NewFromInt(1))
		}
		if n := last.Sub(first); n.LessThan(decimal.NewFromInt(maxTicks)) {
			ticks := make([]decimal.Decimal, 0, maxTicks)
			for ; !first.GreaterThan(last); first = first.Add(decimal.NewFromInt(1)) {
				ticks = append(ticks, first.Mul(step))
			}
			return ticks
		}
		step = roundUp(step.Mul(decimal.New(11, -1)))
	}
}

// magnitude is the exponent of the leading digit of d: 2 for 812.
func magnitude(d decimal.Decimal) int { return d.NumDigits() + int(d.Exponent()) - 1 }

// roundUp returns the next number from d on, d included, that is 1, 2 or 5 times
// a power of ten. d is above zero.
func roundUp(d decimal.Decimal) decimal.Decimal {
	e := int32(magnitude(d))
	for _, m := range []int64{1, 2, 5} {
		if n := decimal.New(m, e); !n.LessThan(d) {
			return n
		}
	}
	return decimal.New(1, e+1)
}

// power chooses what the ticks count in, so that their numbers stay short: units
// from a thousandth to 999,999, else a power of a thousand.
func power(ticks []decimal.Decimal) int {
	top := decimal.Max(ticks[0].Abs(), ticks[len(ticks)-1].Abs())
	e := magnitude(top)
	switch {
	case e >= 6:
		return e / 3 * 3
	case e < -3:
		return -((-e + 2) / 3 * 3)
	}
	return 0
}

// chart lays out the points of a meter.
func (l *local) chart(m Meter) (*chart, error) {
	c := &chart{}
	var low, high decimal.Decimal
	whole := true
	for i := range m.Points {
		p := &m.Points[i]
		switch p.State {
		case PointMissing:
			c.Missing = true
			continue
		case PointLater:
			c.Later = true
			continue
		case PointOpen:
			c.Open = true
		}
		low, high = decimal.Min(low, p.Value), decimal.Max(high, p.Value)
		whole = whole && p.Value.IsInteger()
		if p.Value.IsPositive() && (c.Most == nil || p.Value.GreaterThan(c.Most.Value)) {
			c.Most = p
		}
	}
	ticks := axis(low, high, whole)
	bottom, top := ticks[0], ticks[len(ticks)-1]
	span := top.Sub(bottom)
	// down is how far below the top of the plot a value is, as a share of it.
	down := func(v decimal.Decimal) float64 {
		return min(max(top.Sub(v).Div(span).InexactFloat64(), 0), 1)
	}
	c.Zero, c.Power = share(down(decimal.Zero)), power(ticks)
	for _, t := range ticks {
		c.Ticks = append(c.Ticks, chartTick{share(down(t)), l.decimal(t.Shift(-int32(c.Power)))})
	}
	width := 1 / float64(len(m.Points))
	inset := width * 0.1
	if len(m.Points) > gapless {
		inset = 0
	}
	for i, p := range m.Points {
		b := chartBar{X: share(float64(i)*width + inset), Width: share(width - 2*inset), Kind: "column"}
		switch p.State {
		case PointLater:
			continue
		case PointMissing:
			b.Kind, b.Y, b.Height = "missing", share(0), share(1)
		default:
			if p.Value.IsZero() {
				continue
			}
			if p.State == PointOpen {
				b.Kind = "column open"
			}
			from, to := down(decimal.Max(p.Value, decimal.Zero)), down(decimal.Min(p.Value, decimal.Zero))
			// What was used is seen, however little it was.
			if least := 0.005; to-from < least {
				if p.Value.IsNegative() {
					to = min(from+least, 1)
				} else {
					from = max(to-least, 0)
				}
			}
			b.Y, b.Height = share(from), share(to-from)
		}
		c.Bars = append(c.Bars, b)
	}
	var err error
	c.Labels, err = l.chartLabels(m, width)
	return c, err
}

// chartLabels names every so many points: by whole weeks where they are days.
func (l *local) chartLabels(m Meter, width float64) ([]chartLabel, error) {
	steps, narrow := []int{1, 2, 7, 14, 28, 56, 91, 182}, narrowDays
	if m.By == billing.Month {
		steps, narrow = []int{1, 2, 3, 6, 12, 24}, narrowMonths
	}
	step := steps[len(steps)-1]
	for _, s := range steps {
		if (len(m.Points)-1)/s < wideLabels {
			step = s
			break
		}
	}
	for (len(m.Points)-1)/step >= wideLabels {
		step *= 2
	}
	every := 1 // so many of them are left out on a phone
	for (len(m.Points)-1)/(step*every) >= narrow {
		every++
	}
	var out []chartLabel
	for i := 0; i < len(m.Points); i += step {
		s, err := l.shortPoint(m.By, m.Points[i].Start)
		if err != nil {
			return nil, err
		}
		at := (float64(i) + 0.5) * width
		// At the edges a text in the middle would stick out.
		anchor := "middle"
		switch {
		case at < 0.06:
			anchor, at = "start", float64(i)*width
		case at > 0.87:
			anchor, at = "end", float64(i+1)*width
		}
		out = append(out, chartLabel{share(min(at, 1)), anchor, s, i%(step*every) == 0})
	}
	return out, nil
}

// shortPoint is the start of a point in few letters. Points are days and months
// in UTC, whatever the zone of the page.
func (l *local) shortPoint(by billing.Interval, t time.Time) (string, error) {
	t = t.UTC()
	month := words(l.dates.MonthAbbreviated(t.Month()))
	if by == billing.Month {
		return l.say("format.month_year", false, "month", month, "year", words(strconv.Itoa(t.Year())))
	}
	return l.say("format.day_month", false, "day", words(strconv.Itoa(t.Day())), "month", month)
}

// share writes a part of the whole as SVG takes it, rounded so that no two
// machines write it differently.
func share(f float64) string {
	return strconv.FormatFloat(min(max(f, 0), 1)*100, 'f', 3, 64) + "%"
}
