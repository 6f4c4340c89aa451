package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reboot does to a node what a reboot does, as far as the driver and some pods see it: from
// one moment on no process of theirs is there, nor a mount, nor what is on a tmpfs; and then
// kubelet begins anew. $1 is the driver's state directory, $2 kubelet's directory, the
// rest are the UIDs of pods. It runs in a container that sees the node's processes, and says
// at its end how that was.
const reboot = `set -eu
sleep 2 # who began it is answered by kubelet
state=$1 kubelet=$2; shift 2
node() { nsenter -t 1 -m -- "$@"; }
# Stopped, it can repair nothing meanwhile.
pid=$(pidof kubelet)
kill -STOP $pid
trap 'echo ended with $?; kill -KILL $pid' EXIT
pods=$(echo "$*" | tr -d _- | tr ' ' '|')
for round in 1 2 3; do
	for dir in /proc/[0-9]*; do
		if { tr -d _- <$dir/cgroup; } 2>/dev/null | grep -qE "pod($pods)"; then kill -KILL ${dir#/proc/} 2>/dev/null || true; fi
	done
	sleep 0.3
done
unmount() { cut -d' ' -f5 /proc/1/mountinfo | grep -E "^$state(/|\$)|^$kubelet/(pods/[^/]*/volume|plugins/kubernetes.io/csi)[^ ]*erofs.csi.dev|^$kubelet/pods/($uids)/volumes/kubernetes.io~csi/" | sort -r; }
uids=$(echo "$*" | tr ' ' '|')
unmount | while read -r path; do node umount -l "$path"; done
left=$(unmount)
[ -z "$left" ] || { echo "still mounted: $left" >&2; exit 1; }
node sh -c "rm -rf $state/*"
`

// TestReboot: after a reboot of the node its pods have their volumes as before.
func TestReboot(t *testing.T) {
	r := suite
	name := "e2e-" + r.id + "-reboot"
	attributes := map[string]string{"image": r.v1.ref, "domain_id": name}
	c := r.static(t, "reboot", attributes, nil)
	pods := []*corev1.Pod{
		r.running(t, r.newPod("reboot-claim", claimed(c))),
		r.running(t, r.newPod("reboot-inline", inline(map[string]string{"image": r.v2.ref}))),
	}
	plugin, err := r.client.CoreV1().Pods(r.release).Get(t.Context(), r.plugin, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kubelet, _ := strings.CutSuffix(arg(plugin, "kubelet-registration-path"), "/plugins/"+driver+"/csi.sock")
	// Whoever waits for it waits by way of kubelet.
	const detached = `setsid sh -c "$0" reboot "$@" >/reboot.log 2>&1 </dev/null &`
	command := []string{"sh", "-c", detached, reboot, arg(plugin, "state-dir"), kubelet}
	for _, p := range pods {
		command = append(command, string(p.UID))
	}
	// The driver's pods, as what keeps descriptors for the plugin, end at once, too.
	ours, err := r.client.CoreV1().Pods(r.release).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=erofs-csi", FieldSelector: "spec.nodeName=" + r.node,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ours.Items {
		command = append(command, string(p.UID))
	}
	r.inPod(t, r.observer, command...)
	var log string
	err = poll(t.Context(), "the reboot", func(ctx context.Context) (bool, error) {
		log, _ = r.exec(ctx, r.namespace, r.observer, nil, "cat", "/reboot.log") // while there is no kubelet it fails
		return strings.Contains(log, "ended with"), nil
	})
	if err != nil || log != "ended with 0\n" {
		t.Fatalf("the reboot: %v: %s", err, log)
	}

	for _, p := range pods {
		err := poll(t.Context(), "pod "+p.Name+" to begin anew", func(ctx context.Context) (bool, error) {
			now, err := r.client.CoreV1().Pods(r.namespace).Get(ctx, p.Name, metav1.GetOptions{})
			return err == nil && now.Status.ContainerStatuses[0].RestartCount > 0 && ready(now), err
		})
		if err != nil {
			events, _ := r.events(t.Context(), p.UID)
			t.Fatalf("%v; its events:\n%s", err, events)
		}
	}
	r.registered(t)
	r.wantTree(t, pods[0].Name, "/v", r.v1.dir)
	r.wantTree(t, pods[1].Name, "/v", r.v2.dir)
	d := r.domain(t, name)
	if len(d.Fronts) != 1 || len(d.Fronts[0].Volumes) != 1 || d.Fronts[0].Volumes[0] != c.Name {
		t.Errorf("the node plugin has %+v, want the volume of the claim", d.Fronts)
	}
}
