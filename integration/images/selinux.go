package images

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"
)

// SELinuxBase is the reference of the common base of the OS images with SELinux: Debian trixie with what OSBase has, and
// the default policy, which is permissive. Names does not return it.
const SELinuxBase = "os-selinux-base:1"

// SELinux writes three versions of an operating system with SELinux as OCI layouts below a directory, and returns them
// by reference. They have SELinuxBase's layer, and a small one with the files.
//
//	selinux:1    version 1: permissive
//	selinux:2    version 2: selinux:1, and a layer that makes it enforcing and changes what os:2 changes
//	selinux:3    version 3: selinux:2, and a layer that changes /usr
func SELinux(ctx context.Context, log io.Writer, dir string, files []File) (map[string]*Image, error) {
	return writeOS(ctx, log, dir, SELinuxBase, []osVersion{
		{"selinux:1", "1", func(l *layerWriter) { osFirst(l, files) }},
		{"selinux:2", "2", func(l *layerWriter) {
			osSecond(l)
			l.file("etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=default\n", later(time.Hour))
		}},
		{"selinux:3", "3", func(l *layerWriter) { l.file("usr/lib/example-version", "3\n", later(2*time.Hour)) }},
	})
}

var selinuxRootfs = rootfs{
	suite: "trixie", variant: "essential",
	packages: slices.Concat(osPackages, []string{"selinux-policy-default", "policycoreutils", "selinux-utils"}),
	args:     append(osArgs(selinuxExcludes()), "--customize-hook="+ostreePolicy),
}

// ostreePolicy adds to Debian's policy what ostree and the links of osLinks need: ostree-system-generator links a file
// that it has opened without a name, and every program may look up names below the links.
const ostreePolicy = `chroot "$1" sh -euc '
cat >/tmp/ostree.cil <<EOF
(allow systemd_generator_t init_runtime_t (file (link)))
(allow domain default_t (lnk_file (getattr read)))
(allow domain usr_t (lnk_file (getattr read)))
(allow domain var_t (lnk_file (getattr read)))
EOF
semodule --store default --noreload --install /tmp/ostree.cil
rm /tmp/ostree.cil'`

// selinuxExcludes returns what of packages a virtual machine does not need, in the merged /usr of trixie, where modules
// are compressed.
func selinuxExcludes() (patterns []string) {
	for _, p := range osExcludes {
		p = strings.Replace(p, "/lib/modules/", "/usr/lib/modules/", 1)
		if strings.HasSuffix(p, ".ko") {
			p += ".xz"
		}
		patterns = append(patterns, p)
	}
	return patterns
}

// selinuxMasked are units of trixie that a virtual machine does not need. Some write files whose labels Debian's policy
// wants to be others.
var selinuxMasked = []string{
	"ldconfig.service", "systemd-journal-catalog-update.service", "systemd-random-seed.service", "systemd-networkd-persistent-storage.service",
	"systemd-udev-load-credentials.service", "modprobe@drm.service", "modprobe@efi_pstore.service",
}

// selinuxEdit adds what SELinux needs besides packages: Debian's kernel takes AppArmor by default, and the links of osLinks
// lead to directories that the policy knows by other names.
func selinuxEdit(l *layerWriter) {
	osEdit(l)
	l.file("./usr/lib/bootc/kargs.d/20-selinux.toml", "kargs = [\"security=selinux\", \"systemd.gpt_auto=0\"]\n")
	for _, unit := range selinuxMasked {
		l.symlink("./etc/systemd/system/"+unit, "/dev/null")
	}
	for _, dir := range []string{"home", "mnt", "opt", "roothome", "srv", "usrlocal"} {
		l.dir("./var/" + dir) // with labels from the start: the policy does not let systemd-tmpfiles make them
	}
	l.file("./etc/selinux/default/contexts/files/file_contexts.subs",
		"/var/home /home\n/var/roothome /root\n/var/opt /opt\n/var/srv /srv\n/var/mnt /mnt\n/var/usrlocal /usr/local\n")
}

// References of images that consist of a release's essential packages and its default policy. Names does not return them.
const (
	PolicyBookworm = "policy-bookworm:1"
	PolicyForky    = "policy-forky:1"
	// PolicyLocal is trixie with home directories, and with what an administrator has changed by semanage(8).
	PolicyLocal = "policy-trixie:local"
)

func policyRootfs(suite string, packages []string, args ...string) *rootfs {
	options := []string{`--aptopt=Acquire::Check-Valid-Until "false"`} // the mirror of a release under development can lag behind
	for _, dir := range []string{"doc", "info", "locale", "man"} {
		options = append(options, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	return &rootfs{
		suite: suite, variant: "essential", args: append(options, args...),
		packages: append([]string{"passwd", "selinux-policy-default"}, packages...),
	}
}

// localPolicy makes users with and without an SELinux user of their own, one with a home directory elsewhere, and local
// labels of each kind.
const localPolicy = `chroot "$1" sh -euc '
mkdir /srv/people
useradd --create-home alice
useradd --create-home --home-dir /srv/people/bob bob
mkdir -p /srv/www/site /home/alice/.ssh /home/alice/public_html /srv/people/bob/.ssh
for f in /srv/www/site/index.html /home/alice/public_html/index.html /home/alice/.ssh/authorized_keys /srv/people/bob/.ssh/authorized_keys; do
  echo "a file" >$f
done
semanage fcontext --noreload --store default --add --type httpd_sys_content_t "/srv/www(/.*)?"
semanage fcontext --noreload --store default --add --ftype f --type httpd_sys_script_exec_t /usr/bin/env
semanage fcontext --noreload --store default --add --equal /home /srv/people
semanage login --noreload --store default --add --seuser staff_u alice'`
