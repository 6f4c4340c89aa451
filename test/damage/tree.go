package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// treeMaker makes the tree below root. It keeps the first error.
type treeMaker struct {
	root string
	rng  *rand.Rand
	err  error
}

// makeTree makes a tree of about 400 KB and some 150 files in root, always the
// same, in which every structure of the format has its use. It needs no
// privileges, but a file system with user attributes.
func makeTree(root string) error {
	t := &treeMaker{root: root, rng: rand.New(rand.NewPCG(9, 4))}
	text := t.text(130_000)
	t.file("text", text[:100_000])
	t.file("random", t.random(40_000))
	t.file("mixed", slicesOf(text[40_000:70_000], t.random(30_000), make([]byte, 20_000), text[10_000:31_111]))
	t.file("again", slicesOf(text[60_000:90_000], text[100_001:120_000], text[60_000:90_000]))
	t.file("zeros", make([]byte, 30_000))
	t.file("tail", text[120_000:125_000]) // a block and some
	t.file("small", text[:700])
	t.file("one", []byte("1"))
	t.file("empty", nil)
	for i := range 12 {
		t.file(fmt.Sprintf("dir/some%02d", i), text[i*1000:i*1000+900+i*300])
	}
	for i := range 120 { // entries in two blocks and a tail
		t.file(fmt.Sprintf("many/%s-%03d", strings.Repeat("name", 12), i), []byte{byte(i)})
	}
	t.file("dir/below/file", []byte("text below"))
	t.do(os.Symlink("dir/below", t.path("link")))
	t.do(os.Symlink(strings.Repeat("long/", 40)+"target", t.path("dir/long link")))
	t.do(os.Link(t.path("small"), t.path("dir/hard")))
	t.do(unix.Mkfifo(t.path("fifo"), 0o600))
	for i, name := range []string{"text", "tail", "small", "one", "dir", "dir/some00", "dir/some01", "dir/some02"} {
		t.xattr(name, "user.shared", "the same everywhere")
		t.xattr(name, "user.project.id", "a long prefix, and shared")
		t.xattr(name, "user.own", fmt.Sprint("the value of ", i))
		t.xattr(name, "user.project.own", strings.Repeat("x", i+1))
	}
	t.xattr("dir/some03", "user.alone", "an inline attribute")
	t.times()
	return t.err
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func (t *treeMaker) do(err error) { t.err = errors.Join(t.err, err) }

func (t *treeMaker) path(name string) string { return filepath.Join(t.root, name) }

func (t *treeMaker) file(name string, data []byte) {
	t.do(os.MkdirAll(filepath.Dir(t.path(name)), 0o755))
	t.do(os.WriteFile(t.path(name), data, 0o644))
}

func (t *treeMaker) xattr(name, attr, value string) {
	if err := unix.Lsetxattr(t.path(name), attr, []byte(value), 0); err != nil {
		t.do(fmt.Errorf("attribute %s of %s: %w", attr, t.path(name), err))
	}
}

// random is n bytes that do not compress.
func (t *treeMaker) random(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(t.rng.Uint32())
	}
	return p
}

// text is n bytes that compress to a third or so.
func (t *treeMaker) text(n int) []byte {
	words := make([]string, 500)
	for i := range words {
		words[i] = fmt.Sprintf("%x", t.rng.Uint32N(1<<20))
	}
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(words[t.rng.IntN(len(words))])
		b.WriteByte(" \n"[t.rng.IntN(8)/7])
	}
	return b.Bytes()[:n]
}

// times sets every file's time, directories after what is in them.
func (t *treeMaker) times() {
	var paths []string
	t.do(filepath.WalkDir(t.root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSymlink == 0 {
			paths = append(paths, path)
		}
		return err
	}))
	for i := len(paths) - 1; i >= 0; i-- {
		when := time.Unix(1_700_000_000+int64(i), 0)
		t.do(os.Chtimes(paths[i], when, when))
	}
}
