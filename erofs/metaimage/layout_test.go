package metaimage

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// TestChunkFormat: one chunk up to 8 TiB, and never one that ends before the file.
func TestChunkFormat(t *testing.T) {
	for _, c := range []struct {
		size   int64
		log    uint32
		chunks uint64
	}{
		{1, 0, 1},
		{4096, 0, 1},
		{4097, 1, 1},
		{8192, 1, 1},
		{8193, 2, 1},
		{1 << 40, 28, 1},
		{1<<40 + 1, 29, 1},
		{chunkSpan, 31, 1},
		{chunkSpan + 1, 31, 2},
		{chunkSpan * maxChunks, 31, maxChunks},
		{math.MaxInt64, 31, 1 << 20},
	} {
		format, chunks := chunkFormat(c.size)
		if format != chunkIndexes|c.log || chunks != c.chunks {
			t.Errorf("%d bytes: format %#x, %d chunks; want %#x, %d", c.size, format, chunks, chunkIndexes|c.log, c.chunks)
		}
	}
}

// TestEncodedSizes holds the structures to the sizes of the format.
func TestEncodedSizes(t *testing.T) {
	if n := len(appendHole(nil)); n != chunkSize {
		t.Errorf("chunk index of %d bytes", n)
	}
	if len(volumeName) > 15 {
		t.Error("the volume name has no NUL at its end")
	}
}

// TestCheckName: names out of order or impossible are the image's fault.
func TestCheckName(t *testing.T) {
	in := &erofs.Inode{NID: 1}
	for _, c := range []struct{ name, last string }{
		{"", ""}, {"a/b", ""}, {"a\x00", ""}, {strings.Repeat("x", 256), ""}, {"a", "a"}, {"a", "b"},
	} {
		if err := checkName(in, c.name, c.last); !errors.Is(err, erofs.ErrCorrupt) {
			t.Errorf("%q after %q: %v", c.name, c.last, err)
		}
	}
	if err := checkName(in, "b", "a"); err != nil {
		t.Error(err)
	}
}

// TestUnreadPath names an inode for messages, however deep it is.
func TestUnreadPath(t *testing.T) {
	root := &unread{name: "."}
	a := &unread{name: "a", parent: root}
	if got := (&unread{name: "b", parent: a}).path("c"); got != "a/b/c" {
		t.Errorf("path %q", got)
	}
	if got := root.path("c"); got != "c" {
		t.Errorf("path in the root %q", got)
	}
	deep := root
	for range 100000 {
		deep = &unread{name: strings.Repeat("d", 200), parent: deep}
	}
	if got := deep.path("x"); len(got) > 2*pathMax || !strings.HasPrefix(got, ".../") {
		t.Errorf("deep path has %d bytes, starts %.10q", len(got), got)
	}
}

// TestRecord: what META can't show is refused, what no image has is corrupt.
func TestRecord(t *testing.T) {
	for _, c := range []struct {
		name string
		in   *erofs.Inode
		want error
	}{
		{"whiteout", &erofs.Inode{Mode: encode.ModeChar, Nlink: 1}, ErrNeedsTree},
		{"no links", &erofs.Inode{Mode: encode.ModeFIFO}, ErrNeedsTree},
		{"long target", &erofs.Inode{Mode: encode.ModeSymlink, Nlink: 1, Size: pathMax}, ErrNeedsTree},
		{"huge", &erofs.Inode{Mode: encode.ModeRegular, Nlink: 1, Size: chunkSpan*maxChunks + 1}, ErrNeedsTree},
		{"no type", &erofs.Inode{Mode: 0o644, Nlink: 1}, erofs.ErrCorrupt},
		{"mode", &erofs.Inode{Mode: encode.ModeFIFO | 1<<16, Nlink: 1}, erofs.ErrCorrupt},
		{"nanoseconds", &erofs.Inode{Mode: encode.ModeFIFO, Nlink: 1, MtimeNsec: maxNsec}, erofs.ErrCorrupt},
		{"size", &erofs.Inode{Mode: encode.ModeRegular, Nlink: 1, Size: -1}, erofs.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &builder{index: map[uint64]uint32{}}
			_, err := b.record(c.in, func(reason string) error { return needsTree(nil, "x", c.in, reason) })
			if !errors.Is(err, c.want) {
				t.Errorf("record: %v, want %v", err, c.want)
			}
			if len(b.recs) != 0 {
				t.Error("recorded")
			}
		})
	}
}
