// Package claims reads from the Kubernetes API what a CreateVolume call does not carry:
// the annotations of the claim that a volume is for, and the volume that the claim is a
// clone of.
//
// Limits. It reads single objects, PersistentVolumeClaims and PersistentVolumes, and
// needs the right to get those. Nothing is watched, kept or written. A source in another
// namespace is not followed. It never logs.
package claims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Every error of a Reader wraps one of these, or is that of a context that ended.
var (
	// ErrNotFound: there is no such claim or volume, or the claim has no volume.
	ErrNotFound = errors.New("not found in Kubernetes")
	// ErrForbidden: the API refuses to tell.
	ErrForbidden = errors.New("the Kubernetes API refused")
	// ErrUnavailable: the API did not answer, or not with an object.
	ErrUnavailable = errors.New("the Kubernetes API is not available")
)

// requestTimeout bounds each request; a call makes three at most.
const requestTimeout = 10 * time.Second

// Reader reads claims. All methods may be called concurrently.
type Reader struct {
	client rest.Interface
}

// Claim is what a volume can depend on of its claim.
type Claim struct {
	// Annotations whose keys begin with the prefix that was asked for, without it.
	Annotations map[string]string
	// Source is the claim of the same namespace that this one is to be a clone of, or "".
	Source string
}

// Volume is what a claim is bound to.
type Volume struct {
	Driver     string // "" if it is none of CSI
	Handle     string
	Attributes map[string]string
	Capacity   int64 // bytes
}

// New returns a Reader for the cluster of a kubeconfig file, or, with "", for the one
// that this process runs in; nil outside of any.
func New(kubeconfig string) (*Reader, error) {
	var config *rest.Config
	var err error
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	} else if config, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes configuration: %w", err)
	}
	return newReader(config)
}

func newReader(config *rest.Config) (*Reader, error) {
	scheme := runtime.NewScheme()
	version := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, version) // what errors are told in
	config = rest.CopyConfig(config)
	config.APIPath = "/api"
	config.GroupVersion = &version
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = "erofs-csi-controller"
	config.Timeout = requestTimeout
	// A hundred claims at once are one namespace's deployment.
	config.QPS, config.Burst = 50, 100
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return &Reader{client}, nil
}

// The objects of the API (k8s.io/api/core/v1) by what is used of them: the types of all
// of it would be a sixth of the program.
type (
	claimObject struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			DataSource *struct{ Kind, Name string } `json:"dataSource"`
			VolumeName string                       `json:"volumeName"`
		} `json:"spec"`
	}
	volumeObject struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			Capacity struct {
				Storage resource.Quantity `json:"storage"`
			} `json:"capacity"`
			ClaimRef struct {
				UID string `json:"uid"`
			} `json:"claimRef"`
			CSI struct {
				Driver           string            `json:"driver"`
				VolumeHandle     string            `json:"volumeHandle"`
				VolumeAttributes map[string]string `json:"volumeAttributes"`
			} `json:"csi"`
		} `json:"spec"`
	}
	metadata struct {
		Name, Namespace, UID string
		Annotations          map[string]string
	}
)

// Claim reads a claim, and of its annotations those that begin with prefix.
func (r *Reader) Claim(ctx context.Context, namespace, name, prefix string) (Claim, error) {
	pvc, err := r.claim(ctx, namespace, name)
	if err != nil {
		return Claim{}, err
	}
	c := Claim{Annotations: make(map[string]string)}
	for key, value := range pvc.Metadata.Annotations {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			c.Annotations[name] = value
		}
	}
	// The API sets both fields, but for a source in another namespace.
	if source := pvc.Spec.DataSource; source != nil && source.Kind == "PersistentVolumeClaim" {
		c.Source = source.Name
	}
	return c, nil
}

// Volume reads the volume that a claim is bound to.
func (r *Reader) Volume(ctx context.Context, namespace, claim string) (Volume, error) {
	pvc, err := r.claim(ctx, namespace, claim)
	if err != nil {
		return Volume{}, err
	}
	name := pvc.Spec.VolumeName
	if name == "" {
		return Volume{}, fmt.Errorf("%w: claim %s/%s has no volume yet", ErrNotFound, namespace, claim)
	}
	var pv volumeObject
	what := "PersistentVolume " + name
	if err := get(ctx, r.client.Get().Resource("persistentvolumes").Name(name), what, &pv); err != nil {
		return Volume{}, err
	}
	if pvc.Metadata.UID == "" || pv.Spec.ClaimRef.UID != pvc.Metadata.UID {
		return Volume{}, fmt.Errorf("%w: %s is not bound to claim %s/%s", ErrNotFound, what, namespace, claim)
	}
	csi := pv.Spec.CSI
	return Volume{
		Driver: csi.Driver, Handle: csi.VolumeHandle, Attributes: csi.VolumeAttributes,
		Capacity: pv.Spec.Capacity.Storage.Value(),
	}, nil
}

func (r *Reader) claim(ctx context.Context, namespace, name string) (claimObject, error) {
	var pvc claimObject
	what := "claim " + namespace + "/" + name
	err := get(ctx, r.client.Get().Namespace(namespace).Resource("persistentvolumeclaims").Name(name), what, &pvc)
	if err == nil && (pvc.Metadata.Namespace != namespace || pvc.Metadata.Name != name) {
		err = fmt.Errorf("%w: %s: it sent something else", ErrUnavailable, what)
	}
	return pvc, err
}

// get makes a request for what and decodes the answer.
func get(ctx context.Context, request *rest.Request, what string, object any) error {
	text, err := request.DoRaw(ctx)
	if err != nil {
		return failed(ctx, what, err)
	}
	if err := json.Unmarshal(text, object); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, what, err)
	}
	return nil
}

// failed is the error of a request for what.
func failed(ctx context.Context, what string, err error) error {
	class := ErrUnavailable
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case apierrors.IsNotFound(err):
		class = ErrNotFound
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		class = ErrForbidden
	}
	return fmt.Errorf("%w: %s: %w", class, what, err)
}
