// Preloaded into ostree(1), this makes a host without SELinux look like one with it: libselinux finds SELinux enabled, and
// new files get the label that setfscreatecon(3) asks for, or that of their directory, as the kernel does without a rule. It
// also has no semodule(8) run in the deployment.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define LABEL "security.selinux"

static _Thread_local char *wanted;

int is_selinux_enabled(void) { return 1; }

int setfscreatecon_raw(const char *context) {
	free(wanted);
	wanted = context ? strdup(context) : NULL;
	return 0;
}

int setfscreatecon(const char *context) { return setfscreatecon_raw(context); }

// g_spawn_sync is that of GLib. The program prints nothing, and succeeds.
int g_spawn_sync(const char *dir, char **argv, char **env, int flags, void *setup, void *data, char **out, char **err, int *status,
		void *error) {
	if (out)
		*out = strdup("");
	if (err)
		*err = strdup("");
	if (status)
		*status = 0;
	return 1;
}

// where writes the path of name in the directory dirfd.
static void where(int dirfd, const char *name, char path[PATH_MAX]) {
	if (dirfd == AT_FDCWD || name[0] == '/')
		snprintf(path, PATH_MAX, "%s", name);
	else
		snprintf(path, PATH_MAX, "/proc/self/fd/%d/%s", dirfd, name);
}

// inherited writes the label for a new file in a directory, and returns its length, or -1 for none.
static ssize_t inherited(const char *dir, char label[256]) {
	if (wanted) {
		snprintf(label, 256, "%s", wanted);
		return strlen(label) + 1;
	}
	return getxattr(dir, LABEL, label, 256);
}

// fresh labels a new file that has a name.
static void fresh(int dirfd, const char *name) {
	char path[PATH_MAX], copy[PATH_MAX], label[256];
	int saved = errno;
	where(dirfd, name, path);
	strcpy(copy, path);
	ssize_t n = inherited(dirname(copy), label);
	if (n > 0)
		lsetxattr(path, LABEL, label, n, 0);
	errno = saved;
}

int mkdirat(int dirfd, const char *name, mode_t mode) {
	int (*real)(int, const char *, mode_t) = dlsym(RTLD_NEXT, "mkdirat");
	int r = real(dirfd, name, mode);
	if (r == 0)
		fresh(dirfd, name);
	return r;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int symlinkat(const char *target, int dirfd, const char *name) {
	int (*real)(const char *, int, const char *) = dlsym(RTLD_NEXT, "symlinkat");
	int r = real(target, dirfd, name);
	if (r == 0)
		fresh(dirfd, name);
	return r;
}

static int opening(const char *symbol, int dirfd, const char *name, int flags, mode_t mode) {
	int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, symbol);
	int tmp = (flags & O_TMPFILE) == O_TMPFILE;
	int existed = tmp || !(flags & O_CREAT) || faccessat(dirfd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
	int fd = real(dirfd, name, flags, mode);
	if (fd >= 0 && tmp) {
		char path[PATH_MAX], label[256];
		where(dirfd, name, path);
		ssize_t n = inherited(path, label);
		if (n > 0)
			fsetxattr(fd, LABEL, label, n, 0);
	} else if (fd >= 0 && !existed)
		fresh(dirfd, name);
	return fd;
}

#define OPENING(name) \
	int name(int dirfd, const char *path, int flags, ...) { \
		va_list args; \
		va_start(args, flags); \
		mode_t mode = va_arg(args, mode_t); \
		va_end(args); \
		return opening(#name, dirfd, path, flags, mode); \
	}
OPENING(openat)
OPENING(openat64)

#define OPENING_HERE(name, at) \
	int name(const char *path, int flags, ...) { \
		va_list args; \
		va_start(args, flags); \
		mode_t mode = va_arg(args, mode_t); \
		va_end(args); \
		return opening(at, AT_FDCWD, path, flags, mode); \
	}
OPENING_HERE(open, "openat")
OPENING_HERE(open64, "openat64")
