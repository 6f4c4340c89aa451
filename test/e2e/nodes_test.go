package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Labels of nodes for what they can mount.
const (
	labelFUSE   = "topology." + driver + "/fuse"
	labelKernel = "topology." + driver + "/kernel"
)

// TestTopology: the node has labels for what it can mount, volumes an affinity to those
// that they need, and pods are not brought to a node that cannot mount theirs.
func TestTopology(t *testing.T) {
	r := suite
	d, err := r.csiNodeDriver(t.Context())
	if err != nil || d == nil {
		t.Fatalf("kubelet has not the driver: %v", err)
	}
	node, err := r.client.CoreV1().Nodes().Get(t.Context(), r.node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(d.TopologyKeys, labelFUSE) {
		t.Errorf("the driver's topology keys are %q", d.TopologyKeys)
	}
	for _, key := range d.TopologyKeys {
		if node.Labels[key] != "true" {
			t.Errorf("the node's label %s is %q, want true", key, node.Labels[key])
		}
	}
	class := r.class(t, "topology", map[string]string{"image": r.v1.ref})
	c := r.claim(t, "topology", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &class })
	r.wantAffinity(t, r.bound(t, c), labelFUSE)
	p := r.running(t, r.newPod("topology", claimed(c)))
	if got := r.inPod(t, p.Name, "cat", "/v/version"); got != "v1\n" {
		t.Errorf("the pod reads %q", got)
	}

	able := slices.Contains(d.TopologyKeys, labelKernel)
	kernel := map[string]string{"image": r.v1.ref, "engine": "kernel"}
	class = r.class(t, "kernel", kernel)
	c = r.claim(t, "kernel", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &class })
	r.wantAffinity(t, r.bound(t, c), labelFUSE, labelKernel)
	p = r.create(t, r.newPod("kernel", claimed(c)))
	late := r.lateClass(t, "late", kernel)
	second := r.claim(t, "late", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &late })
	lateP := r.create(t, r.newPod("late", claimed(second)))
	if able {
		for _, p := range []*corev1.Pod{p, lateP} {
			if err := r.waitReady(t.Context(), p.Name); err != nil {
				t.Error(err)
			}
		}
		return
	}
	r.wantEvent(t, p.UID, "FailedScheduling", "node affinity")
	// The scheduler has chosen the node for the first pod, and is told that it is none.
	r.wantEvent(t, second.UID, "ProvisioningFailed", "ResourceExhausted", labelKernel)
}

// lateClass is a class whose claims wait for their first pod.
func (r *run) lateClass(t *testing.T, name string, parameters map[string]string) string {
	t.Helper()
	mode := storagev1.VolumeBindingWaitForFirstConsumer
	classes := r.client.StorageV1().StorageClasses()
	made, err := classes.Create(t.Context(), &storagev1.StorageClass{
		ObjectMeta: r.meta(name), Provisioner: driver, Parameters: parameters, VolumeBindingMode: &mode,
	}, metav1.CreateOptions{})
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

// wantAffinity: a volume is for the nodes that have these labels with the value true.
func (r *run) wantAffinity(t *testing.T, pv *corev1.PersistentVolume, keys ...string) {
	t.Helper()
	var got []string
	if a := pv.Spec.NodeAffinity; a != nil && a.Required != nil && len(a.Required.NodeSelectorTerms) == 1 {
		for _, e := range a.Required.NodeSelectorTerms[0].MatchExpressions {
			if e.Operator == corev1.NodeSelectorOpIn && slices.Equal(e.Values, []string{"true"}) {
				got = append(got, e.Key)
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, keys) {
		t.Errorf("the volume %s has the affinity %+v, want the labels %q", pv.Name, pv.Spec.NodeAffinity, keys)
	}
}

// TestWaitForFirstConsumer: a claim that waits for its pod is provisioned with it.
func TestWaitForFirstConsumer(t *testing.T) {
	r := suite
	class := r.lateClass(t, "first", map[string]string{"image": r.v1.ref})
	c := r.claim(t, "first", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &class })
	p := r.running(t, r.newPod("first", claimed(c)))
	r.wantTree(t, p.Name, "/v", r.v1.dir)
	r.wantAffinity(t, r.bound(t, c), labelFUSE) // not to what else the node can do
}

// TestVolumeLimit: the scheduler knows how many volumes the node takes, and keeps to it.
func TestVolumeLimit(t *testing.T) {
	r := suite
	d, err := r.csiNodeDriver(t.Context())
	if err != nil || d == nil {
		t.Fatalf("kubelet has not the driver: %v", err)
	}
	limit, err := strconv.Atoi("0" + r.pluginArg(t, "max-volumes"))
	if err != nil {
		t.Fatal(err)
	}
	if limit == 0 {
		if d.Allocatable != nil && d.Allocatable.Count != nil {
			t.Errorf("the node takes %d volumes, want no limit", *d.Allocatable.Count)
		}
		return
	}
	if d.Allocatable == nil || d.Allocatable.Count == nil || int(*d.Allocatable.Count) != limit {
		t.Fatalf("the node takes %+v volumes, want %d", d.Allocatable, limit)
	}
	if limit > 50 {
		return // they would take long to make
	}
	p := r.newPod("limit", nil)
	for i := range limit + 1 {
		c := r.static(t, fmt.Sprint("limit-", i), map[string]string{"image": r.v1.ref}, nil)
		r.bound(t, c)
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: fmt.Sprint("v", i), VolumeSource: *claimed(c)})
	}
	made := r.create(t, p)
	r.wantEvent(t, made.UID, "FailedScheduling", "max volume count")
}

// TestStartupTaint: a node that begins with the taint loses it when the plugin is there,
// and keeps its other taints.
func TestStartupTaint(t *testing.T) {
	r := suite
	key := arg(r.controller(t), "startup-taint")
	if key == "" {
		t.Fatal("this test needs the chart's value controller.startupTaint: set it, or leave the test out by -skip TestStartupTaint")
	}
	nodes := r.client.CoreV1().Nodes()
	taints := func(ctx context.Context) ([]corev1.Taint, error) {
		n, err := nodes.Get(ctx, r.node, metav1.GetOptions{})
		return n.Spec.Taints, err
	}
	set := func(ctx context.Context, all []corev1.Taint) error {
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": all}})
		if err != nil {
			return err
		}
		_, err = nodes.Patch(ctx, r.node, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	before, err := taints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set(ctxOf(t), before); err != nil {
			t.Error(err)
		}
	})
	// Nobody is sent away: what was there goes on.
	other := corev1.Taint{Key: label, Effect: corev1.TaintEffectPreferNoSchedule}
	with := append(slices.Clone(before), corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule}, other)
	if err := set(t.Context(), with); err != nil {
		t.Fatal(err)
	}
	r.restartPlugin(t)
	has := func(all []corev1.Taint, key string) bool {
		return slices.ContainsFunc(all, func(t corev1.Taint) bool { return t.Key == key })
	}
	err = poll(t.Context(), "the taint to go", func(ctx context.Context) (bool, error) {
		now, err := taints(ctx)
		if err == nil && !has(now, other.Key) {
			t.Errorf("the node had the taints %+v and has %+v", with, now)
		}
		return !has(now, key), err
	})
	if err != nil {
		t.Error(err)
	}
}
