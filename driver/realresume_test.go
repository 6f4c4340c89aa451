package driver

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// startHolder serves a holder until stop, or the test's end.
func startHolder(t *testing.T, socket string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- holder.Serve(ctx, socket, t.Logf) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("holder: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// mountIDs are the mounts below a directory, each with its id in this mount namespace.
func mountIDs(t *testing.T, dir string) (list []string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	must(t, err)
	for _, i := range infos {
		list = append(list, fmt.Sprintf("%d %s", i.ID, i.Mountpoint))
	}
	slices.Sort(list)
	return list
}

// readAgainAndAgain reads a file, each time from the server, until stop is closed.
func readAgainAndAgain(path string, want []byte, stop <-chan struct{}) error {
	buf := make([]byte, 1<<20)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECT, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		n, err := unix.Read(fd, buf)
		_ = unix.Close(fd)
		if err != nil || !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("read %s: %d bytes, want %d, %w", path, n, len(want), err)
		}
	}
}

// TestRealResume: a plugin with a holder is killed, and ended, under readers, and the
// next one goes on with its mounts: none is another one, and no read fails.
func TestRealResume(t *testing.T) {
	tree := images.TinyTree(t)
	big := bytes.Repeat([]byte("big file "), 50_000)
	must(t, os.WriteFile(filepath.Join(tree, "big"), big, 0o644))
	for _, front := range frontKinds {
		t.Run(front, func(t *testing.T) {
			n := newNode(t, front)
			n.config.Holder = filepath.Join(n.dir, "holder.sock")
			startHolder(t, n.config.Holder)
			image := n.image(t, "a.erofs", tree)
			want := images.KernelMount(t, image)
			ch := n.start(t)
			must(t, n.stage(ch, "one", image, "domain_id=d"))
			must(t, n.publish(ch, "one", "pod", image, "domain_id=d"))
			must(t, n.stage(ch, "two", image, "domain_id=d"))
			must(t, n.inline(ch, "csi-1", "inline", "team", image))
			places := []string{"show-one", "pod", "show-two", "inline"}
			mounts := mountIDs(t, filepath.Join(n.dir, "kubelet"))
			if len(mounts) != len(places) {
				t.Fatalf("mounts: %q", mounts)
			}
			stop, readers := make(chan struct{}), make(chan error)
			for _, place := range places {
				go func() { readers <- readAgainAndAgain(filepath.Join(n.path(place), "big"), big, stop) }()
			}
			for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
				time.Sleep(50 * time.Millisecond)
				ch.end(t, signal)
				ch = n.start(t)
				if now := mountIDs(t, filepath.Join(n.dir, "kubelet")); !slices.Equal(now, mounts) {
					t.Errorf("mounts after restart %d: %q, were %q", i, now, mounts)
				}
				for _, place := range places {
					images.CompareTrees(t, want, n.path(place), images.CompareOptions{})
				}
			}
			close(stop)
			for range places {
				if err := <-readers; err != nil {
					t.Error(err)
				}
			}
			must(t, n.publish(ch, "two", "late", image, "domain_id=d"))
			images.CompareTrees(t, want, n.path("late"), images.CompareOptions{})
			must(t, n.unpublish(ch, "two", "late"))
			must(t, n.unpublish(ch, "one", "pod"))
			must(t, n.unstage(ch, "one"))
			must(t, n.unstage(ch, "two"))
			must(t, n.unpublish(ch, "csi-1", "inline"))
			if mounts := n.volumeMounts(t); len(mounts) != 0 {
				t.Errorf("mounts are left: %q", mounts)
			}
			ch.end(t, syscall.SIGTERM)
		})
	}
}

// TestRealLostHolder: plugin and holder end at once, and what was mounted is mounted anew.
// A plugin whose holder does not come starts all the same, and has one when it does.
func TestRealLostHolder(t *testing.T) {
	n := newNode(t, "auto")
	n.config.Holder = filepath.Join(n.dir, "holder.sock")
	stop := startHolder(t, n.config.Holder)
	tree := images.TinyTree(t)
	image := n.image(t, "a.erofs", tree)
	want := images.KernelMount(t, image)
	ch := n.start(t)
	must(t, n.stage(ch, "v", image, "domain_id=d"))
	ch.end(t, syscall.SIGKILL)
	stop()
	_ = startHolder(t, n.config.Holder)
	ch = n.start(t)
	images.CompareTrees(t, want, n.path("show-v"), images.CompareOptions{})
	mounts := mountIDs(t, filepath.Join(n.dir, "kubelet"))
	ch.end(t, syscall.SIGKILL)
	ch = n.start(t)
	if now := mountIDs(t, filepath.Join(n.dir, "kubelet")); !slices.Equal(now, mounts) {
		t.Errorf("mounts %q, were %q", now, mounts)
	}
	images.CompareTrees(t, want, n.path("show-v"), images.CompareOptions{})
	// The image can't be had any more: the volume is broken, not hung, until it can.
	ch.end(t, syscall.SIGKILL)
	allowed := n.config.AllowedPaths
	n.config.AllowedPaths = nil
	ch = n.start(t)
	if fd, err := unix.Open(filepath.Join(n.path("show-v"), "hello"), unix.O_RDONLY|unix.O_DIRECT, 0); err == nil {
		if got, err := unix.Read(fd, make([]byte, 4096)); err == nil {
			t.Errorf("read %d bytes of an image that is not there", got)
		}
		_ = unix.Close(fd)
	}
	wantCode(t, n.publish(ch, "v", "pod", image, "domain_id=d"), codes.PermissionDenied)
	ch.end(t, syscall.SIGKILL)
	n.config.AllowedPaths = allowed
	ch = n.start(t)
	must(t, n.publish(ch, "v", "pod", image, "domain_id=d"))
	images.CompareTrees(t, want, n.path("pod"), images.CompareOptions{})
	must(t, n.unpublish(ch, "v", "pod"))
	must(t, n.unstage(ch, "v"))
	if mounts := n.volumeMounts(t); len(mounts) != 0 {
		t.Errorf("mounts are left: %q", mounts)
	}
	ch.end(t, syscall.SIGTERM)
}
