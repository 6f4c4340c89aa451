package fusefs

import (
	"bytes"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/share"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// panicking is an image's bytes, the reading of which panics at times.
type panicking struct {
	io.ReaderAt
	now atomic.Bool
}

func (p *panicking) ReadAt(b []byte, off int64) (int, error) {
	if p.now.Load() {
		panic("a bug of the reader")
	}
	return p.ReaderAt.ReadAt(b, off)
}

// guarded calls a handler as the server does.
func guarded(f func() fuse.Status) (st fuse.Status) {
	defer func() {
		if r := recover(); r != nil {
			st = panicked(r)
		}
	}()
	return f()
}

// TestPanic: requests that panic are EIO, are counted, and leave nothing behind: no request
// under way, no buffer, no lock.
func TestPanic(t *testing.T) {
	content := make([]byte, 3*requestSize)
	_, _ = rand.Read(content)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "big"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(images.Build(t, images.NewestMkfs(t), nil, dir))
	if err != nil {
		t.Fatal(err)
	}
	src := &panicking{ReaderAt: bytes.NewReader(data)}
	im, err := erofs.Open(src, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	list, err := fingerprint.Files(im)
	if err != nil {
		t.Fatal(err)
	}
	fp, _, err := fingerprint.Build(t.Context(), im, list, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	d := share.NewDomain("d")
	m, err := d.Join(im, share.NewTag("a"), fp)
	if err != nil {
		t.Fatal(err)
	}
	fs := New(d)
	root, err := fs.AddTree(m)
	if err != nil {
		t.Fatal(err)
	}
	top, _ := walk(t, fs, root.Path())
	var out fuse.EntryOut
	look := func() fuse.Status { return fs.Lookup(nil, &fuse.InHeader{NodeId: top.NodeId}, "big", &out) }
	read := func(n int) fuse.Status {
		in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: out.NodeId}, Size: uint32(n)}
		r, st := fs.Read(nil, in, make([]byte, n))
		if st.Ok() {
			if got := sent(t, r); !bytes.Equal(got, content[:n]) {
				t.Errorf("%d bytes are wrong", n)
			}
		}
		return st
	}
	if st := look(); !st.Ok() {
		t.Fatal(st)
	}
	before, failed := Panics(), CountReads().Failed
	_, mapped := poolState()
	src.now.Store(true)
	const rounds = 3 * maxBuffers
	for i := range rounds {
		if st := guarded(func() fuse.Status { return read([]int{4096, requestSize}[i%2]) }); st != fuse.Status(syscall.EIO) {
			t.Fatalf("a panic is answered with %v", st)
		}
	}
	if n := Panics() - before; n != rounds {
		t.Errorf("%d panics are counted, want %d", n, rounds)
	}
	if n := CountReads().Failed - failed; n != rounds {
		t.Errorf("%d failures are counted, want %d", n, rounds)
	}
	if age := CountReads().Oldest; age != 0 {
		t.Errorf("a request is under way for %s", age)
	}
	if l := LongReads(0); len(l) != 0 {
		t.Errorf("under way: %+v", l)
	}
	free, now := poolState()
	if free != now || now > mapped+maxBuffers {
		t.Errorf("%d of %d buffers are back", free, now)
	}
	src.now.Store(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, st := range []fuse.Status{look(), read(4096), read(requestSize)} {
			if !st.Ok() {
				t.Errorf("after the panics: %v", st)
			}
		}
		if _, err := fs.AddTree(m); err != nil {
			t.Error(err)
		}
		m.Leave()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a lock was left locked")
	}
}

func poolState() (free, mapped int) {
	buffers.mu.Lock()
	defer buffers.mu.Unlock()
	return len(buffers.free), buffers.mapped
}
