package podmount

import (
	"fmt"
	"path"
	"strings"
)

// Dead is what dead mounts show: a directory of a superblock. Whoever has one must keep
// the superblock, since its number is given to another when it is gone.
type Dead struct {
	Major int    `json:"major"`
	Minor int    `json:"minor"`
	Root  string `json:"root"` // below the superblock's root
}

func (d Dead) String() string { return fmt.Sprintf("%d:%d%s", d.Major, d.Minor, d.Root) }

// in tells whether a mount of a root shows the directory, or sub, a path below it.
func (d Dead) in(major, minor int, mounted string) (sub string, ok bool) {
	if major != d.Major || minor != d.Minor {
		return "", false
	}
	root := path.Clean(d.Root)
	if mounted == root {
		return "", true
	}
	if root != "/" {
		root += "/"
	}
	return strings.CutPrefix(mounted, root)
}
