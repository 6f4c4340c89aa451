package driver

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What another process learns of a plugin's volumes: all that are recorded, and how each
// is, also after what pods have of it is gone.
func TestAskVolumes(t *testing.T) {
	p := newPlugin(t)
	ask := func() []VolumeHealth {
		t.Helper()
		list, err := AskVolumes(context.Background(), "unix://"+p.path("csi.sock"), p.path("state"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := ask(); len(list) != 0 || list == nil {
		t.Errorf("without volumes: %#v", list)
	}
	p.mustStage(t, "b")
	p.mustPublish(t, "b", "pod1")
	p.mustPublish(t, "b", "pod2")
	p.mustStage(t, "a")
	// What is no record is nobody's volume, and stays.
	stray := filepath.Join(p.path("state"), volumesDir, "tmp-1")
	if err := os.WriteFile(stray, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(p.path("state"), volumesDir, "0.json")
	if err := os.WriteFile(damaged, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	list := ask()
	if len(list) != 2 || list[0].Volume != "a" || list[1].Volume != "b" {
		t.Fatalf("%+v", list)
	}
	if v := list[1]; v.Image == "" || v.Inline || v.Reason != "" || v.Message != "" || !slices.Equal(v.Targets, []string{p.path("pod1"), p.path("pod2")}) {
		t.Errorf("%+v", v)
	}
	for _, file := range []string{stray, damaged} {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("somebody else's file: %v", err)
		}
	}
	if err := unix.Unmount(p.path("pod2"), 0); err != nil {
		t.Fatal(err)
	}
	if v := ask()[1]; v.Reason != reasonNotMounted || !strings.Contains(v.Message, p.path("pod2")) {
		t.Errorf("after a pod's mount has gone: %+v", v)
	}
	p.stop()
	if _, err := AskVolumes(context.Background(), "unix://"+p.path("csi.sock"), p.path("state")); err == nil || !strings.Contains(err.Error(), "csi.sock") {
		t.Errorf("nobody there: %v", err)
	}
}
