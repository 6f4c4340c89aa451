package nodecache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// slowSpan is the span of streams at first in tests: above maxDemandSpan, so that their
// requests can be told from those of readers.
const slowSpan = 8

// slowStreams is a registry that answers requests of slowSpan chunks and more, which are
// those of streams, only when it is told to.
type slowStreams struct {
	*proxy
	pass chan struct{} // closed: all may pass
	once sync.Once
}

func newSlowStreams(t *testing.T, p pushed) *slowStreams {
	t.Helper()
	s := &slowStreams{proxy: newProxy(t, openRegistry(t)), pass: make(chan struct{})}
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		lo, hi := rangeOf(r)
		if hi-lo < slowSpan*chunkSize {
			return false
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", lo, hi-1, len(p.content)))
		w.WriteHeader(http.StatusPartialContent)
		w.(http.Flusher).Flush()
		select {
		case <-s.pass:
			_, _ = w.Write(p.content[lo:hi])
		case <-r.Context().Done():
		}
		return true
	})
	t.Cleanup(s.goOn)
	return s
}

func (s *slowStreams) goOn() { s.once.Do(func() { close(s.pass) }) }

// rangeOf is what a request for a blob asks for; hi is 0 for others.
func rangeOf(r *http.Request) (lo, hi int) {
	if !strings.Contains(r.URL.Path, "/blobs/") {
		return 0, 0
	}
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &lo, &hi); err != nil {
		return 0, 0
	}
	return lo, hi + 1
}

// asked lists the ranges of requests, in chunks, in their order.
func (s *slowStreams) asked() (list [][2]int) {
	for _, r := range s.seen("/blobs/") {
		if lo, hi := rangeOf(r); hi > 0 {
			list = append(list, [2]int{lo / chunkSize, (hi + chunkSize - 1) / chunkSize})
		}
	}
	return list
}

// demanded lists those of readers.
func (s *slowStreams) demanded() [][2]int {
	return slices.DeleteFunc(s.asked(), func(r [2]int) bool { return r[1]-r[0] >= slowSpan })
}

func wantRead(t testing.TB, b *Blob, content []byte, off, n int) {
	t.Helper()
	p := make([]byte, n)
	if _, err := b.ReadAt(p, int64(off)); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	if !bytes.Equal(p, content[off:off+n]) {
		t.Fatalf("read %d bytes at %d: they are others", n, off)
	}
}

func settle(t testing.TB, img *Image) {
	t.Helper()
	select {
	case <-img.Settled():
	case <-time.After(30 * time.Second):
		have, size := img.Progress()
		t.Fatalf("not complete: %d of %d bytes; %v", have, size, img.Trouble())
	}
}

// TestLazy reads an image of which nearly nothing is there, and lets it be completed.
func TestLazy(t *testing.T) {
	const size = 40<<20 + 4321
	p := pushImage(t, 1, size)
	noLeaks(t, func(t *testing.T) {
		front := newSlowStreams(t, p)
		dir := t.TempDir()
		s := openStore(t, Config{Dir: dir})
		img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
		if img.Complete() || img.Spoiled() != nil || img.Trouble() != nil {
			t.Fatalf("complete: %v, %v, %v", img.Complete(), img.Spoiled(), img.Trouble())
		}
		wantRead(t, img.Blob(), p.content, 20<<20+5, 10)
		wantRead(t, img.Blob(), p.content, size-100, 100)
		wantRead(t, img.Blob(), p.content, 30<<20-5, 10) // over the edge of two chunks
		wantRead(t, img.Blob(), p.content, 20<<20+100, 1000)
		if got, want := front.demanded(), [][2]int{{80, 81}, {160, 161}, {119, 121}}; !slices.Equal(got, want) {
			t.Errorf("asked for chunks %v, want %v", got, want)
		}
		if have, all := img.Progress(); have != 4*chunkSize || all != size {
			t.Errorf("%d bytes of %d are there", have, all)
		}
		front.goOn()
		settle(t, img)
		if !img.Complete() {
			t.Fatal(img.Spoiled())
		}
		wantContent(t, img.Blob(), p.content)
		if n := front.blobBytes.Load(); n > size+size/20 {
			t.Errorf("%d bytes were sent of a blob of %d", n, size)
		}
		same := acquire(t, s, front.through(p), AcquireOptions{Policy: Never})
		wantContent(t, same.Blob(), p.content)
		if same.ID() != img.ID() || same.Reference() != img.Reference() || same.Take() != img.Take() || same.Blob().Path() != img.Blob().Path() {
			t.Errorf("%v is another image than %v", same, img)
		}
		through := pushed{ref: front.through(p), manifest: p.manifest, blob: p.blob}
		<-waitEnd(s, p)
		wantFiles(t, dir, append(filesOf(t, through), "prefetch/"+p.blob.Encoded())...)
		if n := cachedPages(t, img.Blob().Path()); n != 0 {
			t.Errorf("%d pages of the blob are in the page cache", n)
		}
	})
}

// waitEnd is closed when no transfer of the blob runs.
func waitEnd(s *Store, p pushed) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.flights[p.blob]; t != nil {
		return t.done
	}
	return closedChannel
}

// TestLazyReaders has many readers at once, each part of the blob asked for once.
func TestLazyReaders(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	front := newSlowStreams(t, p)
	s := openStore(t, Config{})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	var wg sync.WaitGroup
	for range 32 { // all the same, at the same time
		wg.Go(func() { wantRead(t, img.Blob(), p.content, 20<<20, 1000) })
	}
	wg.Wait()
	if got := front.demanded(); len(got) != 1 {
		t.Errorf("asked for chunks %v", got)
	}
	for i := range 16 { // in order: fewer and larger requests
		wantRead(t, img.Blob(), p.content, 8<<20+i*chunkSize, chunkSize)
	}
	if got := front.demanded(); len(got) > 1+5 {
		t.Errorf("asked for chunks %v", front.asked())
	}
	for g := range 8 { // here and there, while streams run
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 100 {
				if i == 50 {
					front.goOn()
				}
				off := rnd.IntN(size)
				wantRead(t, img.Blob(), p.content, off, min(size-off, rnd.IntN(600_000)))
			}
		})
	}
	wg.Wait()
	settle(t, img)
	wantContent(t, img.Blob(), p.content)
}

func TestLazySmall(t *testing.T) {
	p := pushImage(t, 1, minLazy-1)
	s := openStore(t, Config{})
	if img := acquire(t, s, p.ref, AcquireOptions{Lazy: true}); !img.Complete() {
		t.Error("not complete")
	}
}

// TestLazyWithoutRanges: a registry that sends no parts is waited for.
func TestLazyWithoutRanges(t *testing.T) {
	p := pushImage(t, 1, 10<<20)
	front := newProxy(t, openRegistry(t))
	front.set(func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	})
	s := openStore(t, Config{})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	if !img.Complete() {
		t.Error("not complete")
	}
	wantContent(t, img.Blob(), p.content)
	if n := len(front.seen("/blobs/")); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestLazyRegistryGone: reads wait for a registry, not for ever, and find it again.
func TestLazyRegistryGone(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	front := newSlowStreams(t, p)
	fine := front.fault
	s := openStore(t, Config{})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	wantRead(t, img.Blob(), p.content, 1<<20, 10)
	s.patience = 300 * time.Millisecond
	front.set(onBlobs(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	front.server.CloseClientConnections()
	start := time.Now()
	_, err := img.Blob().ReadAt(make([]byte, 10), 10<<20)
	wantError(t, err, ErrUnavailable, "502", img.Blob().Path())
	if d := time.Since(start); d < s.patience || d > 20*s.patience {
		t.Errorf("it took %v", d)
	}
	wantError(t, img.Trouble(), ErrUnavailable, "502")
	wantRead(t, img.Blob(), p.content, 1<<20, 1000) // is there
	s.patience = 20 * time.Second
	time.AfterFunc(200*time.Millisecond, func() { front.set(fine) })
	wantRead(t, img.Blob(), p.content, 10<<20, 10) // waits
	front.goOn()
	settle(t, img)
	if err := img.Trouble(); err != nil {
		t.Error(err)
	}
	wantContent(t, img.Blob(), p.content)
}

// TestLazyUnauthorized: a registry that refuses in the middle is not waited for. Others'
// credentials, given later, serve those who came before.
func TestLazyUnauthorized(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	front := newSlowStreams(t, p)
	fine := front.fault
	s := openStore(t, Config{})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	front.set(func(w http.ResponseWriter, r *http.Request) bool {
		switch user, _, _ := r.BasicAuth(); {
		case !strings.Contains(r.URL.Path, "/blobs/"):
			return false
		case user == "new":
			return fine(w, r)
		}
		w.Header().Set("WWW-Authenticate", "Basic realm=x")
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, err := img.Blob().ReadAt(make([]byte, 10), 10<<20)
	wantError(t, err, ErrUnauthorized, "no credentials")
	wantError(t, img.Trouble(), ErrUnauthorized)
	acquire(t, s, front.through(p), AcquireOptions{Lazy: true, DockerConfig: []byte(`{"auths":{"` + front.host + `":{"username":"new","password":"pw"}}}`)})
	wantRead(t, img.Blob(), p.content, 10<<20, 10)
	front.goOn()
	settle(t, img)
	wantContent(t, img.Blob(), p.content)
}

// TestLazySpoiled: the bytes are not those of the digest, as is found out at the end.
func TestLazySpoiled(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	bad := bytes.Clone(p.content)
	bad[size/2] ^= 1
	p2 := p
	p2.content = bad
	front := newSlowStreams(t, p2)
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	clone := img.Clone()
	defer clone.Release()
	wantRead(t, img.Blob(), bad, 1<<20, 10)
	front.goOn()
	settle(t, img)
	if img.Complete() {
		t.Fatal("it is complete")
	}
	wantError(t, img.Spoiled(), ErrDigestMismatch, p.blob.String())
	for _, off := range []int64{0, 1 << 20, size - 1} {
		_, err := clone.Blob().ReadAt(make([]byte, 1), off)
		wantError(t, err, ErrDigestMismatch)
	}
	<-waitEnd(s, p)
	if names := filesBelow(t, filepath.Join(dir, "partial")); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
	front.set(nil)
	again := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	if again.ID() != img.ID() || again.Take() == img.Take() {
		t.Errorf("take %d of %s after take %d", again.Take(), again.ID(), img.Take())
	}
	settle(t, again)
	wantContent(t, again.Blob(), p.content)
	if whole := acquire(t, s, front.through(p), AcquireOptions{}); whole.Take() != again.Take() {
		t.Errorf("take %d of the same bytes as take %d", whole.Take(), again.Take())
	}
	_, err := img.Blob().ReadAt(make([]byte, 1), 0)
	wantError(t, err, ErrDigestMismatch)
}

// TestLazyGivenUp: the transfer stops when nobody uses the image, and goes on from there
// when somebody does, also in another process and without a registry.
func TestLazyGivenUp(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	dir := t.TempDir()
	front := newSlowStreams(t, p)
	s := openStore(t, Config{Dir: dir})
	opts := AcquireOptions{Lazy: true}
	img := acquire(t, s, front.through(p), opts)
	wantRead(t, img.Blob(), p.content, 10<<20, 10)
	clone := img.Clone()
	img.Release()
	wantRead(t, clone.Blob(), p.content, 11<<20, 10)
	clone.Abandon()
	_, err := clone.Blob().ReadAt(make([]byte, 1), 15<<20)
	wantError(t, err, ErrInterrupted)
	clone.Release()
	select {
	case <-waitEnd(s, p):
	case <-time.After(10 * time.Second):
		t.Fatal("the transfer goes on")
	}
	if have := partsOf(t, dir, p); have != 2 {
		t.Errorf("%d chunks are there", have)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir})
	s.patience = 100 * time.Millisecond
	front.set(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	opts.Policy = Never
	_, err = s.Acquire(t.Context(), front.through(p), AcquireOptions{Policy: Never})
	wantError(t, err, ErrNotFound)
	img = acquire(t, s, front.through(p), opts)
	wantRead(t, img.Blob(), p.content, 10<<20, 10)
	_, err = img.Blob().ReadAt(make([]byte, 1), 15<<20)
	wantError(t, err, ErrUnavailable)
	front.set(nil)
	settle(t, img)
	wantContent(t, img.Blob(), p.content)
	if n := front.blobBytes.Load(); n > size-2*chunkSize {
		t.Errorf("%d bytes were sent again", n)
	}
}

const lazyEnv = "NODECACHE_TEST_LAZY"

// lazyPlaces are what lazyChild reads, in chunks.
var lazyPlaces = []int{3, 40, 41, 70}

// lazyChild reads an image lazily and kills itself.
func lazyChild() {
	dir, ref, _ := strings.Cut(os.Getenv(lazyEnv), " ")
	s, err := Open(Config{Dir: dir})
	if err == nil {
		var img *Image
		if img, err = s.Acquire(context.Background(), ref, AcquireOptions{Lazy: true}); err == nil {
			for _, chunk := range lazyPlaces {
				_, failed := img.Blob().ReadAt(make([]byte, 10), int64(chunk)*chunkSize)
				err = errors.Join(err, failed)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// TestLazyKilled kills a process that reads an image lazily. The next one has it as it
// was, without asking the registry.
func TestLazyKilled(t *testing.T) {
	const size = 24<<20 + 12345
	p := pushImage(t, 1, size)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	front := newSlowStreams(t, p)
	dir := filepath.Join(t.TempDir(), "store")
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), lazyEnv+"="+dir+" "+front.through(p))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	before := front.count()
	s := openStore(t, Config{Dir: dir})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true, Policy: Never})
	for _, chunk := range lazyPlaces {
		wantRead(t, img.Blob(), p.content, chunk*chunkSize, 10)
	}
	for _, r := range front.seen("")[before:] {
		lo, hi := rangeOf(r)
		if slices.ContainsFunc(lazyPlaces, func(c int) bool { return lo <= c*chunkSize && c*chunkSize < hi }) {
			t.Errorf("asked for %s of %s", r.Header.Get("Range"), r.URL.Path)
		}
	}
	front.goOn()
	settle(t, img)
	wantContent(t, img.Blob(), p.content)
}

// TestPrefetch: what was read first is brought first the next time.
func TestPrefetch(t *testing.T) {
	const size = 24 << 20
	p := pushImage(t, 1, size)
	dir := t.TempDir()
	front := newSlowStreams(t, p)
	s := openStore(t, Config{Dir: dir})
	img := acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	for _, chunk := range []int{70, 30, 31, 32, 95, 70} {
		wantRead(t, img.Blob(), p.content, chunk*chunkSize+5, 10)
	}
	front.goOn()
	settle(t, img)
	img.Release()
	<-waitEnd(s, p)
	if err := errors.Join(s.removeBlob(p.blob), s.Close()); err != nil {
		t.Fatal(err)
	}
	front = newSlowStreams(t, p)
	s = openStore(t, Config{Dir: dir})
	img = acquire(t, s, front.through(p), AcquireOptions{Lazy: true})
	deadline := time.Now().Add(10 * time.Second)
	for have, _ := img.Progress(); have < 5*chunkSize && time.Now().Before(deadline); have, _ = img.Progress() {
		time.Sleep(time.Millisecond)
	}
	got := front.asked()
	got = got[:min(6, len(got))] // two more streams begin at the same time
	if got[0] != [2]int{70, 71} || !slices.Contains(got, [2]int{30, 33}) || !slices.Contains(got, [2]int{95, 96}) {
		t.Errorf("brought chunks %v first, want 70, 30-32 and 95", got)
	}
	wantRead(t, img.Blob(), p.content, 70*chunkSize+5, 10)
	front.goOn()
	settle(t, img)
	wantContent(t, img.Blob(), p.content)
}

// TestPrefetchLists damages lists, and makes more than are kept.
func TestPrefetchLists(t *testing.T) {
	p := pushImage(t, 1, 100)
	s := openStore(t, Config{})
	want := []int{5, 1, 3}
	if err := s.saveOrder(p.blob, want); err != nil {
		t.Fatal(err)
	}
	path := s.dir.order(p.blob)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.loadOrder(p.blob, 6); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := s.loadOrder(p.blob, 4); !slices.Equal(got, want[1:]) {
		t.Errorf("of 4 chunks: %v", got)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x80
		for _, text := range [][]byte{bad, good[:i]} {
			writeFile(t, path, text)
			if got := s.loadOrder(p.blob, 6); got != nil {
				t.Errorf("byte %d damaged: %v", i, got)
			}
		}
	}
	for i := range maxOrders + 5 {
		writeFile(t, fmt.Sprintf("%s/%064x", s.dir.prefetch, i), good)
	}
	unknown := writeFile(t, s.dir.prefetch+"/notes", nil)
	if err := s.saveOrder(p.blob, want); err != nil {
		t.Fatal(err)
	}
	if c := list(t, s); c.PrefetchLists != maxOrders || !slices.Equal(c.Unknown, []string{unknown}) {
		t.Errorf("%d lists, unknown files %q", c.PrefetchLists, c.Unknown)
	}
	if got := s.loadOrder(p.blob, 6); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestPrefetchListsGo: a list stays when its image makes room for others, and goes with
// an image that is removed by name, and with all that is of no use.
func TestPrefetchListsGo(t *testing.T) {
	p := pushImage(t, 1, 1<<20)
	s := openStore(t, Config{})
	pull := func() {
		t.Helper()
		acquire(t, s, p.ref, AcquireOptions{}).Release()
		if err := s.saveOrder(p.blob, []int{0}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(lists int) {
		t.Helper()
		if c := list(t, s); c.PrefetchLists != lists {
			t.Errorf("%d lists, want %d", c.PrefetchLists, lists)
		}
	}
	pull()
	if e, err := s.Evict(1); err != nil || e.Images != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	want(1)
	pull()
	if e, err := s.Remove(p.blob.String()); err != nil || e.Images != 1 {
		t.Fatalf("%+v, %v", e, err)
	}
	want(0)
	pull()
	other := s.dir.order(digest.FromString("of nothing"))
	writeFile(t, other, make([]byte, 100))
	img := acquire(t, s, p.ref, AcquireOptions{})
	if e, err := s.Evict(0); err != nil || e.Images != 0 || e.Bytes < 100 {
		t.Fatalf("%+v, %v", e, err)
	}
	want(1)
	img.Release()
	if e, err := s.Evict(0); err != nil || e.Images != 1 || e.Bytes < 1<<20 {
		t.Fatalf("%+v, %v", e, err)
	}
	want(0)
}
