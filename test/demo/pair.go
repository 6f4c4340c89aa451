package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// The second version of the tree differs from the first as a rebuilt image
// does: every file has a new date, some have other bytes, bits or names.
const (
	changeEvery = 40 // files whose bytes change: 2.5 %
	addEvery    = 80 // files that come new: 1.25 %
	chmodEvery  = 10 // files whose mode changes
	redate      = 24 * time.Hour
)

// pair is two images of two versions of one tree.
type pair struct {
	tree   string
	images [2]string

	files, changed, added, chmodded int
	plain                           int64 // bytes of the pages of every file of both
	ideal                           int64 // bytes of the pages of each distinct content once
}

// makePair copies the tree, makes the second version of the copy, and builds
// an image of each.
func makePair(ctx context.Context, tree, work string) (*pair, error) {
	p := &pair{tree: tree, images: [2]string{filepath.Join(work, "v1.erofs"), filepath.Join(work, "v2.erofs")}}
	dir := filepath.Join(work, "tree")
	if err := command(ctx, "cp", "-a", "--reflink=auto", tree, dir); err != nil {
		return nil, err
	}
	var versions [2]contents
	for i, image := range p.images {
		if i == 1 {
			if err := p.change(dir, slices.Sorted(maps.Keys(versions[0]))); err != nil {
				return nil, err
			}
		}
		var err error
		if versions[i], err = scan(dir); err != nil {
			return nil, err
		}
		if err := command(ctx, "mkfs.erofs", "--preserve-mtime", image, dir); err != nil {
			return nil, err
		}
	}
	p.compare(versions)
	return p, os.RemoveAll(dir)
}

// change turns the first version of the tree, whose files are listed, into the
// second.
func (p *pair) change(dir string, files []string) error {
	p.files = len(files)
	for i, name := range files {
		file := filepath.Join(dir, name)
		info, err := os.Lstat(file)
		if err != nil {
			return err
		}
		if i%changeEvery == 0 {
			p.changed++
			if err := appendLine(file, file); err != nil {
				return err
			}
		}
		if i%addEvery == 1 {
			p.added++
			if err := os.WriteFile(file+".new", fmt.Appendf(nil, "file %d came with the second version\n", i), 0o600); err != nil {
				return err
			}
		}
		if i%chmodEvery == 3 {
			p.chmodded++
			if err := os.Chmod(file, info.Mode()^0o010); err != nil {
				return err
			}
		}
		date := info.ModTime().Add(redate)
		if err := os.Chtimes(file, date, date); err != nil {
			return err
		}
	}
	return nil
}

// appendLine adds a line to a file that others may have a hard link to.
func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, line); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// compare does the arithmetic of what sharing can save.
func (p *pair) compare(versions [2]contents) {
	distinct := make(map[content]bool)
	for _, v := range versions {
		for _, c := range v {
			p.plain += pages(c.size)
			if !distinct[c] {
				distinct[c] = true
				p.ideal += pages(c.size)
			}
		}
	}
}

func (p *pair) print() {
	sizes := [2]string{}
	for i, image := range p.images {
		if info, err := os.Stat(image); err == nil {
			sizes[i] = mib(info.Size())
		}
	}
	fmt.Printf("Two versions of %s: %d files; in the second all are re-dated,\n%d changed, %d added, %d with another mode. EROFS images of %s and %s MiB.\n\n",
		p.tree, p.files, p.changed, p.added, p.chmodded, sizes[0], sizes[1])
}

// pages is n bytes rounded up to whole pages.
func pages(n int64) int64 {
	size := int64(os.Getpagesize())
	return (n + size - 1) / size * size
}

func regular(d fs.DirEntry) bool { return d.Type().IsRegular() }
