package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// result is what one way of mounting the two images took.
type result struct {
	name, how     string
	first, second int64 // bytes of page cache: of the first image, added by the second
	apart         int64 // by how many bytes two measurements of it differ
	// The same by the addresses of the files' pages, in bytes, without metadata.
	firstPages, secondPages int64
}

// Whatever else runs on the machine changes its page cache as well. So each way
// is measured until two rounds agree within agreement, at most maxRounds times;
// then the two that are nearest count, and the table marks them.
const (
	maxRounds = 5
	agreement = 2 << 20 // bytes
)

// measure mounts the images and measures them.
func (m *machine) measure(ctx context.Context, name string, serve func(context.Context) (*mounts, error)) (r result, err error) {
	mounted, err := serve(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, mounted.close()) }()
	r = result{name: name, how: mounted.how, apart: math.MaxInt64}
	var rounds [][2]int64
	for len(rounds) < maxRounds && r.apart > agreement {
		now, err := readBoth(ctx, mounted.dirs)
		if err != nil {
			return r, err
		}
		for _, before := range rounds {
			if d := max(distance(now[0], before[0]), distance(now[1], before[1])); d < r.apart {
				r.apart = d
				r.first, r.second = (now[0]+before[0])/2, (now[1]+before[1])/2
			}
		}
		rounds = append(rounds, now)
	}
	r.firstPages, r.secondPages, err = distinctPages(ctx, mounted.dirs)
	return r, err
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// readBoth drops the page cache, reads the first and then the second image, and
// returns by how much each made it grow. It looks right after each reading,
// because an idle machine may take pages away.
func readBoth(ctx context.Context, dirs [2]string) (grown [2]int64, err error) {
	if err := dropCaches(); err != nil {
		return grown, err
	}
	var cached [3]int64
	for i := range cached {
		if i > 0 {
			if _, err := readAll(ctx, dirs[i-1]); err != nil {
				return grown, err
			}
		}
		if cached[i], err = pageCache(); err != nil {
			return grown, err
		}
	}
	return [2]int64{cached[1] - cached[0], cached[2] - cached[1]}, nil
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
