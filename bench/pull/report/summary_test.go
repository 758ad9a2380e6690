package report

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// two returns a report of one image, by a baseline and another snapshotter.
func two(m Metric, baseline, other []float64) *Report {
	r := &Report{
		Version: Version, Images: []Image{{Name: "base:1"}}, Snapshotters: []string{"overlayfs", "ostree"}, Baseline: "overlayfs",
		Rounds: max(len(baseline), len(other)),
	}
	for i, v := range baseline {
		r.Runs = append(r.Runs, Run{i + 1, "overlayfs", "base:1", Cold, map[Metric]float64{m: v}})
	}
	for i, v := range other {
		r.Runs = append(r.Runs, Run{i + 1, "ostree", "base:1", Cold, map[Metric]float64{m: v}})
	}
	return r
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-12 }

// TestSummarize compares with a summary computed by hand.
func TestSummarize(t *testing.T) {
	// Ratios by round: .5, .6, .55, .5, .52, .56; sorted .5, .5, .52, .55, .56, .6. The interval of six values reaches from
	// the least to the greatest, since all six are on one side of the median in 2 of 64 cases, and five are in more than 5 %.
	r := two(Unpack, []float64{10, 20, 10, 30, 25, 10}, []float64{5, 12, 5.5, 15, 13, 5.6})
	s := Summarize(r)
	if len(s.Figures) != 2 {
		t.Fatalf("%d figures, want 2", len(s.Figures))
	}
	base, ours := s.Figure(Unpack, Cold, "base:1", "overlayfs"), s.Figure(Unpack, Cold, "base:1", "ostree")
	if base.Ratio != nil {
		t.Error("the baseline has a ratio to itself")
	}
	// 10, 10, 10, 20, 25, 30
	if v := base.Value; v.N != 6 || !near(v.Median, 15) || v.Min != 10 || v.Max != 30 || *v.Lo != 10 || *v.Hi != 30 {
		t.Errorf("baseline: %+v", v)
	}
	q := ours.Ratio
	if q.N != 6 || !near(q.Median, .535) || !near(*q.Lo, .5) || !near(*q.Hi, .6) {
		t.Errorf("ratio: %+v", q)
	}
	if want := (.6 - .535) / .535; !q.Noisy || !near(*q.Noise, want) {
		t.Errorf("noise is %v, noisy %v, want %v and true", *q.Noise, q.Noisy, want)
	}
	const want = "This machine was too noisy for: unpack of base:1 by ostree, cold: the ratio 0.54 is uncertain by 12 %; " +
		"two runs may differ by more than 10 %."
	if s.Noise != want || len(s.Noisy) != 1 {
		t.Errorf("%d noisy ratios: %q\nwant 1: %q", len(s.Noisy), s.Noise, want)
	}
}

// TestInterval has more values. Of nine values, the interval is from the second to the eighth: it misses the median in
// 2·(1+9) of 512 cases, and from the third on it would miss it in 2·(1+9+36).
func TestInterval(t *testing.T) {
	s := spread([]float64{9, 1, 8, 2, 7, 3, 6, 4, 5})
	if s.Median != 5 || *s.Lo != 2 || *s.Hi != 8 || s.Min != 1 || s.Max != 9 {
		t.Errorf("median %v, %v to %v, in %v to %v; want 5, 2 to 8, in 1 to 9", s.Median, *s.Lo, *s.Hi, s.Min, s.Max)
	}
	if u, known := s.Uncertainty(); !known || !near(u, .6) {
		t.Errorf("uncertainty %v, %v; want 0.6, true", u, known)
	}
}

func TestRatio(t *testing.T) {
	six := []float64{1, 1, 1, 1, 1, 1}
	tests := []struct {
		name            string
		baseline, other []float64
		n               int
		interval        bool
		noisy           bool
	}{
		{"none of the baseline", nil, six, 0, false, false},
		{"none of the other", six, nil, 0, false, false},
		{"zero", []float64{0, 0, 0, 0, 0, 0}, six, 0, false, false},
		{"zero once", []float64{1, 1, 0, 1, 1, 1, 1}, append(six, 1), 6, true, false},
		{"five", six[:5], six, 5, false, true},
		{"one", six[:1], six, 1, false, true},
		{"exact", six, six, 6, true, false},
		{"within 5 %", six, []float64{1, 1, 1, 1, 1, 1.049}, 6, true, false},
		{"more on one side", six, []float64{1, 1, 1, 1, 1, 1.051}, 6, true, true},
		{"zeros over one", six, []float64{0, 0, 0, 0, 0, 0}, 6, true, false},
		{"not finite", []float64{math.Inf(1), math.NaN(), -1, 1, 1, 1, 1, 1, 1}, append(six, 1, 1, 1), 6, true, false},
		{"too large", []float64{5e-324, 1, 1, 1, 1, 1, 1}, []float64{1e308, 1, 1, 1, 1, 1, 1}, 6, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := Summarize(two(Unpack, tt.baseline, tt.other)).Figure(Unpack, Cold, "base:1", "ostree")
			if tt.n == 0 {
				if f != nil && f.Ratio != nil {
					t.Fatalf("there is a ratio: %+v", f.Ratio)
				}
				return
			}
			if f == nil || f.Ratio == nil {
				t.Fatal("no ratio")
			}
			if q := f.Ratio; q.N != tt.n || (q.Lo != nil) != tt.interval || q.Noisy != tt.noisy {
				t.Errorf("%d values, interval %v, noisy %v; want %d, %v, %v", q.N, q.Lo != nil, q.Noisy, tt.n, tt.interval, tt.noisy)
			}
		})
	}
}

func TestNoise(t *testing.T) {
	six := []float64{1, 1, 1, 1, 1, 1}
	wild := []float64{1, 2, 1, 2, 1, 2}
	tests := []struct {
		name string
		r    *Report
		want string
	}{
		{"quiet", two(Unpack, six, six), "The ratios of times are certain within 5 %, two runs on this machine agree within 10 %."},
		{"few rounds", two(Unpack, six[:3], six[:3]), "There is no confidence interval with 3 rounds, 6 are needed: how much two runs differ is unknown."},
		{"one round", two(Unpack, six[:1], six[:1]), "There is no confidence interval with 1 round, 6 are needed: how much two runs differ is unknown."},
		{"sizes", two(Disk, six, wild), "There are no ratios of times."},
		{"processor", two(CPU, six, wild), "This machine was too noisy for: processor of base:1 by ostree, cold: the ratio 1.50 is uncertain by 33 %; two runs may differ by more than 10 %."},
		{"nothing", two(Unpack, nil, nil), "There are no ratios of times."},
	}
	few := two(Unpack, six, six)
	few.Runs = append(few.Runs, two(Start, six[:2], six).Runs...)
	tests = append(tests, struct {
		name string
		r    *Report
		want string
	}{"some", few, "There is no confidence interval for 1 ratio of times: fewer than 6 rounds have both values."})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Summarize(tt.r).Noise; got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
	s := Summarize(example(6, 0.2, 1))
	if len(s.Noisy) <= maxNamed || !strings.Contains(s.Noise, " more; two runs") {
		t.Errorf("the sentence about %d noisy ratios is %q", len(s.Noisy), s.Noise)
	}
	for i := 1; i < len(s.Noisy); i++ {
		if s.Noisy[i].noise() > s.Noisy[i-1].noise() {
			t.Errorf("noisy ratio %d is worse than the one before it", i)
		}
	}
}

func TestHeadlines(t *testing.T) {
	r := two(Unpack, []float64{1, 1, 1, 1, 1, 1}, []float64{.5, .5, .5, .5, .5, .5})
	r.Images = append(r.Images, Image{Name: "b"}, Image{Name: "c"}, Image{Name: "failed"})
	for round := 1; round <= 6; round++ {
		for image, v := range map[string]float64{"b": .9, "c": .6} {
			r.Runs = append(
				r.Runs,
				Run{round, "overlayfs", image, Cold, map[Metric]float64{Unpack: 1}},
				Run{round, "ostree", image, Cold, map[Metric]float64{Unpack: v}},
			)
		}
	}
	got := Summarize(r).Headlines
	want := Headline{Snapshotter: "ostree", Metric: Unpack, State: Cold, Images: 3, Median: .6, Min: .5, Max: .9}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestTwoRuns makes pairs of reports from the same true ratio, with noise of all strengths. If the two ratios are more
// than 10 % apart, at least one report must say that it is noisy.
//
// If neither does, two intervals are within 5 % of their medians, which are 10 % apart (of the larger), and cannot both
// hold the true ratio. An interval misses it in at most 5 % of reports (3.1 % with six rounds), so both are silent in
// at most 10 % of all pairs; in fact in far fewer, because an interval that misses is seldom short. Of the pairs that
// differ, at least 95 % must be flagged. Noise that affects all rounds of a run alike cannot be seen in one run;
// pairing values by round removes it from the ratios.
func TestTwoRuns(t *testing.T) {
	const trials = 200
	for _, rounds := range []int{6, 10, 20} {
		rng := rand.New(rand.NewPCG(42, uint64(rounds)))
		differ, silent, pairs := 0, 0, 0
		for ; differ < trials; pairs++ {
			sigma := 0.01 + 0.09*rng.Float64()
			var q [2]*Ratio
			for i := range q {
				machine := math.Exp(0.5 * rng.NormFloat64()) // slowness of this run
				values := func(mean float64) []float64 {
					v := make([]float64, rounds)
					for j := range v {
						v[j] = machine * mean * math.Exp(sigma*rng.NormFloat64())
						if rng.IntN(10) == 0 { // another process ran
							v[j] *= 1.5
						}
					}
					return v
				}
				q[i] = Summarize(two(Unpack, values(3), values(2))).Figure(Unpack, Cold, "base:1", "ostree").Ratio
			}
			a, b := q[0].Median, q[1].Median
			if max(a, b)-min(a, b) <= 0.1*max(a, b) {
				continue
			}
			differ++
			if !q[0].Noisy && !q[1].Noisy {
				silent++
			}
		}
		t.Logf("%d rounds: %d of %d pairs differ by more than 10 %%, %d of them unnoticed", rounds, differ, pairs, silent)
		if silent > differ*5/100 {
			t.Errorf("%d rounds: %d of %d pairs that differ are not flagged", rounds, silent, differ)
		}
	}
}
