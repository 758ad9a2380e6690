package kargs

import (
	"errors"
	"slices"
	"testing"
)

func TestEdits(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edits Edits
		want  string // "" for an error
	}{
		{"none", Edits{}, "rw console=tty0 root=LABEL=x console=ttyS0 quiet"},
		{"set", Edits{Set: []string{"console=tty1", "console=hvc0", "nosmt"}}, "rw root=LABEL=x quiet console=tty1 console=hvc0 nosmt"},
		{"set quoted", Edits{Set: []string{`"console=a b"`}}, `rw root=LABEL=x quiet "console=a b"`},
		{"append", Edits{Append: []string{"console=tty0"}}, "rw console=tty0 root=LABEL=x console=ttyS0 quiet console=tty0"},
		{"replace", Edits{Replace: []string{"console=tty0=tty1"}}, "rw console=tty1 root=LABEL=x console=ttyS0 quiet"},
		{"delete", Edits{Delete: []string{"quiet", "console=tty0"}}, "rw root=LABEL=x console=ttyS0"},
		{"several", Edits{Replace: []string{"console=tty1"}}, ""},
		{"absent", Edits{Delete: []string{"absent"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list := Parse("rw console=tty0 root=LABEL=x console=ttyS0 quiet")
			before := slices.Clone(list)
			got, err := tt.edits.Apply(list)
			if got.String() != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("Apply() = %q, %v, want %q", got, err, tt.want)
			}
			if err != nil && !errors.Is(err, ErrEdit) {
				t.Errorf("Apply(): %v is not %v", err, ErrEdit)
			}
			if !slices.Equal(list, before) {
				t.Errorf("the list before has changed: %q", list)
			}
		})
	}
	for _, arg := range []string{"", "=x", "ostree=/x", "ostree", `"ostree=/x"`, `x="a ostree=/x"`, "a\nlinux /evil"} {
		if err := (&Edits{Append: []string{arg}}).Check(); !errors.Is(err, ErrEdit) {
			t.Errorf("Check() of %q = %v", arg, err)
		}
	}
	if err := (&Edits{Set: []string{"root=UUID=x", "rw", "ostree.prepare-root.composefs=0"}}).Check(); err != nil {
		t.Errorf("Check() = %v", err)
	}
}
