//go:build !purego

package sha256x2

import "golang.org/x/sys/cpu"

func init() {
	if cpu.X86.HasSSSE3 && cpu.X86.HasSSE41 && hasSHA() {
		setBlocks(blocksSHA)
	}
}

// hasSHA reports whether the processor has the SHA instructions, which package cpu does not say.
func hasSHA() bool {
	const bit = 1 << 29
	return features7()&bit != 0
}

// features7 returns register EBX of leaf 7 of CPUID, or 0 if there is no such leaf.
//
//go:noescape
func features7() uint32

//go:noescape
func blocksSHA(a, b *state, p, q *byte, n int)
