package credplugin

import (
	"encoding/json"
	"time"
)

// The documents of kubelet.config.k8s.io/v1 and credentialprovider.kubelet.k8s.io/v1,
// as far as they are used. k8s.io/kubelet has types for them, which would bring
// Kubernetes' machinery of API objects into a program that has no other use for
// it; the tests compare.

// typeMeta begins each document.
type typeMeta struct {
	Kind       string `json:"kind,omitempty"`
	APIVersion string `json:"apiVersion,omitempty"`
}

// configuration is a CredentialProviderConfig.
type configuration struct {
	typeMeta
	Providers []providerConfig `json:"providers"`
}

// providerConfig is a CredentialProvider.
type providerConfig struct {
	Name                 string           `json:"name"`
	MatchImages          []string         `json:"matchImages"`
	DefaultCacheDuration *duration        `json:"defaultCacheDuration"`
	APIVersion           string           `json:"apiVersion"`
	Args                 []string         `json:"args"`
	Env                  []variable       `json:"env"`
	TokenAttributes      *tokenAttributes `json:"tokenAttributes"`
}

// variable is an ExecEnvVar.
type variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// tokenAttributes is a ServiceAccountTokenAttributes. What is kept of a run with a token
// is used for that token only, whatever cacheType says.
type tokenAttributes struct {
	Audience              string   `json:"serviceAccountTokenAudience"`
	CacheType             string   `json:"cacheType"`
	RequireServiceAccount *bool    `json:"requireServiceAccount"`
	RequiredAnnotations   []string `json:"requiredServiceAccountAnnotationKeys"`
	OptionalAnnotations   []string `json:"optionalServiceAccountAnnotationKeys"`
}

// request is a CredentialProviderRequest, without annotations of service accounts.
type request struct {
	typeMeta
	Image string `json:"image"`
	Token string `json:"serviceAccountToken,omitempty"` // #nosec G117 -- for the plugin
}

// response is a CredentialProviderResponse.
type response struct {
	typeMeta
	CacheKeyType  string          `json:"cacheKeyType"`
	CacheDuration *duration       `json:"cacheDuration"`
	Auth          map[string]Auth `json:"auth"`
}

// Auth is an AuthConfig.
type Auth struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Values of response.CacheKeyType.
const (
	byImage    = "Image"
	byRegistry = "Registry"
	byNothing  = "Global"
)

// duration is a metav1.Duration: text as "12h30m".
type duration time.Duration

func (d *duration) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	*d = duration(v)
	return err
}
