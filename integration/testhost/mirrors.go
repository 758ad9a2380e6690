package testhost

import (
	"os"
	"strings"
)

// aptSources is Debian's own apt configuration.
const aptSources = "/etc/apt/sources.list.d/debian.sources"

// Mirrors returns the addresses of the host's Debian archives, with the public ones as defaults.
func Mirrors() (main, security string) {
	main, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
	b, err := os.ReadFile(aptSources)
	if err != nil {
		return main, security
	}
	for line := range strings.Lines(string(b)) {
		uri, ok := strings.CutPrefix(strings.TrimSpace(line), "URIs: ")
		switch uri = strings.TrimSpace(uri); {
		case !ok || strings.Contains(uri, " "):
		case strings.HasSuffix(uri, "/debian-security"), strings.HasSuffix(uri, "/debian-security/"):
			security = uri
		case strings.HasSuffix(uri, "/debian"), strings.HasSuffix(uri, "/debian/"):
			main = uri
		}
	}
	return main, security
}
