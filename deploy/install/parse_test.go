package install

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/atfs"
)

// Anyone can have written the contents of a disk: messages must not affect a terminal.
func TestParseFound(t *testing.T) {
	table := func(disk string) func(string) ([]string, error) {
		return func(out string) ([]string, error) { return parseTable(out, disk) }
	}
	for name, c := range map[string]struct {
		parse func(string) ([]string, error)
		in    string
		want  []string
	}{
		"nothing":       {parseSignatures, "\n", nil},
		"signatures":    {parseSignatures, `{"signatures":[{"type":"gpt"},{"type":"PMBR"},{"type":"gpt"}]}`, []string{"gpt signature", "PMBR signature"}},
		"label":         {parseSignatures, `{"signatures":[{"type":"ext4","label":"a\n\u001b[2Jb"}]}`, []string{`ext4 signature with label "a\n\x1b[2Jb"`}},
		"no label":      {parseSignatures, `{"signatures":[{"type":"xfs","label":null}]}`, []string{"xfs signature"}},
		"no JSON":       {parseSignatures, "DEVICE OFFSET", nil},
		"no partitions": {table("a"), `{"partitiontable":{"label":"dos"}}`, nil},
		"partition": {
			table("/dev/sda"), `{"partitiontable":{"device":"/proc/self/fd/3","partitions":[{"node":"/proc/self/fd/3p1","size":2048}]}}`,
			[]string{"partition /dev/sda1 of 1.0 MiB"},
		},
		"partition of a number": {
			table("/dev/loop0"), `{"partitiontable":{"device":"/proc/self/fd/3","partitions":[{"node":"/proc/self/fd/3p12","size":2048}]}}`,
			[]string{"partition /dev/loop0p12 of 1.0 MiB"},
		},
		"large sectors": {
			table("a"), `{"partitiontable":{"device":"3","sectorsize":4096,"partitions":[{"node":"3p1","size":256}]}}`,
			[]string{"partition a1 of 1.0 MiB"},
		},
		"named": {
			table("a"), `{"partitiontable":{"device":"3","partitions":[{"node":"3p1","size":2048,"name":"x\u0007"}]}}`,
			[]string{`partition a1 of 1.0 MiB called "x\a"`},
		},
		"table, no JSON": {table("a"), "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.parse(c.in)
			if !slices.Equal(got, c.want) || (err != nil) != strings.Contains(name, "no JSON") {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestUsers(t *testing.T) {
	devs := map[string]bool{"8:1": true}
	mounts := "22 1 0:20 / /proc rw - proc proc rw\n29 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 29 8:1 /a /my\\040data rw - ext4 /dev/sda1 rw\n"
	table, err := mountinfo.GetMountsFromReader(strings.NewReader(mounts), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := mountedAt(table, devs), []string{"mounted at /", "mounted at /my data"}; !slices.Equal(got, want) {
		t.Errorf("mounts: got %q, want %q", got, want)
	}
	file := filepath.Join(t.TempDir(), "swap")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	swaps := "Filename Type Size Used Priority\n/dev/null partition 1 0 -2\n" + file + " file 1 0 -3\n"
	if got, want := swapsOn(swaps, devs, atfs.InodeOf(&st)), []string{"swap " + file}; !slices.Equal(got, want) {
		t.Errorf("swaps: got %q, want %q", got, want)
	}
	if got := swapsOn(swaps, devs, atfs.Inode{}); len(got) > 0 {
		t.Errorf("swaps of another file: got %q", got)
	}
}

// Partitions are aligned, in order, and leave room for both copies of the table.
func TestLayout(t *testing.T) {
	for _, disk := range []int64{338 * mib, 338*mib + 511, 1 << 30, 8<<30 + 12345, 1 << 50} {
		parts, err := layout(disk, 512, 36*mib-1, "ext4", arches["amd64"])
		if err != nil {
			t.Errorf("disk of %d: %v", disk, err)
			continue
		}
		end := int64(alignment)
		for _, p := range parts {
			if p.Start != end || p.Start%alignment != 0 || p.Size <= 0 || p.Size%alignment != 0 {
				t.Errorf("disk of %d: partition %+v, the one before ends at %d", disk, p, end)
			}
			end = p.Start + p.Size
		}
		if left := disk - end; left < alignment || left >= 2*alignment {
			t.Errorf("disk of %d: %d bytes are left at its end", disk, left)
		}
	}
}
