package main

import (
	"fmt"
	"strings"
)

// columns are the outcomes that an image can have, one each.
var columns = []string{
	"both find", "only fsck.erofs", "only verify", "neither, visible", "neither, invisible", "fsck.erofs crashes or hangs",
}

// column is the number of the outcome in columns.
func (o *outcome) column() int {
	fsck, verify := o.fsck != "", o.verify != ""
	switch {
	case o.crash != "":
		return 5
	case fsck && verify:
		return 0
	case fsck:
		return 1
	case verify:
		return 2
	case o.visible != "":
		return 3
	}
	return 4
}

// missed reports whether erofs.Verify has not found what fsck.erofs has, or what
// made it crash.
func (o *outcome) missed() bool { return o.verify == "" && (o.fsck != "" || o.crash != "") }

// table counts the outcomes of each group, in the order in which they come, and
// of all, and writes them as Markdown.
func table(list []outcome) string {
	counts := make(map[string]*[7]int)
	var groups []string
	total := new([7]int)
	for _, o := range list {
		c := counts[o.group]
		if c == nil {
			c = new([7]int)
			counts[o.group] = c
			groups = append(groups, o.group)
		}
		for _, c := range []*[7]int{c, total} {
			c[0]++
			c[1+o.column()]++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| structure | images | %s |\n|---|--:%s|\n", strings.Join(columns, " | "), strings.Repeat("|--:", len(columns)))
	line := func(name string, c *[7]int) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, n := range c {
			if n == 0 {
				b.WriteString(" |")
			} else {
				fmt.Fprintf(&b, " %d |", n)
			}
		}
		b.WriteByte('\n')
	}
	for _, g := range groups {
		line(g, counts[g])
	}
	line("**all**", total)
	return b.String()
}
