package engine

import (
	"fmt"
	"math"

	"k8s.io/apimachinery/pkg/api/resource"
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
