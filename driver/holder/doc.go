// Package holder keeps file descriptors for processes that may die: a tiny process
// that serves, and the client that the processes have of it.
//
// The kernel keeps a FUSE connection while anybody holds its descriptor. An engine
// puts the descriptor of each of its mounts here, with what its successor has to know
// of it; when it is killed, the mounts go on, their readers wait, and a new engine
// claims the name of the old one and takes the descriptors back.
//
// What is kept is kept under a name, which one client has at a time, and a key. It is
// a few bytes, which mean nothing to the holder, and descriptors. It stays when its
// client goes; it ends when it is deleted or replaced, and with the holder.
//
// Limits: names and keys have 1 to 255 bytes, the bytes of an item 32 KiB, its
// descriptors are 64; all items together may take 8 MiB and RLIMIT_NOFILE less 256
// descriptors. Sockets are not kept: one that leads to the holder itself would keep
// its client's connection open for ever.
//
// Clients must be root, or of the holder's own user. They are trusted not to claim
// each other's names, and not with more: none can end the holder, block it for others,
// or have it keep more than the limits.
//
// docs/adr/0013-a-process-that-keeps-descriptors.md tells why, and what is on the
// wire.
package holder
