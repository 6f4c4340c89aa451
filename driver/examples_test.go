package driver

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// example is what a test looks at of an object in deploy/examples.
type example struct {
	Kind     string
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Provisioner string
	Parameters  map[string]string
	Spec        struct {
		AccessModes      []string `yaml:"accessModes"`
		StorageClassName string   `yaml:"storageClassName"`
		CSI              *exampleVolume
		Volumes          []struct{ CSI *exampleVolume }
	}
}

type exampleVolume struct {
	Driver           string
	VolumeAttributes map[string]string `yaml:"volumeAttributes"`
}

// TestExamples: the driver takes the attributes, parameters and annotations of the
// examples, and all of them together show every way to name an image.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../deploy/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	ways := make(map[string]bool)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		for d := yaml.NewDecoder(f); ; {
			var e example
			err := d.Decode(&e)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			checkExample(t, file+": "+e.Kind+" "+e.Metadata.Name, e, ways)
		}
	}
	want := []string{"PersistentVolume", "StorageClass", "annotation", "class without an image", "inline", "path"}
	if got := slices.Sorted(maps.Keys(ways)); !slices.Equal(got, want) {
		t.Errorf("the examples show %q, want %q", got, want)
	}
}

func checkExample(t *testing.T, name string, e example, ways map[string]bool) {
	t.Helper()
	check := func(way string, attributes map[string]string) {
		t.Helper()
		a, err := parseAttributes(attributes)
		if err == nil {
			err = nodecache.ValidateReference(a.Image)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		ways[way] = true
		if filepath.IsAbs(a.Image) {
			ways["path"] = true
		}
	}
	volume := func(way string, v *exampleVolume) {
		t.Helper()
		if v.Driver != Name {
			t.Errorf("%s: driver %q, want %q", name, v.Driver, Name)
		}
		check(way, v.VolumeAttributes)
	}
	switch e.Kind {
	case "StorageClass":
		if e.Provisioner != Name {
			t.Errorf("%s: provisioner %q, want %q", name, e.Provisioner, Name)
		}
		if e.Parameters["image"] != "" {
			check("StorageClass", e.Parameters)
			return
		}
		parameters := maps.Clone(e.Parameters)
		parameters["image"] = "registry.example/a:1"
		check("class without an image", parameters)
	case "PersistentVolume":
		volume("PersistentVolume", e.Spec.CSI)
	case "Pod":
		for _, v := range e.Spec.Volumes {
			if v.CSI != nil {
				volume("inline", v.CSI)
			}
		}
	case "PersistentVolumeClaim":
		for key, image := range e.Metadata.Annotations {
			if key != annotationImage {
				t.Errorf("%s: annotation %q", name, key)
				continue
			}
			check("annotation", map[string]string{"image": image})
		}
	}
	if e.Kind == "PersistentVolume" || e.Kind == "PersistentVolumeClaim" {
		if !slices.Equal(e.Spec.AccessModes, []string{"ReadOnlyMany"}) {
			t.Errorf("%s: access modes %q", name, e.Spec.AccessModes)
		}
	}
}
