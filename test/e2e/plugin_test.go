package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pluginArg is the value of an argument of the node plugin, as --NAME=VALUE; "" if it has
// none.
func (r *run) pluginArg(t *testing.T, name string) string {
	t.Helper()
	p, err := r.client.CoreV1().Pods(r.release).Get(t.Context(), r.plugin, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return arg(p, name)
}

// controller is the controller's pod.
func (r *run) controller(t *testing.T) *corev1.Pod {
	t.Helper()
	pods, err := r.client.CoreV1().Pods(r.release).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=erofs-csi,app.kubernetes.io/component=controller",
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		if p := &pods.Items[i]; p.DeletionTimestamp == nil && ready(p) {
			return p
		}
	}
	t.Fatalf("no pod of the controller is ready in the namespace %s", r.release)
	return nil
}

func arg(p *corev1.Pod, name string) string {
	for _, c := range p.Spec.Containers {
		for _, a := range c.Args {
			if value, ok := strings.CutPrefix(a, "--"+name+"="); ok && c.Name == "erofs-csi" {
				return value
			}
		}
	}
	return ""
}

// csiNodeDriver is what kubelet has registered of the driver; nil if nothing.
func (r *run) csiNodeDriver(ctx context.Context) (*storagev1.CSINodeDriver, error) {
	n, err := r.client.StorageV1().CSINodes().Get(ctx, r.node, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for i := range n.Spec.Drivers {
		if n.Spec.Drivers[i].Name == driver {
			return &n.Spec.Drivers[i], nil
		}
	}
	return nil, nil
}

// registered waits until kubelet has the driver.
func (r *run) registered(t *testing.T) {
	t.Helper()
	err := poll(t.Context(), "kubelet to have the driver", func(ctx context.Context) (bool, error) {
		d, err := r.csiNodeDriver(ctx)
		return d != nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// restartPlugin deletes the node plugin's pod and waits for the next one.
func (r *run) restartPlugin(t *testing.T) {
	t.Helper()
	pods := r.client.CoreV1().Pods(r.release)
	old := r.plugin
	if err := pods.Delete(t.Context(), old, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.nextPlugin(t, old)
}

// nextPlugin waits for the node plugin's pod after old.
func (r *run) nextPlugin(t *testing.T, old string) {
	t.Helper()
	pods := r.client.CoreV1().Pods(r.release)
	err := poll(t.Context(), "the next node plugin", func(ctx context.Context) (bool, error) {
		if err := r.findPlugin(ctx); err != nil || r.plugin == old {
			return false, nil //nolint:nilerr // not yet
		}
		p, err := pods.Get(ctx, r.plugin, metav1.GetOptions{})
		return err == nil && ready(p), err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.registered(t)
}

// caller starts a pod that has test/e2e/csi as /csi, and the kubelet directory of the node
// by its own path, and returns the pod's name and that path.
func (r *run) caller(t *testing.T) (pod, kubelet string) {
	t.Helper()
	const behind = "/plugins/" + driver + "/csi.sock"
	socket := r.pluginArg(t, "kubelet-registration-path")
	kubelet, ok := strings.CutSuffix(socket, behind)
	if !ok {
		t.Fatalf("the node plugin's socket is %s, want ...%s", socket, behind)
	}
	program := filepath.Join(t.TempDir(), "csi")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./csi")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+r.arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build ./csi: %v: %s", err, out)
	}
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	p := r.newPod("caller", nil)
	privileged, both := true, corev1.MountPropagationHostToContainer
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "kubelet", MountPath: kubelet, MountPropagation: &both}}
	p.Spec.Volumes = []corev1.Volume{{Name: "kubelet", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: kubelet}}}}
	r.running(t, p)
	if _, err := r.exec(t.Context(), r.namespace, p.Name, f, "sh", "-c", "cat >/csi && chmod 755 /csi"); err != nil {
		t.Fatal(err)
	}
	return p.Name, kubelet
}

// TestSanity: the conformance suite of CSI against the sockets of the node plugin and the
// controller, as they run here.
func TestSanity(t *testing.T) {
	r := suite
	controller := r.controller(t)
	if controller.Spec.NodeName != r.node {
		t.Fatalf("the controller's pod is on %s: its socket can be had there only, set E2E_NODE to that", controller.Spec.NodeName)
	}
	pod, kubelet := r.caller(t)
	plugin := kubelet + "/plugins/" + driver
	out, err := r.exec(t.Context(), r.namespace, pod, nil, "/csi", "sanity",
		plugin+"/csi.sock", fmt.Sprintf("%s/pods/%s/volumes/kubernetes.io~empty-dir/plugin/csi.sock", kubelet, controller.UID),
		plugin+"/e2e-"+r.id, r.v1.ref)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "Ran ") || strings.Contains(line, "Passed") {
			t.Log(strings.TrimSpace(line))
		}
	}
	r.wantUnmounted(t, plugin+"/e2e-"+r.id)
}

// TestHealth: a volume that is well has nothing wrong, and one whose mount was taken away
// says so; where the cluster wants to know, in the pod's status, too.
func TestHealth(t *testing.T) {
	r := suite
	pod, kubelet := r.caller(t)
	c := r.static(t, "health", map[string]string{"image": r.v1.ref}, nil)
	p := r.running(t, r.newPod("health", claimed(c)))
	target := fmt.Sprintf("%s/pods/%s/volumes/kubernetes.io~csi/%s/mount", kubelet, p.UID, c.Name)
	ask := func() string {
		return r.inPod(t, pod, "/csi", "health", kubelet+"/plugins/"+driver+"/csi.sock", c.Name, target)
	}
	if got := ask(); got != "" {
		t.Errorf("the volume has %q", got)
	}
	r.onNode(t, "umount", target)
	if got := ask(); !strings.HasPrefix(got, "INACCESSIBLE NotMounted") {
		t.Errorf("without its mount the volume has %q, want INACCESSIBLE NotMounted", got)
	}
	if !r.asksForHealth(t) {
		return
	}
	var seen []corev1.PodVolumeHealth
	err := poll(t.Context(), "the pod's status to tell", func(ctx context.Context) (bool, error) {
		now, err := r.client.CoreV1().Pods(r.namespace).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		seen = now.Status.VolumeHealth
		return len(seen) == 1 && len(seen[0].HealthConditions) == 1, nil
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, seen)
	}
	condition := seen[0].HealthConditions[0]
	if seen[0].Name != "v" || condition.Status != corev1.VolumeHealthInaccessible || condition.Reason != "NotMounted" || !strings.Contains(condition.Message, target) {
		t.Errorf("the pod's status has %+v", seen)
	}
}

// asksForHealth tells whether kubelet asks for the health of volumes and the API has a place
// for it: the gate CSIVolumeHealth of both, which is off unless the cluster turns it on.
func (r *run) asksForHealth(t *testing.T) bool {
	t.Helper()
	on := 0
	for _, path := range []string{"/metrics", "/api/v1/nodes/" + r.node + "/proxy/metrics"} {
		raw, err := r.client.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if strings.HasPrefix(line, `kubernetes_feature_enabled{name="CSIVolumeHealth",`) && strings.HasSuffix(line, " 1\n") {
				on++
			}
		}
	}
	t.Logf("the gate CSIVolumeHealth is on in %d of API server and kubelet", on)
	return on == 2
}

// onNode runs a program of the node in its namespaces.
func (r *run) onNode(t *testing.T, command ...string) string {
	t.Helper()
	return r.inPod(t, r.observer, append([]string{"nsenter", "-t", "1", "-m", "-n", "-p", "--"}, command...)...)
}
