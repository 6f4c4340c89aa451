package nodecache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestInPlace(t *testing.T) {
	dir := t.TempDir()
	primary, device := randomBytes(1, 50_000), randomBytes(2, 70_000)
	a, d := writeFile(t, dir+"/a.erofs", primary), writeFile(t, dir+"/d.blob", device)
	s := openStore(t, Config{})
	img := acquire(t, s, a, AcquireOptions{})
	if !strings.HasPrefix(img.ID(), "file-") || len(img.ID()) != 69 || img.Digest() != "" || img.Reference() != a || img.Blob().Path() != a {
		t.Errorf("ID %q, digest %q, reference %q, path %q", img.ID(), img.Digest(), img.Reference(), img.Blob().Path())
	}
	wantContent(t, img.Blob(), primary)
	if len(img.Devices()) != 0 {
		t.Errorf("%d devices", len(img.Devices()))
	}
	both := acquire(t, s, "file://"+a+",device="+d, AcquireOptions{Policy: Never})
	wantContent(t, both.Blob(), primary)
	if len(both.Devices()) != 1 {
		t.Fatalf("%d devices", len(both.Devices()))
	}
	wantContent(t, both.Devices()[0], device)
	swapped := acquire(t, s, d+",device="+a, AcquireOptions{})
	if img.ID() == both.ID() || both.ID() == swapped.ID() {
		t.Errorf("IDs %q, %q and %q", img.ID(), both.ID(), swapped.ID())
	}
	if err := s.Authorize(t.Context(), a, Credentials{}); err != nil {
		t.Errorf("authorize a path: %v", err)
	}
	wantFiles(t, s.dir.root) // nothing is copied
}

func TestInPlaceIdentity(t *testing.T) {
	dir := t.TempDir()
	path := writeFile(t, dir+"/a", randomBytes(1, 5000))
	link := dir + "/link"
	if err := os.Symlink("a", link); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Config{})
	id := func(path string) string {
		img := acquire(t, s, path, AcquireOptions{})
		defer img.Release()
		return img.ID()
	}
	first := id(path)
	if id(path) != first || id(link) != first {
		t.Error("the same file has several IDs")
	}
	for name, change := range map[string]func() error{
		"mtime":   func() error { return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)) },
		"ctime":   func() error { time.Sleep(10 * time.Millisecond); return os.Chmod(path, 0o444) },
		"size":    func() error { return os.Truncate(path, 4000) },
		"replace": func() error { return errors.Join(os.WriteFile(path+"2", nil, 0o600), os.Rename(path+"2", path)) },
	} {
		before := id(path)
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if id(path) == before {
			t.Errorf("%s: the ID did not change", name)
		}
	}
}

func TestAllowedPaths(t *testing.T) {
	dir := t.TempDir()
	inside := writeFile(t, dir+"/ok/sub/in", []byte("inside"))
	outside := writeFile(t, dir+"/no/out", []byte("outside"))
	sibling := writeFile(t, dir+"/ok-not/x", []byte("sibling"))
	for link, to := range map[string]string{
		dir + "/ok/escape": outside,
		dir + "/ok/up":     "..",
		dir + "/no/enter":  inside,
		dir + "/alias":     dir + "/ok",
		dir + "/ok/loop":   "loop",
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	ok, alias := []string{dir + "/ok"}, []string{dir + "/missing", dir + "/alias/"}
	for _, c := range []struct {
		name, path string
		allowed    []string
		want       error
	}{
		{"inside", inside, ok, nil},
		{"through dots", dir + "/no/../ok/sub/in", ok, nil},
		{"a link from outside to inside", dir + "/no/enter", ok, nil},
		{"the directory is a link", inside, alias, nil},
		{"through the directory's link", dir + "/alias/sub/in", ok, nil},
		{"below /", outside, []string{"/"}, nil},
		{"any", outside, nil, nil},
		{"outside", outside, ok, ErrNotAllowed},
		{"a link to outside", dir + "/ok/escape", ok, ErrNotAllowed},
		{"dots to outside", dir + "/ok/../no/out", ok, ErrNotAllowed},
		{"a link up", dir + "/ok/up/no/out", ok, ErrNotAllowed},
		{"a longer name", sibling, ok, ErrNotAllowed},
		{"none", inside, []string{}, ErrNotAllowed},
		{"a missing file outside", dir + "/no/missing", ok, ErrNotAllowed},
		{"a loop", dir + "/ok/loop", ok, ErrNotAllowed},
		{"a missing file", dir + "/ok/missing", ok, ErrNotFound},
		{"below a file", inside + "/x", ok, ErrNotFound},
		{"a process's root", "/proc/self/root" + inside, ok, ErrNotAllowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, Config{AllowedPaths: c.allowed})
			img, err := s.Acquire(t.Context(), c.path, AcquireOptions{})
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				img.Release()
				return
			}
			wantError(t, err, c.want, c.path)
			if errors.Is(c.want, ErrNotAllowed) {
				wantError(t, err, c.want, c.allowed...)
			}
			// As a device as well.
			other := writeFile(t, dir+"/ok/primary", []byte("p"))
			if len(c.allowed) > 0 {
				_, err = s.Acquire(t.Context(), other+",device="+c.path, AcquireOptions{})
				wantError(t, err, c.want, c.path)
			}
		})
	}
}

func TestAllowedPathsMustBeAbsolute(t *testing.T) {
	s, err := Open(Config{Dir: t.TempDir(), AllowedPaths: []string{"images"}})
	if err == nil {
		_ = s.Close()
		t.Fatal("a relative allowed path was taken")
	}
}

// TestAllowedPathsRace flips a link between a file inside and one outside while
// it is used: the bytes of the one outside must never come out.
func TestAllowedPathsRace(t *testing.T) {
	dir := t.TempDir()
	in, out := writeFile(t, dir+"/ok/in", []byte("inside")), writeFile(t, dir+"/no/out", []byte("secret"))
	link := dir + "/ok/link"
	if err := os.Symlink(in, link); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Config{AllowedPaths: []string{dir + "/ok"}})
	stop := make(chan struct{})
	var flipper sync.WaitGroup
	flipper.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next := dir + "/next" + strconv.Itoa(i)
			if err := errors.Join(os.Symlink([]string{in, out}[i%2], next), os.Rename(next, link)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var served, refused int
	for range 2000 {
		img, err := s.Acquire(t.Context(), link, AcquireOptions{})
		if err != nil {
			wantError(t, err, ErrNotAllowed)
			refused++
			continue
		}
		served++
		p := make([]byte, 6)
		if _, err := img.Blob().ReadAt(p, 0); err != nil || !bytes.Equal(p, []byte("inside")) {
			t.Fatalf("%q, %v", p, err)
		}
		img.Release()
	}
	close(stop)
	flipper.Wait()
	if served == 0 || refused == 0 {
		t.Logf("served %d, refused %d: the race was not met", served, refused)
	}
}

func TestInPlaceOnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(sock) }()
	if err := unix.Bind(sock, &unix.SockaddrUnix{Name: dir + "/socket"}); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Config{})
	for path, kind := range map[string]string{
		dir + "/fifo":   "FIFO",
		dir + "/socket": "socket",
		dir:             "directory",
		"/dev/zero":     "character device",
	} {
		done := make(chan error, 1)
		go func() {
			_, err := s.Acquire(t.Context(), path, AcquireOptions{})
			done <- err
		}()
		select {
		case err := <-done:
			wantError(t, err, ErrUnsupportedImage, path, kind)
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: blocked", path)
		}
	}
}

func TestInPlaceLeaksNothing(t *testing.T) {
	dir := t.TempDir()
	a := writeFile(t, dir+"/a", randomBytes(1, 5000))
	noLeaks(t, func(t *testing.T) {
		s := openStore(t, Config{AllowedPaths: []string{dir}})
		for range 20 {
			img, err := s.Acquire(t.Context(), a+",device="+a, AcquireOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := img.Blob().ReadAt(make([]byte, 10), 4995); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			img.Release()
			img.Release()
			if _, err := img.Blob().ReadAt(make([]byte, 10), 0); !errors.Is(err, os.ErrClosed) {
				t.Errorf("read after release: %v", err)
			}
			_, err = s.Acquire(t.Context(), a+",device="+filepath.Join(dir, "missing"), AcquireOptions{})
			wantError(t, err, ErrNotFound)
			_, err = s.Acquire(t.Context(), a+",device=/etc/passwd", AcquireOptions{})
			wantError(t, err, ErrNotAllowed)
		}
	})
}
