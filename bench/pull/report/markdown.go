package report

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

// MarkdownOptions add to a report.
type MarkdownOptions struct {
	Title   string // "" for a title made from the workload
	Command string // that made the report, shown unless ""
	Chart   string // path of an image to show, unless ""
}

// WriteMarkdown writes a report as a page for a repository.
func WriteMarkdown(w io.Writer, r *Report, o MarkdownOptions) error {
	s := Summarize(r)
	var b bytes.Buffer
	title := o.Title
	if title == "" {
		title = r.title()
	}
	fmt.Fprintf(&b, "# %s\n\n%s: %s", escape(title), r.Started.UTC().Format(time.DateOnly), escape(r.measured()))
	if r.Description != "" {
		fmt.Fprintf(&b, " %s", escape(r.Description))
	}
	fmt.Fprint(&b, "\n\n")
	if o.Command != "" {
		fmt.Fprintf(&b, "    %s\n\n", clean(o.Command))
	}
	if r.Interrupted {
		fmt.Fprint(&b, "**The benchmark was interrupted.**\n\n")
	}
	if o.Chart != "" {
		fmt.Fprintf(&b, "![%s](<%s>)\n\n", escape(title), strings.NewReplacer("<", "%3C", ">", "%3E").Replace(clean(o.Chart)))
	}
	if len(s.Figures) > 0 {
		fmt.Fprintf(&b, "Ratios are to %s in the same round; less is better. Intervals are of the median, at 95 %%.\n%s\n\n",
			escape(r.Baseline), escape(s.Noise))
	}
	markdownFigures(&b, r, s)
	if len(r.Failures) > 0 {
		fmt.Fprint(&b, "## Failures\n\n")
		for _, f := range r.Failures {
			fmt.Fprintf(&b, "* %s\n", escape(r.failure(&f)))
		}
		fmt.Fprintln(&b)
	}
	if len(r.Method) > 0 {
		fmt.Fprint(&b, "## Method\n\n")
		for _, m := range r.Method {
			fmt.Fprintf(&b, "* %s\n", escape(m))
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprint(&b, "## Images\n\n| image | digest | layers | compressed | files | content |\n|---|---|--:|--:|--:|--:|\n")
	for _, i := range r.Images {
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %s | %s |\n", escape(i.Name), escape(i.Digest), i.Layers,
			formatValue(float64(i.BlobBytes), Bytes), formatValue(float64(i.Files), Count), formatValue(float64(i.FileBytes), Bytes))
	}
	fmt.Fprint(&b, "\n## Machine\n\n| | |\n|---|---|\n")
	for _, fact := range r.Machine.facts() {
		fmt.Fprintf(&b, "| %s | %s |\n", escape(fact[0]), escape(fact[1]))
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// markdownFigures writes a table for each metric.
func markdownFigures(b *bytes.Buffer, r *Report, s *Summary) {
	var last Metric
	for _, f := range s.Figures {
		info := infoOf(f.Metric)
		if f.Metric != last {
			if last != "" {
				fmt.Fprintln(b)
			}
			fmt.Fprintf(b, "## %s\n\n%s\n\n| state | image | snapshotter | median | 95 %% interval | least – most | rounds | ratio | 95 %% interval |\n"+
				"|---|---|---|--:|--:|--:|--:|--:|--:|\n", strings.ToUpper(info.Title[:1])+info.Title[1:], info.Help)
			last = f.Metric
		}
		ratio, within := "", ""
		if f.Ratio != nil {
			ratio, within = formatRatio(f.Ratio), interval(&f.Ratio.Spread, formatNumber)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %d | %s | %s |\n", f.State, escape(rowLabel(r, f.Image)), escape(f.Snapshotter),
			info.format(f.Value.Median), interval(&f.Value, info.format), span(f.Value.Min, f.Value.Max, info.format), f.Value.N,
			ratio, within)
	}
	if last != "" {
		fmt.Fprintln(b)
	}
}

func (r *Report) title() string {
	if r.Workload == "" {
		return "Snapshotter benchmark"
	}
	return "Snapshotter benchmark: " + clean(r.Workload)
}

var escaper = strings.NewReplacer(
	"&", "&amp;", "<", "&lt;", ">", "&gt;", `\`, `\\`, "|", `\|`, "*", `\*`, "_", `\_`, "`", "\\`", "[", `\[`, "]", `\]`,
	"~", `\~`, "#", `\#`,
)

// escape makes untrusted text plain text without markup, on one line, for table cells and elsewhere.
func escape(s string) string { return escaper.Replace(clean(s)) }
