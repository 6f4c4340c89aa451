package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// mountSilentFUSE mounts a FUSE file system whose server never answers. Until
// hangUp every look at it waits; after it the mount is dead: ENOTCONN.
func mountSilentFUSE(t *testing.T, dir string) (hangUp func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	images.Need(t, "/dev/fuse", err == nil)
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	if err := unix.Mount("silent", dir, "fuse", 0, options); err != nil {
		t.Fatal(err)
	}
	closed := false
	hangUp = func() {
		if !closed {
			closed = true
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(hangUp)
	return hangUp
}

func TestDeadMountAtTarget(t *testing.T) {
	p := newPlugin(t)
	p.mustStage(t, "v")
	if err := os.Mkdir(p.path("pod"), 0o700); err != nil {
		t.Fatal(err)
	}
	mountSilentFUSE(t, p.path("pod"))()
	if _, err := os.Lstat(p.path("pod")); !errors.Is(err, syscall.ENOTCONN) {
		t.Fatalf("the mount is not dead: %v", err)
	}
	p.mustPublish(t, "v", "pod")
	p.checkContent(t, "pod", "content of a")
}

func TestDeadMountIsUnpublished(t *testing.T) {
	p := newPlugin(t)
	if err := os.Mkdir(p.path("pod"), 0o700); err != nil {
		t.Fatal(err)
	}
	mountSilentFUSE(t, p.path("pod"))()
	// Somebody uses it, so that it can only be detached.
	fd, err := unix.Open(p.path("pod"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
	}
	if err := p.unpublish("v", "pod"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(p.path("pod")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target path is still there: %v", err)
	}
	p.checkClean(t)
}

// TestHungMountBlocksNobody: a mount over the volume's whose server is silent
// makes health abnormal and calls fail in time, and can be unpublished.
func TestHungMountBlocksNobody(t *testing.T) {
	p := newPlugin(t)
	p.manager.places.prober.timeout = 100 * time.Millisecond
	p.mustStage(t, "v")
	p.mustPublish(t, "v", "pod")
	hangUp := mountSilentFUSE(t, p.path("pod"))
	start := time.Now()
	if abnormal, message := p.oldCondition(t, "v", "pod"); !abnormal {
		t.Errorf("condition: normal, %q", message)
	}
	_, err := p.NodePublishVolume(context.Background(), p.publishRequest("v", "pod"))
	wantCode(t, err, codes.FailedPrecondition, "silent")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a hung mount held calls for %s", took)
	}
	if err := p.unpublish("v", "pod"); err != nil {
		t.Error(err)
	}
	hangUp()
	if err := p.unstage("v"); err != nil {
		t.Error(err)
	}
	p.checkClean(t)
}
