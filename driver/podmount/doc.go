// Package podmount puts live mounts in the place of dead ones in the mount namespaces
// of other processes: those of the pods that run while what they have mounted died.
//
// A pod has copies of what is mounted at kubelet's paths, made when its containers
// started. What is mounted there anew does not reach them. So a helper, a process
// of its own, finds the copies in /proc, and another enters each namespace and exchanges
// the mounts there.
//
// # What is touched
//
// A mount whose superblock is that of the dead one, by its device number, and whose root
// is the dead one's or below it (a subPath). The caller keeps the dead mount open
// meanwhile, so that the number is no other superblock's: neither a name nor a path
// tells, which a pod may choose. It must be what the path of it leads to, without
// symbolic links, and on top. Nothing else in a namespace is changed, and no directory
// is looked up but from the namespace's own root.
//
// Left alone are mounts that are id-mapped, and namespaces of other user namespaces. What
// is open or mapped of a dead mount stays dead.
//
// The new mount has the old one's flags, and is read-only and without devices at least. It
// is put beneath the dead one, which is then detached (Linux 6.5), so that the path is
// never without a mount; before, it is put on top and the dead one stays below it.
//
// # Limits
//
// Needs CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE, and a /proc that shows the
// processes. Namespaces that no process is in are not found.
package podmount
