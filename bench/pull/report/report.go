// Package report holds the results of a benchmark of snapshotters, and shows them as text, JSON, Markdown and HTML.
package report

import (
	"fmt"
	"strings"
	"time"
)

// Version is the version of report.json. It changes when a field changes its meaning or is removed.
const Version = 1

// A Report is the result of a benchmark: every run, and the machine it ran on. Times are in seconds, sizes in bytes.
type Report struct {
	Version      int       `json:"version"`
	Started      time.Time `json:"started"`
	Seconds      float64   `json:"seconds"`
	Workload     string    `json:"workload"`    // name, "" for images that the user named
	Description  string    `json:"description"` // of the workload
	Images       []Image   `json:"images"`
	Snapshotters []string  `json:"snapshotters"` // in the user's order
	Baseline     string    `json:"baseline"`     // the snapshotter that ratios refer to
	Rounds       int       `json:"rounds"`
	Machine      Machine   `json:"machine"`
	Method       []string  `json:"method"` // sentences
	Runs         []Run     `json:"runs"`
	Failures     []Failure `json:"failures"`
	Interrupted  bool      `json:"interrupted"`
}

// An Image is an image that was pulled.
type Image struct {
	Name      string `json:"name"`   // as the user named it
	Digest    string `json:"digest"` // of the manifest
	Layers    int    `json:"layers"`
	BlobBytes int64  `json:"blob_bytes"` // compressed layers
	Files     int    `json:"files"`      // entries of the merged tree
	FileBytes int64  `json:"file_bytes"` // content of its regular files
}

// A Machine describes where a benchmark ran.
type Machine struct {
	OS         string    `json:"os"`
	Kernel     string    `json:"kernel"`
	CPU        string    `json:"cpu"`
	CPUs       int       `json:"cpus"`
	Memory     int64     `json:"memory_bytes"`
	FileSystem string    `json:"file_system"` // of the stores, like "ext4 on a loop device, new for each run"
	Programs   []Program `json:"programs"`    // versions
}

// A Program is a program whose version matters for the figures.
type Program struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// A State is the content of the store when an image is pulled.
type State string

// The states.
const (
	Cold  State = "cold"  // nothing
	Warm  State = "warm"  // the images before it in the list
	Again State = "again" // the same image, in another namespace
	All   State = "all"   // for all images together
)

// States returns the states in the order in which they are shown.
func States() []State { return []State{Cold, Warm, Again, All} }

// A Metric is a measured quantity.
type Metric string

// The metrics.
const (
	Download  Metric = "download"   // s, to download blobs into the content store
	Unpack    Metric = "unpack"     // s, to unpack downloaded blobs, until the snapshots are committed
	Start     Metric = "start"      // s, from creating a container to the end of a program that does nothing
	Remove    Metric = "remove"     // s, to remove an image, until its snapshots and blobs are gone
	RemoveCPU Metric = "remove-cpu" // s of processor time for that, and for what is done afterwards in the background
	Disk      Metric = "disk"       // bytes of allocated blocks added to the snapshotter's directory
	Inodes    Metric = "inodes"     // added there
	CPU       Metric = "cpu"        // s of processor time while unpacking, of containerd and the snapshotter's daemon
	Memory    Metric = "memory"     // bytes, the largest resident set while unpacking, of both processes
	Cached    Metric = "page-cache" // bytes of page cache after all files of all images were read in containers
)

// Unit is the unit of a metric.
type Unit string

// The units.
const (
	Seconds Unit = "s"
	Bytes   Unit = "B"
	Count   Unit = ""
)

// MetricInfo describes a metric. Less is better for all metrics.
type MetricInfo struct {
	Metric Metric
	Title  string // short, for tables and charts
	Help   string // a sentence
	Unit   Unit
}

// Metrics returns the metrics in the order in which they are shown.
func Metrics() []MetricInfo {
	return []MetricInfo{
		{Unpack, "unpack", "From blobs in the content store to committed snapshots.", Seconds},
		{Download, "download", "From the registry to the content store.", Seconds},
		{Start, "first start", "From making a container to the end of a program that does nothing in it.", Seconds},
		{Remove, "removal", "Removing the image, until its snapshots and blobs are gone.", Seconds},
		{RemoveCPU, "removal, processor", "Processor time of containerd and the daemon for removing the image, also in the background afterwards.", Seconds},
		{Disk, "on disk", "Allocated blocks below the snapshotter's directory, as du counts them.", Bytes},
		{Inodes, "inodes", "Inodes below the snapshotter's directory.", Count},
		{CPU, "processor", "Processor time of containerd and the snapshotter's daemon while unpacking.", Seconds},
		{Memory, "peak memory", "Largest resident set of containerd and of the snapshotter's daemon while unpacking, together.", Bytes},
		{Cached, "page cache", "Page cache that holds the files of all images after containers have read them.", Bytes},
	}
}

// A Run is one pull of one image by one snapshotter, with everything measured during it.
type Run struct {
	Round       int                `json:"round"` // from 1
	Snapshotter string             `json:"snapshotter"`
	Image       string             `json:"image"` // "" in state All
	State       State              `json:"state"`
	Values      map[Metric]float64 `json:"values"`
}

// A Failure is a measurement that failed.
type Failure struct {
	Snapshotter string `json:"snapshotter,omitempty"`
	Image       string `json:"image,omitempty"`
	Round       int    `json:"round,omitempty"` // 0: in no round, or in all
	Error       string `json:"error"`           // one line
}

// NewFailure returns a failure with the error on one line. Arguments that are "" or 0 do not apply.
func NewFailure(snapshotter, image string, round int, err error) Failure {
	return Failure{Snapshotter: snapshotter, Image: image, Round: round, Error: strings.Join(strings.Fields(err.Error()), " ")}
}

// Err returns the failure as an error.
func (f Failure) Err() error {
	var of []string
	if f.Image != "" {
		of = append(of, "image "+f.Image)
	}
	if f.Snapshotter != "" {
		of = append(of, "snapshotter "+f.Snapshotter)
	}
	return fmt.Errorf("measure %s: %s", strings.Join(of, ", "), f.Error)
}
