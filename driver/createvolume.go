package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/erofs-csi/erofs-csi/driver/claims"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

const (
	// annotationPrefix begins the annotations of claims that are this driver's.
	annotationPrefix = Name + "/"
	// annotationImage of a claim names the image where the StorageClass does not.
	annotationImage = annotationPrefix + keyImage

	// Parameters that external-provisioner adds with --extra-create-metadata.
	keyClaimName      = kubernetesKeys + "pvc/name"
	keyClaimNamespace = kubernetesKeys + "pvc/namespace"
)

// imageResolver is [nodecache.Resolver].
type imageResolver interface {
	Resolve(ctx context.Context, ref string, dockerConfig []byte) (nodecache.Resolved, error)
}

// claimReader is [claims.Reader].
type claimReader interface {
	Claim(ctx context.Context, namespace, name, prefix string) (claims.Claim, error)
	Volume(ctx context.Context, namespace, claim string) (claims.Volume, error)
}

// order is a CreateVolume request, checked, with the image that it is for.
type order struct {
	attributes      attributes
	required, limit int64
	source          string // id of the volume that this is a clone of, or ""
	sourceSize      int64  // its size in bytes
}

// digest identifies the order among those of one name: what the registry says is no
// part of it, so that it is the same after a tag has moved.
func (o order) digest() (string, error) {
	return digestOf([]any{o.attributes, o.source})
}

// order checks a CreateVolume request and finds the image, but asks no registry.
func (s *controllerService) order(ctx context.Context, req *csi.CreateVolumeRequest) (order, error) {
	name := req.GetName()
	switch {
	case name == "":
		return order{}, refuse(errInvalid, "volume name is missing")
	case len(name) > maxVolumeName:
		return order{}, refuse(errInvalid, "volume name has %d bytes, at most %d are allowed", len(name), maxVolumeName)
	case req.GetVolumeContentSource().GetSnapshot() != nil:
		return order{}, refuse(errInvalid, "snapshots are not supported: an image does not change; clone the claim or name the image")
	case req.GetVolumeContentSource() != nil && req.GetVolumeContentSource().GetVolume() == nil:
		return order{}, refuse(errInvalid, "volume content source is neither a volume nor a snapshot")
	case len(req.GetMutableParameters()) > 0:
		return order{}, refuse(errInvalid, "mutable parameters are not supported: a volume shows what its image holds")
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()); err != nil {
		return order{}, err
	}
	o := order{required: req.GetCapacityRange().GetRequiredBytes(), limit: req.GetCapacityRange().GetLimitBytes()}
	if o.required < 0 || o.limit < 0 || o.limit > 0 && o.limit < o.required {
		return order{}, refuse(errInvalid, "capacity range is not a range: required %d bytes, limit %d bytes", o.required, o.limit)
	}
	// What a class may not have is refused before anything is asked.
	if err := checkKeys(req.GetParameters()); err != nil {
		return order{}, err
	}
	parameters := maps.Clone(req.GetParameters())
	if parameters == nil {
		parameters = make(map[string]string)
	}
	var err error
	if source := req.GetVolumeContentSource().GetVolume(); source != nil {
		o.source = source.GetVolumeId()
		if err := checkVolumeID(o.source); err != nil {
			return order{}, err
		}
		parameters[keyImage], o.sourceSize, err = s.sourceImage(ctx, o.source, parameters)
	} else {
		parameters[keyImage], err = s.claimImage(ctx, parameters)
	}
	if err != nil {
		return order{}, err
	}
	o.attributes, err = parseAttributes(parameters)
	if err == nil {
		err = nodecache.ValidateReference(o.attributes.Image)
	}
	return o, err
}

// claimImage is the image of the class, or that of the claim's annotation.
func (s *controllerService) claimImage(ctx context.Context, parameters map[string]string) (string, error) {
	image := parameters[keyImage]
	claim, known, err := s.claim(ctx, parameters)
	if err != nil {
		return "", err
	}
	own := claim.Annotations[keyImage]
	switch {
	case image != "" && own != "" && image != own:
		return "", refuse(errInvalid, "the StorageClass has the image %s: remove the annotation %s from the claim, or take a class without an image", image, annotationImage)
	case image != "" || own != "":
		return cmp.Or(image, own), nil
	case known:
		return "", refuse(errInvalid, "no image: neither the StorageClass has the parameter image nor the claim the annotation %s", annotationImage)
	}
	return "", refuse(errInvalid, "no image: the StorageClass has no parameter image, and the claim's annotations cannot be read (the controller has no Kubernetes API, or external-provisioner runs without --extra-create-metadata)")
}

// sourceImage is the image and the size of the volume that is to be cloned. The claim
// must name none itself; what the class names is what other claims get.
func (s *controllerService) sourceImage(ctx context.Context, id string, parameters map[string]string) (string, int64, error) {
	claim, known, err := s.claim(ctx, parameters)
	if err != nil {
		return "", 0, err
	}
	if !known {
		if made, ok := s.find(id); ok {
			return made.volumeContext[keyImage], made.capacity, nil
		}
		return "", 0, refuse(errVolumeNotFound, "the volume %q, which is to be cloned, is not known here", id)
	}
	if claim.Annotations[keyImage] != "" {
		return "", 0, refuse(errInvalid, "a claim with a dataSource has the image of its source: remove the annotation %s", annotationImage)
	}
	if claim.Source == "" {
		return "", 0, refuse(errVolumeNotFound, "the claim has no dataSource of its own namespace that is a claim")
	}
	v, err := s.claims.Volume(ctx, parameters[keyClaimNamespace], claim.Source)
	if err != nil {
		return "", 0, fmt.Errorf("the source of the clone: %w", err)
	}
	if v.Driver != Name || v.Handle != id {
		return "", 0, refuse(errVolumeNotFound, "claim %s is not bound to the volume %q, which is to be cloned, but to %q of driver %q", claim.Source, id, v.Handle, v.Driver)
	}
	if v.Attributes[keyImage] == "" {
		return "", 0, refuse(errInvalid, "the volume %q, which is to be cloned, has no image", id)
	}
	return v.Attributes[keyImage], v.Capacity, nil
}

// claim reads the claim that a volume is for. known is false if it cannot be read at
// all: outside of Kubernetes.
func (s *controllerService) claim(ctx context.Context, parameters map[string]string) (c claims.Claim, known bool, err error) {
	name, namespace := parameters[keyClaimName], parameters[keyClaimNamespace]
	if s.claims == nil || name == "" || namespace == "" {
		return claims.Claim{}, false, nil
	}
	if c, err = s.claims.Claim(ctx, namespace, name, annotationPrefix); err != nil {
		return claims.Claim{}, false, err
	}
	for _, key := range slices.Sorted(maps.Keys(c.Annotations)) {
		if key != keyImage {
			return claims.Claim{}, false, refuse(errInvalid, "unknown annotation %q of the claim: the known one is %s", annotationPrefix+key, annotationImage)
		}
	}
	return c, true, nil
}

// create asks the registry what the image of an order is now, and fixes that.
func (s *controllerService) create(ctx context.Context, req *csi.CreateVolumeRequest, o order) (creation, error) {
	dockerConfig, err := dockerConfig(req.GetSecrets())
	if err != nil {
		return creation{}, err
	}
	image, size := o.attributes.Image, o.sourceSize
	// Under Never the image is on the nodes, and a clone's was resolved before.
	if o.attributes.PullPolicy != nodecache.Never && (o.source == "" || !nodecache.Pinned(image)) {
		resolved, err := s.images.Resolve(ctx, image, dockerConfig)
		if err != nil {
			return creation{}, hintProvisionerSecret(err, dockerConfig)
		}
		image, size = resolved.Reference, max(size, resolved.Size)
	}
	if o.limit > 0 && size > o.limit {
		return creation{}, refuse(errRange, "the image %s has %d bytes, more than the limit of %d", image, size, o.limit)
	}
	digest, err := o.digest()
	if err != nil {
		return creation{}, err
	}
	id, err := digestOf([]string{req.GetName(), digest})
	if err != nil {
		return creation{}, err
	}
	volumeContext := maps.Clone(req.GetParameters())
	maps.DeleteFunc(volumeContext, func(key, _ string) bool { return kubernetesKey(key) })
	if volumeContext == nil {
		volumeContext = make(map[string]string)
	}
	volumeContext[keyImage] = image
	return creation{
		volumeID: "erofs-" + id,
		digest:   digest, required: o.required, limit: o.limit,
		// Nothing can be written, so the rest of what was asked for is never missed.
		capacity:      roundUp(max(o.required, size), o.limit),
		volumeContext: volumeContext,
	}, nil
}

// roundUp makes a capacity a number of MiB that people can read, within a limit, 0
// being none.
func roundUp(capacity, limit int64) int64 {
	const unit = 1 << 20
	if capacity > math.MaxInt64-unit {
		return capacity
	}
	if up := (capacity + unit - 1) / unit * unit; limit == 0 || up <= limit {
		return up
	}
	return capacity
}

// hintProvisionerSecret tells whom the registry refused for want of a secret where to
// name one.
func hintProvisionerSecret(err error, dockerConfig []byte) error {
	if !errors.Is(err, nodecache.ErrUnauthorized) || dockerConfig != nil {
		return err
	}
	return fmt.Errorf("%w (in the parameters %sprovisioner-secret-name and -namespace of the StorageClass)", err, kubernetesKeys)
}
