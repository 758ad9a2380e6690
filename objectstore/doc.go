// Package objectstore reads and writes ostree repositories of mode bare, without libostree and without any notion of
// containers.
//
// A repository holds objects, each named by a SHA-256 checksum, and refs, which name commits:
//
//	config                     GKeyFile: [core] repo_version=1, mode=bare, …
//	objects/xx/y….file         content object: a file or symbolic link with its owner, mode and xattrs
//	objects/xx/y….dirtree      names in a directory: GVariant (a(say)a(sayay))
//	objects/xx/y….dirmeta      owner, mode and xattrs of a directory: GVariant (uuua(ayay))
//	objects/xx/y….commit       a tree and its description: GVariant (a{sv}aya(say)sstayay)
//	refs/heads/…               64 digits and a newline; also refs/remotes/REMOTE/…, refs/mirrors/COLLECTION/…
//	state/CHECKSUM.commitpartial   marks an incomplete commit
//	tmp/                       files that have no final name yet
//	.lock                      see below
//
// The formats are those of libostree 2022.7 and later (ostree-core.h, ostree-repo-private.h). Each accepts the other's
// output.
//
// # Writing
//
// All writing happens in a transaction, [Txn], which holds the shared lock. Content in memory is hashed first, and
// nothing is written if the object exists. Otherwise it is written to an O_TMPFILE in tmp/, gets owner, mode, xattrs
// and mtime in this order, and then, complete, its name by linkat(2). An existing name is success. So an object is
// never visible half written, whenever the process ends, and two writers of the same object need not know of each
// other.
//
// No object is synced individually. The order of a commit with Sync is:
//
//  1. objects, any number, in any order, under their names
//  2. syncfs of the file system: objects are durable
//  3. each ref: write to a temporary file, fsync, rename
//  4. fsync of the directories of changed refs
//  5. the mtime of the repository's directory, which tells others that refs have changed
//
// Unlike in libostree, a file object keeps the mtime of the file it was made from; see docs/adr/0002-object-mtime.md.
//
// # Locks
//
// The lock is libostree's, an open file description lock on .lock: shared to add objects and refs, exclusive to remove
// objects. An existing object that a transaction decides to use is safe from prunes until the transaction ends; by then
// a ref must reach the object.
//
// # Trust
//
// Data read from a repository is not trusted. Parsers check everything and bound their memory by a small multiple of
// the bytes read. Names from objects are used one component at a time, relative to directory descriptors, and never
// follow symbolic links. Metadata objects are verified whenever they are read, content objects by [Repo.Fsck] and
// [Repo.Verify].
package objectstore
