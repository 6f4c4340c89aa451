package share_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// image is an open image with its files and fingerprints.
type image struct {
	*erofs.Image
	fp   *fingerprint.Index
	nids map[string]uint64 // by path
	fail *failing
}

// failing is a device that can be made to fail.
type failing struct {
	r   io.ReaderAt
	mu  sync.Mutex
	err error
	n   int

	hang chan struct{} // not nil: reads wait until it is closed
}

// count is how often it was read.
func (f *failing) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// hangOn makes reads wait until ch is closed; nil: they do not.
func (f *failing) hangOn(ch chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = ch
}

func (f *failing) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	err, hang := f.err, f.hang
	f.n++
	f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if err != nil {
		return 0, err
	}
	return f.r.ReadAt(p, off)
}

// newImage builds an image of files.
func newImage(t *testing.T, files map[string]string, opts ...string) *image {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), opts, dir))
	if err != nil {
		t.Fatal(err)
	}
	i := &image{fail: &failing{r: bytes.NewReader(data)}, nids: make(map[string]uint64)}
	if i.Image, err = erofs.Open(i.fail, int64(len(data)), erofs.WithDecodedCache(erofs.NewDecodedCache(0))); err != nil {
		t.Fatal(err)
	}
	list, err := fingerprint.Files(i.Image)
	if err != nil {
		t.Fatal(err)
	}
	if i.fp, _, err = fingerprint.Build(t.Context(), i.Image, list, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if err := i.Walk(func(path string, in *erofs.Inode) error { i.nids[path] = in.NID; return nil }); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *image) join(d *share.Domain, id string) *share.Member {
	return join(d, i, id, i.fp)
}

func join(d *share.Domain, i *image, id string, fp *fingerprint.Index) *share.Member {
	m, err := d.Join(i.Image, share.NewTag(id), fp)
	if err != nil {
		panic(err)
	}
	return m
}

// find looks a path up, as the kernel does, and returns what is there.
func find(t *testing.T, d *share.Domain, path string) share.Inode {
	t.Helper()
	in, ok := d.Find(path, 0)
	if !ok {
		t.Fatalf("%s is not found", path)
	}
	return in
}

func found(d *share.Domain, path string) bool {
	_, ok := d.Find(path, 0)
	return ok
}

// ref returns the shared inode of a member's file.
func ref(t *testing.T, m *share.Member, nid uint64, size int) share.Inode {
	t.Helper()
	in, ok := m.Ref(nid, int64(size))
	if !ok {
		t.Fatalf("nid %d has no shared inode", nid)
	}
	return in
}

// content is the path of a content in any domain.
func content(data string) string {
	return share.ContentPath(share.Key{Sum: sha256.Sum256([]byte(data)), Size: int64(len(data))})
}

func mustRead(t *testing.T, in share.Inode, want string) {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(in, 0, in.Size()))
	if err != nil || string(got) != want {
		t.Errorf("%s reads %q, %v; want %q", in.Path(), got, err, want)
	}
}

func TestEqualContentIsOneInodeWhateverTheImage(t *testing.T) {
	text := strings.Repeat("equal content ", 5000)
	a := newImage(t, map[string]string{"one": text, "only-a": "a"})
	b := newImage(t, map[string]string{"two": text, "copy": text, "only-b": "b"}, "-zlz4")
	d := share.NewDomain("d")
	ma, mb := a.join(d, "a"), b.join(d, "b")
	defer ma.Leave()
	defer mb.Leave()

	in := ref(t, ma, a.nids["one"], len(text))
	if in != ref(t, mb, b.nids["two"], len(text)) || in != ref(t, mb, b.nids["copy"], len(text)) || in != find(t, d, content(text)) {
		t.Fatal("the copies are not one inode")
	}
	if in.Backings() != 3 || !in.Shared() {
		t.Errorf("%d backings, shared %v; want 3, true", in.Backings(), in.Shared())
	}
	if n, joined := d.Len(); n != 1 || joined != 2 {
		t.Errorf("%d inodes of %d images are known, want 1 of 2", n, joined)
	}
	if a := d.Account(); a.Contents != 3 || a.Bytes != int64(len(text))+2 {
		t.Errorf("%d contents of %d bytes, want 3", a.Contents, a.Bytes)
	}
	mustRead(t, in, text)
	if n, err := in.ReadAt(make([]byte, 10), in.Size()); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
}

func TestDomainsShareNothing(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content"})
	d1, d2 := share.NewDomain("x"), share.NewDomain("x")
	m1, m2 := a.join(d1, "a"), a.join(d2, "a")
	if ref(t, m1, a.nids["f"], 7) == ref(t, m2, a.nids["f"], 7) {
		t.Error("two domains of one name share an inode")
	}
}

func TestWithoutFingerprintsNothingIsShared(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content", "g": "content"})
	d := share.NewDomain("")
	m := join(d, a, "a", nil)
	if _, ok := m.Ref(a.nids["f"], 7); ok || found(d, content("content")) {
		t.Error("an image without fingerprints shares a file")
	}
	for _, name := range []string{"f", "g"} {
		in := find(t, d, share.PrivatePath(m.Tag(), a.nids[name]))
		if in.Shared() {
			t.Fatalf("%s has no inode of its own", name)
		}
		mustRead(t, in, "content")
	}
	if n, _ := d.Len(); n != 2 {
		t.Errorf("%d inodes for two equal files, want 2 private ones", n)
	}
}

func TestPathsThatNameNothing(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content"})
	d := share.NewDomain("d")
	defer a.join(d, "a").Leave()
	good := content("content")
	if !found(d, good) {
		t.Fatal("the good path finds nothing")
	}
	for _, bad := range []string{
		"", "/", "/ab", "/ab/", good + "0", good[:len(good)-1] + "8", strings.ToUpper(good), good[1:],
		"/" + good, good[:4] + "-7", strings.Replace(good, "-7", "-07", 1), strings.Replace(good, "-7", "-+7", 1), good + "/",
		"/private/", "/private/-", "/private/00-1", "/private/" + strings.Repeat("0", 32) + "-0",
	} {
		if found(d, bad) {
			t.Errorf("%q finds an inode", bad)
		}
	}
}

func TestReadMovesToAnotherBacking(t *testing.T) {
	text := strings.Repeat("x", 100_000)
	a, b := newImage(t, map[string]string{"f": text}), newImage(t, map[string]string{"g": text})
	d := share.NewDomain("d")
	ma, mb := a.join(d, "a"), b.join(d, "b")
	in := find(t, d, content(text))

	broken := errors.New("disk error")
	var reported []error
	d.OnFailure(func(_ share.Inode, err error) { reported = append(reported, err) })
	a.fail.set(broken)
	mustRead(t, in, text)
	if len(reported) != 1 || !errors.Is(reported[0], broken) || !strings.Contains(reported[0].Error(), ma.Tag().String()) {
		t.Errorf("reported %v, want the one failure of image a", reported)
	}
	b.fail.set(broken)
	if _, err := in.ReadAt(make([]byte, 4096), 4096); !errors.Is(err, broken) {
		t.Errorf("no backing can be read: %v, want %v", err, broken)
	}
	b.fail.set(nil)
	reads := a.fail.count()
	mustRead(t, in, text)
	if n := a.fail.count(); n != reads {
		t.Errorf("the backing that failed was asked %d times more", n-reads)
	}
	a.fail.set(nil)
	b.fail.set(broken)
	mustRead(t, in, text)
	reads = b.fail.count()
	mustRead(t, in, text) // both have failed by now: the one that could be read last comes first
	if n := b.fail.count(); n != reads {
		t.Errorf("the backing that failed last was asked %d times more", n-reads)
	}
	b.fail.set(nil)
	if orphans := ma.Leave(); len(orphans) != 0 {
		t.Errorf("%d inodes without backing, but image b has them all", len(orphans))
	}
	mustRead(t, in, text)
	if orphans := mb.Leave(); len(orphans) != 1 || orphans[0] != in {
		t.Errorf("%d inodes without backing that the kernel knows, want the one found", len(orphans))
	}
	if _, err := in.ReadAt(make([]byte, 1), 0); !errors.Is(err, share.ErrNoBacking) {
		t.Errorf("all images have left: %v, want %v", err, share.ErrNoBacking)
	}
}

// The image that joined first is not the one that is read, but the cheapest to decode.
func TestReadTakesTheCheapestBacking(t *testing.T) {
	text := strings.Repeat("some text that compresses ", 10_000)
	d := share.NewDomain("d")
	var list []*image
	mkfs := images.NewestMkfs(t)
	codecs := []string{"-zlzma", "-zdeflate", "-zzstd", "-zlz4", ""}
	if !mkfs.AtLeast(1, 8) {
		codecs = []string{"-zlz4", ""}
	}
	var members []*share.Member
	for i, codec := range codecs {
		opts := []string{codec, "-C16384"}
		if codec == "" {
			opts = nil
		}
		im := newImage(t, map[string]string{"f": text}, opts...)
		list = append(list, im)
		members = append(members, im.join(d, fmt.Sprint(i)))
		in := find(t, d, content(text))
		before := im.fail.count()
		mustRead(t, in, text)
		if im.fail.count() == before {
			t.Errorf("%q joined and is cheaper, but is not read", codec)
		}
	}
	in := find(t, d, content(text))
	for i := len(list) - 1; i > 0; i-- {
		members[i].Leave()
		before := list[i-1].fail.count()
		mustRead(t, in, text)
		if list[i-1].fail.count() == before {
			t.Errorf("%q is the cheapest left, but is not read", codecs[i-1])
		}
	}
}

func TestUse(t *testing.T) {
	var u share.Use
	now := time.Now()
	for _, c := range []struct{ n, more, held int64 }{{100, 100, 100}, {200, 200, 300}, {800, 700, 1000}, {1, 0, 1000}} {
		now = now.Add(time.Second)
		if more := u.Served(c.n*4096, 1000*4096-1, now); more != c.more*4096 || u.Held() != c.held*4096 {
			t.Errorf("%d pages served: %d bytes more, %d held; want %d, %d pages", c.n, more, u.Held(), c.more, c.held)
		}
		if idle := u.Idle(now.Add(time.Minute)); idle < time.Minute-5*time.Millisecond || idle > time.Minute+5*time.Millisecond {
			t.Errorf("idle for %v after a minute", idle)
		}
	}
	if n := u.Dropped(); n != 1000*4096 || u.Held() != 0 {
		t.Errorf("dropped %d, %d are held", n, u.Held())
	}
	var wg sync.WaitGroup
	var sum atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				sum.Add(u.Served(3, 20_000*4096, now))
			}
		})
	}
	wg.Wait()
	if want := int64(8000 * 4096); sum.Load() != want || u.Held() != want {
		t.Errorf("%d more, %d held; want %d: a page for each", sum.Load(), u.Held(), want)
	}
}

func TestInodeLivesAsLongAsTheKernelKnowsIt(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content", "g": "never looked up"})
	d := share.NewDomain("d")
	m := a.join(d, "a")
	in := find(t, d, content("content"))
	index := in.Index()
	alive := func() bool {
		got, ok := d.Inode(index)
		return ok && got == in
	}
	if orphans := m.Leave(); len(orphans) != 1 || orphans[0] != in || !in.Orphan() {
		t.Errorf("orphans %v, want the one that was looked up", orphans)
	}
	if n, _ := d.Len(); n != 1 || !alive() || in.Path() != content("content") || in.Size() != 7 {
		t.Errorf("%d inodes, want the one that the kernel knows, as it was: %q", n, in.Path())
	}
	if found(d, content("never looked up")) {
		t.Error("a file of an image that has left is found")
	}
	// The image comes back while the kernel still has pages: they are good.
	m = a.join(d, "a")
	if find(t, d, content("content")) != in || in.Orphan() {
		t.Error("the inode that the kernel knows was not joined")
	}
	mustRead(t, in, "content")
	d.Forget(index, 1)
	if !alive() {
		t.Error("an inode that the kernel knows was forgotten")
	}
	if got, ok := d.Forget(index, 5); !ok || got != in { // more than there are
		t.Error("the inode that is gone is not returned")
	}
	inodes := 0
	d.Inodes(func(share.Inode) bool { inodes++; return true })
	if n, _ := d.Len(); n != 0 || alive() || inodes != 0 || in.Path() != "" {
		t.Errorf("%d inodes are left, %d listed", n, inodes)
	}
	if _, err := in.ReadAt(make([]byte, 1), 0); !errors.Is(err, share.ErrNoBacking) {
		t.Errorf("a forgotten inode: %v, want %v", err, share.ErrNoBacking)
	}
	d.Forget(index, 1)
	d.Forget(1<<40, 1)
	if d.Ref(in, 0) {
		t.Error("a forgotten inode was referenced")
	}
	// An index is never used again: the kernel may be late to forget.
	if again := find(t, d, content("content")); again.Index() == index {
		t.Error("an index was used twice")
	}
	m.Leave()
}

// Leave must not return while a read uses the image, and no read may use it after.
func TestImageIsNotUsedAfterItLeft(t *testing.T) {
	text := strings.Repeat("y", 1<<20)
	a, b := newImage(t, map[string]string{"f": text}), newImage(t, map[string]string{"g": text})
	d := share.NewDomain("d")
	mb := b.join(d, "b")
	defer mb.Leave()
	in := find(t, d, content(text))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if n, err := in.ReadAt(buf, 4096); n != len(buf) || err != nil {
					t.Errorf("read %d, %v", n, err)
					return
				}
			}
		})
	}
	closed := errors.New("used after it left")
	for range 200 {
		a.fail.set(nil)
		m := a.join(d, "a")
		m.Leave()
		a.fail.set(closed) // as closing the file would; b's data would hide it, so ask a alone
		if err := m.Do(func(*erofs.Image) error { return nil }); err == nil {
			t.Fatal("the image can be used after it left")
		}
	}
	close(stop)
	wg.Wait()
	if n := in.Backings(); n != 1 {
		t.Errorf("%d backings are left, want 1", n)
	}
}
