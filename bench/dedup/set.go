package dedup

import "sync"

// A set holds the distinct items of one kind. It is safe for concurrent use.
type set struct {
	mu    sync.Mutex
	first map[key]uint32 // the first image that has the item
	sums  []Sum          // items that each image is the first to have
}

func newSet(images int) *set {
	return &set{first: make(map[key]uint32), sums: make([]Sum, images)}
}

// add records that an image has an item. Images may be added in any order.
func (s *set) add(k key, size int64, image uint32) {
	was, known := s.first[k]
	switch {
	case known && was <= image:
		return
	case known:
		s.sums[was].add(-1, size)
	}
	s.first[k] = image
	s.sums[image].add(1, size)
}

func (s *set) addFiles(files []file, image uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range files {
		s.add(f.key, f.size, image)
	}
}

func (s *set) addChunks(contents []*chunks, of func(*chunks) []chunk, image uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range contents {
		for _, p := range of(c) {
			s.add(p.key, int64(p.size), image)
		}
	}
}

func (s *set) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.first)
}
