package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
)

const (
	// bigFiles is how many large files there are.
	bigFiles = 8
	// Small files are between these sizes in bytes, their logarithms spread evenly.
	smallest = 256
	largest  = 16 << 10
	// perDir is how many small files are in a directory.
	perDir = 100
)

// stream is the content of a tree's regular files, one after the other, again and
// again: bytes that compress as real ones do.
type stream struct {
	dir   string
	files []string
	next  int
	open  *os.File
	empty int // files in a row that gave nothing
}

func newStream(dir string) (*stream, error) {
	files, err := regularFiles(dir)
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s holds no regular file", dir)
	}
	return &stream{dir: dir, files: files}, err
}

// Read never ends.
func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.open == nil {
			f, err := os.Open(filepath.Join(s.dir, s.files[s.next%len(s.files)]))
			if err != nil {
				return 0, err
			}
			s.open = f
			s.next++
		}
		n, err := s.open.Read(p)
		if n > 0 {
			s.empty = 0
			return n, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if s.empty++; s.empty > len(s.files) {
			return 0, fmt.Errorf("%s holds only empty files", s.dir)
		}
		s.close()
	}
}

func (s *stream) close() {
	if s.open != nil {
		_ = s.open.Close()
		s.open = nil
	}
}

// writeBig cuts total bytes of a tree's content into bigFiles files.
func writeBig(ctx context.Context, tree, dir string, total int64) error {
	return cut(ctx, tree, dir, bigFiles, func(i int) (string, int64) {
		return fmt.Sprintf("large%d", i), total / bigFiles
	})
}

// writeSmall cuts count small files, of the same sizes each time, from a tree's
// content.
func writeSmall(ctx context.Context, tree, dir string, count int) error {
	random := rand.New(rand.NewPCG(1, 2))
	return cut(ctx, tree, dir, count, func(i int) (string, int64) {
		size := smallest * math.Exp(random.Float64()*math.Log(largest/smallest))
		return fmt.Sprintf("d%03d/f%02d", i/perDir, i%perDir), int64(size)
	})
}

// cut writes count files of what plan says, with pieces of a tree's content that
// follow each other.
func cut(ctx context.Context, tree, dir string, count int, plan func(i int) (name string, size int64)) error {
	s, err := newStream(tree)
	if err != nil {
		return err
	}
	defer s.close()
	for i := range count {
		if err := ctx.Err(); err != nil {
			return err
		}
		name, size := plan(i)
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, s, size)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
