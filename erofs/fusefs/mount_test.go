package fusefs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

func serve(t *testing.T) *Mount {
	t.Helper()
	images.Need(t, "root", os.Getuid() == 0)
	m, err := Serve(t.Context(), New(share.NewDomain("d")), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMountAndUnmount(t *testing.T) {
	m := serve(t)
	if err := m.Alive(); err != nil {
		t.Error(err)
	}
	if err := m.SetReadahead(m.Window()); err != nil {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.Dir(), &st); err != nil || st.Bsize != blockSize || st.Namelen != nameMax {
		t.Errorf("statfs: %v, %+v", err, st)
	}
	if err := unix.Access(m.Dir()+"/ab/nothing", unix.F_OK); err != unix.ENOENT {
		t.Errorf("a content that is not there: %v, want ENOENT", err)
	}
	if err := m.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.Alive() == nil {
		t.Error("an unmounted session says that it is alive")
	}
	if infos, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(infos, []byte(m.Dir())) {
		t.Error("it is still mounted")
	}
}

// A mount that somebody keeps busy is detached and its connection aborted, so that
// whoever waits for it gets an error.
func TestBusyMountIsAborted(t *testing.T) {
	m := serve(t)
	fd, err := unix.Open(m.Dir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Unmount(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("unmount: %v, want %v", err, context.DeadlineExceeded)
	}
	if m.Alive() == nil {
		t.Error("the session is still alive")
	}
	if err := unix.Faccessat(fd, "ab", unix.F_OK, 0); err != unix.ENOTCONN {
		t.Errorf("a lookup after the abort: %v, want ENOTCONN", err)
	}
	if infos, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(infos, []byte(m.Dir())) || bytes.Contains(infos, []byte("fusectl-")) {
		t.Error("something is still mounted")
	}
}

func TestServeWhereNothingCanBeMounted(t *testing.T) {
	images.Need(t, "root", os.Getuid() == 0)
	if _, err := Serve(t.Context(), New(share.NewDomain("d")), t.TempDir()+"/missing"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("error %v, want ENOENT", err)
	}
}
