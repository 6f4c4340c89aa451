package engine

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/erofs-csi/erofs-csi/nodecache"
	"github.com/erofs-csi/erofs-csi/nodecache/filestore"
)

// MinCacheLimit is the least CacheLimit in bytes: one reader has up to 4 MiB under
// way, and below a few of those readers would only drop each other's pages.
const MinCacheLimit = 16 << 20

// ParseCacheLimit parses a limit of page cache as Kubernetes writes quantities, such
// as 512Mi. "" is 0, no limit.
func ParseCacheLimit(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no quantity of bytes, such as 512Mi", s)
	}
	if q.CmpInt64(MinCacheLimit) < 0 || q.CmpInt64(math.MaxInt64) > 0 {
		return 0, fmt.Errorf("%q is not between %dMi and 8Ei", s, MinCacheLimit>>20)
	}
	return q.Value(), nil
}

// parseStoreLimit is the limit of StoreConfig in bytes. dir is on the file system.
func parseStoreLimit(s, dir string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if number, ok := strings.CutSuffix(s, "%"); ok {
		part, err := strconv.ParseFloat(number, 64)
		if err != nil || !(part >= 0 && part <= 100) { // NaN is neither
			return 0, fmt.Errorf("%q is not between 0%% and 100%%", s)
		}
		size, err := fileSystemSize(dir)
		return int64(float64(size) * part / 100), err
	}
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no quantity of bytes, such as 20Gi, and no part of the disk, such as 5%%", s)
	}
	if q.Sign() < 0 || q.CmpInt64(math.MaxInt64) > 0 {
		return 0, fmt.Errorf("%q is not between 0 and 8Ei", s)
	}
	return q.Value(), nil
}

// fileSystemSize is the size in bytes of the file system that a directory is on.
func fileSystemSize(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("size of the file system of %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// ImageSpace says how much of a disk a store of images may take, each as a quantity
// such as 20Gi or a part of the file system such as 15%.
type ImageSpace struct {
	// Limit is what the store may take; "" or "0": no limit.
	Limit string
	// Reserve is what pulls leave free; "": 1 % and at most 256 MiB; "0": nothing.
	Reserve string
	// EvictBelow is how much is to be free before images may stay that nobody uses;
	// "" or "0": they stay as long as they fit.
	EvictBelow string
	// Convert bounds the files of one image that is converted; "" or "0": 256 GiB.
	Convert string
}

// Apply fills in what cfg has of it. Errors name the flag that is to blame.
func (x ImageSpace) Apply(cfg *nodecache.Config) error {
	for _, f := range []struct {
		flag, value string
		bytes       *int64
	}{
		{"--image-limit", x.Limit, &cfg.LimitBytes},
		{"--disk-reserve", x.Reserve, &cfg.ReserveBytes},
		{"--evict-below", x.EvictBelow, &cfg.EvictBelowBytes},
		{"--convert-limit", x.Convert, &cfg.ConvertBytes},
	} {
		n, err := parseStoreLimit(f.value, existing(cfg.Dir))
		if err != nil {
			return fmt.Errorf("%s: %w", f.flag, err)
		}
		*f.bytes = n
	}
	if x.Reserve != "" && cfg.ReserveBytes == 0 {
		cfg.ReserveBytes = -1
	}
	return nil
}

// existing is the directory that is there of dir and its parents.
func existing(dir string) string {
	for {
		parent := filepath.Dir(dir)
		if _, err := os.Stat(dir); err == nil || parent == dir {
			return dir
		}
		dir = parent
	}
}

// ParseSize is how much of the file system of dir s says: a quantity such as 20Gi, or
// a part such as 15%.
func ParseSize(s, dir string) (int64, error) { return parseStoreLimit(s, existing(dir)) }

// StoreConfig is where an engine with the given cache directory, which must be
// there, stores files, and how much they may take: a quantity such as 20Gi, a part of
// the file system such as 5%, or "" or "0" for none. A fifth of the file system stays
// free.
func StoreConfig(cacheDir, limit string) (filestore.Config, error) {
	bytes, err := parseStoreLimit(limit, cacheDir)
	if err != nil {
		return filestore.Config{}, err
	}
	size, err := fileSystemSize(cacheDir)
	return filestore.Config{Dir: filepath.Join(cacheDir, "files"), Limit: bytes, MinFree: size / 5}, err
}
