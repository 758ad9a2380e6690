package images

import (
	"archive/tar"
	"io"
	"path"
)

// A splitter divides the entries of a tar into layers of about the same size. Each layer has the directories of its
// files, as layers of image builders do. Hard links are in the layer of their target.
type splitter struct {
	layers int
	of     map[string]int              // layer of each name that is not a directory
	dirs   map[string]map[int]struct{} // layers of each directory
}

// entryWeight is the weight of an entry without content: creating a file takes as long as writing that many bytes.
const entryWeight = 30_000

// newSplitter reads the entries of a tar.
func newSplitter(name string, layers int) (*splitter, error) {
	s := &splitter{layers: layers, of: make(map[string]int), dirs: make(map[string]map[int]struct{})}
	var headers []*tar.Header
	total := int64(0)
	err := eachEntry(name, func(h *tar.Header, _ io.Reader) error {
		headers = append(headers, h)
		total += h.Size + entryWeight
		return nil
	})
	if err != nil {
		return nil, err
	}
	before := int64(0)
	for _, h := range headers {
		layer := int(before * int64(layers) / total)
		before += h.Size + entryWeight
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			s.in(name, layer)
			continue
		case tar.TypeLink:
			layer = s.of[path.Clean(h.Linkname)]
		}
		s.of[name] = layer
		for dir := path.Dir(name); ; dir = path.Dir(dir) {
			s.in(dir, layer)
			if dir == "." || dir == "/" {
				break
			}
		}
	}
	return s, nil
}

// in records that a layer has a directory.
func (s *splitter) in(dir string, layer int) {
	if s.dirs[dir] == nil {
		s.dirs[dir] = make(map[int]struct{})
	}
	s.dirs[dir][layer] = struct{}{}
}

// keep returns a function that reports whether an entry is in a layer.
func (s *splitter) keep(layer int) func(*tar.Header) bool {
	return func(h *tar.Header) bool {
		name := path.Clean(h.Name)
		if h.Typeflag == tar.TypeDir {
			_, ok := s.dirs[name][layer]
			return ok
		}
		return s.of[name] == layer
	}
}

// addSplit adds the entries of a tar in n layers.
func (w *layoutWriter) addSplit(name string, layers int) error {
	s, err := newSplitter(name, layers)
	if err != nil {
		return err
	}
	for i := range layers {
		if err := w.addLayer(func(l *layerWriter) { l.copyRootfs(name, s.keep(i)) }); err != nil {
			return err
		}
	}
	return nil
}
