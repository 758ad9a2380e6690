package report

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// noise generates factors around 1 with a standard deviation of sigma. They are never zero.
type noise struct {
	rng   *rand.Rand
	sigma float64
}

func (n noise) factor() float64 { return max(0.05, 1+n.sigma*n.rng.NormFloat64()) }

// example returns a typical report: related images, so that the second and third cost ostree little, and a third
// snapshotter that failed once.
func example(rounds int, sigma float64, seed uint64) *Report {
	n := noise{rand.New(rand.NewPCG(seed, 1)), sigma}
	images := []Image{
		{"docker.io/library/python:3.13-slim-bookworm", digestOf('a'), 4, 44 << 20, 5871, 121 << 20},
		{"docker.io/library/python:3.13-bookworm", digestOf('b'), 7, 369 << 20, 31423, 1009 << 20},
		{"registry.example.org:5000/team/billing/service-with-a-long-name:2026.10.1-rc1", digestOf('c'), 11, 402 << 20, 35210, 1090 << 20},
	}
	r := &Report{
		Version: Version, Started: time.Date(2026, 10, 1, 9, 30, 0, 0, time.UTC), Seconds: 1894, Workload: "related",
		Description: "A base image, one that is built on it, and a service built on that.",
		Images:      images, Snapshotters: []string{"overlayfs", "ostree", "fuse-overlayfs"}, Baseline: "overlayfs", Rounds: rounds,
		Machine: Machine{
			OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-28-amd64", CPU: "AMD EPYC 7763 64-Core Processor", CPUs: 2,
			Memory: 8 << 30, FileSystem: "ext4 on a loop device, new for each run",
			Programs: []Program{{"containerd", "v2.4.2"}, {"ostree-snapshotter", "v0.9.0"}, {"fuse-overlayfs", "1.10"}},
		},
		Method: []string{
			"Each round pulls every image with every snapshotter, in an order that changes from round to round.",
			"Before each run the store is made anew and the kernel's caches are dropped.",
		},
		Failures: []Failure{
			{Snapshotter: "fuse-overlayfs", Image: images[2].Name, Round: 2, Error: "start container: exec /bin/true: input/output error"},
		},
	}
	cold := []float64{1.31, 9.42, 10.6} // seconds to unpack with the baseline
	warm := map[string][]float64{"overlayfs": {1, 0.99, 0.31}, "ostree": {0.71, 0.22, 0.09}, "fuse-overlayfs": {1.02, 1.01, 0.33}}
	speed := map[string]float64{"overlayfs": 1, "ostree": 0.71, "fuse-overlayfs": 1.04}
	used := map[string]float64{"overlayfs": 1, "ostree": 0.61, "fuse-overlayfs": 1}
	for round := 1; round <= rounds; round++ {
		for _, snapshotter := range r.Snapshotters {
			for i, image := range images {
				if len(r.Failures) > 0 && snapshotter == r.Failures[0].Snapshotter && i == 2 && round == 2 {
					continue
				}
				again := 0.004 * n.factor()
				if snapshotter != "ostree" {
					again = cold[i] * speed[snapshotter] * n.factor()
				}
				unpack := cold[i] * speed[snapshotter] * n.factor()
				r.Runs = append(
					r.Runs,
					Run{round, snapshotter, image.Name, Cold, map[Metric]float64{
						Unpack: unpack, Download: cold[i] * 0.4 * n.factor(), Start: 0.21 * n.factor() * speed[snapshotter],
						Remove: 0.3 * n.factor(), Disk: used[snapshotter] * float64(image.FileBytes),
						Inodes: float64(image.Files + 40*len(snapshotter)), CPU: unpack * 1.2,
						Memory: float64(90<<20) * n.factor(),
					}},
					Run{round, snapshotter, image.Name, Warm, map[Metric]float64{Unpack: cold[i] * warm[snapshotter][i] * n.factor()}},
					Run{round, snapshotter, image.Name, Again, map[Metric]float64{Unpack: again}},
				)
			}
			r.Runs = append(r.Runs, Run{round, snapshotter, "", All, map[Metric]float64{
				Disk: used[snapshotter] * 0.9 * float64(2000<<20), Inodes: used[snapshotter] * 70000,
				Cached: used[snapshotter] * float64(1200<<20) * n.factor(),
			}})
		}
	}
	return r
}

func digestOf(c rune) string { return "sha256:" + fmt.Sprintf("%064x", int(c)*7919) }
