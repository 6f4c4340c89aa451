package driver

import (
	"os"
	"syscall"
	"testing"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// A plugin that is started again with a limit that is far too small evicts what nobody
// uses, and nothing of what its volumes show, which it rebuilds at the time. When they
// end, their images go, too.
func TestLimitLoweredUnderVolumes(t *testing.T) {
	n := newNode(t, "auto")
	tree := images.TinyTree(t)
	used, unused := n.image(t, "used.erofs", tree), n.image(t, "unused.erofs", tree, "-zlz4")
	want := images.KernelMount(t, used)
	const ref = "127.0.0.1:1/used:v1" // nothing answers there
	usedBlob := images.Store(t, n.config.CacheDir, used, ref)
	unusedBlob := images.Store(t, n.config.CacheDir, unused, "127.0.0.1:1/unused:v1")
	ch := n.start(t)
	must(t, n.stage(ch, "v", ref, "domain_id=d"))
	must(t, n.publish(ch, "v", "pod", ref, "domain_id=d"))
	ch.end(t, syscall.SIGKILL)
	n.config.ImageSpace = engine.ImageSpace{Limit: "1"}
	for range 2 {
		ch = n.start(t)
		eventually(t, "the unused image to go", func() bool {
			_, err := os.Stat(unusedBlob)
			return os.IsNotExist(err)
		})
		images.CompareTrees(t, want, n.path("pod"), images.CompareOptions{})
		if _, err := os.Stat(usedBlob); err != nil {
			t.Errorf("the image of a volume: %v", err)
		}
		must(t, n.publish(ch, "v", "pod2", ref, "domain_id=d"))
		must(t, n.unpublish(ch, "v", "pod2"))
		ch.end(t, syscall.SIGKILL)
	}
	ch = n.start(t)
	must(t, n.unpublish(ch, "v", "pod"))
	must(t, n.unstage(ch, "v"))
	eventually(t, "the image to go with its last volume", func() bool {
		_, err := os.Stat(usedBlob)
		return os.IsNotExist(err)
	})
	ch.end(t, syscall.SIGTERM)
}
