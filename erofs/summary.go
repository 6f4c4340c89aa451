package erofs

import "context"

// Summary counts the inodes of an image. An inode with several names counts
// once.
type Summary struct {
	Inodes  uint64            `json:"inodes"`
	Entries uint64            `json:"entries"` // names, without "." and ".." and the root
	Bytes   uint64            `json:"bytes"`   // sizes of the regular files
	Types   map[string]uint64 `json:"types"`   // inodes by type: "regular", "directory", ...
	Layouts map[string]uint64 `json:"layouts"` // inodes with data by DataLayout: "flat-plain", ...
}

var typeNames = [...]string{
	TypeUnknown: "unknown",
	TypeRegular: "regular",
	TypeDir:     "directory",
	TypeChar:    "char-device",
	TypeBlock:   "block-device",
	TypeFIFO:    "fifo",
	TypeSocket:  "socket",
	TypeSymlink: "symlink",
}

// String returns the name of the type as used in messages and summaries.
func (t FileType) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return typeNames[TypeUnknown]
}

// Summarize walks the image and counts. It reads all inodes and directories
// and no file data.
//
// Errors: those of Walk, or ctx.Err().
func Summarize(ctx context.Context, im *Image) (Summary, error) {
	s := Summary{Types: make(map[string]uint64), Layouts: make(map[string]uint64)}
	links := make(map[uint64]struct{}) // inodes with more than one name
	err := im.Walk(func(path string, in *Inode) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if path != "." {
			s.Entries++
		}
		if in.Nlink > 1 && !in.IsDir() {
			if _, ok := links[in.NID]; ok {
				return nil
			}
			links[in.NID] = struct{}{}
		}
		s.Inodes++
		s.Types[in.Type().String()]++
		switch in.Type() {
		case TypeRegular:
			s.Bytes += uint64(in.Size)
			fallthrough
		case TypeDir, TypeSymlink:
			s.Layouts[in.Layout.String()]++
		default: // has no data
		}
		return nil
	})
	return s, err
}
