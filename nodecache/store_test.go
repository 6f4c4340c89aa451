package nodecache

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	_, err := Open(Config{Dir: dir})
	wantError(t, err, ErrLocked, dir, "process "+strconv.Itoa(os.Getpid()))
	if err := os.Truncate(filepath.Join(dir, "lock"), 0); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Dir: dir})
	wantError(t, err, ErrLocked, "another process")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, Config{Dir: dir})
}

func TestOpenRefuses(t *testing.T) {
	file := writeFile(t, t.TempDir()+"/file", nil)
	for _, dir := range []string{"", file, file + "/below"} {
		if s, err := Open(Config{Dir: dir}); err == nil {
			_ = s.Close()
			t.Errorf("opened %q", dir)
		}
	}
	dir := t.TempDir()
	if err := os.Symlink(t.TempDir(), dir+"/refs"); err != nil {
		t.Fatal(err)
	}
	noLeaks(t, func(t *testing.T) {
		if s, err := Open(Config{Dir: dir}); err == nil {
			_ = s.Close()
			t.Error("followed a link out of the store")
		}
	})
}

func TestAfterClose(t *testing.T) {
	file := writeFile(t, t.TempDir()+"/image", []byte("content"))
	s := openStore(t, Config{})
	img := acquire(t, s, file, AcquireOptions{})
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantContent(t, img.Blob(), []byte("content"))
	_, err := s.Acquire(t.Context(), file, AcquireOptions{})
	wantError(t, err, ErrInterrupted)
	wantError(t, s.Authorize(t.Context(), "127.0.0.1:1/a", Credentials{}), ErrInterrupted)
	wantError(t, img.WriteSidecar("index", func(*os.File) error { t.Error("called"); return nil }), ErrInterrupted)
}

// TestRepair damages a store in all ways that Open repairs.
func TestRepair(t *testing.T) {
	p := pushImage(t, 1, 10_000)
	for name, c := range map[string]struct {
		damage func(dir, blob, ref string) error
		found  bool
	}{
		"leftovers in tmp": {func(dir, _, _ string) error {
			return errors.Join(os.WriteFile(dir+"/tmp/1", []byte("x"), 0o600), os.MkdirAll(dir+"/tmp/d/e", 0o700))
		}, true},
		"blob gone":       {func(_, blob, _ string) error { return os.Remove(blob) }, false},
		"blob truncated":  {func(_, blob, _ string) error { return os.Truncate(blob, 9_999) }, false},
		"blob grown":      {func(_, blob, _ string) error { return os.Truncate(blob, 10_001) }, false},
		"blob is a link":  {func(_, blob, _ string) error { return errors.Join(os.Remove(blob), os.Symlink("/etc/passwd", blob)) }, false},
		"record is empty": {func(_, _, ref string) error { return os.Truncate(ref, 0) }, false},
		"record is junk":  {func(_, _, ref string) error { return os.WriteFile(ref, []byte(`{"blob":"sha256:../../x"}`), 0o600) }, false},
		"record of another": {func(dir, _, ref string) error {
			return os.Rename(filepath.Join(dir, refFile(t, strings.TrimSuffix(p.ref, ":v1")+"@"+p.manifest.String())), ref)
		}, false},
		"tmp gone":   {func(dir, _, _ string) error { return os.Remove(dir + "/tmp") }, true},
		"wide modes": {func(dir, _, _ string) error { return os.Chmod(dir+"/blobs/sha256", 0o755) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, Config{Dir: dir})
			img := acquire(t, s, p.ref, AcquireOptions{})
			if err := img.WriteSidecar("index", func(f *os.File) error { _, err := f.WriteString("x"); return err }); err != nil {
				t.Fatal(err)
			}
			img.Release()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := c.damage(dir, img.Blob().Path(), filepath.Join(dir, refFile(t, p.ref))); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, Config{Dir: dir})
			again, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: Never})
			if c.found {
				if err != nil {
					t.Fatal(err)
				}
				wantContent(t, again.Blob(), p.content)
				again.Release()
			} else {
				wantError(t, err, ErrNotFound)
			}
			if strings.HasPrefix(name, "blob") {
				wantFiles(t, dir) // sidecar and records went with it
			}
			if st, err := os.Stat(dir + "/blobs/sha256"); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			again = acquire(t, s, p.ref, AcquireOptions{})
			wantContent(t, again.Blob(), p.content)
			want := filesOf(t, p)
			if _, err := os.Stat(again.SidecarPath("index")); err == nil {
				want = append(want, "blobs/sha256/"+p.blob.Encoded()+".index")
			}
			wantFiles(t, dir, want...)
		})
	}
}

// TestDamagedWhileOpen: a blob that lost bytes under our eyes is pulled again,
// and what was derived from it goes.
func TestDamagedWhileOpen(t *testing.T) {
	p := pushImage(t, 1, 10_000)
	s := openStore(t, Config{})
	img := acquire(t, s, p.ref, AcquireOptions{})
	if err := img.WriteSidecar("index", func(*os.File) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img.Blob().Path(), 5); err != nil {
		t.Fatal(err)
	}
	if _, err := img.Blob().ReadAt(make([]byte, 100), 4096); err == nil {
		t.Error("read beyond the end of a truncated blob")
	}
	_, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: Never})
	wantError(t, err, ErrNotFound)
	wantContent(t, acquire(t, s, p.ref, AcquireOptions{}).Blob(), p.content)
	if _, err := os.Stat(img.SidecarPath("index")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the sidecar is still there: %v", err)
	}
}

func TestSidecar(t *testing.T) {
	p := pushImage(t, 1, 1000)
	dir := t.TempDir()
	file := writeFile(t, t.TempDir()+"/image", []byte("content"))
	s := openStore(t, Config{Dir: dir})
	for _, ref := range []string{p.ref, file} {
		img := acquire(t, s, ref, AcquireOptions{})
		path := img.SidecarPath("index")
		if want := filepath.Join(dir, "paths", img.ID()+".index"); ref == file && path != want {
			t.Errorf("path %q, want %q", path, want)
		}
		if want := img.Blob().Path() + ".index"; ref == p.ref && path != want {
			t.Errorf("path %q, want %q", path, want)
		}
		write := func(text string, fail error) error {
			return img.WriteSidecar("index", func(f *os.File) error {
				if _, err := f.WriteString(text); err != nil {
					return err
				}
				return fail
			})
		}
		wantSidecar := func(want string) {
			t.Helper()
			if text, err := os.ReadFile(path); err != nil || string(text) != want {
				t.Errorf("%q, %v; want %q", text, err, want)
			}
		}
		oops := errors.New("oops")
		if err := write("half", oops); !errors.Is(err, oops) {
			t.Errorf("error %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a failed sidecar is there: %v", err)
		}
		if err := write("first", nil); err != nil {
			t.Fatal(err)
		}
		wantSidecar("first")
		if err := write("half", oops); !errors.Is(err, oops) {
			t.Errorf("error %v", err)
		}
		wantSidecar("first")
		if err := write("second", nil); err != nil {
			t.Fatal(err)
		}
		wantSidecar("second")
		for _, name := range []string{"", ".", "..", "a/b", "../x", "a.b", "A", strings.Repeat("x", 33)} {
			if err := img.WriteSidecar(name, func(*os.File) error { return nil }); err == nil {
				t.Errorf("the name %q was taken", name)
			}
		}
		if names, err := os.ReadDir(dir + "/tmp"); err != nil || len(names) != 0 {
			t.Errorf("left behind: %v, %v", names, err)
		}
	}
	// Both are found by the next owner.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir})
	for _, ref := range []string{p.ref, file} {
		if text, err := os.ReadFile(acquire(t, s, ref, AcquireOptions{Policy: Never}).SidecarPath("index")); err != nil || string(text) != "second" {
			t.Errorf("%s: %q, %v", ref, text, err)
		}
	}
}

// gate holds requests for blobs until it is opened.
type gate struct {
	open    chan struct{}
	arrived chan struct{}
	count   atomic.Int64
}

func newGate(front *proxy) *gate {
	g := &gate{open: make(chan struct{}), arrived: make(chan struct{}, 100)}
	front.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		g.count.Add(1)
		g.arrived <- struct{}{}
		select {
		case <-g.open:
			return false
		case <-r.Context().Done():
			return true
		}
	})
	return g
}

func (s *Store) waiters() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.flights {
		n += f.waiters
	}
	return n
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestOnePullForAll(t *testing.T) {
	p := pushImage(t, 1, 1<<20)
	_, path, _ := strings.Cut(p.ref, "/")
	noLeaks(t, func(t *testing.T) {
		front := newProxy(t, openRegistry(t))
		g := newGate(front)
		s := openStore(t, Config{})
		const callers = 16
		var wg sync.WaitGroup
		var giveUp []context.CancelFunc
		for i := range callers {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stays := i%4 != 0 // the first caller, whose request it is, goes
			if !stays {
				giveUp = append(giveUp, cancel)
			}
			wg.Go(func() {
				img, err := s.Acquire(ctx, front.host+"/"+path, AcquireOptions{})
				if !stays {
					if !errors.Is(err, context.Canceled) {
						t.Errorf("a caller that gave up: %v", err)
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				wantContent(t, img.Blob(), p.content)
				img.Release()
			})
			eventually(t, "it waits", func() bool { return s.waiters() == i+1 })
		}
		for _, cancel := range giveUp {
			cancel()
		}
		eventually(t, "only those that stay wait", func() bool { return s.waiters() == callers*3/4 })
		close(g.open)
		wg.Wait()
		if n := g.count.Load(); n != 1 {
			t.Errorf("%d requests for the blob, want 1", n)
		}
	})
}

func TestPullStopsWhenNobodyWaits(t *testing.T) {
	p := pushImage(t, 1, 1<<20)
	_, path, _ := strings.Cut(p.ref, "/")
	noLeaks(t, func(t *testing.T) {
		front := newProxy(t, openRegistry(t))
		g := newGate(front)
		s := openStore(t, Config{})
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			wg.Go(func() {
				_, err := s.Acquire(ctx, front.host+"/"+path, AcquireOptions{})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("error %v", err)
				}
			})
		}
		<-g.arrived
		eventually(t, "three wait", func() bool { return s.waiters() == 3 })
		cancel()
		wg.Wait()
		eventually(t, "its file is gone", func() bool { return len(filesBelow(t, s.dir.root)) == 0 })
		close(g.open)
		wantContent(t, acquire(t, s, front.host+"/"+path, AcquireOptions{}).Blob(), p.content)
	})
}

func TestCloseInterruptsPulls(t *testing.T) {
	p := pushImage(t, 1, 1<<20)
	_, path, _ := strings.Cut(p.ref, "/")
	noLeaks(t, func(t *testing.T) {
		front := newProxy(t, openRegistry(t))
		for _, where := range []string{"/blobs/", "/manifests/"} {
			arrived := make(chan struct{}, 10)
			front.set(onPath(where, func(_ http.ResponseWriter, r *http.Request) {
				arrived <- struct{}{}
				<-r.Context().Done()
			}))
			s := openStore(t, Config{})
			failed := make(chan error)
			go func() {
				_, err := s.Acquire(t.Context(), front.host+"/"+path, AcquireOptions{})
				failed <- err
			}()
			<-arrived
			go func() { _ = s.Close() }()
			wantError(t, <-failed, ErrInterrupted)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "nothing is left", func() bool { return len(filesBelow(t, s.dir.root)) == 0 })
		}
	})
}

// TestAnothersFailure: who waits for a pull that fails by another's registry
// pulls from their own.
func TestAnothersFailure(t *testing.T) {
	content := randomBytes(1, 100_000)
	host := openRegistry(t)
	newPusher(t, host, "test/one", auth.EmptyCredential).image("v1", erofsLayer, content)
	newPusher(t, host, "test/two", auth.EmptyCredential).image("v1", erofsLayer, content)
	front := newProxy(t, host)
	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	front.set(onPath("/test/one/blobs/", func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		w.WriteHeader(http.StatusForbidden)
	}))
	s := openStore(t, Config{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := s.Acquire(t.Context(), front.host+"/test/one:v1", AcquireOptions{})
		wantError(t, err, ErrUnauthorized)
	})
	<-arrived
	wg.Go(func() {
		img, err := s.Acquire(t.Context(), front.host+"/test/two:v1", AcquireOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		wantContent(t, img.Blob(), content)
		img.Release()
	})
	eventually(t, "both wait", func() bool { return s.waiters() == 2 })
	close(release)
	wg.Wait()
}

// TestManyImages runs everything at once.
func TestManyImages(t *testing.T) {
	push := newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
	var all []pushed
	for i := range 6 {
		all = append(all, push.image("v"+strconv.Itoa(i), erofsLayer, randomBytes(uint64(i%4), 200_000)))
	}
	noLeaks(t, func(t *testing.T) {
		s := openStore(t, Config{})
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 12 {
					p := all[(g+i)%len(all)]
					img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{Policy: []PullPolicy{IfNotPresent, Always}[i%2]})
					if err != nil {
						t.Error(err)
						return
					}
					wantContent(t, img.Blob(), p.content)
					if err := img.WriteSidecar("index", func(f *os.File) error { _, err := f.WriteString(img.ID()); return err }); err != nil {
						t.Error(err)
					}
					img.Release()
					runtime.Gosched()
				}
			})
		}
		wg.Wait()
		if got, want := len(filesBelow(t, s.dir.root)), 4*2+6+4; got != want {
			t.Errorf("%d files, want %d: %q", got, want, filesBelow(t, s.dir.root))
		}
	})
}
