package nodecache

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// smallDisks mount file systems of 16 MiB.
func smallDisks(t *testing.T) map[string]string {
	t.Helper()
	needRoot(t)
	disks := map[string]string{}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	disks["tmpfs"] = dir
	mkfs, err := exec.LookPath("mkfs.ext4")
	images.Need(t, "mkfs.ext4", err == nil)
	image := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal", image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ext4 := t.TempDir()
	out, err := exec.Command("mount", "-o", "loop", image, ext4).CombinedOutput()
	images.Need(t, "loop devices: "+string(out), err == nil)
	t.Cleanup(func() { _ = exec.Command("umount", ext4).Run() })
	disks["ext4"] = ext4
	return disks
}

func TestFullDisk(t *testing.T) {
	push := newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
	big, small := push.image("v1", erofsLayer, randomBytes(1, 20<<20)), push.image("v2", erofsLayer, randomBytes(2, 12<<20))
	disks := smallDisks(t)
	for name, mount := range disks {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(mount, "store")
			front := newProxy(t, openRegistry(t))
			_, bigPath, _ := strings.Cut(big.ref, "/")
			_, smallPath, _ := strings.Cut(small.ref, "/")
			s := openStore(t, Config{Dir: dir, ReserveBytes: -1})
			_, err := s.Acquire(t.Context(), front.host+"/"+bigPath, AcquireOptions{})
			wantError(t, err, ErrNoSpace, strconv.Itoa(20<<20), "bytes", "free", dir, front.host)
			if n := len(front.seen("/blobs/")); n != 0 {
				t.Errorf("%d requests for a blob that can't fit", n)
			}
			wantFiles(t, dir)
			img := acquire(t, s, front.host+"/"+smallPath, AcquireOptions{})
			wantContent(t, img.Blob(), small.content)
			// A sidecar for which there is no room.
			err = img.WriteSidecar("index", func(f *os.File) error {
				for {
					if _, err := f.Write(make([]byte, 1<<20)); err != nil {
						return err
					}
				}
			})
			wantError(t, err, ErrNoSpace, "index", dir)
			if names, err := os.ReadDir(s.dir.tmp); err != nil || len(names) != 0 {
				t.Errorf("left behind: %v, %v", names, err)
			}
			if err := img.WriteSidecar("index", func(f *os.File) error { _, err := f.WriteString("fits"); return err }); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDiskFillsUp has another process take the room between the look and the
// end of the pull.
func TestDiskFillsUp(t *testing.T) {
	p := pushImage(t, 1, 12<<20)
	_, path, _ := strings.Cut(p.ref, "/")
	mount := smallDisks(t)["tmpfs"]
	dir := filepath.Join(mount, "store")
	front := newProxy(t, openRegistry(t))
	fill := sync.OnceFunc(func() {
		f, err := os.Create(mount + "/other")
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = f.Close() }()
		for {
			if _, err := f.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	// What was allocated is ours: the pull succeeds on a disk that fills up.
	front.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			fill()
		}
		return false
	})
	s := openStore(t, Config{Dir: dir, ReserveBytes: -1})
	_, err := s.Acquire(t.Context(), front.host+"/"+path, AcquireOptions{})
	wantError(t, err, ErrNoSpace, "remember") // the blob is there, its record had no room
	if !s.blobPresent(p.blob, int64(len(p.content))) {
		t.Errorf("files in the store: %q", filesBelow(t, dir))
	}
	if err := os.Remove(mount + "/other"); err != nil {
		t.Fatal(err)
	}
	front.set(nil)
	wantContent(t, acquire(t, s, front.host+"/"+path, AcquireOptions{}).Blob(), p.content)
	if n := len(front.seen("/blobs/")); n != 0 {
		t.Errorf("the blob was pulled again, %d requests", n)
	}
}

// TestWriteRunsOutOfSpace is a file system without allocation in advance.
func TestWriteRunsOutOfSpace(t *testing.T) {
	p := pushImage(t, 1, 5<<20)
	var writes atomic.Int64
	s := openStoreOn(t, Config{}, disk{before: func(step, path string) error {
		if step == "write" {
			if writes.Add(1) == 3 {
				return &os.PathError{Op: "write", Path: path, Err: unix.ENOSPC}
			}
		}
		return nil
	}})
	_, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
	wantError(t, err, ErrNoSpace, p.blob.String())
	wantFiles(t, s.dir.root)
}

func TestReserve(t *testing.T) {
	p := pushImage(t, 1, 1000)
	mount := smallDisks(t)["tmpfs"]
	for i, c := range []struct {
		reserve int64
		fits    bool
	}{{-1, true}, {1 << 20, true}, {1 << 40, false}} {
		s := openStore(t, Config{Dir: fmt.Sprintf("%s/%d", mount, i), ReserveBytes: c.reserve})
		img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
		if c.fits {
			if err != nil {
				t.Errorf("reserve %d: %v", c.reserve, err)
				continue
			}
			img.Release()
			continue
		}
		wantError(t, err, ErrNoSpace, "needs 1000 bytes", strconv.FormatInt(c.reserve, 10))
	}
	for total, want := range map[int64]int64{0: 0, 16 << 20: 167772, 1 << 40: maxReserve} {
		if got := (&Store{}).keepFree(total); got != want {
			t.Errorf("of %d bytes %d are kept free, want %d", total, got, want)
		}
	}
}
