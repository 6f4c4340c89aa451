package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/erofs-csi/erofs-csi/driver"
)

// object is what the tests look at of a Kubernetes object.
type object struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		CSI      struct{ Driver string } `yaml:"csi"`
		Template struct {
			Spec struct {
				Containers []struct {
					Args         []string
					VolumeMounts []struct {
						Name string
						Path string `yaml:"mountPath"`
					} `yaml:"volumeMounts"`
				}
				Volumes []struct{ Name string }
			}
		}
		Volumes []struct {
			CSI struct {
				Driver           string
				VolumeAttributes map[string]string `yaml:"volumeAttributes"`
			} `yaml:"csi"`
		}
	}
}

// manifests decodes every document of deploy/ and fails on one that is none.
func manifests(t *testing.T) map[string]object {
	t.Helper()
	files, err := filepath.Glob("../../deploy/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	objects := make(map[string]object)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		for d := yaml.NewDecoder(f); ; {
			var o object
			err := d.Decode(&o)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if o.APIVersion == "" || o.Kind == "" || o.Metadata.Name == "" {
				t.Errorf("%s: an object without apiVersion, kind or name", file)
			}
			objects[o.Kind+"/"+o.Metadata.Name] = o
		}
	}
	return objects
}

// TestManifests: the DaemonSet's arguments are flags of the node command, its
// mounts are of its volumes, and everything names the driver as it is named.
func TestManifests(t *testing.T) {
	objects := manifests(t)
	if _, ok := objects["CSIDriver/"+driver.Name]; !ok {
		t.Errorf("no CSIDriver %s", driver.Name)
	}
	for _, name := range []string{objects["PersistentVolume/app-v1"].Spec.CSI.Driver, objects["Pod/app-inline"].Spec.Volumes[0].CSI.Driver} {
		if name != driver.Name {
			t.Errorf("an example names the driver %q, want %q", name, driver.Name)
		}
	}
	pod := objects["DaemonSet/erofs-csi-node"].Spec.Template.Spec
	args := pod.Containers[0].Args
	if len(args) == 0 || args[0] != "node" {
		t.Fatalf("the DaemonSet runs %q, want node", args)
	}
	cmd := nodeCommand()
	addLogFlags(cmd)
	if err := cmd.ParseFlags(args[1:]); err != nil {
		t.Errorf("DaemonSet: %v", err)
	}
	volumes := make(map[string]bool)
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
	}
	paths := make(map[string]bool)
	for _, m := range pod.Containers[0].VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("DaemonSet: volumeMount %s has no volume", m.Name)
		}
		paths[m.Path] = true
	}
	for _, flag := range []string{"cache-dir", "state-dir", "registration-dir"} {
		if dir := cmd.Flag(flag).Value.String(); !paths[dir] {
			t.Errorf("DaemonSet: --%s=%s is not mounted", flag, dir)
		}
	}
}

// TestDocumentedFlags: docs/node-plugin.md names every flag of the node
// command.
func TestDocumentedFlags(t *testing.T) {
	page, err := os.ReadFile("../../docs/node-plugin.md")
	if err != nil {
		t.Fatal(err)
	}
	nodeCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(string(page), "`--"+f.Name) {
			t.Errorf("docs/node-plugin.md does not tell of --%s", f.Name)
		}
	})
}
