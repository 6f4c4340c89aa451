package driver

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocumentedAttributes: the table of attributes in docs/reference.md has those that
// there are, with their values.
func TestDocumentedAttributes(t *testing.T) {
	page, err := os.ReadFile("../docs/reference.md")
	must(t, err)
	_, section, ok := strings.Cut(string(page), "\n## Volume attributes\n")
	if !ok {
		t.Fatal("docs/reference.md has no section about volume attributes")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	values := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (.*?) \\| .+ \\|$").FindAllStringSubmatch(section, -1) {
		values[row[1]] = row[2]
	}
	if documented, known := slices.Sorted(maps.Keys(values)), slices.Sorted(slices.Values(attributeKeys)); !slices.Equal(documented, known) {
		t.Errorf("docs/reference.md has the attributes %q, the driver %q", documented, known)
	}
	words := regexp.MustCompile("`(\\w+)`( \\(default\\))?")
	check := func(key string, m map[string]string) bool {
		_, err := parseAttributes(m)
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		return err == nil
	}
	for _, key := range []string{keyPullPolicy, keyFingerprints, keyEngine, keyLazy, keyUserNS} {
		all := words.FindAllStringSubmatch(values[key], -1)
		if len(all) < 2 {
			t.Errorf("%s: values %q", key, values[key])
		}
		defaults := 0
		unset, err := parseAttributes(map[string]string{keyImage: "r.example/a:1"})
		must(t, err)
		for _, word := range all {
			m := map[string]string{keyImage: "r.example/a:1", key: word[1]}
			if check(key, m) && word[2] != "" {
				defaults++
				if set, _ := parseAttributes(m); set != unset {
					t.Errorf("%s: %s is not the default", key, word[1])
				}
			}
		}
		if defaults != 1 {
			t.Errorf("%s: %d defaults", key, defaults)
		}
	}
	for _, c := range choices {
		for _, value := range c.values {
			if !strings.Contains(values[c.key], "`"+value+"`") {
				t.Errorf("%s: docs/reference.md does not tell of %s", c.key, value)
			}
		}
	}
}

// TestDocumentedMountOptions: docs/reference.md has the mount options that there are.
func TestDocumentedMountOptions(t *testing.T) {
	page, err := os.ReadFile("../docs/reference.md")
	must(t, err)
	_, list, ok := strings.Cut(string(page), "\nMount options: ")
	if !ok {
		t.Fatal("docs/reference.md does not tell of mount options")
	}
	list, _, _ = strings.Cut(list, ".\n")
	var documented []string
	for _, m := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(list, -1) {
		documented = append(documented, m[1])
	}
	for _, option := range documented {
		if _, err := parseMountFlags([]string{option}); err != nil {
			t.Errorf("%s: %v", option, err)
		}
	}
	_, err = parseMountFlags([]string{"bogus"})
	if err == nil {
		t.Fatal("an unknown option is no error")
	}
	_, known, _ := strings.Cut(err.Error(), "the known ones are ")
	for option := range strings.SplitSeq(known, ", ") {
		if !slices.Contains(documented, option) {
			t.Errorf("docs/reference.md does not tell of %s", option)
		}
	}
}
