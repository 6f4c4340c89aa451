package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// workload is what the tests look at of a DaemonSet or Deployment.
type workload struct {
	Kind string
	Spec struct {
		Template struct {
			Spec struct {
				Containers []container
				Volumes    []struct{ Name string }
			}
		}
	}
}

type container struct {
	Name         string
	Command      []string
	Args         []string
	Startup      probe `yaml:"startupProbe"`
	Liveness     probe `yaml:"livenessProbe"`
	Readiness    probe `yaml:"readinessProbe"`
	VolumeMounts []struct {
		Name string
		Path string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

// holderSocket is what the chart has for holder and node plugin.
const holderSocket = "/run/erofs-csi/holder/holder.sock"

type probe struct{ Exec struct{ Command []string } }

// workloads decodes a manifest, and gives the pods of the driver by command.
func workloads(t *testing.T, file string) map[string]workload {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	found := make(map[string]workload)
	for d := yaml.NewDecoder(f); ; {
		var w workload
		err := d.Decode(&w)
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if containers := w.Spec.Template.Spec.Containers; len(containers) > 0 && len(containers[0].Args) > 0 {
			c := &containers[0]
			if slices.Equal(c.Command, []string{"/" + holderProgram}) {
				c.Args = append([]string{"holder"}, c.Args...)
			}
			found[c.Args[0]] = w
		}
	}
}

// TestManifests: what the chart makes, with any values, runs commands that there are with
// flags that they have, and mounts the directories that the flags name.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("../../test/chart/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no renders: %v", err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".values.yaml") })
	controllers, holders := 0, 0
	for _, file := range append(files, "../../deploy/erofs-csi.yaml") {
		found := workloads(t, file)
		if _, ok := found["node"]; !ok {
			t.Errorf("%s: no pod runs erofs-csi node", file)
		}
		for command, w := range found {
			switch command {
			case "controller":
				controllers++
			case "holder":
				holders++
			}
			checkWorkload(t, file+": "+w.Kind, w)
		}
	}
	if controllers == 0 || holders == 0 {
		t.Errorf("%d pods run erofs-csi controller, %d erofs-csi holder", controllers, holders)
	}
}

func checkWorkload(t *testing.T, name string, w workload) {
	t.Helper()
	c := w.Spec.Template.Spec.Containers[0]
	cmd := parsed(t, name, c.Args)
	if cmd == nil {
		return
	}
	for _, p := range []probe{c.Startup, c.Liveness, c.Readiness} {
		if len(p.Exec.Command) == 0 {
			continue
		}
		asks := parsed(t, name+": probe", p.Exec.Command[1:])
		if asks != nil && asks.Flag("endpoint").Value.String() != cmd.Flag("endpoint").Value.String() {
			t.Errorf("%s: probe %q of another endpoint than %s", name, p.Exec.Command, cmd.Flag("endpoint").Value)
		}
	}
	volumes := make(map[string]bool)
	for _, v := range w.Spec.Template.Spec.Volumes {
		volumes[v.Name] = true
	}
	paths := make(map[string]bool)
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("%s: volumeMount %s has no volume", name, m.Name)
		}
		paths[m.Path] = true
	}
	for _, flag := range []string{
		"cache-dir", "state-dir", "registration-dir", "registry-hosts-dir",
		"image-credential-provider-config", "image-credential-provider-bin-dir",
	} {
		if f := cmd.Flag(flag); f != nil && f.Value.String() != "" && !paths[f.Value.String()] {
			t.Errorf("%s: --%s=%s is not mounted", name, flag, f.Value)
		}
	}
	// A single file of a mounted directory, which follows changes.
	for _, flag := range []string{"registry-config", "socket"} {
		if f := cmd.Flag(flag); f != nil && f.Value.String() != "" && !paths[filepath.Dir(f.Value.String())] {
			t.Errorf("%s: the directory of --%s=%s is not mounted", name, flag, f.Value)
		}
	}
	// Where the holder's pod makes it, in a directory of the state directory.
	if f := cmd.Flag("holder"); f != nil && f.Value.String() != "" {
		if f.Value.String() != holderSocket || !paths["/run/erofs-csi"] {
			t.Errorf("%s: --holder=%s is not the holder's socket", name, f.Value)
		}
	}
	if f := cmd.Flag("socket"); f != nil && f.Value.String() != holderSocket {
		t.Errorf("%s: --socket=%s, the plugins look for it at %s", name, f.Value, holderSocket)
	}
	if f := cmd.Flag("allow-path"); f != nil {
		for _, dir := range f.Value.(pflag.SliceValue).GetSlice() {
			if !paths[dir] {
				t.Errorf("%s: --allow-path=%s is not mounted", name, dir)
			}
		}
	}
}

// parsed is the command of a command line, nil after an error.
func parsed(t *testing.T, name string, args []string) *cobra.Command {
	t.Helper()
	cmd, rest, err := newRoot().command.Find(args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err != nil || len(cmd.Flags().Args()) > 0 {
		t.Errorf("%s: %q: %v, arguments %q", name, args, err, cmd.Flags().Args())
		return nil
	}
	return cmd
}

// TestDocumentedFlags: the sections of docs/node-plugin.md about commands have a row for
// every flag, and for none that is not there. A row may tell of several.
func TestDocumentedFlags(t *testing.T) {
	page, err := os.ReadFile("../../docs/node-plugin.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range elsewhere {
		cmd, _, err := newRoot().command.Find([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		_, section, ok := strings.Cut(string(page), "\n## `erofs-csi "+name+"`\n")
		if !ok {
			t.Fatalf("docs/node-plugin.md has no section about erofs-csi %s", name)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		documented := make(map[string]bool)
		for _, row := range regexp.MustCompile(`(?m)^\| (\x60--?[^|]*) \|`).FindAllStringSubmatch(section, -1) {
			for _, flag := range regexp.MustCompile(`\x60--?([a-z-]+)`).FindAllStringSubmatch(row[1], -1) {
				documented[flag[1]] = true
			}
		}
		delete(documented, "v") // all commands have it
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if !documented[f.Name] && f.Name != "help" {
				t.Errorf("docs/node-plugin.md does not tell of --%s of erofs-csi %s", f.Name, name)
			}
			delete(documented, f.Name)
		})
		for flag := range documented {
			t.Errorf("docs/node-plugin.md tells of --%s, which erofs-csi %s has not", flag, name)
		}
	}
}

// source is all that the program, and the chart, can say: their files without tests.
func source(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"../../cmd", "../../driver", "../../nodecache", "../../erofs"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return strings.ReplaceAll(all.String(), `\"`, `"`)
}

// TestTroubleshooting: what docs/troubleshooting.md calls an error of ours is one: each of
// its headings has a text that the program says.
func TestTroubleshooting(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## What the driver says\n")
	if !ok {
		t.Fatal("docs/troubleshooting.md has no section about what the driver says")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	said := source(t)
	headings := regexp.MustCompile("(?m)^### (.*)$").FindAllStringSubmatch(section, -1)
	if len(headings) < 15 {
		t.Errorf("only %d errors", len(headings))
	}
	for _, h := range headings {
		texts := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(h[1], -1)
		if len(texts) == 0 {
			t.Errorf("%q names no text", h[1])
		}
		for _, text := range texts {
			if !strings.Contains(said, text[1]) {
				t.Errorf("nothing says %q", text[1])
			}
		}
	}
}

// TestLinks: links between the pages lead to files and headings that are there.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	adrs, err := filepath.Glob("../../docs/adr/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(append(pages, adrs...), "../../README.md", "../../charts/erofs-csi/README.md", "../../test/e2e/README.md")
	anchors := make(map[string]map[string]bool)
	headings := func(file string) map[string]bool {
		if anchors[file] == nil {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			anchors[file] = make(map[string]bool)
			for _, h := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
				// As GitHub makes them.
				id := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(h[1]), "")
				anchors[file][strings.ReplaceAll(id, " ", "-")] = true
			}
		}
		return anchors[file]
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(string(text), -1) {
			target, anchor, _ := strings.Cut(l[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := page
			if target != "" {
				file = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: %s: %v", page, l[1], err)
			} else if anchor != "" && !headings(file)[anchor] {
				t.Errorf("%s: %s: no such heading", page, l[1])
			}
		}
	}
}
