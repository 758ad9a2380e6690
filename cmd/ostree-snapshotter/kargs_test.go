package main

import (
	"slices"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
)

func TestKargEdits(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edits kargEdits
		want  string // "" for an error
	}{
		{"none", kargEdits{}, "rw console=tty0 root=LABEL=x console=ttyS0 quiet"},
		{"set", kargEdits{set: []string{"console=tty1", "console=hvc0", "nosmt"}}, "rw root=LABEL=x quiet console=tty1 console=hvc0 nosmt"},
		{"append", kargEdits{add: []string{"console=tty0"}}, "rw console=tty0 root=LABEL=x console=ttyS0 quiet console=tty0"},
		{"replace", kargEdits{replace: []string{"console=tty0=tty1"}}, "rw console=tty1 root=LABEL=x console=ttyS0 quiet"},
		{"delete", kargEdits{remove: []string{"quiet", "console=tty0"}}, "rw root=LABEL=x console=ttyS0"},
		{"several", kargEdits{replace: []string{"console=tty1"}}, ""},
		{"absent", kargEdits{remove: []string{"absent"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list := kargs.Parse("rw console=tty0 root=LABEL=x console=ttyS0 quiet")
			before := slices.Clone(list)
			got, err := tt.edits.apply(list)
			if got.String() != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("apply() = %q, %v, want %q", got, err, tt.want)
			}
			if err != nil && statusOf(err) != exitUsage {
				t.Errorf("exit status is %d", statusOf(err))
			}
			if !slices.Equal(list, before) {
				t.Errorf("the list before has changed: %q", list)
			}
		})
	}
	for _, arg := range []string{"", "=x", "ostree=/x", "ostree", "a\nlinux /evil"} {
		if err := (&kargEdits{add: []string{arg}}).check(); statusOf(err) != exitUsage {
			t.Errorf("check() of %q = %v", arg, err)
		}
	}
	if err := (&kargEdits{set: []string{"root=UUID=x", "rw", "ostree.prepare-root.composefs=0"}}).check(); err != nil {
		t.Errorf("check() = %v", err)
	}
}
