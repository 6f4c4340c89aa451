package chart

import (
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
)

// TestLint: helm lint says nothing, with any of the values; but for the icon, which the
// project does not have.
func TestLint(t *testing.T) {
	for _, file := range append(valuesFiles(t), "") {
		for _, m := range lint.RunAll(chartDir, readValues(t, file), namespace).Messages {
			if m.Severity == support.InfoSev && m.Err.Error() == "icon is recommended" {
				continue
			}
			t.Errorf("%s: %v", file, m)
		}
	}
}
