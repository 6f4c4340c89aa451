package driver

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// TestHealthReasons: what is counted by reason are the reasons that are documented,
// and no reason is written elsewhere.
func TestHealthReasons(t *testing.T) {
	page, err := os.ReadFile("../docs/node-plugin.md")
	must(t, err)
	_, section, _ := strings.Cut(string(page), "\n## Volume condition\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*`) \\|").FindAllStringSubmatch(section, -1) {
		documented = append(documented, strings.Split(strings.ReplaceAll(row[1], "`", ""), ", ")...)
	}
	slices.Sort(documented)
	if want := slices.Sorted(slices.Values(healthReasons)); !slices.Equal(documented, want) || len(want) == 0 {
		t.Errorf("docs/node-plugin.md has the reasons %q, the code %q", documented, want)
	}
	source, err := os.ReadFile("health.go")
	must(t, err)
	if found := regexp.MustCompile(`inaccessible\("`).Find(source); found != nil {
		t.Error("a reason is not one of the constants")
	}
}

// TestDocumentedResults: docs/metrics.md names every way in which a pull can end.
func TestDocumentedResults(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	must(t, err)
	for _, name := range append(nodecache.Results[:], nodecache.SourceMirror, nodecache.SourceRegistry, nodecache.SourceWeb) {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/metrics.md does not tell of %q", name)
		}
	}
}
