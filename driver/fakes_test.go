package driver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// needMounts skips a test that mounts, where it may not; in CI it fails.
func needMounts(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("probe", dir, "tmpfs", 0, "size=4k")
	if err == nil {
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	images.Need(t, "CAP_SYS_ADMIN, to mount", err == nil)
}

// fakeStore has the images of its map: reference → content.
type fakeStore struct {
	mu         sync.Mutex
	images     map[string]string   // GUARDED_BY mu
	pins       int                 // GUARDED_BY mu
	acquired   int                 // GUARDED_BY mu
	kept       []string            // GUARDED_BY mu
	authorized []string            // GUARDED_BY mu; the secrets that were checked
	tokens     []map[string]string // of Authorize
	// authorize and acquire, when set, are asked first.
	authorize func(ref string, config []byte) error
	acquire   func(ctx context.Context, ref string, opts nodecache.AcquireOptions) error
}

func newFakeStore() *fakeStore {
	return &fakeStore{images: map[string]string{"registry.example/a:1": "content of a", "registry.example/b:1": "content of b"}}
}

func (s *fakeStore) Acquire(ctx context.Context, ref string, opts nodecache.AcquireOptions) (image, error) {
	if s.acquire != nil {
		if err := s.acquire(ctx, ref, opts); err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	content, ok := s.images[ref]
	if !ok {
		return nil, fmt.Errorf("%s: %w", ref, nodecache.ErrNotFound)
	}
	s.pins++
	s.acquired++
	return &fakeImage{store: s, ref: ref, content: content}, nil
}

func (s *fakeStore) Authorize(_ context.Context, ref string, c nodecache.Credentials) error {
	s.mu.Lock()
	s.authorized = append(s.authorized, string(c.DockerConfig))
	s.tokens = append(s.tokens, c.Tokens)
	s.mu.Unlock()
	if s.authorize == nil {
		return nil
	}
	if err := s.authorize(ref, c.DockerConfig); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	return nil
}

func (s *fakeStore) Keep(id string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = append(s.kept, id)
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.kept = slices.DeleteFunc(s.kept, func(k string) bool { return k == id })
	})
}

func (s *fakeStore) keeps() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.kept)
}

func (s *fakeStore) pinned() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pins
}

func (s *fakeStore) set(ref, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if content == "" {
		delete(s.images, ref)
		return
	}
	s.images[ref] = content
}

type fakeImage struct {
	store        *fakeStore
	ref, content string
	once         sync.Once
}

func (i *fakeImage) ID() string {
	sum := sha256.Sum256([]byte(i.content))
	return "sha256-" + hex.EncodeToString(sum[:])
}
func (i *fakeImage) Reference() string { return i.ref }
func (i *fakeImage) Digest() string    { return "" }

func (i *fakeImage) UseCredentials(nodecache.Credentials) error { return nil }

func (i *fakeImage) Release() {
	i.once.Do(func() {
		i.store.mu.Lock()
		defer i.store.mu.Unlock()
		i.store.pins--
	})
}

// fakeEngine shows an image as a tmpfs with one file, content.
type fakeEngine struct {
	dir string

	mu     sync.Mutex
	serial int          // GUARDED_BY mu
	fronts []*fakeFront // GUARDED_BY mu; all that were made
	// mount, when set, is asked first.
	mount func(ctx context.Context, domain, volumeID string) error
	held  map[string]*fakeFront // by volume, GUARDED_BY mu; of the process before
}

func newFakeEngine(t *testing.T) *fakeEngine {
	t.Helper()
	e := &fakeEngine{dir: t.TempDir()}
	t.Cleanup(func() {
		for _, f := range e.all() {
			_ = f.Release(context.Background())
		}
	})
	return e
}

func (e *fakeEngine) Mount(ctx context.Context, req frontRequest, img image) (front, error) {
	if e.mount != nil {
		if err := e.mount(ctx, req.Domain, req.VolumeID); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.held[req.VolumeID]; f != nil {
		delete(e.held, req.VolumeID)
		f.resumed = true
		return f, nil
	}
	e.serial++
	f := &fakeFront{
		dir: filepath.Join(e.dir, fmt.Sprintf("front-%d", e.serial)), domain: req.Domain, request: req,
		content: img.(*fakeImage).content,
	}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("fake", f.dir, "tmpfs", 0, "size=1m,mode=755"); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(f.dir, "content"), []byte(f.content), 0o600); err != nil {
		return nil, err
	}
	e.fronts = append(e.fronts, f)
	return f, nil
}

func (e *fakeEngine) Holds(req frontRequest, imageID string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.held[req.VolumeID]
	return f != nil && imageID == (&fakeImage{content: f.content}).ID()
}

func (e *fakeEngine) EndResume(ctx context.Context) (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.held {
		err = errors.Join(err, f.Release(ctx))
	}
	e.held = nil
	return err
}

func (e *fakeEngine) all() []*fakeFront {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]*fakeFront(nil), e.fronts...)
}

// live counts the fronts that are not released.
func (e *fakeEngine) live() int {
	n := 0
	for _, f := range e.all() {
		if !f.isReleased() {
			n++
		}
	}
	return n
}

type fakeFront struct {
	dir, domain, content string
	request              frontRequest
	resumed              bool

	mu       sync.Mutex
	released bool  // GUARDED_BY mu
	sick     error // GUARDED_BY mu
}

func (f *fakeFront) Path() string      { return f.dir }
func (f *fakeFront) Kind() string      { return "tree" }
func (f *fakeFront) Resumed() bool     { return f.resumed }
func (f *fakeFront) Engine() string    { return "fuse" }
func (f *fakeFront) Reason() string    { return "it is a fake" }
func (f *fakeFront) Stats() imageStats { return imageStats{Bytes: 4096, Inodes: 2} }

func (f *fakeFront) Trouble() error { return nil }
func (f *fakeFront) Healthy() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sick
}

func (f *fakeFront) fall(sick error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sick = sick
}

func (f *fakeFront) isReleased() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.released
}

func (f *fakeFront) Release(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.released {
		return nil
	}
	f.released = true
	return errors.Join(unix.Unmount(f.dir, unix.MNT_DETACH), os.Remove(f.dir))
}

// brokenMounter fails where it is told to.
type brokenMounter struct {
	mounter
	bind func(target string) error
}

func (m *brokenMounter) Bind(source, target string, flags mountFlags) error {
	if m.bind != nil {
		if err := m.bind(target); err != nil {
			return err
		}
	}
	return m.mounter.Bind(source, target, flags)
}
