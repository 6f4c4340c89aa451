package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/erofs-csi/erofs-csi/driver"
	"github.com/erofs-csi/erofs-csi/driver/engine"
)

// printNodes prints a line for each node.
func printNodes(out io.Writer, list []nodeStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tVOLUMES\tDOMAINS\tFRONTS\tRESIDENT\tSAVED\tIMAGES\tON DISK\tDISK FREE\tHEALTH")
	for _, n := range list {
		var resident, saved, onDisk, free int64
		volumes, domains, images := 0, 0, 0
		fronts := make(map[string]int)
		for _, s := range n.Engines {
			domains += len(s.Domains)
			for _, d := range s.Domains {
				resident += d.BytesResident
				saved += d.BytesSaved
				for _, f := range d.Fronts {
					volumes += len(f.Volumes)
					fronts[f.Front] += len(f.Volumes)
				}
			}
			if s.Images != nil {
				images += s.Images.Blobs
				onDisk += s.Images.Bytes
				free = s.Images.Free
			}
		}
		if n.Error != "" && len(n.Engines) == 0 {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t-\t-\t%s\n", printable(n.Node), nodeHealth(n))
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", printable(n.Node), volumes, domains, countsText(fronts),
			bytesText(notNegative(resident)), bytesText(notNegative(saved)), images, bytesText(notNegative(onDisk)),
			bytesText(notNegative(free)), nodeHealth(n))
	}
	return w.Flush()
}

// countsText is "overlay 3, tree 1".
func countsText(counts map[string]int) string {
	if len(counts) == 0 {
		return "-"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}

// nodeHealth is what is wrong with a node, or "ok".
func nodeHealth(n nodeStatus) string {
	var wrong []string
	if !n.Ready {
		wrong = append(wrong, "not ready ("+printable(n.Phase)+")")
	}
	if n.Error != "" {
		wrong = append(wrong, printable(n.Error))
	}
	unhealthy := 0
	for _, v := range n.Volumes {
		if v.Reason != "" {
			unhealthy++
		}
	}
	if unhealthy > 0 {
		wrong = append(wrong, fmt.Sprintf("%d unhealthy: see kubectl erofs volumes", unhealthy))
	}
	if n.Restarts > 0 {
		wrong = append(wrong, fmt.Sprintf("%d restarts", n.Restarts))
	}
	for _, e := range n.Engines {
		if e.Deaths > 0 {
			wrong = append(wrong, fmt.Sprintf("died %d times", e.Deaths))
		}
	}
	if len(wrong) == 0 {
		return "ok"
	}
	return strings.Join(wrong, "; ")
}

// printVolumes prints a line for each volume: those that a front shows, then those that
// none does.
func printVolumes(out io.Writer, list []nodeStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tVOLUME\tIMAGE\tDOMAIN\tENGINE\tFRONT\tRESIDENT\tALONE\tHEALTH")
	for _, n := range list {
		node := printable(n.Node)
		if n.Error != "" {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t-\t%s\n", node, nodeHealth(n))
		}
		known := make(map[string]driver.VolumeHealth)
		for _, v := range n.Volumes {
			known[v.Volume] = v
		}
		for _, s := range n.Engines {
			for _, d := range s.Domains {
				for _, f := range d.Fronts {
					resident, alone := imageBytes(d, f.Image)
					for _, volume := range f.Volumes {
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", node, printable(volume), printable(f.Image),
							domainName(d.Name), d.Engine, f.Front, bytesText(resident), bytesText(alone), volumeHealth(f, known[volume]))
						delete(known, volume)
					}
				}
			}
		}
		for _, v := range n.Volumes {
			if _, left := known[v.Volume]; left {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t-\t-\t-\t-\t%s\n", node, printable(v.Volume), printable(v.Image), domainName(v.Domain), healthText(v))
			}
		}
	}
	return w.Flush()
}

// imageBytes is the page cache of an image, and what of it is its alone.
func imageBytes(d engine.DomainStatus, image string) (resident, alone uint64) {
	for _, im := range d.Images {
		if im.Image == image {
			return notNegative(im.BytesResident), notNegative(im.BytesAlone)
		}
	}
	return 0, 0
}

// volumeHealth is what is wrong with a volume, or "ok" and why its front is not the
// best. v is the zero value where nobody knows more than the front, as of a mount command.
func volumeHealth(f engine.FrontStatus, v driver.VolumeHealth) string {
	switch {
	case v.Reason != "":
		return healthText(v)
	case f.Trouble != "":
		return printable(oneLine(f.Trouble))
	case f.Reason != "":
		return "ok; " + printable(oneLine(f.Reason))
	}
	return "ok"
}
