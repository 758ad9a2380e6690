package composefs

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096
	blockBits = 12

	headerMagic   = 0xd078629a // LCFS_EROFS_MAGIC
	headerVersion = 1          // LCFS_EROFS_VERSION
	headerSize    = 32
	flagACL       = 1 // LCFS_EROFS_FLAGS_HAS_ACL

	superOffset  = 1024       // EROFS_SUPER_OFFSET
	superSize    = 128        // sizeof(struct erofs_super_block)
	superMagic   = 0xe0f5e1e2 // EROFS_SUPER_MAGIC_V1
	superCompat  = 2 | 4      // EROFS_FEATURE_COMPAT_MTIME | _XATTR_FILTER
	firstInode   = superOffset + superSize
	nidBits      = 5 // EROFS_ISLOTBITS
	slotSize     = 1 << nidBits
	compactSize  = 32 // sizeof(struct erofs_inode_compact)
	extendedSize = 64 // sizeof(struct erofs_inode_extended)
	direntSize   = 12 // sizeof(struct erofs_dirent)

	layoutPlain  = 0 // EROFS_INODE_FLAT_PLAIN
	layoutInline = 2 // EROFS_INODE_FLAT_INLINE
	layoutChunk  = 4 // EROFS_INODE_CHUNK_BASED

	minChunkBits = blockBits
	maxChunkBits = blockBits + 31 // EROFS_CHUNK_FORMAT_BLKBITS_MASK

	// A tail of a directory or of inline content larger than this gets its own block.
	maxTail = blockSize / 2

	stubMode = unix.S_IFCHR | 0o644
	stubs    = 256
)

// Values of erofs_dirent.file_type (enum in include/linux/fs_types.h).
const (
	ftReg uint8 = iota + 1
	ftDir
	ftChr
	ftBlk
	ftFifo
	ftSock
	ftLnk
)

// fileType returns the directory entry type of mode, 0 if there is none.
func fileType(mode uint32) uint8 {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return ftReg
	case unix.S_IFDIR:
		return ftDir
	case unix.S_IFCHR:
		return ftChr
	case unix.S_IFBLK:
		return ftBlk
	case unix.S_IFIFO:
		return ftFifo
	case unix.S_IFSOCK:
		return ftSock
	case unix.S_IFLNK:
		return ftLnk
	}
	return 0
}

// stubName returns the i-th of the 256 names that the writer adds to the root: they keep the directories of the object
// store from showing through.
func stubName(i int) string {
	const hex = "0123456789abcdef"
	return string([]byte{hex[i>>4], hex[i&15]})
}

// chunkBits returns the logarithm of the chunk size for a file without data.
func chunkBits(size int64) int {
	return min(max(bits.Len64(uint64(size-1)), minChunkBits), maxChunkBits)
}

// chunkTable returns the size in bytes of the chunk table of such a file.
func chunkTable(size int64) int64 {
	b := chunkBits(size)
	return ((size-1)>>b + 1) * 4
}

// shape is the location of an inode and the size of its data.
type shape struct {
	pos    int64 // of the inode
	blocks int64 // data blocks
	tail   int64 // bytes behind the inode and its attributes
}

// place determines the location of the next inode: s.pos is the end of the previous one, s.blocks and s.tail are the
// wishes of its type, meta is the size of the inode with its attributes. The kernel requires a tail, or a whole
// symlink, to be within one block.
func place(s shape, meta int64, symlink bool) shape {
	s.pos = roundUp(s.pos, slotSize)
	if symlink {
		total := meta + s.tail
		crosses := s.pos/blockSize != (s.pos+total-1)/blockSize
		if total >= blockSize {
			s.blocks++
			s.tail = 0
		}
		if crosses {
			s.pos = roundUp(s.pos, blockSize)
		}
		return s
	}
	left := blockSize - (s.pos+meta)%blockSize
	if left >= s.tail {
		return s
	}
	skip := roundUp(left, slotSize)
	if s.tail <= blockSize-(s.pos+meta+skip)%blockSize {
		s.pos += skip
		return s
	}
	s.blocks++
	s.tail = 0
	s.pos = roundUp(s.pos, blockSize)
	return s
}

func roundUp(n, align int64) int64 { return (n + align - 1) / align * align }

// dirPacker packs directory entries greedily into blocks.
type dirPacker struct {
	full int64 // complete blocks
	used int64 // bytes in the block being filled
}

// add accounts for a name and reports whether it begins a new block.
func (p *dirPacker) add(name string) bool {
	n := int64(direntSize + len(name))
	if p.used+n > blockSize {
		p.full++
		p.used = n
		return true
	}
	p.used += n
	return false
}

// shape returns the blocks and the tail of the directory.
func (p *dirPacker) shape() (blocks, tail int64) { return splitTail(p.full, p.used) }

func splitTail(full, rest int64) (blocks, tail int64) {
	if rest > maxTail {
		return full + 1, 0
	}
	return full, rest
}
