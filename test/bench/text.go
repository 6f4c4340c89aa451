package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// writeText prints the report as Markdown, which also reads well in a terminal.
func (rep *report) writeText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, Linux %s, %d CPUs, %.0f GiB, %s, %s; %d rounds.\n\n",
		rep.Date, rep.Kernel, rep.CPUs, float64(rep.MemoryMiB)/1024, rep.Mkfs, rep.ErofsCSI, rep.Rounds)
	images := [][]string{{"image", "files", "MB of files", "MB of image", "LZ4HC", "Zstandard"}}
	for _, i := range rep.Images {
		line := []string{i.Name, fmt.Sprint(i.Files), fmt.Sprintf("%.1f", mb(i.Bytes))}
		for _, size := range i.Sizes {
			text := ""
			if size > 0 {
				text = fmt.Sprintf("%.1f", mb(size))
			}
			line = append(line, text)
		}
		images = append(images, line)
	}
	if len(images) > 1 {
		grid(&b, images, 1)
	}
	for _, t := range rep.Tables {
		fmt.Fprintf(&b, "\n### %s\n\n", t.Title)
		t.write(&b)
	}
	fmt.Fprintf(&b, "\nGoals: %d met, %d missed.\n", rep.count("met"), rep.count("missed"))
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *table) write(b *strings.Builder) {
	for _, m := range t.Matrices {
		m.write(b)
	}
	if len(t.Rows) > 0 {
		t.writeRows(b)
	}
	for _, n := range t.Notes {
		b.WriteString(n + "\n")
	}
}

// noisyMeans says what to do about a noisy row; it follows a sign for that.
var noisyMeans = fmt.Sprintf("the quartiles are more than %.0f %% of the median apart on a side; run it again on a quiet machine before believing the row.", 100*noisy)

func ratio(v float64) string { return fmt.Sprintf("%.3f", v) }

func (t *table) writeRows(b *strings.Builder) {
	cells := [][]string{{"", "unit", "ours", "±", "reference", "", "±", "ours/reference", "goal", ""}}
	loud := false
	for _, r := range t.Rows {
		line := []string{r.Name, r.Unit, number(r.Ours.Median), percent(r.Ours.Spread), "", "", "", "", r.Goal.String(), r.Verdict}
		if r.Other != nil {
			line[4], line[5], line[6] = r.Reference, number(r.Other.Median), percent(r.Other.Spread)
		}
		if r.Ratio != 0 {
			line[7] = ratio(r.Ratio)
		}
		if r.Verdict == "missed" {
			line[9] = "MISSED"
		}
		if r.Noisy {
			loud = true
			line[9] = strings.TrimSpace(line[9] + " noisy")
		}
		cells = append(cells, line)
	}
	grid(b, cells, 2)
	b.WriteString("\n± is the distance of the quartiles as a part of the median.\n")
	if loud {
		b.WriteString("noisy: " + noisyMeans + "\n")
	}
}

// grid writes a Markdown table whose first line is its head and whose columns
// from numeric on, counted from 0, are flush right.
func grid(b *strings.Builder, cells [][]string, numeric int) {
	widths := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(c), 3)
		}
	}
	for n, line := range cells {
		for i, c := range line {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if i >= numeric {
				c = pad + c
			} else {
				c += pad
			}
			b.WriteString("| " + c + " ")
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i, width := range widths {
			rule := strings.Repeat("-", width+1)
			if i >= numeric {
				b.WriteString("|" + rule + ":")
			} else {
				b.WriteString("|" + rule + "-")
			}
		}
		b.WriteString("|\n")
	}
}

// number shows four significant digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a >= 1000:
		return fmt.Sprintf("%.0f", v)
	case a >= 100:
		return fmt.Sprintf("%.1f", v)
	case a >= 10:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func percent(v float64) string { return fmt.Sprintf("%.0f%%", 100*v) }

func mb(n int64) float64 { return float64(n) / 1e6 }
