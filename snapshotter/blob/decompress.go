package blob

import (
	"bytes"
	"compress/gzip"
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
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/inflate"
)

// Values of the gzip setting besides the path of a program.
const (
	GzipAuto = "auto" // igzip, if the host has it and it passes the self-test
	GzipOff  = "off"  // always in this process
)

const (
	// pipeSize is the size of the pipe from igzip. With the default of 64 KiB the two processes wait for each other.
	pipeSize = 1 << 20
	// igzipMinSize is the size of the smallest blob for igzip: starting a process for a smaller one takes longer than
	// igzip saves.
	igzipMinSize = 1 << 20
	// memberProbe is the length of the search for the end of the first gzip member.
	memberProbe = 64 << 10

	nobody = 65534
)

// A Decompressor decompresses gzip and zstd blobs to plain tars, and passes uncompressed ones through.
//
// With or without igzip it accepts the same gzip blobs: a sequence of complete gzip members, and nothing but zeros after
// them. igzip alone ignores anything after the last member that it recognises.
//
// Decompression takes a few MB of memory, however large the tar. zstd adds twice the window that its frames ask for, at
// most 128 MiB each.
type Decompressor struct {
	igzip string // absolute path; "" if igzip is not used
}

// NewDecompressor returns a decompressor for a gzip setting: [GzipAuto], [GzipOff], or the absolute path of an igzip,
// which must pass the self-test.
func NewDecompressor(ctx context.Context, gzip string) (*Decompressor, error) {
	switch {
	case gzip == GzipOff:
		return &Decompressor{}, nil
	case gzip == GzipAuto || gzip == "":
		path, err := exec.LookPath("igzip")
		if err != nil || !filepath.IsAbs(path) {
			return &Decompressor{}, nil //nolint:nilerr // the host has no igzip
		}
		if err := selfTest(ctx, path); err != nil {
			log.G(ctx).WithError(err).WithField("path", path).Warn("igzip does not pass the self-test and is not used")
			return &Decompressor{}, nil
		}
		return &Decompressor{igzip: path}, nil
	case !filepath.IsAbs(gzip):
		return nil, fmt.Errorf("gzip %q is neither %q, %q nor an absolute path", gzip, GzipAuto, GzipOff)
	}
	if _, err := exec.LookPath(gzip); err != nil {
		return nil, fmt.Errorf("gzip %s: %w", gzip, err)
	}
	if err := selfTest(ctx, gzip); err != nil {
		return nil, fmt.Errorf("gzip %s: %w", gzip, err)
	}
	return &Decompressor{igzip: gzip}, nil
}

// Gzip returns the path of the program that decompresses gzip, or "" if this process does it.
func (d *Decompressor) Gzip() string { return d.igzip }

// A tarStream reads the plain tar of a blob. Read returns io.EOF only if the whole blob was decompressed without error.
type tarStream struct {
	io.Reader
	name   string // of the program or package that decompresses
	accept func(diffID digest.Digest) error
	close  func() error
}

// Close ends decompression, also before the end. Further calls do nothing.
func (s *tarStream) Close() error {
	if s.close == nil {
		return nil
	}
	f := s.close
	s.close = nil
	return f()
}

// useIgzip reports whether igzip should decompress a gzip blob: it must be a file that is large enough and probably has
// a single member. With several members, such as one per file in an eStargz layer, only package inflate can tell that
// nothing follows the last one; see igzipReader.end.
func (d *Decompressor) useIgzip(v *verifier) (bool, error) {
	if d.igzip == "" || v.file == nil || v.blob.Size() < igzipMinSize {
		return false, nil
	}
	r := inflate.NewReader(io.NewSectionReader(v.blob, 0, memberProbe))
	_, err := io.Copy(io.Discard, r)
	switch {
	case r.Members() > 0: // the first one is complete
		return false, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return true, nil
	}
	return false, err
}

// An igzipReader reads the output of igzip.
type igzipReader struct {
	v      *verifier
	ctx    context.Context //nolint:containedctx // Read has no context
	name   string          // of the program
	cmd    *exec.Cmd
	pipe   *os.File
	stderr *excerpt
	total  int64
	waited bool
	err    error // returned by further reads
}

// limited is a shell script that runs a program without the daemon's protection from the OOM killer, and with limits.
// igzip takes a few MB and no file but its standard streams. The time is that of a terabyte. The program could be limited
// from here too, but only after it has begun, and by a process that may set the limits of another user's.
const limited = `set -e
ulimit -v 131072
ulimit -t 3600
ulimit -f 0
ulimit -n 16
ulimit -c 0
read -r score </proc/self/oom_score_adj
[ "$score" -ge 0 ] || echo 0 >/proc/self/oom_score_adj
exec "$0" "$@"`

// igzipCommand returns a command that runs igzip from standard input to standard output, with limits, and as a user that
// owns no files.
func igzipCommand(ctx context.Context, path string) (*exec.Cmd, *excerpt) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", limited, path, "-d", "-c")
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

// startIgzip starts igzip with the file of a blob as its standard input.
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
	// The host may refuse a pipe of this size. The default size is slower, but works.
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize)
	cmd.Stdout = w
	err = cmd.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", path, err), r.Close())
	}
	ir := &igzipReader{v: v, ctx: ctx, name: path, cmd: cmd, pipe: r, stderr: stderr}
	return &tarStream{Reader: ir, name: path, close: ir.Close}, nil
}

// Read reads from the pipe. At the end it waits for igzip, and returns io.EOF only if the whole blob was decompressed.
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

// wait waits for igzip to exit.
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

// end returns io.EOF if igzip has decompressed the whole blob.
//
// A gzip file ends with the length of its last member. If the output has this length, the blob is a single member and
// nothing follows it. Otherwise the blob has several members, or igzip has ignored something, so package inflate reads it
// all again.
func (r *igzipReader) end() error {
	var length [4]byte
	if _, err := r.v.blob.ReadAt(length[:], r.v.blob.Size()-int64(len(length))); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(length[:]) == uint32(r.total) {
		return io.EOF
	}
	n, err := io.Copy(io.Discard, inflate.NewReader(r.v.section()))
	if err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	if n != r.total {
		return fmt.Errorf("decompress: %s wrote %d bytes of %d", r.name, r.total, n)
	}
	return io.EOF
}

// Close kills igzip if it still runs.
func (r *igzipReader) Close() error {
	r.err = os.ErrClosed
	if !r.waited {
		_ = r.cmd.Process.Kill() // it may have exited
		_ = r.cmd.Wait()         // a killed process has no meaningful status
	}
	return r.pipe.Close()
}

// An excerpt keeps the beginning of a program's standard error.
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

// selfTest runs a program on gzip streams with known results. Some versions of igzip read only the first of several
// members.
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
		want []byte // nil if the program must fail
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
			return fmt.Errorf("self-test: accepts incomplete gzip: %s", c.name)
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
	_, _ = w.Write(b) // writing to a bytes.Buffer does not fail
	_ = w.Close()
	return buf.Bytes()
}
