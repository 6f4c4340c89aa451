package driver

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

func createRequest(edit func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	req := &csi.CreateVolumeRequest{
		Name:               "pvc-1",
		VolumeCapabilities: []*csi.VolumeCapability{reader()},
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 1 << 30},
		Parameters: map[string]string{
			"image": "r.example/a:1", "domain_id": "d",
			"csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "team",
		},
	}
	if edit != nil {
		edit(req)
	}
	return req
}

func TestCreateVolume(t *testing.T) {
	ctx := context.Background()
	s := newControllerService(fakeResolver{}, nil)
	first, err := s.CreateVolume(ctx, createRequest(nil))
	if err != nil {
		t.Fatal(err)
	}
	v := first.GetVolume()
	if !volumeIDPattern.MatchString(v.GetVolumeId()) || v.GetCapacityBytes() != 1<<30 ||
		!maps.Equal(v.GetVolumeContext(), map[string]string{"image": "r.example/a:1@" + fakeDigest, "domain_id": "d"}) {
		t.Errorf("volume %v", v)
	}
	// The context is what the node takes.
	if _, err := parseAttributes(v.GetVolumeContext()); err != nil {
		t.Error(err)
	}
	// Again, here and in another process: the same volume.
	for name, service := range map[string]*controllerService{"again": s, "another process": newControllerService(fakeResolver{}, nil)} {
		res, err := service.CreateVolume(ctx, createRequest(nil))
		if err != nil || res.GetVolume().GetVolumeId() != v.GetVolumeId() {
			t.Errorf("%s: %v, %v; want id %s", name, res, err, v.GetVolumeId())
		}
	}
	for name, edit := range map[string]func(*csi.CreateVolumeRequest){
		"other image":    func(r *csi.CreateVolumeRequest) { r.Parameters["image"] = "r.example/b:1" },
		"other domain":   func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "domain_id") },
		"other capacity": func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes++ },
		"other limit":    func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = 1 << 40 },
	} {
		if _, err := s.CreateVolume(ctx, createRequest(edit)); !errors.Is(err, errExists) {
			t.Errorf("%s: %v, want errExists", name, err)
		}
	}
	other, err := s.CreateVolume(ctx, createRequest(func(r *csi.CreateVolumeRequest) { r.Name = "pvc-2" }))
	if err != nil || other.GetVolume().GetVolumeId() == v.GetVolumeId() {
		t.Errorf("another name: %v, %v", other, err)
	}
	// A deleted name is free, and a deletion can be repeated.
	for range 2 {
		if _, err := s.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.GetVolumeId()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CreateVolume(ctx, createRequest(func(r *csi.CreateVolumeRequest) { r.Parameters["image"] = "r.example/b:1" })); err != nil {
		t.Errorf("the name of a deleted volume: %v", err)
	}
	if _, err := s.DeleteVolume(ctx, &csi.DeleteVolumeRequest{}); !errors.Is(err, errInvalid) {
		t.Errorf("no id: %v", err)
	}
}

func TestCreateVolumeRefusals(t *testing.T) {
	for word, edit := range map[string]func(*csi.CreateVolumeRequest){
		"name is missing":    func(r *csi.CreateVolumeRequest) { r.Name = "" },
		"1024":               func(r *csi.CreateVolumeRequest) { r.Name = strings.Repeat("n", 1025) },
		"capabilities":       func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil },
		"SINGLE_NODE_WRITER": func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessMode.Mode = 1 },
		"no image":           func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "image") },
		`"Image"`:            func(r *csi.CreateVolumeRequest) { r.Parameters["Image"] = "x" },
		"not one of":         func(r *csi.CreateVolumeRequest) { r.Parameters["fingerprints"] = "believed" },
		"neither a volume":   func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} },
		"snapshots are not": func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
				Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: "s"},
			}}
		},
		"mutable":           func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} },
		"required -1 bytes": func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 },
		"limit 1 bytes":     func(r *csi.CreateVolumeRequest) { r.CapacityRange.LimitBytes = 1 },
		"volumeMode: Filesystem": func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0].AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		},
		`mount option "rw"`:       func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = reader("rw") },
		`file system type "ext4"`: func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].GetMount().FsType = "ext4" },
	} {
		s := newControllerService(fakeResolver{}, nil)
		_, err := s.CreateVolume(context.Background(), createRequest(edit))
		if !errors.Is(err, errInvalid) || !strings.Contains(err.Error(), word) {
			t.Errorf("%v, want errInvalid that says %q", err, word)
		}
		if len(s.created) != 0 {
			t.Errorf("%s: a refused volume is remembered", word)
		}
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	ctx := context.Background()
	s := newControllerService(fakeResolver{}, nil)
	id := "erofs-" + strings.Repeat("0a", 32)
	good := func() *csi.ValidateVolumeCapabilitiesRequest {
		return &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{reader()}, VolumeContext: map[string]string{"image": "r.example/a"},
		}
	}
	res, err := s.ValidateVolumeCapabilities(ctx, good())
	if err != nil || len(res.GetConfirmed().GetVolumeCapabilities()) != 1 || res.GetMessage() != "" {
		t.Errorf("a reader: %v, %v", res, err)
	}
	req := good()
	req.VolumeCapabilities = append(req.VolumeCapabilities, capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER))
	res, err = s.ValidateVolumeCapabilities(ctx, req)
	if err != nil || res.GetConfirmed() != nil || !strings.Contains(res.GetMessage(), "SINGLE_NODE_WRITER") {
		t.Errorf("a writer: %v, %v; want no confirmation and the reason", res, err)
	}
	req = good()
	req.VolumeContext["x"] = "y"
	res, err = s.ValidateVolumeCapabilities(ctx, req)
	if err != nil || res.GetConfirmed() != nil || !strings.Contains(res.GetMessage(), `"x"`) {
		t.Errorf("an unknown attribute: %v, %v; want no confirmation and the reason", res, err)
	}
	for _, other := range []string{"x", "erofs-0a", id + "0", strings.ToUpper(id)} {
		req := good()
		req.VolumeId = other
		if _, err := s.ValidateVolumeCapabilities(ctx, req); !errors.Is(err, errVolumeNotFound) {
			t.Errorf("id %s: %v, want errVolumeNotFound", other, err)
		}
	}
	for name, edit := range map[string]func(*csi.ValidateVolumeCapabilitiesRequest){
		"no id":           func(r *csi.ValidateVolumeCapabilitiesRequest) { r.VolumeId = "" },
		"no capabilities": func(r *csi.ValidateVolumeCapabilitiesRequest) { r.VolumeCapabilities = nil },
	} {
		req := good()
		edit(req)
		if _, err := s.ValidateVolumeCapabilities(ctx, req); !errors.Is(err, errInvalid) {
			t.Errorf("%s: %v, want errInvalid", name, err)
		}
	}
}
