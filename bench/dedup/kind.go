package dedup

// A Kind is a kind of deduplication: the unit that is kept once.
type Kind int

// The kinds, in the order of increasing sharing.
const (
	Images    Kind = iota // nothing is shared
	Layers                // layers
	Mtime                 // files of equal content, metadata and modification time
	Metadata              // files of equal content and metadata
	Content               // files of equal content
	Fixed128K             // 128 KiB of a file's content
	Fixed4K               // 4 KiB of it
	CDC64K                // a chunk cut by FastCDC
	kinds
)

// Kinds lists all kinds.
func Kinds() []Kind {
	list := make([]Kind, kinds)
	for i := range list {
		list[i] = Kind(i)
	}
	return list
}

// String returns the name of the kind, which is a stable interface.
func (k Kind) String() string {
	return [...]string{"images", "layers", "mtime", "metadata", "content", "fixed128k", "fixed4k", "cdc64k"}[k]
}

// BlockSize is the size of the blocks in which files are counted.
const BlockSize = 4 << 10

// A Sum counts files, or chunks of files.
type Sum struct {
	Count int64
	Bytes int64
	Disk  int64 // bytes in whole blocks, if each file or chunk is a file of its own
}

// add adds n files of one size.
func (s *Sum) add(n, size int64) {
	s.Count += n
	s.Bytes += n * size
	s.Disk += n * blocks(size)
}

// Plus returns the sum of both.
func (s Sum) Plus(t Sum) Sum { return Sum{s.Count + t.Count, s.Bytes + t.Bytes, s.Disk + t.Disk} }

// Minus returns the difference of both.
func (s Sum) Minus(t Sum) Sum { return Sum{s.Count - t.Count, s.Bytes - t.Bytes, s.Disk - t.Disk} }

// blocks rounds a size up to whole blocks.
func blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize * BlockSize }
