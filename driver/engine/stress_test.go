package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

	left := func() string {
		n, d := len(e.fronts.snapshot()), len(e.domains.snapshot())
		return fmt.Sprintf("%d fronts, %d domains, %d descriptors more, %d goroutines more", n, d,
			max(descriptors()-fds, 0), max(runtime.NumGoroutine()-goroutines, 0))
	}
	const none = "0 fronts, 0 domains, 0 descriptors more, 0 goroutines more"
	for range 500 { // who gave up lets go in the background
		if left() == none {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got := left(); got != none {
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
	if err != nil {
		return err
	}
	defer img.Release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if rand.IntN(4) == 0 {
		time.AfterFunc(time.Duration(rand.IntN(5))*time.Millisecond, cancel)
	}
	f, err := e.Mount(ctx, Request{Domain: m.Domain, VolumeID: m.Volume, Image: img})
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
