// Package images is test support: it builds EROFS images of known trees with
// mkfs.erofs, mounts them with the kernel's own EROFS and compares trees.
package images

import (
	"os"
	"testing"
)

// Need skips the test by the name of what is missing, or fails it where CI is
// set, because nothing is skipped there.
func Need(t testing.TB, what string, ok bool) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("this test needs %s", what)
}
