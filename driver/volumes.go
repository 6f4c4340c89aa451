package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// undoTimeout bounds the undoing of a failed call, whose own context may have
// ended.
const undoTimeout = 30 * time.Second

// errRestoring is why a volume cannot be used while its rebuild at start runs.
var errRestoring = errors.New("the volume is being rebuilt after a restart of the plugin")

// volumeManager owns the volumes of the node.
//
// The life of a persistent volume: Stage acquires the image and mounts its
// front; Publish binds the front at one target path after the other; Unpublish
// and Unstage undo each. The staging path is the volume's, but nothing is mounted
// there: kubelet unstages a volume only when no mount elsewhere has the superblock
// and root of the one at its staging path (GetDeviceMountRefs), and all volumes of
// one image and domain have one superblock. An ephemeral volume has no
// staging path: its first Publish does what Stage does, its last Unpublish
// what Unstage does. Each call is idempotent, and one that fails undoes what
// it did.
//
// Calls on one volume, or on one path, exclude each other: the second is
// errInFlight. Calls on different volumes run in parallel. Health asks nobody
// for permission.
type volumeManager struct {
	store  imageStore
	pulls  *pulls
	engine mountEngine
	places places
	saved  recordDir
	pods   *pods

	inflight inflight

	mu      sync.Mutex
	volumes map[string]*volume // GUARDED_BY mu; values are immutable
	// kept are the images, by volume, of volumes that are to be rebuilt: nothing
	// else keeps those from eviction. They are released by put and drop.
	kept map[string]func() // GUARDED_BY mu
}

// volume is a volume of the node. It is never changed, only replaced, so that
// Health can look at it without its lock.
type volume struct {
	record record
	// image and front are nil if and only if broken is not.
	image  image
	front  front
	broken error
}

func newVolumeManager(store imageStore, engine mountEngine, mounts mounter, saved recordDir) *volumeManager {
	p := newProber(probeTimeout)
	return &volumeManager{
		store:   store,
		pulls:   newPulls(store),
		engine:  engine,
		places:  places{mounts: mounts, prober: p},
		pods:    newPods(p),
		saved:   saved,
		volumes: make(map[string]*volume),
		kept:    make(map[string]func()),
	}
}

// mountRequest is a checked NodeStageVolume or NodePublishVolume.
type mountRequest struct {
	VolumeID string
	// Path is the staging path of Stage, the target path of Publish.
	Path string
	// StagingPath is the staging path of Publish; "" for an ephemeral volume.
	StagingPath string
	Ephemeral   bool
	// Attributes are nil where Publish repeats none.
	Attributes   *attributes
	Domain       string
	Flags        mountFlags
	DockerConfig []byte
	Tokens       map[string]string
}

// credentials are what the call brings.
func (r mountRequest) credentials() nodecache.Credentials {
	return nodecache.Credentials{DockerConfig: r.DockerConfig, Tokens: r.Tokens}
}

// begin locks a volume and the path that is worked on.
func (m *volumeManager) begin(volumeID, path string) (end func(), err error) {
	end, ok := m.inflight.acquire(volumeLock(volumeID), pathLock(path))
	if !ok {
		return nil, refuse(errInFlight, "an operation on volume %q or on %s is already in progress; try again", volumeID, path)
	}
	return end, nil
}

func volumeLock(id string) string { return "volume " + id }
func pathLock(path string) string { return "path " + path }

// lookup returns the volume, or nil.
func (m *volumeManager) lookup(volumeID string) *volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.volumes[volumeID]
}

// owner returns the volume, other than volumeID, that path belongs to; or nil.
func (m *volumeManager) owner(path, volumeID string) *volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, v := range m.volumes {
		if id == volumeID {
			continue
		}
		for _, p := range v.record.paths() {
			if p.Path == path {
				return v
			}
		}
	}
	return nil
}

func (m *volumeManager) put(v *volume) {
	release := func() {}
	m.mu.Lock()
	m.volumes[v.record.VolumeID] = v
	if v.image != nil {
		release = m.unkeep(v.record.VolumeID)
	}
	m.mu.Unlock()
	release()
}

func (m *volumeManager) drop(volumeID string) {
	m.pods.forget(volumeID)
	m.mu.Lock()
	delete(m.volumes, volumeID)
	release := m.unkeep(volumeID)
	m.mu.Unlock()
	release()
}

// keepImage keeps the image of a volume from eviction until it is mounted or gone.
func (m *volumeManager) keepImage(rec record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kept[rec.VolumeID] == nil {
		m.kept[rec.VolumeID] = m.store.Keep(rec.ImageID)
	}
}

// unkeep takes keepImage back, when what it returns is called: without mu, for that
// writes to the disk. Locked: mu.
func (m *volumeManager) unkeep(volumeID string) (release func()) {
	release = m.kept[volumeID]
	delete(m.kept, volumeID)
	if release == nil {
		return func() {}
	}
	return release
}

// undo is a list of steps to take back, last first, unless the call that took
// them is kept.
type undo struct {
	steps []func(context.Context) error
	kept  bool
}

func (u *undo) add(step func(context.Context) error) { u.steps = append(u.steps, step) }

func (u *undo) keep() { u.kept = true }

// end is deferred: it takes the steps back after an error and after a panic.
// What cannot be taken back is logged and added to the error.
func (u *undo) end(ctx context.Context, err *error) {
	if u.kept {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for i := len(u.steps) - 1; i >= 0; i-- {
		if undoErr := u.steps[i](ctx); undoErr != nil {
			klog.FromContext(ctx).Error(undoErr, "Undoing a failed call left something behind")
			*err = errors.Join(*err, fmt.Errorf("while undoing it: %w", undoErr))
		}
	}
}

// wantFront is what a volume asks of the engine. An inline volume without a domain
// never comes back: its id is that of one pod.
func wantFront(volumeID, domain string, ephemeral bool, a *attributes) frontRequest {
	return frontRequest{
		Domain: domain, VolumeID: volumeID,
		CacheLimit: a.CacheLimit, IDMapped: a.UserNamespaces, Keep: domain != "" || !ephemeral,
		Trusted: a.Fingerprints == fingerprintsTrusted, Kernel: a.Engine == engineKernel,
	}
}

// wantFront is what the volume of a record asks of the engine.
func (r *record) wantFront() frontRequest {
	return wantFront(r.VolumeID, r.Domain, r.Ephemeral, &r.Attributes)
}

// open acquires and mounts an image; u takes both back.
func (m *volumeManager) open(ctx context.Context, u *undo, req frontRequest, ref string, opts nodecache.AcquireOptions) (image, front, error) {
	img, err := m.pulls.acquire(ctx, req.VolumeID, ref, opts)
	if err != nil {
		return nil, nil, err
	}
	u.add(func(context.Context) error { img.Release(); return nil })
	f, err := m.engine.Mount(ctx, req, img)
	if err != nil {
		return nil, nil, err
	}
	u.add(f.Release)
	logger := klog.FromContext(ctx)
	logger.V(2).Info("Mounted image", "volumeID", req.VolumeID, "image", img.Reference(), "imageID", img.ID(),
		"domain", req.Domain, "engine", f.Engine(), "front", f.Kind(), "reason", f.Reason())
	return img, f, nil
}

// useCredentials lets what a call brings complete an image that is not.
func (v *volume) useCredentials(ctx context.Context, req mountRequest) {
	if v.image == nil {
		return
	}
	if err := v.image.UseCredentials(req.credentials()); err != nil {
		klog.FromContext(ctx).Error(err, "The credentials of a call are not used", "volumeID", v.record.VolumeID)
	}
}

// release gives back what open got. A front that reports an error is gone all
// the same, so there is nothing to try again.
func (v *volume) release(ctx context.Context) {
	if v.front == nil {
		return
	}
	if err := v.front.Release(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Unmounting an image left something behind", "volumeID", v.record.VolumeID, "image", v.record.Reference)
	}
	v.image.Release()
}

// usable returns nil if the volume's tree can be read.
func (m *volumeManager) usable(ctx context.Context, v *volume) error {
	if v.broken != nil {
		return v.broken
	}
	_, err := ask(ctx, m.places.prober, "health of "+v.front.Path(), func() (struct{}, error) {
		return struct{}{}, v.front.Healthy()
	})
	return err
}
