package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// epoch is SOURCE_DATE_EPOCH of builds: later times in layers become this one.
const epoch = "1700000000"

// dockerfile changes the base image in the ways a build can.
const dockerfile = `ARG BASE
FROM $BASE AS tools
RUN mkdir -p /out/deep/sub && echo built > /out/deep/sub/file && ln /out/deep/sub/file /out/link \
 && ln -s deep/sub /out/soft && mknod /out/null c 1 3 && mkfifo /out/fifo && chown 7:8 /out/deep && chmod 4751 /out/link

FROM $BASE
ARG N=1
COPY files /srv
COPY --from=tools /out /srv/out
COPY --from=tools --chown=5:6 /out/deep /srv/owned
RUN rm -r /data/recreated /data/kept && mv /data/merged /data/renamed && chmod 700 /srv/a
RUN rm -r /data/opaque /srv/gone && mkdir /data/opaque && echo again > /data/opaque/again && mv /srv/dir /srv/moved
RUN echo $N > /n
`

// more is appended for BuildKit: a merge, and a cache mount of which the step runs once for each N.
const more = `COPY --link linked /linked
RUN --mount=type=cache,target=/cache echo $N >> /cache/log && cp /cache/log /log
`

// steps is the number of steps of both that a second build takes from the cache.
const steps = 9

// check is a script for a container of the image that was built first with N=1, then with N=2.
const check = `set -e
[ "$(cat /n /srv/moved/file /srv/out/link /srv/owned/sub/file /data/opaque/*)" = "$(printf '2\nmoved\nbuilt\nbuilt\nagain')" ]
[ "$(ls -a /data/opaque)" = "$(printf '.\n..\nagain')" ]
[ ! -e /data/kept ] && [ ! -e /data/recreated ] && [ ! -e /data/merged ] && [ ! -e /srv/gone ] && [ ! -e /srv/dir ]
[ "$(cat /data/renamed/lower)" = "content of data/merged/lower" ]
[ /srv/out/link -ef /srv/out/deep/sub/file ] && [ -p /srv/out/fifo ] && [ -c /srv/out/null ]
`

// buildContext writes what a builder is given, with fixed times, and returns the directory.
func buildContext(t *testing.T, dockerfile string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"Dockerfile": dockerfile, "files/a": "a\n", "files/gone": "goes again\n", "files/dir/file": "moved\n",
		"linked/dir/file": "linked\n", "files/dir/deep/large": strings.Repeat("larger than one block\n", 10000),
	}
	for name, content := range files {
		name = filepath.Join(dir, name)
		testenv.Must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		testenv.Must(t, os.WriteFile(name, []byte(content), 0o644))
	}
	then := time.Unix(1600000000, 0)
	testenv.Must(t, filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(name, then, then)
	}))
	return dir
}
