package driver

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// pod is a shell in a mount namespace of its own.
type pod struct {
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

// startPod starts a shell by unshare(1) with some flags.
func startPod(t *testing.T, flags ...string) *pod {
	t.Helper()
	p := &pod{cmd: exec.Command("unshare", append(flags, "sh")...)}
	in, write, err := os.Pipe()
	must(t, err)
	read, out, err := os.Pipe()
	must(t, err)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, out, out
	p.in, p.out = write, bufio.NewReader(read)
	must(t, p.cmd.Start())
	_ = in.Close()
	_ = out.Close()
	t.Cleanup(func() {
		p.end()
		_ = read.Close()
	})
	return p
}

func (p *pod) end() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// run runs a command in the pod, and returns what it prints and whether it succeeds.
func (p *pod) run(t *testing.T, command string, args ...any) (text string, ok bool) {
	t.Helper()
	_, err := fmt.Fprintf(p.in, command+"\necho \"=$?\"\n", args...)
	must(t, err)
	for {
		line, err := p.out.ReadString('\n')
		must(t, err)
		if code, found := strings.CutPrefix(line, "="); found {
			return text, strings.TrimSpace(code) == "0"
		}
		text += line
	}
}

func (p *pod) must(t *testing.T, command string, args ...any) string {
	t.Helper()
	text, ok := p.run(t, command, args...)
	if !ok {
		t.Fatalf("%s: %s", fmt.Sprintf(command, args...), text)
	}
	return text
}

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
			private, slave := startPod(t, "-m", "--propagation", "private"), startPod(t, "-m", "--propagation", "slave")
			for _, p := range []*pod{private, slave} {
				p.must(t, "cd %s", at)
				p.must(t, "mount --bind %s whole && mount -o remount,bind,ro,nosuid whole", n.path("show-v"))
				p.must(t, "mount --bind %s/below sub", n.path("show-v"))
				p.must(t, "mount --bind %s/below/file one", n.path("show-v"))
				p.must(t, "mount --bind %s inline", n.path("inline"))
			}
			users := startPod(t, "-U", "-r", "-m", "--propagation", "private")
			users.must(t, "cat %s/below/file", n.path("show-v"))

			ch.end(t, syscall.SIGKILL)
			stop()
			if text, ok := private.run(t, "dd if=whole/below/file iflag=direct"); ok {
				t.Fatalf("the mount is not dead: %s", text)
			}
			_ = startHolder(t, n.config.Holder)
			ch = n.start(t)
			for i, p := range []*pod{private, slave} {
				for _, file := range []string{"whole/below/file", "sub/file", "one", "inline/below/file"} {
					if text, ok := p.run(t, "dd if=%s iflag=direct status=none", file); !ok || text != "below\n" {
						t.Errorf("pod %d: %s: %q", i, file, text)
					}
				}
				if got := p.must(t, "grep -c ' %s/' /proc/self/mountinfo", at); strings.TrimSpace(got) != "4" {
					t.Errorf("pod %d has %s mounts", i, got)
				}
				if got := p.must(t, "grep ' %s/whole ' /proc/self/mountinfo", at); !strings.Contains(got, " ro,nosuid,nodev") {
					t.Errorf("flags: %s", got)
				}
			}
			// The pod in a user namespace keeps what is dead, and the volume says so.
			if h := n.health(t, ch, "v"); !strings.Contains(h, reasonPodMountDead) {
				t.Errorf("health %q", h)
			}
			users.end()
			for start := time.Now(); n.health(t, ch, "v") != ""; time.Sleep(50 * time.Millisecond) {
				if time.Since(start) > 10*time.Second {
					t.Fatalf("the pod is gone, and the volume: %s", n.health(t, ch, "v"))
				}
			}
			private.end()
			slave.end()
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
