// Package commitsig verifies the signatures of ostree commits that are in their detached metadata, by the keys and the
// settings of an ostree remote, as "ostree pull" does:
//
//	remote (repository's config, /etc/ostree/remotes.d) ─ Load ─→ Remote ─ Verify(commit, detached metadata) ─→ Verdict
//
// There are OpenPGP signatures (key ostree.gpgsigs) and ed25519 signatures (ostree.sign.ed25519) over the bytes of the
// commit object. A remote demands one kind, or both.
//
// Configuration and keys are the host's and trusted. Detached metadata is hostile: its size and the number of its
// signatures are bounded.
package commitsig
