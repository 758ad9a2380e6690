package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Sizes in a chart, in units of its view box. Text has 13 units. No letter of a usual sans-serif font is wider than
// wideLetter on average, so text that fits by its number of letters also fits in pixels.
const (
	panelWidth  = 340
	chartWidth  = 640 // of a chart in its own file
	lineHeight  = 17
	barHeight   = 9
	rowGap      = 15
	ratioColumn = 70 // to the right of the values
	valueColumn = 130
	wideLetter  = 8.0
)

// A chart is drawn by the template "svg".
type chart struct {
	Width, Height float64
	Alone         bool   // in its own file, with its own colours
	Name          string // for screen readers
	Texts         []text // headings
	Bars          []bar
}

// FullHeight returns the height of a chart in its own file, with its margin.
func (c *chart) FullHeight() float64 { return c.Height + 24 }

type text struct {
	X, Y  float64
	Class string
	Text  string
}

// A bar shows a snapshotter in a chart.
type bar struct {
	Series       int // selects the colour
	Tip          string
	Names        []text // of the snapshotter, in lines
	Value        text
	PlusMinus    string
	Ratio        text
	X, Y         float64
	Track, Width float64
	Height       float64
	Whisker      *whisker
}

type whisker struct{ Lo, Hi, Top, Middle, Bottom float64 }

// series returns the number of a snapshotter's colour: 0 for the baseline, and then in the user's order.
func (r *Report) series(snapshotter string) int {
	const colours = 5
	n := 0
	for _, s := range r.Snapshotters {
		if s == r.Baseline {
			if s == snapshotter {
				return 0
			}
			continue
		}
		n++
		if s == snapshotter {
			return 1 + (n-1)%colours
		}
	}
	return 0
}

// scale returns the largest value that a chart of these figures must show.
func scale(figures []Figure) float64 {
	most := 0.0
	for _, f := range figures {
		most = max(most, f.Value.Median)
		if f.Value.Hi != nil {
			most = max(most, *f.Value.Hi)
		}
	}
	return most
}

// panel makes the chart of the figures of one image in one state.
func panel(r *Report, figures []Figure, most float64) *chart {
	c := &chart{Width: panelWidth, Name: panelName(r, figures)}
	y := c.addBars(r, figures, 2, most)
	c.Height = y
	return c
}

// addBars draws bars from y on down and returns where they end.
func (c *chart) addBars(r *Report, figures []Figure, y, most float64) float64 {
	for i, f := range figures {
		if i > 0 {
			y += rowGap
		}
		var height float64
		b := c.bar(r, &f, y, most, &height)
		c.Bars = append(c.Bars, b)
		y += height
	}
	return y + 4 // leaves room for the end of a whisker
}

func (c *chart) bar(r *Report, f *Figure, y, most float64, height *float64) bar {
	info := infoOf(f.Metric)
	b := bar{
		Series:    r.series(f.Snapshotter),
		Tip:       tip(f, info),
		Value:     text{X: c.Width - ratioColumn, Y: y + 12, Text: info.format(f.Value.Median)},
		PlusMinus: plusMinus(&f.Value),
		Ratio:     text{X: c.Width, Y: y + 12},
		Track:     c.Width,
		Height:    barHeight,
	}
	switch {
	case f.Snapshotter == r.Baseline:
		b.Ratio.Text = "1×"
	case f.Ratio != nil:
		b.Ratio.Text = formatRatio(f.Ratio)
	}
	for _, line := range wrap(clean(f.Snapshotter), int((c.Width-ratioColumn-valueColumn)/wideLetter)) {
		b.Names = append(b.Names, text{Y: y + 12, Text: line})
		y += lineHeight
	}
	b.Y = y + 2
	if most > 0 {
		x := func(v float64) float64 { return v / most * (c.Width - 2) }
		b.Width = max(x(f.Value.Median), 1)                          // a bar is always visible
		if f.Value.Lo != nil && x(*f.Value.Hi)-x(*f.Value.Lo) >= 1 { // a shorter whisker would be invisible
			b.Whisker = &whisker{x(*f.Value.Lo), x(*f.Value.Hi), b.Y - 2, b.Y + barHeight/2., b.Y + barHeight + 2}
		}
	}
	*height = float64(len(b.Names))*lineHeight + 2 + barHeight
	return b
}

// tip describes a figure in a sentence.
func tip(f *Figure, info MetricInfo) string {
	s := fmt.Sprintf("%s: median %s of %s", clean(f.Snapshotter), info.format(f.Value.Median), count(f.Value.N, "round"))
	if f.Value.Lo != nil {
		s += ", 95 % interval " + interval(&f.Value, info.format)
	}
	if f.Ratio != nil {
		s += ", " + formatRatio(f.Ratio) + " the baseline"
	}
	return s
}

func panelName(r *Report, figures []Figure) string {
	var parts []string
	for _, f := range figures {
		part := clean(f.Snapshotter) + " " + infoOf(f.Metric).format(f.Value.Median)
		if f.Ratio != nil {
			part += " (" + formatRatio(f.Ratio) + ")"
		}
		parts = append(parts, part)
	}
	f := &figures[0]
	return fmt.Sprintf("%s, %s: %s", what(r, f), f.State, strings.Join(parts, ", "))
}

// SVGChart writes the chart of a metric as a file: the bars of every image in the given states, or in all. It is an
// error if there are no figures for it.
func SVGChart(w io.Writer, r *Report, m Metric, states ...State) error {
	s := Summarize(r)
	info := infoOf(m)
	var figures []Figure
	for _, f := range s.Figures {
		if f.Metric == m && (len(states) == 0 || slices.Contains(states, f.State)) {
			figures = append(figures, f)
		}
	}
	if len(figures) == 0 {
		return fmt.Errorf("draw chart of %s: nothing was measured", info.Title)
	}
	c := &chart{Width: chartWidth, Alone: true, Name: r.title() + ", " + info.Title}
	y := 20.
	add := func(class string, width int, height float64, s string) {
		for _, line := range wrap(s, width) {
			c.Texts = append(c.Texts, text{0, y, class, line})
			y += height
		}
	}
	add("title", 50, 24, strings.ToUpper(info.Title[:1])+info.Title[1:])
	add("muted", 84, lineHeight, info.Help+" Less is better; × is the ratio to "+clean(r.Baseline)+", whiskers are 95 % confidence intervals.")
	for _, group := range groups(figures) {
		y += 30
		add("group", 66, lineHeight, rowLabel(r, group[0].Image)+", "+string(group[0].State)+": "+stateHelp(group[0].State))
		y = c.addBars(r, group, y-lineHeight+10, scale(figures))
	}
	c.Height = y
	if err := templates.ExecuteTemplate(w, "svg", c); err != nil {
		return fmt.Errorf("write chart of %s: %w", info.Title, err)
	}
	return nil
}

// groups splits figures into those of one image in one state.
func groups(figures []Figure) [][]Figure {
	var all [][]Figure
	for i, f := range figures {
		if i == 0 || f.Image != figures[i-1].Image || f.State != figures[i-1].State {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], f)
	}
	return all
}

// wrap breaks text into lines of at most width letters. Letters of other scripts count twice. It breaks after a space
// or punctuation mark, if there is one in the second half of the line.
func wrap(s string, width int) []string {
	var lines []string
	for {
		end, after, n := len(s), 0, 0
		for i, c := range s {
			n += letters(c)
			if n > width {
				end = i
				break
			}
			if strings.ContainsRune(" /:@-_.,", c) && n > width/2 {
				after = i + utf8.RuneLen(c)
			}
		}
		if end == len(s) {
			return append(lines, s)
		}
		if after > 0 {
			end = after
		}
		lines = append(lines, strings.TrimRight(s[:end], " "))
		s = s[end:]
	}
}

func letters(c rune) int {
	if c >= 0x300 {
		return 2
	}
	return 1
}
