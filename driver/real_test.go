package driver

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	mount "k8s.io/mount-utils"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// frontKinds are the fronts that --front can force.
var frontKinds = []string{"overlay", "tree-passthrough", "tree"}

// TestRealLife: a volume and an inline volume show what the kernel shows, and
// leave nothing: no mount, descriptor, goroutine or file.
func TestRealLife(t *testing.T) {
	tree := images.TinyTree(t)
	for _, front := range frontKinds {
		t.Run(front, func(t *testing.T) {
			n := newNode(t, front)
			image := n.image(t, "a.erofs", tree)
			want := images.KernelMount(t, image)
			ch := n.start(t)
			life := func(compare bool) {
				t.Helper()
				must(t, n.stage(ch, "v", image, "domain_id=d"))
				must(t, n.publish(ch, "v", "pod1", image, "domain_id=d"))
				must(t, n.publish(ch, "v", "pod2", image, "domain_id=d"))
				must(t, n.inline(ch, "csi-1", "inline", "team", image))
				if compare {
					for _, place := range []string{"show-v", "pod1", "pod2", "inline"} {
						images.CompareTrees(t, want, n.path(place), images.CompareOptions{})
					}
					stats, err := ch.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: "v", VolumePath: n.path("pod1")})
					must(t, err)
					var fs unix.Statfs_t
					must(t, unix.Statfs(want, &fs))
					// The kernel counts inodes down from the highest number (erofs_statfs).
					bytes, inodes := int64(fs.Blocks)*fs.Bsize, int64(fs.Files-fs.Ffree)
					if u := stats.GetUsage(); len(u) != 2 || u[0].GetUsed() != bytes || u[1].GetUsed() != inodes {
						t.Errorf("usage %v, want %d bytes and %d inodes", u, bytes, inodes)
					}
				}
				must(t, n.unpublish(ch, "v", "pod1"))
				must(t, n.unpublish(ch, "v", "pod2"))
				must(t, n.unstage(ch, "v"))
				must(t, n.unpublish(ch, "csi-1", "inline"))
			}
			life(true) // what is made once and stays
			goroutines, descriptors, files := ch.goroutines(t), ch.descriptors(t), filesBelow(t, n.dir)
			for range 5 {
				life(false)
			}
			if mounts := n.volumeMounts(t); len(mounts) != 0 {
				t.Errorf("mounts are left: %q", mounts)
			}
			if after := filesBelow(t, n.dir); !slices.Equal(after, files) {
				t.Errorf("files after: %q, before: %q", after, files)
			}
			eventually(t, "the goroutines", func() bool { return ch.goroutines(t) <= goroutines })
			if after := ch.descriptors(t); len(after) > len(descriptors) {
				t.Errorf("descriptors after: %q, before: %q", after, descriptors)
			}
			ch.end(t, syscall.SIGTERM)
		})
	}
}

// A volume for pods in user namespaces has a front that the runtime can id-map,
// beside the overlay of one that is not, and none where only the overlay may be had.
func TestRealUserNamespaces(t *testing.T) {
	tree := images.TinyTree(t)
	n := newNode(t, "auto")
	image := n.image(t, "a.erofs", tree)
	ch := n.start(t)
	must(t, n.stage(ch, "plain", image, "domain_id=d"))
	must(t, n.stage(ch, "mapped", image, "domain_id=d", "userNamespaces=true"))
	want := images.KernelMount(t, image)
	images.CompareTrees(t, want, n.path("show-mapped"), images.CompareOptions{})
	list, err := engine.ReadStatus(t.Context(), n.config.StateDir)
	must(t, err)
	got := make(map[string]string)
	for _, f := range list[0].Domains[0].Fronts {
		got[strings.Join(f.Volumes, " ")] = f.Front
	}
	if want := map[string]string{"plain": "overlay", "mapped": "tree-passthrough"}; !maps.Equal(got, want) {
		t.Errorf("fronts %v, want %v", got, want)
	}
	must(t, n.unstage(ch, "mapped"))
	must(t, n.unstage(ch, "plain"))
	ch.end(t, syscall.SIGTERM)

	n = newNode(t, "overlay")
	ch = n.start(t)
	wantCode(t, n.stage(ch, "mapped", n.image(t, "a.erofs", tree), "userNamespaces=true"), codes.FailedPrecondition, "id-mapped", "--front auto")
	ch.end(t, syscall.SIGTERM)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Errorf("%s do not come back to what they were", what)
			return
		}
	}
}

// filesBelow lists the paths below dir, not those on other file systems.
func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		paths = append(paths, path)
		if d.Name() == "m" { // the engine's inner mounts
			return filepath.SkipDir
		}
		return nil
	})
	must(t, err)
	return paths
}

// TestRealRestart: after a kill and after an orderly end, the next plugin
// serves the same volumes at the same paths, without the registry that the
// image came from.
func TestRealRestart(t *testing.T) {
	tree := images.TinyTree(t)
	for _, front := range frontKinds {
		t.Run(front, func(t *testing.T) {
			n := newNode(t, front)
			image := n.image(t, "a.erofs", tree)
			want := images.KernelMount(t, image)
			registry := newRegistry(t)
			remote := registry.push(t, "app", image)
			ch := n.start(t)
			must(t, n.stage(ch, "path", image, "domain_id=d"))
			must(t, n.publish(ch, "path", "pod-path", image, "domain_id=d"))
			must(t, n.stage(ch, "remote", remote, "domain_id=d"))
			must(t, n.publish(ch, "remote", "pod-remote", remote, "domain_id=d"))
			must(t, n.inline(ch, "csi-1", "inline", "team", remote))
			registry.Close()
			places := []string{"show-path", "pod-path", "show-remote", "pod-remote", "inline"}
			for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
				ch.end(t, signal)
				if mounts := n.volumeMounts(t); len(mounts) != len(places) {
					t.Errorf("mounts after the end of the plugin: %q, want all of them", mounts)
				}
				ch = n.start(t)
				if mounts := n.volumeMounts(t); len(mounts) != len(places) {
					t.Errorf("mounts after the restart: %q", mounts)
				}
				for _, place := range places {
					images.CompareTrees(t, want, n.path(place), images.CompareOptions{})
				}
			}
			for _, id := range []string{"path", "remote"} {
				must(t, n.unpublish(ch, id, "pod-"+id))
				must(t, n.unstage(ch, id))
			}
			must(t, n.unpublish(ch, "csi-1", "inline"))
			if mounts := n.volumeMounts(t); len(mounts) != 0 {
				t.Errorf("mounts are left: %q", mounts)
			}
			if names := fileNames(t, filepath.Join(n.config.StateDir, "volumes")); len(names) != 0 {
				t.Errorf("records are left: %q", names)
			}
		})
	}
}

// TestRealChangedFile: an image used in place whose file is replaced while the
// plugin is down is not shown in place of the old one.
func TestRealChangedFile(t *testing.T) {
	n := newNode(t, "auto")
	tree := images.TinyTree(t)
	image := n.image(t, "a.erofs", tree)
	ch := n.start(t)
	must(t, n.stage(ch, "v", image))
	must(t, n.publish(ch, "v", "pod", image))
	ch.end(t, syscall.SIGKILL)
	must(t, os.Rename(n.image(t, "b.erofs", tree), image))
	ch = n.start(t)
	res, err := ch.NodeGetVolumeHealth(context.Background(), &csi.NodeGetVolumeHealthRequest{VolumeId: "v"})
	must(t, err)
	if s := res.GetVolumeHealth().GetHealthStatuses(); len(s) != 1 || s[0].GetReason() != "NotRebuilt" || !strings.Contains(s[0].GetMessage(), "other bytes") {
		t.Errorf("health %v", s)
	}
	must(t, n.unpublish(ch, "v", "pod"))
	must(t, n.unstage(ch, "v"))
	must(t, n.stage(ch, "v", image))
}

// TestRealSharing: what the driver makes of domain_id, by physical pages.
func TestRealSharing(t *testing.T) {
	n := newNode(t, "auto")
	n.config.InlineDomains = []string{"friend=d"}
	tree := t.TempDir()
	content := []byte(strings.Repeat("shared by all who may\n", 4096))
	must(t, os.WriteFile(filepath.Join(tree, "file"), content, 0o600))
	a, b := n.image(t, "a.erofs", tree), n.image(t, "b.erofs", tree, "-zlz4")
	ch := n.start(t)
	must(t, n.stage(ch, "pv-a", a, "domain_id=d"))
	must(t, n.stage(ch, "pv-b", b, "domain_id=d"))
	must(t, n.stage(ch, "pv-b2", b, "domain_id=d"))
	// Kubelet does not unstage what has others; those of one image have one superblock.
	for _, id := range []string{"pv-b", "pv-b2"} {
		if refs, err := mount.New("").GetMountRefs(n.path("staging-" + id)); err != nil || len(refs) > 0 {
			t.Errorf("mounts that kubelet takes for uses of %s: %q, %v", id, refs, err)
		}
	}
	must(t, n.stage(ch, "pv-alone", b))
	must(t, n.stage(ch, "pv-spy", b, "domain_id=namespace/team"))
	must(t, n.inline(ch, "csi-1", "inline-friend", "friend", b, "domain_id=d"))
	must(t, n.inline(ch, "csi-2", "inline-team", "team", b, "domain_id=d"))
	must(t, n.inline(ch, "csi-3", "inline-team-2", "team", a, "domain_id=other"))
	same := func(one, two string) bool {
		return images.SamePages(t, filepath.Join(n.path(one), "file"), filepath.Join(n.path(two), "file"))
	}
	for _, c := range []struct {
		one, two string
		want     bool
	}{
		{"show-pv-a", "show-pv-b", true},
		{"show-pv-a", "inline-friend", true},
		{"inline-team", "inline-team-2", true},
		{"show-pv-a", "inline-team", false},
		{"show-pv-a", "show-pv-alone", false},
		{"show-pv-spy", "inline-team", false},
	} {
		if got := same(c.one, c.two); got != c.want {
			t.Errorf("%s and %s have the same pages: %t, want %t", c.one, c.two, got, c.want)
		}
	}
}
