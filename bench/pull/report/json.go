package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	maxSize  = 64 << 20 // size of report.json in bytes; a run takes about 400
	maxValue = 1e18     // a quotient and a sum of two values stay finite
	// maxImages and maxSnapshotters bound the number of charts in a page.
	maxImages       = 1000
	maxSnapshotters = 50
	maxRounds       = 100000
)

// WriteJSON writes a report and its summary, the latter under the key "summary".
func WriteJSON(w io.Writer, r *Report) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	err := enc.Encode(struct {
		*Report
		Summary *Summary `json:"summary"`
	}{r, Summarize(r)})
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// ReadJSON reads the output of WriteJSON, except for the summary, which can be computed. It refuses other versions, and
// reports that are too large or inconsistent. It is for tests, and for programs that compare reports.
func ReadJSON(rd io.Reader) (*Report, error) {
	b, err := io.ReadAll(io.LimitReader(rd, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	if len(b) > maxSize {
		return nil, fmt.Errorf("read report: larger than %d MiB", maxSize>>20)
	}
	var v struct {
		Version *int `json:"version"`
	}
	// The rest of another version may have another form.
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	if v.Version == nil {
		return nil, errors.New("read report: it has no version")
	}
	if *v.Version != Version {
		return nil, fmt.Errorf("read report: it has version %d, and only %d is known", *v.Version, Version)
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	return &r, nil
}

// check finds content that no benchmark writes.
func (r *Report) check() error {
	switch {
	case len(r.Images) > maxImages:
		return fmt.Errorf("%d images, more than %d", len(r.Images), maxImages)
	case len(r.Snapshotters) > maxSnapshotters:
		return fmt.Errorf("%d snapshotters, more than %d", len(r.Snapshotters), maxSnapshotters)
	case !slices.Contains(r.Snapshotters, r.Baseline):
		return fmt.Errorf("baseline %q is none of the snapshotters", r.Baseline)
	case r.Rounds < 0 || r.Rounds > maxRounds:
		return fmt.Errorf("%d rounds", r.Rounds)
	}
	images := make(map[string]bool)
	for _, image := range r.Images {
		images[image.Name] = true
	}
	for i, run := range r.Runs {
		if err := r.checkRun(&run, images); err != nil {
			return fmt.Errorf("run %d: %w", i+1, err)
		}
	}
	return nil
}

func (r *Report) checkRun(run *Run, images map[string]bool) error {
	switch {
	case !slices.Contains(States(), run.State):
		return fmt.Errorf("unknown state %q", run.State)
	case !slices.Contains(r.Snapshotters, run.Snapshotter):
		return fmt.Errorf("unknown snapshotter %q", run.Snapshotter)
	case run.State != All && !images[run.Image]:
		return fmt.Errorf("unknown image %q", run.Image)
	case run.State == All && run.Image != "":
		return fmt.Errorf("image %q in the state of all images", run.Image)
	case run.Round < 1 || run.Round > maxRounds:
		return fmt.Errorf("round %d", run.Round)
	}
	for m, v := range run.Values {
		if infoOf(m).Help == "" {
			return fmt.Errorf("unknown metric %q", m)
		}
		if v < 0 || v > maxValue {
			return fmt.Errorf("%s is %g", m, v)
		}
	}
	return nil
}
