package kargs

// MaxLen returns the most bytes that the kernel of an architecture (as in runtime.GOARCH) reads of its command line:
// COMMAND_LINE_SIZE, less the byte that ends it. Kernels cut off the rest without a word. An unknown architecture gets
// the smallest limit.
func MaxLen(arch string) int {
	size := 1024 // arm, riscv64 and others
	switch arch {
	case "386", "amd64", "arm64", "ppc64", "ppc64le":
		size = 2048
	case "loong64", "mips", "mips64", "mips64le", "mipsle", "s390x":
		size = 4096
	}
	return size - 1
}
