package chart

import (
	"bytes"
	"os"
	"testing"

	"go.yaml.in/yaml/v3"
	kind "sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
)

// TestKind: kind reads the configuration of make e2e-kind, by its own types and as strictly
// as it does; the values that the tests want are the chart's; and new nodes have the taint
// that these take away.
func TestKind(t *testing.T) {
	text, err := os.ReadFile("../e2e/kind.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c kind.Cluster
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if c.APIVersion != "kind.x-k8s.io/v1alpha4" || c.Kind != "Cluster" || len(c.Nodes) != 2 || c.Nodes[1].Role != kind.WorkerRole {
		t.Fatalf("%+v, want a cluster of two nodes, the second a worker", c)
	}
	type patch struct {
		Kind             string `yaml:"kind"`
		NodeRegistration struct {
			Taints []struct{ Key, Effect string } `yaml:"taints"`
		} `yaml:"nodeRegistration"`
		VolumeStatsAggPeriod string `yaml:"volumeStatsAggPeriod"`
	}
	read := func(text, want string) patch {
		t.Helper()
		var p patch
		decoder := yaml.NewDecoder(bytes.NewReader([]byte(text)))
		decoder.KnownFields(true)
		if err := decoder.Decode(&p); err != nil || p.Kind != want {
			t.Fatalf("%q: %v, want a %s", text, err, want)
		}
		return p
	}
	if len(c.KubeadmConfigPatches) != 1 || read(c.KubeadmConfigPatches[0], "KubeletConfiguration").VolumeStatsAggPeriod == "" {
		t.Errorf("patches %q, want one of the kubelet", c.KubeadmConfigPatches)
	}
	values := readValues(t, "../e2e/values.yaml")
	want, _ := values["controller"].(map[string]any)["startupTaint"].(string)
	join := read(c.Nodes[1].KubeadmConfigPatches[0], "JoinConfiguration").NodeRegistration.Taints
	if want == "" || len(join) != 1 || join[0].Key != want {
		t.Errorf("the worker begins with %+v, the controller takes away %q", join, want)
	}
	if _, _, err := render(t, values); err != nil {
		t.Error(err)
	}
}
