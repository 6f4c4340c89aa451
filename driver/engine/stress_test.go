package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// Mounts come and go in parallel, some of them given up while they wait. Whatever
// is read is right, and in the end nothing is left: no front, domain, mount,
// descriptor or goroutine.
func TestManyMountsAtOnce(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	var mounts []childMount
	for n := range 4 {
		tree := t.TempDir()
		for i := range 40 {
			if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), []byte(stressData(n, i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		image := images.Build(t, mkfs, [][]string{nil, {"-zlz4"}}[n%2], tree)
		for _, domain := range []string{"", "x", "y"} {
			mounts = append(mounts, childMount{Domain: domain, Image: image, Volume: fmt.Sprint(n)})
		}
	}
	eachFront(t, func(t *testing.T, front string) {
		ch := startChild(t, childConfig{Front: front, Mounts: mounts, Stress: 20})
		for _, f := range ch.Fronts {
			t.Error(f.Err)
		}
	})
}

// The same with images that are pulled into a store with room for half of them, and
// kept for their pages until the store wants them back.
func TestManyMountsAndEvictions(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	var files []string
	for n := range 4 {
		tree := t.TempDir()
		for i := range 40 {
			if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), []byte(stressData(n, i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		files = append(files, images.Build(t, mkfs, nil, tree))
	}
	host := serveImages(t, files)
	var mounts []childMount
	for n := range files {
		for _, domain := range []string{"", "x", "y"} {
			mounts = append(mounts, childMount{Domain: domain, Image: fmt.Sprintf("%s/%d:v1", host, n), Volume: fmt.Sprint(n), Keep: true})
		}
	}
	one, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	limit := one.Size()*5/2 + 100_000
	eachFront(t, func(t *testing.T, front string) {
		state, cache := stateDir(t), t.TempDir()
		ch := startChild(t, childConfig{StateDir: state, CacheDir: cache, Front: front, Mounts: mounts, Stress: 20, ImageLimit: limit})
		for _, f := range ch.Fronts {
			t.Error(f.Err)
		}
		a, err := AskCache(t.Context(), state, cache, CacheQuery{Op: CacheList})
		if err != nil {
			t.Fatal(err)
		}
		if c := a.Contents; c.Bytes > limit || c.Evictions < 2 {
			t.Errorf("%d bytes after %d evictions, the limit is %d", c.Bytes, c.Evictions, limit)
		}
		for _, im := range a.Contents.Images {
			if im.InUse || im.Resting {
				t.Errorf("still held: %+v", im)
			}
		}
	})
}

// serveImages is a registry that has the nth file as HOST/n:v1.
func serveImages(t *testing.T, files []string) (host string) {
	t.Helper()
	digest := func(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
	mux := http.NewServeMux()
	for n, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		manifest := fmt.Appendf(nil, `{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
			"config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": %q, "size": 2},
			"layers": [{"mediaType": "application/vnd.erofs.layer.v1", "digest": %q, "size": %d}]}`, digest([]byte("{}")), digest(content), len(content))
		for _, name := range []string{"v1", digest(manifest)} {
			mux.HandleFunc(fmt.Sprintf("/v2/%d/manifests/%s", n, name), func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				w.Header().Set("Docker-Content-Digest", digest(manifest))
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(manifest))
			})
		}
		mux.HandleFunc(fmt.Sprintf("/v2/%d/blobs/%s", n, digest(content)), func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		})
	}
	server := httptest.NewUnstartedServer(mux)
	server.Config.SetKeepAlivesEnabled(false) // a connection is a descriptor of the child's
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// stressData is the content of a file of an image. Every other file is the same in
// every image.
func stressData(image, file int) string {
	return strings.Repeat(fmt.Sprintf("file %d of image %d;", file, image*(file%2)), 2000)
}

// stress mounts, reads and releases in parallel, rounds times each of 8, and
// returns what went wrong.
func stress(ctx context.Context, e *Engine, store *nodecache.Store, c childConfig) (problems []string) {
	fds, goroutines := descriptors(), runtime.NumGoroutine()
	var mu sync.Mutex
	fail := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		problems = append(problems, fmt.Sprintf(format, args...))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range c.Stress {
				m := c.Mounts[rand.IntN(len(c.Mounts))]
				if err := once(ctx, e, store, m); err != nil {
					fail("%+v: %v", m, err)
				}
			}
		})
	}
	wg.Wait()
	if err := e.forget(e.idle.takeAll(query{})); err != nil {
		fail("idle images: %v", err)
	}

	left := func() string {
		n, d := len(e.fronts.snapshot()), len(e.domains.snapshot())
		return fmt.Sprintf("%d fronts, %d domains, %d descriptors more, %d goroutines more", n, d,
			max(descriptors()-fds, 0), max(runtime.NumGoroutine()-goroutines, 0))
	}
	const none = "0 fronts, 0 domains, 0 descriptors more, 0 goroutines more"
	got := left()
	for n := 0; got != none && n < 500; n++ { // who gave up lets go in the background
		time.Sleep(20 * time.Millisecond)
		got = left()
	}
	if got != none {
		fail("left over: %s", got)
	}
	if entries, err := os.ReadDir(e.instance.path(mountsDir)); err != nil || len(entries) != 0 {
		fail("left over: mountpoints %v, %v", entries, err)
	}
	return problems
}

// once mounts an image, reads a file of it and lets go.
func once(ctx context.Context, e *Engine, store *nodecache.Store, m childMount) error {
	img, err := store.Acquire(ctx, m.Image, nodecache.AcquireOptions{})
	if errors.Is(err, nodecache.ErrNoSpace) {
		return nil // the others hold it
	}
	if err != nil {
		return err
	}
	defer img.Release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if rand.IntN(4) == 0 {
		time.AfterFunc(time.Duration(rand.IntN(5))*time.Millisecond, cancel)
	}
	f, err := e.Mount(ctx, Request{Domain: m.Domain, VolumeID: m.Volume, Image: img, Keep: m.Keep})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	name := rand.IntN(40)
	got, err := readRaw(filepath.Join(f.Path(), fmt.Sprint(name)))
	if err == nil {
		var n, i int
		if _, err = fmt.Sscanf(string(got), "file %d of image %d;", &i, &n); err == nil {
			image, _ := strconv.Atoi(m.Volume)
			if string(got) != stressData(image, name) {
				err = fmt.Errorf("file %d reads as file %d of image %d, %d bytes", name, i, n, len(got))
			}
		}
	}
	return errors.Join(err, f.Release(ctx))
}

// readRaw reads a file with bare system calls, as a server may of its own mounts:
// os.Open would have the kernel ask us for poll(2) while a thread holds the
// scheduler.
func readRaw(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var data []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			return data, err
		}
		data = append(data, buf[:n]...)
	}
}

func descriptors() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(list)
}
