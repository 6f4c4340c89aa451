package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/erofs-csi/erofs-csi/test/images"
)

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestChaos is the short form of the harness.
func TestChaos(t *testing.T) {
	images.Need(t, "root", os.Getuid() == 0)
	_, err := os.Stat("/dev/fuse")
	images.Need(t, "/dev/fuse", err == nil)
	images.NewestMkfs(t)
	dir := t.TempDir()
	binaries := buildBoth(t, dir)
	for _, run := range [][]string{
		{"-scenario", "kills,upgrade", "-front", "overlay", "-kills", "5", "-volumes", "6", "-upgrades", "2"},
		{"-scenario", "kills", "-front", "tree-passthrough,tree", "-kills", "4", "-volumes", "4"},
		{"-scenario", "both", "-front", "overlay", "-volumes", "4"},
	} {
		args := append([]string{"-binary", binaries[0], "-other", binaries[1], "-dir", dir, "-seed", "1"}, run...)
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), roleEnv+"=harness")
		out, err := cmd.CombinedOutput()
		t.Logf("%v\n%s", run, out)
		if err != nil {
			t.Error(err)
		}
	}
}

// buildBoth builds the programs with two versions.
func buildBoth(t *testing.T, dir string) (binaries [2]string) {
	t.Helper()
	for i := range binaries {
		bin := filepath.Join(dir, fmt.Sprintf("bin%d", i))
		binaries[i] = filepath.Join(bin, "erofs-csi")
		cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags", fmt.Sprintf("-X main.version=chaos-%d", i), "-o", bin+"/", "../../cmd/erofs-csi", "../../cmd/erofs-csi-holder")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if err := os.Mkdir(bin, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v: %s", err, out)
		}
	}
	return binaries
}
