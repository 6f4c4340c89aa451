package main

import (
	"slices"
	"strings"
)

// matrix compares several contenders, one a column, in several rows.
type matrix struct {
	Title   string       `json:"title"`
	Columns []string     `json:"columns"`
	Rows    []*matrixRow `json:"rows"`
}

type matrixRow struct {
	Name  string           `json:"name"`
	Unit  string           `json:"unit"`
	Cells map[string]*cell `json:"cells"` // by column; a contender that lacks is not there
}

// cell is what was measured of one contender.
type cell struct {
	side
	// Ratio is the median divided by that of the row's reference.
	Ratio   float64 `json:"ratio,omitempty"`
	Goal    *goal   `json:"goal,omitempty"` // for the ratio
	Verdict string  `json:"verdict,omitempty"`
}

// matrix returns the one of that title, which it adds when it is not there.
func (t *table) matrix(title string) *matrix {
	for _, m := range t.Matrices {
		if m.Title == title {
			return m
		}
	}
	m := &matrix{Title: title}
	t.Matrices = append(t.Matrices, m)
	return m
}

func (m *matrix) row(name, unit string) *matrixRow {
	r := &matrixRow{Name: name, Unit: unit, Cells: make(map[string]*cell)}
	m.Rows = append(m.Rows, r)
	return r
}

// set fills a cell. With a reference, which may be nil, its ratio to that is told,
// and judged when there is a goal. An empty sample leaves the cell empty.
func (m *matrix) set(r *matrixRow, column string, s, reference sample, g *goal) {
	if len(s) == 0 {
		return
	}
	if !slices.Contains(m.Columns, column) {
		m.Columns = append(m.Columns, column)
	}
	c := &cell{side: *newSide(s)}
	r.Cells[column] = c
	if len(reference) == 0 || reference.median() == 0 {
		return
	}
	c.Ratio = c.Median / reference.median()
	if g == nil {
		return
	}
	c.Goal, c.Verdict = g, "missed"
	if g.met(c.Ratio) {
		c.Verdict = "met"
	}
}

// write prints each cell as its median and, in parentheses, its ratio to the
// reference and the verdict; "~" marks a noisy one.
func (m *matrix) write(b *strings.Builder) {
	b.WriteString(m.Title + "\n\n")
	cells := [][]string{append([]string{"", "unit"}, m.Columns...)}
	loud := false
	for _, r := range m.Rows {
		line := []string{r.Name, r.Unit}
		for _, column := range m.Columns {
			c := r.Cells[column]
			if c == nil {
				line = append(line, "")
				continue
			}
			text := number(c.Median)
			if c.Spread > noisy {
				loud = true
				text += "~"
			}
			if c.Ratio != 0 {
				text += " (" + ratio(c.Ratio) + verdict(c.Verdict) + ")"
			}
			line = append(line, text)
		}
		cells = append(cells, line)
	}
	grid(b, cells, 2)
	if loud {
		b.WriteString("\n~: " + noisyMeans + "\n")
	}
	b.WriteString("\n")
}

func verdict(v string) string {
	if v == "missed" {
		return " MISSED"
	}
	if v != "" {
		return " " + v
	}
	return ""
}
