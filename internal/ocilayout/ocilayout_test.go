package ocilayout

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestParseDest(t *testing.T) {
	dir := t.TempDir()
	colon := filepath.Join(dir, "with:colon")
	testenv.Must(t, os.Mkdir(colon, 0o755))
	for text, want := range map[string]Dest{
		"oci:d":                {Path: "d"},
		"oci:d:tag":            {Path: "d", Tag: "tag"},
		"oci:a:b/d":            {Path: "a:b/d"},
		"oci:" + colon:         {Path: colon},
		"oci:" + colon + ":1":  {Path: colon, Tag: "1"},
		"oci-archive:f.tar":    {Archive: true, Path: "f.tar"},
		"oci-archive:f.tar:v1": {Archive: true, Path: "f.tar", Tag: "v1"},
	} {
		if got, err := ParseDest(text); got != want || err != nil {
			t.Errorf("%s: got %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "oci:", "oci::tag", "oci:d:", "d", "docker://d"} {
		if got, err := ParseDest(text); err == nil {
			t.Errorf("%q: got %+v, want an error", text, got)
		}
	}
}

// write writes an image of one blob with this text, in a directory whose operations hook sees.
func write(dest Dest, text string, hook atfs.Hook) (err error) {
	parent, err := atfs.Open(filepath.Dir(dest.Path))
	if err != nil {
		return err
	}
	if hook != nil {
		hooked, err := parent.WithHook(hook)
		if err := errors.Join(err, parent.Close()); err != nil {
			return err
		}
		parent = hooked
	}
	w, err := create(context.Background(), dest, parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	desc, err := w.Document(ocispec.MediaTypeImageManifest, []byte(text))
	if err != nil {
		return err
	}
	return w.Commit(desc)
}

// files returns the content of all files below a directory, by path.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	testenv.Must(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		found[strings.TrimPrefix(name, dir+"/")] = string(data)
		return err
	}))
	return found
}

// images returns the tags of a layout's images, each with its text.
func images(t *testing.T, found map[string]string) (list []string) {
	t.Helper()
	var index ocispec.Index
	testenv.Must(t, json.Unmarshal([]byte(found["index.json"]), &index))
	for _, d := range index.Manifests {
		text := found["blobs/sha256/"+d.Digest.Encoded()]
		if int64(len(text)) != d.Size {
			t.Errorf("%s has %d bytes, want %d", d.Digest, len(text), d.Size)
		}
		list = append(list, d.Annotations[ocispec.AnnotationRefName]+"="+text)
	}
	if want := `{"imageLayoutVersion":"1.0.0"}`; found["oci-layout"] != want {
		t.Errorf("oci-layout is %q, want %s", found["oci-layout"], want)
	}
	return list
}

func TestDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	testenv.Must(t, os.Mkdir(dir, 0o755))
	for _, step := range []struct {
		tag, text string
		want      []string
	}{
		{"", "one", []string{"=one"}},
		{"t", "one", []string{"=one", "t=one"}},
		{"t", "two", []string{"=one", "t=two"}},
		{"u", "three", []string{"=one", "t=two", "u=three"}},
		{"", "four", []string{"t=two", "u=three", "=four"}},
	} {
		testenv.Must(t, write(Dest{Path: dir, Tag: step.tag}, step.text, nil))
		if got := images(t, files(t, dir)); !slices.Equal(got, step.want) {
			t.Errorf("got %q, want %q", got, step.want)
		}
	}
	if left := files(t, filepath.Dir(dir)); len(left) != 2+4 {
		t.Errorf("beside index, version and four blobs there is more: %v", left)
	}
}

func TestArchive(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.tar")
	var last string
	for _, text := range []string{"one", "two", "two"} {
		testenv.Must(t, write(Dest{Archive: true, Path: name, Tag: "t"}, text, nil))
		f, err := os.Open(name)
		testenv.Must(t, err)
		found := make(map[string]string)
		for r := tar.NewReader(f); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			testenv.Must(t, err)
			data, err := io.ReadAll(r)
			testenv.Must(t, err)
			found[h.Name] = string(data)
		}
		testenv.Must(t, f.Close())
		if got := images(t, found); !slices.Equal(got, []string{"t=" + text}) {
			t.Errorf("got %q, want t=%s", got, text)
		}
		data := files(t, filepath.Dir(name))
		if len(data) != 1 {
			t.Errorf("there is more than the archive: %d files", len(data))
		}
		if text == "two" && last != "" && data["a.tar"] != last {
			t.Error("the same image gives another archive")
		}
		last = ""
		if text == "two" {
			last = data["a.tar"]
		}
	}
}

func TestCreateErrors(t *testing.T) {
	dir := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644))
	testenv.Must(t, os.Mkdir(filepath.Join(dir, "other"), 0o755))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "other/index.json"), []byte("{}"), 0o644))
	for name, test := range map[string]struct {
		archive bool
		want    string
	}{
		"file":  {false, "it exists and is not a directory"},
		"other": {false, "it is not empty and not an OCI layout: it has no oci-layout"},
		"":      {true, "it exists and is not a regular file"},
	} {
		dest := Dest{Archive: test.archive, Path: filepath.Join(dir, name)}
		if _, err := Create(t.Context(), dest); err == nil || err.Error() != fmt.Sprintf("create image %s: %s", dest.Path, test.want) {
			t.Errorf("%s: got error %v, want %s", name, err, test.want)
		}
	}
	if found := files(t, dir); len(found) != 2 {
		t.Errorf("something was written: %v", found)
	}
}

// TestFaults fails at each operation on the disk in turn: the destination has the old image or the new one, and nothing else
// is left after a failure.
func TestFaults(t *testing.T) {
	for _, archive := range []bool{false, true} {
		for _, old := range []bool{false, true} {
			for n, done := 0, false; !done; n++ {
				dir := t.TempDir()
				dest := Dest{Archive: archive, Path: filepath.Join(dir, "image"), Tag: "t"}
				if old {
					testenv.Must(t, write(dest, "old", nil))
				}
				before := files(t, dir)
				injected := errors.New("injected")
				count, failed := 0, ""
				err := write(dest, "new", func(op atfs.Op, name string) error {
					if count++; count-1 == n {
						failed = fmt.Sprint(op, " ", name)
						return injected
					}
					return nil
				})
				done = failed == ""
				after := files(t, dir)
				switch {
				case done && err != nil:
					t.Errorf("archive %v, old %v: without a fault: %v", archive, old, err)
				case done:
				case !errors.Is(err, injected):
					t.Errorf("archive %v, old %v: fault at %s: got error %v", archive, old, failed, err)
				case fmt.Sprint(after) != fmt.Sprint(before) && !visible(after, archive):
					t.Errorf("archive %v, old %v: fault at %s left %s", archive, old, failed, testenv.Diff(fmt.Sprint(before), fmt.Sprint(after)))
				}
			}
		}
	}
}

// TestConcurrent writes many images into one layout at once: it has all of them.
func TestConcurrent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	testenv.Must(t, write(Dest{Path: dir, Tag: "first"}, "first", nil))
	const writers = 8
	errs := make(chan error)
	for i := range writers {
		tag := fmt.Sprint("t", i)
		go func() { errs <- write(Dest{Path: dir, Tag: tag}, tag, nil) }()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	got := images(t, files(t, dir))
	slices.Sort(got)
	want := []string{"first=first"}
	for i := range writers {
		want = append(want, fmt.Sprintf("t%d=t%[1]d", i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLocked waits for another writer no longer than it is asked to.
func TestLocked(t *testing.T) {
	dest := Dest{Path: filepath.Join(t.TempDir(), "layout")}
	testenv.Must(t, write(dest, "text", nil))
	first, err := Create(t.Context(), dest)
	testenv.Must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Create(ctx, dest); !errors.Is(err, context.Canceled) {
		t.Errorf("beside another writer: got error %v, want that of the context", err)
	}
	testenv.Must(t, first.Close())
	second, err := Create(t.Context(), dest)
	testenv.Must(t, err)
	testenv.Must(t, second.Close())
}

// visible reports whether the new image is in place, complete: the fault came after that.
func visible(found map[string]string, archive bool) bool {
	if archive {
		return strings.Contains(found["image"], "new")
	}
	_, ok := found["image/blobs/sha256/11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"]
	return ok && strings.Contains(found["image/index.json"], "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437")
}
