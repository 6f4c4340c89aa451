package chart

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
)

// installed is a cluster that has one DaemonSet, for templates that look it up.
type installed struct{ dynamic.Interface }

func newInstalled(daemonset map[string]any) *installed {
	return &installed{fake.NewSimpleDynamicClient(runtime.NewScheme(), &unstructured.Unstructured{Object: daemonset})}
}

// GetClientFor implements engine.ClientProvider.
func (c *installed) GetClientFor(string, string) (dynamic.NamespaceableResourceInterface, bool, error) {
	return c.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}), true, nil
}

// TestInstalledHolder: an upgrade leaves the holder's image as it is, unless another is
// named, or images come from elsewhere now.
func TestInstalledHolder(t *testing.T) {
	v1 := map[string]any{"image": map[string]any{"repository": "r/d", "tag": "1"}}
	first := holderOf(t, v1)
	if got, err := newInstalled(first).Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}).
		Namespace(namespace).Get(t.Context(), "erofs-csi-holder", metav1.GetOptions{}); err != nil {
		t.Fatalf("%v: %v", got, err)
	}
	for name, c := range map[string]struct {
		values map[string]any
		want   string
	}{
		"another tag":          {map[string]any{"image": map[string]any{"repository": "r/d", "tag": "2"}}, "r/d:1"},
		"another repository":   {map[string]any{"image": map[string]any{"repository": "r/dd", "tag": "2"}}, "r/dd:2"},
		"the holder's by name": {map[string]any{"image": map[string]any{"repository": "r/d", "tag": "2"}, "holder": map[string]any{"image": map[string]any{"tag": "3"}}}, "r/d:3"},
	} {
		manifest, _, err := renderIn(t, c.values, newInstalled(first))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := imageOf(t, holderIn(t, manifest)); got != c.want {
			t.Errorf("%s: the holder's image is %v, want %s", name, got, c.want)
		}
	}
}
