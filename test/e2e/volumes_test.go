package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestStatic: a PersistentVolume shows what the image was made of, and can't be written.
func TestStatic(t *testing.T) {
	r := suite
	c := r.static(t, "static", map[string]string{"image": r.v1.ref, "domain_id": "e2e-" + r.id}, nil)
	p := r.running(t, r.newPod("static", claimed(c)))
	r.wantTree(t, p.Name, "/v", r.v1.dir)
	r.wantReadOnly(t, p.Name)
}

// TestInline: a pod names the image.
func TestInline(t *testing.T) {
	r := suite
	p := r.running(t, r.newPod("inline", inline(map[string]string{"image": r.v1.ref})))
	r.wantTree(t, p.Name, "/v", r.v1.dir)
	r.wantReadOnly(t, p.Name)
}

// wantReadOnly tries each way to write, as root in the container.
func (r *run) wantReadOnly(t *testing.T, pod string) {
	t.Helper()
	for _, command := range []string{
		"touch /v/new", "mkdir /v/dir", "rm -f /v/version", "mv /v/version /v/etc/version", "echo x >>/v/version",
		"chmod 777 /v/version", "chown 1 /v/version", "ln -s x /v/link", "truncate -s 0 /v/version", "touch -d @1 /v/version",
	} {
		_, err := r.exec(t.Context(), r.namespace, pod, nil, "sh", "-c", command)
		if err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("%s: %v, want Read-only file system", command, err)
		}
	}
}

// TestProvisioned: a class that names the image, a claim that does, and a clone of that.
func TestProvisioned(t *testing.T) {
	r := suite
	t.Run("class", func(t *testing.T) {
		class := r.class(t, "image", map[string]string{"image": r.v2.ref})
		c := r.claim(t, "by-class", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &class })
		r.wantPinned(t, r.bound(t, c), r.v2.ref)
		p := r.running(t, r.newPod("by-class", claimed(c)))
		r.wantTree(t, p.Name, "/v", r.v2.dir)
	})
	t.Run("annotation and clone", func(t *testing.T) {
		class := r.class(t, "images", map[string]string{"domain_id": "e2e-" + r.id + "-images"})
		c := r.claim(t, "by-annotation", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.StorageClassName = &class
			c.Annotations = map[string]string{imageAnnotation: r.v1.ref}
		})
		original := r.bound(t, c)
		r.wantPinned(t, original, r.v1.ref)
		clone := r.claim(t, "clone", func(c2 *corev1.PersistentVolumeClaim) {
			c2.Spec.StorageClassName = &class
			c2.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: c.Name}
			// Kubernetes wants at least the size of the original.
			c2.Spec.Resources.Requests[corev1.ResourceStorage] = original.Spec.Capacity[corev1.ResourceStorage]
		})
		cloned := r.bound(t, clone)
		if got, want := cloned.Spec.CSI.VolumeAttributes["image"], original.Spec.CSI.VolumeAttributes["image"]; got != want {
			t.Errorf("the clone has the image %s, want %s", got, want)
		}
		if cloned.Name == original.Name || cloned.Spec.CSI.VolumeHandle == original.Spec.CSI.VolumeHandle {
			t.Errorf("the clone is the volume %s itself", cloned.Name)
		}
		for _, c := range []*corev1.PersistentVolumeClaim{c, clone} {
			p := r.running(t, r.newPod("of-"+strings.TrimPrefix(c.Name, "e2e-"+r.id+"-"), claimed(c)))
			r.wantTree(t, p.Name, "/v", r.v1.dir)
		}
	})
}

// wantPinned: a provisioned volume has the digest that the tag had, and at least the
// image's size.
func (r *run) wantPinned(t *testing.T, pv *corev1.PersistentVolume, ref string) {
	t.Helper()
	repo, err := repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := repo.Resolve(t.Context(), repo.Reference.Reference)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := pv.Spec.CSI.VolumeAttributes["image"], ref+"@"+desc.Digest.String(); got != want {
		t.Errorf("the volume has the image %s, want %s", got, want)
	}
	least := resource.MustParse(fmt.Sprint(largeSize))
	if size := pv.Spec.Capacity[corev1.ResourceStorage]; size.Cmp(least) < 0 {
		t.Errorf("the volume's capacity is %s, want more than %s", &size, &least)
	}
}

// TestSubPath: a directory and a file of an image, and a directory that it has not.
func TestSubPath(t *testing.T) {
	r := suite
	c := r.static(t, "subpath", map[string]string{"image": r.v1.ref}, nil)
	p := r.newPod("subpath", claimed(c))
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "v", MountPath: "/d", SubPath: "many"},
		{Name: "v", MountPath: "/f", SubPath: "sub/dir/inner", ReadOnly: true},
	}
	r.running(t, p)
	r.wantTree(t, p.Name, "/d", r.v1.dir+"/many")
	if got := r.inPod(t, p.Name, "cat", "/f"); got != "inner of v1\n" {
		t.Errorf("the file has %q", got)
	}
	if _, err := r.exec(t.Context(), r.namespace, p.Name, nil, "touch", "/d/new"); err == nil || !strings.Contains(err.Error(), "Read-only file system") {
		t.Errorf("touch: %v, want Read-only file system", err)
	}

	// kubelet would make the directory, and can't.
	p = r.newPod("subpath-none", claimed(c))
	p.Spec.Containers[0].VolumeMounts[0].SubPath = "none"
	made := r.create(t, p)
	r.wantEvent(t, made.UID, "Failed", "subPath")
}

// TestPrograms: programs run from a volume, and with the volume as their root directory.
func TestPrograms(t *testing.T) {
	r := suite
	p := r.running(t, r.newPod("programs", inline(map[string]string{"image": r.v1.ref, "domain_id": "any"})))
	want := topNames(t, r.v1.dir)
	for _, command := range []string{"/v/bin/tool ls /v", "chroot /v /bin/tool ls /"} {
		got := strings.Fields(r.inPod(t, p.Name, "sh", "-c", command))
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%q lists %q, want %q", command, got, want)
		}
	}
}

// TestRestart: a container that starts anew, and a pod that does, have the volume as
// before.
func TestRestart(t *testing.T) {
	r := suite
	c := r.static(t, "restart", map[string]string{"image": r.v1.ref, "domain_id": "e2e-" + r.id}, nil)
	p := r.running(t, r.newPod("restart", claimed(c)))
	r.restartContainer(t, p)
	r.wantTree(t, p.Name, "/v", r.v1.dir)

	r.deletePod(t, p)
	p = r.running(t, r.newPod("restart", claimed(c)))
	r.wantTree(t, p.Name, "/v", r.v1.dir)
}

// TestForceDeleted: a pod that is deleted without waiting for its node leaves nothing there,
// and its claim goes on.
func TestForceDeleted(t *testing.T) {
	r := suite
	c := r.static(t, "forced", map[string]string{"image": r.v1.ref, "domain_id": "e2e-" + r.id}, nil)
	p := r.newPod("forced", claimed(c))
	// It would not end by itself.
	p.Spec.Containers[0].Command = []string{"sh", "-c", "trap '' TERM; exec 3</v/version; while :; do sleep 1; done"}
	p.Spec.TerminationGracePeriodSeconds = new(int64(3600))
	p = r.running(t, p)
	at := metav1.NewDeleteOptions(0)
	if err := r.client.CoreV1().Pods(r.namespace).Delete(t.Context(), p.Name, *at); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.CoreV1().Pods(r.namespace).Get(t.Context(), p.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the pod is there after it was deleted by force: %v", err)
	}
	again := r.running(t, r.newPod("forced-again", claimed(c)))
	r.wantTree(t, again.Name, "/v", r.v1.dir)
	r.wantUnmounted(t, "/pods/"+string(p.UID)+"/")
}

// restartContainer ends a pod's container and waits until the next one runs.
func (r *run) restartContainer(t *testing.T, p *corev1.Pod) {
	t.Helper()
	before, err := r.client.CoreV1().Pods(r.namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The shell that asks for it ends with the container, which is no error.
	_, _ = r.exec(t.Context(), r.namespace, p.Name, nil, "sh", "-c", "kill -TERM 1")
	err = poll(t.Context(), "the container to start anew", func(ctx context.Context) (bool, error) {
		got, err := r.client.CoreV1().Pods(r.namespace).Get(ctx, p.Name, metav1.GetOptions{})
		return err == nil && got.Status.ContainerStatuses[0].RestartCount > before.Status.ContainerStatuses[0].RestartCount, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.waitReady(t.Context(), p.Name); err != nil {
		t.Fatal(err)
	}
}
