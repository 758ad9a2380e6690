package bls

import (
	"bytes"
	"cmp"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

const csum = "5d93a09e0f232ad4a01eada8dad673497a99a8f846382ca41fd58d41edac62ce"

// testdata/ostree-1-os.conf was written by ostree 2022.7: ostree admin deploy --karg=root=UUID=... --karg=rw
// --karg=console=ttyS0,115200n8.
func TestEntryOfOSTree(t *testing.T) {
	text, err := os.ReadFile("testdata/ostree-1-os.conf")
	if err != nil {
		t.Fatal(err)
	}
	e, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	want := &Entry{
		Title:   "Debian GNU/Linux 13 (trixie) 13.1 (ostree:0)",
		Version: "1",
		Options: "root=UUID=3e6be9de-8139-11d1-9106-a43f08d823a6 rw console=ttyS0,115200n8 ostree=/ostree/boot.1/os/" + csum + "/0",
		Linux:   "/ostree/os-" + csum + "/vmlinuz-6.12.1",
		Initrd:  []string{"/ostree/os-" + csum + "/initramfs-6.12.1.img"},
	}
	if diff := testenv.Diff(want, e); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}
	if got := e.Marshal(); !bytes.Equal(got, text) {
		t.Errorf("written as\n%s\nwant\n%s", got, text)
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       Entry
	}{
		{"empty", "", Entry{}},
		{"comments and blank lines", "# title x\n\n  \n#version 1\ntitle\ty\n", Entry{Title: "y"}},
		{"no value", "title\nversion \nlinux\t\n", Entry{}},
		{"space", "  title \t a  b \r\nlinux /l", Entry{Title: "a  b", Linux: "/l"}},
		{"several", "options a b\ntitle 1\ninitrd /a\noptions c\ninitrd /b\ntitle 2\n", Entry{
			Title: "2", Options: "a b c", Initrd: []string{"/a", "/b"},
		}},
		{"others", "machine-id 1\ndevicetree /dtb\nefi /x.efi\nmachine-id 2\nx-y z\n", Entry{
			DeviceTree: "/dtb",
			Extra:      []Field{{"machine-id", "1"}, {"efi", "/x.efi"}, {"machine-id", "2"}, {"x-y", "z"}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse([]byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := testenv.Diff(&tc.want, got); diff != "" {
				t.Errorf("entry (-want +got):\n%s", diff)
			}
		})
	}
	for name, text := range map[string]string{"zeros": strings.Repeat("\x00", 512), "too long": strings.Repeat("#", MaxLen+1)} {
		if e, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: got %+v and no error", name, e)
		}
	}
}

func TestMarshal(t *testing.T) {
	e := &Entry{
		Title: " x\nlinux /evil\x00", Version: "2", Options: "rw", DeviceTree: "/d", Linux: "/l", Initrd: []string{"/a", "", "/b"},
		Extra: []Field{{"fdtdir", "/f"}, {"linux", "/evil"}, {"a\nlinux", "/evil"}, {"", "x"}, {"empty", " "}, {"sort-key", "s"}},
	}
	const want = "title x linux /evil\nversion 2\noptions rw\ndevicetree /d\nlinux /l\ninitrd /a\ninitrd /b\nfdtdir /f\nsort-key s\n"
	if got := string(e.Marshal()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestName(t *testing.T) {
	for _, tc := range []struct {
		file string
		want Name
		back string // "": file
	}{
		{file: "ostree-2-os.conf", want: Name{Stem: "ostree-2-os"}},
		{file: "ostree-2.conf", want: Name{Stem: "ostree-2"}},
		{file: "4.14.11-300.fc27.x86_64+3.conf", want: Name{Stem: "4.14.11-300.fc27.x86_64", Tries: &Tries{Left: 3}}},
		{file: "4.14.11-300.fc27.x86_64+2-1.conf", want: Name{Stem: "4.14.11-300.fc27.x86_64", Tries: &Tries{Left: 2, Done: 1}}},
		{file: "x+0-3.conf", want: Name{Stem: "x", Tries: &Tries{Done: 3}}},
		{file: "x+3-0.conf", want: Name{Stem: "x", Tries: &Tries{Left: 3}}, back: "x+3.conf"},
		{file: "x+03-01.conf", want: Name{Stem: "x", Tries: &Tries{Left: 3, Done: 1}}, back: "x+3-1.conf"},
		{file: "a+1+2.conf", want: Name{Stem: "a+1", Tries: &Tries{Left: 2}}},
		{file: "c++.conf", want: Name{Stem: "c++"}},
		{file: "x+3-.conf", want: Name{Stem: "x+3-"}},
		{file: "x+-3.conf", want: Name{Stem: "x+-3"}},
		{file: "x+1-2-3.conf", want: Name{Stem: "x+1-2-3"}},
		{file: "+3.conf", want: Name{Stem: "+3"}},
		{file: "x+9999999999.conf", want: Name{Stem: "x+9999999999"}},
	} {
		got, ok := ParseName(tc.file)
		if !ok || testenv.Diff(tc.want, got) != "" || got.String() != cmp.Or(tc.back, tc.file) {
			t.Errorf("%s: got %+v, %v, written %s", tc.file, got, ok, got)
		}
	}
	for _, file := range []string{"", ".conf", "x", "x.conf.bak", "x.conf+3", "a/b.conf", "a\x00.conf"} {
		if got, ok := ParseName(file); ok {
			t.Errorf("%q is taken for an entry: %+v", file, got)
		}
	}
}

// The order is that of strverscmp in glibc 2.36.
func TestCompareVersions(t *testing.T) {
	sorted := []string{
		"", "000", "001.1", "00", "01", "01.1", "010", "09", "0", "1", "1.001", "1.00", "1.01", "1.0", "1.1", "1.9", "1.10", "1a",
		"1b", "1~", "9", "9a", "10", "10a", "a", "a-", "a.", "a00", "a01", "a0", "a1", "a9", "a10", "a:", "a~", "~", "é",
	}
	for i, a := range sorted {
		for j, b := range sorted {
			if got, want := CompareVersions(a, b), cmp.Compare(i, j); got != want {
				t.Errorf("%q and %q: got %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestOSTreeArg(t *testing.T) {
	const value = "/ostree/boot.1/os/" + csum + "/12"
	got, err := ParseOSTreeArg(value)
	want := OSTreeArg{BootVersion: 1, Stateroot: "os", BootCsum: csum, BootSerial: 12}
	if err != nil || got != want || got.String() != value {
		t.Errorf("got %+v, %v, written %s", got, err, got)
	}
	for _, bad := range []string{
		"", "/ostree/boot.2/os/" + csum + "/0", "/ostree/boot.1.0/os/" + csum + "/0", "/ostree/boot.1/../" + csum + "/0",
		"/ostree/boot.1/os/" + csum, "/ostree/boot.1/os/" + csum + "/", "/ostree/boot.1/os/" + csum + "/-1",
		"/ostree/boot.1/os/" + csum + "/01", "/ostree/boot.1/os/" + csum + "/0/", "/ostree/boot.1/os/" + csum[1:] + "/0",
		"/ostree/boot.1/os/../0", "/ostree/boot.1/a b/" + csum + "/0", "/ostree/boot.1/a/b/" + csum + "/0", " " + value,
		value + "\n", "/ostree/root.a", "/ostree/boot.1/os/" + csum + "/9999999999",
	} {
		if got, err := ParseOSTreeArg(bad); err == nil {
			t.Errorf("%q: got %+v and no error", bad, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("title x (ostree:0)\nversion 1\noptions rw\nlinux /l\ninitrd /i\ninitrd /j\naboot /a\n"))
	f.Add([]byte("#\noptions a\noptions\tb\r\ntitle\n\x0btitle \x7f \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := Parse(data)
		if err != nil {
			return
		}
		text := e.Marshal()
		again, err := Parse(text)
		if err != nil {
			t.Fatalf("written entry cannot be read: %v\n%q", err, text)
		}
		if got := again.Marshal(); !bytes.Equal(got, text) {
			t.Fatalf("written as %q, then as %q", text, got)
		}
		if n := bytes.Count(text, []byte("\n")); n > bytes.Count(data, []byte("\n"))+1 {
			t.Fatalf("%q has more lines than %q", text, data)
		}
	})
}

func FuzzParseName(f *testing.F) {
	f.Add("ostree-2-os+3-1.conf")
	f.Add("a+1+02.conf")
	f.Fuzz(func(t *testing.T, file string) {
		n, ok := ParseName(file)
		if !ok {
			return
		}
		again, ok := ParseName(n.String())
		if !ok || testenv.Diff(n, again) != "" {
			t.Fatalf("%q is %+v, then %+v", file, n, again)
		}
	})
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1.01", "1.1", "a")
	f.Add("000", "00", "0")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if strings.ContainsRune(a+b+c, 0) {
			return // ends a version in C
		}
		if CompareVersions(a, b) != -CompareVersions(b, a) || (CompareVersions(a, b) == 0) != (a == b) {
			t.Fatalf("%q and %q have no order", a, b)
		}
		s := []string{a, b, c}
		slices.SortFunc(s, CompareVersions)
		if CompareVersions(s[0], s[2]) > 0 {
			t.Fatalf("%q are in a circle", s)
		}
	})
}

func TestIsKernelVersion(t *testing.T) {
	for version, want := range map[string]bool{
		"6.1.0": true, "6.12.0-1.fc41.x86_64+debug": true, "5.10~rc1_a": true, "": false, "6 1": false, "6\n": false, "é": false, "a/b": false,
	} {
		if got := IsKernelVersion(version); got != want {
			t.Errorf("%q: got %t, want %t", version, got, want)
		}
	}
}
