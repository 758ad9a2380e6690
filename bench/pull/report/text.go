package report

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// textWidth bounds the width of a table for the terminal. Metrics that do not fit are in a second table below it.
const textWidth = 118

// textName bounds the width of an image name in a table for the terminal. The end of the name is shown, which tells
// images apart.
const textName = 30

// WriteText writes a report for the terminal: a table for each state, and the uncertainty of the ratios. A ratio of
// times that is not certain is marked with ~. Failures are not included; they go to standard error.
func WriteText(w io.Writer, r *Report) error {
	s := Summarize(r)
	var b bytes.Buffer
	for _, state := range States() {
		if err := writeState(&b, r, s, state); err != nil {
			return err
		}
	}
	if len(s.Figures) == 0 {
		fmt.Fprint(&b, "Nothing was measured.\n")
	} else {
		fmt.Fprintf(&b, "Medians with their 95 %% confidence intervals; × is the ratio to %s, ~ marks uncertain ones of times.\n", clean(r.Baseline))
		fold(&b, s.Noise)
	}
	if r.Interrupted {
		fmt.Fprintln(&b, "The benchmark was interrupted.")
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// fold writes words in lines that are not longer than a table.
func fold(b *bytes.Buffer, text string) {
	n := 0
	for _, word := range strings.Fields(text) {
		width := utf8.RuneCountInString(word)
		switch {
		case n == 0:
		case n+1+width > textWidth:
			b.WriteByte('\n')
			n = 0
		default:
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += width
	}
	b.WriteByte('\n')
}

// A column is a metric in a table for the terminal.
type column struct {
	info  MetricInfo
	cells map[row]cell
	width int // of a cell and the space before it
}

type row struct{ image, snapshotter string }

type cell struct{ value, ratio string }

func writeState(b *bytes.Buffer, r *Report, s *Summary, state State) error {
	rows, names := stateRows(r, s, state)
	var columns []column
	for _, info := range Metrics() {
		c := column{info: info, cells: make(map[row]cell)}
		values, ratios := utf8.RuneCountInString(info.Title), 0
		for _, row := range rows {
			f := s.Figure(info.Metric, state, row.image, row.snapshotter)
			if f == nil {
				continue
			}
			cell := textCell(f, info)
			c.cells[row] = cell
			values, ratios = max(values, utf8.RuneCountInString(cell.value)), max(ratios, utf8.RuneCountInString(cell.ratio))
		}
		if len(c.cells) > 0 {
			c.width = 2 + values + 2 + ratios
			columns = append(columns, c)
		}
	}
	if len(columns) == 0 {
		return nil
	}
	fmt.Fprintf(b, "%s: %s\n", state, stateHelp(state))
	for len(columns) > 0 {
		n, width := 0, names
		for n < len(columns) && (n == 0 || width+columns[n].width <= textWidth) {
			width += columns[n].width
			n++
		}
		if err := writeTable(b, r, rows, columns[:n]); err != nil {
			return err
		}
		columns = columns[n:]
		fmt.Fprintln(b)
	}
	return nil
}

// stateRows returns the rows of a state that have a figure, and the width of their names.
func stateRows(r *Report, s *Summary, state State) ([]row, int) {
	var rows []row
	seen := make(map[row]bool)
	images, snapshotters := 0, 0
	for _, f := range s.Figures {
		row := row{f.Image, f.Snapshotter}
		if f.State == state {
			seen[row] = true
			images = max(images, utf8.RuneCountInString(textLabel(r, f.Image)))
			snapshotters = max(snapshotters, utf8.RuneCountInString(f.Snapshotter))
		}
	}
	for _, image := range r.imagesOf(state) {
		for _, snapshotter := range r.Snapshotters {
			if row := (row{image, snapshotter}); seen[row] {
				rows = append(rows, row)
				delete(seen, row)
			}
		}
	}
	return rows, images + 2 + snapshotters
}

func rowLabel(r *Report, image string) string {
	if image == "" {
		return "all images"
	}
	return r.label(image)
}

func textLabel(r *Report, image string) string {
	name := []rune(rowLabel(r, image))
	if len(name) <= textName {
		return string(name)
	}
	return "…" + string(name[len(name)-textName+1:])
}

func textCell(f *Figure, info MetricInfo) cell {
	c := cell{value: info.format(f.Value.Median)}
	if pm := plusMinus(&f.Value); pm != "" {
		c.value += " " + pm
	}
	if f.Ratio != nil {
		c.ratio = formatRatio(f.Ratio)
		if f.Ratio.Noisy && info.Unit == Seconds {
			c.ratio = "~" + c.ratio
		}
	}
	return c
}

func writeTable(w io.Writer, r *Report, rows []row, columns []column) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "\t")
	for _, c := range columns {
		fmt.Fprintf(t, "\t%s\t", c.info.Title)
	}
	fmt.Fprintln(t)
	last := ""
	for i, row := range rows {
		label := textLabel(r, row.image)
		if i > 0 && row.image == last {
			label = ""
		}
		last = row.image
		fmt.Fprintf(t, "%s\t%s", label, clean(row.snapshotter))
		for _, c := range columns {
			fmt.Fprintf(t, "\t%s\t%s", c.cells[row].value, c.cells[row].ratio)
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	for line := range strings.Lines(b.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n")) // of the cells without a ratio
	}
	return nil
}
