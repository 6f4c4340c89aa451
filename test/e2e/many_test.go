package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOneImage: many pods of one claim have one volume on the node.
func TestOneImage(t *testing.T) {
	r := suite
	name := "e2e-" + r.id + "-many"
	c := r.static(t, "many", map[string]string{"image": r.v1.ref, "domain_id": name}, nil)
	var pods []*corev1.Pod
	for i := range 5 {
		pods = append(pods, r.create(t, r.newPod(fmt.Sprint("many-", i), claimed(c))))
	}
	for _, p := range pods {
		if err := r.waitReady(t.Context(), p.Name); err != nil {
			t.Fatal(err)
		}
		r.wantTree(t, p.Name, "/v", r.v1.dir)
	}
	d := r.domain(t, name)
	if len(d.Fronts) != 1 || !slices.Equal(d.Fronts[0].Volumes, []string{c.Name}) {
		t.Errorf("five pods of one claim have %+v on the node, want one volume", d.Fronts)
	}
}

// TestTwoVolumes: of two volumes of one image and domain each goes from the node when its
// own pods have gone, whatever the other does.
func TestTwoVolumes(t *testing.T) {
	r := suite
	attributes := map[string]string{"image": r.v1.ref, "domain_id": "e2e-" + r.id + "-two-volumes"}
	first := r.static(t, "first", attributes, nil)
	second := r.static(t, "second", attributes, nil)
	p := r.running(t, r.newPod("first", claimed(first)))
	other := r.running(t, r.newPod("second", claimed(second)))
	r.deletePod(t, p)
	r.wantUnserved(t, first.Name)
	r.wantTree(t, other.Name, "/v", r.v1.dir)
}

// TestManyPods starts E2E_PODS pods (50, if the node takes so many) at once, first without
// a volume and then with an inline one, and tells how long they took.
func TestManyPods(t *testing.T) {
	r := suite
	n := r.room(t)
	if s := os.Getenv("E2E_PODS"); s != "" {
		wanted, err := strconv.Atoi(s)
		if err != nil || wanted < 1 {
			t.Fatalf("E2E_PODS=%q: want a number of pods", s)
		}
		n = wanted
	}
	sum := sha256.Sum256(random(r.id+"large", largeSize))
	large := hex.EncodeToString(sum[:])
	r.burst(t, n, "plain", nil, nil)
	r.burst(t, n, "inline", inline(map[string]string{"image": r.v2.ref, "domain_id": "any"}), func(pod string) {
		const command = "cat /v/version; sha256sum </v/" // and of the large file
		out, err := r.exec(t.Context(), r.namespace, pod, nil, "sh", "-c", command+shared["v2"][0])
		if want := "v2\n" + large + "  -\n"; err != nil || out != want {
			t.Errorf("%s reads %q, want %q: %v", pod, out, want, err)
		}
	})
}

// room is how many pods the node still takes, at most 50.
func (r *run) room(t *testing.T) int {
	t.Helper()
	node, err := r.client.CoreV1().Nodes().Get(t.Context(), r.node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := r.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + r.node})
	if err != nil {
		t.Fatal(err)
	}
	n := min(50, int(node.Status.Allocatable.Pods().Value())-len(pods.Items)-5)
	if n < 1 {
		t.Fatalf("node %s has %d pods and takes no more", r.node, len(pods.Items))
	}
	return n
}

// burst starts n pods at once, checks each, and deletes all at once; the times are from
// before the first was created.
func (r *run) burst(t *testing.T, n int, name string, source *corev1.VolumeSource, check func(pod string)) {
	t.Helper()
	pods := r.client.CoreV1().Pods(r.namespace)
	took := make([]time.Duration, n)
	made := make([]*corev1.Pod, n)
	begin := time.Now()
	for i := range n {
		made[i] = r.newPod(fmt.Sprint(name, "-", i), source)
		made[i].Labels[label+"-burst"] = name
		var err error
		if made[i], err = pods.Create(t.Context(), made[i], metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	burst := metav1.ListOptions{LabelSelector: label + "=" + r.id + "," + label + "-burst=" + name}
	err := poll(t.Context(), fmt.Sprint(n, " pods to run"), func(ctx context.Context) (bool, error) {
		list, err := pods.List(ctx, burst)
		if err != nil {
			return false, err
		}
		now, waiting := time.Since(begin), n
		for _, p := range list.Items {
			i, err := strconv.Atoi(p.Name[strings.LastIndexByte(p.Name, '-')+1:])
			if err != nil || !ready(&p) {
				continue
			}
			waiting--
			if took[i] == 0 {
				took[i] = now
			}
		}
		return waiting == 0, nil
	})
	if err != nil {
		t.Error(err)
	} else {
		slices.Sort(took)
		t.Logf("%d pods, %s: the first runs after %.1f s, half after %.1f s, 95 %% after %.1f s, all after %.1f s",
			n, name, took[0].Seconds(), took[n/2].Seconds(), took[n*95/100].Seconds(), took[n-1].Seconds())
		if check != nil {
			var wg sync.WaitGroup
			limit := make(chan struct{}, 8)
			for _, p := range made {
				wg.Go(func() {
					limit <- struct{}{}
					defer func() { <-limit }()
					check(p.Name)
				})
			}
			wg.Wait()
		}
	}
	begin = time.Now()
	if err := pods.DeleteCollection(t.Context(), metav1.DeleteOptions{}, burst); err != nil {
		t.Fatal(err)
	}
	for _, p := range made {
		gone(t, "pod "+p.Name, func(ctx context.Context) error {
			_, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
			return err
		})
	}
	t.Logf("%d pods, %s: all gone after %.1f s", n, name, time.Since(begin).Seconds())
	for _, p := range made {
		r.wantUnmounted(t, "/pods/"+string(p.UID)+"/")
	}
}
