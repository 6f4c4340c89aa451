package main

import (
	"fmt"
	"os"
	"text/tabwriter"
)

// printTable prints the results. Saved is in relation to what the same images
// took without a domain.
func printTable(p *pair, results []result) {
	alone := results[1].firstPages + results[1].secondPages
	fmt.Println("MiB of page cache, by the files' physical pages (/proc/self/pagemap), and how much")
	fmt.Println("Cached of /proc/meminfo grew, which counts metadata and whatever else ran meanwhile:")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\t1st image\t2nd adds\tboth\tsaved\tmeminfo: 1st\t2nd adds\t")
	noisy := false
	for _, r := range results {
		both := r.firstPages + r.secondPages
		mark := ""
		if r.apart > agreement {
			mark, noisy = "~", true
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f %%\t%s\t%s\t\n", r.name, mib(r.firstPages), mib(r.secondPages), mib(both),
			100*float64(alone-both)/float64(alone), mark+mib(r.first), mark+mib(r.second))
	}
	fmt.Fprintf(w, "by arithmetic, each content once\t\t\t%s\t%.1f %%\t\t\t\n", mib(p.ideal), 100*float64(alone-p.ideal)/float64(alone))
	fmt.Fprintf(w, "by arithmetic, each file\t\t\t%s\t\t\t\t\n", mib(p.plain))
	_ = w.Flush()
	if noisy {
		fmt.Println("~ other programs changed the page cache too much to tell; the physical pages are exact")
	}
	fmt.Println()
	for _, r := range results {
		fmt.Printf("%s: %s\n", r.name, r.how)
	}
}

// judge fails the demo where it did not show what it is for. It goes by the
// physical pages, which nothing else on the machine changes.
func judge(p *pair, results []result) error {
	domain, alone := results[0], results[1]
	if alone.secondPages < alone.firstPages/2 {
		return fmt.Errorf("without a domain the second image added only %s MiB of pages to %s: nothing must be shared", mib(alone.secondPages), mib(alone.firstPages))
	}
	if total := domain.firstPages + domain.secondPages; total > p.ideal+p.ideal/50 {
		return fmt.Errorf("in one domain both images have %s MiB of pages, with every content once it were %s (front: %s)", mib(total), mib(p.ideal), domain.how)
	}
	return nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }
