package e2e

import (
	"context"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// readAll reads some files of a volume for ever: by the page cache, and with O_DIRECT, which
// asks the plugin for every byte. What is not as it was at first goes to /tmp/bad, how many
// files were read so far to /tmp/cached and /tmp/direct.
const readAll = `
trap 'exit 0' TERM
cd /v && find . -type f -size +1 ! -name '* *' | sort | head -n 30 | xargs sha256sum >/tmp/want && touch /tmp/bad || exit 1
cached() {
	n=0
	while :; do
		sha256sum -c -s /tmp/want || echo "cached, round $n" >>/tmp/bad
		n=$((n + 1)); echo $n >/tmp/cached
	done
}
direct() {
	n=0
	while :; do
		while read -r want f; do
			got=$(dd if="$f" bs=1M iflag=direct 2>/dev/null | sha256sum)
			[ "${got%% *}" = "$want" ] || echo "direct, $f" >>/tmp/bad
			n=$((n + 1)); echo $n >/tmp/direct
		done </tmp/want
	done
}
cached & direct &
wait
`

// reader starts a pod that reads a volume for ever.
func (r *run) reader(t *testing.T, name string, source *corev1.VolumeSource) *corev1.Pod {
	t.Helper()
	p := r.newPod(name, source)
	p.Spec.Containers[0].Command = []string{"sh", "-c", readAll}
	return r.running(t, p)
}

// wantReads waits until a reader has read everything once more, and fails the test if it
// has found a read to fail, or its container was restarted.
func (r *run) wantReads(t *testing.T, when string, p *corev1.Pod) {
	t.Helper()
	count := func(ctx context.Context, file string) int {
		out, _ := r.exec(ctx, r.namespace, p.Name, nil, "cat", file)
		n, _ := strconv.Atoi(strings.TrimSpace(out))
		return n
	}
	files, err := r.exec(t.Context(), r.namespace, p.Name, nil, "sh", "-c", "wc -l </tmp/want")
	if err != nil {
		t.Fatal(err)
	}
	all, err := strconv.Atoi(strings.TrimSpace(files))
	if err != nil || all == 0 {
		t.Fatalf("%s: %s reads %q files", when, p.Name, files)
	}
	cached, direct := count(t.Context(), "/tmp/cached"), count(t.Context(), "/tmp/direct")
	err = poll(t.Context(), "the readers of "+p.Name, func(ctx context.Context) (bool, error) {
		return count(ctx, "/tmp/cached") > cached+1 && count(ctx, "/tmp/direct") > direct+all, nil
	})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if bad := r.inPod(t, p.Name, "cat", "/tmp/bad"); bad != "" {
		t.Errorf("%s: reads of %s failed: %s", when, p.Name, bad)
	}
	now, err := r.client.CoreV1().Pods(r.namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if now.UID != p.UID || now.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("%s: %s is not the pod that it was", when, p.Name)
	}
}

// TestPluginRestartsUnderReaders: the plugin's pod is deleted, deleted by force, the plugin
// is killed, and all of its container, and no read of any pod fails.
func TestPluginRestartsUnderReaders(t *testing.T) {
	r := suite
	pods := []*corev1.Pod{
		r.reader(t, "reader-claim", claimed(r.static(t, "reader", map[string]string{"image": r.v1.ref, "domain_id": "e2e-" + r.id}, nil))),
		r.reader(t, "reader-inline", inline(map[string]string{"image": r.v2.ref})),
		r.reader(t, "reader-mapped", claimed(r.static(t, "mapped", map[string]string{"image": r.v2.ref, "domain_id": "e2e-" + r.id, "userNamespaces": "true"}, nil))),
	}
	check := func(when string) {
		t.Helper()
		for _, p := range pods {
			r.wantReads(t, when, p)
		}
	}
	check("before")
	r.restartPlugin(t)
	check("after the plugin's pod was deleted")

	old := r.plugin
	now := int64(0)
	if err := r.client.CoreV1().Pods(r.release).Delete(t.Context(), old, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	r.nextPlugin(t, old)
	check("after it was deleted by force")

	restarts := func(ctx context.Context) (int32, bool) {
		p, err := r.client.CoreV1().Pods(r.release).Get(ctx, r.plugin, metav1.GetOptions{})
		if err != nil || len(p.Status.ContainerStatuses) == 0 {
			return 0, false
		}
		return p.Status.ContainerStatuses[0].RestartCount, ready(p)
	}
	// Its supervisor, whose command line begins with its own name, starts the next one.
	before, _ := restarts(t.Context())
	pid, err := r.processes(t.Context(), "/erofs-csi node ")
	if len(pid) != 1 || err != nil {
		t.Fatalf("plugins on the node: %q, %v, want one", pid, err)
	}
	r.onNode(t, "kill", "-9", pid[0])
	err = poll(t.Context(), "the next plugin", func(ctx context.Context) (bool, error) {
		now, err := r.processes(ctx, "/erofs-csi node ")
		return len(now) == 1 && now[0] != pid[0], err
	})
	if err != nil {
		t.Fatal(err)
	}
	check("after it was killed")
	if n, _ := restarts(t.Context()); n != before {
		t.Errorf("its container was restarted %d times, want %d", n, before)
	}

	// As the kernel does when the container is out of memory.
	all, err := r.processes(t.Context(), `/erofs-csi\(-supervisor /erofs-csi\)\? node `)
	if len(all) != 2 || err != nil {
		t.Fatalf("processes of the plugin's container: %q, %v, want two", all, err)
	}
	r.onNode(t, append([]string{"kill", "-9"}, all...)...)
	err = poll(t.Context(), "the killed container to be back", func(ctx context.Context) (bool, error) {
		n, is := restarts(ctx)
		return is && n > before, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.registered(t)
	check("after all of its container was killed")
	r.wantTree(t, pods[0].Name, "/v", r.v1.dir)
}

// processes are those of the node whose command lines begin with what a basic regular
// expression says.
func (r *run) processes(ctx context.Context, command string) ([]string, error) {
	out, err := r.exec(ctx, r.namespace, r.observer, nil, "nsenter", "-t", "1", "-m", "-p", "--", "sh", "-c", `for p in /proc/[0-9]*; do
		if tr '\0' ' ' 2>/dev/null <$p/cmdline | grep -q "^$0"; then echo ${p#/proc/}; fi
	done`, command)
	return strings.Fields(out), err
}
