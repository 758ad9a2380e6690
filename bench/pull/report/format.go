package report

import (
	"fmt"
	"math"
	"strings"
	"unicode"

	"github.com/dustin/go-humanize"
)

// stateHelp explains the states.
func stateHelp(s State) string {
	switch s {
	case Cold:
		return "nothing in the store"
	case Warm:
		return "the images before it in the store"
	case Again:
		return "the same image in the store, from another namespace"
	case All:
		return "all images in the store"
	}
	return ""
}

// formatValue formats a value for people, with about three digits.
func formatValue(v float64, u Unit) string {
	switch u {
	case Bytes:
		return humanize.IBytes(uint64(max(v, 0)))
	case Seconds:
		if v < 1 {
			return formatNumber(v*1000) + " ms"
		}
		return formatNumber(v) + " s"
	case Count:
	}
	return humanize.Comma(int64(math.Round(v)))
}

// formatNumber formats three digits, or all digits before the point; fewer for values close to zero.
func formatNumber(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.0995:
		return fmt.Sprintf("%.2f", v)
	case v >= 0.0005:
		return fmt.Sprintf("%.3f", v)
	}
	return "<0.001"
}

func formatRatio(q *Ratio) string { return formatNumber(q.Median) + "×" }

// percent formats a fraction.
func percent(p float64) string {
	switch {
	case p == 0:
		return "0 %"
	case p < 0.001:
		return "0.1 %" // do not round to nothing
	case p < 0.0995:
		return fmt.Sprintf("%.1f %%", 100*p)
	}
	return fmt.Sprintf("%.0f %%", 100*p)
}

// plusMinus formats the uncertainty of a median, "" if it is unknown.
func plusMinus(s *Spread) string {
	if u, known := s.Uncertainty(); known {
		return "±" + percent(u)
	}
	return ""
}

// interval formats a confidence interval.
func interval(s *Spread, format func(float64) string) string {
	if s.Lo == nil || s.Hi == nil {
		return "unknown"
	}
	return span(*s.Lo, *s.Hi, format)
}

func span(lo, hi float64, format func(float64) string) string {
	a, b := format(lo), format(hi)
	if a == b {
		return a
	}
	return a + " – " + b
}

func (i MetricInfo) format(v float64) string { return formatValue(v, i.Unit) }

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// enumerate returns "a, b and c".
func enumerate(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// clean makes untrusted text safe for one line of a terminal or of XML.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// label returns the name of an image for narrow places: without Docker's registry, and with a short digest. It is the
// whole name if another image would have the same label.
func (r *Report) label(name string) string {
	short := shorten(name)
	for _, image := range r.Images {
		if image.Name != name && shorten(image.Name) == short {
			return clean(name)
		}
	}
	return clean(short)
}

func shorten(name string) string {
	const digits = 12
	for _, prefix := range []string{"docker.io/library/", "docker.io/"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			name = rest
			break
		}
	}
	if i := strings.Index(name, "@sha256:"); i >= 0 {
		name = name[:min(len(name), i+len("@sha256:")+digits)]
	}
	return name
}

// failure formats a failure as a line.
func (r *Report) failure(f *Failure) string {
	var where []string
	if f.Snapshotter != "" {
		where = append(where, clean(f.Snapshotter))
	}
	if f.Image != "" {
		where = append(where, r.label(f.Image))
	}
	if f.Round > 0 {
		where = append(where, fmt.Sprintf("round %d", f.Round))
	}
	if len(where) == 0 {
		return clean(f.Error)
	}
	return strings.Join(where, ", ") + ": " + clean(f.Error)
}

// measured describes the measurement in a line.
func (r *Report) measured() string {
	var names []string
	for _, s := range r.Snapshotters {
		names = append(names, clean(s))
	}
	return fmt.Sprintf("%s pulled by %s, %s.", count(len(r.Images), "image"), enumerate(names), count(r.Rounds, "round"))
}

// facts returns the lines about the machine.
func (m *Machine) facts() [][2]string {
	var facts [][2]string
	add := func(name, value string) {
		if value != "" {
			facts = append(facts, [2]string{name, clean(value)})
		}
	}
	add("OS", m.OS)
	add("kernel", m.Kernel)
	add("processors", m.processors())
	if m.Memory > 0 {
		add("memory", formatValue(float64(m.Memory), Bytes))
	}
	add("file system", m.FileSystem)
	for _, p := range m.Programs {
		add(p.Name, p.Version)
	}
	return facts
}

func (m *Machine) processors() string {
	switch {
	case m.CPUs == 0:
		return m.CPU
	case m.CPU == "":
		return count(m.CPUs, "processor")
	}
	return fmt.Sprintf("%d × %s", m.CPUs, m.CPU)
}
