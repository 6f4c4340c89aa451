package driver

import (
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
