package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// codedImages are the images of one tree that measureCodecs reads.
var codedImages = []struct {
	name  string
	opts  []string
	goals bool
}{
	{"plain", nil, false},
	{"LZ4HC 4K", []string{"-zlz4hc", "-C4096"}, true},
	{"LZ4HC 64K", []string{"-zlz4hc", "-C65536"}, true},
	{"Zstandard 16K", []string{"-zzstd", "-C16384"}, true},
	{"Zstandard 64K", []string{"-zzstd", "-C65536"}, true},
	{"LZMA 64K", []string{"-zlzma", "-C65536"}, false},
	{"DEFLATE 64K", []string{"-zdeflate,level=9", "-C65536"}, false},
	{"Zstandard, all fragments", []string{"-zzstd", "-C65536", "-Eall-fragments"}, false},
}

// makeCoded makes the images; those that mkfs.erofs can't make are left out.
func (b *bench) makeCoded(ctx context.Context, tree string) error {
	for _, c := range codedImages {
		im, err := b.makeImage(ctx, c.name, tree, c.opts...)
		if err != nil {
			if len(c.opts) == 0 {
				return err
			}
			progress("left out: %v", err)
		}
		b.coded = append(b.coded, im) // maybe nil
	}
	return nil
}

// measureCodecs reads all files of an image that is in the page cache: through
// package erofs by one and two goroutines, by fsck.erofs, which decodes all of it
// too, and through a new mount by the kernel of the file, by one and two threads.
func (b *bench) measureCodecs(ctx context.Context, t *table) error {
	for i, c := range codedImages {
		im := b.coded[i]
		if im == nil {
			continue
		}
		if err := im.verifyPackage(); err != nil {
			return fmt.Errorf("%s: %w", im.name, err)
		}
		var rates [5]sample // MB/s
		var total int64
		for _, w := range im.want {
			total += w.size
		}
		side := func(k int, read func() (time.Duration, error)) func() error {
			return func() error {
				if err := warm(im.path); err != nil {
					return err
				}
				took, err := read()
				rates[k].add(mb(total) / took.Seconds())
				return err
			}
		}
		err := turns(ctx, b.rounds,
			side(0, func() (time.Duration, error) { return im.readPackage(1) }),
			side(1, func() (time.Duration, error) { return im.readPackage(2) }),
			side(2, func() (time.Duration, error) { return im.fsck(ctx) }),
			side(3, func() (time.Duration, error) { return b.readNewMount(im, 1) }),
			side(4, func() (time.Duration, error) { return b.readNewMount(im, 2) }),
		)
		if err != nil {
			return fmt.Errorf("%s: %w", im.name, err)
		}
		var fsck, kernel *goal
		if c.goals {
			fsck, kernel = atLeast(1), atLeast(0.8)
		}
		t.compare(c.name+", one goroutine", "MB/s", "fsck.erofs", rates[0], rates[2], fsck)
		t.compare(c.name+", two goroutines", "MB/s", "fsck.erofs", rates[1], rates[2], fsck)
		t.compare(c.name+", one goroutine", "MB/s", "kernel, one thread", rates[0], rates[3], kernel)
		t.compare(c.name+", two goroutines", "MB/s", "kernel, two threads", rates[1], rates[4], kernel)
	}
	return nil
}

// open opens the image by package erofs, with nothing kept from before.
func (im *image) open() (_ *erofs.Image, f *os.File, err error) {
	if f, err = os.Open(im.path); err != nil {
		return nil, nil, err
	}
	img, err := erofs.Open(f, im.size, erofs.WithDecodedCache(erofs.NewDecodedCache(32<<20)))
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return img, f, nil
}

// readPackage reads all regular files from their starts to their ends, each once,
// by some goroutines.
func (im *image) readPackage(goroutines int) (_ time.Duration, err error) {
	runtime.GC()
	start := time.Now()
	img, f, err := im.open()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	files := make(chan *erofs.Inode, 64)
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			buf := make([]byte, readSize)
			for in := range files {
				for off := int64(0); off < in.Size && errs[i] == nil; {
					n, err := in.ReadAt(buf, off)
					if off += int64(n); err != nil && !errors.Is(err, io.EOF) {
						errs[i] = err
					}
				}
			}
		})
	}
	seen := make(map[uint64]bool) // hard links
	err = img.Walk(func(_ string, in *erofs.Inode) error {
		if in.IsRegular() && !seen[in.NID] {
			if in.Nlink > 1 {
				seen[in.NID] = true
			}
			files <- in
		}
		return nil
	})
	close(files)
	wg.Wait()
	return time.Since(start), errors.Join(append(errs, err)...)
}

// verifyPackage makes sure that package erofs reads what the tree had.
func (im *image) verifyPackage() error {
	img, f, err := im.open()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	n := 0
	err = img.Walk(func(path string, in *erofs.Inode) error {
		if !in.IsRegular() {
			return nil
		}
		n++
		return im.same(path, io.NewSectionReader(in, 0, in.Size))
	})
	if err == nil && n != len(im.want) {
		err = fmt.Errorf("%d files, not %d", n, len(im.want))
	}
	return err
}

// fsck has fsck.erofs decode everything and write nothing.
func (im *image) fsck(ctx context.Context) (time.Duration, error) {
	path := "fsck.erofs"
	if dir := os.Getenv("EROFS_UTILS"); dir != "" {
		path = filepath.Join(dir, path)
	}
	cmd := exec.CommandContext(ctx, path, "--extract", im.path)
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("fsck.erofs: %w: %s", err, out)
	}
	return time.Since(start), nil
}

// readNewMount mounts the image by the kernel, which reads it through the page
// cache of its file, and reads all files, whose names are known, by some threads.
func (b *bench) readNewMount(im *image, threads int) (_ time.Duration, err error) {
	dir, err := b.mountpoint()
	if err != nil {
		return 0, err
	}
	names := slices.Sorted(maps.Keys(im.want))
	start := time.Now()
	if err := unix.Mount(im.path, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return 0, fmt.Errorf("mount %s by the kernel's EROFS: %w", im.name, err)
	}
	defer func() { err = errors.Join(err, unmountSoon(dir)) }()
	sets := make([]*fileSet, threads)
	for i := range sets {
		if sets[i], err = openNames(im, dir, every(names, threads, i)); err != nil {
			return 0, err
		}
		defer sets[i].close()
	}
	errs := make([]error, threads)
	var wg sync.WaitGroup
	for i, set := range sets {
		wg.Go(func() { _, errs[i] = set.read() })
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}

// every returns every n-th name, from the i-th on.
func every(names []string, n, i int) (some []string) {
	for ; i < len(names); i += n {
		some = append(some, names[i])
	}
	return some
}

// warm brings a file into the page cache.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, f)
	return errors.Join(err, f.Close())
}
