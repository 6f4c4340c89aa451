package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/erofs-csi/erofs-csi/driver/claims"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

const (
	fakeDigest  = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	otherDigest = "sha256:ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
)

// fakeResolver resolves every tag to one digest, and every image to one size.
type fakeResolver struct {
	err    error
	size   int64
	digest string // "" is fakeDigest
}

func (f fakeResolver) Resolve(_ context.Context, ref string, _ []byte) (nodecache.Resolved, error) {
	if f.digest == "" {
		f.digest = fakeDigest
	}
	if !strings.Contains(ref, "@") {
		ref += "@" + f.digest
	}
	return nodecache.Resolved{Reference: ref, Size: f.size}, f.err
}

// countingResolver notes what it is asked.
type countingResolver struct {
	fakeResolver
	asked, secrets []string
}

func (f *countingResolver) Resolve(ctx context.Context, ref string, dockerConfig []byte) (nodecache.Resolved, error) {
	f.asked = append(f.asked, ref)
	f.secrets = append(f.secrets, string(dockerConfig))
	return f.fakeResolver.Resolve(ctx, ref, dockerConfig)
}

// fakeClaims are the claims of the namespace team.
type fakeClaims struct {
	claims  map[string]claims.Claim
	volumes map[string]claims.Volume
	err     error
}

func (f *fakeClaims) Claim(_ context.Context, namespace, name, prefix string) (claims.Claim, error) {
	c, ok := f.claims[name]
	switch {
	case f.err != nil:
		return claims.Claim{}, f.err
	case !ok || namespace != "team" || prefix != "erofs.csi.dev/":
		return claims.Claim{}, fmt.Errorf("%w: %s/%s", claims.ErrNotFound, namespace, name)
	}
	return c, nil
}

func (f *fakeClaims) Volume(_ context.Context, namespace, claim string) (claims.Volume, error) {
	v, ok := f.volumes[claim]
	if !ok || namespace != "team" {
		return claims.Volume{}, fmt.Errorf("%w: %s/%s", claims.ErrNotFound, namespace, claim)
	}
	return v, nil
}

// annotated are claims of which the one of createRequest has annotations.
func annotated(annotations map[string]string) *fakeClaims {
	return &fakeClaims{claims: map[string]claims.Claim{"claim": {Annotations: annotations}}}
}

// cloneOf makes a request one for a clone of a volume.
func cloneOf(id string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
		}}
	}
}

// TestCreateVolumeOfClaim: the class without an image takes the claim's.
func TestCreateVolumeOfClaim(t *testing.T) {
	noImage := func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "image") }
	for name, test := range map[string]struct {
		claims *fakeClaims
		edit   func(*csi.CreateVolumeRequest)
		image  string // "": refused
		word   string
	}{
		"the claim's":             {annotated(map[string]string{"image": "r.example/c:1"}), noImage, "r.example/c:1@" + fakeDigest, ""},
		"the claim's, pinned":     {annotated(map[string]string{"image": "r.example/c@" + otherDigest}), noImage, "r.example/c@" + otherDigest, ""},
		"the class's":             {annotated(nil), nil, "r.example/a:1@" + fakeDigest, ""},
		"both, the same":          {annotated(map[string]string{"image": "r.example/a:1"}), nil, "r.example/a:1@" + fakeDigest, ""},
		"both, others":            {annotated(map[string]string{"image": "r.example/c:1"}), nil, "", "remove the annotation erofs.csi.dev/image"},
		"neither":                 {annotated(nil), noImage, "", "nor the claim the annotation erofs.csi.dev/image"},
		"a misspelt annotation":   {annotated(map[string]string{"Image": "r.example/c:1"}), noImage, "", `unknown annotation "erofs.csi.dev/Image"`},
		"no reference":            {annotated(map[string]string{"image": "library/c"}), noImage, "", "not a registry host"},
		"control characters":      {annotated(map[string]string{"image": "r.example/c\n"}), noImage, "", "cannot be printed"},
		"no such claim":           {&fakeClaims{}, nil, "", "not found in Kubernetes"},
		"the API is away":         {&fakeClaims{err: claims.ErrUnavailable}, nil, "", "not available"},
		"no API":                  {nil, noImage, "", "no Kubernetes API"},
		"nobody names the claim":  {annotated(nil), func(r *csi.CreateVolumeRequest) { r.Parameters = nil }, "", "--extra-create-metadata"},
		"no API, the class's":     {nil, nil, "r.example/a:1@" + fakeDigest, ""},
		"a clone with annotation": {annotated(map[string]string{"image": "r.example/c:1"}), cloneOf("x"), "", "a claim with a dataSource"},
	} {
		s := newControllerService(fakeResolver{}, nil)
		if test.claims != nil {
			s.claims = test.claims
		}
		res, err := s.CreateVolume(context.Background(), createRequest(test.edit))
		if test.image == "" {
			if err == nil || !strings.Contains(err.Error(), test.word) {
				t.Errorf("%s: %v, want an error that says %q", name, err, test.word)
			}
			if len(s.created) != 0 {
				t.Errorf("%s: a refused volume is remembered", name)
			}
			continue
		}
		got := res.GetVolume().GetVolumeContext()
		if err != nil || !maps.Equal(got, map[string]string{"image": test.image, "domain_id": "d"}) {
			t.Errorf("%s: %v, %v; want image %s", name, got, err, test.image)
		}
	}
}

// TestCreateVolumeKeepsDigest: a repeated call gets what the tag meant at the first, and
// asks no registry.
func TestCreateVolumeKeepsDigest(t *testing.T) {
	ctx := context.Background()
	images := &countingResolver{}
	s := newControllerService(images, nil)
	first, err := s.CreateVolume(ctx, createRequest(nil))
	if err != nil {
		t.Fatal(err)
	}
	images.digest, images.err = otherDigest, nodecache.ErrUnavailable
	again, err := s.CreateVolume(ctx, createRequest(nil))
	if err != nil || again.GetVolume().GetVolumeContext()["image"] != first.GetVolume().GetVolumeContext()["image"] {
		t.Errorf("again: %v, %v; want %v", again, err, first)
	}
	if len(images.asked) != 1 {
		t.Errorf("the registry was asked for %q", images.asked)
	}
	// Another process does not know the first answer, but makes the same id.
	images.err = nil
	other, err := newControllerService(images, nil).CreateVolume(ctx, createRequest(nil))
	if err != nil || other.GetVolume().GetVolumeId() != first.GetVolume().GetVolumeId() {
		t.Errorf("another process: %v, %v; want id %s", other, err, first.GetVolume().GetVolumeId())
	}
}

// TestCreateVolumeCapacity: the volume is as large as its image and as what was asked
// for.
func TestCreateVolumeCapacity(t *testing.T) {
	const mib = 1 << 20
	for name, test := range map[string]struct {
		size, required, limit, want int64
		err                         error
	}{
		"the image is larger":    {size: 5*mib + 1, required: mib, want: 6 * mib},
		"the request is larger":  {size: 5 * mib, required: 7 * mib, want: 7 * mib},
		"nothing asked for":      {size: 100, want: mib},
		"nothing known":          {want: 0},
		"within the limit":       {size: 5*mib + 1, limit: 5*mib + 2, want: 5*mib + 1},
		"above the limit":        {size: 5 * mib, required: 1, limit: 4 * mib, err: errRange},
		"a request of odd bytes": {size: 1, required: 2*mib + 3, want: 3 * mib},
		"all there is":           {required: 1<<63 - 1, want: 1<<63 - 1},
	} {
		s := newControllerService(fakeResolver{size: test.size}, nil)
		res, err := s.CreateVolume(context.Background(), createRequest(func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: test.required, LimitBytes: test.limit}
		}))
		if !errors.Is(err, test.err) || res.GetVolume().GetCapacityBytes() != test.want {
			t.Errorf("%s: %d, %v; want %d, %v", name, res.GetVolume().GetCapacityBytes(), err, test.want, test.err)
		}
	}
}

// TestCreateVolumeAsks: with which secret the registry is asked, when it is not, and
// what its refusals become.
func TestCreateVolumeAsks(t *testing.T) {
	ctx := context.Background()
	images := &countingResolver{}
	s := newControllerService(images, nil)
	_, err := s.CreateVolume(ctx, createRequest(func(r *csi.CreateVolumeRequest) {
		r.Secrets = map[string]string{secretKey: "{}"}
	}))
	if err != nil || len(images.secrets) != 1 || images.secrets[0] != "{}" {
		t.Errorf("%v, secrets %q", err, images.secrets)
	}
	res, err := s.CreateVolume(ctx, createRequest(func(r *csi.CreateVolumeRequest) {
		r.Name, r.Parameters["pullPolicy"] = "never", "Never"
	}))
	if err != nil || res.GetVolume().GetVolumeContext()["image"] != "r.example/a:1" || len(images.asked) != 1 {
		t.Errorf("Never: %v, %v, asked for %q", res, err, images.asked)
	}
	_, err = s.CreateVolume(ctx, createRequest(func(r *csi.CreateVolumeRequest) {
		r.Name, r.Secrets = "secret", map[string]string{"password": "x"}
	}))
	if !errors.Is(err, errInvalid) || len(images.asked) != 1 {
		t.Errorf("a secret of another kind: %v, asked for %q", err, images.asked)
	}
	for class, word := range map[error]string{
		nodecache.ErrNotFound:         "",
		nodecache.ErrUnavailable:      "",
		nodecache.ErrUnsupportedImage: "",
		nodecache.ErrUnauthorized:     "csi.storage.k8s.io/provisioner-secret-name",
	} {
		s := newControllerService(fakeResolver{err: class}, nil)
		_, err := s.CreateVolume(ctx, createRequest(nil))
		if !errors.Is(err, class) || !strings.Contains(err.Error(), word) {
			t.Errorf("%v, want %v and %q", err, class, word)
		}
		if len(s.created) != 0 {
			t.Errorf("%v: a refused volume is remembered", class)
		}
	}
}

// TestClone: a clone has the image of its source, at the source's digest, with the
// parameters of its own class.
func TestClone(t *testing.T) {
	ctx := context.Background()
	images := &countingResolver{}
	images.size = 3 << 20
	kube := &fakeClaims{
		claims: map[string]claims.Claim{"claim": {Source: "source"}, "orphan": {}},
		volumes: map[string]claims.Volume{"source": {
			Driver: Name, Handle: "v1", Capacity: 9 << 30,
			Attributes: map[string]string{"image": "r.example/s:1@" + otherDigest, "domain_id": "theirs", keyProvisioner: "x"},
		}},
	}
	s := newControllerService(images, kube)
	clone, err := s.CreateVolume(ctx, createRequest(cloneOf("v1")))
	v := clone.GetVolume()
	if err != nil || v.GetCapacityBytes() != 9<<30 || v.GetContentSource().GetVolume().GetVolumeId() != "v1" ||
		!maps.Equal(v.GetVolumeContext(), map[string]string{"image": "r.example/s:1@" + otherDigest, "domain_id": "d"}) {
		t.Errorf("%v, %v", v, err)
	}
	if len(images.asked) != 0 {
		t.Errorf("the registry was asked for %q", images.asked)
	}
	// A source without a digest gets one now.
	kube.volumes["source"].Attributes["image"] = "r.example/s:1"
	req := createRequest(cloneOf("v1"))
	req.Name = "of a tag"
	clone, err = s.CreateVolume(ctx, req)
	if err != nil || clone.GetVolume().GetVolumeContext()["image"] != "r.example/s:1@"+fakeDigest {
		t.Errorf("%v, %v", clone, err)
	}
	for name, edit := range map[string]func(*csi.CreateVolumeRequest){
		"another volume": cloneOf("v2"),
		"no source":      func(r *csi.CreateVolumeRequest) { cloneOf("v1")(r); r.Parameters[keyClaimName] = "orphan" },
	} {
		req := createRequest(edit)
		req.Name = name
		if _, err := s.CreateVolume(ctx, req); !errors.Is(err, errVolumeNotFound) {
			t.Errorf("%s: %v, want errVolumeNotFound", name, err)
		}
	}
	req = createRequest(cloneOf(""))
	if _, err := s.CreateVolume(ctx, req); !errors.Is(err, errInvalid) {
		t.Errorf("no id: %v", err)
	}

	// Outside of Kubernetes: what this process created.
	s = newControllerService(images, nil)
	source, err := s.CreateVolume(ctx, createRequest(nil))
	if err != nil {
		t.Fatal(err)
	}
	req = createRequest(cloneOf(source.GetVolume().GetVolumeId()))
	req.Name, req.Parameters["image"] = "clone", "r.example/other:1"
	clone, err = s.CreateVolume(ctx, req)
	if err != nil || clone.GetVolume().GetVolumeContext()["image"] != source.GetVolume().GetVolumeContext()["image"] {
		t.Errorf("%v, %v; want the image of %v", clone, err, source)
	}
	if again, err := s.CreateVolume(ctx, req); err != nil || again.GetVolume().GetVolumeId() != clone.GetVolume().GetVolumeId() {
		t.Errorf("again: %v, %v", again, err)
	}
	req = createRequest(cloneOf("nobody"))
	req.Name = "nobody"
	if _, err := s.CreateVolume(ctx, req); !errors.Is(err, errVolumeNotFound) {
		t.Errorf("of nobody: %v, want errVolumeNotFound", err)
	}
}
