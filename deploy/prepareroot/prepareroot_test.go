package prepareroot_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/prepareroot"
)

// What ostree-prepare-root of ostree 2026.4 makes of these files.
func TestParse(t *testing.T) {
	for _, tt := range []struct {
		text string
		want prepareroot.Config
		err  string // "": none
	}{
		{text: ""},
		{text: "[other]\nenabled=yes\n"},
		{text: "[composefs]\nenabled=yes\n", want: prepareroot.Config{Composefs: prepareroot.Yes, ReadOnlySysroot: true}},
		{text: "[composefs]\nenabled = true\n", want: prepareroot.Config{Composefs: prepareroot.Yes, ReadOnlySysroot: true}},
		{text: "[composefs]\nenabled=1\n[sysroot]\nreadonly=false\n", want: prepareroot.Config{Composefs: prepareroot.Yes}},
		{text: "[composefs]\nenabled=verity\n", want: prepareroot.Config{Composefs: prepareroot.Yes, Verity: true, ReadOnlySysroot: true}},
		{
			text: "[composefs]\nenabled=signed\nkeypath=/etc/key\n",
			want: prepareroot.Config{Composefs: prepareroot.Yes, Verity: true, Signed: true, ReadOnlySysroot: true},
		},
		{text: "[composefs]\nenabled=maybe\n", want: prepareroot.Config{Composefs: prepareroot.Maybe}},
		{text: "[composefs]\nenabled=no\n", want: prepareroot.Config{Composefs: prepareroot.No}},
		{text: "[sysroot]\nreadonly=1\n[etc]\ntransient=true\n", want: prepareroot.Config{TransientEtc: true, ReadOnlySysroot: true}},
		{text: "[root]\ntransient=true\n", want: prepareroot.Config{TransientRoot: true}},
		{text: "[root]\ntransient-ro=true\n", want: prepareroot.Config{TransientRoot: true}},
		{text: "[root]\ntransient=true\ntransient-ro=true\n", err: "exclude each other"},
		{text: "[root]\ntransient=yes\n", err: `transient in group root is "yes"`},
		{text: "[etc]\ntransient=\n", err: "transient in group etc"},
		{text: "[composefs]\nenabled=On\n", err: `enabled in group composefs is "On"`},
		{text: "[composefs]\nenabled=\n", err: `enabled in group composefs is ""`},
		{text: "[composefs]\nenabled= maybe \n", want: prepareroot.Config{Composefs: prepareroot.Maybe}},
		{text: "enabled=yes\n", err: "line 1"},
	} {
		t.Run(tt.text, func(t *testing.T) {
			got, err := prepareroot.Parse([]byte(tt.text))
			if tt.err != "" {
				if !errors.Is(err, prepareroot.ErrInvalid) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want an ErrInvalid with %q", err, tt.err)
				}
				return
			}
			if err != nil || *got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	const etc, lib = "etc/ostree/prepare-root.conf", "usr/lib/ostree/prepare-root.conf"
	for name, tt := range map[string]struct {
		files map[string]string
		want  prepareroot.Config
	}{
		"none":         {},
		"vendor":       {map[string]string{lib: "[etc]\ntransient=true\n"}, prepareroot.Config{File: lib, TransientEtc: true}},
		"hides vendor": {map[string]string{lib: "[etc]\ntransient=true\n", etc: "[root]\ntransient=true\n"}, prepareroot.Config{File: etc, TransientRoot: true}},
		"empty":        {map[string]string{lib: "[etc]\ntransient=true\n", etc: ""}, prepareroot.Config{File: etc}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := prepareroot.Load(func(name string) ([]byte, error) {
				if text, ok := tt.files[name]; ok {
					return []byte(text), nil
				}
				return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
			})
			if err != nil || *got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}

	_, err := prepareroot.Load(func(string) ([]byte, error) { return []byte("x"), nil })
	if !errors.Is(err, prepareroot.ErrInvalid) || !strings.Contains(err.Error(), "/"+etc) {
		t.Errorf("got error %v, want an ErrInvalid that names /%s", err, etc)
	}
	_, err = prepareroot.Load(func(string) ([]byte, error) { return nil, fs.ErrPermission })
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got error %v, want that of the read", err)
	}
}

// The argument overrides the file, but for verity.
func TestOverride(t *testing.T) {
	verity := prepareroot.Config{File: "f", Composefs: prepareroot.Yes, Verity: true, Signed: true}
	for _, tt := range []struct {
		config prepareroot.Config
		value  string
		want   prepareroot.Config
		err    bool
	}{
		{config: prepareroot.Config{}, value: "1", want: prepareroot.Config{Composefs: prepareroot.Yes}},
		{config: prepareroot.Config{}, value: "signed", want: prepareroot.Config{Composefs: prepareroot.Yes, Verity: true, Signed: true}},
		{config: verity, value: "yes", want: prepareroot.Config{File: "f", Composefs: prepareroot.Yes, Verity: true}},
		{config: verity, value: "maybe", want: prepareroot.Config{File: "f", Composefs: prepareroot.Maybe, Verity: true}},
		{config: verity, value: "no", want: prepareroot.Config{File: "f", Composefs: prepareroot.No}},
		{config: verity, value: "verity", err: true},
		{config: verity, value: "", err: true},
	} {
		got, err := tt.config.Override(tt.value)
		if errors.Is(err, prepareroot.ErrInvalid) != tt.err || err == nil && *got != tt.want {
			t.Errorf("%+v with %q: got %+v, %v, want %+v", tt.config, tt.value, got, err, tt.want)
		}
	}
}
