package workload

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

const example = `name = "two"
description = "an image and its update"

[[images]]
ref = "oci:base-1"
name = "base:1"

[[images]]
ref = "registry.example.org:5000/base:2@sha256:0000"
`

func TestParse(t *testing.T) {
	got, err := Parse("two.toml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	want := &Workload{
		Name: "two", Description: "an image and its update", Images: []Image{
			{"oci:base-1", "base:1"},
			{"registry.example.org:5000/base:2@sha256:0000", "registry.example.org:5000/base:2@sha256:0000"},
		},
	}
	if diff := testenv.Diff(want, got); diff != "" {
		t.Errorf("workload (-want +got):\n%s", diff)
	}
}

func image(ref string) string { return fmt.Sprintf("[[images]]\nref = %q\n", ref) }

func TestParseRefuses(t *testing.T) {
	const name = "name = \"x\"\n"
	var many strings.Builder
	for i := range maxImages + 1 {
		many.WriteString(image(fmt.Sprintf("example.org/%d", i)))
	}
	for _, tc := range []struct{ name, in, want string }{
		{"nothing", "", `key "name" is ""`},
		{"no TOML", "name = \"x\"\nimages", "line 2: "},
		{"unknown key", name + "layouts = 1\n" + image("a.b/c"), `line 2: unknown key "layouts"`},
		{"unknown key of an image", name + image("a.b/c") + "digest = 1\n", `line 4: unknown key "images.digest"`},
		{"wrong type", "name = 1\n", "line 1: "},
		{"wrong type of an image", name + "[[images]]\nref = []\n", "line 3: "},
		{"upper case", "name = \"X\"\n" + image("a.b/c"), `key "name" is "X": must be lower-case`},
		{"path", "name = \"../x\"\n" + image("a.b/c"), `key "name" is "../x"`},
		{"dash at the end", "name = \"x-\"\n" + image("a.b/c"), `key "name" is "x-"`},
		{"long name", "name = \"" + strings.Repeat("x-x", 22) + "\"\n" + image("a.b/c"), "at most 64"},
		{"two lines", "name = \"x\"\ndescription = \"a\\nb\"\n" + image("a.b/c"), "characters that cannot be shown"},
		{"escape sequence", "name = \"x\"\ndescription = \"a\\u001b[1m\"\n" + image("a.b/c"), "characters that cannot be shown"},
		{"long description", "name = \"x\"\ndescription = \"" + strings.Repeat("x", 501) + "\"\n", "more than 500 bytes"},
		{"no images", name, "no images"},
		{"many images", name + many.String(), "1001 images, at most 1000"},
		{"no reference", name + image("a.b/c") + "[[images]]\nname = \"d\"\n", `image 2: reference "": must be`},
		{"option", name + image("--all"), `image 1: reference "--all": must be`},
		{"space", name + image("a.b/c d"), "must be an image of a registry"},
		{"long reference", name + image("a.b/"+strings.Repeat("c", 1000)), "more than 1000 bytes"},
		{"no directory", name + image("oci:"), "names no directory"},
		{"tag without directory", name + image("oci::x"), "names no directory"},
		{"newline in a directory", name + image("oci:a\nb"), "characters that cannot be shown"},
		{"long image name", name + image("a.b/c") + "name = \"" + strings.Repeat("x", 201) + "\"\n", "more than 200 bytes"},
		{"reference twice", name + image("a.b/c") + image("a.b/c") + "name = \"d\"\n", `image 2: a second image with the reference "a.b/c"`},
		{"name twice", name + image("a.b/c") + "name = \"e\"\n" + image("a.b/d") + "name = \"e\"\n", `image 2: a second image with the name "e"`},
		{"long file", name + image("a.b/c") + "#" + strings.Repeat("x", maxFile), "more than 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, err := Parse("x.toml", []byte(tc.in))
			if err == nil {
				t.Fatalf("parsed as %+v, want an error", w)
			}
			got := err.Error()
			if !strings.HasPrefix(got, "read workload x.toml: ") || !strings.Contains(got, tc.want) {
				t.Errorf("error %q, want %q in it", got, tc.want)
			}
			if strings.Contains(got, "workload.") {
				t.Errorf("error %q speaks of Go types", got)
			}
		})
	}
}

func TestBuiltin(t *testing.T) {
	images := map[string]int{"debian": 4, "dockerhub": 25, "layers": 1, "os-update": 5, "small": 3, "zstd": 1}
	if got := Names(); len(got) != len(images) {
		t.Errorf("the workloads are %q, want %d", got, len(images))
	}
	for name, n := range images {
		w, ok := Builtin(name)
		if !ok {
			t.Errorf("no workload %q", name)
			continue
		}
		if w.Name != name || w.Description == "" || len(w.Images) != n {
			t.Errorf("workload %q is %+v, want %d images", name, w, n)
		}
		for _, img := range w.Images {
			if _, local := img.Layout(); local != (name != "dockerhub") {
				t.Errorf("workload %q has the image %q", name, img.Ref)
			}
			if !strings.Contains(img.Name, ":") {
				t.Errorf("workload %q calls an image %q, without a tag", name, img.Name)
			}
		}
	}
	for _, name := range []string{"", ".", "workload.go", "debian.toml", "Debian", "../workload/debian"} {
		if _, ok := Builtin(name); ok {
			t.Errorf("there is a workload %q", name)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"two.toml", "debian.toml"} {
		if err := os.WriteFile(name, []byte(example), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("long.toml", make([]byte, maxFile+10), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ arg, name, first, err string }{
		{arg: "debian", name: "debian", first: "oci:base-1"},
		{arg: "debian.toml", name: "two", first: "oci:base-1"},
		{arg: "./two.toml", name: "two", first: "oci:base-1"},
		{arg: "docker.io/library/debian:bookworm", first: "docker.io/library/debian:bookworm"},
		{arg: "localhost:5000/x", first: "localhost:5000/x"},
		{arg: "oci:some/dir:tag", first: "oci:some/dir:tag"},
		{arg: "oci:dir.toml", first: "oci:dir.toml"},
		{arg: "none.toml", err: "read workload: open none.toml: no such file or directory"},
		{arg: "long.toml", err: "read workload long.toml: more than 1048576 bytes"},
		{arg: "debain", err: `find workload "debain": is none of debian, dockerhub, layers, os-update, small, zstd, no file FILE.toml, and no reference of an image`},
		{arg: "", err: `find workload "": is none of`},
		{arg: "-x/y", err: `find image: reference "-x/y": must be an image of a registry, or oci:DIR[:TAG]`},
		{arg: "oci:", err: `find image: reference "oci:": names no directory`},
	} {
		w, err := Load(tc.arg)
		switch {
		case tc.err != "":
			if err == nil || !strings.HasPrefix(err.Error(), tc.err) {
				t.Errorf("%q: error %v, want %q", tc.arg, err, tc.err)
			}
		case err != nil:
			t.Errorf("%q: %v", tc.arg, err)
		case w.Name != tc.name || w.Images[0].Ref != tc.first:
			t.Errorf("%q: got %+v, want the name %q and first %q", tc.arg, w, tc.name, tc.first)
		}
	}
}

func TestJoin(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("other.toml", []byte("name = \"other\"\n"+image("example.org/other")+"name = \"base:1\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	one, err := Join([]string{"debian"})
	if err != nil || one.Name != "debian" || one.Description == "" {
		t.Errorf("one workload: got %+v, %v", one, err)
	}
	ref, err := Join([]string{"example.org/a"})
	if err != nil || ref.Name != "" || ref.Description != "" {
		t.Errorf("one reference: got %+v, %v", ref, err)
	}
	many, err := Join([]string{"example.org/a:1", "debian", "os-update", "example.org/a:1", "oci:base-1"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, img := range many.Images {
		got = append(got, img.Name)
	}
	want := []string{"example.org/a:1", "base:1", "base:2", "app:1", "app:2", "os:1", "os:2", "web:1"}
	if diff := testenv.Diff(want, got); diff != "" || many.Name != "" || many.Description != "" {
		t.Errorf("joined as %q, %q (-want +got):\n%s", many.Name, many.Description, diff)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "no images"},
		{[]string{"debian", "other.toml"}, `join debian, other.toml: image 5: a second image with the name "base:1"`},
		{[]string{"debian", "none.toml"}, "read workload: open none.toml"},
	} {
		if w, err := Join(tc.args); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %+v and the error %v, want %q", tc.args, w, err, tc.want)
		}
	}
}

func TestResolve(t *testing.T) {
	w := &Workload{Images: []Image{{Ref: "oci:a:tag"}, {Ref: "oci:/b/../c"}, {Ref: "example.org/d"}}}
	w.Resolve("/layouts")
	want := []Image{{Ref: "oci:" + filepath.Join("/layouts", "a:tag")}, {Ref: "oci:/b/../c"}, {Ref: "example.org/d"}}
	if diff := testenv.Diff(want, w.Images); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
}

// FuzzParse checks that a parsed workload is within the bounds, and is the same after it is written and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("name = \"x\"\n[[images]]\nref = \"oci:a:b\"\nname = \"\\u202e\"\n"))
	f.Add([]byte("name = 1\nimages = [{ref = 'a.b/c'}, {}]\n"))
	for _, name := range Names() {
		data, err := builtin.ReadFile(name + ".toml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w, err := Parse("fuzz", data)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("an error of several lines: %q", err)
			}
			return
		}
		if n := len(w.Images); n == 0 || n > maxImages || !workloadName.MatchString(w.Name) {
			t.Errorf("a workload %q of %d images", w.Name, n)
		}
		var again strings.Builder
		fmt.Fprintf(&again, "name = %q\ndescription = %q\n", w.Name, w.Description)
		for _, img := range w.Images {
			if strings.HasPrefix(img.Ref, "-") || strings.ContainsAny(img.Name, "\n\x1b") {
				t.Errorf("an image %q called %q", img.Ref, img.Name)
			}
			fmt.Fprintf(&again, "[[images]]\nref = %q\nname = %q\n", img.Ref, img.Name)
		}
		if again.Len() > maxFile {
			return // a table on one line is shorter
		}
		got, err := Parse("again", []byte(again.String()))
		if err != nil {
			t.Fatalf("%v in\n%s", err, again.String())
		}
		if diff := testenv.Diff(w, got); diff != "" {
			t.Errorf("workload after writing and reading (-want +got):\n%s", diff)
		}
	})
}
