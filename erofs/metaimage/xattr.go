package metaimage

import (
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/erofs/internal/disk"
	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// The attributes by which overlayfs finds a file's data, without the prefix
// "trusted.".
const (
	overlayPrefix   = "trusted.overlay."
	overlayMetacopy = "overlay.metacopy"
	overlayRedirect = "overlay.redirect"
)

// attrs calls fn with the encoded attributes that in has in META: those of
// overlayfs first, for they are asked for most, then the image's own in its
// order. Of two with one name the kernel sees the first, and so does META.
// The bytes are valid until fn returns.
//
// An attribute that META can't carry is reported by refuse; what fn or refuse
// return ends the enumeration.
func (b *builder) attrs(in *erofs.Inode, fn func(enc []byte) error, refuse func(reason string) error) error {
	emit := func(index byte, rest, value string) error {
		b.scratch = encode.AppendXattr(b.scratch[:0], index, rest, value)
		return fn(b.scratch)
	}
	if in.IsRegular() && in.Size > 0 {
		path := b.content(in)
		if err := checkContentPath(in, path); err != nil {
			return err
		}
		if err := emit(disk.XattrTrusted, overlayMetacopy, ""); err != nil {
			return err
		}
		if err := emit(disk.XattrTrusted, overlayRedirect, path); err != nil {
			return err
		}
	}
	own, err := in.Xattrs()
	if err != nil {
		return err
	}
	var seen map[string]bool
	if len(own) > 1 {
		seen = make(map[string]bool, len(own))
	}
	for _, x := range own {
		if strings.HasPrefix(x.Name, overlayPrefix) {
			return refuse("has the attribute " + x.Name + " of overlayfs")
		}
		index, rest, ok := encode.SplitXattr(x.Name)
		if !ok || seen[x.Name] {
			continue
		}
		if seen != nil {
			seen[x.Name] = true
		}
		if len(rest) > encode.MaxName || len(x.Value) >= 1<<16 {
			return refuse("has an attribute of a size that EROFS can't hold")
		}
		if err := emit(index, rest, string(x.Value)); err != nil {
			return err
		}
	}
	return nil
}
