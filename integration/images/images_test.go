package images

import "testing"

// TestKeyIgnoresComments keeps images in the cache when only comments change.
func TestKeyIgnoresComments(t *testing.T) {
	const code = "package p\n\nvar a = 1\n\nfunc f() int { return a }\n"
	want, err := withoutComments([]byte(code))
	if err != nil {
		t.Fatal(err)
	}
	commented := "// Package p.\npackage p\n\n// a is one.\n// It is.\nvar a = 1 // one\n\n\n// f returns a.\nfunc f() int {\n\t// here\n\treturn a }\n"
	if got, err := withoutComments([]byte(commented)); err != nil || got != want {
		t.Errorf("with comments: %v\n%s\nwithout:\n%s", err, got, want)
	}
	if got, err := withoutComments([]byte("package p\n\nvar a = 2\n\nfunc f() int { return a }\n")); err != nil || got == want {
		t.Errorf("other code: %v\n%s", err, got)
	}
}
