package report

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"golang.org/x/perf/benchmath"
)

const (
	confidence = 0.95
	// minRounds is the smallest number of values whose median has a confidence interval of that level: all n values are
	// on one side of the true median with a probability of 2·½ⁿ, which is below 5 % from 6 on.
	minRounds = 6
	// maxNoise bounds the distance of a ratio's interval from its median. If two runs keep it, and both intervals hold
	// the true ratio, then their medians are within 1 - 0.95/1.05 = 9.5 % of each other.
	maxNoise = 0.05
	// maxNamed bounds the number of noisy ratios named in the sentence about them.
	maxNamed = 6
)

// A Summary holds the medians and ratios of a report.
type Summary struct {
	Figures   []Figure   `json:"figures"` // by metric, state, image and snapshotter, each in the order of the report
	Headlines []Headline `json:"headlines"`
	Noisy     []Figure   `json:"noisy"` // uncertain ratios of times, the worst first
	Noise     string     `json:"noise"` // explains the noise to the reader, in sentences

	index map[key]int
}

// A Figure is the result of one snapshotter with one image, over all rounds.
type Figure struct {
	Metric      Metric `json:"metric"`
	State       State  `json:"state"`
	Image       string `json:"image"` // "" in state All
	Snapshotter string `json:"snapshotter"`
	Value       Spread `json:"value"`
	// Ratio is the value divided by the baseline's of the same round. It is nil for the baseline itself, if no round
	// has both values, or if the baseline's is zero.
	Ratio *Ratio `json:"ratio,omitempty"`
}

// A Spread is a median and its uncertainty.
type Spread struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Lo and Hi are the 95 % confidence interval of the median. They are nil if there are too few values.
	Lo *float64 `json:"lo,omitempty"`
	Hi *float64 `json:"hi,omitempty"`
}

// Uncertainty is the distance from the median to the farther end of the confidence interval, as a fraction of the
// median. It is unknown if there is no interval or the median is zero.
func (s *Spread) Uncertainty() (u float64, known bool) {
	if s.Lo == nil || s.Hi == nil {
		return 0, false
	}
	if *s.Lo == *s.Hi {
		return 0, true
	}
	u = max(*s.Hi-s.Median, s.Median-*s.Lo) / s.Median
	return u, finite(u)
}

// A Ratio is the ratio of a snapshotter to the baseline.
type Ratio struct {
	Spread
	Noise *float64 `json:"noise,omitempty"` // uncertainty of the spread; nil if unknown
	Noisy bool     `json:"noisy"`           // more than 5 %, or unknown
}

// A Headline is the ratio of a snapshotter to the baseline over the images.
type Headline struct {
	Snapshotter string  `json:"snapshotter"`
	Metric      Metric  `json:"metric"`
	State       State   `json:"state"`
	Images      int     `json:"images"` // number with a ratio
	Median      float64 `json:"median"` // of the images' ratios
	Min         float64 `json:"min"`
	Max         float64 `json:"max"`
	Noisy       bool    `json:"noisy"` // if one of the ratios is
}

// headlines are the figures that matter most to readers.
var headlines = []struct {
	metric Metric
	state  State
}{
	{Unpack, Cold},
	{Unpack, Warm},
	{Unpack, Again},
	{Start, Cold},
	{Disk, All},
	{Cached, All},
}

type key struct {
	metric      Metric
	state       State
	image       string
	snapshotter string
}

// Summarize computes the medians and ratios of a report. Values that are negative or not finite are left out. Of two
// values in the same round the later one counts.
func Summarize(r *Report) *Summary {
	values := make(map[key]map[int]float64)
	for _, run := range r.Runs {
		for metric, v := range run.Values {
			if !finite(v) || v < 0 {
				continue
			}
			k := key{metric, run.State, run.Image, run.Snapshotter}
			if values[k] == nil {
				values[k] = make(map[int]float64)
			}
			values[k][run.Round] = v
		}
	}
	s := &Summary{index: make(map[key]int)}
	for _, m := range Metrics() {
		for _, state := range States() {
			for _, image := range r.imagesOf(state) {
				for _, snapshotter := range r.Snapshotters {
					s.add(values, key{m.Metric, state, image, snapshotter}, r.Baseline)
				}
			}
		}
	}
	s.addHeadlines(r)
	s.addNoise(r)
	return s
}

// imagesOf returns the images with figures in a state.
func (r *Report) imagesOf(state State) []string {
	if state == All {
		return []string{""}
	}
	var names []string
	for _, image := range r.Images {
		names = append(names, image.Name)
	}
	return names
}

// add adds the figure of a key, unless there are no values for it or it was added before.
func (s *Summary) add(values map[key]map[int]float64, k key, baseline string) {
	rounds := values[k]
	if _, ok := s.index[k]; ok || len(rounds) == 0 {
		return
	}
	f := Figure{
		Metric: k.metric, State: k.state, Image: k.image, Snapshotter: k.snapshotter,
		Value: spread(slices.Collect(maps.Values(rounds))),
	}
	if k.snapshotter != baseline {
		k := k
		k.snapshotter = baseline
		f.Ratio = ratio(rounds, values[k])
	}
	s.index[k] = len(s.Figures)
	s.Figures = append(s.Figures, f)
}

func ratio(of, baseline map[int]float64) *Ratio {
	var ratios []float64
	for round, v := range of {
		if q := v / baseline[round]; baseline[round] > 0 && finite(q) {
			ratios = append(ratios, q)
		}
	}
	if len(ratios) == 0 {
		return nil
	}
	q := &Ratio{Spread: spread(ratios), Noisy: true}
	if u, known := q.Uncertainty(); known {
		q.Noise = &u
		q.Noisy = u > maxNoise
	}
	return q
}

// spread computes the spread of at least one value.
func spread(values []float64) Spread {
	sample := benchmath.NewSample(values, &benchmath.DefaultThresholds) // sorts them
	sum := benchmath.AssumeNothing.Summary(sample, confidence)
	s := Spread{N: len(values), Median: sum.Center, Min: values[0], Max: values[len(values)-1]}
	if finite(sum.Lo) && finite(sum.Hi) {
		s.Lo, s.Hi = &sum.Lo, &sum.Hi
	}
	return s
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// Figure returns the figure of a snapshotter and an image, or nil.
func (s *Summary) Figure(m Metric, state State, image, snapshotter string) *Figure {
	if i, ok := s.index[key{m, state, image, snapshotter}]; ok {
		return &s.Figures[i]
	}
	return nil
}

func (s *Summary) addHeadlines(r *Report) {
	for _, snapshotter := range r.Snapshotters {
		for _, h := range headlines {
			var ratios []float64
			noisy := false
			for _, image := range r.imagesOf(h.state) {
				if f := s.Figure(h.metric, h.state, image, snapshotter); f != nil && f.Ratio != nil {
					ratios = append(ratios, f.Ratio.Median)
					noisy = noisy || f.Ratio.Noisy
				}
			}
			if len(ratios) == 0 {
				continue
			}
			over := spread(ratios)
			s.Headlines = append(s.Headlines, Headline{
				Snapshotter: snapshotter, Metric: h.metric, State: h.state,
				Images: over.N, Median: over.Median, Min: over.Min, Max: over.Max, Noisy: noisy,
			})
		}
	}
}

// addNoise finds noisy ratios of times. Ratios of sizes and counts do not depend on the machine's noise.
func (s *Summary) addNoise(r *Report) {
	times, rounds := 0, 0
	var unknown int
	for _, f := range s.Figures {
		if f.Ratio == nil || infoOf(f.Metric).Unit != Seconds {
			continue
		}
		times++
		rounds = max(rounds, f.Ratio.N)
		if f.Ratio.Noisy {
			s.Noisy = append(s.Noisy, f)
		}
		if f.Ratio.Noise == nil {
			unknown++
		}
	}
	slices.SortStableFunc(s.Noisy, func(a, b Figure) int { return cmp.Compare(b.noise(), a.noise()) })

	const bound = "two runs may differ by more than 10 %"
	switch {
	case times == 0:
		s.Noise = "There are no ratios of times."
	case rounds < minRounds:
		s.Noise = fmt.Sprintf("There is no confidence interval with %s, %d are needed: how much two runs differ is unknown.",
			count(rounds, "round"), minRounds)
	case len(s.Noisy) == 0:
		s.Noise = "The ratios of times are certain within 5 %, two runs on this machine agree within 10 %."
	default:
		var names []string
		for _, f := range s.Noisy[:len(s.Noisy)-unknown] {
			if len(names) == maxNamed {
				names = append(names, fmt.Sprintf("%d more", len(s.Noisy)-unknown-maxNamed))
				break
			}
			names = append(names, fmt.Sprintf("%s by %s, %s: the ratio %s is uncertain by %s", what(r, &f), clean(f.Snapshotter), f.State,
				formatNumber(f.Ratio.Median), percent(*f.Ratio.Noise)))
		}
		if len(names) > 0 {
			s.Noise = "This machine was too noisy for: " + strings.Join(names, "; ") + "; " + bound + "."
		}
		if unknown > 0 {
			s.Noise = strings.TrimSpace(s.Noise + fmt.Sprintf(" There is no confidence interval for %s of times: fewer than %d rounds have both values.",
				count(unknown, "ratio"), minRounds))
		}
	}
}

func (f *Figure) noise() float64 {
	if f.Ratio.Noise == nil {
		return -1
	}
	return *f.Ratio.Noise
}

// what describes the subject of a figure, like "unpack of base:1".
func what(r *Report, f *Figure) string {
	title := infoOf(f.Metric).Title
	if f.State == All {
		return title + " of all images"
	}
	return title + " of " + r.label(f.Image)
}

func infoOf(m Metric) MetricInfo {
	for _, info := range Metrics() {
		if info.Metric == m {
			return info
		}
	}
	return MetricInfo{Metric: m, Title: string(m)}
}
