package sysroot

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bls"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/keyfile"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/gvariant"
)

func TestParseRelease(t *testing.T) {
	for text, want := range map[string]string{
		"PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian\n": "Debian GNU/Linux 13 (trixie)",
		"ID=debian":                            "debian",
		"ID='a'\"b\"c\\ d":                     "abc d",
		"PRETTY_NAME=\"a \\\"b\\\" \\$c \\d\"": `a "b" $c \d`,
		"#PRETTY_NAME=x\nID=y":                 "y",
		"PRETTY_NAME='open\nID=y":              "y",
		"ID=\"open":                            "",
		"PRETTY_NAME=\nID=y":                   "",
		"":                                     "",
		"ID=a\x01b\xffc":                       "a b?c",
		"ID=" + strings.Repeat("é", 300):       strings.Repeat("é", 200),
	} {
		if got, _ := parseRelease(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestTitle(t *testing.T) {
	for want, title := range map[string]string{
		"OS (ostree:0)":          titleOf("OS", "", "os", false, 0),
		"OS 1 (ostree:1)":        titleOf("OS", "1", "os", false, 1),
		"OS 41 (ostree:0)":       titleOf("OS 41", "1", "os", false, 0),
		"OS 1 (ostree:os:2)":     titleOf("OS", "1", "os", true, 2),
		"OS 1 root=x (ostree:0)": titleOf("OS", "1\nroot=x", "os", false, 0),
	} {
		if title != want {
			t.Errorf("got %q, want %q", title, want)
		}
	}
}

func TestParseBooted(t *testing.T) {
	pair := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 7), 9)
	data := gvariant.AppendDict(nil, []gvariant.Entry{
		{Key: "composefs", Value: gvariant.Bool(true)},
		{Key: "backing-root-device-inode", Value: gvariant.Variant{Type: "(tt)", Data: pair}},
	})
	if id, ok := parseBooted(data); !ok || id != (atfs.Inode{Dev: 7, Ino: 9}) {
		t.Errorf("got %v, %t", id, ok)
	}
	for _, data := range [][]byte{nil, data[:20], gvariant.AppendDict(nil, []gvariant.Entry{{Key: "backing-root-device-inode", Value: gvariant.Bool(true)}})} {
		if id, ok := parseBooted(data); ok {
			t.Errorf("%q: got %v", data, id)
		}
	}
}

func deploymentOf(stateroot string, commit byte) *Deployment {
	return &Deployment{Stateroot: stateroot, Commit: objectstore.Checksum{commit}, BootCsum: strings.Repeat("ab", 32)}
}

// TestStagedRoundTrip reads back staged records, with libostree's additions.
func TestStagedRoundTrip(t *testing.T) {
	d, merge := deploymentOf("os", 1), deploymentOf("os", 2)
	d.Serial = 12
	args := kargs.List{"rw", "ostree=/ostree/boot.1/os/x/0", `a="b c"`}
	r, err := parseStaged(marshalStaged(d, merge, args, false))
	if err != nil {
		t.Fatal(err)
	}
	if !r.target.same(d) || r.target.BootCsum != d.BootCsum || !r.merge.same(merge) || !slices.Equal(r.target.Kargs, args) || r.locked {
		t.Errorf("got %+v", r)
	}
	if r, err = parseStaged(marshalStaged(d, nil, nil, false)); err != nil || r.merge != nil || r.target.Kargs != nil {
		t.Errorf("got %+v, error %v", r, err)
	}
	extra := gvariant.AppendArray(nil, 1, 1, func(b []byte, _ int) []byte {
		start := len(b)
		b = gvariant.AppendString(b, "x-key")
		end := len(b)
		return gvariant.AppendOffsets(gvariant.AppendString(b, "value"), start, end)
	})
	sum := strings.Repeat("cd", 32)
	r, err = parseStaged(gvariant.AppendDict(nil, []gvariant.Entry{
		{Key: keyTarget, Value: d.marshal()},
		{Key: keyLocked, Value: gvariant.Bool(true)},
		{Key: keyOverlays, Value: gvariant.Strings([]string{sum})},
		{Key: keyExtra, Value: gvariant.Variant{Type: "a{ss}", Data: extra}},
		{Key: "new", Value: gvariant.Bool(true)},
	}))
	if err != nil || !r.locked || !slices.Equal(r.target.overlays, []string{sum}) || !slices.Equal(r.target.Extra, []bls.Field{{Key: "x-key", Value: "value"}}) {
		t.Errorf("got %+v, error %v", r, err)
	}
	if r, err = parseStaged(gvariant.AppendDict(nil, []gvariant.Entry{{Key: keyTarget, Value: d.marshal()}, {Key: keyOverlays, Value: gvariant.Strings([]string{"../x"})}})); err == nil {
		t.Errorf("overlay outside: got %+v", r)
	}
}

func FuzzParseStaged(f *testing.F) {
	d := deploymentOf("os", 1)
	f.Add(marshalStaged(d, nil, nil, false))
	f.Add(marshalStaged(d, deploymentOf("other", 2), kargs.List{"a", "b=c"}, true))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseStaged(data)
		if err != nil {
			return
		}
		if validateStateroot(r.target.Stateroot) != nil || strings.Contains(r.target.Path(), "..") {
			t.Errorf("stateroot %q, path %q", r.target.Stateroot, r.target.Path())
		}
		again, err := parseStaged(marshalStaged(r.target, r.merge, r.target.Kargs, r.noSELinux))
		if err != nil || !again.target.same(r.target) || !slices.Equal(again.target.Kargs, r.target.Kargs) {
			t.Errorf("got %+v, error %v; before %+v", again, err, r)
		}
	})
}

// TestListWith checks which deployments stay, case by case.
func TestListWith(t *testing.T) {
	a, b, c, other := deploymentOf("os", 'a'), deploymentOf("os", 'b'), deploymentOf("os", 'c'), deploymentOf("other", 'o')
	pinned := deploymentOf("os", 'p')
	pinned.Origin = &keyfile.File{}
	pinned.Origin.Set(transientGroup, pinnedKey, "true")
	n := deploymentOf("os", 'n')
	for name, tt := range map[string]struct {
		list               []*Deployment
		booted, merge      *Deployment
		retain, notDefault bool
		want               string
	}{
		"first":                  {want: "n"},
		"first, not as default":  {notDefault: true, want: "n"},
		"merge stays":            {list: []*Deployment{a, b}, merge: a, want: "na"},
		"booted stays":           {list: []*Deployment{a, b}, booted: b, merge: b, want: "nb"},
		"booted and merge":       {list: []*Deployment{a, b, c}, booted: b, merge: c, want: "nbc"},
		"no merge":               {list: []*Deployment{a, b}, want: "n"},
		"pinned":                 {list: []*Deployment{a, pinned, b}, merge: a, want: "nap"},
		"another stateroot":      {list: []*Deployment{other, a}, merge: a, want: "noa"},
		"retain":                 {list: []*Deployment{a, b, c}, merge: b, retain: true, want: "nabc"},
		"not as default":         {list: []*Deployment{a, b}, merge: a, notDefault: true, want: "an"},
		"behind the booted":      {list: []*Deployment{a, b, pinned}, booted: b, merge: b, notDefault: true, want: "bnp"},
		"pending one is dropped": {list: []*Deployment{a, b, c}, booted: b, merge: b, want: "nb"},
		"last":                   {list: []*Deployment{other}, notDefault: true, want: "on"},
	} {
		st := &State{Deployments: tt.list, Booted: tt.booted}
		got := ""
		for _, d := range st.listWith(n, tt.merge, tt.retain, tt.notDefault) {
			got += string(d.Commit[:1])
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

func TestState(t *testing.T) {
	a, b, other := deploymentOf("os", 'a'), deploymentOf("os", 'b'), deploymentOf("other", 'o')
	for name, tt := range map[string]struct {
		st                            State
		def, pending, rollback, merge *Deployment
	}{
		"empty":          {},
		"not booted":     {State{Deployments: []*Deployment{a, b}}, a, nil, b, a},
		"booted":         {State{Deployments: []*Deployment{a, b}, Booted: a}, a, nil, b, a},
		"one is pending": {State{Deployments: []*Deployment{a, b}, Booted: b}, a, a, nil, b},
		"staged":         {State{Deployments: []*Deployment{b}, Booted: b, Staged: &Staged{Deployment: a}}, b, a, nil, b},
		"other booted":   {State{Deployments: []*Deployment{other, b}, Booted: other}, other, nil, b, b},
	} {
		if d := tt.st.Default(); d != tt.def {
			t.Errorf("%s: default: got %v", name, d)
		}
		if d := tt.st.Pending(); d != tt.pending {
			t.Errorf("%s: pending: got %v", name, d)
		}
		if d := tt.st.Rollback(); d != tt.rollback {
			t.Errorf("%s: rollback: got %v", name, d)
		}
		if d := tt.st.MergeDeployment("os"); d != tt.merge {
			t.Errorf("%s: merge: got %v", name, d)
		}
	}
}
