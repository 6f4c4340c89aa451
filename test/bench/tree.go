package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The second version of a tree that was not given as a pair differs from the
// first as a rebuilt image does: all is re-dated, some files have other bytes, a
// few are new.
const (
	changeEvery = 40
	addEvery    = 80
	redate      = 24 * time.Hour
)

// contentTree is the tree whose files' content other files are made of: the first
// that was asked for, or Go's.
func (b *bench) contentTree(ctx context.Context) (string, error) {
	switch {
	case len(b.trees) > 0:
		return b.trees[0], nil
	case len(b.corpus) > 0 && b.corpus[0].tree != "":
		return b.corpus[0].tree, nil
	case b.pairs != "":
		names, err := b.corpusNames()
		if err != nil {
			return "", err
		}
		return filepath.Join(b.pairs, names[0]+"-A"), nil
	}
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w: name trees with -trees or -pairs", err)
	}
	return filepath.EvalSymlinks(strings.TrimSpace(string(out)))
}

// chooseTrees returns the pair that was asked for, or Go's tree and a changed copy.
func (b *bench) chooseTrees(ctx context.Context) (pair [2]string, err error) {
	if len(b.trees) == 2 {
		return [2]string(b.trees), nil
	}
	if pair[0], err = b.contentTree(ctx); err != nil {
		return pair, err
	}
	pair[1] = filepath.Join(b.work, "trees", "second")
	if err := os.MkdirAll(filepath.Dir(pair[1]), 0o700); err != nil {
		return pair, err
	}
	progress("making a second version of %s", pair[0])
	if err := command(ctx, "cp", "-a", "--reflink=auto", pair[0], pair[1]); err != nil {
		return pair, err
	}
	return pair, change(ctx, pair[1])
}

// change makes a copy of the first version the second.
func change(ctx context.Context, dir string) error {
	files, err := regularFiles(dir)
	if err != nil {
		return err
	}
	for i, name := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		file := filepath.Join(dir, name)
		info, err := os.Lstat(file)
		if err != nil {
			return err
		}
		if i%changeEvery == 0 {
			if err := appendTo(file, fmt.Sprintf("\nchanged: %d\n", i)); err != nil {
				return err
			}
		}
		if i%addEvery == 1 {
			if err := os.WriteFile(file+".new", fmt.Appendf(nil, "new: %d\n", i), 0o600); err != nil {
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

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// regularFiles lists the regular files below a directory, by their paths in it, in
// the order of the names.
func regularFiles(dir string) (files []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		files = append(files, name)
		return err
	})
	return files, err
}
