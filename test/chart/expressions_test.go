package chart

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

// scrapeLabels are those that every time series gets: of the ServiceMonitor, or of what
// else scrapes.
var scrapeLabels = []string{"job", "namespace", "node", "instance"}

// knownMetrics are the labels of metrics by name.
type knownMetrics map[string][]string

// documentedMetrics are those of docs/metrics.md, which a test of the driver compares
// with what a node plugin serves, and those of every Go program.
func documentedMetrics(t *testing.T) knownMetrics {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := knownMetrics{"up": nil}
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\| (.*?) \\|").FindAllStringSubmatch(string(page), -1) {
		names := regexp.MustCompile(`\w+`).FindAllString(row[3], -1)
		known[row[1]] = names
		if row[2] == "histogram" {
			known[row[1]+"_sum"], known[row[1]+"_count"] = names, names
			known[row[1]+"_bucket"] = append([]string{"le"}, names...)
		}
	}
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		known[f.GetName()] = nil
	}
	return known
}

// check parses an expression, and refuses metrics and labels that are not known. It
// returns what each of its selectors asks of labels.
func (k knownMetrics) check(text string) (selectors []map[string]string, err error) {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		return nil, err
	}
	var all []string // labels of any metric of the expression
	for _, s := range parser.ExtractSelectors(expr) {
		matchers := make(map[string]string)
		for _, m := range s {
			matchers[m.Name] = m.Value
		}
		name := matchers[model.MetricNameLabel]
		delete(matchers, model.MetricNameLabel)
		names, ok := k[name]
		if !ok {
			return nil, fmt.Errorf("docs/metrics.md has no %q", name)
		}
		names = append(slices.Clone(names), scrapeLabels...)
		for label := range matchers {
			if !slices.Contains(names, label) {
				return nil, fmt.Errorf("%s has no label %s", name, label)
			}
		}
		all = append(all, names...)
		selectors = append(selectors, matchers)
	}
	if len(selectors) == 0 {
		return nil, fmt.Errorf("%s selects nothing", text)
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if a, ok := n.(*parser.AggregateExpr); ok && err == nil {
			for _, label := range a.Grouping {
				if !slices.Contains(all, label) {
					err = fmt.Errorf("%s: nothing has the label %s", text, label)
				}
			}
		}
		return nil
	})
	return selectors, err
}

// TestExpressionsWrong: what does not exist is found.
func TestExpressionsWrong(t *testing.T) {
	known := documentedMetrics(t)
	for text, want := range map[string]string{
		`erofs_csi_volume`:                         "no \"erofs_csi_volume\"",
		`erofs_csi_volumes{engine="fuse"}`:         "no label engine",
		`sum by (engine) (erofs_csi_volumes)`:      "nothing has the label engine",
		`sum without (engine) (erofs_csi_volumes)`: "nothing has the label engine",
		`sum(`: "parse error",
		`1`:    "selects nothing",
		`rate(erofs_csi_rpc_duration_seconds_max[5m])`: "no \"erofs_csi_rpc_duration_seconds_max\"",
		`process_memory`: "no \"process_memory\"",
	} {
		if _, err := known.check(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	if _, err := known.check(`histogram_quantile(0.9, sum by (le, method) (rate(erofs_csi_rpc_duration_seconds_bucket{node="n"}[5m])))`); err != nil {
		t.Error(err)
	}
}
