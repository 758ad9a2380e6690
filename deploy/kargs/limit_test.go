package kargs

import "testing"

func TestMaxLen(t *testing.T) {
	for arch, want := range map[string]int{
		"amd64": 2047, "arm64": 2047, "ppc64le": 2047, "s390x": 4095, "loong64": 4095, "arm": 1023, "riscv64": 1023, "new": 1023,
	} {
		if got := MaxLen(arch); got != want {
			t.Errorf("%s: got %d, want %d", arch, got, want)
		}
	}
}
