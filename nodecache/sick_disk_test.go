package nodecache

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// fill takes all of a disk but so many bytes, until the returned function is called.
func fill(t *testing.T, mount string, leave int64) (empty func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(mount, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for unit := int64(mebibyte); unit >= 512; unit /= 2 {
		for {
			var st unix.Statfs_t
			if err := unix.Statfs(mount, &st); err != nil {
				t.Fatal(err)
			}
			if int64(st.Bavail)*st.Bsize-unit < leave {
				break
			}
			if _, err := f.Write(make([]byte, unit)); err != nil {
				break
			}
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskFullAnywhere has the disk end at every 4 KiB of a pull, its records and
// sidecars: each says so, leaves nothing half, and goes on when there is room again.
func TestDiskFullAnywhere(t *testing.T) {
	const size = 60_000
	p := pushImage(t, 1, size)
	for name, mount := range smallDisks(t) {
		t.Run(name, func(t *testing.T) {
			failed, done := 0, 0
			for left := int64(0); left < size+100_000; left += 4096 {
				dir := filepath.Join(mount, strconv.FormatInt(left, 10))
				empty := fill(t, mount, left)
				err := scenario(dir, p.ref, disk{})
				switch {
				case err == nil:
					done++
				case errors.Is(err, ErrNoSpace) || errors.Is(err, unix.ENOSPC):
					failed++
				default:
					t.Errorf("with %d bytes left: %v", left, err)
				}
				if names, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(names) != 0 {
					t.Errorf("with %d bytes left: %q was left behind", left, names)
				}
				empty()
				wantWhole(t, dir, p, err == nil)
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			if failed < 10 || done < 3 {
				t.Errorf("failed %d times, done %d times", failed, done)
			}
		})
	}
}

// On a disk that is full, or became read-only, what is there can be used, also by a
// process that starts then.
func TestDiskThatTakesNothing(t *testing.T) {
	list := pushImages(t, 2, 100_000)
	p, absent := list[0], list[1]
	for name, mount := range smallDisks(t) {
		for _, why := range []string{"full", "read-only"} {
			t.Run(name+" "+why, func(t *testing.T) {
				dir := filepath.Join(mount, why)
				s := openStore(t, Config{Dir: dir})
				pullOnly(t, s, p)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				// What a crash leaves, and a release that had no pins.
				stray := writeFile(t, filepath.Join(dir, "tmp", "stray"), []byte("x"))
				if err := os.Remove(filepath.Join(dir, "pins")); err != nil {
					t.Fatal(err)
				}
				wantErr := error(unix.ENOSPC)
				if why == "full" {
					defer fill(t, mount, 0)()
				} else {
					wantErr = unix.EROFS
					remount(t, mount, unix.MS_RDONLY)
					defer remount(t, mount, 0)
				}
				s = openStore(t, Config{Dir: dir})
				img := acquire(t, s, p.ref, AcquireOptions{Policy: Never})
				wantContent(t, img.Blob(), p.content)
				_, err := s.Acquire(t.Context(), absent.ref, AcquireOptions{})
				if !errors.Is(err, wantErr) && !errors.Is(err, ErrNoSpace) {
					t.Errorf("a pull: %v", err)
				}
				if err := img.WriteSidecar("index", func(f *os.File) error { _, err := f.Write(make([]byte, 64<<10)); return err }); !errors.Is(err, wantErr) {
					t.Errorf("a sidecar: %v", err)
				}
				c, err := s.List()
				if err != nil || len(c.Images) != 1 || c.Blobs != 1 {
					t.Errorf("%+v, %v", c, err)
				}
				img.Release()
				freed, err := s.Evict(0)
				if why == "full" && (err != nil || freed.Images != 1) || why == "read-only" && !errors.Is(err, unix.EROFS) {
					t.Errorf("evict: %+v, %v", freed, err)
				}
				if _, err := os.Stat(stray); (err == nil) != (why == "read-only") {
					t.Errorf("what a crash left: %v", err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if why == "read-only" {
					_, err := Open(Config{Dir: filepath.Join(mount, "none")})
					if !errors.Is(err, unix.EROFS) {
						t.Errorf("no store on a read-only disk: %v", err)
					}
				}
			})
		}
	}
	empty := t.TempDir()
	needRoot(t)
	if err := unix.Mount("tmpfs", empty, "tmpfs", unix.MS_RDONLY, "size=1m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(empty, unix.MNT_DETACH) }()
	if _, err := Open(Config{Dir: empty}); err == nil || !errors.Is(err, unix.EROFS) {
		t.Errorf("an empty read-only directory: %v", err)
	}
}

func remount(t *testing.T, mount string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

// TestQuota is a quota of the file system, of which statfs(2) does not tell.
func TestQuota(t *testing.T) {
	list := pushImages(t, 3, mebibyte)
	s := openStoreOn(t, Config{}, disk{before: func(step, path string) error {
		n := 0
		if step == "allocate" {
			_ = eachFile(filepath.Dir(filepath.Dir(path)), func(_ string, info os.FileInfo) {
				if info.Size() >= mebibyte {
					n++
				}
			})
		}
		if n >= 2 {
			return &os.PathError{Op: "fallocate", Path: path, Err: unix.EDQUOT}
		}
		return nil
	}})
	first := acquire(t, s, list[0].ref, AcquireOptions{})
	pullOnly(t, s, list[1])
	pullOnly(t, s, list[2]) // in place of the second
	wantStored(t, s, list[0], list[2])
	second := acquire(t, s, list[2].ref, AcquireOptions{})
	_, err := s.Acquire(t.Context(), list[1].ref, AcquireOptions{})
	wantError(t, err, ErrNoSpace, "quota exceeded")
	wantContent(t, first.Blob(), list[0].content)
	second.Release()
}
