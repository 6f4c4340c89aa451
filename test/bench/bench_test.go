package main

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSample(t *testing.T) {
	for _, c := range []struct {
		values         sample
		median, spread float64
	}{
		{sample{7}, 7, 0},
		{sample{3, 1}, 2, 0.5},
		{sample{5, 1, 3, 2, 4}, 3, 2. / 3},
		{sample{0, 0, 0}, 0, 0},
	} {
		if m, s := c.values.median(), c.values.spread(); m != c.median || math.Abs(s-c.spread) > 1e-9 {
			t.Errorf("%v: median %v, spread %v; want %v, %v", c.values, m, s, c.median, c.spread)
		}
	}
}

func TestVerdicts(t *testing.T) {
	tab := &table{}
	tab.compare("fast", "GB/s", "kernel", sample{2}, sample{1}, atLeast(1))
	tab.compare("slow", "µs", "kernel", sample{6}, sample{2}, atMost(2.5))
	tab.compare("clean", "MB", "kernel", sample{0}, sample{9}, none())
	tab.compare("loud", "MB", "kernel", sample{1, 2, 3}, nil, nil)
	rep := &report{Tables: []*table{tab}}
	for i, want := range []string{"met", "missed", "met", ""} {
		if got := tab.Rows[i].Verdict; got != want {
			t.Errorf("%s: %q, want %q", tab.Rows[i].Name, got, want)
		}
	}
	if rep.count("missed") != 1 || !tab.Rows[3].Noisy || tab.Rows[0].Noisy {
		t.Errorf("%d missed; noisy: %v, %v", rep.count("missed"), tab.Rows[3].Noisy, tab.Rows[0].Noisy)
	}
	var text bytes.Buffer
	if err := rep.writeText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"3.000 | <= 2.5 | MISSED", "Goals: 2 met, 1 missed."} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, &text)
		}
	}
}

func TestMatrix(t *testing.T) {
	tab := &table{Title: "title"}
	m := tab.matrix("cells")
	r := m.row("memory", "MB")
	m.set(r, "ideal", sample{100}, nil, nil)
	m.set(r, "good", sample{101}, sample{100}, atMost(1.02))
	m.set(r, "bad", sample{103}, sample{100}, atMost(1.02))
	m.set(r, "loud", sample{1, 2, 3}, nil, nil)
	m.set(r, "absent", nil, sample{100}, atMost(1.02))
	if tab.matrix("cells") != m {
		t.Error("a matrix of that title was not found again")
	}
	rep := &report{Tables: []*table{tab}}
	if met, missed := rep.count("met"), rep.count("missed"); met != 1 || missed != 1 {
		t.Errorf("%d met, %d missed; want 1, 1", met, missed)
	}
	var text bytes.Buffer
	if err := rep.writeText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 101.0 (1.010 met) |", "| 103.0 (1.030 MISSED) |", "| 2.000~ |"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "absent") {
		t.Errorf("a column without a cell:\n%s", &text)
	}
}

func TestListedIsWhatWasScanned(t *testing.T) {
	tree, path := t.TempDir(), filepath.Join(t.TempDir(), "list.json")
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(name+"x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	scanned, err := listed(t.Context(), path, tree)
	if err != nil {
		t.Fatal(err)
	}
	read, err := listed(t.Context(), path, "")
	if err != nil || len(read) != 2 || !maps.Equal(read, scanned) {
		t.Errorf("read %v, %v; want %v", read, err, scanned)
	}
	if err := os.WriteFile(path, []byte(`{"a":{"sum":"00","size":1}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listed(t.Context(), path, tree); err == nil {
		t.Error("a digest that is too short was taken")
	}
}

func TestIdealCountsContentOnce(t *testing.T) {
	dirs := [2]string{t.TempDir(), t.TempDir()}
	write := func(tree int, name, data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dirs[tree], name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	big := strings.Repeat("x", page+1) // two pages
	write(0, "a", big)
	write(0, "copy", big)
	write(0, "empty", "")
	write(1, "moved", big)
	write(1, "other", "y")
	if err := os.Link(filepath.Join(dirs[0], "a"), filepath.Join(dirs[0], "link")); err != nil {
		t.Fatal(err)
	}
	var trees [2]contents
	for i, dir := range dirs {
		var err error
		if trees[i], err = scan(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	d := newIdeal(trees[0], trees[1])
	if d.bytes != 3*page || d.plain != 7*page || len(d.first) != 2 {
		t.Errorf("ideal %d, unshared %d pages, %d contents; want 3, 7, 2", d.bytes/page, d.plain/page, len(d.first))
	}
	im := &image{name: "image", want: trees[0]}
	if err := im.verify(t.Context(), dirs[0]); err != nil {
		t.Errorf("the tree does not equal itself: %v", err)
	}
	write(0, "copy", strings.Repeat("x", page)+"z")
	if err := im.verify(t.Context(), dirs[0]); err == nil {
		t.Error("a changed byte was not seen")
	}
}

func TestReaders(t *testing.T) {
	dir := t.TempDir()
	im := &image{want: make(contents)}
	var total int64
	for i, size := range []int{0, 1, 4096, readSize - 1, readSize, 3*readSize + 5} {
		name := fmt.Sprintf("d%d/f", i)
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		im.want[name] = content{size: int64(size)}
		total += int64(size)
	}
	if err := os.Symlink("target", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	set, err := openSet(im, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer set.close()
	if set.total != total {
		t.Errorf("%d bytes, want %d", set.total, total)
	}
	for name, read := range map[string]func() (pass, error){
		"read": set.read, "mmap": func() (pass, error) { return set.readMapped(page) }, "stat": set.stat, "list": set.list,
		"steps": func() (pass, error) { return set.readIn(page) },
	} {
		if p, err := read(); err != nil || p.wall <= 0 {
			t.Errorf("%s: %v in %s", name, err, p.wall)
		}
	}
	if len(set.dirs) != 6 {
		t.Errorf("%d directories, want 6", len(set.dirs))
	}
	full := *set
	full.names, full.sizes = set.names[1:], set.sizes[1:] // an empty file has no page
	if _, err := full.readRandom(100, 1); err != nil {
		t.Error(err)
	}
	full.sizes = slices.Clone(full.sizes)
	for i := range full.sizes {
		full.sizes[i] += page
	}
	if _, err := full.readRandom(100, 1); err == nil {
		t.Error("pages that are not there were read")
	}
	last := len(set.names) - 1
	if n, err := set.resident(last); err != nil || n != 769 {
		t.Errorf("%d resident pages, %v; want 769", n, err)
	}
	release, err := set.readHeld(0)
	release()
	if err != nil {
		t.Error(err)
	}
	if _, n, err := walk(dir); err != nil || n != 13 {
		t.Errorf("%d names, %v; want 13", n, err)
	}
	set.sizes[last]++
	if _, err := set.read(); err == nil {
		t.Error("a file that ends too early was not seen")
	}
}

func TestStreamRepeatsTheTree(t *testing.T) {
	tree, dir := t.TempDir(), filepath.Join(t.TempDir(), "out")
	for name, data := range map[string]string{"a": "abc", "b": "", "c": "de"} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeBig(t.Context(), tree, dir, 4*bigFiles); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for i := range bigFiles {
		data, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("large%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	if want := strings.Repeat("abcde", 7)[:32]; string(all) != want {
		t.Errorf("%q, want %q", all, want)
	}
	empty := t.TempDir()
	if err := os.WriteFile(filepath.Join(empty, "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeBig(t.Context(), empty, filepath.Join(dir, "x"), bigFiles); err == nil {
		t.Error("a tree without a byte gave some")
	}
}
