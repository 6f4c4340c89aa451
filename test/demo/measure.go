package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// result is what one way of mounting the two images took.
type result struct {
	name, how     string
	first, second int64 // bytes of page cache: of the first image, added by the second
	same, probed  int   // pages of the probe file: at one address in both mounts, in all
}

// measure mounts the images, reads the first and then the second, and unmounts
// them. The page cache is looked at right after each reading, because an idle
// machine may take pages away.
func (m *machine) measure(ctx context.Context, name string, serve func(context.Context) (*mounts, error)) (r result, err error) {
	mounted, err := serve(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, mounted.close()) }()
	r = result{name: name, how: mounted.how}
	if err := dropCaches(); err != nil {
		return r, err
	}
	var cached [3]int64
	for i := range cached {
		if i > 0 {
			if _, err := readAll(ctx, mounted.dirs[i-1]); err != nil {
				return r, err
			}
		}
		if cached[i], err = pageCache(); err != nil {
			return r, err
		}
	}
	r.first, r.second = cached[1]-cached[0], cached[2]-cached[1]
	r.same, r.probed, err = samePages(filepath.Join(mounted.dirs[0], m.pair.probe), filepath.Join(mounted.dirs[1], m.pair.probe))
	return r, err
}

func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("%w: run the demo where the page cache can be dropped", err)
	}
	return nil
}

// pageCache returns the bytes of the whole machine's page cache.
func pageCache() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Cached:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo names no Cached")
}

// samePages counts at how many places two files of equal size have the same
// physical page, with both mapped at once, so that none is freed in between.
func samePages(a, b string) (same, total int, err error) {
	framesA, unmapA, err := mapFrames(a)
	if err != nil {
		return 0, 0, err
	}
	defer unmapA()
	framesB, unmapB, err := mapFrames(b)
	if err != nil {
		return 0, 0, err
	}
	defer unmapB()
	if len(framesA) != len(framesB) {
		return 0, 0, fmt.Errorf("%s and %s differ in size", a, b)
	}
	for i := range framesA {
		if framesA[i] == framesB[i] {
			same++
		}
	}
	return same, len(framesA), nil
}
