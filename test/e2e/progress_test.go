package e2e

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestPullProgress: who waits for a large image reads in an event how much of it has come;
// it comes once, however often kubelet asks. It takes more than the two minutes that kubelet
// gives a call.
func TestPullProgress(t *testing.T) {
	r := suite
	if r.private == nil {
		t.Fatal("this test needs E2E_PRIVATE_REGISTRY: see README.md, or leave it out by -skip TestPullProgress")
	}
	const size = 135 * slowRate
	dir := filepath.Join(r.dir, slowName)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), random(r.id+slowName, size), 0o644); err != nil {
		t.Fatal(err)
	}
	im := image{ref: r.ref(slowName, "v1"), dir: dir}
	if err := r.push(t.Context(), im); err != nil {
		t.Fatal(err)
	}
	secret := r.secret(t, slowName, password)
	source := inline(map[string]string{"image": r.private.ref(r, im.ref), "lazy": "never"})
	source.CSI.NodePublishSecretRef = &corev1.LocalObjectReference{Name: secret}
	began := time.Now()
	p := r.create(t, r.newPod(slowName, source))
	var seen string
	told := regexp.MustCompile(`FailedMount: .*DeadlineExceeded.*/slow:v1 is not on the node yet: ([0-9]+) of 34 MiB are pulled`)
	err := poll(t.Context(), "an event that tells how much has come", func(ctx context.Context) (bool, error) {
		var err error
		seen, err = r.events(ctx, p.UID)
		return told.MatchString(seen), err
	})
	if err != nil {
		t.Fatalf("%v; there are\n%s", err, seen)
	}
	if m := told.FindStringSubmatch(seen); m[1] == "0" {
		t.Errorf("nothing has come after %s: %s", time.Since(began), strings.TrimSpace(seen))
	} else {
		t.Logf("after %s: %s", time.Since(began).Round(time.Second), told.FindString(seen))
	}
	if err := r.waitReady(t.Context(), p.Name); err != nil {
		t.Fatal(err)
	}
	t.Logf("it runs after %s", time.Since(began).Round(time.Second))
	r.wantTree(t, p.Name, "/v", dir)
	if sent := r.private.slow.Load(); sent > size*11/10 {
		t.Errorf("%d bytes were sent of an image of %d: the pull began anew", sent, size)
	}
}
