package chart

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestUnknownValues: a misspelt value is an error at every level.
func TestUnknownValues(t *testing.T) {
	defaults := readValues(t, chartDir+"/values.yaml")
	// Maps whose keys are the user's.
	open := []string{
		"registries.hosts", "node.inlineDomains", "node.nodeSelector", "node.affinity", "node.podAnnotations", "node.podLabels",
		"controller.nodeSelector", "controller.affinity", "controller.podAnnotations", "controller.podLabels",
		"node.serviceAccount.annotations", "controller.serviceAccount.annotations",
		"node.resources.requests", "controller.resources.requests", "controller.resources.limits",
		"holder.podAnnotations", "holder.podLabels", "holder.resources.requests", "holder.resources.limits",
		"metrics.serviceMonitor.labels", "metrics.prometheusRule.labels",
		"metrics.grafanaDashboard.labels", "metrics.grafanaDashboard.annotations",
		"controller.provisioner.resources.requests", "controller.provisioner.resources.limits",
	}
	levels := 0
	var visit func(path []string, m map[string]any)
	visit = func(path []string, m map[string]any) {
		if slices.Contains(open, strings.Join(path, ".")) {
			return
		}
		levels++
		values := map[string]any{"imagge": "x"}
		for _, key := range slices.Backward(path) {
			values = map[string]any{key: values}
		}
		if _, _, err := render(t, values); err == nil || !strings.Contains(err.Error(), "imagge") {
			t.Errorf("an unknown value below %q: %v, want an error that names it", path, err)
		}
		for key, v := range m {
			if v, ok := v.(map[string]any); ok {
				visit(append(slices.Clone(path), key), v)
			}
		}
	}
	visit(nil, defaults)
	if levels < 12 {
		t.Errorf("only %d levels were tried", levels)
	}
}

// TestBadValues: values that could only fail later are refused.
func TestBadValues(t *testing.T) {
	for name, text := range map[string]string{
		"a relative cache directory":       `node: {cacheDir: var/lib}`,
		"an unknown front":                 `node: {front: fuse}`,
		"a strategy that is none":          `node: {updateStrategy: {type: Recreate}}`,
		"surge of pods that share a node":  `node: {updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1}}}`,
		"a domain instead of domains":      `node: {inlineDomains: {team: d}}`,
		"a domain with a space":            `node: {inlineDomains: {team: ["a b"]}}`,
		"an argument that is no flag":      `node: {extraArgs: [v=5]}`,
		"a digest of another kind":         `image: {digest: "md5:00"}`,
		"no repository":                    `image: {repository: ""}`,
		"a class without a name":           `storageClasses: [{parameters: {image: r.example/a:1}}]`,
		"a class with a misspelt key":      `storageClasses: [{name: a, parameters: {domain: d}}]`,
		"a class whose value is no string": `storageClasses: [{name: a, parameters: {userNamespaces: true}}]`,
		"a class with a misspelt field":    `storageClasses: [{name: a, reclaimpolicy: Retain}]`,
		"a registry with a path":           `registries: {plainHTTP: ["r.example/x"]}`,
		"plugins without a directory":      `node: {credentialProviders: {config: /etc/p.yaml}}`,
		"an audience that is all":          `node: {credentialProviders: {tokenAudiences: [""]}}`,
		"a limit that is no size":          `node: {imageLimit: much}`,
		"mirrors of no registry":           `registries: {hosts: {"a/b": x}}`,
		"a time without a unit":            `holder: {abandonAfter: 300}`,
		"no time":                          `holder: {abandonAfter: ""}`,
		"a time that is a word":            `holder: {abandonAfter: never}`,
		"a timeout without a unit":         `controller: {provisioner: {timeout: 60}}`,
		"a namespace that is none":         `controller: {secretNamespaces: ["a b"]}`,
		"a port that is none":              `metrics: {port: 0}`,
		"an interval that is none":         `metrics: {serviceMonitor: {interval: often}}`,
		"a log level that is a word":       `logLevel: debug`,
	} {
		var values map[string]any
		if err := yaml.Unmarshal([]byte(text), &values); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, _, err := render(t, values); err == nil || !strings.Contains(err.Error(), "specification(s) of the schema") && !strings.Contains(err.Error(), "schema") {
			t.Errorf("%s: %v, want an error of the schema", name, err)
		}
	}
}

// value is a row of the table of values.
type value struct{ key, text, comment string }

// documented lists the values in the order of the file. A value is documented by a
// comment "# -- ..." above it, and what is below it is then not a value by itself.
func documented(t testing.TB, prefix string, node *yaml.Node) []value {
	t.Helper()
	var rows []value
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, v := node.Content[i], node.Content[i+1]
		name := prefix + key.Value
		_, comment, ok := strings.Cut(key.HeadComment, "# -- ")
		switch {
		case ok:
			rows = append(rows, value{name, inline(t, v), strings.ReplaceAll(comment, "\n# ", " ")})
		case v.Kind == yaml.MappingNode && len(v.Content) > 0:
			rows = append(rows, documented(t, name+".", v)...)
		default:
			t.Errorf("values.yaml: %s has no comment that begins with \"# -- \"", name)
		}
	}
	return rows
}

// inline is a value in one line.
func inline(t testing.TB, v *yaml.Node) string {
	t.Helper()
	var flow func(n *yaml.Node) *yaml.Node
	flow = func(n *yaml.Node) *yaml.Node {
		c := *n
		c.HeadComment, c.LineComment, c.FootComment = "", "", ""
		if n.Kind != yaml.ScalarNode {
			c.Style = yaml.FlowStyle
		}
		c.Content = nil
		for _, child := range n.Content {
			c.Content = append(c.Content, flow(child))
		}
		return &c
	}
	text, err := yaml.Marshal(flow(v))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// TestReadme: the table of the chart's README is that of values.yaml.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(chartDir + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	rows := documented(t, "", doc.Content[0])
	var table strings.Builder
	table.WriteString("| value | default | |\n|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", r.key, r.text, strings.ReplaceAll(r.comment, "|", `\|`))
	}
	const begin, end = "<!-- values: made by make generate -->\n", "<!-- end of values -->\n"
	readme, err := os.ReadFile(chartDir + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(readme), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("README.md has no part between %q and %q", begin, end)
	}
	generated(t, chartDir+"/README.md", []byte(head+begin+"\n"+table.String()+"\n"+end+tail))

	// What the schema knows at the top is what there is.
	var schema struct{ Properties map[string]any }
	schemaText, err := os.ReadFile(chartDir + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(schemaText, &schema); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global") // helm's own
	known := slices.Sorted(maps.Keys(schema.Properties))
	have := slices.Sorted(maps.Keys(readValues(t, chartDir+"/values.yaml")))
	if !slices.Equal(known, have) {
		t.Errorf("the schema knows %q, values.yaml has %q", known, have)
	}
}
