package blob

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Values of the gzip setting that are not the path of a program.
const (
	GzipAuto = "auto" // igzip if there is one on the host and it passes the self-test
	GzipOff  = "off"  // always in this process
)

const (
	// pipeSize is the size of the pipe from igzip: with the default of 64 KiB the two processes wait for each other.
	pipeSize = 1 << 20
	// igzipMinSize is the size below which starting a process takes longer than decompressing.
	igzipMinSize = 256 << 10
	// memberProbe is how much of a blob is searched for the end of the first gzip member.
	memberProbe = 64 << 10

	nobody = 65534
)

// A Decompressor turns blobs into plain tars: gzip and zstd, and what is not compressed.
//
// Whatever it uses, it accepts what Go's gzip accepts, which is a sequence of whole gzip members and nothing after
// them. igzip ignores what follows the last member that it recognises.
//
// Whatever a blob becomes, decompressing it takes some MB of memory, and for zstd twice the window that its frames ask for,
// at most 128 MiB each.
type Decompressor struct {
	igzip string // absolute path, "" for none
}

// NewDecompressor finds out what gzip is decompressed with: [GzipAuto], [GzipOff], or the absolute path of an igzip.
// A program that is named and does not pass the self-test is an error.
func NewDecompressor(ctx context.Context, gzip string) (*Decompressor, error) {
	switch {
	case gzip == GzipOff:
		return &Decompressor{}, nil
	case gzip == GzipAuto || gzip == "":
		path, err := exec.LookPath("igzip")
		if err != nil || !filepath.IsAbs(path) {
			return &Decompressor{}, nil //nolint:nilerr // the host has none
		}
		if err := selfTest(ctx, path); err != nil {
			log.G(ctx).WithError(err).WithField("path", path).Warn("igzip does not pass the self-test and is not used")
			return &Decompressor{}, nil
		}
		return &Decompressor{igzip: path}, nil
	case !filepath.IsAbs(gzip):
		return nil, fmt.Errorf("gzip %q is neither %q, %q nor an absolute path", gzip, GzipAuto, GzipOff)
	}
	if err := selfTest(ctx, gzip); err != nil {
		return nil, fmt.Errorf("gzip %s: %w", gzip, err)
	}
	return &Decompressor{igzip: gzip}, nil
}

// Gzip returns the path of the program that decompresses gzip, "" if this process does.
func (d *Decompressor) Gzip() string { return d.igzip }

// A tarStream is the plain tar of a blob. Read returns io.EOF only if the blob was decompressed without complaint to
// its end.
type tarStream struct {
	io.Reader
	name   string // of what decompresses
	accept func(diffID digest.Digest) error
	close  func() error
}

// Close ends decompression, whether or not everything was read. Further calls do nothing.
func (s *tarStream) Close() error {
	if s.close == nil {
		return nil
	}
	f := s.close
	s.close = nil
	return f()
}

// useIgzip reports whether a gzip blob is one for igzip: a file, worth a process, and probably of one member. Of what
// has several, like an eStargz layer with one for each file, only Go's gzip can say that nothing is left over; see
// igzipReader.end.
func (d *Decompressor) useIgzip(v *verifier) (bool, error) {
	if d.igzip == "" || v.file == nil || v.blob.Size() < igzipMinSize {
		return false, nil
	}
	r, err := gzip.NewReader(io.NewSectionReader(v.blob, 0, memberProbe))
	if err != nil {
		return false, err
	}
	r.Multistream(false)
	_, err = io.Copy(io.Discard, r)
	switch {
	case err == nil: // the first member is complete
		return false, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return true, nil
	}
	return false, err
}

// An igzipReader reads what igzip writes.
type igzipReader struct {
	v      *verifier
	ctx    context.Context //nolint:containedctx // of one Apply
	cmd    *exec.Cmd
	pipe   *os.File
	stderr *excerpt
	total  int64
	waited bool
	err    error // after the end
}

// igzipCommand is a run of igzip from standard input to standard output, as a user that owns nothing.
func igzipCommand(ctx context.Context, path string) (*exec.Cmd, *excerpt) {
	cmd := exec.CommandContext(ctx, path, "-d", "-c")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	cmd.WaitDelay = 5 * time.Second
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	stderr := new(excerpt)
	cmd.Stderr = stderr
	return cmd, stderr
}

// startIgzip starts igzip on the file of a blob, which it reads itself.
func startIgzip(ctx context.Context, path string, v *verifier) (*tarStream, error) {
	cmd, stderr := igzipCommand(ctx, path)
	if _, err := v.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	cmd.Stdin = v.file
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// A host may not allow a pipe of that size; the default one is slower, not wrong.
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize)
	cmd.Stdout = w
	err = cmd.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", path, err), r.Close())
	}
	ir := &igzipReader{v: v, ctx: ctx, cmd: cmd, pipe: r, stderr: stderr}
	return &tarStream{Reader: ir, name: path, close: ir.Close}, nil
}

// Read reads from the pipe. At its end it waits for the process, and returns io.EOF only if all went well.
func (r *igzipReader) Read(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.pipe.Read(b)
	r.total += int64(n)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		if err = r.wait(); err == nil {
			err = r.end()
		}
	}
	r.err = err
	return n, err
}

// wait returns why igzip failed, nil if it did not.
func (r *igzipReader) wait() error {
	r.waited = true
	err := r.cmd.Wait()
	switch {
	case err == nil:
		return nil
	case r.ctx.Err() != nil:
		return context.Cause(r.ctx)
	}
	return fmt.Errorf("decompress: %s%w", r.stderr.prefix(), err)
}

// end returns io.EOF if igzip's output is all that the blob holds.
//
// A gzip file ends with the length of its last member. If that is the length of the output, there was one member and
// nothing behind it. Otherwise there are several, or igzip has ignored something: then Go's gzip reads it all again.
func (r *igzipReader) end() error {
	var length [4]byte
	if _, err := r.v.blob.ReadAt(length[:], r.v.blob.Size()-int64(len(length))); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(length[:]) == uint32(r.total) {
		return io.EOF
	}
	z, err := gzip.NewReader(r.v.section())
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, z)
	if err = errors.Join(err, z.Close()); err != nil {
		return err
	}
	if n != r.total {
		return fmt.Errorf("decompress: %s wrote %d bytes of %d", r.cmd.Path, r.total, n)
	}
	return io.EOF
}

// Close kills the process if it still runs.
func (r *igzipReader) Close() error {
	r.err = os.ErrClosed
	if !r.waited {
		_ = r.cmd.Process.Kill() // it may have ended
		_ = r.cmd.Wait()         // it was killed: how it ended says nothing
	}
	return r.pipe.Close()
}

// An excerpt keeps the beginning of what a program writes to standard error.
type excerpt struct{ buf bytes.Buffer }

const excerptSize = 1 << 10

func (t *excerpt) Write(b []byte) (int, error) {
	t.buf.Write(b[:min(len(b), excerptSize-t.buf.Len())])
	return len(b), nil
}

func (t *excerpt) prefix() string {
	s := strings.Join(strings.Fields(t.buf.String()), " ")
	if s == "" {
		return ""
	}
	return fmt.Sprintf("%q: ", s)
}

// selfTest runs a program over gzip streams whose outcome is known. There are versions of igzip that read the first of
// several members only.
func selfTest(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	first := bytes.Repeat([]byte("all work and no play makes jack a dull boy\n"), 10000)
	second := []byte("the end\n")
	one, two := gzipped(first), gzipped(second)
	badSum := bytes.Clone(one)
	badSum[len(badSum)-8] ^= 1
	for _, c := range []struct {
		name string
		in   []byte
		want []byte // nil: it must fail
	}{
		{"two members", append(bytes.Clone(one), two...), append(bytes.Clone(first), second...)},
		{"truncated", one[:len(one)/2], nil},
		{"without trailer", one[:len(one)-4], nil},
		{"truncated second member", append(bytes.Clone(one), two[:len(two)-3]...), nil},
		{"wrong checksum", badSum, nil},
	} {
		cmd, stderr := igzipCommand(ctx, path)
		cmd.Stdin = bytes.NewReader(c.in)
		out, err := cmd.Output()
		switch {
		case c.want == nil && err == nil:
			return fmt.Errorf("self-test: accepts gzip that is not whole: %s", c.name)
		case c.want != nil && err != nil:
			return fmt.Errorf("self-test: %s: %s%w", c.name, stderr.prefix(), err)
		case c.want != nil && !bytes.Equal(out, c.want):
			return fmt.Errorf("self-test: wrong output: %s", c.name)
		}
	}
	return nil
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(b) // a bytes.Buffer takes everything
	_ = w.Close()
	return buf.Bytes()
}
