// Package objectstore reads and writes ostree repositories of mode bare, without libostree and without knowing what a
// container is.
//
// A repository holds objects, each named by a SHA-256 checksum, and refs that name commits:
//
//	config                     GKeyFile: [core] repo_version=1, mode=bare, …
//	objects/xx/y….file         content object: a file or symbolic link with its owner, mode and xattrs
//	objects/xx/y….dirtree      names in a directory: GVariant (a(say)a(sayay))
//	objects/xx/y….dirmeta      owner, mode and xattrs of a directory: GVariant (uuua(ayay))
//	objects/xx/y….commit       a tree and words about it: GVariant (a{sv}aya(say)sstayay)
//	refs/heads/…               64 digits and a newline; also refs/remotes/REMOTE/…, refs/mirrors/COLLECTION/…
//	state/CHECKSUM.commitpartial   the commit is not complete
//	tmp/                       files on their way to a name
//	.lock                      see below
//
// The formats are those of libostree 2022.7 and later (ostree-core.h, ostree-repo-private.h), which accepts what this
// package writes, and the other way round.
//
// # Writing
//
// Everything is written in a transaction, [Txn], that holds the shared lock. An object is hashed first where it is in
// memory; if it exists nothing is written. Else it is written to an O_TMPFILE in tmp/, gets owner, mode, xattrs and
// mtime in this order, and then, complete, its name by linkat(2). A name that is taken is success. So an object is
// never seen half written, whenever the process ends, and two writers of the same object need not know of each other.
//
// No object is synced by itself. The order of a commit with Sync is:
//
//  1. objects, any number, any order, under their names
//  2. syncfs of the file system: objects durable
//  3. each ref: written to a temporary file, fsync, rename
//  4. fsync of the directories of refs that changed
//  5. the mtime of the repository's directory, from which others learn that refs have changed
//
// Unlike libostree, a file object keeps the mtime of the file that it was made from; see docs/adr/0002-object-mtime.md.
//
// # Locks
//
// The lock is libostree's, an open file description lock on .lock: shared to add objects and refs, exclusive to remove
// objects. A transaction that decides to use an object that is there already is safe from prunes until it ends, by
// when a ref must reach the object.
//
// # Trust
//
// What is read from a repository is not trusted: parsers check everything and bound their memory by a small multiple
// of the bytes read, names from objects are used one component at a time relative to directory descriptors and never
// follow symbolic links. Metadata objects are verified whenever they are read, content objects by [Repo.Fsck] and
// [Repo.Verify].
package objectstore
