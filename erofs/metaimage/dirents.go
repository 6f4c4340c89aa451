package metaimage

import (
	"fmt"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// entry is a directory entry on its way from the image to META.
type entry struct {
	name string
	nid  uint64 // in the image; of "." and ".." meaningless
	dots bool   // "." or ".."
}

// entries calls fn with the entries of a directory in byte order, with "." and
// ".." in their places whether the image has them or not. Where those point to
// in the image is ignored: META's point to what they must.
//
// An order that is not strictly ascending is corrupt: the kernel searches
// directories by halves, so it would find only some of the names.
func entries(in *erofs.Inode, fn func(entry) error) error {
	var (
		last    string
		pending = []string{".", ".."}
		err     error
	)
	readErr := in.ReadDir(0, func(d erofs.Dirent) bool {
		if err = checkName(in, d.Name, last); err != nil {
			return false
		}
		last = d.Name
		for len(pending) > 0 && pending[0] <= d.Name {
			if err = fn(entry{name: pending[0], dots: true}); err != nil {
				return false
			}
			pending = pending[1:]
		}
		if d.Name == "." || d.Name == ".." {
			return true
		}
		err = fn(entry{name: d.Name, nid: d.NID})
		return err == nil
	})
	if err != nil {
		return err
	}
	if readErr != nil {
		return readErr
	}
	for _, name := range pending {
		if err := fn(entry{name: name, dots: true}); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses what is not the name of a file and what does not come after
// last.
func checkName(in *erofs.Inode, name, last string) error {
	switch {
	case name == "" || len(name) > encode.MaxName || strings.ContainsAny(name, "/\x00"):
		return corrupt(in.NID, "%q is no file name", name)
	case name <= last:
		return corrupt(in.NID, "name %q after %q", name, last)
	}
	return nil
}

// corrupt reports an inconsistency of the image that package erofs leaves to
// its callers.
func corrupt(nid uint64, format string, args ...any) error {
	return &erofs.FormatError{
		Op: "metadata image", NID: nid, Off: -1,
		Err: fmt.Errorf("%w: %s", erofs.ErrCorrupt, fmt.Sprintf(format, args...)),
	}
}
