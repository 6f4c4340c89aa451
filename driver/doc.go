// Package driver is the CSI driver erofs.csi.dev: it mounts EROFS images
// read-only into pods and lets those of one domain share their page cache.
//
// Limits. Volumes are read-only file systems; block volumes, writers,
// snapshots, clones and expansion are refused. The node service needs no
// Kubernetes API. Images are pulled whole before they are mounted. A volume
// outlives a restart of the node plugin as a dead mount, which the next start
// rebuilds at the same paths; between the two it serves nothing. Credentials
// come with each request and are never stored or logged.
//
// The services:
//
//   - Identity, in both processes;
//   - Node, on each node ([RunNode]);
//   - Controller, anywhere ([RunController]): it keeps nothing, for a volume
//     is no more than an image's name.
//
// A handler checks its request, calls the volume manager, and leaves the error
// to one interceptor, which alone knows gRPC codes (errors.go).
//
// It follows the CSI specification v1.13.
package driver
