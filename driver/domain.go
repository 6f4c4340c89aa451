package driver

import (
	"cmp"
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

// inlinePolicy says what the inline volumes of a namespace may have beside what
// those of any may.
type inlinePolicy struct {
	// domains they may name beside their own: namespace → domain_id → allowed
	domains map[string]map[string]bool
	// trusted namespaces may have attributes.needTrust
	trusted map[string]bool
}

// parseInlinePolicy parses "NAMESPACE=DOMAIN" pairs and names of trusted namespaces.
func parseInlinePolicy(pairs, trusted []string) (inlinePolicy, error) {
	policy := inlinePolicy{domains: make(map[string]map[string]bool), trusted: make(map[string]bool)}
	for _, namespace := range trusted {
		if namespace == "" || strings.ContainsAny(namespace, "/= ") {
			return inlinePolicy{}, fmt.Errorf("trusted inline namespace %q: want the name of a namespace", namespace)
		}
		policy.trusted[namespace] = true
	}
	for _, pair := range pairs {
		namespace, domain, ok := strings.Cut(pair, "=")
		if !ok || namespace == "" || domain == "" || strings.ContainsAny(namespace, "/ ") {
			return inlinePolicy{}, fmt.Errorf("allowed inline domain %q: want NAMESPACE=DOMAIN", pair)
		}
		if err := checkDomain(domain); err != nil {
			return inlinePolicy{}, fmt.Errorf("allowed inline domain %q: %w", pair, err)
		}
		if policy.domains[namespace] == nil {
			policy.domains[namespace] = make(map[string]bool)
		}
		policy.domains[namespace][domain] = true
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
	case p.domains[namespace][id]:
		return administratorDomain(id), nil
	}
	return inlineDomainPrefix + namespace, nil
}

// check refuses attributes that an inline volume of a pod of namespace may not have.
// domain is what policy.domain returned.
func (p inlinePolicy) check(a *attributes, domain, namespace string) error {
	if a.CacheLimit != 0 && domain != "" && domain != inlineDomainPrefix+namespace {
		return refuse(errInvalid, "volume attribute cacheLimit: domain %q is not the namespace's own, so its limit is not for an inline volume to set", domain)
	}
	if what := a.needTrust(); what != "" && !p.trusted[namespace] {
		return refuse(errInvalid, "volume attribute %s: not for inline volumes, which any author of a pod writes; use a PersistentVolume, or have the node plugin run with --trust-inline-namespace %s",
			what, cmp.Or(namespace, "NAMESPACE"))
	}
	return nil
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
