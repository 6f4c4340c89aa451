package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPath is in a directory with a short name, for a socket's has 107 bytes.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "holder-") //nolint:usetesting // the path of a test with a long name is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// running is a holder in this process.
type running struct {
	path string
	end  func() // ends it, and waits for that

	mu  sync.Mutex
	log strings.Builder
}

// start serves at path until the test ends.
func start(t *testing.T, path string) *running {
	t.Helper()
	return startWith(t, path, 0)
}

// startWith starts one that lets go of what is abandoned.
func startWith(t *testing.T, path string, abandonAfter time.Duration) *running {
	t.Helper()
	r := &running{path: path}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- serve(ctx, path, abandonAfter, func(format string, args ...any) {
			r.mu.Lock()
			defer r.mu.Unlock()
			fmt.Fprintf(&r.log, format+"\n", args...)
		}, func() { close(ready) })
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("holder: %v", err)
	}
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("holder: %v", err)
		}
	})
	t.Cleanup(r.end)
	return r
}

func (r *running) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func dial(t *testing.T, path, name string) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, path, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// memfd is a file with text, at whose begin it is read next.
func memfd(t *testing.T, text string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "memfd")
	t.Cleanup(func() { _ = f.Close() })
	_, err = f.WriteString(text)
	must(t, err)
	_, err = f.Seek(0, io.SeekStart)
	must(t, err)
	return f
}

// items are what is kept, with files that are closed when the test ends.
func items(t *testing.T, c *Client) []Item {
	t.Helper()
	list, err := c.Items()
	must(t, err)
	for _, it := range list {
		t.Cleanup(it.close)
	}
	return list
}

// openFiles counts this process' descriptors, but those of files that earlier tests
// have forgotten.
func openFiles(t *testing.T) int {
	t.Helper()
	runtime.GC()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list) - 1 // that of the reading itself
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// summary is items as text: key=meta/first bytes of each file.
func summary(t *testing.T, list []Item) string {
	t.Helper()
	var parts []string
	for _, it := range list {
		part := it.Key + "=" + string(it.Meta)
		for _, f := range it.Files {
			b := make([]byte, 100)
			n, err := f.ReadAt(b, 0)
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			part += "/" + string(b[:n])
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}

// TestKeep: what is put can be had, in order of the keys, is replaced and deleted.
func TestKeep(t *testing.T) {
	path := socketPath(t)
	r := start(t, path)
	c := dial(t, path, "engine")
	a, b := memfd(t, "a"), memfd(t, "b")
	must(t, c.Put("2", []byte("two"), a))
	must(t, c.Put("1", nil, a, b))
	must(t, c.Put("3", []byte("three")))
	if got := summary(t, items(t, c)); got != "1=/a/b 2=two/a 3=three" {
		t.Errorf("kept: %s", got)
	}
	must(t, c.Put("2", []byte("2"), b))
	must(t, c.Delete("1", "nothing"))
	list := items(t, c)
	if got := summary(t, list); got != "2=2/b 3=three" {
		t.Errorf("kept: %s", got)
	}
	flags, err := unix.FcntlInt(list[0].Files[0].Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %x, %v: not closed on exec", flags, err)
	}
	must(t, c.Close())
	if err := c.Put("4", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("put after close: %v", err)
	}

	c = dial(t, path, "engine")
	if got := summary(t, items(t, c)); got != "2=2/b 3=three" {
		t.Errorf("kept for another client: %s", got)
	}
	if got := items(t, dial(t, path, "other")); len(got) != 0 {
		t.Errorf("kept under another name: %v", got)
	}
	must(t, c.Delete("2", "3"))
	must(t, c.Close())
	r.end()
	if !strings.Contains(r.logged(), "0 descriptors of 0 items are let go") {
		t.Errorf("log: %s", r.logged())
	}
}

// TestSameFile: what is taken back is the same open file, not another of the same name.
func TestSameFile(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	c := dial(t, path, "engine")
	f := memfd(t, "abcdef")
	must(t, c.Put("k", nil, f))
	_, err := f.Seek(3, io.SeekStart)
	must(t, err)
	must(t, f.Close())
	must(t, c.Close())
	rest, err := io.ReadAll(items(t, dial(t, path, "engine"))[0].Files[0])
	if err != nil || string(rest) != "def" {
		t.Errorf("read %q, %v; want what is after the offset", rest, err)
	}
}

// TestClaimWaits: a name is one client's at a time.
func TestClaimWaits(t *testing.T) {
	path := socketPath(t)
	start(t, path)
	first := dial(t, path, "engine")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, path, "engine")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), fmt.Sprintf(`process %d has the name "engine"`, os.Getpid())) {
		t.Errorf("second client: %v", err)
	}
	order := make(chan int, 3)
	for i := range 3 {
		go func() {
			c, err := Dial(t.Context(), path, "engine")
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			time.Sleep(10 * time.Millisecond)
			_ = c.Close()
		}()
	}
	select {
	case i := <-order:
		t.Fatalf("client %d did not wait", i)
	case <-time.After(100 * time.Millisecond):
	}
	must(t, first.Close())
	var got []int
	for range 3 {
		select {
		case i := <-order:
			got = append(got, i)
		case <-time.After(20 * time.Second):
			t.Fatal("nobody got the name")
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("clients %v", got)
	}
}

// TestHolderLost: a client outlives its holder, and the next one keeps the same.
func TestHolderLost(t *testing.T) {
	path := socketPath(t)
	r := start(t, path)
	c := dial(t, path, "engine")
	changes := make(chan Status, 10)
	c.OnChange(func(s Status) { changes <- s })
	must(t, c.Put("old", []byte("1"), memfd(t, "old")))
	must(t, c.Put("gone", nil, memfd(t, "gone")))
	r.end()
	if s := <-changes; s.Connected || s.Losses != 1 || s.Pending != 2 || s.Err == nil {
		t.Errorf("after the loss: %+v", s)
	}
	if _, err := c.Items(); !errors.Is(err, ErrLost) {
		t.Errorf("items while lost: %v", err)
	}
	must(t, c.Put("new", []byte("2"), memfd(t, "new")))
	must(t, c.Delete("gone"))
	start(t, path)
	if s := <-changes; !s.Connected || s.Items != 2 || s.Pending != 0 || s.Err != nil {
		t.Errorf("with a new holder: %+v", s)
	}
	must(t, c.Close())
	if got := summary(t, items(t, dial(t, path, "engine"))); got != "new=2/new old=1/old" {
		t.Errorf("kept: %s", got)
	}
}

// TestTakenOver: what was taken over is put again, too, but for files that were closed.
func TestTakenOver(t *testing.T) {
	path := socketPath(t)
	r := start(t, path)
	c := dial(t, path, "engine")
	must(t, c.Put("a", []byte("1"), memfd(t, "a")))
	must(t, c.Put("b", nil, memfd(t, "b")))
	must(t, c.Close())
	c = dial(t, path, "engine")
	items(t, c)[1].close()
	r.end()
	start(t, path)
	eventually(t, "connected again", func() bool { s := c.Status(); return s.Losses == 1 && s.Connected })
	if s := c.Status(); s.Items != 1 || !errors.Is(s.Err, os.ErrClosed) {
		t.Errorf("status %+v", s)
	}
	must(t, c.Close())
	if got := summary(t, items(t, dial(t, path, "engine"))); got != "a=1/a" {
		t.Errorf("kept: %s", got)
	}
}

// TestAttach: a client that begins without a holder replaces what its predecessor kept.
func TestAttach(t *testing.T) {
	path := socketPath(t)
	c, err := Attach(path, "engine")
	must(t, err)
	must(t, c.Put("a", []byte("mine")))
	must(t, c.Close())

	start(t, path)
	c = dial(t, path, "engine")
	must(t, c.Put("a", []byte("theirs")))
	must(t, c.Put("b", nil, memfd(t, "theirs")))
	late, err := Attach(path, "engine")
	must(t, err)
	defer func() { must(t, late.Close()) }()
	must(t, late.Put("a", []byte("mine"), memfd(t, "mine")))
	must(t, c.Close())
	eventually(t, "connected", func() bool { return late.Status().Connected })
	if got := summary(t, items(t, late)); got != "a=mine/mine" {
		t.Errorf("kept: %s", got)
	}
}

// BenchmarkPut replaces an item of a mount's size.
func BenchmarkPut(b *testing.B) {
	c, file := benchmarked(b)
	for b.Loop() {
		if err := c.Put("key", make([]byte, 1024), file, file); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTakeOver claims a name with 500 descriptors of 250 items, and takes them.
func BenchmarkTakeOver(b *testing.B) {
	c, file := benchmarked(b)
	for i := range 250 {
		if err := c.Put(fmt.Sprint(i), make([]byte, 1024), file, file); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		_ = c.Close()
		var err error
		if c, err = Dial(b.Context(), c.path, "engine"); err != nil {
			b.Fatal(err)
		}
		list, err := c.Items()
		if err != nil || len(list) != 250 {
			b.Fatal(len(list), err)
		}
		for _, it := range list {
			it.close()
		}
	}
	_ = c.Close()
}

func benchmarked(b *testing.B) (*Client, *os.File) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "s")
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(b.Context())
	go func() {
		defer close(done)
		_ = Serve(ctx, path, func(string, ...any) {})
	}()
	c, err := Dial(ctx, path, "engine")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close(); cancel(); <-done })
	fd, err := unix.MemfdCreate("kept", unix.MFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "kept")
	b.Cleanup(func() { _ = file.Close() })
	return c, file
}
