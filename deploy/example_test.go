package deploy_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore/layer"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
)

// An image that is in the store becomes the first deployment of a new system.
func Example() {
	dir, err := os.MkdirTemp("", "example-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = deployOnce(context.Background(), filepath.Join(dir, "store"), filepath.Join(dir, "system"))
	}
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// plan:
	// deploy os 032984a659b2.0
	// kernel arguments: quiet rw
	// then boots os 032984a659b2.0
	// boots: os 032984a659b2.0 example.org/tiny:1, with quiet rw
	// files of the image that it does not have: 1
}

func deployOnce(ctx context.Context, root, system string) (err error) {
	// A store as the daemon makes it, and in it an image of one layer, which would come from a registry.
	config := plugin.DefaultConfig()
	config.Root = root
	store, err := plugin.OpenStore(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	tiny, err := unpack(ctx, store.Layers)
	if err != nil {
		return err
	}
	manifest := []byte(`{"schemaVersion": 2}`)
	image := &deploy.Image{
		Name: "example.org/tiny:1", Version: "1", ManifestDigest: digest.FromBytes(manifest), Manifest: manifest, Config: []byte(`{}`),
		Layers: []objectstore.Checksum{tiny},
	}

	// An empty directory becomes a system.
	if err := os.Mkdir(system, 0o755); err != nil {
		return err
	}
	if _, err := deploy.Init(system, deploy.Options{}, false); err != nil {
		return err
	}
	return deploy.Change(ctx, system, deploy.Options{}, func(s *deploy.System, st *sysroot.State) (err error) {
		if _, _, err := s.EnsureStateroot("os", false); err != nil {
			return err
		}
		// Planning makes the OS commit. Nothing boots yet.
		plan, err := s.Plan(ctx, st, store.Layers, deploy.Request{Image: image, Kargs: kargs.Edits{Append: []string{"rw"}}})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, plan.Close()) }()
		fmt.Printf("plan:\n%s\n", plan)
		if err := plan.Execute(ctx); err != nil {
			return err
		}
		if st, err = s.Load(ctx); err != nil {
			return err
		}
		boots := st.Default()
		fmt.Printf("boots: %s, with %s\n", deploy.Title(boots), boots.Kargs)
		fmt.Printf("files of the image that it does not have: %d\n", len(plan.OS.Dropped))
		return undeploy(ctx, s, st)
	})
}

// undeploy removes the deployment again: its directory is immutable.
func undeploy(ctx context.Context, s *deploy.System, st *sysroot.State) error {
	plan, err := s.PlanUndeploy(st, 0)
	if err != nil {
		return err
	}
	return s.Execute(ctx, plan)
}

// unpack imports the layer of a tiny operating system.
func unpack(ctx context.Context, layers *layer.Store) (id objectstore.Checksum, err error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content string) {
		h.Size, h.ModTime = int64(len(content)), time.Unix(1000, 0)
		err = errors.Join(err, w.WriteHeader(&h))
		_, werr := io.WriteString(w, content)
		err = errors.Join(err, werr)
	}
	for _, name := range []string{"boot/", "dev/", "etc/", "proc/", "run/", "sys/", "sysroot/", "tmp/", "usr/", "var/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, "")
	}
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "ostree", Linkname: "sysroot/ostree", Mode: 0o777}, "")
	for name, content := range map[string]string{
		"usr/lib/os-release":                  "ID=tiny\n",
		"usr/lib/modules/6.1.0/vmlinuz":       "a kernel\n",
		"usr/lib/modules/6.1.0/initramfs.img": "an initramfs\n",
		"usr/lib/bootc/kargs.d/10-tiny.toml":  "kargs = [\"quiet\"]\n",
		"run/lock":                            "not seen when the system runs\n",
	} {
		add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return id, err
	}
	held, err := layers.Import(ctx, &b, layer.ImportOptions{})
	if err != nil {
		return id, err
	}
	return held.ID, held.Release()
}
