//go:build arrows

// Package arrows proves that the linter's configuration enforces the dependency
// arrows of docs/architecture.md: it lints a module of the same shape whose
// files import the wrong way, and expects depguard to refuse exactly those.
// `make lint` runs it, with the linter it has just used in GOLANGCI_LINT.
package arrows

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/erofs-csi/erofs-csi"

// A trial is one import by a file of one directory of the tree.
type trial struct {
	dir, imports string
	refusedBy    string // name of the depguard rule, "" when the import is fine
}

var trials = []trial{
	{"erofs", "encoding/binary", ""},
	{"erofs", module + "/erofs/internal/disk", ""},
	{"erofs", "golang.org/x/sys/unix", "erofs"},
	{"erofs", module + "/nodecache", "erofs"},
	{"erofs", module + "/erofs/metaimage", "erofs"},
	{"erofs", "k8s.io/klog/v2", "erofs"},
	{"erofs/internal/lz4", module + "/erofs/internal/disk", ""},
	{"erofs/internal/lz4", "github.com/pierrec/lz4/v4", "erofs"},
	{"erofs/internal/encode", module + "/erofs", ""},
	{"erofs/internal/encode", module + "/erofs/fusefs", "derived"},
	{"erofs/build", module + "/erofs", ""},
	{"erofs/build", "github.com/klauspost/compress/zstd", ""},
	{"erofs/build", module + "/nodecache", "build"},
	{"erofs/build", "golang.org/x/sys/unix", "build"},
	{"erofs/metaimage", module + "/erofs", ""},
	{"erofs/metaimage", module + "/erofs/fusefs", "derived"},
	{"erofs/fingerprint", module + "/erofs", ""},
	{"erofs/fingerprint", module + "/nodecache", "derived"},
	{"erofs/share", module + "/erofs/fingerprint", ""},
	{"erofs/share", "github.com/hanwen/go-fuse/v2/fuse", "derived"},
	{"erofs/fusefs", module + "/erofs/share", ""},
	{"erofs/fusefs", "github.com/hanwen/go-fuse/v2/fuse", ""},
	{"erofs/fusefs", "golang.org/x/sys/unix", ""},
	{"erofs/fusefs", module + "/driver/engine", "fusefs"},
	{"erofs/fusefs", module + "/nodecache", "fusefs"},
	{"nodecache", "oras.land/oras-go/v2", ""},
	{"nodecache", module + "/erofs", "nodecache"},
	{"nodecache", module + "/erofs/build", ""},
	{"nodecache", module + "/erofs/fingerprint", "nodecache"},
	{"nodecache", module + "/erofs/fusefs", "nodecache"},
	{"nodecache", module + "/driver", "nodecache"},
	{"nodecache", "google.golang.org/grpc/codes", "nodecache"},
	{"nodecache", "k8s.io/mount-utils", "nodecache"},
	{"nodecache", "k8s.io/klog/v2", "nodecache"},
	{"nodecache/sub", module + "/erofs", "nodecache"},
	{"driver", module + "/erofs", ""},
	{"driver", module + "/nodecache", ""},
	{"driver", module + "/driver/engine", ""},
	{"driver", "google.golang.org/grpc/codes", ""},
	{"driver", module + "/erofs/fusefs", "driver"},
	{"driver", module + "/cmd/erofs-csi", "driver"},
	{"driver", "github.com/hanwen/go-fuse/v2/fuse", "driver"},
	{"driver/engine", module + "/erofs/fusefs", ""},
	{"driver/engine", module + "/nodecache", ""},
	{"driver/engine", module + "/driver", "engine"},
	{"driver/engine", "google.golang.org/grpc/codes", "engine"},
	{"driver/engine", "github.com/container-storage-interface/spec/lib/go/csi", "engine"},
	{"driver/doctor", module + "/driver/engine", ""},
	{"driver/doctor", module + "/nodecache", ""},
	{"driver/doctor", module + "/driver", "doctor"},
	{"driver/doctor", "google.golang.org/grpc/codes", "doctor"},
	{"driver/doctor", "github.com/container-storage-interface/spec/lib/go/csi", "doctor"},
	{"driver/doctor", module + "/erofs/fusefs", "driver"},
	{"driver", module + "/driver/claims", ""},
	{"driver", "k8s.io/client-go/rest", "kubernetes"},
	{"driver/claims", "k8s.io/client-go/rest", ""},
	{"driver/claims", module + "/driver", "claims"},
	{"driver/claims", module + "/nodecache", "claims"},
	{"driver/claims", "google.golang.org/grpc/codes", "claims"},
	{"driver/claims", "github.com/container-storage-interface/spec/lib/go/csi", "claims"},
	{"driver/podmount", "github.com/moby/sys/mountinfo", ""},
	{"driver/podmount", module + "/driver/engine", "podmount"},
	{"driver/podmount", "k8s.io/klog/v2", "podmount"},
	{"driver/holder", "golang.org/x/sys/unix", ""},
	{"driver/holder", module + "/erofs/apart", ""},
	{"driver", module + "/erofs/apart", ""},
	{"driver", module + "/erofs/share", "driver"},
	{"erofs/apart", module + "/erofs", "apart"},
	{"erofs/internal/ledger", module + "/erofs/share", "ledger"},
	{"driver/holder", module + "/driver/engine", "holder"},
	{"driver/holder", "k8s.io/klog/v2", "holder"},
	{"driver", module + "/driver/supervise", ""},
	{"driver/engine", module + "/driver/supervise", ""},
	{"driver/supervise", "golang.org/x/sys/unix", ""},
	{"driver/supervise", "k8s.io/klog/v2", "supervise"},
	{"driver/engine", module + "/driver/holder", ""},
	{"driver", module + "/driver/taints", ""},
	{"driver/taints", "k8s.io/client-go/rest", ""},
	{"driver/taints", module + "/driver", "taints"},
	{"driver/taints", module + "/nodecache", "taints"},
	{"driver/taints", "google.golang.org/grpc/codes", "taints"},
	{"driver/taints", "github.com/container-storage-interface/spec/lib/go/csi", "taints"},
	{"cmd/erofs-csi", module + "/driver", ""},
	{"cmd/erofs-csi", "k8s.io/client-go/tools/clientcmd", "kubernetes"},
	{"cmd/erofs-csi", module + "/driver/engine", ""},
	{"cmd/erofs-csi", module + "/erofs", ""},
	{"cmd/erofs-csi", module + "/nodecache", ""},
	{"cmd/erofs-csi", module + "/test/images", "product"},
	{"test/demo", module + "/test/images", ""},
}

func TestArrows(t *testing.T) {
	linter := os.Getenv("GOLANGCI_LINT")
	if linter == "" {
		t.Fatal("GOLANGCI_LINT is not set: run `make lint`")
	}
	refusals := lint(t, linter, buildModule(t))
	for i, tr := range trials {
		file := path.Join(tr.dir, fileName(i))
		got := refusals[file]
		delete(refusals, file)
		switch {
		case tr.refusedBy == "" && got != "":
			t.Errorf("%s may import %s, but: %s", tr.dir, tr.imports, got)
		case tr.refusedBy != "" && got == "":
			t.Errorf("%s must not import %s, and the linter lets it", tr.dir, tr.imports)
		case tr.refusedBy != "" && !strings.Contains(got, "list '"+tr.refusedBy+"'"):
			t.Errorf("%s imports %s: refused by another rule than %s: %s", tr.dir, tr.imports, tr.refusedBy, got)
		}
	}
	for file, text := range refusals {
		t.Errorf("%s: %s", file, text)
	}
}

func fileName(trial int) string { return fmt.Sprintf("trial%02d.go", trial) }

// buildModule writes a module of this project's shape with one file for each
// trial, and the real linter configuration. It has another name, so that no
// import resolves: depguard looks at the import's text alone, and the wrong
// arrows would be import cycles otherwise.
func buildModule(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile("../../.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	write(".golangci.yml", string(config))
	write("go.mod", "module trial\n\ngo 1.26.0\n")
	for i, tr := range trials {
		write(path.Join(tr.dir, fileName(i)), fmt.Sprintf("package trial\n\nimport _ %q\n", tr.imports))
	}
	return root
}

// lint returns depguard's refusals in the module at root: file → text.
func lint(t *testing.T, linter, root string) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), linter, "run", "--enable-only", "depguard",
		"--max-issues-per-linter", "0", "--max-same-issues", "0", "--allow-parallel-runners",
		"--output.text.path", "stderr", "--output.json.path", "stdout", "--show-stats=false", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
	out, err := cmd.Output()
	var report struct {
		Issues []struct {
			FromLinter, Text string
			Pos              struct{ Filename string }
		}
	}
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		t.Fatalf("%s: %v: %v\n%s", linter, err, jsonErr, out)
	}
	refusals := make(map[string]string)
	for _, issue := range report.Issues {
		if issue.FromLinter != "depguard" {
			continue
		}
		refusals[filepath.ToSlash(issue.Pos.Filename)] = issue.Text
	}
	return refusals
}
