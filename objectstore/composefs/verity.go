package composefs

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
)

// VerityDigest returns the fs-verity digest (SHA-256, blocks of 4096 bytes, no salt) that FS_IOC_MEASURE_VERITY would
// report for a file with the content of r, see Documentation/filesystems/fsverity.rst. It reads r to its end and needs
// memory for a few blocks. Errors of r are returned unchanged.
func VerityDigest(r io.Reader) ([32]byte, error) {
	var (
		tree  merkle
		size  uint64
		block [blockSize]byte
	)
	for {
		n, err := io.ReadFull(r, block[:])
		if n > 0 {
			clear(block[n:])
			size += uint64(n)
			tree.add(0, sha256.Sum256(block[:]))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return [32]byte{}, err
		}
	}
	root := tree.root()
	var desc [256]byte // struct fsverity_descriptor
	desc[0] = 1        // version
	desc[1] = 1        // FS_VERITY_HASH_ALG_SHA256
	desc[2] = blockBits
	binary.LittleEndian.PutUint64(desc[8:], size)
	copy(desc[16:], root[:])
	return sha256.Sum256(desc[:]), nil
}

// merkle holds, for each level, the hashes of the unfinished block.
type merkle struct{ levels [][]byte }

func (m *merkle) add(level int, sum [sha256.Size]byte) {
	if level == len(m.levels) {
		m.levels = append(m.levels, make([]byte, 0, blockSize))
	}
	m.levels[level] = append(m.levels[level], sum[:]...)
	if len(m.levels[level]) == blockSize {
		m.flush(level)
	}
}

// flush hashes the zero-padded block of a level into the level above.
func (m *merkle) flush(level int) {
	block := m.levels[level][:blockSize]
	clear(block[len(m.levels[level]):])
	m.levels[level] = m.levels[level][:0]
	m.add(level+1, sha256.Sum256(block))
}

func (m *merkle) root() (sum [sha256.Size]byte) {
	for i := 0; i < len(m.levels); i++ {
		n := len(m.levels[i])
		if i == len(m.levels)-1 && n == sha256.Size {
			copy(sum[:], m.levels[i])
			return sum
		}
		if n > 0 {
			m.flush(i)
		}
	}
	return sum
}
