package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestSharing: files with the same content of two images have the same physical pages in
// pods of one domain, and others in pods of two domains. Both a large file and a small
// one, which have ways of their own to a pod.
func TestSharing(t *testing.T) {
	r := suite
	// Pages of volumes of one domain that was used before could be elsewhere by now.
	one, two := "e2e-"+r.id+"-one", "e2e-"+r.id+"-two"
	a := r.framesPod(t, "frames-a", r.v1, one)
	b := r.framesPod(t, "frames-b", r.v2, one)
	c := r.framesPod(t, "frames-c", r.v2, two)

	framesA, releaseA := r.frames(t, a, "v1")
	defer releaseA()
	framesB, releaseB := r.frames(t, b, "v2")
	defer releaseB()
	framesC, releaseC := r.frames(t, c, "v2")
	defer releaseC()
	for i, what := range []string{"large", "small"} {
		if pages := len(framesA[i]); pages == 0 || pages*4096 < smallSize && pages*65536 < smallSize {
			t.Fatalf("%s: only %d pages", what, pages)
		}
		if !slices.Equal(framesA[i], framesB[i]) {
			t.Errorf("%s: %d of %d pages are the same in two pods of one domain, want all", what, common(framesA[i], framesB[i]), len(framesA[i]))
		}
		if n := common(framesB[i], framesC[i]); n > 0 || len(framesC[i]) != len(framesB[i]) {
			t.Errorf("%s: %d of %d pages are the same in pods of two domains, want none", what, n, len(framesC[i]))
		}
	}

	// The files are locked, so that what the plugin says of them can't change meanwhile.
	const both = largeSize + smallSize
	if d := r.domain(t, one); d.BytesSaved < both || d.BytesResident < both {
		t.Errorf("domain %s has %d bytes resident and %d saved, want at least %d each", one, d.BytesResident, d.BytesSaved, both)
	}
	if d := r.domain(t, two); d.BytesSaved != 0 || d.BytesResident < both {
		t.Errorf("domain %s has %d bytes resident and %d saved, want at least %d and 0", two, d.BytesResident, d.BytesSaved, both)
	}
}

// framesPod is a pod that may see physical addresses.
func (r *run) framesPod(t *testing.T, name string, im image, domain string) string {
	t.Helper()
	c := r.static(t, name, map[string]string{"image": im.ref, "domain_id": domain}, nil)
	p := r.newPod(name, claimed(c))
	privileged := true
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
	return r.running(t, p).Name
}

// frames returns the physical pages of a version's two shared files, which stay where they
// are until release is called.
func (r *run) frames(t *testing.T, pod, version string) (frames [2][]uint64, release func()) {
	t.Helper()
	stdin, end := io.Pipe()
	out, stdout := io.Pipe()
	done := make(chan error, 1)
	names := []string{"/v/" + shared[version][0], "/v/" + shared[version][1]}
	go func() {
		err := r.execTo(ctxOf(t), r.namespace, pod, stdin, stdout, "/v/bin/tool", "frames", names[0], names[1])
		_ = stdout.CloseWithError(err)
		done <- err
	}()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	all := make(map[string][]uint64)
	if err == nil {
		err = json.Unmarshal(line, &all)
	}
	if err != nil {
		_ = end.Close()
		t.Fatal(err)
	}
	return [2][]uint64{all[names[0]], all[names[1]]}, func() {
		_ = end.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// common counts the pages that are in both lists.
func common(a, b []uint64) (n int) {
	in := make(map[uint64]bool, len(a))
	for _, frame := range a {
		in[frame] = true
	}
	for _, frame := range b {
		if in[frame] {
			n++
		}
	}
	return n
}
