package driver

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/erofs-csi/erofs-csi/test/images"
	slow "github.com/erofs-csi/erofs-csi/test/registry"
)

// healthOf is the reason and message of what is wrong with a volume, or its message when
// it is well.
func healthOf(t *testing.T, ch *child, id string) (reason, message string) {
	t.Helper()
	res, err := ch.NodeGetVolumeHealth(context.Background(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
	must(t, err)
	for _, s := range res.GetVolumeHealth().GetHealthStatuses() {
		reason, message = s.GetReason(), s.GetMessage()
	}
	return reason, message
}

// slowImage is an image with one file, data, at a path and in a registry that keeps a part back.
func slowImage(t *testing.T) (n *node, image string, reg *slow.Registry, data []byte) {
	t.Helper()
	tree := t.TempDir()
	data = make([]byte, 20<<20)
	_, err := rand.Read(data)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(tree, "data"), data, 0o600))
	n = newNode(t, "auto")
	image = n.image(t, "a.erofs", tree)
	return n, image, slow.New(t, image), data
}

// TestRealLazy: a volume is there before its image is, its health says how far that is,
// and after a restart of the plugin it goes on, with the secret of the next call.
func TestRealLazy(t *testing.T) {
	n, image, reg, data := slowImage(t)
	password := "pa55-w0rd"
	reg.Secret.Store(&password)
	host, _, _ := strings.Cut(reg.Ref, "/")
	secrets := map[string]string{".dockerconfigjson": `{"auths":{"` + host + `":{"username":"user","password":"` + password + `"}}}`}
	readAt := func(place string, off int64) {
		t.Helper()
		f, err := os.Open(n.path(place) + "/data")
		must(t, err)
		defer func() { _ = f.Close() }()
		p := make([]byte, 1000)
		_, err = f.ReadAt(p, off)
		must(t, err)
		if !bytes.Equal(p, data[off:off+1000]) {
			t.Errorf("the bytes at %d are others", off)
		}
	}

	ch := n.start(t)
	stage := &csi.NodeStageVolumeRequest{
		VolumeId: "v", StagingTargetPath: n.path("staging-v"), VolumeCapability: reader(),
		VolumeContext: volumeContext(reg.Ref, []string{"domain_id=d"}), Secrets: secrets,
	}
	must(t, os.MkdirAll(stage.StagingTargetPath, 0o750))
	_, err := ch.NodeStageVolume(context.Background(), stage)
	must(t, err)
	must(t, n.publish(ch, "v", "pod", reg.Ref, "domain_id=d"))
	readAt("pod", 5<<20)
	if reason, message := healthOf(t, ch, "v"); reason != "" && reason != "Healthy" || message != "" && !strings.Contains(message, "lazy ") {
		t.Errorf("health %q, %q", reason, message)
	}
	ch.end(t, syscall.SIGKILL)

	ch = n.start(t)
	readAt("pod", 5<<20) // is on the node
	var reason, message string
	eventually(t, "the complaints", func() bool {
		reason, message = healthOf(t, ch, "v")
		return reason == "ImageIncomplete"
	})
	if !strings.Contains(message, "401") && !strings.Contains(message, "no credentials") || strings.Contains(message, password) {
		t.Errorf("message %q", message)
	}
	_, err = ch.NodeStageVolume(context.Background(), stage) // what kubelet does again and again
	must(t, err)
	readAt("pod", 15<<20)
	reg.GoOn()
	eventually(t, "the health", func() bool {
		reason, message = healthOf(t, ch, "v")
		return reason != "ImageIncomplete" && !strings.Contains(message, "lazy ")
	})
	images.CompareTrees(t, images.KernelMount(t, image), n.path("pod"), images.CompareOptions{})
	if sent := reg.Sent.Load(); sent > int64(len(reg.Blob))*21/20+2<<20 {
		t.Errorf("%d bytes were sent of %d", sent, len(reg.Blob))
	}
	must(t, n.unpublish(ch, "v", "pod"))
	must(t, n.unstage(ch, "v"))
	ch.end(t, syscall.SIGTERM)
}

// TestRealLazySpoiled: the health of a volume whose image turns out to be another says
// so, and the next call mounts it anew.
func TestRealLazySpoiled(t *testing.T) {
	n, image, reg, _ := slowImage(t)
	reg.Wrong.Store(10 << 20)
	ch := n.start(t)
	must(t, n.stage(ch, "v", reg.Ref, "domain_id=d"))
	must(t, n.publish(ch, "v", "pod", reg.Ref, "domain_id=d"))
	reg.GoOn()
	var message string
	eventually(t, "the complaints", func() bool {
		var reason string
		reason, message = healthOf(t, ch, "v")
		return reason == "ImageSpoiled"
	})
	if strings.Count(message, "sha256:") != 2 {
		t.Errorf("message %q", message)
	}
	if _, err := os.ReadFile(n.path("pod") + "/data"); err == nil {
		t.Error("it can be read")
	}
	reg.Wrong.Store(-1)
	must(t, n.publish(ch, "v", "pod", reg.Ref, "domain_id=d"))
	images.CompareTrees(t, images.KernelMount(t, image), n.path("pod"), images.CompareOptions{})
	must(t, n.unpublish(ch, "v", "pod"))
	must(t, n.unstage(ch, "v"))
	ch.end(t, syscall.SIGTERM)
}
