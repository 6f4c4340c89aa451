// Package doctor tries on a machine what a node plugin needs of it, and says what to
// do about what is missing.
//
// What can be tried is tried: images are mounted, files are written and read back. All
// mounts are in mount namespaces of their own and gone when Run returns, also when the
// process is killed. FUSE file systems are served by other processes, so that one that
// hangs can be ended.
//
// Limits. Each check takes at most about half a minute. The checks that mount need
// CAP_SYS_ADMIN. It never logs.
package doctor
