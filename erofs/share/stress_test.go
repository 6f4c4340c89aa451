package share_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/fingerprint"
	"github.com/erofs-csi/erofs-csi/erofs/share"
)

// Images come and go, and with them the slots and the numbers of entries by which
// inodes are read, while readers look files up, read and forget them. Each byte read
// is that of the content asked for, and in the end nothing is known.
func TestImagesComeAndGoUnderReaders(t *testing.T) {
	const kinds, contents = 6, 40
	data := func(i int) string {
		return strings.Repeat(fmt.Sprintf("content %03d ", i), 300+i)
	}
	var list []*image
	for k := range kinds {
		files := make(map[string]string)
		for i := range contents {
			if (i+k)%3 != 0 || k == 0 {
				files[fmt.Sprintf("f%03d", (i*7+k*11)%contents)] = data(i)
			}
		}
		list = append(list, newImage(t, files, [][]string{nil, {"-zlz4"}}[k%2]...))
	}
	d := share.NewDomain("d")
	defer list[0].join(d, "0").Leave() // has all, so that no read may fail
	var stop atomic.Bool
	var wg sync.WaitGroup
	for k := 1; k < kinds; k++ {
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				m := list[k].join(d, fmt.Sprint(k))
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
				for range m.Leave() {
					t.Error("an inode that image 0 has is an orphan")
				}
			}
		})
	}
	var reads atomic.Int64
	for range 4 {
		wg.Go(func() {
			buf := make([]byte, 1<<16)
			for !stop.Load() {
				i := rand.IntN(contents)
				want := data(i)
				in, ok := d.Find(content(want), 0)
				if !ok {
					t.Errorf("content %d is not found", i)
					return
				}
				for range rand.IntN(4) {
					off := rand.IntN(len(want))
					n, err := in.ReadAt(buf[:min(len(buf), len(want)-off)], int64(off))
					if err != nil || !bytes.Equal(buf[:n], []byte(want)[off:off+n]) || in.Size() != int64(len(want)) {
						t.Errorf("content %d at %d: %d bytes, %v, are not those asked for", i, off, n, err)
						return
					}
					reads.Add(1)
				}
				if p := in.Path(); p != content(want) {
					t.Errorf("content %d is called %s", i, p)
				}
				if rand.IntN(8) == 0 {
					d.Account()
				}
				d.Forget(in.Index(), 1)
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if n, joined := d.Len(); n != 0 || joined != 1 || reads.Load() == 0 {
		t.Errorf("%d inodes of %d images are left after %d reads, want none of one", n, joined, reads.Load())
	}
}

// An image that is slow to read leaves without holding up others' readers or lookups.
func TestSlowImageThatLeavesHoldsNobodyUp(t *testing.T) {
	text := strings.Repeat("z", 100_000)
	a, b := newImage(t, map[string]string{"f": text}), newImage(t, map[string]string{"g": text})
	d := share.NewDomain("d")
	ma, mb := a.join(d, "a"), b.join(d, "b")
	in := find(t, d, content(text))
	unblock := make(chan struct{})
	inside := make(chan struct{})
	left := make(chan struct{})
	go func() {
		_ = ma.Do(func(*erofs.Image) error { close(inside); <-unblock; return nil })
	}()
	<-inside
	go func() { ma.Leave(); close(left) }()
	for d.Account(); len(d.Account().Images) != 1; {
		time.Sleep(time.Millisecond)
	}
	mustRead(t, in, text)
	if in != find(t, d, content(text)) || in.Backings() != 1 || !in.Of(mb) || in.Of(ma) {
		t.Error("the inode is not the other image's alone")
	}
	select {
	case <-left:
		t.Error("an image left while it was in use")
	default:
	}
	close(unblock)
	<-left
	mb.Leave()
}

// An index that can't be read any more costs its files, and nothing else.
func TestIndexOfAnotherImageIsNotRead(t *testing.T) {
	a := newImage(t, map[string]string{"f": "content", "g": "longer content"})
	wrong := fingerprint.NewIndex([]fingerprint.File{{NID: a.nids["g"], Size: 7}, {NID: 1 << 40, Size: 5}},
		[]fingerprint.Sum{share.Key{}.Sum, {1}})
	d := share.NewDomain("d")
	m := join(d, a, "a", wrong)
	for _, k := range []share.Key{{Size: 7}, {Sum: [32]byte{1}, Size: 5}} {
		if n, err := find(t, d, share.ContentPath(k)).ReadAt(make([]byte, 7), 0); n != 0 || err == nil || errors.Is(err, share.ErrNoBacking) {
			t.Errorf("%+v: read %d bytes, %v; want that the index is wrong", k, n, err)
		}
	}
	if orphans := m.Leave(); len(orphans) != 2 {
		t.Errorf("%d orphans, want 2", len(orphans))
	}
}

func TestAccount(t *testing.T) {
	a := newImage(t, map[string]string{"1": "one", "2": "two", "2 again": "two", "x": "only a"})
	b := newImage(t, map[string]string{"two": "two", "y": "only b!", "y again": "only b!"})
	d := share.NewDomain("d")
	ma, mb := a.join(d, "a"), b.join(d, "b")
	got := d.Account()
	if got.Contents != 4 || got.Bytes != 3+3+6+7 {
		t.Errorf("%d contents of %d bytes, want 4 of 19", got.Contents, got.Bytes)
	}
	if im := got.Images[ma]; im != (share.ImageAccount{Files: 4, Bytes: 15, SharedFiles: 2, SharedBytes: 6}) {
		t.Errorf("image a: %+v", im)
	}
	if im := got.Images[mb]; im != (share.ImageAccount{Files: 3, Bytes: 17, SharedFiles: 1, SharedBytes: 3}) {
		t.Errorf("image b: %+v", im)
	}
	if d.Account() != got {
		t.Error("the account was made twice")
	}
	ma.Leave()
	if got := d.Account(); len(got.Images) != 1 || got.Contents != 2 || got.Images[mb].SharedFiles != 0 {
		t.Errorf("after a left: %+v", got)
	}
	mb.Leave()
}
