package nodecache

import "fmt"

// PullPolicy says when the registry is asked. It does not matter for paths.
type PullPolicy string

// The zero value means [IfNotPresent].
const (
	// IfNotPresent asks the registry only for what the node does not have.
	IfNotPresent PullPolicy = "IfNotPresent"
	// Always resolves the reference at the registry, and downloads the blob
	// if the node does not have it.
	Always PullPolicy = "Always"
	// Never asks no registry; what the node does not have is [ErrNotFound].
	Never PullPolicy = "Never"
)

// ParsePullPolicy returns the policy named s; "" is [IfNotPresent].
func ParsePullPolicy(s string) (PullPolicy, error) {
	switch p := PullPolicy(s); p {
	case "":
		return IfNotPresent, nil
	case IfNotPresent, Always, Never:
		return p, nil
	}
	return "", fmt.Errorf("pull policy %q: want IfNotPresent, Always or Never", s)
}
