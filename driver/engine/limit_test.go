package engine

import (
	"math"
	"strings"
	"testing"
)

func TestParseCacheLimit(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "16Mi": MinCacheLimit, "1.5Gi": 3 << 29, "20M": 20_000_000, "8Ei": math.MaxInt64, "7Ei": 7 << 60} {
		if got, err := ParseCacheLimit(s); got != want || err != nil {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "16Mi-1", "15Mi", "-1Gi", "much", "1e300", "NaN", " "} {
		if got, err := ParseCacheLimit(s); err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%q: %d, %v; want an error that names it", s, got, err)
		}
	}
}

func TestStoreConfig(t *testing.T) {
	dir := t.TempDir()
	size, err := fileSystemSize(dir)
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]int64{"": 0, "0": 0, "0%": 0, "20Gi": 20 << 30, "100%": size, "2.5%": size / 40} {
		got, err := StoreConfig(dir, s)
		if err != nil || math.Abs(float64(got.Limit-want)) > 1 || got.MinFree != size/5 || got.Dir != dir+"/files" {
			t.Errorf("%q: %+v, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"-1", "101%", "-1%", "%", "NaN%", "much", "1e300"} {
		if got, err := StoreConfig(dir, s); err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%q: %+v, %v; want an error that names it", s, got, err)
		}
	}
	if _, err := StoreConfig(dir+"/none", "5%"); err == nil {
		t.Error("a directory that is not there has a size")
	}
}
