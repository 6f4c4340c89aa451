// Package e2e tests the driver on a real cluster, with pods, claims and a registry; see
// README.md. It is a module of its own, so that what it needs of Kubernetes is not the
// product's.
package e2e
