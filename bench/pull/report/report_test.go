package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func render(t *testing.T, write func(io.Writer) error) string {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := testenv.Diff(string(want), got); diff != "" {
		t.Errorf("-%s +got; rewrite with -update:\n%s", path, diff)
	}
}

var goldens = []struct {
	name string
	r    *Report
}{
	{"example", example(6, 0.015, 7)},
	{"few-rounds", example(3, 0.01, 2)},
	{"empty", &Report{Version: Version, Snapshotters: []string{"overlayfs"}, Baseline: "overlayfs", Interrupted: true}},
	{"hostile", hostile()},
}

func TestText(t *testing.T) {
	for _, tt := range goldens {
		t.Run(tt.name, func(t *testing.T) {
			got := render(t, func(w io.Writer) error { return WriteText(w, tt.r) })
			golden(t, tt.name+".txt", got)
			table, _, _ := strings.Cut(got, "Medians with")
			for line := range strings.Lines(table) {
				if n := utf8.RuneCountInString(line); n > textWidth+1 && tt.name != "hostile" {
					t.Errorf("a line has %d letters: %s", n, line)
				}
			}
			for _, c := range got {
				if c != '\n' && !unicode.IsPrint(c) {
					t.Errorf("%q goes to the terminal", c)
				}
			}
		})
	}
}

func TestMarkdown(t *testing.T) {
	for _, tt := range goldens {
		t.Run(tt.name, func(t *testing.T) {
			got := render(t, func(w io.Writer) error {
				return WriteMarkdown(w, tt.r, MarkdownOptions{Command: "ostree-snapshotter bench related", Chart: "unpack.svg"})
			})
			golden(t, tt.name+".md", got)
			columns := 0
			for line := range strings.Lines(got) {
				n := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|")
				if n > 0 && columns > 0 && n != columns {
					t.Errorf("a row has another number of cells: %s", line)
				}
				columns = n
			}
			if strings.Contains(got, "<script") || strings.Contains(got, "<img") {
				t.Error("there is an element that came out of a name")
			}
		})
	}
}

func TestHTML(t *testing.T) {
	for _, tt := range goldens {
		t.Run(tt.name, func(t *testing.T) {
			got := render(t, func(w io.Writer) error { return WriteHTML(w, tt.r) })
			for _, bad := range []string{"<script", "<img", "http://", "https://", "url(", "@import", "<link", "ZgotmplZ"} {
				if strings.Contains(got, bad) {
					t.Errorf("there is %s in the page", bad)
				}
			}
			for _, f := range tt.r.Failures {
				if f.Round > 0 && !strings.Contains(got, "round 2: start container") {
					t.Error("the failure is missing")
				}
			}
		})
	}
}

func TestSVGChart(t *testing.T) {
	for _, r := range []*Report{example(6, 0.02, 7), example(2, 0.1, 1), hostile()} {
		got := render(t, func(w io.Writer) error { return SVGChart(w, r, Unpack, Cold) })
		d := xml.NewDecoder(strings.NewReader(got))
		fills := 0
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("the chart is not XML: %v", err)
			}
			if e, ok := token.(xml.StartElement); ok {
				if e.Name.Local == "script" || e.Name.Local == "img" {
					t.Errorf("there is an element %s", e.Name.Local)
				}
				for _, a := range e.Attr {
					if a.Name.Local == "class" && a.Value == "fill" {
						fills++
					}
				}
			}
		}
		if fills != 9 {
			t.Errorf("%d bars, want 9", fills)
		}
	}
	if err := SVGChart(io.Discard, example(1, 0, 1), Unpack, All); err == nil || err.Error() != "draw chart of unpack: nothing was measured" {
		t.Errorf("a chart of nothing: %v", err)
	}
}

func TestJSON(t *testing.T) {
	for _, tt := range goldens {
		t.Run(tt.name, func(t *testing.T) {
			text := render(t, func(w io.Writer) error { return WriteJSON(w, tt.r) })
			if tt.name == "example" || tt.name == "hostile" { // integration/browser shows these
				b, err := json.Marshal(tt.r)
				if err != nil {
					t.Fatal(err)
				}
				golden(t, tt.name+".json", string(b)+"\n")
			}
			got, err := ReadJSON(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := testenv.Diff(tt.r, got); diff != "" {
				t.Errorf("-written +read:\n%s", diff)
			}
			var v struct{ Summary *Summary }
			if err := json.Unmarshal([]byte(text), &v); err != nil {
				t.Fatal(err)
			}
			want := Summarize(tt.r)
			want.index = nil
			if diff := testenv.Diff(want, v.Summary); diff != "" {
				t.Errorf("-summary +read:\n%s", diff)
			}
		})
	}
}

// endless is a JSON string that does not end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '"'
	}
	return len(p), nil
}

func TestReadJSONRefuses(t *testing.T) {
	const head = `{"version": 1, "snapshotters": ["a"], "baseline": "a", "images": [{"name": "i"}], `
	tests := []struct {
		name, input, want string
	}{
		{"nothing", "", "read report: unexpected end of JSON input"},
		{"no version", "{}", "read report: it has no version"},
		{"another version", `{"version": 2, "runs": "of another form"}`, "read report: it has version 2, and only 1 is known"},
		{"something behind it", `{"version": 1} {}`, "read report: invalid character '{' after top-level value"},
		{"too large a number", `{"version": 1, "seconds": 1e999}`, "read report: json: cannot unmarshal number 1e999 into Go struct field Report.seconds of type float64"},
		{"baseline", `{"version": 1, "snapshotters": ["a"], "baseline": "b"}`, `read report: baseline "b" is none of the snapshotters`},
		{"rounds", head + `"rounds": -1}`, "read report: -1 rounds"},
		{"images", `{"version": 1, "images": [{}` + strings.Repeat(",{}", maxImages) + `]}`, "read report: 1001 images, more than 1000"},
		{"snapshotters", `{"version": 1, "snapshotters": [""` + strings.Repeat(`,""`, maxSnapshotters) + `]}`, "read report: 51 snapshotters, more than 50"},
		{"state", head + `"runs": [{"round": 1, "state": "hot"}]}`, `read report: run 1: unknown state "hot"`},
		{"snapshotter", head + `"runs": [{"round": 1, "state": "cold", "snapshotter": "b"}]}`, `read report: run 1: unknown snapshotter "b"`},
		{"image", head + `"runs": [{"round": 1, "state": "cold", "snapshotter": "a", "image": "j"}]}`, `read report: run 1: unknown image "j"`},
		{"image of all", head + `"runs": [{"round": 1, "state": "all", "snapshotter": "a", "image": "i"}]}`, `read report: run 1: image "i" in the state of all images`},
		{"round", head + `"runs": [{"state": "all", "snapshotter": "a"}]}`, "read report: run 1: round 0"},
		{"metric", head + `"runs": [{"round": 1, "state": "all", "snapshotter": "a", "values": {"luck": 1}}]}`, `read report: run 1: unknown metric "luck"`},
		{"negative", head + `"runs": [{"round": 1, "state": "all", "snapshotter": "a", "values": {"disk": -1}}]}`, "read report: run 1: disk is -1"},
		{"enormous", head + `"runs": [{"round": 1, "state": "all", "snapshotter": "a", "values": {"disk": 1e300}}]}`, "read report: run 1: disk is 1e+300"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ReadJSON(strings.NewReader(tt.input)); err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
	if _, err := ReadJSON(endless{}); err == nil || err.Error() != "read report: larger than 64 MiB" {
		t.Errorf("of a file without an end: %v", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestWriteErrors(t *testing.T) {
	r := example(1, 0, 1)
	for want, write := range map[string]func() error{
		"write report: no space left on device":          func() error { return WriteText(full{}, r) },
		"write report: no space left on device ":         func() error { return WriteMarkdown(full{}, r, MarkdownOptions{}) },
		"write report: no space left on device  ":        func() error { return WriteJSON(full{}, r) },
		"write page: no space left on device":            func() error { return WriteHTML(full{}, r) },
		"write chart of unpack: no space left on device": func() error { return SVGChart(full{}, r, Unpack) },
	} {
		if err := write(); err == nil || err.Error() != strings.TrimSpace(want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, tt := range []struct {
		v    float64
		unit Unit
		want string
	}{
		{0, Seconds, "0 ms"},
		{0.00412, Seconds, "4.12 ms"},
		{0.412, Seconds, "412 ms"},
		{1, Seconds, "1.00 s"},
		{9.999, Seconds, "10.0 s"},
		{123.4, Seconds, "123 s"},
		{1 << 20, Bytes, "1.0 MiB"},
		{1536 << 20, Bytes, "1.5 GiB"},
		{31423.5, Count, "31,424"},
		{0, Count, "0"},
	} {
		if got := formatValue(tt.v, tt.unit); got != tt.want {
			t.Errorf("%v %s: got %q, want %q", tt.v, tt.unit, got, tt.want)
		}
	}
	for p, want := range map[float64]string{0: "0 %", 1e-5: "0.1 %", 0.0123: "1.2 %", 0.0996: "10 %", 0.5: "50 %"} {
		if got := percent(p); got != want {
			t.Errorf("%v: got %q, want %q", p, got, want)
		}
	}
}

func TestLabel(t *testing.T) {
	r := &Report{Images: []Image{
		{Name: "docker.io/library/debian:12"},
		{Name: "docker.io/moby/buildkit:1"},
		{Name: "docker.io/library/same:1"},
		{Name: "same:1"},
		{Name: "a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
	}}
	want := []string{"debian:12", "moby/buildkit:1", "docker.io/library/same:1", "same:1", "a@sha256:0123456789ab"}
	for i, image := range r.Images {
		if got := r.label(image.Name); got != want[i] {
			t.Errorf("%s: got %s, want %s", image.Name, got, want[i])
		}
	}
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		text  string
		width int
		want  string
	}{
		{"", 5, ""},
		{"short", 5, "short"},
		{"longer one", 7, "longer|one"},
		{"aaaaaaaaaa", 4, "aaaa|aaaa|aa"},
		{"team/billing/service", 14, "team/billing/|service"},
		{"日本語日本語", 6, "日本語|日本語"},
	} {
		if got := strings.Join(wrap(tt.text, tt.width), "|"); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
}
