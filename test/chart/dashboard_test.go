package chart

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// dashboardText is the dashboard in the render of all values.
func dashboardText(t *testing.T) []byte {
	t.Helper()
	manifest, _, err := render(t, readValues(t, "testdata/full.values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t, []byte(manifest)) {
		data, _ := o["data"].(map[string]any)
		text, ok := data["erofs-csi.json"].(string)
		if !ok {
			continue
		}
		if l := o["metadata"].(map[string]any)["labels"].(map[string]any); l["grafana_dashboard"] != "1" {
			t.Errorf("the sidecar's label is missing: %v", l)
		}
		return []byte(text)
	}
	t.Fatal("no dashboard is rendered")
	return nil
}

// grafanaSays is what is wrong with a dashboard by Grafana's own types; empty: nothing.
func grafanaSays(text []byte) string {
	var d dashboard.Dashboard //nolint:staticcheck // the successor is another format, which the sidecars do not provision
	// An error is never nil there, but empty.
	if err := d.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		return err.Error()
	}
	if err := d.Validate(); err != nil {
		return err.Error()
	}
	return ""
}

// panel is what a test looks at of one.
type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ H, W, X, Y int }
	Targets                  []struct{ Expr, LegendFormat, RefID string }
}

// legend are the labels in a legend's format.
var legend = regexp.MustCompile(`\{\{ *(\w+) *\}\}`)

// TestDashboard: it is one to Grafana's own types, and its panels and variables are
// about metrics and labels that are documented.
func TestDashboard(t *testing.T) {
	text := dashboardText(t)
	if errs := grafanaSays(text); errs != "" {
		t.Fatalf("not what Grafana reads: %s", errs)
	}
	var d struct {
		Panels     []panel
		Templating struct {
			List []struct{ Name, Type, Query string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	known := documentedMetrics(t)
	check := func(where, expr, legendFormat string) {
		// What Grafana fills in.
		expr = strings.NewReplacer("$__rate_interval", "5m", "$job", "j", "$node", "n").Replace(expr)
		selectors, err := known.check(expr)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		}
		for _, s := range selectors {
			if s["job"] != "j" || s["node"] != "n" {
				t.Errorf("%s: %s takes in what is not chosen: %v", where, expr, s)
			}
		}
		for _, m := range legend.FindAllStringSubmatch(legendFormat, -1) {
			// What the legend names must be left by the aggregation.
			if by := regexp.MustCompile(`by \(([^)]*)\)`).FindStringSubmatch(expr); by == nil || !strings.Contains(by[1], m[1]) {
				t.Errorf("%s: the legend %q of %s", where, legendFormat, expr)
			}
		}
	}
	ids := make(map[int]bool)
	exprs := 0
	taken := make(map[[2]int]string)
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: an id that is missing or taken, or no title", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s: covers %q, or is beyond the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("%s has no description, or shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			exprs++
			check(p.Title, target.Expr, target.LegendFormat)
		}
	}
	if exprs < 30 {
		t.Errorf("only %d expressions", exprs)
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		m := regexp.MustCompile(`^label_values\((\w+)(\{.*\})?, (\w+)\)$`).FindStringSubmatch(v.Query)
		if m == nil {
			t.Errorf("variable %s: %s", v.Name, v.Query)
			continue
		}
		expr := strings.ReplaceAll("sum by ("+m[3]+") ("+m[1]+m[2]+")", "$job", "j")
		if _, err := known.check(expr); err != nil {
			t.Errorf("variable %s: %v", v.Name, err)
		}
	}
}

// TestDashboardWrong: Grafana's types refuse what is none.
func TestDashboardWrong(t *testing.T) {
	for _, wrong := range []struct{ old, new string }{
		{`"schemaVersion":`, `"schemaVersions":`},
		{`"graphTooltip": 1`, `"graphTooltip": "x"`},
		{`"gridPos":`, `"gridpos":`},
	} {
		text := strings.Replace(string(dashboardText(t)), wrong.old, wrong.new, 1)
		if grafanaSays([]byte(text)) == "" {
			t.Errorf("%s: no error", wrong.new)
		}
	}
}
