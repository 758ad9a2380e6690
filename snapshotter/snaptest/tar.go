package snaptest

import (
	"archive/tar"
	"bytes"
	"maps"
	"testing"
	"time"
)

// Time is the modification time of entries in a Tar that have no other.
var Time = time.Unix(1700000000, 0)

// Tar returns a tar of the headers. The content of a regular file is in its PAXRecords, under "content".
func Tar(tb testing.TB, headers ...tar.Header) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		content := h.PAXRecords["content"]
		h.PAXRecords = maps.Clone(h.PAXRecords) // the caller's may be in use, or be used again
		delete(h.PAXRecords, "content")
		h.Size = int64(len(content))
		if h.ModTime.IsZero() {
			h.ModTime = Time
		}
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// File is a header of a regular file with mode 0644.
func File(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, PAXRecords: map[string]string{"content": content}}
}

// Dir is a header of a directory with mode 0755.
func Dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
}

// Link is a header of a hard link.
func Link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}
}
