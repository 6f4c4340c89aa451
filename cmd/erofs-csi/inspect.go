package main

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofs-csi/erofs-csi/erofs"
)

func inspectCommand() *cobra.Command {
	var asJSON bool
	var cacheDir string
	cmd := &cobra.Command{
		Use:   "inspect [--json] IMAGE",
		Short: "Show an image's superblock, features and counts",
		Long: `Shows the superblock of an EROFS image, its features by name, and how many
inodes of which types and layouts it has. IMAGE is a path, with extra devices as
PATH,device=PATH..., or a reference HOST/NAME:TAG, which is pulled into the store.`,
		Example: `  erofs-csi inspect app.erofs
  erofs-csi inspect --json registry.example/app:v1 | jq .superblock.features`,
		Args: exactly(1, "one IMAGE"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addCacheDir(cmd.Flags(), &cacheDir)
	p := addPull(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		im, err := openImage(cmd.Context(), args[0], cacheDir, p)
		if err != nil {
			return err
		}
		defer im.close()
		summary, err := erofs.Summarize(cmd.Context(), im.Image)
		if err != nil {
			return imageError(args[0], err)
		}
		report := newInspection(args[0], im, summary)
		if asJSON {
			return printJSON(cmd.OutOrStdout(), report)
		}
		return report.print(cmd.OutOrStdout())
	}
	return cmd
}

// inspection is what inspect prints; the JSON names are part of the command's
// contract.
type inspection struct {
	Image      string         `json:"image"`
	Size       int64          `json:"size"` // bytes of the primary device
	Superblock superblockInfo `json:"superblock"`
	Summary    erofs.Summary  `json:"counts"`
}

type superblockInfo struct {
	BlockSize       int          `json:"blockSize"`
	Blocks          uint64       `json:"blocks"`
	Inodes          uint64       `json:"inodes"`
	RootNID         uint64       `json:"rootNid"`
	UUID            string       `json:"uuid"`
	VolumeName      string       `json:"volumeName"`
	BuildTime       time.Time    `json:"buildTime"`
	Features        []string     `json:"features"`
	Compression     []string     `json:"compression,omitempty"` // algorithms that files may use
	FeatureCompat   uint32       `json:"featureCompat"`
	FeatureIncompat uint32       `json:"featureIncompat"`
	ExtraDevices    []deviceInfo `json:"extraDevices,omitempty"`
}

type deviceInfo struct {
	Tag    string `json:"tag,omitempty"`
	Blocks uint64 `json:"blocks"`
}

func newInspection(name string, im *openedImage, summary erofs.Summary) *inspection {
	sb := im.Superblock()
	info := superblockInfo{
		BlockSize: sb.BlockSize, Blocks: sb.Blocks, Inodes: sb.Inodes, RootNID: sb.RootNID,
		UUID: formatUUID(sb.UUID), VolumeName: sb.VolumeName,
		BuildTime: time.Unix(sb.BuildTime, int64(sb.BuildTimeNsec)).UTC(),
		Features:  sb.Features(), Compression: sb.Algorithms, FeatureCompat: sb.FeatureCompat, FeatureIncompat: sb.FeatureIncompat,
	}
	for _, d := range sb.ExtraDevices {
		info.ExtraDevices = append(info.ExtraDevices, deviceInfo{Tag: d.Tag, Blocks: d.Blocks})
	}
	return &inspection{Image: name, Size: im.size, Superblock: info, Summary: summary}
}

func (r *inspection) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	sb := &r.Superblock
	for _, line := range []struct{ key, value string }{
		{"Image", printable(r.Image)},
		{"Size", fmt.Sprintf("%s (%d bytes)", bytesText(notNegative(r.Size)), r.Size)},
		{"Blocks", fmt.Sprintf("%d of %d bytes", sb.Blocks, sb.BlockSize)},
		{"Inodes", fmt.Sprint(sb.Inodes)},
		{"Root nid", nidText(sb.RootNID)},
		{"UUID", sb.UUID},
		{"Volume name", cmp.Or(printable(sb.VolumeName), "-")},
		{"Build time", sb.BuildTime.Format("2006-01-02 15:04:05.999999999 MST")},
		{"Features", cmp.Or(strings.Join(sb.Features, " "), "-")},
		{"Compression", cmp.Or(strings.Join(sb.Compression, " "), "-")},
		{"Feature bits", fmt.Sprintf("compat 0x%x, incompat 0x%x", sb.FeatureCompat, sb.FeatureIncompat)},
	} {
		fmt.Fprintf(w, "%s:\t%s\n", line.key, line.value)
	}
	for i, d := range sb.ExtraDevices {
		fmt.Fprintf(w, "Extra device %d:\t%d blocks %s\n", i+1, d.Blocks, printable(d.Tag))
	}
	fmt.Fprintf(w, "Content:\t%s in regular files (%d bytes)\n", bytesText(r.Summary.Bytes), r.Summary.Bytes)
	printCounts(w, "Types", r.Summary.Types)
	printCounts(w, "Layouts", r.Summary.Layouts)
	return w.Flush()
}

func printCounts(w io.Writer, title string, counts map[string]uint64) {
	parts := make([]string, 0, len(counts))
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if counts[name] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[name], name))
		}
	}
	fmt.Fprintf(w, "%s:\t%s\n", title, cmp.Or(strings.Join(parts, ", "), "-"))
}

// nidText says of an inode in the metabox that it is there, not its bit 63.
func nidText(nid uint64) string {
	const metabox = 1 << 63
	if nid&metabox != 0 {
		return fmt.Sprintf("%d in the metabox", nid&^metabox)
	}
	return fmt.Sprint(nid)
}

func formatUUID(u [16]byte) string {
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
