package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The measured part of a report is between these lines.
const (
	reportBegin = "<!-- measured: begin -->\n"
	reportEnd   = "<!-- measured: end -->\n"
)

// conclude reports, and is an error if something was found.
func conclude(ctx context.Context, o options, s *stock, results []*result) error {
	text := report(ctx, o, s, results)
	fmt.Print(text)
	if o.report != "" {
		if err := replaceMeasured(o.report, text); err != nil {
			return err
		}
	}
	bad := 0
	for _, r := range results {
		bad += len(r.findings)
	}
	if bad > 0 {
		return fmt.Errorf("%d findings", bad)
	}
	return nil
}

func replaceMeasured(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := bytes.Cut(old, []byte(reportBegin))
	_, tail, ok2 := bytes.Cut(rest, []byte(reportEnd))
	if !ok || !ok2 {
		return errors.New(path + " has no measured part")
	}
	return os.WriteFile(path, slices.Concat(head, []byte(reportBegin), []byte(text), []byte(reportEnd), tail), 0o644)
}

func report(ctx context.Context, o options, s *stock, results []*result) string {
	var b strings.Builder
	var name unix.Utsname
	_ = unix.Uname(&name)
	version, _ := exec.CommandContext(ctx, o.binary, "version").Output()
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	fmt.Fprintf(&b, "%s; Linux %s, %d CPUs, %d MiB; %s; %s; seed %d; `-volumes %d -kills %d -cycles %d -store-limit %s`.\n\n",
		time.Now().UTC().Format(time.DateOnly), unix.ByteSliceToString(name.Release[:]), runtime.NumCPU(), info.Totalram*uint64(info.Unit)>>20,
		firstLine(version), s.mkfs, o.seed, o.volumes, o.kills, o.cycles, o.store)
	b.WriteString("| scenario | front | kills | readers | steps | errors | wrong | unkillable | stalls | p50 | p99 | longest | ready after | leaks |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		kills := fmt.Sprint(r.kills)
		if r.resumeKills > 0 {
			kills += fmt.Sprintf(", %d while resuming", r.resumeKills)
		}
		if r.ooms > 0 {
			kills += fmt.Sprintf(", %d for memory", r.ooms)
		}
		errs := fmt.Sprint(r.errors)
		if r.lenient > 0 {
			errs += fmt.Sprintf(" (and %d expected)", r.lenient)
		}
		leaked := 0
		for _, l := range r.leaks {
			if l.leaked() {
				leaked++
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %d | %s | %d | %d | %d | %s | %s | %s | %s | %d of %d |\n",
			r.name, r.front, kills, r.readers, r.steps, errs, r.wrong, r.unkillable, r.struck.count(),
			round(r.struck.percentile(0.5)), round(r.struck.percentile(0.99)), round(r.struck.longest()), readyAfter(r.back), leaked, len(r.leaks))
	}
	b.WriteString("\n")
	named := make(map[string]bool)
	for _, r := range results {
		if !named[r.name] {
			named[r.name] = true
			fmt.Fprintf(&b, "- *%s*: %s.\n", r.name, scenarioByName(r.name).what)
		}
	}
	for _, r := range results {
		fmt.Fprintf(&b, "- *%s*, %s: %d CSI calls, %d of them repeated, %d given up half done, %d lives of volumes beside those of the readers; %d MiB compared; %s.\n",
			r.name, r.front, r.calls, r.repeated, r.cancelled, r.cycles, r.bytes>>20, r.took.Round(time.Second))
		if r.waiting > 0 {
			fmt.Fprintf(&b, "  of those that were killed, %d had a thread that waited in the kernel for the next one.\n", r.waiting)
		}
		for _, n := range r.notes {
			fmt.Fprintf(&b, "  %s.\n", firstLine([]byte(n)))
		}
	}
	for _, r := range results {
		if len(r.findings) > 0 { // the others may be of it
			fmt.Fprintf(&b, "- **found** in *%s*, %s: %s (and %d more)\n", r.name, r.front, firstLine([]byte(strings.ReplaceAll(r.findings[0], s.dir, ""))), len(r.findings)-1)
		}
	}
	if i := slices.IndexFunc(results, func(r *result) bool { return len(r.leaks) > 0 }); i >= 0 {
		r := results[i]
		fmt.Fprintf(&b, "\nBefore and after *%s*, %s:\n\n| | before | after |\n|---|---|---|\n", r.name, r.front)
		for _, l := range r.leaks {
			fmt.Fprintf(&b, "| %s | %d | %d |\n", l.what, l.before, l.after)
		}
	}
	return b.String()
}

func firstLine(text []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte("\n"))
	return string(line)
}

func round(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// readyAfter is the median and the longest time from the start of a plugin until it was ready.
func readyAfter(list []time.Duration) string {
	if len(list) == 0 {
		return "-"
	}
	list = slices.Sorted(slices.Values(list))
	return round(list[len(list)/2]) + ", at most " + round(list[len(list)-1])
}
