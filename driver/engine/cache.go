package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// LetGo lets go of the idle images with this nodecache.Image.ID. It returns when
// their files are closed, or can't be for now.
func (e *Engine) LetGo(id string) {
	e.yielding.Lock()
	defer e.yielding.Unlock()
	if e.ctx.Err() != nil {
		return // Close does it
	}
	if err := e.forget(e.idle.takeImage(id)); err != nil {
		klog.FromContext(e.ctx).Error(err, "Letting go of an image that is to be evicted left something behind", "imageID", id)
	}
}

// CacheOp is what is to be done with a store of images.
type CacheOp string

// The values of CacheOp.
const (
	CacheList   CacheOp = "list"
	CacheEvict  CacheOp = "evict"  // down to Size bytes; 0: all that is unused
	CacheRemove CacheOp = "remove" // Image
	CachePin    CacheOp = "pin"    // Image
	CacheUnpin  CacheOp = "unpin"  // Image
)

// CacheQuery asks for something to be done with the store in a directory.
type CacheQuery struct {
	Op    CacheOp `json:"op"`
	Image string  `json:"image,omitempty"` // a reference or the digest of a blob
	Size  int64   `json:"size,omitempty"`

	// The directory of the store; of another one nothing is done.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// CacheAnswer is what came of it.
type CacheAnswer struct {
	// Other: it is not the store of the process that was asked.
	Other    bool                `json:"other,omitempty"`
	Error    string              `json:"error,omitempty"`
	Contents *nodecache.Contents `json:"contents,omitempty"` // of CacheList
	Evicted  nodecache.Evicted   `json:"evicted"`            // by CacheEvict and CacheRemove
}

// cacheTimeout bounds how long a store may take for one query: what is evicted may
// have to be unmounted first.
const cacheTimeout = 2 * time.Minute

// QueryCache does what q asks for with a store that nobody mounts from.
func QueryCache(ctx context.Context, store *nodecache.Store, q CacheQuery) (CacheAnswer, error) {
	var a CacheAnswer
	var err error
	switch q.Op {
	case CacheList:
		var c nodecache.Contents
		if c, err = store.List(); err == nil {
			a.Contents = &c
		}
	case CacheEvict:
		a.Evicted, err = store.Evict(q.Size)
	case CacheRemove:
		a.Evicted, err = store.Remove(q.Image)
	case CachePin:
		err = store.Pin(ctx, q.Image)
	case CacheUnpin:
		err = store.Unpin(q.Image)
	default:
		err = fmt.Errorf("the store has no operation %q: is the command of another version than the running process?", q.Op)
	}
	return a, err
}

// answerCache is QueryCache for the engine's own store.
func (e *Engine) answerCache(q CacheQuery) (a CacheAnswer) {
	store := e.cfg.Images
	if store == nil {
		return CacheAnswer{Other: true}
	}
	device, inode, err := identity(store.Dir())
	if err != nil || device != q.Device || inode != q.Inode {
		return CacheAnswer{Other: true}
	}
	ctx, cancel := context.WithTimeout(e.ctx, cacheTimeout)
	defer cancel()
	a, err = QueryCache(ctx, store, q)
	if err != nil {
		a.Error = err.Error()
	}
	if a.Contents != nil {
		volumes := e.volumesByImage()
		for i := range a.Contents.Images {
			im := &a.Contents.Images[i]
			im.Volumes = volumes[im.ID]
		}
	}
	return a
}

// volumesByImage lists the volumes that show each image, by nodecache.Image.ID.
func (e *Engine) volumesByImage() map[string][]string {
	all := make(map[string][]string)
	for _, f := range e.fronts.snapshot() {
		all[f.image.ID()] = append(all[f.image.ID()], f.volumes()...)
	}
	for _, f := range e.kernels.snapshot() {
		all[f.image.ID()] = append(all[f.image.ID()], f.volumes()...)
	}
	for id, volumes := range all {
		slices.Sort(volumes)
		all[id] = slices.Compact(volumes)
	}
	return all
}

// AskCache has the process that mounts from the store in cacheDir, one of those of
// the state directory, do what q asks for. The error wraps ErrNotMounted if there is
// none.
func AskCache(ctx context.Context, stateDir, cacheDir string, q CacheQuery) (CacheAnswer, error) {
	var err error
	if q.Device, q.Inode, err = identity(cacheDir); err != nil {
		return CacheAnswer{}, err
	}
	sockets, err := statusSockets(stateDir)
	if err != nil {
		return CacheAnswer{}, err
	}
	var errs []error
	for _, path := range sockets {
		a, err := askCache(ctx, path, q)
		switch {
		case gone(err):
		case err != nil:
			errs = append(errs, fmt.Errorf("store of %s: %w", path, err))
		case a.Error != "":
			return a, errors.New(a.Error)
		case !a.Other:
			return a, nil
		}
	}
	errs = append(errs, fmt.Errorf("%w from %s (state directory %s)", ErrNotMounted, cacheDir, stateDir))
	return CacheAnswer{}, errors.Join(errs...)
}

func askCache(ctx context.Context, path string, q CacheQuery) (a CacheAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, cacheTimeout+statusTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return a, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(patient{conn}).Encode(query{Cache: &q}); err != nil {
		return a, err
	}
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return a, errors.Join(ctx.Err(), err)
	}
	return a, nil
}

// identity tells a directory from all others, whatever it is called.
func identity(dir string) (device, inode uint64, err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return 0, 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, &os.PathError{Op: "stat", Path: dir, Err: unix.ENOTSUP}
	}
	return st.Dev, st.Ino, nil
}
