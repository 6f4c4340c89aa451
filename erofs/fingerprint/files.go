package fingerprint

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/erofs-csi/erofs-csi/erofs"
)

// File is one regular file of an image.
type File struct {
	NID  uint64
	Size int64
	Cost uint8 // erofs.Inode.DecodeCost
}

// Files lists the regular files of an image that hold data, in ascending order of
// their nids, each once. Empty files need no backing and are left out.
//
// The list grows with the directory entries really read, 24 bytes each.
func Files(im *erofs.Image) ([]File, error) {
	var files []File
	err := im.Walk(func(_ string, in *erofs.Inode) error {
		if in.Mode&modeType == modeRegular && in.Size > 0 {
			files = append(files, File{NID: in.NID, Size: in.Size, Cost: in.DecodeCost()})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.NID, b.NID) })
	return slices.Compact(files), nil
}

// The file type in st_mode.
const (
	modeType    = 0o170000
	modeRegular = 0o100000
)
