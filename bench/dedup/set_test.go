package dedup

import (
	"encoding/binary"
	"runtime"
	"testing"
)

// TestSetMemory checks the size of a set that the package documents.
func TestSetMemory(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := newSet(1)
	var k key
	var least, most uint64 = 1 << 20, 0
	for n := range uint64(1 << 20) {
		binary.LittleEndian.PutUint64(k[:], n)
		s.add(k, 1, 0)
		if n >= 1<<18 && n%(1<<16) == 0 {
			each := (heap() - before) / n
			least, most = min(least, each), max(most, each)
		}
	}
	t.Logf("%d to %d bytes a hash", least, most)
	if most > 50 {
		t.Errorf("%d bytes a hash, want at most 50", most)
	}
	runtime.KeepAlive(s)
}

func TestSetOrder(t *testing.T) {
	for _, order := range [][]uint32{{0, 1, 2}, {2, 1, 0}, {1, 2, 0, 1}} {
		s := newSet(3)
		for _, image := range order {
			s.add(key{1}, 5000, image)
		}
		if want := (Sum{Count: 1, Bytes: 5000, Disk: 8192}); s.sums[0] != want || s.sums[1] != (Sum{}) || s.sums[2] != (Sum{}) {
			t.Errorf("order %v: images have %+v first", order, s.sums)
		}
	}
}
