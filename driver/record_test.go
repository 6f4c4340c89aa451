package driver

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

func sampleRecord() record {
	return record{
		Version: recordVersion, VolumeID: "pvc/../1", Domain: "d", Reference: "r/a@sha256:1", ImageID: "sha256-1",
		Attributes: attributes{Image: "r/a", PullPolicy: nodecache.IfNotPresent, Fingerprints: "verified", Engine: "auto", Lazy: "auto"},
		Bytes:      1, Inodes: 2,
		Staging: &recordPath{Path: "/s", Flags: defaultMountFlags, Created: true},
		Targets: []recordPath{{Path: "/t", Flags: defaultMountFlags}},
	}
}

func TestRecordsComeBack(t *testing.T) {
	dir := recordDir(filepath.Join(t.TempDir(), "volumes"))
	if records, damaged, err := dir.load(); err != nil || len(records)+len(damaged) != 0 {
		t.Fatalf("a new directory: %v, %v, %v", records, damaged, err)
	}
	want := sampleRecord()
	for range 2 {
		if err := dir.save(want); err != nil {
			t.Fatal(err)
		}
	}
	records, damaged, err := dir.load()
	if err != nil || len(damaged) != 0 || len(records) != 1 || !reflect.DeepEqual(records[0], want) {
		t.Errorf("got %+v, %v, %v; want %+v", records, damaged, err, want)
	}
	for range 2 {
		if err := dir.remove(want.VolumeID); err != nil {
			t.Fatal(err)
		}
	}
	if names := fileNames(t, string(dir)); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

func fileNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestDamagedRecords: one bad file costs its own volume only, and stays for
// people to look at.
func TestDamagedRecords(t *testing.T) {
	good := sampleRecord()
	damages := map[string]func(text string) string{
		"empty":           func(string) string { return "" },
		"cut off":         func(s string) string { return s[:len(s)/2] },
		"no JSON":         func(string) string { return "\x00\x01" },
		"other version":   func(s string) string { return strings.Replace(s, `"version": 1`, `"version": 2`, 1) },
		"other volume":    func(s string) string { return strings.Replace(s, "pvc/../1", "pvc/../2", 1) },
		"no image":        func(s string) string { return strings.Replace(s, "r/a@sha256:1", "", 1) },
		"relative path":   func(s string) string { return strings.Replace(s, `"/t"`, `"t"`, 1) },
		"climbing path":   func(s string) string { return strings.Replace(s, `"/t"`, `"/t/../.."`, 1) },
		"unclean path":    func(s string) string { return strings.Replace(s, `"/t"`, `"/t//"`, 1) },
		"writable target": func(s string) string { return strings.Replace(s, `"ro"`, `"rw"`, 1) },
		"wrong kind":      func(s string) string { return strings.Replace(s, `"ephemeral": false`, `"ephemeral": true`, 1) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			dir := recordDir(t.TempDir())
			other := sampleRecord()
			other.VolumeID = "healthy"
			for _, r := range []record{good, other} {
				if err := dir.save(r); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(dir.file(good.VolumeID))
			if err != nil {
				t.Fatal(err)
			}
			bad := damage(string(text))
			if bad == string(text) {
				t.Fatal("nothing was damaged")
			}
			if err := os.WriteFile(dir.file(good.VolumeID), []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(string(dir), "tmp-123"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			records, damaged, err := dir.load()
			if err != nil || len(records) != 1 || records[0].VolumeID != "healthy" || len(damaged) != 1 {
				t.Errorf("records %+v, damaged %v, %v", records, damaged, err)
			}
			kept, err := os.ReadFile(dir.file(good.VolumeID) + ".damaged")
			if err != nil || string(kept) != bad {
				t.Errorf("the damaged file: %q, %v", kept, err)
			}
			if names := fileNames(t, string(dir)); len(names) != 2 {
				t.Errorf("files: %q", names)
			}
		})
	}
}
