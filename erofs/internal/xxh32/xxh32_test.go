package xxh32

import (
	"strings"
	"testing"
)

// The sums are those of XXH32 of libxxhash 0.8.1.
func TestSum(t *testing.T) {
	const user, security = 0x25bbe08f + 1, 0x25bbe08f + 6
	for _, c := range []struct {
		s    string
		seed uint32
		want uint32
	}{
		{"", 0, 0x02cc5d05},
		{"", user, 0xea92ca90},
		{"a", 0, 0x550d7456},
		{"a", user, 0x371a8cd5},
		{"abc", 0, 0x32d153ff},
		{"mime", 0, 0x80e02898},
		{"mime", user, 0xb33c10b2},
		{"selinux", security, 0x9490146b},
		{"0123456789abcde", 0, 0x1dbdfa0f},
		{"0123456789abcdef", 0, 0xc2c45b69},
		{"0123456789abcdef", user, 0x8293d144},
		{"0123456789abcdef0", security, 0xa89624b9},
		{"project.common.name", 0, 0x55a798dc},
		{"project.common.name", user, 0x7a8146f0},
		{strings.Repeat("n", 255), 0, 0xe21584a1},
		{strings.Repeat("n", 255), user, 0x62de65ec},
		{"\xff\xfe\x80", security, 0x50b29e4d},
	} {
		if got := Sum(c.s, c.seed); got != c.want {
			t.Errorf("%q with seed 0x%x: 0x%08x, want 0x%08x", c.s, c.seed, got, c.want)
		}
	}
}
