package driver

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// Keys of StorageClass parameters, PersistentVolume volumeAttributes and inline
// volumeAttributes.
const (
	keyImage        = "image"
	keyDomain       = "domain_id"
	keyPullPolicy   = "pullPolicy"
	keyFingerprints = "fingerprints"
	keyEngine       = "engine"
	keyLazy         = "lazy"
	keyCacheLimit   = "cacheLimit"
	keyUserNS       = "userNamespaces"
)

// Keys that Kubernetes adds by itself.
const (
	// kubernetesKeys is the prefix of the pod's information (kubelet, with
	// CSIDriver.spec.podInfoOnMount) and of the claim's and the secrets'
	// (external-provisioner).
	kubernetesKeys = "csi.storage.k8s.io/"
	keyEphemeral   = kubernetesKeys + "ephemeral"
	keyPodName     = kubernetesKeys + "pod.name"
	keyNamespace   = kubernetesKeys + "pod.namespace"
	// keyTokens holds service account tokens (CSIDriver.spec.tokenRequests),
	// the one secret outside of a field marked csi_secret.
	keyTokens = kubernetesKeys + "serviceAccount.tokens"
	// keyProvisioner is stamped on provisioned volumes by external-provisioner.
	keyProvisioner = "storage.kubernetes.io/csiProvisionerIdentity"
)

const (
	// maxImageLen is nodecache's limit of a reference.
	maxImageLen = 4096
	// maxDomainLen fits a namespace (63 bytes) and what administrators use.
	maxDomainLen = 128
)

// attributes are what a volume asks for, checked and with the defaults filled
// in, so that == says whether two requests ask for the same.
type attributes struct {
	Image        string               `json:"image"`
	Domain       string               `json:"domain_id,omitempty"`
	PullPolicy   nodecache.PullPolicy `json:"pullPolicy"`
	Fingerprints string               `json:"fingerprints"`
	Engine       string               `json:"engine"`
	Lazy         string               `json:"lazy"`
	CacheLimit   int64                `json:"cacheLimit,omitempty"` // bytes; 0: none

	UserNamespaces bool `json:"userNamespaces,omitempty"` // pods that have it may be in user namespaces
}

// podInfo is what kubelet tells of the pod.
type podInfo struct {
	Ephemeral bool
	Name      string
	Namespace string
}

// parseAttributes checks a volume context or the parameters of a StorageClass.
// Unknown keys are an error that names them all: a misspelt domain_id would
// otherwise silently share nothing.
func parseAttributes(m map[string]string) (attributes, error) {
	if err := checkKeys(m); err != nil {
		return attributes{}, err
	}
	a := attributes{Image: m[keyImage], Domain: m[keyDomain]}
	if err := checkImage(a.Image); err != nil {
		return attributes{}, err
	}
	if err := checkDomain(a.Domain); err != nil {
		return attributes{}, err
	}
	policy, err := nodecache.ParsePullPolicy(m[keyPullPolicy])
	if err != nil {
		return attributes{}, refuse(errInvalid, "volume attribute pullPolicy: %q is not one of IfNotPresent, Always, Never", m[keyPullPolicy])
	}
	a.PullPolicy = policy
	for _, c := range choices {
		value, err := c.pick(m[c.key])
		if err != nil {
			return attributes{}, err
		}
		*c.field(&a) = value
	}
	if a.CacheLimit, err = engine.ParseCacheLimit(m[keyCacheLimit]); err != nil {
		return attributes{}, refuse(errInvalid, "volume attribute cacheLimit: %v", err)
	}
	if a.CacheLimit != 0 && a.Engine == engineKernel {
		return attributes{}, refuse(errInvalid, "volume attribute cacheLimit: the kernel's page cache has no such limit; leave it out with engine: kernel")
	}
	switch v := m[keyUserNS]; v {
	case "", "false":
	case "true":
		a.UserNamespaces = true
	default:
		return attributes{}, refuse(errInvalid, "volume attribute userNamespaces: %q is neither true nor false", v)
	}
	return a, nil
}

func checkKeys(m map[string]string) error {
	var unknown []string
	for key := range m {
		if !slices.Contains(attributeKeys, key) && !kubernetesKey(key) {
			unknown = append(unknown, fmt.Sprintf("%q", key))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	return refuse(errInvalid, "unknown volume attribute %s: the known ones are %s",
		strings.Join(unknown, ", "), strings.Join(attributeKeys, ", "))
}

// needTrust returns the attributes, as "key: value", by which the image's author has
// a hand in what is not the volume's own: in the kernel's parser, or in what other
// volumes with the same attributes show.
func (a *attributes) needTrust() string {
	var list []string
	if a.Engine == engineKernel {
		list = append(list, keyEngine+": "+engineKernel)
	}
	if a.Fingerprints == fingerprintsTrusted {
		list = append(list, keyFingerprints+": "+fingerprintsTrusted)
	}
	return strings.Join(list, " and ")
}

var attributeKeys = []string{keyImage, keyDomain, keyPullPolicy, keyFingerprints, keyEngine, keyLazy, keyCacheLimit, keyUserNS}

// hasAttributes reports whether a volume context has any key that is not
// Kubernetes' own.
func hasAttributes(m map[string]string) bool {
	for key := range m {
		if !kubernetesKey(key) {
			return true
		}
	}
	return false
}

// kubernetesKey reports whether key is Kubernetes' own. A pod author can write
// such keys as well; kubelet's values replace those it sets.
func kubernetesKey(key string) bool {
	return strings.HasPrefix(key, kubernetesKeys) || key == keyProvisioner
}

// Values that need the administrator's word: attributes.needTrust.
const (
	fingerprintsTrusted = "trusted"
	engineKernel        = "kernel"
)

// lazyNever has images be complete before they are mounted.
const lazyNever = "never"

// mayBeLazy tells whether the image may be mounted before it is complete. The kernel
// reads an image's file by itself, so that it must be.
func (a *attributes) mayBeLazy() bool { return a.Lazy != lazyNever && a.Engine != engineKernel }

// choice is an attribute with a fixed set of values, the first the default.
type choice struct {
	key    string
	values []string
	field  func(*attributes) *string
}

var choices = []choice{
	{
		key: keyFingerprints, values: []string{"verified", fingerprintsTrusted},
		field: func(a *attributes) *string { return &a.Fingerprints },
	},
	{
		key: keyEngine, values: []string{"auto", "fuse", engineKernel},
		field: func(a *attributes) *string { return &a.Engine },
	},
	{
		key: keyLazy, values: []string{"auto", lazyNever},
		field: func(a *attributes) *string { return &a.Lazy },
	},
}

func (c choice) pick(value string) (string, error) {
	switch {
	case value == "":
		return c.values[0], nil
	case slices.Contains(c.values, value):
		return value, nil
	}
	return "", refuse(errInvalid, "volume attribute %s: %q is not one of %s",
		c.key, value, strings.Join(c.values, ", "))
}

func checkImage(ref string) error {
	switch {
	case ref == "":
		return refuse(errInvalid, "volume attribute image is missing: it names the image to mount, as in registry.example/app:1")
	case len(ref) > maxImageLen:
		return refuse(errInvalid, "volume attribute image: %d bytes, at most %d are allowed", len(ref), maxImageLen)
	case !utf8.ValidString(ref) || strings.ContainsFunc(ref, func(r rune) bool { return !unicode.IsPrint(r) }):
		return refuse(errInvalid, "volume attribute image: %q has characters that cannot be printed", ref)
	}
	return nil
}

// parsePodInfo reads what kubelet added to a volume context.
func parsePodInfo(m map[string]string) (podInfo, error) {
	p := podInfo{Name: m[keyPodName], Namespace: m[keyNamespace]}
	switch v := m[keyEphemeral]; v {
	case "", "false":
	case "true":
		p.Ephemeral = true
	default:
		return podInfo{}, refuse(errInvalid, "volume attribute %s: %q is neither true nor false", keyEphemeral, v)
	}
	return p, nil
}
