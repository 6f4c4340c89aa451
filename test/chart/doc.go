// Package chart tests the Helm chart: with helm's own renderer and linter, the schemas
// of the Kubernetes API, and the files that are generated from the chart. `go test
// -update` (make generate) writes those anew.
//
// It is a module of its own, so that helm is no dependency of the driver.
package chart
