package dedup

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// An Image is an image to measure: layers, lowest first.
type Image struct {
	Name   string
	Layers []Layer
}

// Options configure [Measure]. Zero values stand for the defaults.
type Options struct {
	Parallel int         // layers that are read at once; default: the number of processors
	Progress func(int64) // called concurrently with the number of tar bytes read so far; default: none
}

// A Report holds the savings of each kind of deduplication.
type Report struct {
	Images []ImageReport // measured images, in the given order
	Failed []*ImageError // the other images

	Kinds [kinds]Sum // remaining content of all images

	Blobs, Tars  int64 // sums over all images of the sizes of their compressed and plain layers
	UniqueBlobs  int64 // the same, with each digest counted once
	UniqueTars   int64
	Layers       int // sum over all images
	UniqueLayers int
	HardLinks    Sum // additional names of files in distinct layers, and their size as separate files
	Others       Others
	Hashes       int // number of hashes kept
}

// An ImageReport holds the amount that one image adds to the images before it.
type ImageReport struct {
	Name     string
	Layers   int
	Blobs    int64 // bytes of its compressed layers
	Tars     int64 // bytes of its plain layers
	NewBlobs int64 // bytes of its compressed layers that no image before it has
	New      [kinds]Sum
}

// An ImageError is the reason why an image is not in a report.
type ImageError struct {
	Name string
	Err  error
}

func (e *ImageError) Error() string { return fmt.Sprintf("image %s: %v", e.Name, e.Err) }
func (e *ImageError) Unwrap() error { return e.Err }

var errNoLayers = errors.New("it has no layers")

// Measure reads the layers of images and reports the savings of sharing. An image with a layer that cannot be read is
// left out, and the others are measured as if it had not been given, which may mean that they are read again. The error
// is that of ctx, when it is done.
func Measure(ctx context.Context, images []Image, o Options) (*Report, error) {
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	var failed []*ImageError
	fail := func(bad map[int]error) {
		var left []Image
		for i, img := range images {
			if err := bad[i]; err != nil {
				failed = append(failed, &ImageError{img.Name, err})
			} else {
				left = append(left, img)
			}
		}
		images = left
	}
	empty := make(map[int]error)
	for i, img := range images {
		if len(img.Layers) == 0 {
			empty[i] = errNoLayers
		}
	}
	fail(empty)
	progress := new(atomic.Int64)
	for {
		m := newMeasurement(images, o, progress)
		m.run(ctx)
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if len(m.bad) > 0 {
			fail(m.bad)
			continue
		}
		r := m.report()
		r.Failed = failed
		return r, nil
	}
}

// A measurement is one pass over the layers of some images.
type measurement struct {
	images   []Image
	opts     Options
	progress *atomic.Int64

	distinct []*distinctLayer
	byDiffID map[digest.Digest]*distinctLayer
	sets     [kinds]*set // from Mtime on

	mu  sync.Mutex
	bad map[int]error // by index of the image
}

// A distinctLayer is a layer with the images that have it, in order.
type distinctLayer struct {
	Layer
	images []int
	layerSums
}

func newMeasurement(images []Image, o Options, progress *atomic.Int64) *measurement {
	m := &measurement{
		images: images, opts: o, progress: progress,
		byDiffID: make(map[digest.Digest]*distinctLayer), bad: make(map[int]error),
	}
	for i, img := range images {
		for _, l := range img.Layers {
			d := m.byDiffID[l.DiffID]
			if d == nil {
				d = &distinctLayer{Layer: l}
				m.byDiffID[l.DiffID] = d
				m.distinct = append(m.distinct, d)
			}
			d.images = append(d.images, i)
		}
	}
	for k := Mtime; k < kinds; k++ {
		m.sets[k] = newSet(len(images))
	}
	return m
}

// run reads every distinct layer.
func (m *measurement) run(ctx context.Context) {
	todo := make(chan *distinctLayer)
	var wg sync.WaitGroup
	for range min(m.opts.Parallel, len(m.distinct)) {
		wg.Go(func() {
			cut, err := newCutter()
			for d := range todo {
				if err == nil && m.wanted(d) {
					m.layer(ctx, d, cut)
				} else if err != nil {
					m.fail(d, err)
				}
			}
		})
	}
	for _, d := range m.distinct {
		select {
		case todo <- d:
		case <-ctx.Done():
		}
	}
	close(todo)
	wg.Wait()
}

// wanted reports whether the layer belongs to an image that can still be measured.
func (m *measurement) wanted(d *distinctLayer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(d.images, func(i int) bool { return m.bad[i] == nil })
}

func (m *measurement) fail(d *distinctLayer, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range d.images {
		if m.bad[i] == nil {
			m.bad[i] = fmt.Errorf("layer %s: %w", d.DiffID, err)
		}
	}
}

// layer reads a layer and adds it to the sets.
func (m *measurement) layer(ctx context.Context, d *distinctLayer, cut *cutter) {
	c, err := readLayer(ctx, &d.Layer, cut, func(n int) { m.opts.Progress(m.progress.Add(int64(n))) })
	if err == nil && m.hashes()+c.hashes() > MaxHashes {
		err = errHashes
	}
	if err != nil {
		m.fail(d, err)
		return
	}
	d.layerSums = c.layerSums
	first := uint32(d.images[0])
	m.sets[Mtime].addFiles(c.exact, first)
	m.sets[Metadata].addFiles(c.meta, first)
	m.sets[Content].addFiles(c.content, first)
	m.sets[Fixed128K].addChunks(c.chunks, func(p *chunks) []chunk { return p.large }, first)
	m.sets[Fixed4K].addChunks(c.chunks, func(p *chunks) []chunk { return p.small }, first)
	m.sets[CDC64K].addChunks(c.chunks, func(p *chunks) []chunk { return p.cdc }, first)
}

// report returns the report, after every layer has been read.
func (m *measurement) report() *Report {
	r := &Report{Images: make([]ImageReport, len(m.images)), UniqueLayers: len(m.distinct)}
	blobs := make(map[digest.Digest]bool)
	for i, img := range m.images {
		out := &r.Images[i]
		out.Name, out.Layers = img.Name, len(img.Layers)
		for _, l := range img.Layers {
			d := m.byDiffID[l.DiffID]
			out.Blobs += l.BlobSize
			out.Tars += d.tar
			out.New[Images] = out.New[Images].Plus(d.files)
			if !blobs[l.Blob] {
				blobs[l.Blob] = true
				out.NewBlobs += l.BlobSize
			}
		}
		for k := Mtime; k < kinds; k++ {
			out.New[k] = m.sets[k].sums[i]
		}
	}
	for _, d := range m.distinct {
		first := &r.Images[d.images[0]]
		first.New[Layers] = first.New[Layers].Plus(d.files)
		r.UniqueTars += d.tar
		r.HardLinks = r.HardLinks.Plus(d.hardLinks)
		r.Others.add(d.others)
	}
	for _, img := range r.Images {
		r.Layers += img.Layers
		r.Blobs += img.Blobs
		r.Tars += img.Tars
		r.UniqueBlobs += img.NewBlobs
		for k := range r.Kinds {
			r.Kinds[k] = r.Kinds[k].Plus(img.New[k])
		}
	}
	r.Hashes = m.hashes()
	return r
}

// hashes returns the number of hashes kept.
func (m *measurement) hashes() (n int) {
	for k := Mtime; k < kinds; k++ {
		n += m.sets[k].len()
	}
	return n
}
