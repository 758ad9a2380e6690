package dedup

import "sync"

// A set is what is kept once of one kind. It may be used by many goroutines at once.
type set struct {
	mu    sync.Mutex
	first map[key]uint32 // image that has it first
	sums  []Sum          // what each image has first
}

func newSet(images int) *set {
	return &set{first: make(map[key]uint32), sums: make([]Sum, images)}
}

// add takes note that an image has something. In what order images are added does not matter.
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
