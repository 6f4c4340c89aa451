package driver

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	for name, c := range map[string]struct {
		cgroup string
		files  map[string]string
		want   int64
	}{
		"none":                 {"0::/\n", nil, 0},
		"no limit":             {"0::/a\n", map[string]string{"a/memory.max": "max\n"}, 0},
		"own":                  {"0::/a/b\n", map[string]string{"a/b/memory.max": "1000\n", "a/memory.max": "max\n"}, 1000},
		"the one above":        {"0::/a/b\n", map[string]string{"a/b/memory.max": "1000\n", "a/memory.max": "500\n"}, 500},
		"of a container":       {"0::/../../pod/x\n", map[string]string{"memory.max": "700\n"}, 700},
		"version 1":            {"5:cpu:/x\n4:hugetlb,memory:/a\n", map[string]string{"memory/a/memory.limit_in_bytes": "800\n"}, 800},
		"version 1, no limit":  {"4:memory:/a\n", map[string]string{"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"version 1 beside 2":   {"4:memory:/a\n0::/a\n", map[string]string{"memory/a/memory.limit_in_bytes": "800\n", "a/memory.max": "900"}, 800},
		"something else in it": {"x\n0::/a\n", map[string]string{"a/memory.max": "-5\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range c.files {
				must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755))
				must(t, os.WriteFile(filepath.Join(root, file), []byte(text), 0o644))
			}
			cgroup := filepath.Join(root, "self")
			must(t, os.WriteFile(cgroup, []byte(c.cgroup), 0o644))
			if got, file := memoryLimit(cgroup, root); got != c.want {
				t.Errorf("%d of %s, want %d", got, file, c.want)
			}
		})
	}
	if n, _ := memoryLimit("/nonexistent", "/"); n != 0 {
		t.Errorf("without cgroups: %d", n)
	}
}
