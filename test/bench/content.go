package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// content is a file's bytes, and which inode of its tree they are.
type content struct {
	sum  [sha256.Size]byte
	size int64
	ino  uint64
}

// contents are the regular files of a tree, by their paths in it.
type contents map[string]content

// scan hashes every regular file below a directory.
func scan(ctx context.Context, dir string) (contents, error) {
	names, err := regularFiles(dir)
	if err != nil {
		return nil, err
	}
	found := make(contents, len(names))
	var mu sync.Mutex
	var errs []error
	next := make(chan string)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for name := range next {
				c, err := hash(filepath.Join(dir, name))
				mu.Lock()
				found[name] = c
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		next <- name
	}
	close(next)
	wg.Wait()
	return found, errors.Join(errs...)
}

func hash(path string) (c content, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return c, err
	}
	c, err = hashReader(f)
	c.ino = st.Ino
	return c, err
}

func hashReader(r io.Reader) (c content, err error) {
	h := sha256.New()
	c.size, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 1<<20))
	h.Sum(c.sum[:0])
	return c, err
}

// verify reads every file of a mounted image and compares it with what the image
// was made of.
func (im *image) verify(ctx context.Context, dir string) error {
	got, err := scan(ctx, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", im.name, err)
	}
	for name, want := range im.want {
		c, ok := got[name]
		if !ok {
			return fmt.Errorf("%s: %s is missing", im.name, name)
		}
		if c.sum != want.sum || c.size != want.size {
			return fmt.Errorf("%s: %s has other content than the file it was made of", im.name, name)
		}
	}
	if len(got) != len(im.want) {
		return fmt.Errorf("%s: %d files, want %d", im.name, len(got), len(im.want))
	}
	return nil
}

// same makes sure that r has what the file of that name had.
func (im *image) same(name string, r io.Reader) error {
	want, ok := im.want[name]
	if !ok {
		return fmt.Errorf("%s: %s is too much", im.name, name)
	}
	c, err := hashReader(r)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", im.name, name, err)
	}
	if c.sum != want.sum || c.size != want.size {
		return fmt.Errorf("%s: %s has other content than the file it was made of", im.name, name)
	}
	return nil
}

// page is what the page cache of a file is rounded up to.
const page = 4096

func pages(n int64) int64 { return (n + page - 1) / page * page }

// ideal is the page cache that two images need when equal content is there once.
type ideal struct {
	bytes int64 // each distinct content, rounded up to whole pages
	plain int64 // each file of each image; hard links once
	// first is a file of each distinct content: the tree it is in, and its path.
	first []place
}

type place struct {
	tree int
	path string
}

func newIdeal(trees ...contents) *ideal {
	type identity struct {
		sum  [sha256.Size]byte
		size int64
	}
	d := &ideal{}
	distinct := make(map[identity]bool)
	for i, tree := range trees {
		inodes := make(map[uint64]bool)
		for path, c := range tree {
			if !inodes[c.ino] {
				inodes[c.ino] = true
				d.plain += pages(c.size)
			}
			if key := (identity{c.sum, c.size}); c.size > 0 && !distinct[key] {
				distinct[key] = true
				d.bytes += pages(c.size)
				d.first = append(d.first, place{i, path})
			}
		}
	}
	return d
}
