package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// smallest is the least number of bytes of a tree that makes the point.
const smallest = 60 << 20

// chooseTree returns the tree to use: the one asked for, or the first large
// one that a machine with Go has.
func chooseTree(ctx context.Context, asked string) (string, error) {
	candidates := []string{asked}
	if asked == "" {
		candidates = nil
		if root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output(); err == nil {
			candidates = append(candidates, filepath.Join(strings.TrimSpace(string(root)), "src"))
		}
		python, _ := filepath.Glob("/usr/lib/python3*")
		candidates = append(append(candidates, python...), "/usr/share", "/usr/lib")
	}
	for _, dir := range candidates {
		if n, err := treeSize(dir); err == nil && n >= smallest {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no tree of at least %s MiB among %s: name one with -tree", mib(smallest), strings.Join(candidates, ", "))
}

func treeSize(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !regular(d) {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// content is what makes files share.
type content struct {
	sum  [sha256.Size]byte
	size int64
}

// contents are the regular files of a tree by their paths in it.
type contents map[string]content

func scan(dir string) (contents, error) {
	found := make(contents)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !regular(d) {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		h := sha256.New()
		c := content{}
		if c.size, err = io.Copy(h, f); err != nil {
			return err
		}
		h.Sum(c.sum[:0])
		found[name] = c
		return nil
	})
	return found, err
}

// readAll reads every regular file below dir, so that all of it is in the page
// cache, and returns the number of bytes.
func readAll(ctx context.Context, dir string) (n int64, err error) {
	buf := make([]byte, 1<<20)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !regular(d) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		for {
			k, err := f.Read(buf)
			n += int64(k)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	return n, err
}

// command runs a program and puts what it printed into the error.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
