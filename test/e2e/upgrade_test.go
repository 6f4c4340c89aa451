package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestUpgrade: helm upgrade to another tag of the driver's image changes the controller and
// the node plugin, and leaves the holder alone. No read of a volume fails meanwhile, nor at
// the way back.
func TestUpgrade(t *testing.T) {
	r := suite
	tag := os.Getenv("E2E_UPGRADE_TAG")
	if tag == "" {
		t.Fatal("this test needs E2E_UPGRADE_TAG: see README.md, or leave it out by -skip TestUpgrade")
	}
	c := r.static(t, "upgrade", map[string]string{"image": r.v1.ref, "domain_id": "e2e-" + r.id}, nil)
	p := r.reader(t, "upgrade-claim", claimed(c))
	q := r.reader(t, "upgrade-inline", inline(map[string]string{"image": r.v2.ref}))
	check := func(when string, p *corev1.Pod, dir string) {
		t.Helper()
		if t.Failed() {
			t.Fatalf("%s: %s", when, p.Name)
		}
		r.wantTree(t, p.Name, "/v", dir)
	}
	image := func(of *corev1.Pod) string {
		for _, c := range of.Spec.Containers {
			if c.Name == "erofs-csi" {
				return c.Image
			}
		}
		return ""
	}
	plugin := func() *corev1.Pod {
		t.Helper()
		p, err := r.client.CoreV1().Pods(r.release).Get(t.Context(), r.plugin, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	holder := func() types.UID {
		t.Helper()
		pods, err := r.client.CoreV1().Pods(r.release).List(t.Context(), metav1.ListOptions{
			LabelSelector: "app.kubernetes.io/name=erofs-csi,app.kubernetes.io/component=holder", FieldSelector: "spec.nodeName=" + r.node,
		})
		if err != nil || len(pods.Items) != 1 {
			t.Fatalf("%d pods of the holder, want 1: %v", len(pods.Items), err)
		}
		return pods.Items[0].UID
	}
	held := holder()
	before := plugin()
	if strings.HasSuffix(image(before), ":"+tag) {
		t.Fatalf("E2E_UPGRADE_TAG=%s: that is what runs", tag)
	}
	upgrade := exec.CommandContext(t.Context(), env("E2E_HELM", "helm"), "upgrade", before.Labels["app.kubernetes.io/instance"],
		env("E2E_CHART", "../../charts/erofs-csi"), "-n", r.release, "--reuse-values", "--set-string", "image.tag="+tag,
		"--wait", "--timeout="+patience.String())
	if out, err := upgrade.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", upgrade, err, out)
	}
	err := poll(t.Context(), "the new controller", func(ctx context.Context) (bool, error) {
		d, err := r.client.AppsV1().Deployments(r.release).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"})
		if err != nil || len(d.Items) != 1 {
			return false, err
		}
		s := d.Items[0].Status
		return s.ObservedGeneration >= d.Items[0].Generation && s.UpdatedReplicas == s.Replicas && s.AvailableReplicas == s.Replicas && s.Replicas > 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := image(r.controller(t)); !strings.HasSuffix(got, ":"+tag) {
		t.Errorf("the controller has the image %s", got)
	}
	r.nextPlugin(t, before.Name)
	if got := image(plugin()); !strings.HasSuffix(got, ":"+tag) {
		t.Errorf("the node plugin has the image %s", got)
	}
	class := r.class(t, "upgraded", map[string]string{"image": r.v2.ref})
	fresh := r.claim(t, "upgraded", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &class })
	check("a new volume", r.running(t, r.newPod("upgraded", claimed(fresh))), r.v2.dir)
	check("a new pod of an old volume", r.running(t, r.newPod("upgrade-second", claimed(c))), r.v1.dir)
	for pod, dir := range map[*corev1.Pod]string{p: r.v1.dir, q: r.v2.dir} {
		r.wantReads(t, "after the upgrade", pod)
		check("an old pod", pod, dir)
	}

	upgraded := r.plugin
	rollback := exec.CommandContext(t.Context(), env("E2E_HELM", "helm"), "rollback", before.Labels["app.kubernetes.io/instance"], "-n", r.release,
		"--wait", "--timeout="+patience.String())
	if out, err := rollback.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", rollback, err, out)
	}
	r.nextPlugin(t, upgraded)
	if got := image(plugin()); got != image(before) {
		t.Errorf("after the rollback the node plugin has the image %s", got)
	}
	for _, pod := range []*corev1.Pod{p, q} {
		r.wantReads(t, "after the rollback", pod)
	}
	if got := holder(); got != held {
		t.Errorf("the holder's pod was %s, and is %s", held, got)
	}
}
