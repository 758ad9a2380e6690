package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
)

// nameOf represents a content by its beginning.
func nameOf(r io.Reader, size int64) (sum objectstore.Checksum, err error) {
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != size {
		err = errors.New("size is wrong")
	}
	copy(sum[:], b)
	return sum, err
}

func TestScan(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "dir/a", Size: 1, Mode: 0o644},
		{Name: "dir/b", Typeflag: tar.TypeLink, Linkname: "dir/a", Mode: 0o600},
		{Name: "dir/c", Typeflag: tar.TypeLink, Linkname: "dir/a", Mode: 0o640}, // the last header counts
		{Name: "twice", Size: 2, Mode: 0o644},
		{Name: "twice", Size: 3, Mode: 0o644},
		{Name: "low", Typeflag: tar.TypeLink, Linkname: "dir/lower"},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "dir"},
		{Name: ".wh.gone"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{byte('0' + h.Size)}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b.WriteString("behind the end") // which the digest covers too
	accepted := digest.Digest("")
	s, err := Scan(t.Context(), bytes.NewReader(b.Bytes()), ScanOptions{
		Content: nameOf,
		Accept:  func(id digest.Digest, _ int64) error { accepted = id; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := digest.FromBytes(b.Bytes()); s.DiffID != want || accepted != want || s.TarSize != int64(b.Len()) {
		t.Errorf("tar is %s of %d bytes, %s was accepted, want %s", s.DiffID, s.TarSize, accepted, want)
	}
	var got []string
	for f := range s.Files() {
		text := strings.TrimRight(string(f.Content[:]), "\x00")
		switch {
		case f.Below:
			text = "below"
		case f.IsWhiteout():
			text = "whiteout"
		case f.Target != "":
			text = "to " + f.Target
		}
		got = append(got, text+" "+strings.Repeat("x", f.Names)+" "+fmt.Sprintf("%o", f.Mode&0o7777))
	}
	slices.Sort(got)
	want := []string{"1 xxx 640", "333 x 644", "below x 0", "to dir x 777", "whiteout x 0"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestScanErrors(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Size: 1000, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	mine := errors.New("mine")
	for _, tt := range []struct {
		name    string
		tar     io.Reader
		content func(io.Reader, int64) (objectstore.Checksum, error)
		accept  error
		want    error
		invalid bool
	}{
		{name: "truncated in a file", tar: bytes.NewReader(b.Bytes()[:700]), want: io.ErrUnexpectedEOF, invalid: true},
		{
			name: "truncated, and the reader of contents does not care", tar: bytes.NewReader(b.Bytes()[:700]),
			content: func(r io.Reader, _ int64) (sum objectstore.Checksum, _ error) { _, _ = io.ReadAll(r); return sum, nil },
			want:    io.ErrUnexpectedEOF, invalid: true,
		},
		{
			name: "the reader of contents fails", tar: bytes.NewReader(b.Bytes()),
			content: func(io.Reader, int64) (sum objectstore.Checksum, _ error) { return sum, mine },
			want:    mine,
		},
		{
			name: "the source fails", tar: io.MultiReader(bytes.NewReader(b.Bytes()[:700]), failing{mine}), want: mine,
		},
		{name: "not accepted", tar: bytes.NewReader(b.Bytes()), accept: mine, want: mine},
		{name: "no tar", tar: bytes.NewReader(bytes.Repeat([]byte("x"), 1024)), want: tar.ErrHeader, invalid: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content := tt.content
			if content == nil {
				content = nameOf
			}
			s, err := Scan(t.Context(), tt.tar, ScanOptions{
				Content: content, Accept: func(digest.Digest, int64) error { return tt.accept },
			})
			if s != nil || !errors.Is(err, tt.want) || errors.Is(err, ErrInvalid) != tt.invalid {
				t.Errorf("got %v, %v, want %v, invalid: %v", s, err, tt.want, tt.invalid)
			}
		})
	}
}

// failing is a reader that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
