// Package nodecache keeps a node's images: blobs pulled from OCI registries,
// their mirrors and web servers, in a directory that survives crashes, and images
// at paths of the node, used in place.
//
// A blob comes in chunks of 256 KiB, by several requests at once where the registry
// sends parts of blobs, and a pull that was cut off goes on where it was. An image
// can be read before its blob is complete: see [AcquireOptions].
//
// Limits. It stores bytes and leaves the image format to package build, by which it
// makes one image of the layers of a container image. One process owns a store
// directory. A pull that does not fit, on the disk or within the limit of the store, evicts images that nobody uses, and if
// that is not enough fails with [ErrNoSpace] before it writes. What little is
// written besides (records, sidecars, pins) may be above the limit until the next
// look. Digests are SHA-256. Manifests and indexes are at most 4 MiB,
// dockerconfigjson documents at most 1 MiB, references at most 4096 bytes, and
// files of web servers that do not say their length at most 16 GiB. Images have at
// most 512 layers. It never logs, and no error holds a secret.
//
// The directory:
//
//	lock                         flock(2)ed by the owner; holds its pid
//	blobs/sha256/<hex>           a complete blob whose bytes have this digest; its
//	                             mtime says when it was last used
//	blobs/sha256/<hex>.<name>    a sidecar of that blob
//	partial/<hex>                what there is of a blob, a sparse file of its length
//	partial/<hex>.chunks         which of its chunks are there, with their sums
//	prefetch/<hex>               which chunks of a blob were read first the last time
//	refs/<hex>                   JSON: what a reference resolved to; <hex> is
//	                             the SHA-256 of the reference's canonical form.
//	                             And what the layers of a manifest were made into
//	paths/<ID>.<name>            a sidecar of an image used in place
//	pins/<hex>                   JSON: a reference or digest whose image stays;
//	                             <hex> is its SHA-256
//	tmp/                         partial files; emptied by Open
//
// What is below partial is found again after a crash as far as it can be proved to be
// there; it is removed with whatever cannot.
//
// Other names are left alone. A name below blobs, refs, paths or pins appears only
// by rename(2) of a complete and synced file, and the directory is synced before
// anybody is told. A reference is written after its blob or, for a lazy image, after
// a part of it, so at each step between the two the worst that a crash leaves is a
// blob without a reference, which the next pull of it finds. What is evicted loses
// its blob first; Open removes the rest.
//
// What may be evicted: a blob, or a part of one, that no [Image] holds but those that rest
// ([Image.Rest]) and that nobody pinned, with its sidecars and references; and the
// sidecars of an image used in place that nobody uses. The one unused for the
// longest goes first.
//
// On a file system that is full or became read-only a store can be opened and what
// it has be used; all that would write fails.
package nodecache
