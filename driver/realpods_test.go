package driver

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/test/images"
	"github.com/erofs-csi/erofs-csi/test/pod"
)

// TestRealPods: plugin and holder are killed under pods in mount namespaces of their own.
// When the plugin is back, what they had mounted can be opened again, whole volumes and
// subPaths, on each front; what is id-mapped or another user's is told of.
func TestRealPods(t *testing.T) {
	tree := images.TinyTree(t)
	must(t, os.Mkdir(filepath.Join(tree, "below"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "below", "file"), []byte("below\n"), 0o644))
	for _, front := range frontKinds {
		t.Run(front, func(t *testing.T) {
			n := newNode(t, front)
			n.pods = true
			n.config.Holder = filepath.Join(n.dir, "holder.sock")
			stop := startHolder(t, n.config.Holder)
			image := n.image(t, "a.erofs", tree)
			ch := n.start(t)
			must(t, n.stage(ch, "v", image, "domain_id=d"))
			must(t, n.inline(ch, "csi-1", "inline", "team", image))
			at := filepath.Join(n.dir, "pod")
			for _, d := range []string{"whole", "sub", "inline"} {
				must(t, os.MkdirAll(filepath.Join(at, d), 0o755))
			}
			must(t, os.WriteFile(filepath.Join(at, "one"), nil, 0o600))
			private, slave := pod.Start(t, "-m", "--propagation", "private"), pod.Start(t, "-m", "--propagation", "slave")
			for _, p := range []*pod.Pod{private, slave} {
				p.Run(t, "cd %s", at)
				p.Run(t, "mount --bind %s whole && mount -o remount,bind,ro,nosuid whole", n.path("show-v"))
				p.Run(t, "mount --bind %s/below sub", n.path("show-v"))
				p.Run(t, "mount --bind %s/below/file one", n.path("show-v"))
				p.Run(t, "mount --bind %s inline", n.path("inline"))
			}
			users := pod.Start(t, "-U", "-r", "-m", "--propagation", "private")
			users.Run(t, "cat %s/below/file", n.path("show-v"))

			ch.end(t, syscall.SIGKILL)
			stop()
			if text, ok := private.Try(t, "dd if=whole/below/file iflag=direct"); ok {
				t.Fatalf("the mount is not dead: %s", text)
			}
			_ = startHolder(t, n.config.Holder)
			ch = n.start(t)
			for i, p := range []*pod.Pod{private, slave} {
				for _, file := range []string{"whole/below/file", "sub/file", "one", "inline/below/file"} {
					if text, ok := p.Try(t, "dd if=%s iflag=direct status=none", file); !ok || text != "below\n" {
						t.Errorf("pod %d: %s: %q", i, file, text)
					}
				}
				if got := p.Run(t, "grep -c ' %s/' /proc/self/mountinfo", at); strings.TrimSpace(got) != "4" {
					t.Errorf("pod %d has %s mounts", i, got)
				}
				if got := p.Run(t, "grep ' %s/whole ' /proc/self/mountinfo", at); !strings.Contains(got, " ro,nosuid,nodev") {
					t.Errorf("flags: %s", got)
				}
			}
			// The pod in a user namespace keeps what is dead, and the volume says so.
			if h := n.health(t, ch, "v"); !strings.Contains(h, reasonPodMountDead) {
				t.Errorf("health %q", h)
			}
			users.End()
			for start := time.Now(); n.health(t, ch, "v") != ""; time.Sleep(50 * time.Millisecond) {
				if time.Since(start) > 10*time.Second {
					t.Fatalf("the pod is gone, and the volume: %s", n.health(t, ch, "v"))
				}
			}
			private.End()
			slave.End()
			must(t, n.unstage(ch, "v"))
			must(t, n.unpublish(ch, "csi-1", "inline"))
			if mounts := n.volumeMounts(t); len(mounts) != 0 {
				t.Errorf("mounts are left: %q", mounts)
			}
			for _, to := range ch.descriptors(t) {
				if strings.HasPrefix(to, n.dir+"/kubelet") {
					t.Errorf("still open: %s", to)
				}
			}
			ch.end(t, syscall.SIGTERM)
		})
	}
}

// health is the condition of a volume, "" if nothing is wrong.
func (n *node) health(t *testing.T, ch *child, id string) string {
	t.Helper()
	return (&plugin{NodeClient: ch.NodeClient}).health(t, id)
}
