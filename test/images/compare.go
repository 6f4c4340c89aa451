package images

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// Stat is what a tree says about a file. Times are those of stat(2).
type Stat struct {
	Mode, UID, GID      uint32
	Size                int64
	Nlink               uint64
	Rdev                uint64 // as stat(2) has it
	Mtime, Ctime, Atime [2]int64
	Ino                 uint64
	Blocks              int64 // of 512 bytes
}

// Tree is a tree of files. Paths are relative with slashes, "." is the root.
type Tree interface {
	Names(dir string) ([]string, error) // without "." and ".."
	Stat(path string) (Stat, error)     // of links themselves
	Readlink(path string) (string, error)
	Xattrs(path string) (map[string]string, error)
	Open(path string) (File, error)
}

// File is an open regular file.
type File interface {
	io.ReaderAt
	io.Closer
}

// CompareOptions loosens or bounds a comparison. The zero value compares
// everything that two file systems of the same tree have in common.
type CompareOptions struct {
	Numbers      bool // inode numbers and blocks, too: of one image
	Max          int  // differences to report, 20 if 0
	Reads        int  // reads at random offsets of each file, 3 if 0, none if negative
	Seed         uint64
	SkipDirSize  bool // sizes of directories differ
	SkipDirNlink bool
	SkipInodes   bool // don't compare which names are one inode
	OnlyMtime    bool // not ctime and atime
	SkipContent  bool
	SkipXattr    func(path, name string) bool // nil: none
	SkipPath     func(path string) bool       // nil: none; with all below it
	Instead      Tree                         // nil: none; has the contents of files that want can't read
}

// CompareTrees compares two directories, names, metadata, attributes and whole
// contents, and fails the test with the first differences and their paths.
func CompareTrees(t testing.TB, want, got string, opts CompareOptions) {
	t.Helper()
	Compare(t, Dir(want), Dir(got), opts)
}

// Compare is CompareTrees for trees of any kind. It returns how many files
// were compared.
func Compare(t testing.TB, want, got Tree, opts CompareOptions) int {
	t.Helper()
	if opts.Max == 0 {
		opts.Max = 20
	}
	if opts.Reads == 0 {
		opts.Reads = 3
	}
	c := &comparison{
		want: want, got: got, opts: opts, toGot: map[uint64]uint64{}, toWant: map[uint64]uint64{},
		rng: rand.New(rand.NewPCG(opts.Seed, 1)), a: make([]byte, compareChunk), b: make([]byte, compareChunk),
	}
	c.entry(".")
	if c.found > 0 {
		t.Errorf("%d differences between the trees (want, got):\n%s", c.found, strings.Join(c.lines, "\n"))
	}
	if c.files < 2 {
		t.Errorf("only %d files were compared", c.files)
	}
	if c.instead > 0 {
		t.Logf("%d of %d files could not be read as wanted and were compared with the other tree", c.instead, c.files)
	}
	return c.files
}

const compareChunk = 1 << 20

type comparison struct {
	want, got     Tree
	opts          CompareOptions
	rng           *rand.Rand
	files         int
	found         int
	instead       int
	lines         []string
	toGot, toWant map[uint64]uint64 // inode numbers of files with several names
	a, b          []byte
}

func (c *comparison) differ(path, format string, args ...any) {
	c.found++
	if len(c.lines) < c.opts.Max {
		c.lines = append(c.lines, fmt.Sprintf("  %q: %s", path, fmt.Sprintf(format, args...)))
	}
}

// both reports an error of one side, or different errors; false stops there.
func (c *comparison) both(path, what string, want, got error) bool {
	if want != nil || got != nil {
		c.differ(path, "%s: errors: %v, %v", what, want, got)
		return false
	}
	return true
}

func (c *comparison) entry(path string) {
	c.files++
	want, errWant := c.want.Stat(path)
	got, errGot := c.got.Stat(path)
	if !c.both(path, "stat", errWant, errGot) {
		return
	}
	c.stat(path, want, got)
	c.xattrs(path)
	if want.Mode != got.Mode {
		return
	}
	const fmtMask, dir, regular, link = 0o170000, 0o040000, 0o100000, 0o120000
	switch want.Mode & fmtMask {
	case dir:
		c.directory(path)
	case link:
		a, errWant := c.want.Readlink(path)
		b, errGot := c.got.Readlink(path)
		if c.both(path, "readlink", errWant, errGot) && a != b {
			c.differ(path, "target: %q, %q", a, b)
		}
	case regular:
		if !c.opts.SkipContent && want.Size == got.Size {
			c.content(path, want.Size)
		}
	}
}

func (c *comparison) stat(path string, want, got Stat) {
	const dir = 0o040000
	isDir := want.Mode&0o170000 == dir
	check := func(what string, a, b any) {
		if a != b {
			c.differ(path, "%s: %v, %v", what, a, b)
		}
	}
	check("mode (decimal)", want.Mode, got.Mode)
	check("uid", want.UID, got.UID)
	check("gid", want.GID, got.GID)
	check("rdev", want.Rdev, got.Rdev)
	check("mtime", want.Mtime, got.Mtime)
	if !isDir || !c.opts.SkipDirSize {
		check("size", want.Size, got.Size)
	}
	if !isDir || !c.opts.SkipDirNlink {
		check("nlink", want.Nlink, got.Nlink)
	}
	if !c.opts.OnlyMtime {
		check("ctime", want.Ctime, got.Ctime)
		check("atime", want.Atime, got.Atime)
	}
	if c.opts.Numbers {
		check("inode number", want.Ino, got.Ino)
		check("blocks", want.Blocks, got.Blocks)
	}
	if !isDir && want.Nlink > 1 && !c.opts.SkipInodes {
		a, known := c.toGot[want.Ino]
		b, back := c.toWant[got.Ino]
		if known != back || known && (a != got.Ino || b != want.Ino) {
			c.differ(path, "hard links: not the same names share the inode")
		}
		c.toGot[want.Ino], c.toWant[got.Ino] = got.Ino, want.Ino
	}
}

func (c *comparison) xattrs(path string) {
	want, errWant := c.want.Xattrs(path)
	got, errGot := c.got.Xattrs(path)
	if !c.both(path, "xattrs", errWant, errGot) {
		return
	}
	skip := func(name string) bool { return c.opts.SkipXattr != nil && c.opts.SkipXattr(path, name) }
	for name, a := range want {
		if b, ok := got[name]; skip(name) {
			continue
		} else if !ok {
			c.differ(path, "xattr %q is missing", name)
		} else if a != b {
			c.differ(path, "xattr %q: %q, %q", name, a, b)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && !skip(name) {
			c.differ(path, "xattr %q is too much", name)
		}
	}
}

func (c *comparison) directory(path string) {
	want, errWant := c.want.Names(path)
	got, errGot := c.got.Names(path)
	if !c.both(path, "readdir", errWant, errGot) {
		return
	}
	there := make(map[string]int, len(got))
	for _, name := range got {
		there[name]++
	}
	for _, name := range want {
		child := name
		if path != "." {
			child = path + "/" + name
		}
		if c.opts.SkipPath != nil && c.opts.SkipPath(child) {
			delete(there, name)
			continue
		}
		if there[name] != 1 {
			c.differ(child, "is in the directory %d times", there[name])
			continue
		}
		delete(there, name)
		c.entry(child)
	}
	for name := range there {
		c.differ(path, "has %q too much", name)
	}
}

// content compares the whole of a file, then some reads anywhere.
func (c *comparison) content(path string, size int64) {
	want, errWant := c.want.Open(path)
	if errWant == nil {
		defer func(f File) { _ = f.Close() }(want)
	}
	got, errGot := c.got.Open(path)
	if errGot == nil {
		defer func() { _ = got.Close() }()
	}
	if !c.both(path, "open", errWant, errGot) {
		return
	}
	if _, err := want.ReadAt(c.a[:min(size, compareChunk)], 0); err != nil && c.opts.Instead != nil {
		instead, err := c.opts.Instead.Open(path)
		if !c.both(path, "open instead", err, nil) {
			return
		}
		defer func() { _ = instead.Close() }()
		want = instead
		c.instead++
	}
	for off := int64(0); off < size || off == 0; off += compareChunk {
		if !c.read(path, want, got, off, compareChunk) {
			return
		}
	}
	for range c.opts.Reads {
		off := c.rng.Int64N(size + 10)
		n := 1 + c.rng.IntN(1<<c.rng.IntN(18))
		if !c.read(path, want, got, off, n) {
			return
		}
	}
}

// read compares one read of n <= compareChunk bytes.
func (c *comparison) read(path string, want, got File, off int64, n int) bool {
	a, errWant := want.ReadAt(c.a[:n], off)
	b, errGot := got.ReadAt(c.b[:n], off)
	what := fmt.Sprintf("read %d at %d", n, off)
	if errors.Is(errWant, io.EOF) != errors.Is(errGot, io.EOF) {
		return c.both(path, what, errWant, errGot)
	}
	if !errors.Is(errWant, io.EOF) && !c.both(path, what, errWant, errGot) {
		return false
	}
	if a != b {
		c.differ(path, "%s: %d bytes, %d bytes", what, a, b)
		return false
	}
	if !bytes.Equal(c.a[:a], c.b[:a]) {
		i := 0
		for c.a[i] == c.b[i] {
			i++
		}
		c.differ(path, "%s: byte %d is 0x%02x, 0x%02x (crc32 %08x, %08x)", what, off+int64(i), c.a[i], c.b[i],
			crc32.ChecksumIEEE(c.a[:a]), crc32.ChecksumIEEE(c.b[:a]))
		return false
	}
	return true
}
