package testhost

import (
	"os"
	"strings"
)

// aptSources is where Debian's own apt configuration is.
const aptSources = "/etc/apt/sources.list.d/debian.sources"

// Mirrors returns the addresses of Debian's archives that the host itself uses, with the public ones as default.
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
