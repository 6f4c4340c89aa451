package chart

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// kubernetes are the releases whose API the objects are checked with, the oldest that the
// chart allows and a newest, with the hashes of their module.
var kubernetes = map[string]string{
	"v1.29.15": "h1:hLcyf3XmxtfkubCEmmPX5QVD7lDclXjvEUrJeP283LM=",
	"v1.37.2":  "h1:A2VDEiObzkYqFTKhSsn0ZEb0RlLEXpHWj93gi2HqEwE=",
}

// kubernetesAPI holds the schemas that the API server publishes, with which unknown
// fields are errors.
type kubernetesAPI struct {
	dir      string
	compiler *jsonschema.Compiler
	schemas  map[string]*jsonschema.Schema // by "apiVersion Kind"
}

// openAPI gets the module of a Kubernetes release, which has the API's description.
func openAPI(t testing.TB, version string) *kubernetesAPI {
	t.Helper()
	name := "k8s.io/kubernetes@" + version
	out, err := exec.Command("go", "mod", "download", "-json", name).Output()
	var module struct{ Dir, Sum, Error string }
	if jsonErr := json.Unmarshal(out, &module); jsonErr != nil || err != nil {
		t.Fatalf("go mod download %s: %v, %v, %s", name, err, jsonErr, module.Error)
	}
	if module.Sum != kubernetes[version] {
		t.Fatalf("%s has the sum %s, want %s", name, module.Sum, kubernetes[version])
	}
	return &kubernetesAPI{
		dir:      filepath.Join(module.Dir, "api", "openapi-spec", "v3"),
		compiler: jsonschema.NewCompiler(),
		schemas:  make(map[string]*jsonschema.Schema),
	}
}

// check checks one object.
func (k *kubernetesAPI) check(object map[string]any) error {
	version, _ := object["apiVersion"].(string)
	kind, _ := object["kind"].(string)
	if version == monitoringAPI {
		return checkMonitoring(object)
	}
	schema, err := k.schema(version, kind)
	if err != nil {
		return err
	}
	return schema.Validate(object)
}

func (k *kubernetesAPI) schema(apiVersion, kind string) (*jsonschema.Schema, error) {
	key := apiVersion + " " + kind
	if s := k.schemas[key]; s != nil {
		return s, nil
	}
	group, version, ok := strings.Cut(apiVersion, "/")
	file := "apis__" + group + "__" + version + "_openapi.json"
	if !ok {
		group, version, file = "", apiVersion, "api__"+apiVersion+"_openapi.json"
	}
	f, err := os.Open(filepath.Join(k.dir, file))
	if err != nil {
		return nil, fmt.Errorf("no API %q: %w", apiVersion, err)
	}
	defer func() { _ = f.Close() }()
	doc, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		return nil, err
	}
	all := doc.(map[string]any)["components"].(map[string]any)["schemas"].(map[string]any)
	url := "https://kubernetes.invalid/" + file
	for name, s := range all {
		s := s.(map[string]any)
		if s["properties"] != nil && s["additionalProperties"] == nil {
			s["additionalProperties"] = false
		}
		kinds, _ := s["x-kubernetes-group-version-kind"].([]any)
		for _, gvk := range kinds {
			gvk := gvk.(map[string]any)
			if gvk["group"] == group && gvk["version"] == version && gvk["kind"] == kind {
				url += "#/components/schemas/" + name
			}
		}
	}
	resource, pointer, ok := strings.Cut(url, "#")
	if !ok {
		return nil, fmt.Errorf("the API %s has no kind %q", apiVersion, kind)
	}
	if err := k.compiler.AddResource(resource, doc); err != nil {
		if exists := new(jsonschema.ResourceExistsError); !errors.As(err, &exists) {
			return nil, err
		}
	}
	s, err := k.compiler.Compile(resource + "#" + pointer)
	if err != nil {
		return nil, err
	}
	k.schemas[key] = s
	return s, nil
}

// objects decodes the documents of a manifest, in the types of JSON.
func objects(t testing.TB, manifest []byte) []map[string]any {
	t.Helper()
	var all []map[string]any
	for d := yaml.NewDecoder(strings.NewReader(string(manifest))); ; {
		var o any
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if object, ok := v.(map[string]any); ok {
			all = append(all, object)
		}
	}
}

// TestObjects: every object of the renders, the plain manifest and the examples is one
// that the Kubernetes API knows, to the last field.
func TestObjects(t *testing.T) {
	for version := range kubernetes {
		t.Run(version, func(t *testing.T) { checkObjects(t, openAPI(t, version)) })
	}
}

func checkObjects(t *testing.T, api *kubernetesAPI) {
	t.Helper()
	files := []string{"../../deploy/erofs-csi.yaml"}
	for _, pattern := range []string{"testdata/*.yaml", "../../deploy/examples/*.yaml"} {
		more, err := filepath.Glob(pattern)
		if err != nil || len(more) == 0 {
			t.Fatalf("%s: no files, %v", pattern, err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".values.yaml") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all := objects(t, text)
		if len(all) == 0 {
			t.Errorf("%s: no objects", file)
		}
		seen := make(map[string]bool)
		for _, o := range all {
			metadata, _ := o["metadata"].(map[string]any)
			name := fmt.Sprintf("%v %v/%v", o["kind"], metadata["namespace"], metadata["name"])
			if seen[name] {
				t.Errorf("%s: %s is there twice", file, name)
			}
			seen[name] = true
			if err := api.check(o); err != nil {
				t.Errorf("%s: %s: %v", file, name, err)
			}
		}
	}
}

// TestObjectsWrong: the check finds what is wrong with an object.
func TestObjectsWrong(t *testing.T) {
	api := openAPI(t, "v1.37.2")
	manifest, _, err := render(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod := func(o map[string]any) map[string]any {
		return o["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
	}
	for name, breakIt := range map[string]func(o map[string]any){
		"an unknown field":         func(o map[string]any) { o["specs"] = map[string]any{} },
		"an unknown field deep":    func(o map[string]any) { pod(o)["container"] = []any{} },
		"a wrong type":             func(o map[string]any) { pod(o)["nodeSelector"] = "linux" },
		"a string instead of bool": func(o map[string]any) { pod(o)["hostNetwork"] = "true" },
		"a missing required field": func(o map[string]any) { delete(pod(o), "containers") },
		"an unknown kind":          func(o map[string]any) { o["kind"] = "DaemonSets" },
		"an unknown API":           func(o map[string]any) { o["apiVersion"] = "apps/v2" },
		"an object in a label": func(o map[string]any) {
			o["metadata"].(map[string]any)["labels"] = map[string]any{"a": map[string]any{}}
		},
		"a missing required nested": func(o map[string]any) { delete(o["spec"].(map[string]any), "template") },
	} {
		for _, o := range objects(t, []byte(manifest)) {
			if o["kind"] != "DaemonSet" {
				continue
			}
			if err := api.check(o); err != nil {
				t.Fatal(err)
			}
			breakIt(o)
			if err := api.check(o); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	}
}

// TestKubeVersion: the oldest release that the objects are checked with is the oldest
// that the chart allows.
func TestKubeVersion(t *testing.T) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	oldest := slices.Sorted(maps.Keys(kubernetes))[0]
	minor, _, _ := strings.Cut(strings.TrimPrefix(oldest, "v1."), ".")
	if want := ">=1." + minor + ".0-0"; chart.Metadata.KubeVersion != want {
		t.Errorf("kubeVersion %q, want %q", chart.Metadata.KubeVersion, want)
	}
}
