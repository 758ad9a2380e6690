package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVerifyImage: the exit status and the reason on standard output are what containerd reads.
func TestVerifyImage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	defer broken.Close()
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }

	key := write("key.pub", "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n")
	accept := write("accept.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	demand := write("demand.json", `{"default":[{"type":"sigstoreSigned","keyPath":"`+key+`"}]}`)
	const dgst = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	const other = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	const descType = "application/vnd.oci.descriptor.v1+json"

	for name, c := range map[string]struct {
		policy, image, digest, typ, stdin string
		status                            int
		stdout                            string
	}{
		"accepted":         {accept, host(empty) + "/a:1", dgst, descType, `{"digest":"` + dgst + `"}`, exitOK, `accepted by rule "default"`},
		"unsigned":         {demand, host(empty) + "/a:1", dgst, descType, `{"digest":"` + dgst + `"}`, exitRefused, "it has no signature"},
		"registry fails":   {demand, host(broken) + "/a:1", dgst, descType, `{"digest":"` + dgst + `"}`, exitFailed, "cannot be checked"},
		"another digest":   {accept, host(empty) + "/a:1", dgst, descType, `{"digest":"` + other + `"}`, exitUsage, "the descriptor has the digest"},
		"pinned otherwise": {accept, host(empty) + "/a@" + other, dgst, descType, `{"digest":"` + dgst + `"}`, exitFailed, "not the one that the name demands"},
		"another document": {accept, host(empty) + "/a:1", dgst, "text/plain", `{"digest":"` + dgst + `"}`, exitUsage, "has the type"},
		"no JSON":          {accept, host(empty) + "/a:1", dgst, descType, `x`, exitFailed, "read the descriptor"},
		"large":            {accept, host(empty) + "/a:1", dgst, descType, strings.Repeat(" ", maxDescriptor+1), exitFailed, "more than"},
		"no policy":        {filepath.Join(dir, "none"), host(empty) + "/a:1", dgst, descType, `{"digest":"` + dgst + `"}`, exitFailed, "cannot be checked"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			t.Setenv("DOCKER_CONFIG", dir)
			c1 := cli{stdin: strings.NewReader(c.stdin), stdout: &stdout, stderr: &stderr}
			status := c1.execute(t.Context(), []string{
				"verify-image", "-signature-policy", c.policy, "-registries.d", dir,
				"-name", c.image, "-digest", c.digest, "-stdin-media-type", c.typ,
			})
			if status != c.status || !strings.Contains(stdout.String(), c.stdout) || strings.Count(stdout.String(), "\n") != 1 {
				t.Errorf("exit status is %d, stdout %q, stderr %q, want %d, %q", status, stdout.String(), stderr.String(), c.status, c.stdout)
			}
		})
	}
}
