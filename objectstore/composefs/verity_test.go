package composefs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

func TestVerityDigest(t *testing.T) {
	for _, tt := range []struct{ name, content, want string }{
		{"empty", "", "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"},
		{"hello world", "hello world", "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64"},
	} {
		got, err := VerityDigest(strings.NewReader(tt.content))
		if err != nil || hex.EncodeToString(got[:]) != tt.want {
			t.Errorf("%s: got %x (%v), want %s", tt.name, got, err, tt.want)
		}
	}
}

// wholeVerity computes the digest with all levels in memory.
func wholeVerity(data []byte) [32]byte {
	var level []byte
	for rest := data; len(rest) > 0; {
		block := make([]byte, 4096)
		rest = rest[copy(block, rest):]
		sum := sha256.Sum256(block)
		level = append(level, sum[:]...)
	}
	for len(level) > 32 {
		var up []byte
		for rest := level; len(rest) > 0; {
			block := make([]byte, 4096)
			rest = rest[copy(block, rest):]
			sum := sha256.Sum256(block)
			up = append(up, sum[:]...)
		}
		level = up
	}
	desc := make([]byte, 256)
	desc[0], desc[1], desc[2] = 1, 1, 12
	le.PutUint64(desc[8:], uint64(len(data)))
	copy(desc[16:], level)
	return sha256.Sum256(desc)
}

func TestVerityDigestLevels(t *testing.T) {
	data := make([]byte, 4096*128*129+5)
	for i := range data {
		data[i] = byte(i >> 12 * 7)
	}
	for _, n := range []int{
		1, 4095, 4096, 4097, 4096 * 2, 4096 * 127, 4096 * 128, 4096*128 + 1, 4096 * 129, 4096 * 256,
		4096 * 128 * 128, 4096*128*128 + 1, 4096 * 128 * 129, len(data),
	} {
		got, err := VerityDigest(bytes.NewReader(data[:n]))
		if want := wholeVerity(data[:n]); err != nil || got != want {
			t.Errorf("%d bytes: got %x (%v), want %x", n, got, err, want)
		}
	}
}

func TestVerityDigestShortReads(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 1000)
	got, err := VerityDigest(iotest.HalfReader(bytes.NewReader(data)))
	if want := wholeVerity(data); err != nil || got != want {
		t.Errorf("got %x (%v), want %x", got, err, want)
	}
	broken := errors.New("broken")
	if _, err := VerityDigest(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got error %v, want %v", err, broken)
	}
}

// The kernel's digest, where the file system has fs-verity.
func TestVerityDigestKernel(t *testing.T) {
	for _, size := range []int{0, 1, 4096, 4096*128 + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := bytes.Repeat([]byte{'v'}, size)
			name := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			want, err := measureVerity(name)
			if err != nil {
				testenv.Unsupported(t, "needs fs-verity in the temporary directory: %v", err)
			}
			got, err := VerityDigest(bytes.NewReader(data))
			if err != nil || !bytes.Equal(got[:], want) {
				t.Errorf("got %x (%v), want %x", got, err, want)
			}
		})
	}
}

// measureVerity enables fs-verity on a file and returns its digest.
func measureVerity(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: 1, Block_size: 4096}
	if err := ioctl(f, unix.FS_IOC_ENABLE_VERITY, &arg); err != nil {
		return nil, fmt.Errorf("enable: %w", err)
	}
	var digest struct {
		algorithm, size uint16
		sum             [64]byte
	}
	digest.size = uint16(len(digest.sum))
	if err := ioctl(f, unix.FS_IOC_MEASURE_VERITY, &digest); err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	return digest.sum[:digest.size], nil
}
