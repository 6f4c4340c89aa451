package driver

import (
	"fmt"
	"strings"
)

// The engine knows domains by one name. Two kinds of people name them:
//
//   - administrators, by the domain_id of a PersistentVolume or StorageClass:
//     their word is the domain's name;
//   - pod authors, by the domain_id of an inline volume: whatever they ask
//     for, they get namespace/<the pod's namespace>, unless the configuration
//     allows that namespace the domain.
//
// The two must never meet by accident: an administrator's "namespace/x" would
// let the pod authors of namespace x into a domain of persistent volumes. So
// an administrator's name that begins like one of ours is escaped by
// "domain/", and so is one that begins with the escape. The map is injective:
// its results never begin with "namespace/", and what begins with
// "domain/domain/" or "domain/namespace/" came from exactly one name.
const (
	inlineDomainPrefix = "namespace/"
	escapeDomainPrefix = "domain/"
)

// administratorDomain is the engine's name of the domain that an administrator
// calls id; "" shares with nobody.
func administratorDomain(id string) string {
	if strings.HasPrefix(id, inlineDomainPrefix) || strings.HasPrefix(id, escapeDomainPrefix) {
		return escapeDomainPrefix + id
	}
	return id
}

// inlinePolicy says which domains, beside their own, the inline volumes of a
// namespace may name: namespace → domain_id → allowed.
type inlinePolicy map[string]map[string]bool

// parseInlinePolicy parses "NAMESPACE=DOMAIN" pairs.
func parseInlinePolicy(pairs []string) (inlinePolicy, error) {
	policy := make(inlinePolicy)
	for _, pair := range pairs {
		namespace, domain, ok := strings.Cut(pair, "=")
		if !ok || namespace == "" || domain == "" || strings.ContainsAny(namespace, "/ ") {
			return nil, fmt.Errorf("allowed inline domain %q: want NAMESPACE=DOMAIN", pair)
		}
		if err := checkDomain(domain); err != nil {
			return nil, fmt.Errorf("allowed inline domain %q: %w", pair, err)
		}
		if policy[namespace] == nil {
			policy[namespace] = make(map[string]bool)
		}
		policy[namespace][domain] = true
	}
	return policy, nil
}

// domain returns the engine's name of the domain of an inline volume of a pod
// of namespace that asks for id. Without an id it shares with nobody.
func (p inlinePolicy) domain(id, namespace string) (string, error) {
	switch {
	case id == "":
		return "", nil
	case namespace == "":
		return "", refuse(errInvalid, "inline volume with domain_id %q: kubelet named no pod namespace; set podInfoOnMount: true in the CSIDriver object %s", id, Name)
	case p[namespace][id]:
		return administratorDomain(id), nil
	}
	return inlineDomainPrefix + namespace, nil
}

// checkDomain accepts 1 to 128 letters, digits and ._:/- of ASCII, and "".
func checkDomain(id string) error {
	if len(id) > maxDomainLen {
		return refuse(errInvalid, "volume attribute domain_id: %d bytes, at most %d are allowed", len(id), maxDomainLen)
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("._:/-", c) >= 0:
		default:
			return refuse(errInvalid, "volume attribute domain_id: %q has characters other than letters, digits and ._:/-", id)
		}
	}
	return nil
}
