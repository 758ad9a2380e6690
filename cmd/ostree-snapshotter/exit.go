package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	dedupimages "github.com/ostree-snapshotter/ostree-snapshotter/bench/dedup/images"
	"github.com/ostree-snapshotter/ostree-snapshotter/bench/layout"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/bootloader"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/etcmerge"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/install"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/kargs"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/oscommit"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/selinux"
	"github.com/ostree-snapshotter/ostree-snapshotter/deploy/sysroot"
	"github.com/ostree-snapshotter/ostree-snapshotter/objectstore"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin"
	"github.com/ostree-snapshotter/ostree-snapshotter/plugin/containerd"
	"github.com/ostree-snapshotter/ostree-snapshotter/signature"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter"
	"github.com/ostree-snapshotter/ostree-snapshotter/snapshotter/inspect"
)

// Exit statuses. They are interface: scripts test them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3
	exitNoRepo      = 10
	exitLocked      = 11
	exitCorrupt     = 12
	exitNoSysroot   = 13
	exitNotBootable = 14
	exitConflict    = 15
	exitNoImage     = 16
	exitRefused     = 17
	exitNoUpdate    = 77
	exitInterrupted = 130
)

var exitMeaning = map[int]string{
	exitOK:          "done",
	exitFailed:      "failed",
	exitUsage:       "wrong usage",
	exitPartly:      "partly done; standard error says what is missing",
	exitNoRepo:      "no repository at the root",
	exitLocked:      "the repository, its metadata or the system is locked by another process",
	exitCorrupt:     "the store or the system is corrupt",
	exitNoSysroot:   "no ostree system, or no stateroot, at the given place",
	exitNotBootable: "the image cannot be booted",
	exitConflict:    "changes in /etc conflict with the image",
	exitNoImage:     "containerd does not have the image, or this snapshotter has not unpacked it",
	exitRefused:     "the signature policy refuses the image",
	exitNoUpdate:    "no update available",
	exitInterrupted: "interrupted",
}

// exitHelp returns the end of a command's help text: the statuses of every command, and those in codes.
func exitHelp(codes ...int) string {
	codes = append(codes, exitOK, exitFailed, exitUsage)
	slices.Sort(codes)
	var b strings.Builder
	b.WriteString("\n\nExit status:")
	for _, code := range slices.Compact(codes) {
		fmt.Fprintf(&b, "\n  %3d  %s", code, exitMeaning[code])
	}
	return b.String()
}

// statusError is an error with an exit status.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func withStatus(status int, err error) error { return &statusError{status, err} }

func usagef(format string, args ...any) error {
	return withStatus(exitUsage, fmt.Errorf(format, args...))
}

// hintError is an error with a hint for its reader.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

var errInterrupted = withStatus(exitInterrupted, errors.New("interrupted"))

// An outputError reports that standard output cannot be written.
type outputError struct{ err error }

func (e *outputError) Error() string { return "write output: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// outputWriter is standard output. Its errors are [outputError]s, which say nothing about the store.
type outputWriter struct{ w io.Writer }

func (o outputWriter) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		err = &outputError{err}
	}
	return n, err
}

// errQuiet is an error without a message: the exit status is the result.
var errQuiet = errors.New("quiet")

// report writes err and its hint to stderr, and returns its exit status.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, errQuiet) {
		return statusOf(err)
	}
	for _, line := range errorLines(err) {
		fmt.Fprintf(stderr, "ostree-snapshotter: error: %s\n", deploy.Printable(line))
	}
	if hint := hintFor(err); hint != "" {
		fmt.Fprintf(stderr, "ostree-snapshotter: hint: %s\n", deploy.Printable(hint))
	}
	return statusOf(err)
}

// errorLines returns the lines of an error: one for each error that errors.Join has joined, at any depth. Other line
// breaks are part of a name, and stay in the line.
func errorLines(err error) []string {
	text := err.Error()
	if !strings.Contains(text, "\n") {
		return []string{text}
	}
	var wrapped []error
	switch e := err.(type) { //nolint:errorlint // the tree is walked
	case interface{ Unwrap() error }:
		wrapped = []error{e.Unwrap()}
	case interface{ Unwrap() []error }:
		wrapped = e.Unwrap()
	}
	var texts, lines []string
	for _, w := range wrapped {
		if w != nil {
			texts = append(texts, w.Error())
			lines = append(lines, errorLines(w)...)
		}
	}
	if len(texts) == 0 {
		return []string{text}
	}
	if strings.Join(texts, "\n") == text {
		return lines
	}
	last := texts[len(texts)-1]
	if prefix, ok := strings.CutSuffix(text, last); ok { // "verb object: %w"
		lines = errorLines(wrapped[len(wrapped)-1])
		lines[0] = prefix + lines[0]
		return lines
	}
	return []string{text}
}

func statusOf(err error) int {
	var (
		status  *statusError
		none    *plugin.NoStoreError
		damaged *snapshotter.DamagedMetadataError
		locked  *inspect.LockedError
	)
	switch {
	case errors.As(err, &status):
		return status.status
	case is(err, deploy.ErrNotBootable, deploy.ErrArchitecture, deploy.ErrImageKargs, deploy.ErrInstallConfig):
		return exitNotBootable
	case is(err, deploy.ErrNotArmed, objectstore.ErrNotRemoved):
		return exitPartly
	case is(err, deploy.ErrStaterootName, deploy.ErrManyStateroots, deploy.ErrCannotStage, kargs.ErrEdit):
		return exitUsage
	case errors.As(err, new(*signature.RefusedError)), errors.Is(err, deploy.ErrRefused):
		return exitRefused
	case is(err, containerd.ErrNoImage, inspect.ErrNotUnpacked):
		return exitNoImage
	case errors.As(err, &none), errors.Is(err, objectstore.ErrNoRepo):
		return exitNoRepo
	case errors.As(err, &locked), errors.Is(err, objectstore.ErrLocked), errors.Is(err, sysroot.ErrLocked):
		return exitLocked
	case errors.As(err, &damaged), errors.Is(err, objectstore.ErrCorrupt), errors.Is(err, sysroot.ErrCorrupt):
		return exitCorrupt
	case is(err, sysroot.ErrNotSysroot, deploy.ErrNotBooted, deploy.ErrNoStateroot):
		return exitNoSysroot
	case is(err, sysroot.ErrInvalid, sysroot.ErrSELinux, oscommit.ErrInvalid, selinux.ErrInvalid, selinux.ErrNoPolicy):
		return exitNotBootable
	case errors.Is(err, etcmerge.ErrConflict):
		return exitConflict
	}
	return exitFailed
}

// is reports whether an error is one of several.
func is(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// deployHints holds hints for errors of package deploy and the packages below it. The first match counts.
var deployHints = []struct {
	kind error
	hint string
}{
	{deploy.ErrNotBootable, "a bootable image has kernel and initramfs in /usr/lib/modules/<version>, and the directories of an ostree system"},
	{deploy.ErrArchitecture, "\"ctr images pull --platform\" pulls another one, if the registry has it"},
	{deploy.ErrInstallConfig, "a disk that you have partitioned and mounted yourself takes any image: \"ostree-snapshotter deploy --init --sysroot DIR\""},
	{deploy.ErrNotBooted, "--sysroot DIR names another system, such as a mounted disk"},
	{sysroot.ErrNotSysroot, "\"ostree-snapshotter deploy --init\" makes a sysroot of a directory, \"ostree-snapshotter install\" of a disk"},
	{deploy.ErrNoStateroot, "\"ostree-snapshotter deploy --init\" makes one"},
	{deploy.ErrManyStateroots, "--stateroot names one"},
	{deploy.ErrNoDeployment, "\"ostree-snapshotter status\" lists all"},
	{deploy.ErrNothingDeployed, "\"ostree-snapshotter deploy IMAGE\" makes the first"},
	{deploy.ErrNotFromImage, "\"ostree-snapshotter switch IMAGE\" deploys one, and upgrades come from it from then on"},
	{deploy.ErrRefused, "\"ostree-snapshotter deploy --help\" describes what a reference demands; docs/deploy.md, where keys belong"},
	{deploy.ErrRemote, "docs/deploy.md describes where remotes and their keys belong"},
	{deploy.ErrTransport, "\"ostree-snapshotter switch IMAGE\" sets another"},
	{deploy.ErrNotRoot, "try again as root"},
	{deploy.ErrBootloader, "--esp DIR gives the mount point of the EFI system partition"},
	{deploy.ErrNoBootCounting, "--esp DIR gives its mount point; or do without --boot-tries"},
	{bootloader.ErrCannotCount, "do without --boot-tries"},
	{deploy.ErrCannotStage, "do without --stage"},
	{deploy.ErrNotArmed, "a unit that calls \"ostree-snapshotter finalize-staged\" when it stops is in deploy/systemd"},
	{deploy.ErrNotFinalized, "\"ostree-snapshotter upgrade\" deploys it again"},
	{install.ErrNotEmpty, "--wipe erases its contents"},
	{install.ErrNoSize, "--size creates it: --size 8G"},
	{etcmerge.ErrConflict, "make them match the image, or move them away; then try again"},
	{selinux.ErrInvalid, "--no-selinux deploys the image without labels; if it is a change of yours in /etc/selinux, correct that instead"},
	{sysroot.ErrSELinux, "--no-selinux deploys it anyway, for a system that does not enforce the policy"},
	{sysroot.ErrNoSpace, "\"ostree-snapshotter undeploy\" and \"cleanup\" make room, in /boot also --early-prune"},
	{sysroot.ErrChanged, "try again"},
}

// deployHint returns the hint for an error of package deploy, "" if there is none.
func deployHint(err error) string {
	var (
		edit      *deploy.KargsError
		installed *deploy.InstallError
		missing   *install.MissingToolsError
		space     *bootloader.SpaceError
	)
	errors.As(err, &installed)
	switch {
	case errors.As(err, &edit):
		return "they are " + kargs.List(edit.Kargs).String()
	case errors.As(err, &missing):
		return "Debian has them: apt-get install " + strings.Join(missing.Packages, " ")
	case installed != nil && errors.As(err, &space):
		return "--esp-size makes the EFI system partition larger"
	}
	for _, h := range deployHints {
		if errors.Is(err, h.kind) {
			return h.hint
		}
	}
	if installed != nil && errors.Is(err, unix.ENOSPC) {
		return "the disk, or the file system that the image file is on, has to be larger"
	}
	return ""
}

func hintFor(err error) string {
	var (
		hint    *hintError
		img     *containerd.ImageError
		reg     *containerd.RegistryError
		none    *plugin.NoStoreError
		config  *plugin.ConfigError
		damaged *snapshotter.DamagedMetadataError
		lost    *inspect.LostMetadataError
		locked  *inspect.LockedError
		absent  *dedupimages.AbsentError
	)
	switch {
	case errors.As(err, &hint):
		return hint.hint
	case errors.As(err, &absent) && absent.Name != "":
		return fmt.Sprintf("\"ctr -n %s content fetch %s\" brings what is missing, and does not unpack it", absent.Namespace, absent.Name)
	case errors.As(err, new(*dedupimages.PlatformError)):
		return "--platform chooses another"
	case errors.As(err, new(*layout.TagsError)):
		return "oci:DIR:TAG chooses one"
	case errors.As(err, &img) && imageHint(img) != "":
		return imageHint(img)
	case signatureHint(err) != "":
		return signatureHint(err)
	case errors.As(err, &reg):
		return registryHint(reg)
	case deployHint(err) != "":
		return deployHint(err)
	case errors.As(err, &none):
		return "\"ostree-snapshotter serve\" makes the store when it first starts; --root or --config say where it is"
	case errors.As(err, &config):
		return "\"ostree-snapshotter config default\" prints every key with its default"
	case errors.As(err, &damaged), errors.As(err, &lost):
		return "start the daemon: it puts the copy of the file in its place"
	case errors.As(err, &locked):
		return "--daemon-address says where the daemon that uses this root listens"
	case errors.Is(err, objectstore.ErrLocked):
		return "a pull or another prune holds the repository's lock; try again when it is done"
	case errors.Is(err, objectstore.ErrCorrupt):
		return "\"ostree-snapshotter fsck\" names everything that is damaged in the store, \"fsck --repair\" mends it; \"ostree fsck --delete\" removes what is damaged in the repository of a system, and deploying its image again brings that back"
	case errors.Is(err, fs.ErrPermission) && unix.Geteuid() != 0:
		return "the store belongs to root; try again as root"
	case errors.Is(err, unix.ENOSPC) && !errors.As(err, new(*outputError)):
		return "\"ostree-snapshotter prune\" frees what no snapshot needs"
	}
	return ""
}

// imageHint returns the hint for an image that containerd or the store does not have, "" for other errors.
func imageHint(e *containerd.ImageError) string {
	pull := func(flags string) string {
		return fmt.Sprintf("ctr -n %s images pull %s--snapshotter %s %s", e.Namespace, flags, containerd.SnapshotterID, e.Name)
	}
	var doc *containerd.DocumentError
	var platform *containerd.PlatformError
	switch {
	case errors.Is(e, containerd.ErrNoAnswer):
		return "-a/--address says where containerd listens"
	case errors.Is(e, inspect.ErrNotUnpacked):
		return fmt.Sprintf("%q unpacks it", pull(""))
	case errors.As(e, &platform):
		return fmt.Sprintf("an image for this host is pulled by %q, if the registry has one", pull("--platform "+platform.Want+" "))
	case !errors.Is(e, containerd.ErrNoImage), errors.Is(e, containerd.ErrNoManifest):
		return ""
	case errors.As(e, &doc):
		return fmt.Sprintf("%q pulls it again", pull(""))
	case e.FoundIn != "":
		return fmt.Sprintf("namespace %s has it: -n %s", e.FoundIn, e.FoundIn)
	}
	if full := fullName(e.Name); full != "" {
		return full
	}
	return fmt.Sprintf("%q pulls it", pull(""))
}

// fullName returns a hint with the full name of an image if name is short, which containerd does not complete; else "".
func fullName(name string) string {
	host, rest, ok := strings.Cut(name, "/")
	if ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		if strings.ContainsAny(rest, ":@") {
			return ""
		}
		return fmt.Sprintf("containerd takes names as they are, with the tag, like %q", name+":latest")
	}
	full := "docker.io/" + name
	if !ok {
		full = "docker.io/library/" + name
	}
	if !strings.ContainsAny(name, ":@") {
		full += ":latest"
	}
	return fmt.Sprintf("containerd takes names as they are, with the registry, like %q", full)
}

// signatureHint returns the hint for an error of package signature, "" for other errors.
func signatureHint(err error) string {
	var (
		policy  *signature.PolicyError
		refused *signature.RefusedError
		source  *signature.SourceError
		missing *fs.PathError
	)
	switch {
	case errors.As(err, &policy) && errors.As(err, &missing) && errors.Is(err, fs.ErrNotExist) && missing.Path == policy.File:
		return "--signature-policy names a policy; containers-policy.json(5) describes it, and docs/signatures.md has examples"
	case errors.As(err, &policy) && errors.Is(err, fs.ErrNotExist):
		return "the policy names a key that is not there; containers-policy.json(5) describes where keys are named"
	case errors.As(err, &policy):
		return "containers-policy.json(5) describes the file"
	case errors.As(err, &source):
		return "the image may well be signed: try again when the registry answers. " + registryFlagsHint
	case errors.As(err, &refused) && refused.Verdict.Unsigned()&signature.Simple != 0:
		return "\"skopeo copy --sign-by KEY\" signs a copy of it, and registries.d names the lookaside with the signature"
	case errors.As(err, &refused) && refused.Verdict.Unsigned() != 0:
		return fmt.Sprintf("\"cosign sign --key KEY %s@%s\" signs it", refused.Verdict.Image.Name.Name(), refused.Verdict.Image.Digest)
	case errors.As(err, &refused):
		return fmt.Sprintf("\"ostree-snapshotter image verify %s\" tells why, signature by signature", refused.Verdict.Image.Name)
	}
	return ""
}

const registryFlagsHint = "--hosts-dir, --plain-http and --user say how to reach a registry, as with \"ctr images pull\""

func registryHint(e *containerd.RegistryError) string {
	if e.Snapshotter != "" && errdefs.IsNotImplemented(e) {
		return fmt.Sprintf("containerd 2.0 and later pull by themselves; before that, \"ctr images pull --snapshotter %s %s\" "+
			"and \"ostree-snapshotter deploy\" do the same", e.Snapshotter, e.Ref)
	}
	return registryFlagsHint
}

// note writes a message that is not an error to stderr.
func (c *cli) note(format string, args ...any) {
	fmt.Fprintln(c.stderr, deploy.Printable(fmt.Sprintf("ostree-snapshotter: "+format, args...)))
}
