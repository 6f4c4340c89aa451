package chart

import (
	"maps"
	"reflect"
	"slices"
	"testing"
)

// dig is what is below keys of an object, nil if nothing is.
func dig(o any, keys ...string) any {
	for _, key := range keys {
		m, ok := o.(map[string]any)
		if !ok {
			return nil
		}
		o = m[key]
	}
	return o
}

// holderOf is the DaemonSet of the holder in the render of values.
func holderOf(t *testing.T, values map[string]any) map[string]any {
	t.Helper()
	manifest, _, err := render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t, []byte(manifest)) {
		if o["kind"] == "DaemonSet" && dig(o, "spec", "selector", "matchLabels", "app.kubernetes.io/component") == "holder" {
			return o
		}
	}
	t.Fatal("no holder")
	return nil
}

// TestHolderStays: what the values of an upgrade change changes neither the template of the
// holder's pods, once its image is named, nor has the old pods replaced.
func TestHolderStays(t *testing.T) {
	pinned := map[string]any{"image": map[string]any{"tag": "v1"}}
	installed := holderOf(t, map[string]any{"image": map[string]any{"tag": "v1"}, "holder": pinned})
	upgraded := holderOf(t, map[string]any{
		"image":    map[string]any{"tag": "v2"},
		"holder":   pinned,
		"logLevel": 5,
		"node":     map[string]any{"extraArgs": []any{"-v=9"}, "podAnnotations": map[string]any{"a": "b"}},
		"metrics":  map[string]any{"enabled": true},
		"registries": map[string]any{
			"credentialsSecret": "registries",
			"hosts":             map[string]any{"r.example": "x"},
		},
	})
	if before, after := dig(installed, "spec"), dig(upgraded, "spec"); !reflect.DeepEqual(before, after) {
		t.Errorf("the upgrade changed the holder from %v to %v", before, after)
	}
	if got := dig(upgraded, "spec", "updateStrategy"); !reflect.DeepEqual(got, map[string]any{"type": "OnDelete"}) {
		t.Errorf("updateStrategy %v", got)
	}
	labels, _ := dig(upgraded, "spec", "template", "metadata", "labels").(map[string]any)
	want := []string{"app.kubernetes.io/component", "app.kubernetes.io/instance", "app.kubernetes.io/name"}
	if got := slices.Sorted(maps.Keys(labels)); !slices.Equal(got, want) {
		t.Errorf("labels of the pods %q, want %q", got, want)
	}
}

// TestHolderImage: it is the driver's unless another is named, in part or as a whole.
func TestHolderImage(t *testing.T) {
	digest := "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, c := range []struct {
		driver, holder map[string]any
		want           string
	}{
		{map[string]any{"repository": "r/d", "tag": "2"}, nil, "r/d:2"},
		{map[string]any{"repository": "r/d", "digest": digest}, nil, "r/d@" + digest},
		{map[string]any{"repository": "r/d", "tag": "2", "digest": digest}, map[string]any{"tag": "1"}, "r/d:1"},
		{map[string]any{"repository": "r/d", "tag": "2"}, map[string]any{"digest": digest}, "r/d@" + digest},
		{map[string]any{"repository": "r/d", "tag": "2", "digest": digest}, map[string]any{"repository": "r/h", "tag": "1"}, "r/h:1"},
	} {
		o := holderOf(t, map[string]any{"image": c.driver, "holder": map[string]any{"image": c.holder}})
		containers, _ := dig(o, "spec", "template", "spec", "containers").([]any)
		if got := dig(containers[0], "image"); got != c.want {
			t.Errorf("driver %v, holder %v: %v, want %s", c.driver, c.holder, got, c.want)
		}
	}
}

// TestHolderIsSmall: its quality of service is Guaranteed, and it may nothing.
func TestHolderIsSmall(t *testing.T) {
	o := holderOf(t, nil)
	containers, _ := dig(o, "spec", "template", "spec", "containers").([]any)
	if len(containers) != 1 {
		t.Fatalf("%d containers", len(containers))
	}
	c := containers[0]
	requests, limits := dig(c, "resources", "requests"), dig(c, "resources", "limits")
	if dig(requests, "cpu") == nil || dig(requests, "memory") == nil || !reflect.DeepEqual(requests, limits) {
		t.Errorf("requests %v, limits %v", requests, limits)
	}
	if dig(c, "securityContext", "privileged") != nil || !reflect.DeepEqual(dig(c, "securityContext", "capabilities"), map[string]any{"drop": []any{"ALL"}}) {
		t.Errorf("security context %v", dig(c, "securityContext"))
	}
	for _, probe := range []string{"livenessProbe", "startupProbe", "readinessProbe"} {
		if dig(c, probe) != nil {
			t.Errorf("it has a %s, which may end it", probe)
		}
	}
}
