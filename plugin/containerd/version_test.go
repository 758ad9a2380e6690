package containerd

import (
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		text   string
		want   Version
		stages bool
		format int
	}{
		{"1.7.35", Version{1, 7}, false, 2},
		{"v1.7.35~ds1", Version{1, 7}, false, 2},
		{"v1.99.0", Version{1, 99}, false, 2},
		{"2.0.0-rc.1", Version{2, 0}, false, 3},
		{"2.2.9", Version{2, 2}, false, 3},
		{"v2.3.0", Version{2, 3}, false, 4},
		{"2.3-dev", Version{2, 3}, false, 4},
		{"2.3.7", Version{2, 3}, false, 4},
		{"2.4", Version{2, 4}, true, 4},
		{"2.4.0", Version{2, 4}, true, 4},
		{"v2.4.2", Version{2, 4}, true, 4},
		{"2.4.0-rc.1", Version{2, 4}, true, 4},
		{"2.4.2+unknown", Version{2, 4}, true, 4},
		{"2.5.0+unknown", Version{2, 5}, true, 4},
		{"2.10", Version{2, 10}, true, 4},
		{"2.10.1", Version{2, 10}, true, 4},
		{"3.0.0", Version{3, 0}, true, 4},
	} {
		got, err := ParseVersion(c.text)
		if err != nil || got != c.want {
			t.Errorf("ParseVersion(%q) = %v, %v, want %v", c.text, got, err, c.want)
		}
		if got.StagesMounts() != c.stages || got.ConfigFormat() != c.format {
			t.Errorf("%q: stages mounts: %v, configuration format %d, want %v, %d",
				c.text, got.StagesMounts(), got.ConfigFormat(), c.stages, c.format)
		}
	}
	for _, text := range []string{"", "2", "2.", "v2", "2.x", "2.x.0", "latest", "devel", "two.four", "-3.4.0", "2.99999999999999999999.0"} {
		if got, err := ParseVersion(text); err == nil {
			t.Errorf("ParseVersion(%q) = %v, want an error", text, got)
		}
	}
}

func TestParseConfigVersion(t *testing.T) {
	for text, want := range map[string]Version{
		"2": {1, 7}, "3": {2, 0}, "4": {2, 3}, "1.6.20": {1, 6}, "1.7": {1, 7}, "2.1.9": {2, 1}, "v2.4": {2, 4},
	} {
		if got, err := ParseConfigVersion(text); err != nil || got != want {
			t.Errorf("ParseConfigVersion(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "1", "5", "latest", "2.", ".4"} {
		if got, err := ParseConfigVersion(text); err == nil {
			t.Errorf("ParseConfigVersion(%q) = %v, want an error", text, got)
		}
	}
}

func TestSupported(t *testing.T) {
	for _, v := range []Version{{0, 9}, {1, 0}, {1, 6}} {
		if err := v.Supported(); err == nil || !strings.Contains(err.Error(), "1.7 or later is needed") {
			t.Errorf("%v: got %v, want that 1.7 is needed", v, err)
		}
	}
	for _, v := range []Version{{1, 7}, {1, 10}, {2, 0}, {3, 0}} {
		if err := v.Supported(); err != nil {
			t.Errorf("%v: %v", v, err)
		}
	}
}
