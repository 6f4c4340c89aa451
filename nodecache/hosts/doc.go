// Package hosts reads the directories in which containerd is told where the
// images of a registry are to be had (its certs.d): mirrors, certificates and
// headers.
//
//	DIR/<host>/hosts.toml          of a registry host[:port]; for one with a port
//	                               also <host>_<port>_, which goes first
//	DIR/_default/hosts.toml        of all registries without a directory
//	DIR/<host>/*.crt, *.cert, *.key  without a hosts.toml: Docker's certificates
//
// Limits. A hosts.toml and each certificate file is at most 1 MiB, a file names
// at most 32 hosts. Files are read anew each time: a change needs no restart.
// Where containerd would go on without a file that it can't read, this package
// fails, naming the file: an image from somewhere else than was configured is
// worse than none. Keys it does not know are ignored, as there. No error quotes
// what is in a file but names of hosts and files.
//
// Source: docs/hosts.md of containerd 2.2, and its core/remotes/docker/config.
package hosts
