package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"auths":{"a.example.org:5000":{"auth":"YWxpY2U6c2U6Y3JldA=="},"https://index.docker.io/v1/":{"username":"bob","password":"x"},
		"t.example.org":{"auth":"","identitytoken":"tok"}},"credsStore":"desktop"}`)
	get, err := Credentials(file)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"a.example.org:5000": "alice/se:cret", "registry-1.docker.io": "bob/x", "t.example.org": "/tok", "b.example.org": "/",
	} {
		user, secret, err := get(host)
		if got := user + "/" + secret; err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", host, got, err, want)
		}
	}
	write(`{"auths":{"a":{"auth":"geheim!"}}}`)
	if _, err := Credentials(file); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("error is %v, want one without what the file says", err)
	}
	if err := os.Truncate(file, maxAuth+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Credentials(file); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a large file: error is %v", err)
	}
}
