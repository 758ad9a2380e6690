package dedup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
)

// MaxContent bounds the file content of a layer. Content that takes few bytes in a tar, such as compressed zeros,
// counts in full.
const MaxContent = 64 << 30

// MaxHashes bounds the number of distinct files and chunks of a measurement. The tables for that many take 5 GB, enough
// for 400 GB of distinct content.
const MaxHashes = 1 << 27

var (
	errContent = fmt.Errorf("layer has more than %d GiB of file content", MaxContent>>30)
	errHashes  = fmt.Errorf("there are more than %d distinct files and chunks", MaxHashes)
	errDiffID  = errors.New("tar has another digest than the image's configuration says")
)

// A Tar is the plain tar of a layer.
type Tar interface {
	io.ReadCloser
	// Accept is called after the last byte has been read, with the digest of the tar. It returns an error if this is
	// not the requested tar.
	Accept(diffID digest.Digest) error
}

// A Layer is a layer of an image, as the image describes it.
type Layer struct {
	DiffID   digest.Digest // must be the digest of Open's tar; layers with equal diff IDs are read once
	Blob     digest.Digest // digest of the compressed blob
	BlobSize int64
	Open     func(ctx context.Context) (Tar, error)
}

// Others counts the files of a layer without content to share.
type Others struct {
	EmptyFiles int64
	Symlinks   int64
	Devices    int64 // including fifos and sockets
	Whiteouts  int64
	LinksBelow int64 // hard links to files of a layer below
}

func (o *Others) add(p Others) {
	o.EmptyFiles += p.EmptyFiles
	o.Symlinks += p.Symlinks
	o.Devices += p.Devices
	o.Whiteouts += p.Whiteouts
	o.LinksBelow += p.LinksBelow
}

// layerSums holds the figures of one layer alone.
type layerSums struct {
	tar       int64
	files     Sum
	hardLinks Sum
	others    Others
}

// file is a file of a layer under one of its identities.
type file struct {
	key  key
	size int64
}

// contents is the content of a layer, to be merged into the sets of a measurement.
type contents struct {
	layerSums
	exact, meta, content []file
	chunks               []*chunks // of the contents, in the same order
}

// hashes returns an upper bound of the number of hashes.
func (c *contents) hashes() (n int) {
	n = len(c.exact) + len(c.meta) + len(c.content)
	for _, p := range c.chunks {
		n += p.count()
	}
	return n
}

// readLayer reads the tar of a layer.
func readLayer(ctx context.Context, l *Layer, cut *cutter, read func(n int)) (_ *contents, err error) {
	tar, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := tar.Close(); err == nil { // a decompressor repeats its error there
			err = closed
		}
	}()
	found := make(map[objectstore.Checksum]*chunks)
	left := int64(MaxContent)
	scanned, err := layer.Scan(ctx, &countReader{tar, read}, layer.ScanOptions{
		Content: func(r io.Reader, size int64) (objectstore.Checksum, error) {
			if left -= size; left < 0 {
				return objectstore.Checksum{}, errContent
			}
			sum, err := cut.cut(&contextReader{ctx, r})
			if err == nil && found[sum] == nil {
				found[sum] = cut.take()
			}
			return sum, err
		},
		Accept: func(diffID digest.Digest, _ int64) error {
			if err := tar.Accept(diffID); err != nil {
				return err
			}
			if diffID != l.DiffID {
				return fmt.Errorf("%w: %s", errDiffID, diffID)
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	c := &contents{layerSums: layerSums{tar: scanned.TarSize}}
	for f := range scanned.Files() {
		if !c.count(f) {
			continue
		}
		meta, exact, err := identify(f)
		if err != nil {
			return nil, err
		}
		c.meta = append(c.meta, file{meta, f.Size})
		c.exact = append(c.exact, file{exact, f.Size})
		if p := found[f.Content]; p != nil {
			c.content = append(c.content, file{keyOf(f.Content[:]), f.Size})
			c.chunks = append(c.chunks, p)
			delete(found, f.Content)
		}
	}
	return c, nil
}

// count counts a file, and reports whether it has content.
func (c *contents) count(f layer.ScannedFile) bool {
	switch {
	case f.Below:
		c.others.LinksBelow++
	case f.IsWhiteout():
		c.others.Whiteouts++
	case f.Mode&unix.S_IFMT == unix.S_IFLNK:
		c.others.Symlinks++
	case f.Mode&unix.S_IFMT != unix.S_IFREG:
		c.others.Devices++
	case f.Size == 0:
		c.others.EmptyFiles++
	default:
		c.files.add(1, f.Size)
		c.hardLinks.add(int64(f.Names-1), f.Size)
		return true
	}
	return false
}

// identify returns two identities of a file: by content and metadata, and by time as well.
func identify(f layer.ScannedFile) (meta, exact key, err error) {
	m := layer.FileMeta(f.Inode)
	header, err := m.Header()
	if err != nil {
		return meta, exact, err
	}
	b := append(f.Content[:], header...)
	sum := sha256.Sum256(b)
	meta = keyOf(sum[:])
	b = binary.BigEndian.AppendUint64(b, uint64(f.Mtime.Sec))
	b = binary.BigEndian.AppendUint32(b, uint32(f.Mtime.Nsec))
	for _, x := range f.Xattrs {
		if len(x.Value) == 0 { // an object cannot have it
			b = append(append(b, x.Name...), 0)
		}
	}
	sum = sha256.Sum256(b)
	return meta, keyOf(sum[:]), nil
}

// countReader reports the number of bytes read.
type countReader struct {
	r    io.Reader
	read func(n int)
}

func (r *countReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.read(n)
	return n, err
}

// contextReader stops when the context is done, because a file can be long.
type contextReader struct {
	ctx context.Context //nolint:containedctx // that is its purpose
	r   io.Reader
}

func (r *contextReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(b)
}
