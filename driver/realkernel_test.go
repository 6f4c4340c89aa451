package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/erofs-csi/erofs-csi/test/images"
)

// conditionMessage is that of the volume_condition of CSI 1.12 and older.
func conditionMessage(t *testing.T, ch *child, id, path string) (message string, abnormal bool) {
	t.Helper()
	stats, err := ch.NodeGetVolumeStats(context.Background(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: path})
	must(t, err)
	for b := []byte(stats.ProtoReflect().GetUnknown()); len(b) > 0; {
		number, _, n := protowire.ConsumeField(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		if number == fieldVolumeCondition {
			_, _, tag := protowire.ConsumeTag(b)
			in, _ := protowire.ConsumeBytes(b[tag:])
			for len(in) > 0 {
				field, _, n := protowire.ConsumeTag(in)
				in = in[n:]
				if field == fieldAbnormal {
					v, n := protowire.ConsumeVarint(in)
					abnormal, in = v != 0, in[n:]
				} else {
					s, n := protowire.ConsumeString(in)
					message, in = s, in[n:]
				}
			}
		}
		b = b[n:]
	}
	return message, abnormal
}

// TestRealKernelEngine: a volume that the kernel itself serves outlives the plugin, and
// is what was asked for or an error.
func TestRealKernelEngine(t *testing.T) {
	n := newNode(t, "auto")
	tree := images.TinyTree(t)
	image := n.image(t, "a.erofs", tree)
	want := images.KernelMount(t, image)
	ch := n.start(t)
	err := n.stage(ch, "alone", image, "engine=kernel")
	if unix.Mount(image, t.TempDir(), "erofs", unix.MS_RDONLY, "bogus") == unix.ENOTBLK {
		wantCode(t, err, codes.FailedPrecondition, "6.12") // this kernel mounts no files
		return
	}
	must(t, err)
	must(t, n.publish(ch, "alone", "pod", image, "engine=kernel"))
	images.CompareTrees(t, want, n.path("pod"), images.CompareOptions{})
	if message, abnormal := conditionMessage(t, ch, "alone", n.path("pod")); abnormal || !strings.Contains(message, "front kernel of engine kernel") {
		t.Errorf("condition %q, abnormal %t", message, abnormal)
	}
	err = n.stage(ch, "domain", image, "engine=kernel", "domain_id=d")
	if err != nil {
		wantCode(t, err, codes.FailedPrecondition, "Linux 7.3", "engine auto or fuse")
	} else if message, _ := conditionMessage(t, ch, "domain", n.path("show-domain")); !strings.Contains(message, "front kernel of engine kernel (the image has no fingerprints") {
		t.Errorf("condition %q", message)
	}
	wantCode(t, n.inline(ch, "csi-1", "inline", "team", image, "engine=kernel"), codes.InvalidArgument, "--trust-inline-namespace team")
	wantCode(t, n.stage(ch, "limit", image, "engine=kernel", "cacheLimit=64Mi"), codes.InvalidArgument, "cacheLimit")

	// A reader that has the mount keeps it when the plugin dies.
	held, err := os.Open(filepath.Join(n.path("pod")))
	must(t, err)
	defer func() { _ = held.Close() }()
	ch.end(t, syscall.SIGKILL)
	images.CompareTrees(t, want, n.path("pod"), images.CompareOptions{})
	ch = n.start(t)
	images.CompareTrees(t, want, n.path("pod"), images.CompareOptions{})
	names, err := held.Readdirnames(-1)
	if err != nil || len(names) == 0 {
		t.Errorf("the directory that was open: %q, %v", names, err)
	}
	if _, abnormal := conditionMessage(t, ch, "alone", n.path("pod")); abnormal {
		t.Error("the volume is not well after the restart")
	}

	// One that is written to is told of.
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{0}, 0)
	must(t, errors.Join(err, f.Close()))
	if message, abnormal := conditionMessage(t, ch, "alone", n.path("pod")); !abnormal || !strings.Contains(message, "replace images by rename") {
		t.Errorf("condition %q, abnormal %t of an image that was written to", message, abnormal)
	}
	must(t, n.unpublish(ch, "alone", "pod"))
	must(t, n.unstage(ch, "alone"))
	must(t, n.unstage(ch, "domain"))
	if mounts := n.volumeMounts(t); len(mounts) != 0 {
		t.Errorf("mounts are left: %q", mounts)
	}
}

// TestRealTrustedFingerprints: what the driver makes of "fingerprints: trusted".
func TestRealTrustedFingerprints(t *testing.T) {
	mkfs := images.NewestMkfs(t)
	if !mkfs.AtLeast(1, 9) {
		return
	}
	n := newNode(t, "auto")
	tree := t.TempDir()
	must(t, os.WriteFile(filepath.Join(tree, "file"), []byte(strings.Repeat("shared by all who trust\n", 4096)), 0o600))
	a, b := n.image(t, "a.erofs", tree, "--xattr-inode-digest"), n.image(t, "b.erofs", tree, "-zlz4", "--xattr-inode-digest=user.fp")
	plain := n.image(t, "plain.erofs", tree)
	n.config.TrustedInlineNamespaces = []string{"friend"}
	n.config.InlineDomains = []string{"friend=d"}
	ch := n.start(t)
	must(t, n.stage(ch, "a", a, "domain_id=d", "fingerprints=trusted"))
	must(t, n.stage(ch, "b", b, "domain_id=d", "fingerprints=trusted"))
	must(t, n.stage(ch, "verified", b, "domain_id=d"))
	must(t, n.stage(ch, "none", plain, "domain_id=d", "fingerprints=trusted"))
	must(t, n.inline(ch, "csi-1", "inline", "friend", b, "domain_id=d", "fingerprints=trusted"))
	same := func(one, two string) bool {
		return images.SamePages(t, filepath.Join(n.path(one), "file"), filepath.Join(n.path(two), "file"))
	}
	for _, c := range []struct {
		one, two string
		want     bool
	}{
		{"show-a", "show-b", true}, {"show-a", "inline", true}, {"show-a", "show-verified", false}, {"show-a", "show-none", false},
	} {
		if got := same(c.one, c.two); got != c.want {
			t.Errorf("%s and %s have the same pages: %t, want %t", c.one, c.two, got, c.want)
		}
	}
	if message, abnormal := conditionMessage(t, ch, "none", n.path("show-none")); abnormal || !strings.Contains(message, "1 of 1 files have no fingerprint") {
		t.Errorf("condition %q, abnormal %t", message, abnormal)
	}
	ch.end(t, syscall.SIGKILL) // what was trusted is trusted after a restart
	n.start(t)
	if !same("show-a", "show-b") || same("show-a", "show-verified") {
		t.Error("after a restart other volumes share")
	}
}
