package pull

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/pull/report"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// WriteReports writes report.html, report.json, report.md and, if there are runs, chart.svg into a directory, which it
// creates if necessary. If one form cannot be written, the others still are.
func WriteReports(name string, r *report.Report) (err error) {
	if err := os.MkdirAll(name, 0o755); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	dir, err := atfs.Open(name)
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	const chart = "chart.svg"
	write := func(name string, write func(io.Writer) error) error {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if err := dir.WriteFile(name, b.Bytes(), 0o644, false); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		return nil
	}
	var markdown report.MarkdownOptions
	var errs []error
	if len(r.Runs) > 0 {
		markdown.Chart = chart
		errs = append(errs, write(chart, func(w io.Writer) error {
			return report.SVGChart(w, r, report.Unpack, report.Cold, report.Warm)
		}))
	}
	return errors.Join(append(errs,
		write("report.json", func(w io.Writer) error { return report.WriteJSON(w, r) }),
		write("report.html", func(w io.Writer) error { return report.WriteHTML(w, r) }),
		write("report.md", func(w io.Writer) error { return report.WriteMarkdown(w, r, markdown) }),
	)...)
}
