package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// imageAnnotation is where a claim names its image.
const imageAnnotation = driver + "/image"

// meta names an object after the run.
func (r *run) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: "e2e-" + r.id + "-" + name, Labels: map[string]string{label: r.id}}
}

// newPod is a pod on the run's node that waits, with a volume at /v, if any.
func (r *run) newPod(name string, source *corev1.VolumeSource) *corev1.Pod {
	grace, token := int64(1), false
	c := corev1.Container{
		Name: "c", Image: r.podImage, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait"},
	}
	p := &corev1.Pod{ObjectMeta: r.meta(name), Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace,
		AutomountServiceAccountToken:  &token,
		NodeSelector:                  map[string]string{corev1.LabelHostname: r.node},
	}}
	p.Namespace = r.namespace
	if source != nil {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: *source}}
	}
	p.Spec.Containers = []corev1.Container{c}
	return p
}

// create makes a pod. When the test ends it is deleted, and nothing of it must stay
// mounted on the node.
func (r *run) create(t *testing.T, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	pods := r.client.CoreV1().Pods(r.namespace)
	made, err := pods.Create(t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.deletePod(t, made) })
	return made
}

func (r *run) deletePod(t *testing.T, p *corev1.Pod) {
	t.Helper()
	ctx := ctxOf(t)
	pods := r.client.CoreV1().Pods(r.namespace)
	if err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	gone(t, "pod "+p.Name, func(ctx context.Context) error {
		_, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		return err
	})
	r.wantUnmounted(t, "/pods/"+string(p.UID)+"/")
}

// running creates a pod and waits until it runs.
func (r *run) running(t *testing.T, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	made := r.create(t, p)
	if err := r.waitReady(t.Context(), made.Name); err != nil {
		t.Fatal(err)
	}
	return made
}

// wantUnmounted waits until no mount of the node has a path with a part, which kubelet may
// see to after an object is gone.
func (r *run) wantUnmounted(t *testing.T, part string) {
	t.Helper()
	var mounts string
	err := pollFor(ctxOf(t), settling, "mounts to go", func(ctx context.Context) (bool, error) {
		now, err := r.nodeMounts(ctx)
		if err == nil {
			mounts = now
		}
		return err == nil && !strings.Contains(now, part), err
	})
	if err == nil {
		return
	}
	for line := range strings.Lines(mounts) {
		if strings.Contains(line, part) {
			t.Errorf("still mounted: %s", line)
		}
	}
	t.Error(err)
}

// wantUnserved waits until the node plugin does not show a volume, and kubelet's global
// mount of it is gone.
func (r *run) wantUnserved(t *testing.T, handle string) {
	t.Helper()
	err := pollFor(ctxOf(t), settling, "the node plugin to forget "+handle, func(ctx context.Context) (bool, error) {
		all, err := r.domains(ctx)
		for _, d := range all {
			for _, f := range d.Fronts {
				for _, v := range f.Volumes {
					if v == handle {
						return false, nil
					}
				}
			}
		}
		return err == nil, err
	})
	if err != nil {
		t.Error(err)
	}
	sum := sha256.Sum256([]byte(handle)) // of which kubelet makes the directory
	r.wantUnmounted(t, hex.EncodeToString(sum[:])+"/globalmount")
}

// gone waits until get says that there is no such object.
func gone(t *testing.T, what string, get func(context.Context) error) {
	t.Helper()
	err := poll(ctxOf(t), what+" to be gone", func(ctx context.Context) (bool, error) {
		err := get(ctx)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		t.Error(err)
	}
}

// inline is a volume that the pod itself names.
func inline(attributes map[string]string) *corev1.VolumeSource {
	return &corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: driver, VolumeAttributes: attributes}}
}

// claimed is a volume by its claim.
func claimed(c *corev1.PersistentVolumeClaim) *corev1.VolumeSource {
	return &corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name}}
}

// static makes a PersistentVolume and a claim that is bound to it.
func (r *run) static(t *testing.T, name string, attributes map[string]string, secret *corev1.SecretReference) *corev1.PersistentVolumeClaim {
	t.Helper()
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
	volumes := r.client.CoreV1().PersistentVolumes()
	pv := &corev1.PersistentVolume{ObjectMeta: r.meta(name), Spec: corev1.PersistentVolumeSpec{
		Capacity: size, AccessModes: modes, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
	}}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: r.namespace, Name: pv.Name}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{
		Driver: driver, VolumeHandle: pv.Name, ReadOnly: true, VolumeAttributes: attributes, NodeStageSecretRef: secret,
	}
	if _, err := volumes.Create(t.Context(), pv, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := ctxOf(t)
		if err := volumes.Delete(ctx, pv.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		gone(t, "volume "+pv.Name, func(ctx context.Context) error {
			_, err := volumes.Get(ctx, pv.Name, metav1.GetOptions{})
			return err
		})
		r.wantUnserved(t, pv.Name)
	})
	class := ""
	return r.claim(t, name, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.StorageClassName, c.Spec.VolumeName = &class, pv.Name
	})
}

// class makes a StorageClass of the driver's.
func (r *run) class(t *testing.T, name string, parameters map[string]string) string {
	t.Helper()
	classes := r.client.StorageV1().StorageClasses()
	made, err := classes.Create(t.Context(), &storagev1.StorageClass{ObjectMeta: r.meta(name), Provisioner: driver, Parameters: parameters}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := classes.Delete(ctxOf(t), made.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return made.Name
}

// claim makes a claim that edit completes. When the test ends it is deleted, and so must
// be the volume that was provisioned for it.
func (r *run) claim(t *testing.T, name string, edit func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	t.Helper()
	c := &corev1.PersistentVolumeClaim{ObjectMeta: r.meta(name), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
	}}
	edit(c)
	claims := r.client.CoreV1().PersistentVolumeClaims(r.namespace)
	made, err := claims.Create(t.Context(), c, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := ctxOf(t)
		last, err := claims.Get(ctx, made.Name, metav1.GetOptions{})
		var pv *corev1.PersistentVolume
		if err == nil && last.Spec.VolumeName != "" && c.Spec.VolumeName == "" {
			pv, err = r.client.CoreV1().PersistentVolumes().Get(ctx, last.Spec.VolumeName, metav1.GetOptions{})
		}
		err = errors.Join(err, claims.Delete(ctx, made.Name, metav1.DeleteOptions{}))
		if err != nil {
			t.Error(err)
			return
		}
		gone(t, "claim "+made.Name, func(ctx context.Context) error {
			_, err := claims.Get(ctx, made.Name, metav1.GetOptions{})
			return err
		})
		if pv == nil {
			return // static's, or never provisioned
		}
		gone(t, "volume "+pv.Name, func(ctx context.Context) error {
			_, err := r.client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
			return err
		})
		r.wantUnserved(t, pv.Spec.CSI.VolumeHandle)
	})
	return made
}

// bound waits until a claim has its volume.
func (r *run) bound(t *testing.T, c *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	t.Helper()
	var volume string
	err := poll(t.Context(), "claim "+c.Name+" to be bound", func(ctx context.Context) (bool, error) {
		c, err := r.client.CoreV1().PersistentVolumeClaims(r.namespace).Get(ctx, c.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		volume = c.Spec.VolumeName
		return c.Status.Phase == corev1.ClaimBound, nil
	})
	if err != nil {
		events, _ := r.events(t.Context(), c.UID)
		t.Fatalf("%v; its events:\n%s", err, events)
	}
	pv, err := r.client.CoreV1().PersistentVolumes().Get(t.Context(), volume, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pv
}

// ctxOf is a context for cleaning up, when that of the test is cancelled.
func ctxOf(t *testing.T) context.Context {
	t.Helper()
	return context.WithoutCancel(t.Context())
}
