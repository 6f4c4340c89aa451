package chart

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
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
	return holderIn(t, manifest)
}

func holderIn(t *testing.T, manifest string) map[string]any {
	t.Helper()
	for _, o := range objects(t, []byte(manifest)) {
		if o["kind"] == "DaemonSet" && dig(o, "spec", "selector", "matchLabels", "app.kubernetes.io/component") == "holder" {
			return o
		}
	}
	t.Fatal("no holder")
	return nil
}

// imageOf is the image of the one container of a DaemonSet.
func imageOf(t *testing.T, o map[string]any) any {
	t.Helper()
	containers, _ := dig(o, "spec", "template", "spec", "containers").([]any)
	if len(containers) != 1 {
		t.Fatalf("%d containers", len(containers))
	}
	return dig(containers[0], "image")
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

// TestUpdateStrategy: an upgrade goes from node to node by itself where that ends no mount,
// and warns where it would; what is set stands, whole.
func TestUpdateStrategy(t *testing.T) {
	rolling := map[string]any{"type": "RollingUpdate", "rollingUpdate": map[string]any{"maxUnavailable": 1}}
	onDelete := map[string]any{"type": "OnDelete"}
	for _, c := range []struct {
		holder    bool
		set, want map[string]any
		warns     bool
	}{
		{true, nil, rolling, false},
		{true, onDelete, onDelete, false},
		{true, map[string]any{"type": "RollingUpdate"}, map[string]any{"type": "RollingUpdate"}, false},
		{false, nil, onDelete, false},
		{false, onDelete, onDelete, false},
		{false, rolling, rolling, true},
	} {
		node := map[string]any{}
		if c.set != nil {
			node["updateStrategy"] = c.set
		}
		manifest, notes, err := render(t, map[string]any{"holder": map[string]any{"enabled": c.holder}, "node": node})
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		var got any
		for _, o := range objects(t, []byte(manifest)) {
			if o["kind"] == "DaemonSet" && dig(o, "spec", "selector", "matchLabels", "app.kubernetes.io/component") == "node" {
				got = dig(o, "spec", "updateStrategy")
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) { // an int64 here, an int there
			t.Errorf("holder %v, set %v: %v, want %v", c.holder, c.set, got, c.want)
		}
		if warns := strings.Contains(notes, "WARNING"); warns != c.warns {
			t.Errorf("holder %v, set %v: warned: %v, want %v: %s", c.holder, c.set, warns, c.warns, notes)
		}
		if told := strings.Contains(notes, "when you delete its pod"); told != (c.want["type"] == "OnDelete") {
			t.Errorf("holder %v, set %v: notes do not tell how to upgrade: %s", c.holder, c.set, notes)
		}
	}
}

// TestAbandonAfter: the holder's own program takes it, 0 included.
func TestAbandonAfter(t *testing.T) {
	for value, want := range map[any]string{nil: "5m", "90s": "90s", "1h30m": "1h30m", 0: "0", "0": "0"} {
		values := map[string]any{}
		if value != nil {
			values["abandonAfter"] = value
		}
		o := holderOf(t, map[string]any{"holder": values})
		containers, _ := dig(o, "spec", "template", "spec", "containers").([]any)
		args, _ := dig(containers[0], "args").([]any)
		if arg := "--abandon-after=" + want; !slices.Contains(args, any(arg)) {
			t.Errorf("%v: arguments %v, want %s", value, args, arg)
		}
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
		if got := imageOf(t, o); got != c.want {
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
