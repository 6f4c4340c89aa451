package main

import (
	"fmt"
	"os"
	"text/tabwriter"
)

// printTable prints the results. Saved is in relation to what the same images
// took without a domain.
func printTable(p *pair, results []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "page cache, MiB\t1st image\t2nd adds\tboth\tsaved\tone file's pages shared\t")
	alone := results[1].first + results[1].second
	for _, r := range results {
		both := r.first + r.second
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f %%\t%d of %d\t\n", r.name, mib(r.first), mib(r.second), mib(both),
			100*float64(alone-both)/float64(alone), r.same, r.probed)
	}
	_ = w.Flush()
	fmt.Printf("\nBy arithmetic: %s without sharing, %s with every content once. The file looked at: %s\n", mib(p.plain), mib(p.ideal), p.probe)
	for _, r := range results {
		fmt.Printf("%s: %s\n", r.name, r.how)
	}
}

// judge fails the demo where it did not show what it is for.
func judge(results []result) error {
	domain, alone := results[0], results[1]
	switch {
	case alone.same != 0:
		return fmt.Errorf("without a domain %d of %d pages are shared: none must be", alone.same, alone.probed)
	case domain.same != domain.probed:
		return fmt.Errorf("in one domain %d of %d pages are shared: all should be (front: %s)", domain.same, domain.probed, domain.how)
	case domain.second > alone.second/2:
		return fmt.Errorf("in one domain the second image added %s: less than half of %s was expected", mib(domain.second), mib(alone.second))
	}
	return nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }
