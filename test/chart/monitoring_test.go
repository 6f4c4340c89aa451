package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// monitoringAPI is what the Prometheus operator brings, which Kubernetes does not know.
const monitoringAPI = "monitoring.coreos.com/v1"

// checkMonitoring checks an object of the Prometheus operator by the operator's types,
// and the alerts of one as Prometheus itself does, with their expressions and templates.
func checkMonitoring(object map[string]any) error {
	switch kind := object["kind"]; kind {
	case "ServiceMonitor":
		return decodeStrictly(object, new(monitoring.ServiceMonitor))
	case "PrometheusRule":
		if err := decodeStrictly(object, new(monitoring.PrometheusRule)); err != nil {
			return err
		}
		groups, err := json.Marshal(object["spec"]) // JSON is YAML
		if err != nil {
			return err
		}
		_, errs := rulefmt.Parse(groups, false, model.LegacyValidation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
		if len(errs) > 0 {
			return errs[0]
		}
		return nil
	default:
		return fmt.Errorf("no kind %v of %s is expected", kind, monitoringAPI)
	}
}

func decodeStrictly(object map[string]any, into any) error {
	text, err := json.Marshal(object)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// monitored are the objects of the Prometheus operator in the render of all values.
func monitored(t *testing.T) map[string]map[string]any {
	t.Helper()
	manifest, _, err := render(t, readValues(t, "testdata/full.values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]map[string]any)
	for _, o := range objects(t, []byte(manifest)) {
		if o["apiVersion"] == monitoringAPI {
			found[o["kind"].(string)] = o
		}
	}
	if len(found) != 2 {
		t.Fatalf("%d kinds of %s, want 2", len(found), monitoringAPI)
	}
	return found
}

// TestMonitoringWrong: the check finds what is wrong with an object.
func TestMonitoringWrong(t *testing.T) {
	spec := func(o map[string]any) map[string]any { return o["spec"].(map[string]any) }
	rule := func(o map[string]any) map[string]any {
		return spec(o)["groups"].([]any)[0].(map[string]any)["rules"].([]any)[0].(map[string]any)
	}
	for _, c := range []struct {
		kind, name string
		breakIt    func(o map[string]any)
	}{
		{"ServiceMonitor", "an unknown field", func(o map[string]any) { spec(o)["endpoint"] = []any{} }},
		{"ServiceMonitor", "a wrong type", func(o map[string]any) { spec(o)["endpoints"] = "metrics" }},
		{"PrometheusRule", "an unknown field", func(o map[string]any) { rule(o)["severity"] = "x" }},
		{"PrometheusRule", "a wrong expression", func(o map[string]any) { rule(o)["expr"] = "sum(up" }},
		{"PrometheusRule", "a wrong template", func(o map[string]any) {
			rule(o)["annotations"] = map[string]any{"summary": "{{ $label }}"}
		}},
		{"PrometheusRule", "an unknown kind", func(o map[string]any) { o["kind"] = "PrometheusRules" }},
	} {
		o := monitored(t)[c.kind]
		if err := checkMonitoring(o); err != nil {
			t.Fatal(err)
		}
		c.breakIt(o)
		if err := checkMonitoring(o); err == nil {
			t.Errorf("%s of a %s: no error", c.name, c.kind)
		}
	}
}

// TestAlerts: alerts are about metrics and labels that are documented, each selects
// the job that the ServiceMonitor makes of the Service, and says what to do.
func TestAlerts(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := documentedMetrics(t)
	text, err := json.Marshal(monitored(t)["PrometheusRule"])
	if err != nil {
		t.Fatal(err)
	}
	var o monitoring.PrometheusRule
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	rules := o.Spec.Groups[0].Rules
	if len(rules) < 5 {
		t.Errorf("only %d alerts", len(rules))
	}
	for _, r := range rules {
		selectors, err := documented.check(r.Expr.String())
		if err != nil {
			t.Errorf("%s: %v", r.Alert, err)
		}
		for _, s := range selectors {
			if s["job"] != "erofs-metrics" || s["namespace"] != namespace {
				t.Errorf("%s: of job %q in %q", r.Alert, s["job"], s["namespace"])
			}
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
			t.Errorf("%s has no summary, description or severity", r.Alert)
		}
		if _, ok := documentedAlerts(string(page))[r.Alert]; !ok {
			t.Errorf("docs/metrics.md has no alert %s", r.Alert)
		}
	}
	if n := len(documentedAlerts(string(page))); n != len(rules) {
		t.Errorf("docs/metrics.md has %d alerts, the chart %d", n, len(rules))
	}
}

// documentedAlerts are the alerts that a page has rows for.
func documentedAlerts(page string) map[string]bool {
	alerts := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `(ErofsCSI\\w+)` \\|").FindAllStringSubmatch(page, -1) {
		alerts[row[1]] = true
	}
	return alerts
}
