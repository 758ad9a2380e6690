package layer

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestParseRef(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	sum := digest.Digest("sha256:" + hex)
	for _, tt := range []struct {
		ref          string
		diffID, blob digest.Digest
	}{
		{refDiff + hex, sum, ""},
		{refBlob + hex, "", sum},
		{refSnapshot + "7", "", ""},
		{"os/" + hex, "", ""},
	} {
		if diffID, blob := ParseRef(tt.ref); diffID != tt.diffID || blob != tt.blob {
			t.Errorf("ParseRef(%q) = %q, %q, want %q, %q", tt.ref, diffID, blob, tt.diffID, tt.blob)
		}
	}
}
