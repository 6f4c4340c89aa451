package nodecache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote/auth"
)

const mebibyte = 1 << 20

// pushImages pushes n images of so many bytes, tags v0 and so on.
func pushImages(t testing.TB, n, bytes int) []pushed {
	t.Helper()
	to := newPusher(t, openRegistry(t), repositoryName(t), auth.EmptyCredential)
	list := make([]pushed, 0, n)
	for i := range n {
		list = append(list, to.image(fmt.Sprintf("v%d", i), erofsLayer, randomBytes(uint64(1000+i), bytes)))
	}
	return list
}

// duBytes is what du says that a directory takes on the disk.
func duBytes(t testing.TB, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "-B1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func list(t testing.TB, s *Store) Contents {
	t.Helper()
	c, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantStored checks which of the images are in the store.
func wantStored(t testing.TB, s *Store, want ...pushed) {
	t.Helper()
	var digests, got []string
	for _, p := range want {
		digests = append(digests, p.blob.String())
	}
	for _, im := range list(t, s).Images {
		if im.Digest != "" {
			got = append(got, im.Digest)
		}
	}
	slices.Sort(digests)
	slices.Sort(got)
	if !slices.Equal(got, digests) {
		t.Errorf("in the store are %q, want %q", got, digests)
	}
}

// pullOnly pulls an image and releases it.
func pullOnly(t testing.TB, s *Store, p pushed) {
	t.Helper()
	img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img.Release()
}

// unusedSince sets when an image was last used.
func unusedSince(t testing.TB, s *Store, p pushed, ago time.Duration) {
	t.Helper()
	when := time.Now().Add(-ago)
	if err := os.Chtimes(s.dir.blob(p.blob), when, when); err != nil {
		t.Fatal(err)
	}
}

// The sum of what List tells of is what du says, whatever is in the directory, on
// file systems that count differently.
func TestListIsDu(t *testing.T) {
	images := pushImages(t, 3, 300_000)
	disks := smallDisks(t)
	disks["root"] = t.TempDir()
	for name, mount := range disks {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(mount, "store")
			s := openStore(t, Config{Dir: dir})
			check := func(what string) Contents {
				t.Helper()
				c := list(t, s)
				sum := c.Overhead + c.Others
				for _, im := range c.Images {
					sum += im.Allocated
				}
				if du := duBytes(t, dir); sum != du || c.Bytes != sum-c.Others {
					t.Errorf("%s: %d bytes listed, %d of them of the store's, which says %d; du says %d", what, sum, sum-c.Others, c.Bytes, du)
				}
				return c
			}
			check("empty")
			for _, p := range images {
				pullOnly(t, s, p)
			}
			img := acquire(t, s, images[0].ref, AcquireOptions{})
			write := func(n int) func(*os.File) error {
				return func(f *os.File) error { _, err := f.Write(make([]byte, n)); return err }
			}
			file := writeFile(t, t.TempDir()+"/image", []byte("content"))
			inPlace := acquire(t, s, file, AcquireOptions{})
			if err := errors.Join(img.WriteSidecar("index", write(50_000)), inPlace.WriteSidecar("index", write(5000)), s.Pin(t.Context(), images[1].ref)); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"files/ab/c", "blobs/sha256/README", "blobs/other/x", "refs/x.json", "paths/x", "blobs/sha256/" + strings.Repeat("0", 64) + "/below"} {
				writeFile(t, filepath.Join(dir, name), make([]byte, 10_000))
			}
			c := check("full")
			if len(c.Images) != 4 || c.Blobs != 3 || c.Overhead <= 0 || c.Others < 10_000 {
				t.Errorf("%+v", c)
			}
			want := []string{"blobs/sha256/" + strings.Repeat("0", 64), "blobs/sha256/README", "paths/x", "refs/x.json"}
			got := make([]string, 0, len(c.Unknown))
			for _, path := range c.Unknown {
				rel, _ := filepath.Rel(dir, path)
				got = append(got, rel)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("unknown files %q, want %q", got, want)
			}
			if !slices.Equal(c.Pins, []string{images[1].ref}) {
				t.Errorf("pins %q", c.Pins)
			}
			// Unknown files survive a restart and an eviction of all.
			img.Release()
			inPlace.Release()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, Config{Dir: dir})
			before := check("opened again")
			if len(before.Unknown) != len(want) {
				t.Errorf("unknown files %q after a restart", before.Unknown)
			}
			freed, err := s.Evict(0)
			if err != nil || freed.Images != 3 {
				t.Errorf("%+v, %v", freed, err)
			}
			after := check("evicted")
			if before.Bytes-after.Bytes != freed.Bytes {
				t.Errorf("%d bytes less, of which %d were told", before.Bytes-after.Bytes, freed.Bytes)
			}
			wantStored(t, s, images[1])
		})
	}
}

// What is unused for the longest goes first, also after a restart, and neither
// what is in use nor what is pinned goes at all.
func TestEvictionOrder(t *testing.T) {
	images := pushImages(t, 6, mebibyte)
	dir := t.TempDir()
	limit := int64(3*mebibyte + 300_000)
	var evicted []string
	cfg := Config{Dir: dir, LimitBytes: limit, OnEvict: func(e Eviction) { evicted = append(evicted, e.ID) }}
	s := openStore(t, cfg)
	for i := range 3 {
		pullOnly(t, s, images[i])
		unusedSince(t, s, images[i], time.Duration(10-i)*time.Hour)
	}
	wantStored(t, s, images[:3]...)
	pullOnly(t, s, images[0]) // used now: 1 is the one unused for the longest
	pullOnly(t, s, images[3])
	wantStored(t, s, images[0], images[2], images[3])
	if want := []string{imageID(images[1].blob)}; !slices.Equal(evicted, want) {
		t.Errorf("evicted %q, want %q", evicted, want)
	}
	unusedSince(t, s, images[0], 3*time.Hour)
	unusedSince(t, s, images[2], 2*time.Hour)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, cfg)
	if err := s.Pin(t.Context(), images[0].ref); err != nil {
		t.Fatal(err)
	}
	pullOnly(t, s, images[4])
	wantStored(t, s, images[0], images[3], images[4])

	// All that is left is held: by a pin, by an image, by a clone, by Keep.
	img := acquire(t, s, images[3].ref, AcquireOptions{})
	clone := img.Clone()
	img.Release()
	keep := s.Keep(imageID(images[4].blob))
	_, err := s.Acquire(t.Context(), images[5].ref, AcquireOptions{})
	wantError(t, err, ErrNoSpace, "needs 1048576 bytes", "at most "+strconv.FormatInt(limit, 10), "in use hold 21", "pinned ones 10")
	wantStored(t, s, images[0], images[3], images[4])
	_, err = s.Remove(images[3].ref)
	wantError(t, err, ErrInUse, "used by a volume")
	_, err = s.Remove(images[0].blob.String())
	wantError(t, err, ErrInUse, "pinned")
	if freed, err := s.Evict(0); err != nil || freed.Images != 0 {
		t.Errorf("%+v, %v", freed, err)
	}
	wantContent(t, clone.Blob(), images[3].content)
	keep()
	keep()
	pullOnly(t, s, images[5])
	wantStored(t, s, images[0], images[3], images[5])
	clone.Release()

	// More than the limit is refused without evicting anything for it.
	huge := newPusher(t, openRegistry(t), "test/huge", auth.EmptyCredential).image("v1", erofsLayer, randomBytes(9, 4*mebibyte))
	_, err = s.Acquire(t.Context(), huge.ref, AcquireOptions{})
	wantError(t, err, ErrNoSpace, "more than the limit")
	wantStored(t, s, images[0], images[3], images[5])
	if err := s.Unpin(images[0].ref); err != nil {
		t.Fatal(err)
	}
	wantError(t, s.Unpin(images[0].ref), ErrNotFound, "not pinned")
	freed, err := s.Remove(images[0].ref)
	if err != nil || freed.Images != 1 || freed.Bytes < mebibyte {
		t.Errorf("%+v, %v", freed, err)
	}
	_, err = s.Remove(images[0].ref)
	wantError(t, err, ErrNotFound, images[0].ref)
	wantError(t, s.Pin(t.Context(), images[0].ref), ErrNotFound, images[0].ref)
	if got := len(evicted); int64(got) <= list(t, s).Evictions {
		t.Errorf("%d evictions reported, the store counts %d since it was opened", got, list(t, s).Evictions)
	}
	wantFiles(t, dir, slices.Concat(filesOf(t, images[3]), filesOf(t, images[5]))...)
}

// The disk itself is the limit.
func TestEvictionOnFullDisk(t *testing.T) {
	images := pushImages(t, 3, 6*mebibyte)
	for name, mount := range smallDisks(t) {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Config{Dir: filepath.Join(mount, "store")})
			first := acquire(t, s, images[0].ref, AcquireOptions{})
			pullOnly(t, s, images[1])
			pullOnly(t, s, images[2])
			wantStored(t, s, images[0], images[2])
			wantContent(t, first.Blob(), images[0].content)
			second := acquire(t, s, images[2].ref, AcquireOptions{})
			_, err := s.Acquire(t.Context(), images[1].ref, AcquireOptions{})
			wantError(t, err, ErrNoSpace, "are free", "in use hold 12")
			second.Release()
			pullOnly(t, s, images[1])
			wantStored(t, s, images[0], images[1])
		})
	}
}

// Who rests on an image is asked to let go of it, and the space is free when the
// pull goes on.
func TestEvictionOfResting(t *testing.T) {
	images := pushImages(t, 3, mebibyte)
	s := openStore(t, Config{LimitBytes: 2*mebibyte + 300_000})
	var asked []string
	var resting *Image
	obey := true
	s.OnLetGo(func(id string) {
		asked = append(asked, id)
		if obey {
			resting.Release()
		}
	})
	resting = acquire(t, s, images[0].ref, AcquireOptions{})
	resting.Rest()
	resting.Rest()
	pullOnly(t, s, images[1])
	if im := list(t, s).Images[1]; !im.Resting || im.InUse || im.Digest != images[0].blob.String() {
		t.Errorf("%+v", im)
	}
	// It is wanted again.
	again := acquire(t, s, images[0].ref, AcquireOptions{})
	resting.Wake()
	again.Release()
	pullOnly(t, s, images[2])
	wantStored(t, s, images[0], images[2])
	if len(asked) != 0 {
		t.Errorf("asked to let go of %q, which is in use", asked)
	}
	resting.Rest()
	unusedSince(t, s, images[0], time.Hour)
	obey = false // cannot be let go of: it stays, and the next one goes
	_, err := s.Acquire(t.Context(), images[1].ref, AcquireOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantStored(t, s, images[0], images[1])
	if want := []string{imageID(images[0].blob)}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	obey = true
	unusedSince(t, s, images[0], time.Hour)
	if _, err := s.Evict(0); err != nil {
		t.Fatal(err)
	}
	wantStored(t, s, images[1])
	if _, err := resting.Blob().ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read of an image that was let go of: %v", err)
	}
	if len(s.uses) != 1 {
		t.Errorf("%d images are counted, want the one in use", len(s.uses))
	}
}

// An image that is wanted while it is being evicted is pulled again.
func TestAcquireDuringEviction(t *testing.T) {
	p := pushImage(t, 1, mebibyte)
	s := openStore(t, Config{})
	resting := acquire(t, s, p.ref, AcquireOptions{})
	resting.Rest()
	got := make(chan error, 1)
	s.OnLetGo(func(string) {
		go func() {
			img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
			if err == nil {
				defer img.Release()
				if _, err = img.Blob().ReadAt(make([]byte, 4096), 0); err == nil && img.Unlinked() {
					err = errors.New("got the image that was evicted")
				}
			}
			got <- err
		}()
		time.Sleep(50 * time.Millisecond)
		short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := s.Acquire(short, p.ref, AcquireOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while it is being evicted: %v", err)
		}
		resting.Release()
	})
	if freed, err := s.Evict(0); err != nil || freed.Images != 1 {
		t.Errorf("%+v, %v", freed, err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	wantStored(t, s, p)
}

// Of two pulls that together do not fit, one is refused, whichever of limit and
// disk is the reason; what one gave up is the other's.
func TestTwoPullsOneFits(t *testing.T) {
	images := pushImages(t, 2, 9*mebibyte)
	mount := smallDisks(t)["tmpfs"]
	for name, cfg := range map[string]Config{
		"limit": {Dir: t.TempDir(), LimitBytes: 16 * mebibyte},
		"disk":  {Dir: mount + "/store"},
	} {
		t.Run(name, func(t *testing.T) {
			front := newProxy(t, openRegistry(t))
			s := openStore(t, cfg)
			ref := func(i int) string {
				_, path, _ := strings.Cut(images[i].ref, "/")
				return front.host + "/" + path
			}
			arrived, leave := make(chan struct{}), make(chan struct{})
			var once sync.Once
			front.set(func(_ http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/blobs/") {
					once.Do(func() {
						close(arrived)
						<-leave
					})
				}
				return false
			})
			ctx, cancel := context.WithCancel(t.Context())
			first := make(chan error, 1)
			go func() {
				_, err := s.Acquire(ctx, ref(0), AcquireOptions{})
				first <- err
			}()
			<-arrived
			if u, err := s.Usage(); err != nil || u.Bytes+u.Promised < 9*mebibyte || u.Bytes+u.Promised > 10*mebibyte {
				t.Errorf("%+v, %v; want the running pull to count once", u, err)
			}
			_, err := s.Acquire(t.Context(), ref(1), AcquireOptions{})
			wantError(t, err, ErrNoSpace, "running pulls 9437184")
			cancel()
			close(leave)
			if err := <-first; !errors.Is(err, context.Canceled) {
				t.Errorf("the first: %v", err)
			}
			// Its room is given back soon.
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if u, err := s.Usage(); err != nil || u.Bytes+u.Promised < mebibyte {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("%+v after the pull was given up", u)
				}
			}
			img := acquire(t, s, ref(1), AcquireOptions{})
			wantContent(t, img.Blob(), images[1].content)
			if len(s.claims) != 0 {
				t.Errorf("claims are left: %v", s.claims)
			}
		})
	}
}

// Many pull and release with room for half of what they want: nobody gets a wrong
// byte, a lost image or more than the limit.
func TestEvictionTogether(t *testing.T) {
	images := pushImages(t, 6, mebibyte)
	const limit = 3*mebibyte + 500_000
	s := openStore(t, Config{LimitBytes: limit})
	s.tendEvery = time.Millisecond
	if err := s.Tend(); err != nil {
		t.Fatal(err)
	}
	noLeaks(t, func(t *testing.T) {
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(worker), 1))
				for range 25 {
					p := images[rng.IntN(len(images))]
					img, err := s.Acquire(t.Context(), p.ref, AcquireOptions{})
					if errors.Is(err, ErrNoSpace) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					buf := make([]byte, mebibyte)
					if n, err := img.Blob().ReadAt(buf, 0); n != len(buf) || digest.FromBytes(buf) != p.blob {
						t.Errorf("%d bytes, %v, of digest %v; want %v", n, err, digest.FromBytes(buf), p.blob)
					}
					if img.Unlinked() {
						t.Error("evicted while it is in use")
					}
					img.Release()
				}
			})
		}
		for range 20 {
			if u, err := s.Usage(); err != nil || u.Bytes > limit {
				t.Errorf("%+v, %v", u, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		wg.Wait()
		s.registries.transports.close()
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.uses) != 0 || len(s.claims) != 0 {
		t.Errorf("left: %v, %v", s.uses, s.claims)
	}
}

// A file that grows has its room taken before, and that counts as long as it does.
func TestGrowRoom(t *testing.T) {
	images := pushImages(t, 2, mebibyte)
	s := openStore(t, Config{LimitBytes: 3 * mebibyte})
	pullOnly(t, s, images[0])
	f, err := s.makeRoom("a conversion", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.growRoom("a conversion", f.Name(), mebibyte); err != nil {
		t.Fatal(err)
	}
	wantStored(t, s, images[0])
	held := acquire(t, s, images[0].ref, AcquireOptions{})
	wantError(t, s.growRoom("a conversion", f.Name(), 2*mebibyte), ErrNoSpace, "a conversion needs 1048576 bytes", "in use hold 1")
	held.Release()
	if err := s.growRoom("a conversion", f.Name(), 2*mebibyte); err != nil {
		t.Fatal(err)
	}
	wantStored(t, s)
	if _, err := f.Write(make([]byte, 2*mebibyte)); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usage(); err != nil || u.Promised != 0 || u.Bytes < 2*mebibyte {
		t.Errorf("%+v, %v; want what was written to count once", u, err)
	}
	_, err = s.Acquire(t.Context(), images[1].ref, AcquireOptions{})
	wantError(t, err, ErrNoSpace, "running pulls 2097152")
	s.discard(f)
	pullOnly(t, s, images[1])
	wantStored(t, s, images[1])
}

// tended waits until Tend has made the store hold these images.
func tended(t *testing.T, s *Store, want ...pushed) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if len(list(t, s).Images) == len(want) {
			break
		}
	}
	wantStored(t, s, want...)
}

// In the background: a limit that was lowered, and a disk that others fill.
func TestTend(t *testing.T) {
	images := pushImages(t, 4, 2*mebibyte)
	mount := smallDisks(t)["tmpfs"]
	dir := filepath.Join(mount, "store")
	s := openStore(t, Config{Dir: dir})
	for i, p := range images {
		pullOnly(t, s, p)
		unusedSince(t, s, p, time.Duration(10-i)*time.Hour)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir, LimitBytes: 7 * mebibyte, EvictBelowBytes: 8 * mebibyte})
	s.tendEvery = 5 * time.Millisecond
	unhold := s.Keep(imageID(images[0].blob))
	time.Sleep(20 * time.Millisecond)
	wantStored(t, s, images...) // not before Tend
	if err := s.Tend(); err != nil {
		t.Fatal(err)
	}
	tended(t, s, images[0], images[2], images[3])
	unhold() // used now
	other := filepath.Join(mount, "other")
	if err := os.WriteFile(other, make([]byte, 3*mebibyte), 0o600); err != nil {
		t.Fatal(err)
	}
	tended(t, s, images[0], images[3])
	// Nothing goes that was used a moment ago, unless it must.
	unusedSince(t, s, images[3], unusedFor/2)
	if err := os.WriteFile(other, make([]byte, 6*mebibyte), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	wantStored(t, s, images[0], images[3])
	unusedSince(t, s, images[3], unusedFor+time.Second)
	tended(t, s, images[0])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Tend(); !errors.Is(err, ErrInterrupted) {
		t.Errorf("Tend after Close: %v", err)
	}
}

// What is in use is written down as used from time to time, for whoever opens the
// store after a power cut.
func TestLastUseIsWritten(t *testing.T) {
	p := pushImage(t, 1, 1000)
	file := writeFile(t, t.TempDir()+"/image", []byte("content"))
	s := openStore(t, Config{})
	img, inPlace := acquire(t, s, p.ref, AcquireOptions{}), acquire(t, s, file, AcquireOptions{})
	if err := inPlace.WriteSidecar("index", func(*os.File) error { return nil }); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-24 * time.Hour)
	for _, path := range []string{img.Blob().Path(), inPlace.SidecarPath("index")} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	fresh := func() (n int) {
		for _, im := range list(t, s).Images {
			if time.Since(im.LastUse) < time.Minute {
				n++
			}
		}
		return n
	}
	s.tend()
	if fresh() != 0 {
		t.Error("written down again at once")
	}
	for _, u := range s.uses {
		u.noted = old
	}
	s.tend()
	if fresh() != 2 {
		t.Errorf("%+v: want both to be used now", list(t, s).Images)
	}
	if st, err := os.Stat(file); err != nil || time.Since(st.ModTime()) > time.Hour {
		t.Errorf("%v, %v", st, err)
	}
}

// A pin of a tag is of what the tag leads to, and outlives it.
func TestPinFollowsTag(t *testing.T) {
	first := pushImage(t, 1, 10_000)
	s := openStore(t, Config{})
	pullOnly(t, s, first)
	if err := errors.Join(s.Pin(t.Context(), first.ref), s.Pin(t.Context(), "oci://"+first.ref)); err != nil {
		t.Fatal(err)
	}
	second := pushImage(t, 2, 20_000)
	img, err := s.Acquire(t.Context(), first.ref, AcquireOptions{Policy: Always})
	if err != nil {
		t.Fatal(err)
	}
	img.Release()
	if _, err := s.Evict(0); err != nil {
		t.Fatal(err)
	}
	wantStored(t, s, second)
	if err := s.Pin(t.Context(), second.blob.String()); err != nil {
		t.Fatal(err)
	}
	if err := s.Unpin(first.ref); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Evict(0); err != nil {
		t.Fatal(err)
	}
	wantStored(t, s, second)
	if err := s.Unpin(second.blob.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Evict(0); err != nil {
		t.Fatal(err)
	}
	wantStored(t, s)
	for _, bad := range []string{"/a/path", "sha256:abc", "x", "sha256:" + strings.Repeat("g", 64)} {
		wantError(t, s.Pin(t.Context(), bad), ErrInvalidReference)
	}
	wantFiles(t, s.dir.root)
}

// A blob that can't be removed does not keep the others from being evicted.
func TestEvictionFails(t *testing.T) {
	images := pushImages(t, 3, mebibyte)
	var stuck string
	s := openStoreOn(t, Config{LimitBytes: 2*mebibyte + 300_000}, disk{before: func(step, path string) error {
		if step == "remove" && path == stuck {
			return &os.PathError{Op: "unlink", Path: path, Err: unix.EIO}
		}
		return nil
	}})
	pullOnly(t, s, images[0])
	pullOnly(t, s, images[1])
	unusedSince(t, s, images[0], time.Hour)
	stuck = s.dir.blob(images[0].blob)
	pullOnly(t, s, images[2])
	wantStored(t, s, images[0], images[2])
	img := acquire(t, s, images[2].ref, AcquireOptions{})
	defer img.Release()
	_, err := s.Acquire(t.Context(), images[1].ref, AcquireOptions{})
	wantError(t, err, unix.EIO, "unlink")
	if _, err := s.Evict(0); !errors.Is(err, unix.EIO) {
		t.Errorf("evict: %v", err)
	}
	wantContent(t, acquire(t, s, images[0].ref, AcquireOptions{}).Blob(), images[0].content)
}
