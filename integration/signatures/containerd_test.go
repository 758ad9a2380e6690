package signatures

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostree-snapshotter/ostree-snapshotter/integration/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/integration/stack"
	"github.com/ostree-snapshotter/ostree-snapshotter/internal/testenv"
)

// TestContainerdVerifier: a real containerd pulls a signed image, and refuses one that is unsigned or signed by another,
// by ctr and for Kubernetes. What it tells names the reason.
func TestContainerdVerifier(t *testing.T) {
	e := start(t, "layers")
	testenv.NeedsOverlay(t)
	dir := filepath.Join(e.dir, "verifiers")
	script := "#!/bin/sh\nexec " + e.binary + " verify-image -signature-policy " + e.dir + "/containerd-policy.json -registries.d " +
		e.dir + "/home/.config/containers/registries.d \"$@\"\n"
	testenv.Must(t, e.write("verifiers/ostree-snapshotter", []byte(script)))
	testenv.Must(t, os.Chmod(filepath.Join(dir, "ostree-snapshotter"), 0o755))
	testenv.Must(t, e.write("containerd-policy.json", []byte(strings.ReplaceAll(
		`{"default":[{"type":"reject"}],"transports":{"docker":{"`+e.registry.Address+`":[{"type":"sigstoreSigned","keyPath":"@verifier.pub"}]}}}`, "@", e.dir+"/"))))

	key, err := os.ReadFile(filepath.Join(e.dir, "k1.pub"))
	testenv.Must(t, err)
	testenv.Must(t, e.write("verifier.pub", key))
	layout, err := images.Layout(t.Context(), os.Stderr, "layers:1")
	testenv.Must(t, err)
	img, err := images.Open(layout)
	testenv.Must(t, err)
	for _, ref := range []string{"signed:1", "unsigned:1", "other:1"} {
		testenv.Must(t, img.Push(t.Context(), e.registry.Address, ref))
	}
	digest := img.Descriptor.Digest.String()
	e.repo = e.registry.Address + "/signed"
	e.v3("k1", digest)
	e.repo = e.registry.Address + "/other"
	e.v3("k2", digest)

	s, err := stack.Start(t.Context(), stack.Options{Tools: e.tools, Snapshotter: stack.Overlay, Registry: e.registry.Address, Verifiers: dir})
	testenv.Must(t, err)
	t.Cleanup(func() { testenv.Must(t, s.Stop()) })

	pulls := map[string]func(ref string) error{
		"ctr": func(ref string) error { return s.Pull(t.Context(), "default", ref) },
		"cri": func(ref string) error { _, err := s.Crictl(t.Context(), "pull", ref); return err },
	}
	for client, pull := range pulls {
		for name, want := range map[string]string{
			"signed:1": "", "unsigned:1": "it has no signature", "other:1": "the signature does not match the key", "signed@" + digest: "",
		} {
			err := pull(e.registry.Address + "/" + name)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s pull %s: error is %v, want %q", client, name, err, want)
			}
		}
	}

	// Without its key a policy accepts nothing, and the reason is not that the image is unsigned.
	testenv.Must(t, os.Remove(filepath.Join(e.dir, "verifier.pub")))
	if err := pulls["ctr"](e.registry.Address + "/signed:1"); err == nil || !strings.Contains(err.Error(), "cannot be checked") {
		t.Errorf("pull without the key: error is %v", err)
	}
}
