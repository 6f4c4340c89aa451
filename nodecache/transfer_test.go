package nodecache

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// partsOf counts the chunks that the state of a partial blob says are there.
func partsOf(t *testing.T, dir string, p pushed) (n int) {
	t.Helper()
	s := &Store{dir: newLayout(dir)}
	data, state, sums, err := s.findPartial(p.blob, int64(len(p.content)))
	if err != nil {
		t.Fatal(err)
	}
	closeAll(data, state)
	for _, sum := range sums {
		if sum != 0 {
			n++
		}
	}
	return n
}

// through is the reference of what was pushed, through a proxy.
func (p *proxy) through(pushed pushed) string {
	_, path, _ := strings.Cut(pushed.ref, "/")
	return p.host + "/" + path
}

// TestParallel pulls with several requests under way at once, which together ask for
// each byte once.
func TestParallel(t *testing.T) {
	const size = 24<<20 + 12345
	p := pushImage(t, 1, size)
	front := newProxy(t, openRegistry(t))
	var mu sync.Mutex
	now, most := 0, 0
	front.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(50 * time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
		}
		return false
	})
	s := openStore(t, Config{})
	wantContent(t, acquire(t, s, front.through(p), AcquireOptions{}).Blob(), p.content)
	if n := front.blobBytes.Load(); n != size {
		t.Errorf("%d bytes were sent of a blob of %d", n, size)
	}
	if most < 2 || most > maxStreams {
		t.Errorf("at most %d requests at once", most)
	}
	if names := filesBelow(t, filepath.Join(s.dir.root, "partial")); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

// TestKilledResumes kills the process in the middle of a pull. The next one asks for
// nothing that is there.
func TestKilledResumes(t *testing.T) {
	const size = 24<<20 + 12345
	p := pushImage(t, 1, size)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d\n%s\n%s\n%s", crashEnv, 100, "pull", dir, p.ref))
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("it was not killed\n%s", out)
	}
	have := partsOf(t, dir, p)
	if have < 30 || have > 60 {
		t.Fatalf("%d chunks are there", have)
	}
	front := newProxy(t, openRegistry(t))
	s := openStore(t, Config{Dir: dir})
	wantContent(t, acquire(t, s, front.through(p), AcquireOptions{}).Blob(), p.content)
	if n := front.blobBytes.Load(); n > size-int64(have)*chunkSize+chunkSize {
		t.Errorf("%d bytes were sent, %d chunks of %d bytes were there", n, have, size)
	}
}

// cutStore pulls p and breaks off in the middle, for good.
func cutStore(t *testing.T, dir string, p pushed) {
	t.Helper()
	front := newProxy(t, openRegistry(t))
	s := openStore(t, Config{Dir: dir})
	front.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && len(front.seen("/blobs/")) > 3 {
			for front.blobBytes.Load() < 11<<20 && r.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	})
	_, err := s.Acquire(t.Context(), front.through(p), AcquireOptions{})
	wantError(t, err, ErrUnavailable)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedPartial damages what is left of a pull in all ways that a disk can. What is
// not as it was is fetched again, and nothing else.
func TestDamagedPartial(t *testing.T) {
	const size = 24<<20 + 12345
	p := pushImage(t, 1, size)
	whole := t.TempDir()
	cutStore(t, whole, p)
	have := partsOf(t, whole, p)
	if have < 4 {
		t.Fatalf("%d chunks are there", have)
	}
	var first int // a chunk that is there
	open := func(t *testing.T, path string) *os.File {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	for name, c := range map[string]struct {
		damage func(t *testing.T, data, state string) error
		lost   int // chunks, -1: all
	}{
		"nothing": {func(*testing.T, string, string) error { return nil }, 0},
		"a byte": {func(t *testing.T, data, _ string) error {
			_, err := open(t, data).WriteAt([]byte{p.content[7] ^ 1}, 7)
			return err
		}, 1},
		"a chunk reads zeros": {func(t *testing.T, data, _ string) error {
			return unix.Fallocate(int(open(t, data).Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(first)*chunkSize, chunkSize)
		}, 1},
		"a record": {func(t *testing.T, _, state string) error {
			_, err := open(t, state).WriteAt([]byte{1, 2, 3}, stateHeader+stateRecord*int64(first))
			return err
		}, 1},
		"a record of a chunk that is not there": {func(t *testing.T, _, state string) error {
			f, last := open(t, state), chunksOf(size)-1
			var r [stateRecord]byte
			copy(r[:], "\x01\x02\x03\x04")
			sum := uint32(0x04030201)
			check := recordCheck(last, sum)
			r[4], r[5], r[6], r[7] = byte(check), byte(check>>8), byte(check>>16), byte(check>>24)
			_, err := f.WriteAt(r[:], stateHeader+stateRecord*int64(last))
			return err
		}, 0},
		"the state is cut off": {func(_ *testing.T, _, state string) error {
			return os.Truncate(state, stateHeader+stateRecord*2+3)
		}, have - 2},
		"the state is empty":    {func(_ *testing.T, _, state string) error { return os.Truncate(state, 0) }, -1},
		"the state reads zeros": {func(_ *testing.T, _, state string) error { return os.WriteFile(state, make([]byte, 2000), 0o600) }, -1},
		"the state is gone":     {func(_ *testing.T, _, state string) error { return os.Remove(state) }, -1},
		"the state is another's": {func(t *testing.T, _, state string) error {
			_, err := open(t, state).WriteAt([]byte{0xff, 0xff}, 24)
			return err
		}, -1},
		"the blob is shorter": {func(_ *testing.T, data, _ string) error { return os.Truncate(data, size-1) }, -1},
		"the blob is a link": {func(_ *testing.T, data, _ string) error {
			return errors.Join(os.Remove(data), os.Symlink("/dev/zero", data))
		}, -1},
		"the blob is gone": {func(_ *testing.T, data, _ string) error { return os.Remove(data) }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			if out, err := exec.Command("cp", "-a", "--sparse=always", whole, dir).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			data := filepath.Join(dir, "partial", p.blob.Encoded())
			if err := c.damage(t, data, data+stateSuffix); err != nil {
				t.Fatal(err)
			}
			s := openStore(t, Config{Dir: dir})
			if c.lost < 0 {
				wantFiles(t, dir) // at start
				c.lost = have
			}
			front := newProxy(t, openRegistry(t))
			wantContent(t, acquire(t, s, front.through(p), AcquireOptions{}).Blob(), p.content)
			want := size - int64(have-c.lost)*chunkSize
			if n := front.blobBytes.Load(); n > want || n < want-chunkSize {
				t.Errorf("%d bytes were sent, want %d", n, want)
			}
			wantFiles(t, dir, slices.Concat(filesOf(t, pushed{ref: front.through(p), manifest: p.manifest, blob: p.blob}))...)
		})
	}
}

// TestResumedWrong: what an earlier pull has left turns out wrong, in bytes that were sent
// so. They are fetched again.
func TestResumedWrong(t *testing.T) {
	p := pushImage(t, 1, 24<<20)
	dir := t.TempDir()
	cutStore(t, dir, p)
	s := openStore(t, Config{Dir: dir})
	part, err := s.openPartial("", p.blob, int64(len(p.content)))
	if err != nil {
		t.Fatal(err)
	}
	err = part.write(0, make([]byte, chunkSize))
	part.close()
	s.unclaim(s.dir.partial(p.blob))
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, acquire(t, s, p.ref, AcquireOptions{}).Blob(), p.content)
}

// TestPartialIsEvicted: what is left of a pull makes room, is listed, and can be removed.
func TestPartialIsEvicted(t *testing.T) {
	p := pushImage(t, 1, 24<<20)
	dir := t.TempDir()
	cutStore(t, dir, p)
	s := openStore(t, Config{Dir: dir, LimitBytes: 30 << 20})
	list, err := s.List()
	if err != nil || len(list.Images) != 1 || !list.Images[0].Partial || list.Images[0].Size != 24<<20 || list.Images[0].Digest != p.blob.String() || list.Blobs != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	other := newPusher(t, openRegistry(t), repositoryName(t)+"/other", auth.EmptyCredential).image("v1", erofsLayer, randomBytes(2, 10<<20))
	acquire(t, s, other.ref, AcquireOptions{})
	if names := filesBelow(t, filepath.Join(dir, "partial")); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
	// One that is being read stays, and goes when it rests.
	s = openStore(t, Config{})
	front := newSlowStreams(t, p)
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	s.OnLetGo(func(string) { img.Release() })
	wantRead(t, img.Blob(), p.content, 1<<20, 10)
	_, err = s.Remove(p.blob.String())
	wantError(t, err, ErrInUse)
	wantRead(t, img.Blob(), p.content, 2<<20, 10)
	img.Rest()
	if _, err := s.Remove(p.blob.String()); err != nil {
		t.Fatal(err)
	}
	<-waitEnd(s, p)
	for _, name := range filesBelow(t, s.dir.root) {
		if !strings.HasPrefix(name, "prefetch/") {
			t.Errorf("left: %q", name)
		}
	}
}

// TestStoppedPullResumes: a pull that nobody waits for stops, and leaves what it has.
func TestStoppedPullResumes(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	front := newProxy(t, openRegistry(t))
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	front.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && len(front.seen("/blobs/")) > 3 {
			for front.blobBytes.Load() < 9<<20 && r.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel()
			<-r.Context().Done()
		}
		return false
	})
	_, err := s.Acquire(ctx, front.through(p), AcquireOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	front.set(nil)
	wantContent(t, acquire(t, s, front.through(p), AcquireOptions{}).Blob(), p.content)
	if n := front.blobBytes.Load(); n == 0 || n > size-4<<20 {
		t.Errorf("%d bytes were sent for the rest of %d", n, size)
	}
}
