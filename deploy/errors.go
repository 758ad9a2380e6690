package deploy

import "errors"

// Kinds of errors, for errors.Is. The errors say in words what was wrong with which image or system; the kinds tell programs
// apart what can be done about it.
var (
	// ErrNotBootable: the image lacks files that a system needs to boot; the error names all.
	ErrNotBootable = errors.New("image cannot be booted")
	// ErrImageKargs: the kernel arguments that an image brings cannot be used, or not be read.
	ErrImageKargs = errors.New("kernel arguments of the image cannot be used")
	// ErrNotBooted: the running system is meant, and was not booted from a deployment.
	ErrNotBooted = errors.New("system was not booted from a deployment")
	// ErrNoStateroot: the sysroot does not have the stateroot, or has none at all.
	ErrNoStateroot = errors.New("no such stateroot")
	// ErrManyStateroots: the sysroot has several stateroots, and nothing says which is meant.
	ErrManyStateroots = errors.New("several stateroots")
	// ErrStaterootName: a stateroot cannot have the name.
	ErrStaterootName = errors.New("not the name of a stateroot")
	// ErrNoDeployment: the stateroot that was asked for has no deployment.
	ErrNoDeployment = errors.New("no deployment")
	// ErrNothingDeployed: no deployment exists that another one could be made from.
	ErrNothingDeployed = errors.New("nothing is deployed")
	// ErrNotFromImage: a deployment was made from something else than an image.
	ErrNotFromImage = errors.New("not deployed from an image")
	// ErrSigned: an origin demands a signature, and signatures are not verified here.
	ErrSigned = errors.New("origin demands a signature")
	// ErrTransport: an origin names an image that is in no registry.
	ErrTransport = errors.New("origin is not in a registry")
	// ErrNotRoot: changing a system takes root.
	ErrNotRoot = errors.New("not root")
	// ErrBootloader: the system's boot loader cannot be opened, so that nothing can be changed.
	ErrBootloader = errors.New("boot loader cannot be opened")
	// ErrNoBootCounting: boots are to be counted, and the system has no boot loader of its own that counts them.
	ErrNoBootCounting = errors.New("boots cannot be counted")
	// ErrCannotStage: only the running system can stage a deployment.
	ErrCannotStage = errors.New("deployment cannot be staged")
	// ErrNotArmed: a deployment is staged, but nothing will finalize it when the system shuts down.
	ErrNotArmed = errors.New("nothing finalizes the staged deployment")
	// ErrNotFinalized: the staged deployment was not finalized when the system last shut down.
	ErrNotFinalized = errors.New("staged deployment was not finalized")
)

// A kindError is an error with its own text that is of a kind.
type kindError struct {
	kind error
	error
}

func (e *kindError) Is(target error) bool { return target == e.kind }
func (e *kindError) Unwrap() error        { return e.error }

// as makes err one of a kind. Its text stays.
func as(kind, err error) error { return &kindError{kind, err} }

// An InstallError is an error about the disk that [PlanInstall] or [Installation.Execute] was to install on. Its text is that
// of what it wraps.
type InstallError struct{ Err error }

func (e *InstallError) Error() string { return e.Err.Error() }
func (e *InstallError) Unwrap() error { return e.Err }

// A KargsError says why edits do not apply to the kernel arguments of a deployment. Its text is that of what it wraps.
type KargsError struct {
	Kargs []string // that the deployment has
	Err   error
}

func (e *KargsError) Error() string { return e.Err.Error() }
func (e *KargsError) Unwrap() error { return e.Err }
