package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// secretKey is the key of a Secret of type kubernetes.io/dockerconfigjson.
const secretKey = ".dockerconfigjson" // #nosec G101 -- the name of a key

// dockerConfig returns the pull secret of a request, nil without one.
func dockerConfig(secrets map[string]string) ([]byte, error) {
	if len(secrets) == 0 {
		return nil, nil
	}
	config, ok := secrets[secretKey]
	if !ok {
		keys := slices.Sorted(maps.Keys(secrets))
		return nil, refuse(errInvalid, "the pull secret has no key %s but %s: make it with kubectl create secret docker-registry",
			secretKey, strings.Join(keys, ", "))
	}
	return []byte(config), nil
}

// serviceAccountTokens returns the tokens of the pod's service account that kubelet adds
// to a volume context, by audience; nil without. No error holds one.
func serviceAccountTokens(m map[string]string) (map[string]string, error) {
	text, ok := m[keyTokens]
	if !ok || text == "" {
		return nil, nil
	}
	var all map[string]struct {
		Token string `json:"token"`
	}
	if json.Unmarshal([]byte(text), &all) != nil {
		return nil, refuse(errInvalid, "volume attribute %s: want tokens in JSON, as kubelet writes them", keyTokens)
	}
	tokens := make(map[string]string, len(all))
	for audience, t := range all {
		tokens[audience] = t.Token
	}
	return tokens, nil
}

// hintSecret tells a user whom the registry refused for want of a secret in
// which field to name one.
func hintSecret(err error, req mountRequest) error {
	if !errors.Is(err, nodecache.ErrUnauthorized) || req.DockerConfig != nil {
		return err
	}
	field := "the nodeStageSecretRef of the PersistentVolume"
	if req.Ephemeral {
		field = "the nodePublishSecretRef of the inline volume"
	}
	return fmt.Errorf("%w (in %s)", err, field)
}
