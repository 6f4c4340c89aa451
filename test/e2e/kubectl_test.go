package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// kubectlErofs is kubectl with its plugin erofs, from the directory of erofs-csi.
type kubectlErofs struct {
	kubectl, path string
	namespace     string
}

func (r *run) kubectlErofs(t *testing.T) *kubectlErofs {
	t.Helper()
	kubectl, err := exec.LookPath(env("E2E_KUBECTL", "kubectl"))
	if err != nil {
		t.Fatalf("%v: set E2E_KUBECTL", err)
	}
	plugin, err := filepath.Abs(filepath.Join(filepath.Dir(r.binary), "kubectl-erofs"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(plugin); err != nil {
		t.Fatalf("%v: make kubectl-erofs", err)
	}
	// The plugin looks for kubectl by its name.
	dir := t.TempDir()
	if err := errors.Join(os.Symlink(kubectl, filepath.Join(dir, "kubectl")), os.Symlink(plugin, filepath.Join(dir, "kubectl-erofs"))); err != nil {
		t.Fatal(err)
	}
	return &kubectlErofs{filepath.Join(dir, "kubectl"), dir + ":" + os.Getenv("PATH"), r.release}
}

// try runs kubectl erofs and returns what it prints, and its exit code.
func (k *kubectlErofs) try(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), k.kubectl, append([]string{"erofs", "--namespace=" + k.namespace}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+k.path)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exited *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exited) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (k *kubectlErofs) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := k.try(t, args...)
	if code != 0 {
		t.Fatalf("kubectl erofs %q: exit code %d: %s%s", args, code, out, errs)
	}
	return out
}

var gap = regexp.MustCompile(` {2,}`)

// row is the line of a table that has a value in a column, by the names of the columns.
func row(t *testing.T, table, column, value string) map[string]string {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(table, "\n"), "\n")
	names := gap.Split(lines[0], -1)
	for _, line := range lines[1:] {
		cells := gap.Split(line, len(names))
		if len(cells) != len(names) {
			t.Fatalf("%d cells in a line of %d columns: %s", len(cells), len(names), table)
		}
		found := make(map[string]string)
		for i, name := range names {
			found[name] = cells[i]
		}
		if found[column] == value {
			return found
		}
	}
	t.Fatalf("no %s %q in\n%s", column, value, table)
	return nil
}

// bytesOf reads a size as the tables have it, of one decimal.
func bytesOf(t *testing.T, text string) (n, precision int64) {
	t.Helper()
	number, unit, _ := strings.Cut(text, " ")
	f, err := strconv.ParseFloat(number, 64)
	shift := 10 * slices.Index([]string{"B", "KiB", "MiB", "GiB", "TiB"}, unit)
	if err != nil || shift < 0 {
		t.Fatalf("%q is no size", text)
	}
	return int64(f * float64(int64(1)<<shift)), int64(1) << shift / 10
}

// wantBytes: a size of a table is at least so much, but for its last decimal.
func wantBytes(t *testing.T, what, text string, least int64) {
	t.Helper()
	if n, precision := bytesOf(t, text); n < least-precision {
		t.Errorf("%s is %s, want at least %d bytes", what, text, least)
	}
}

// TestKubectl: kubectl erofs shows what pods mount, what of it is in memory and what sharing
// saves, and volumes that are not well.
func TestKubectl(t *testing.T) {
	r := suite
	k := r.kubectlErofs(t)
	const both = largeSize + smallSize
	domain, name := "e2e-"+r.id+"-kubectl", "e2e-"+r.id+"-kubectl-"
	status := func() (saved int64, cells map[string]string) {
		t.Helper()
		var nodes []struct {
			Node    string
			Engines []struct {
				Domains []struct {
					Name       string
					BytesSaved int64
				}
			}
		}
		if err := json.Unmarshal([]byte(k.must(t, "status", "--output=json")), &nodes); err != nil {
			t.Fatal(err)
		}
		saved = -1
		for _, n := range nodes {
			for _, e := range n.Engines {
				for _, d := range e.Domains {
					if n.Node == r.node && d.Name == domain {
						saved = d.BytesSaved
					}
				}
			}
		}
		return saved, row(t, k.must(t, "status"), "NODE", r.node)
	}
	volume := func(version string) map[string]string {
		t.Helper()
		return row(t, k.must(t, "volumes", "--node="+r.node), "VOLUME", name+version)
	}
	if saved, _ := status(); saved != -1 {
		t.Errorf("the domain %s, which nobody uses yet, saves %d bytes", domain, saved)
	}

	// The files are locked, so that they stay in memory.
	_, release := r.frames(t, r.framesPod(t, "kubectl-v1", r.v1, domain), "v1")
	defer release()
	first := volume("v1")
	fronts := row(t, k.must(t, "status"), "NODE", r.node)["FRONTS"]
	if first["NODE"] != r.node || first["DOMAIN"] != domain || first["ENGINE"] != "fuse" || !strings.Contains(first["IMAGE"], strings.TrimSuffix(r.v1.ref, ":v1")) ||
		!strings.Contains(fronts, first["FRONT"]+" ") || !strings.HasPrefix(first["HEALTH"], "ok") {
		t.Errorf("the volume of %s on %s is shown as %v, of the fronts %q", r.v1.ref, r.node, first, fronts)
	}
	wantBytes(t, "the page cache of the volume", first["RESIDENT"], both)
	wantBytes(t, "what nobody else has of it", first["ALONE"], both)
	before, cells := status()
	if before != 0 {
		t.Errorf("with one image the domain saves %d bytes", before)
	}
	wantBytes(t, "the page cache of the node", cells["RESIDENT"], both)
	count := func(cells map[string]string, column string) int {
		t.Helper()
		n, err := strconv.Atoi(cells[column])
		if err != nil {
			t.Fatalf("%s: %v", column, err)
		}
		return n
	}
	volumes, domains := count(cells, "VOLUMES"), count(cells, "DOMAINS")

	_, release2 := r.frames(t, r.framesPod(t, "kubectl-v2", r.v2, domain), "v2")
	defer release2()
	after, cells := status()
	if after < both {
		t.Errorf("with the sibling image the domain saves %d bytes, want at least %d", after, both)
	}
	wantBytes(t, "what the node saves", cells["SAVED"], both)
	if v, d := count(cells, "VOLUMES"), count(cells, "DOMAINS"); v != volumes+1 || d != domains {
		t.Errorf("the node has %d volumes in %d domains, and had %d in %d before there was one more", v, d, volumes, domains)
	}
	for _, version := range []string{"v1", "v2"} {
		now := volume(version)
		wantBytes(t, "the page cache of "+version, now["RESIDENT"], both)
		resident, precision := bytesOf(t, now["RESIDENT"])
		if alone, _ := bytesOf(t, now["ALONE"]); alone > resident-both+2*precision {
			t.Errorf("%s has %s in memory, and %s of that alone, of which %d bytes are the other's, too", version, now["RESIDENT"], now["ALONE"], both)
		}
	}
}

// TestKubectlHealth: a volume whose mount was taken away is shown as that.
func TestKubectlHealth(t *testing.T) {
	r := suite
	k := r.kubectlErofs(t)
	c := r.static(t, "unhealthy", map[string]string{"image": r.v1.ref}, nil)
	p := r.running(t, r.newPod("unhealthy", claimed(c)))
	kubelet, _ := strings.CutSuffix(r.pluginArg(t, "kubelet-registration-path"), "/plugins/"+driver+"/csi.sock")
	if got := row(t, k.must(t, "volumes"), "VOLUME", c.Name)["HEALTH"]; !strings.HasPrefix(got, "ok") {
		t.Errorf("the volume is shown as %q", got)
	}
	r.onNode(t, "umount", fmt.Sprintf("%s/pods/%s/volumes/kubernetes.io~csi/%s/mount", kubelet, p.UID, c.Name))
	if got := row(t, k.must(t, "volumes"), "VOLUME", c.Name)["HEALTH"]; !strings.HasPrefix(got, "NotMounted") {
		t.Errorf("without its mount the volume is shown as %q, want NotMounted", got)
	}
	if got := row(t, k.must(t, "status"), "NODE", r.node)["HEALTH"]; !strings.HasPrefix(got, "1 unhealthy") {
		t.Errorf("the node is shown as %q, want 1 unhealthy", got)
	}
}

// TestKubectlDoctor: doctor tries things on a node, in the plugin's pod, and a check that
// fails is its failure.
func TestKubectlDoctor(t *testing.T) {
	r := suite
	k := r.kubectlErofs(t)
	type finding struct{ Check, Result, Found, Fix string }
	checks := func(out string) map[string]finding {
		t.Helper()
		var all []finding
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		by := make(map[string]finding)
		for _, f := range all {
			by[f.Check] = f
		}
		return by
	}
	found := checks(k.must(t, "doctor", r.node, "--registry="+r.v1.ref, "--output=json"))
	for _, f := range found {
		if f.Result == "fail" || f.Found == "" || f.Result != "ok" && f.Fix == "" {
			t.Errorf("a node that serves: %+v", f)
		}
	}
	c := r.static(t, "doctor", map[string]string{"image": r.v1.ref}, nil)
	r.running(t, r.newPod("doctor", claimed(c)))
	front := row(t, k.must(t, "volumes"), "VOLUME", c.Name)["FRONT"]
	if got := found["front "+front]; got.Result != "ok" {
		t.Errorf("the front that pods have is %+v", got)
	}
	for _, check := range []string{"registry", "node plugin", "holder"} {
		if got := found[check]; got.Result != "ok" {
			t.Errorf("%s: %+v", check, got)
		}
	}
	text := k.must(t, "doctor", r.node)
	for check, f := range found {
		if line := fmt.Sprintf("%-4s  %-22s  ", f.Result, check); check != "registry" && !strings.Contains(text, line) {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}

	out, errs, code := k.try(t, "doctor", r.node, "--registry="+r.ref("nothing", "v1"), "--output=json")
	if got := checks(out)["registry"]; code != 1 || got.Result != "fail" || got.Fix == "" || !strings.Contains(errs, "1 of ") {
		t.Errorf("an image that is not there: exit code %d, %+v, %s", code, got, errs)
	}
	_, errs, code = k.try(t, "doctor", r.node+"-not")
	if code != 1 || !strings.Contains(errs, "no pod of a node plugin on node "+r.node+"-not") {
		t.Errorf("a node that is not there: exit code %d, %s", code, errs)
	}
}
