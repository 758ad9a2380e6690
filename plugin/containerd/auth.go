package containerd

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maxAuth is the size of the largest file with credentials that is read.
const maxAuth = 1 << 20

// DockerAuthFile returns the path of docker's file with credentials of this user.
func DockerAuthFile() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil { // a service may have none
		home = "/root"
	}
	return filepath.Join(home, ".docker", "config.json")
}

// Credentials returns those of a file in docker's format, for each host. Helpers that keep credentials elsewhere are not
// called.
func Credentials(file string) (func(host string) (user, secret string, err error), error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAuth+1))
	if err == nil && len(b) > maxAuth {
		err = fmt.Errorf("it has more than %d bytes", maxAuth)
	}
	var auths map[string]auth
	if err == nil {
		auths, err = parseAuths(b)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return func(host string) (string, string, error) {
		a := auths[host]
		return a.user, a.secret, nil
	}, nil
}

type auth struct{ user, secret string }

// parseAuths returns the credentials by host. docker writes a host alone, or a URL.
func parseAuths(data []byte) (map[string]auth, error) {
	var doc struct {
		Auths map[string]struct {
			Auth     []byte `json:"auth"`
			Username string `json:"username"`
			Password string `json:"password"`
			Token    string `json:"identitytoken"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, withoutInput(err)
	}
	auths := make(map[string]auth, len(doc.Auths))
	for name, a := range doc.Auths {
		host := name
		for _, scheme := range []string{"https://", "http://"} {
			host = strings.TrimPrefix(host, scheme)
		}
		host, _, _ = strings.Cut(host, "/")
		if host == "index.docker.io" {
			host = "registry-1.docker.io"
		}
		c := auth{a.Username, a.Password}
		if user, secret, ok := strings.Cut(string(a.Auth), ":"); ok {
			c = auth{user, strings.TrimRight(secret, "\x00")}
		}
		if a.Token != "" {
			c = auth{"", a.Token}
		}
		auths[host] = c
	}
	return auths, nil
}

// withoutInput returns an error of the decoding of secrets, without what was decoded.
func withoutInput(err error) error {
	if errors.As(err, new(base64.CorruptInputError)) {
		return errors.New("an auth is not base64")
	}
	return errors.New("it is not docker's JSON")
}
