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

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// image is an open image with its files and fingerprints.
type image struct {
	*erofs.Image
	files []fingerprint.File
	fp    *fingerprint.Index
	nids  map[string]uint64 // by path
	fail  *failing
}

// failing is a device that can be made to fail.
type failing struct {
	r   io.ReaderAt
	mu  sync.Mutex
	err error
	n   int
}

// count is how often it was read.
func (f *failing) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

func (f *failing) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	err := f.err
	f.n++
	f.mu.Unlock()
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
	if i.files, err = fingerprint.Files(i.Image); err != nil {
		t.Fatal(err)
	}
	if i.fp, _, err = fingerprint.Build(t.Context(), i.Image, i.files, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if err := i.Walk(func(path string, in *erofs.Inode) error { i.nids[path] = in.NID; return nil }); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *image) join(d *share.Domain, id string) *share.Member {
	return d.Join(i.Image, share.NewTag(id), i.files, i.fp)
}

// content is the path of a content in any domain.
func content(data string) string {
	return share.ContentPath(share.Key{Sum: sha256.Sum256([]byte(data)), Size: int64(len(data))})
}

func mustRead(t *testing.T, in *share.Inode, want string) {
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

	in := ma.Shared(a.nids["one"], int64(len(text)))
	if in == nil || in != mb.Shared(b.nids["two"], int64(len(text))) || in != mb.Shared(b.nids["copy"], int64(len(text))) || in != d.Find(content(text)) {
		t.Fatal("the copies are not one inode")
	}
	if in.Backings() != 3 || !in.Shared() {
		t.Errorf("%d backings, shared %v; want 3, true", in.Backings(), in.Shared())
	}
	if n, joined := d.Len(); n != 3 || joined != 2 {
		t.Errorf("%d inodes of %d images, want 3 of 2", n, joined)
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
	if m1.Shared(a.nids["f"], 7) == m2.Shared(a.nids["f"], 7) {
		t.Error("two domains of one name share an inode")
	}
}

func TestWithoutFingerprintsNothingIsShared(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content", "g": "content"})
	d := share.NewDomain("")
	m := d.Join(a.Image, share.NewTag("a"), a.files, nil)
	if n, _ := d.Len(); n != 2 || d.Find(content("content")) != nil || m.Shared(a.nids["f"], 7) != nil {
		t.Errorf("%d inodes for two equal files, want 2 private ones", n)
	}
	for _, name := range []string{"f", "g"} {
		in := d.Find(share.PrivatePath(m.Tag(), a.nids[name]))
		if in == nil || in.Shared() {
			t.Fatalf("%s has no inode of its own", name)
		}
		mustRead(t, in, "content")
	}
}

func TestPathsThatNameNothing(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content"})
	d := share.NewDomain("d")
	defer a.join(d, "a").Leave()
	good := content("content")
	if d.Find(good) == nil {
		t.Fatal("the good path finds nothing")
	}
	for _, bad := range []string{
		"", "/", "/ab", "/ab/", good + "0", good[:len(good)-1] + "8", strings.ToUpper(good), good[1:],
		"/" + good, good[:4] + "-7", strings.Replace(good, "-7", "-07", 1), strings.Replace(good, "-7", "-+7", 1), good + "/",
		"/private/", "/private/-", "/private/00-1", "/private/" + strings.Repeat("0", 32) + "-0",
	} {
		if d.Find(bad) != nil {
			t.Errorf("%q finds an inode", bad)
		}
	}
}

func TestReadMovesToAnotherBacking(t *testing.T) {
	text := strings.Repeat("x", 100_000)
	a, b := newImage(t, map[string]string{"f": text}), newImage(t, map[string]string{"g": text})
	d := share.NewDomain("d")
	ma, mb := a.join(d, "a"), b.join(d, "b")
	in := d.Find(content(text))

	broken := errors.New("disk error")
	var reported []error
	d.OnFailure(func(_ *share.Inode, err error) { reported = append(reported, err) })
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
		in := d.Find(content(text))
		before := im.fail.count()
		mustRead(t, in, text)
		if im.fail.count() == before {
			t.Errorf("%q joined and is cheaper, but is not read", codec)
		}
	}
	in := d.Find(content(text))
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
	for _, c := range []struct{ n, more, held int64 }{{100, 100, 100}, {200, 200, 300}, {800, 700, 1000}, {1, 0, 1000}} {
		if more := u.Served(c.n, 1000, c.held); more != c.more || u.Held() != c.held || u.Last() != c.held {
			t.Errorf("%d bytes served: %d more, %d held at %d; want %d, %d", c.n, more, u.Held(), u.Last(), c.more, c.held)
		}
	}
	if n := u.Dropped(); n != 1000 || u.Held() != 0 {
		t.Errorf("dropped %d, %d are held", n, u.Held())
	}
	var wg sync.WaitGroup
	var sum atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				sum.Add(u.Served(3, 20_000, 1))
			}
		})
	}
	wg.Wait()
	if sum.Load() != 20_000 || u.Held() != 20_000 {
		t.Errorf("%d more, %d held; want 20000", sum.Load(), u.Held())
	}
}

func TestInodeLivesAsLongAsSomethingKnowsIt(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content", "g": "never looked up"})
	d := share.NewDomain("d")
	m := a.join(d, "a")
	in := d.Find(content("content"))
	index := in.Index()
	m.Leave()
	if n, _ := d.Len(); n != 1 || d.Inode(index) != in {
		t.Errorf("%d inodes, want the one that the kernel knows", n)
	}
	// The image comes back while the kernel still has pages: they are good.
	m = a.join(d, "a")
	if d.Find(content("content")) != in {
		t.Error("the inode that the kernel knows was not joined")
	}
	d.Forget(index, 2)
	if d.Inode(index) != in {
		t.Error("an inode with a backing was forgotten")
	}
	d.Forget(index, 5) // more than there are
	m.Leave()
	if n, _ := d.Len(); n != 0 || d.Inode(index) != nil || len(d.Inodes()) != 0 {
		t.Errorf("%d inodes are left", n)
	}
	d.Forget(index, 1)
	d.Forget(1<<40, 1)
	// An index is never used again: the kernel may be late to forget.
	m = a.join(d, "a")
	defer m.Leave()
	if again := d.Find(content("content")); again.Index() == index {
		t.Error("an index was used twice")
	}
}

// Leave must not return while a read uses the image, and no read may use it after.
func TestImageIsNotUsedAfterItLeft(t *testing.T) {
	text := strings.Repeat("y", 1<<20)
	a, b := newImage(t, map[string]string{"f": text}), newImage(t, map[string]string{"g": text})
	d := share.NewDomain("d")
	mb := b.join(d, "b")
	defer mb.Leave()
	in := d.Find(content(text))
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
