package deploy

import "errors"

// Kinds of errors, for errors.Is. Each error has a text of its own that names the image or system. Its kind tells
// programs what can be done about it.
var (
	// ErrNotBootable: the image lacks files that a system needs to boot. The error lists them.
	ErrNotBootable = errors.New("image cannot be booted")
	// ErrArchitecture: the image is for machines of another architecture.
	ErrArchitecture = errors.New("image of another architecture")
	// ErrImageKargs: the kernel arguments of an image are invalid or cannot be read.
	ErrImageKargs = errors.New("kernel arguments of the image cannot be used")
	// ErrInstallConfig: an image's configuration of its installation cannot be read or followed.
	ErrInstallConfig = errors.New("configuration of the installation cannot be used")
	// ErrNotBooted: the running system was not booted from a deployment.
	ErrNotBooted = errors.New("system was not booted from a deployment")
	// ErrNoStateroot: the sysroot lacks the stateroot, or has none at all.
	ErrNoStateroot = errors.New("no such stateroot")
	// ErrManyStateroots: the sysroot has several stateroots, and none was chosen.
	ErrManyStateroots = errors.New("several stateroots")
	// ErrStaterootName: a stateroot cannot have the name.
	ErrStaterootName = errors.New("not the name of a stateroot")
	// ErrNoDeployment: the stateroot has no deployment.
	ErrNoDeployment = errors.New("no deployment")
	// ErrNothingDeployed: there is no deployment to take over from or to compare with.
	ErrNothingDeployed = errors.New("nothing is deployed")
	// ErrNotFromImage: a deployment was not made from an image.
	ErrNotFromImage = errors.New("not deployed from an image")
	// ErrRefused: an image lacks a signature that its reference demands.
	ErrRefused = errors.New("image is refused")
	// ErrRemote: the ostree remote whose keys a reference demands is missing, or its configuration or keys cannot be used.
	ErrRemote = errors.New("keys of the ostree remote cannot be used")
	// ErrTransport: an origin names an image outside registries.
	ErrTransport = errors.New("origin is not in a registry")
	// ErrNotRoot: changing a system takes root.
	ErrNotRoot = errors.New("not root")
	// ErrBootloader: the system's boot loader cannot be opened, so nothing can be changed.
	ErrBootloader = errors.New("boot loader cannot be opened")
	// ErrNoBootCounting: boots cannot be counted, since the system has no boot loader with entries of its own.
	ErrNoBootCounting = errors.New("boots cannot be counted")
	// ErrCannotStage: only the running system can stage a deployment.
	ErrCannotStage = errors.New("deployment cannot be staged")
	// ErrNotArmed: a deployment is staged, but no unit will finalize it when the system shuts down.
	ErrNotArmed = errors.New("nothing finalizes the staged deployment")
	// ErrNotFinalized: the staged deployment was not finalized when the system last shut down.
	ErrNotFinalized = errors.New("staged deployment was not finalized")
)

// A kindError is an error of a kind, with a text of its own.
type kindError struct {
	kind error
	error
}

func (e *kindError) Is(target error) bool { return target == e.kind }
func (e *kindError) Unwrap() error        { return e.error }

// as makes err an error of a kind, and keeps its text.
func as(kind, err error) error { return &kindError{kind, err} }

// An InstallError is an error about the disk of an installation. It has the text of Err.
type InstallError struct{ Err error }

func (e *InstallError) Error() string { return e.Err.Error() }
func (e *InstallError) Unwrap() error { return e.Err }

// A KargsError is an error about edits that do not apply to a deployment's kernel arguments. It has the text of Err.
type KargsError struct {
	Kargs []string // of the deployment
	Err   error
}

func (e *KargsError) Error() string { return e.Err.Error() }
func (e *KargsError) Unwrap() error { return e.Err }
