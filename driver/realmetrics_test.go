package driver

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"

	"github.com/erofs-csi/erofs-csi/driver/holder"
	"github.com/erofs-csi/erofs-csi/test/images"
)

// metricsAt is what a plugin logs when it serves metrics.
var metricsAt = regexp.MustCompile(`Serving metrics.* address="([^"]+)"`)

func readLog(t *testing.T, ch *child) []byte {
	t.Helper()
	text, err := os.ReadFile(ch.log)
	must(t, err)
	return text
}

// scrape is one answer of the metrics server.
type scrape struct {
	text     []byte
	families map[string]*dto.MetricFamily
}

// scrape asks a plugin for its metrics.
func (ch *child) scrape(t *testing.T) scrape {
	t.Helper()
	var address []byte
	for start := time.Now(); address == nil; time.Sleep(10 * time.Millisecond) {
		if m := metricsAt.FindSubmatch(readLog(t, ch)); m != nil {
			address = m[1]
		} else if time.Since(start) > 10*time.Second {
			t.Fatal("the plugin does not say where its metrics are")
		}
	}
	client := &http.Client{Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://" + string(address) + "/metrics")
	must(t, err)
	defer func() { _ = res.Body.Close() }()
	s := scrape{}
	s.text, err = io.ReadAll(res.Body)
	must(t, err)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", res.Status, s.text)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	s.families, err = parser.TextToMetricFamilies(bytes.NewReader(s.text))
	must(t, err)
	return s
}

// value is the value of a metric with labels "name=value"; of a histogram its count.
func (s scrape) value(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	for _, m := range s.families["erofs_csi_"+name].GetMetric() {
		var has []string
		for _, l := range m.GetLabel() {
			has = append(has, l.GetName()+"="+l.GetValue())
		}
		if !slices.Equal(has, labels) {
			continue
		}
		if h := m.GetHistogram(); h != nil {
			return float64(h.GetSampleCount())
		}
		return m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	t.Errorf("%s%q is not there", name, labels)
	return 0
}

// rows of the table of docs/metrics.md: name, type and labels.
var metricRow = regexp.MustCompile("(?m)^\\| `(erofs_csi_[a-z_]+)` \\| ([a-z]+) \\| (.*?) \\| .+ \\|$")

// checkDocumented: the metrics are those of docs/metrics.md, with types and labels.
func (s scrape) checkDocumented(t *testing.T) {
	t.Helper()
	page, err := os.ReadFile("../docs/metrics.md")
	must(t, err)
	documented := make(map[string]string)
	for _, row := range metricRow.FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2] + " " + strings.NewReplacer("`", "", ",", "").Replace(row[3])
	}
	if n := strings.Count(string(page), "\n| `erofs_csi_"); n != len(documented) || n == 0 {
		t.Errorf("docs/metrics.md has %d rows of which %d have the form of a metric", n, len(documented))
	}
	for name, family := range s.families {
		if !strings.HasPrefix(name, "erofs_csi_") {
			continue
		}
		var labels []string
		for _, l := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		is := strings.ToLower(family.GetType().String()) + " " + strings.Join(labels, " ")
		if documented[name] != is {
			t.Errorf("%s: docs/metrics.md says %q, it is %q", name, documented[name], is)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("%s of docs/metrics.md is not there", name)
	}
}

// TestRealMetrics: a plugin tells Prometheus what it did and holds, by names that the
// linter of Prometheus likes, and that are documented.
func TestRealMetrics(t *testing.T) {
	n := newNode(t, "auto")
	n.config.MetricsAddress = "127.0.0.1:0"
	n.config.Holder = filepath.Join(n.dir, "holder.sock")
	startHolder(t, n.config.Holder)
	tree := t.TempDir()
	content := bytes.Repeat([]byte("read by two\n"), 1<<16)
	must(t, os.WriteFile(filepath.Join(tree, "file"), content, 0o600))
	image := n.image(t, "a.erofs", tree)
	other := n.image(t, "b.erofs", tree, "-zlz4")
	registry := newRegistry(t)
	remote := registry.push(t, "app", image)
	ch := n.start(t)
	must(t, n.stage(ch, "a", remote, "domain_id=d"))
	must(t, n.stage(ch, "b", other, "domain_id=d"))
	wantCode(t, n.stage(ch, "c", strings.Replace(remote, "app", "nothing", 1)), codes.NotFound)
	for _, volume := range []string{"a", "b"} {
		got, err := os.ReadFile(n.path("show-" + volume + "/file"))
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("volume %s: %v", volume, err)
		}
	}
	s := ch.scrape(t)

	problems, err := promlint.New(bytes.NewReader(s.text)).Lint()
	must(t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "erofs_csi_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	s.checkDocumented(t)

	info, err := os.Stat(image)
	must(t, err)
	size := info.Size()
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"ready", nil, 1},
		{"rpc_duration_seconds", []string{"code=OK", "method=NodeStageVolume"}, 2},
		{"rpc_duration_seconds", []string{"code=NotFound", "method=NodeStageVolume"}, 1},
		{"pulls_started_total", nil, 2},
		{"pulls_finished_total", []string{"result=ok"}, 1},
		{"pulls_finished_total", []string{"result=not_found"}, 1},
		{"pulls_finished_total", []string{"result=error"}, 0},
		{"pull_received_bytes_total", []string{"source=mirror"}, 0},
		{"blob_transfers", nil, 0},
		{"conversions_started_total", nil, 0},
		{"hashed_images_total", nil, 2},
		{"unshared_files_total", []string{"reason=unreadable"}, 0},
		{"read_errors_total", nil, 0},
		{"oldest_read_seconds", nil, 0},
		{"request_panics_total", nil, 0},
		{"lost_mounts_total", nil, 0},
		{"unanswered_parts", nil, 0},
		{"holder_connected", nil, 1},
		{"holder_losses_total", nil, 0},
		{"holder_pending_items", nil, 0},
		{"domains", []string{"engine=fuse"}, 1},
		{"mounted_images", []string{"state=shown"}, 2},
		{"shared_inodes", nil, 1},
		{"image_store_blobs", nil, 1},
		{"unhealthy_volumes", []string{"reason=EngineUnhealthy"}, 0},
		{"sample_failures_total", nil, 0},
	} {
		if got := s.value(t, c.name, c.labels...); got != c.want {
			t.Errorf("%s%q is %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	for _, c := range []struct {
		name    string
		labels  []string
		atLeast float64
	}{
		{"pull_received_bytes_total", []string{"source=registry"}, float64(size)},
		{"image_store_bytes", nil, float64(size)},
		{"image_store_disk_free_bytes", nil, 1},
	} {
		if got := s.value(t, c.name, c.labels...); got < c.atLeast {
			t.Errorf("%s%q is %v, want at least %v", c.name, c.labels, got, c.atLeast)
		}
	}
	fronts := 0.0
	for _, front := range frontKinds {
		fronts += s.value(t, "volumes", "front="+front)
	}
	if fronts != 2 || s.value(t, "volumes", "front=none") != 0 {
		t.Errorf("%v volumes have a front, want 2", fronts)
	}
	read := s.value(t, "read_bytes_total", "source=image") + s.value(t, "read_bytes_total", "source=readahead")
	stored := s.value(t, "plain_files")
	if stored == 0 && int(read) < len(content) {
		t.Errorf("%v bytes were read, want the %d of one file", read, len(content))
	}
	resident, saved := s.value(t, "page_cache_bytes"), s.value(t, "page_cache_saved_bytes")
	if resident > float64(len(content)+1<<16) || saved != resident {
		t.Errorf("%v bytes resident and %v saved; want those of one file, twice shown", resident, saved)
	}

	// A sample is kept for a while, what is counted is not.
	must(t, n.unstage(ch, "b"))
	again := ch.scrape(t)
	if got := again.value(t, "sample_timestamp_seconds"); got != s.value(t, "sample_timestamp_seconds") {
		t.Errorf("another sample was taken at %v", got)
	}
	if got := again.value(t, "rpc_duration_seconds", "code=OK", "method=NodeUnstageVolume"); got != 1 {
		t.Errorf("%v calls of NodeUnstageVolume, want 1", got)
	}
	ch.end(t, syscall.SIGTERM)
}

// TestRealMetricsUnhealthy: a volume that could not be rebuilt is counted, and an
// address that another has does not keep the plugin from serving.
func TestRealMetricsUnhealthy(t *testing.T) {
	n := newNode(t, "auto")
	image := n.image(t, "a.erofs", images.TinyTree(t))
	ch := n.start(t)
	must(t, n.stage(ch, "v", image))
	ch.end(t, syscall.SIGKILL)
	must(t, os.Remove(image))
	n.config.MetricsAddress = "127.0.0.1:0"
	ch = n.start(t)
	s := ch.scrape(t)
	for name, labels := range map[string]string{"volumes": "front=none", "unhealthy_volumes": "reason=NotRebuilt"} {
		if got := s.value(t, name, labels); got != 1 {
			t.Errorf("%s{%s} is %v, want 1", name, labels, got)
		}
	}
	_, taken, _ := strings.Cut(string(metricsAt.Find(readLog(t, ch))), `address="`)
	second := newNode(t, "auto")
	second.config.MetricsAddress = strings.TrimSuffix(taken, `"`)
	blocked := second.start(t)
	if log := string(readLog(t, blocked)); !strings.Contains(log, "Cannot serve metrics") {
		t.Error("nothing is said of an address that another has")
	}
	blocked.end(t, syscall.SIGTERM)
}

// TestRealLostMounts: mounts that a plugin cannot take over, as those of a release to come,
// are counted, and what they showed is mounted anew.
func TestRealLostMounts(t *testing.T) {
	n := newNode(t, "auto")
	n.config.MetricsAddress = "127.0.0.1:0"
	n.config.Holder = filepath.Join(n.dir, "holder.sock")
	startHolder(t, n.config.Holder)
	image := n.image(t, "a.erofs", images.TinyTree(t))
	want := images.KernelMount(t, image)
	ch := n.start(t)
	must(t, n.stage(ch, "v", image, "domain_id=d"))
	ch.end(t, syscall.SIGKILL)

	client, err := holder.Dial(t.Context(), n.config.Holder, "node "+n.config.StateDir)
	must(t, err)
	items, err := client.Items()
	must(t, err)
	lost := 0
	for _, it := range items {
		var meta map[string]any
		must(t, json.Unmarshal(it.Meta, &meta))
		meta["version"] = 99
		text, err := json.Marshal(meta)
		must(t, err)
		must(t, client.Put(it.Key, text, it.Files...))
		lost++
	}
	must(t, client.Close())
	for _, it := range items {
		for _, f := range it.Files {
			must(t, f.Close())
		}
	}
	ch = n.start(t)
	if got := ch.scrape(t).value(t, "lost_mounts_total"); lost == 0 || got != float64(lost) {
		t.Errorf("lost_mounts_total is %v, want %d", got, lost)
	}
	if log := string(readLog(t, ch)); !strings.Contains(log, "it is of version 99, this release knows") {
		t.Error("the log does not say why")
	}
	images.CompareTrees(t, want, n.path("show-v"), images.CompareOptions{})
	must(t, n.unstage(ch, "v"))
	ch.end(t, syscall.SIGTERM)
}
