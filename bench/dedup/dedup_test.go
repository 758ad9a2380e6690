package dedup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// entry is an entry of a tar. The default is a regular file of mode 644 and time 1.
type entry struct {
	name    string
	content string
	mode    int64
	uid     int
	mtime   int64
	typ     byte
	link    string
	xattr   string // value of user.test
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Typeflag: e.typ, Name: e.name, Linkname: e.link, Mode: e.mode, Uid: e.uid, Size: int64(len(e.content)),
			ModTime: time.Unix(e.mtime, 0),
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if e.mtime == 0 {
			h.ModTime = time.Unix(1, 0)
		}
		if e.xattr != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.test": e.xattr}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// memoryTar is a tar in memory, as a blob that is not compressed.
type memoryTar struct {
	io.Reader
	accept error
}

func (memoryTar) Close() error                 { return nil }
func (m memoryTar) Accept(digest.Digest) error { return m.accept }

func memoryLayer(b []byte) dedup.Layer {
	id := digest.FromBytes(b)
	return dedup.Layer{
		DiffID: id, Blob: id, BlobSize: int64(len(b)),
		Open: func(context.Context) (dedup.Tar, error) { return memoryTar{Reader: bytes.NewReader(b)}, nil },
	}
}

func image(name string, tars ...[]byte) dedup.Image {
	img := dedup.Image{Name: name}
	for _, b := range tars {
		img.Layers = append(img.Layers, memoryLayer(b))
	}
	return img
}

func measure(t testing.TB, images ...dedup.Image) *dedup.Report {
	t.Helper()
	r, err := dedup.Measure(t.Context(), images, dedup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// random returns content without repetitions inside.
func random(seed uint64, n int) string {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = rnd.Read(b)
	return string(b)
}

// sum returns the Sum of files of these sizes.
func sum(sizes ...int64) (s dedup.Sum) {
	for _, n := range sizes {
		s = s.Plus(dedup.Sum{Count: 1, Bytes: n, Disk: (n + 4095) / 4096 * 4096})
	}
	return s
}

// TestKinds compares with figures calculated by hand. FastCDC makes one chunk of contents shorter than 16 KiB.
func TestKinds(t *testing.T) {
	x, x2 := random(1, 4096), random(2, 100)
	big, tail := random(3, 128<<10), random(4, 5000)
	for _, tt := range []struct {
		name   string
		layers [][]entry // of one image
		want   map[dedup.Kind]dedup.Sum
	}{
		{
			name:   "one file",
			layers: [][]entry{{{name: "a", content: x + x2}}},
			want: map[dedup.Kind]dedup.Sum{
				dedup.Images: sum(4196), dedup.Layers: sum(4196), dedup.Mtime: sum(4196), dedup.Metadata: sum(4196),
				dedup.Content: sum(4196), dedup.Fixed128K: sum(4196), dedup.Fixed4K: sum(4096, 100), dedup.CDC64K: sum(4196),
			},
		},
		{
			name: "each kind differs",
			layers: [][]entry{
				{
					{name: "a", content: x + x2},
					{name: "same", content: x + x2},
					{name: "mtime", content: x + x2, mtime: 2},
					{name: "mode", content: x + x2, mode: 0o600},
					{name: "owner", content: x + x2, uid: 7},
					{name: "xattr", content: x + x2, xattr: "v"},
					{name: "page", content: x + "other"},
				},
				{{name: "big", content: big + x}, {name: "big2", content: big + tail}},
			},
			want: map[dedup.Kind]dedup.Sum{
				dedup.Images:   sum(4196, 4196, 4196, 4196, 4196, 4196, 4101, 135168, 136072),
				dedup.Layers:   sum(4196, 4196, 4196, 4196, 4196, 4196, 4101, 135168, 136072),
				dedup.Mtime:    sum(4196, 4196, 4196, 4196, 4196, 4101, 135168, 136072),
				dedup.Metadata: sum(4196, 4196, 4196, 4196, 4101, 135168, 136072),
				dedup.Content:  sum(4196, 4101, 135168, 136072),
				// big's first 128 KiB once, x as a chunk of its own
				dedup.Fixed128K: sum(4196, 4101, 131072, 4096, 5000),
				// x, x2, "other", 32 pages of big, 4096 and 904 bytes of tail
				dedup.Fixed4K: sum(slices.Concat([]int64{4096, 100, 5, 4096, 904}, slices.Repeat([]int64{4096}, 32))...),
			},
		},
		{
			name: "hard links are one file, with the attributes of the last header",
			layers: [][]entry{{
				{name: "a", content: x2},
				{name: "b", typ: tar.TypeLink, link: "a", mode: 0o600, mtime: 5},
				{name: "c", content: x2, mode: 0o600, mtime: 5},
			}},
			want: map[dedup.Kind]dedup.Sum{
				dedup.Layers: sum(100, 100), dedup.Mtime: sum(100), dedup.Metadata: sum(100), dedup.Content: sum(100),
				dedup.CDC64K: sum(100),
			},
		},
		{
			name:   "what is replaced or removed in its own layer does not count, what a higher layer hides does",
			layers: [][]entry{{{name: "a", content: "old"}, {name: "a", content: "newer"}}, {{name: ".wh.a"}}},
			want: map[dedup.Kind]dedup.Sum{
				dedup.Images: sum(5), dedup.Layers: sum(5), dedup.Content: sum(5), dedup.Fixed4K: sum(5), dedup.CDC64K: sum(5),
			},
		},
		{
			name: "a run of equal chunks",
			layers: [][]entry{{
				{name: "zeros", content: strings.Repeat("\x00", 300<<10)},
				{name: "page", content: strings.Repeat("\x00", 4096)},
			}},
			want: map[dedup.Kind]dedup.Sum{
				dedup.Content: sum(300<<10, 4096), dedup.Fixed128K: sum(128<<10, 44<<10, 4096), dedup.Fixed4K: sum(4096),
			},
		},
		{
			name: "empty files and links have nothing",
			layers: [][]entry{{
				{name: "e"},
				{name: "l", typ: tar.TypeSymlink, link: "e"},
				{name: "below", typ: tar.TypeLink, link: "lower"},
				{name: "fifo", typ: tar.TypeFifo},
			}},
			want: map[dedup.Kind]dedup.Sum{dedup.Images: {}, dedup.Mtime: {}, dedup.Content: {}, dedup.Fixed4K: {}, dedup.CDC64K: {}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range tt.layers {
				tars = append(tars, makeTar(t, l...))
			}
			r := measure(t, image("i", tars...))
			if len(r.Failed) > 0 {
				t.Fatal(r.Failed)
			}
			for _, k := range slices.Sorted(maps.Keys(tt.want)) {
				if got, want := r.Kinds[k], tt.want[k]; got != want {
					t.Errorf("%v: got %+v, want %+v", k, got, want)
				}
			}
		})
	}
}

func TestReport(t *testing.T) {
	base := makeTar(t, entry{name: "a", content: random(1, 5000)}, entry{name: "b", typ: tar.TypeLink, link: "a"},
		entry{name: "e"}, entry{name: "l", typ: tar.TypeSymlink, link: "a"}, entry{name: "f", typ: tar.TypeFifo},
		entry{name: ".wh.gone"}, entry{name: "low", typ: tar.TypeLink, link: "elsewhere"})
	app := makeTar(t, entry{name: "app", content: random(2, 10)}, entry{name: "copy", content: random(1, 5000), mtime: 9})
	r := measure(t, image("base", base), image("app", base, app), image("again", base, app))

	for k, want := range map[dedup.Kind][]dedup.Sum{
		dedup.Images:   {sum(5000), sum(5000, 5000, 10), sum(5000, 5000, 10)},
		dedup.Layers:   {sum(5000), sum(5000, 10), {}},
		dedup.Mtime:    {sum(5000), sum(5000, 10), {}},
		dedup.Metadata: {sum(5000), sum(10), {}},
		dedup.Content:  {sum(5000), sum(10), {}},
		dedup.Fixed4K:  {sum(4096, 904), sum(10), {}},
	} {
		for i, want := range want {
			if got := r.Images[i].New[k]; got != want {
				t.Errorf("%v: image %d adds %+v, want %+v", k, i, got, want)
			}
		}
	}
	nb, na := int64(len(base)), int64(len(app))
	got := []any{r.Layers, r.UniqueLayers, r.Blobs, r.UniqueBlobs, r.Tars, r.UniqueTars, r.HardLinks, r.Others, r.Images[1].NewBlobs}
	want := []any{
		5, 2, 3*nb + 2*na, nb + na, 3*nb + 2*na, nb + na, sum(5000),
		dedup.Others{EmptyFiles: 1, Symlinks: 1, Devices: 1, Whiteouts: 1, LinksBelow: 1},
		na,
	}
	if diff := testenv.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	// mtime 3, metadata 2, content 2, fixed128k 2, fixed4k 3, cdc 2
	if r.Hashes != 14 {
		t.Errorf("%d hashes, want 14", r.Hashes)
	}
}

// randomEntries returns files that have much in common.
func randomEntries(rnd *rand.Rand) []entry {
	var list []entry
	for i := range 1 + rnd.IntN(30) {
		content := random(rnd.Uint64N(5), rnd.IntN(200<<10))
		if rnd.IntN(3) == 0 {
			content = random(rnd.Uint64N(5), 10) + content
		}
		list = append(list, entry{
			name: fmt.Sprintf("d%d/f%d", rnd.IntN(3), i), content: content, mtime: 1 + rnd.Int64N(2), mode: 0o600 + rnd.Int64N(2),
		})
	}
	return list
}

// TestProperties checks that a kind that shares more never leaves more, and that neither the order of files in a tar
// nor the number of layers read at once matters.
func TestProperties(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var images, shuffled []dedup.Image
		for i := range 3 {
			list := randomEntries(rnd)
			images = append(images, image(fmt.Sprint(i), makeTar(t, list...)))
			list = slices.Clone(list)
			rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			shuffled = append(shuffled, image(fmt.Sprint(i), makeTar(t, list...)))
		}
		r := measure(t, images...)
		for k := dedup.Layers; k <= dedup.Content; k++ {
			if a, b := r.Kinds[k-1], r.Kinds[k]; a.Count < b.Count || a.Bytes < b.Bytes || a.Disk < b.Disk {
				t.Errorf("seed %d: %v leaves %+v, %v %+v", seed, k-1, a, k, b)
			}
		}
		for _, k := range []dedup.Kind{dedup.Fixed128K, dedup.Fixed4K, dedup.CDC64K} {
			if a, b := r.Kinds[dedup.Content], r.Kinds[k]; a.Bytes < b.Bytes {
				t.Errorf("seed %d: contents are %d bytes, %v %d", seed, a.Bytes, k, b.Bytes)
			}
		}
		if r.Kinds[dedup.Fixed128K].Bytes < r.Kinds[dedup.Fixed4K].Bytes || r.Kinds[dedup.Images].Bytes > r.Tars {
			t.Errorf("seed %d: %+v", seed, r)
		}
		again, err := dedup.Measure(t.Context(), shuffled, dedup.Options{Parallel: 1})
		if err != nil {
			t.Fatal(err)
		}
		if diff := testenv.Diff(r, again); diff != "" {
			t.Errorf("seed %d: files in another order (-first +second):\n%s", seed, diff)
		}
	}
}

// TestShifted checks that one byte inserted before a content changes every chunk of fixed size, and few content-defined
// chunks.
func TestShifted(t *testing.T) {
	content := random(1, 4<<20)
	r := measure(t, image("i", makeTar(t, entry{name: "a", content: content}, entry{name: "b", content: "!" + content})))
	n := int64(len(content))
	if got := r.Kinds[dedup.Fixed4K].Bytes; got != 2*n+1 {
		t.Errorf("chunks of 4 KiB are %d bytes, want %d", got, 2*n+1)
	}
	cdc := r.Kinds[dedup.CDC64K]
	if cdc.Bytes < n || cdc.Bytes > n+512<<10 {
		t.Errorf("chunks by content are %d bytes of %d", cdc.Bytes, n)
	}
	if size := cdc.Bytes / cdc.Count; size < 40<<10 || size > 110<<10 {
		t.Errorf("chunks by content have %d bytes on average", size)
	}
}

func TestFailures(t *testing.T) {
	good := makeTar(t, entry{name: "a", content: random(1, 9000)})
	other := makeTar(t, entry{name: "b", content: random(2, 500)})
	broken := errors.New("broken")

	truncated := memoryLayer(good[:5000])
	wrong := memoryLayer(good)
	wrong.DiffID = digest.FromString("another")
	refused := memoryLayer(makeTar(t, entry{name: "r", content: "r"}))
	refused.Open = func(context.Context) (dedup.Tar, error) {
		return memoryTar{bytes.NewReader(makeTar(t, entry{name: "r", content: "r"})), broken}, nil
	}
	absent := memoryLayer(other)
	absent.DiffID = digest.FromString("absent")
	absent.Open = func(context.Context) (dedup.Tar, error) { return nil, broken }
	long := strings.Repeat("n", 256)
	invalid := memoryLayer(makeTar(t, entry{name: long, content: "x"}))
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "huge", Size: dedup.MaxContent + 1, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	huge := memoryLayer(b.Bytes())

	for _, tt := range []struct {
		name string
		bad  dedup.Layer
		want string
		is   error
	}{
		{"truncated", truncated, "unexpected EOF", io.ErrUnexpectedEOF},
		{"invalid", invalid, `layer entry "` + long + `": name is too long`, layer.ErrInvalid},
		{"another tar", wrong, "tar has another digest", nil},
		{"another blob", refused, "broken", broken},
		{"absent", absent, "broken", broken},
		{"more content than is measured", huge, "more than 64 GiB of file content", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The bad image comes first and shares layers with others.
			bad := dedup.Image{Name: "bad", Layers: []dedup.Layer{memoryLayer(good), memoryLayer(other), tt.bad}}
			r := measure(t, bad, image("good", good), dedup.Image{Name: "bad too", Layers: []dedup.Layer{tt.bad}}, image("none"))
			var names []string
			for _, f := range r.Failed {
				names = append(names, f.Name)
			}
			if diff := testenv.Diff([]string{"none", "bad", "bad too"}, names); diff != "" {
				t.Errorf("failed images (-want +got):\n%s", diff)
			}
			err := r.Failed[1]
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "image bad: layer "+tt.bad.DiffID.String()) {
				t.Errorf("error is %q, want the layer and %q", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			r.Failed = nil
			if diff := testenv.Diff(measure(t, image("good", good)), r); diff != "" {
				t.Errorf("report differs from one without the bad image (-want +got):\n%s", diff)
			}
		})
	}
}

// endless is a tar of one file without an end.
type endless struct {
	header *bytes.Reader
	read   func()
}

func (e *endless) Read(b []byte) (int, error) {
	if e.header.Len() > 0 {
		return e.header.Read(b)
	}
	e.read()
	return len(b), nil
}

func (*endless) Close() error               { return nil }
func (*endless) Accept(digest.Digest) error { return nil }

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "f", Size: dedup.MaxContent, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	l := memoryLayer(b.Bytes())
	l.Open = func(context.Context) (dedup.Tar, error) {
		return &endless{bytes.NewReader(b.Bytes()), func() { cancel(stop) }}, nil
	}
	start := time.Now()
	r, err := dedup.Measure(ctx, []dedup.Image{{Name: "i", Layers: []dedup.Layer{l}}}, dedup.Options{})
	if !errors.Is(err, stop) || r != nil {
		t.Errorf("got %v, %v, want the cause of the cancellation", r, err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v to stop", d)
	}
}
