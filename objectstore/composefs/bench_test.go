package composefs

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// osTree is a tree with the shape of an operating system image: directories of some twenty entries; each file has its
// own time, object and digest, and two attributes.
func osTree(inodes int) *Inode {
	root := dir()
	left := inodes - 1
	level := []*Inode{root}
	for n := 0; left > 0; {
		var next []*Inode
		for _, d := range level {
			for k := range 24 {
				if left == 0 {
					break
				}
				left--
				n++
				i := file(int64(n)*37, n)
				if k%6 == 0 {
					i = dir()
					next = append(next, i)
				} else {
					i.Verity = make([]byte, digestSize)
					le.PutUint64(i.Verity, uint64(n))
				}
				i.Mtime = unix.Timespec{Sec: 1700000000 + int64(n%1000), Nsec: int64(n)}
				i.Xattrs = xattrs("security.selinux", fmt.Sprintf("system_u:object_r:type%d_t:s0", n%50), "user.mark", "1")
				d.Entries = append(d.Entries, Entry{fmt.Sprintf("name-of-a-file-%08d", n), i})
			}
		}
		level = next
	}
	return root
}

var benchSizes = []int{12_000, 1_000_000}

func BenchmarkMarshal(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			root := osTree(n)
			b.ReportAllocs()
			for b.Loop() {
				image, err := Marshal(root, ostree)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(image)))
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			image := mustMarshal(b, osTree(n), ostree)
			b.SetBytes(int64(len(image)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Read(image, Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
