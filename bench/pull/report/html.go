package report

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed report.html.tmpl chart.svg.tmpl style.css
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	// num formats a coordinate.
	"num": func(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) },
	// parts splits a name where a line may break. Browsers would break it anywhere.
	"parts": func(s string) []string {
		return strings.Split(strings.NewReplacer("/", "/\n", ":", ":\n", "@", "@\n", "-", "-\n").Replace(s), "\n")
	},
	// style holds the colours and text styles of charts, for the page and for chart files.
	"style": func() (template.CSS, error) {
		b, err := files.ReadFile("style.css")
		return template.CSS(b), err
	},
}).ParseFS(files, "*.tmpl"))

// A page is the data of the template "page".
type page struct {
	Title       string
	Workload    string
	Description string
	Measured    string
	Date        string
	Duration    string
	Machine     []string // short
	Baseline    string
	Interrupted bool
	Tiles       []tiles
	Legend      []legend
	Noise       string
	Noisy       bool
	Metrics     []metric
	Failures    []string
	Method      []string
	Images      []pageImage
	Facts       [][2]string
	Columns     []string // of the runs
	Runs        [][]string
}

// Tiles show the headlines of a snapshotter.
type tiles struct {
	Snapshotter string
	Series      int
	Tiles       []tile
}

type tile struct {
	Ratio, Name, State, Help, Range string
	Noisy                           bool
}

type legend struct {
	Series int
	Name   string
}

type metric struct {
	ID, Title, Help string
	States          []pageState
	Rows            []figureRow
}

type pageState struct {
	State, Help string
	Panels      []pagePanel
}

type pagePanel struct {
	Image string
	Chart *chart
}

type figureRow struct {
	State, Image, Snapshotter string
	Median, Interval, Range   string
	N                         int
	Ratio, RatioInterval      string
	Noisy                     bool
}

type pageImage struct {
	Name, Digest            string
	Layers                  int
	Blobs, Files, FileBytes string
}

// WriteHTML writes a report as a page: one file that loads nothing and runs no script.
func WriteHTML(w io.Writer, r *Report) error {
	s := Summarize(r)
	p := &page{
		Title:       r.title(),
		Workload:    clean(r.Workload),
		Description: clean(r.Description),
		Measured:    r.measured(),
		Date:        r.Started.UTC().Format("2 January 2006, 15:04 UTC"),
		Duration:    (time.Duration(min(r.Seconds, 1e9)) * time.Second).String(),
		Baseline:    clean(r.Baseline),
		Interrupted: r.Interrupted,
		Tiles:       pageTiles(r, s),
		Noise:       s.Noise,
		Noisy:       len(s.Noisy) > 0,
		Metrics:     pageMetrics(r, s),
		Facts:       r.Machine.facts(),
	}
	for _, fact := range []string{r.Machine.processors(), r.Machine.OS, r.Machine.Kernel} {
		if fact != "" {
			p.Machine = append(p.Machine, clean(fact))
		}
	}
	for _, snapshotter := range r.Snapshotters {
		p.Legend = append(p.Legend, legend{r.series(snapshotter), clean(snapshotter)})
	}
	for _, f := range r.Failures {
		p.Failures = append(p.Failures, r.failure(&f))
	}
	for _, m := range r.Method {
		p.Method = append(p.Method, clean(m))
	}
	for _, i := range r.Images {
		p.Images = append(p.Images, pageImage{
			clean(i.Name), clean(i.Digest), i.Layers, formatValue(float64(i.BlobBytes), Bytes), formatValue(float64(i.Files), Count),
			formatValue(float64(i.FileBytes), Bytes),
		})
	}
	p.Columns, p.Runs = pageRuns(r, s)
	if err := templates.ExecuteTemplate(w, "page", p); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

func pageTiles(r *Report, s *Summary) []tiles {
	var all []tiles
	for _, h := range s.Headlines {
		if len(all) == 0 || all[len(all)-1].Snapshotter != clean(h.Snapshotter) {
			all = append(all, tiles{Snapshotter: clean(h.Snapshotter), Series: r.series(h.Snapshotter)})
		}
		t := tile{
			Ratio: formatNumber(h.Median) + "×",
			Name:  infoOf(h.Metric).Title,
			State: string(h.State),
			Help:  stateHelp(h.State),
			Noisy: h.Noisy && infoOf(h.Metric).Unit == Seconds,
		}
		if h.Images > 1 {
			t.Range = fmt.Sprintf("%s over %d images", span(h.Min, h.Max, formatNumber), h.Images)
		}
		last := &all[len(all)-1]
		last.Tiles = append(last.Tiles, t)
	}
	return all
}

func pageMetrics(r *Report, s *Summary) []metric {
	var metrics []metric
	for _, info := range Metrics() {
		var figures []Figure
		for _, f := range s.Figures {
			if f.Metric == info.Metric {
				figures = append(figures, f)
			}
		}
		if len(figures) == 0 {
			continue
		}
		m := metric{ID: string(info.Metric), Title: info.Title, Help: info.Help}
		most := scale(figures)
		for _, group := range groups(figures) {
			state := group[0].State
			if n := len(m.States); n == 0 || m.States[n-1].State != string(state) {
				m.States = append(m.States, pageState{State: string(state), Help: stateHelp(state)})
			}
			last := &m.States[len(m.States)-1]
			last.Panels = append(last.Panels, pagePanel{rowLabel(r, group[0].Image), panel(r, group, most)})
		}
		for _, f := range figures {
			m.Rows = append(m.Rows, pageRow(r, &f, info))
		}
		metrics = append(metrics, m)
	}
	return metrics
}

func pageRow(r *Report, f *Figure, info MetricInfo) figureRow {
	row := figureRow{
		State: string(f.State), Image: rowLabel(r, f.Image), Snapshotter: clean(f.Snapshotter),
		Median: info.format(f.Value.Median), Interval: interval(&f.Value, info.format),
		Range: span(f.Value.Min, f.Value.Max, info.format), N: f.Value.N,
	}
	if f.Ratio != nil {
		row.Ratio, row.RatioInterval = formatRatio(f.Ratio), interval(&f.Ratio.Spread, formatNumber)
		row.Noisy = f.Ratio.Noisy && info.Unit == Seconds
	}
	return row
}

// pageRuns returns the runs as a table of their metrics.
func pageRuns(r *Report, s *Summary) (columns []string, rows [][]string) {
	columns = []string{"round", "snapshotter", "image", "state"}
	var metrics []MetricInfo
	for _, info := range Metrics() {
		if slices.ContainsFunc(s.Figures, func(f Figure) bool { return f.Metric == info.Metric }) {
			metrics = append(metrics, info)
			columns = append(columns, info.Title)
		}
	}
	for _, run := range r.Runs {
		row := []string{strconv.Itoa(run.Round), clean(run.Snapshotter), rowLabel(r, run.Image), clean(string(run.State))}
		for _, info := range metrics {
			cell := ""
			if v, ok := run.Values[info.Metric]; ok {
				cell = info.format(v)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return columns, rows
}
