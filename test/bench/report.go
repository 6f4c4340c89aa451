package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is the whole result. It names no machine and no path.
type report struct {
	Date      string      `json:"date"`
	Kernel    string      `json:"kernel"`
	CPUs      int         `json:"cpus"`
	MemoryMiB uint64      `json:"memoryMiB"`
	Mkfs      string      `json:"mkfs"`
	ErofsCSI  string      `json:"erofsCSI"`
	Rounds    int         `json:"rounds"`
	Images    []imageInfo `json:"images"`
	Tables    []*table    `json:"tables"`
}

// imageInfo describes an image that was measured.
type imageInfo struct {
	Name  string   `json:"name"`
	Files int      `json:"files"`
	Bytes int64    `json:"bytes"` // of its regular files
	Sizes [3]int64 `json:"sizes"` // of the image files by kind: plain or special, LZ4HC, Zstandard
}

// table is what was measured with one front, of several fronts and other file
// systems together, or of package erofs by itself.
type table struct {
	Title    string    `json:"title"`
	Front    string    `json:"front,omitempty"`
	Matrices []*matrix `json:"matrices,omitempty"`
	Rows     []*row    `json:"rows,omitempty"`
	Notes    []string  `json:"notes,omitempty"`
}

// row compares two samples.
type row struct {
	Name      string `json:"name"`
	Unit      string `json:"unit"`
	Reference string `json:"reference"` // what the second sample is: "kernel", "fsck.erofs" or "ideal"
	Ours      *side  `json:"ours"`
	Other     *side  `json:"other"`
	// Ratio is the median of ours divided by that of the other.
	Ratio   float64 `json:"ratio,omitempty"`
	Goal    *goal   `json:"goal,omitempty"`
	Verdict string  `json:"verdict,omitempty"` // "met" or "missed"; empty without a goal
	Noisy   bool    `json:"noisy,omitempty"`
}

type side struct {
	Median float64 `json:"median"`
	Spread float64 `json:"spread"` // distance of the quartiles as a part of the median
	Values sample  `json:"values"`
}

// goal bounds a row's ratio, or, for an absolute goal, the median of ours.
type goal struct {
	AtLeast  bool    `json:"atLeast"` // else at most
	Value    float64 `json:"value"`
	Absolute bool    `json:"absolute,omitempty"`
}

func atLeast(v float64) *goal { return &goal{AtLeast: true, Value: v} }
func atMost(v float64) *goal  { return &goal{Value: v} }
func none() *goal             { return &goal{Absolute: true} }

// met judges a ratio, or a median when the goal is absolute.
func (g *goal) met(v float64) bool {
	if g.AtLeast {
		return v >= g.Value
	}
	return v <= g.Value
}

func (g *goal) String() string {
	switch {
	case g == nil:
		return ""
	case g.AtLeast:
		return fmt.Sprintf(">= %.4g", g.Value)
	case g.Absolute:
		return fmt.Sprintf("%.4g", g.Value)
	}
	return fmt.Sprintf("<= %.4g", g.Value)
}

func newSide(s sample) *side {
	if len(s) == 0 {
		return nil
	}
	return &side{Median: s.median(), Spread: s.spread(), Values: s}
}

// compare adds a row; other may be empty, goal nil.
func (t *table) compare(name, unit, reference string, ours, other sample, g *goal) {
	r := &row{Name: name, Unit: unit, Reference: reference, Ours: newSide(ours), Other: newSide(other), Goal: g}
	if r.Other != nil && r.Other.Median != 0 {
		r.Ratio = r.Ours.Median / r.Other.Median
	}
	r.Noisy = r.Ours.Spread > noisy || r.Other != nil && r.Other.Spread > noisy
	if g != nil {
		v := r.Ratio
		if g.Absolute {
			v = r.Ours.Median
		}
		r.Verdict = "missed"
		if g.met(v) {
			r.Verdict = "met"
		}
	}
	t.Rows = append(t.Rows, r)
}

func (t *table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// count counts the rows with a verdict.
func (rep *report) count(verdict string) (n int) {
	for _, t := range rep.Tables {
		for _, r := range t.Rows {
			if r.Verdict == verdict {
				n++
			}
		}
		for _, m := range t.Matrices {
			for _, r := range m.Rows {
				for _, c := range r.Cells {
					if c.Verdict == verdict {
						n++
					}
				}
			}
		}
	}
	return n
}

// describe says what is measured, and on what.
func describe(ctx context.Context, o *options) (*report, error) {
	var uts unix.Utsname
	var info unix.Sysinfo_t
	if err := errors.Join(unix.Uname(&uts), unix.Sysinfo(&info)); err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, o.binary, "version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s version: %w: run make build", filepath.Base(o.binary), err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(version)), "\n")
	return &report{
		Date:   time.Now().UTC().Format(time.DateOnly),
		Kernel: unix.ByteSliceToString(uts.Release[:]), CPUs: runtime.NumCPU(),
		MemoryMiB: info.Totalram * uint64(info.Unit) >> 20,
		Mkfs:      mkfsVersion(ctx), ErofsCSI: first, Rounds: o.rounds,
	}, nil
}

func (rep *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(rep)
}

// mkfsPath is the mkfs.erofs to use.
func mkfsPath() string {
	if dir := os.Getenv("EROFS_UTILS"); dir != "" {
		return filepath.Join(dir, "mkfs.erofs")
	}
	return "mkfs.erofs"
}

// mkfsVersion finds the version in what mkfs.erofs -V prints, which some versions
// take for a wrong option and answer with their usage. There need not be one where
// the images were made before.
func mkfsVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, mkfsPath(), "-V").CombinedOutput()
	if len(out) == 0 && err != nil {
		return "no mkfs.erofs"
	}
	if v := regexp.MustCompile(`\b\d+\.\d+(\.\d+)?\b`).Find(out); v != nil {
		return "mkfs.erofs " + string(v)
	}
	return "mkfs.erofs"
}
