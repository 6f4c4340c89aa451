package main

import (
	"os"
	"testing"

	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// A process that serves learns its own status from another one.
func TestStatusByChild(t *testing.T) {
	images.Need(t, "root", os.Geteuid() == 0)
	name := os.Args[0]
	os.Args[0] = "erofs-csi" // what the test binary is the program by
	defer func() { os.Args[0] = name }()

	dir := t.TempDir()
	e, err := engine.New(t.Context(), engine.Config{StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	list, err := statusByChild(dir)(t.Context())
	if err != nil || len(list) != 1 || list[0].PID != os.Getpid() {
		t.Errorf("status %v, %v; want that of process %d", list, err, os.Getpid())
	}
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list, err := statusByChild(dir)(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("status %v, %v; want none", list, err)
	}
	if _, err := statusByChild("a\x00")(t.Context()); err == nil {
		t.Error("no error of a program that could not be run")
	}
}
