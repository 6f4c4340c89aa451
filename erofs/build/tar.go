package build

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/erofs-csi/erofs-csi/erofs/internal/encode"
)

// Names in the tar layers of container images that are no files (image-spec,
// layer.md): whiteouts, which came from AUFS.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // AUFS' own, of which only the opaque one has a meaning

	xattrRecord = "SCHILY.xattr."
)

// TarOptions say how an archive is read.
type TarOptions struct {
	// Whiteouts takes names that begin with .wh., and character devices 0:0, for
	// deletions in the layers below. Without it they are files.
	Whiteouts bool
}

// AddTar adds the entries of an uncompressed tar archive (v7, ustar, PAX, GNU) to the
// layer in hand, and reads r up to the archive's end. A later entry of a name
// replaces an earlier one. Of PAX records those of times, owners, names, sizes,
// sparse files and SCHILY.xattr.* count.
//
// Errors of r come out as they are.
func (b *Builder) AddTar(r io.Reader, opts TarOptions) error {
	most := b.limit.Archive()
	src := &source{r: r, left: most, most: most}
	buffered := bufio.NewReaderSize(src, 64<<10)
	tr := tar.NewReader(buffered)
	for {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return b.tarError(src, "", err)
		}
		if err := b.addHeader(hdr, tr, opts); err != nil {
			if src.err != nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) {
				return b.tarError(src, hdr.Name, err)
			}
			return err
		}
	}
}

// tarError says why an archive could not be read on.
func (b *Builder) tarError(src *source, entry string, err error) error {
	switch {
	case src.err != nil:
		err = src.err // of whoever gave us r
		if !errors.Is(err, ErrLimit) {
			return err
		}
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = malformed("the archive ends in the middle")
	default:
		err = fmt.Errorf("%w: not a tar archive, or a damaged one: %w", ErrLayer, err)
	}
	if entry == "" {
		return b.layerError(err)
	}
	return b.entryError(entry, err)
}

// source counts what is read and remembers an error that is not the end.
type source struct {
	r          io.Reader
	left, most int64
	err        error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if s.left -= int64(n); s.left < 0 {
		n, err = 0, beyond("an archive of more than %d bytes", s.most)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// addHeader adds one entry of an archive.
func (b *Builder) addHeader(hdr *tar.Header, data io.Reader, opts TarOptions) error {
	if opts.Whiteouts {
		if done, err := b.tarWhiteout(hdr); done || err != nil {
			return err
		}
	}
	e := Entry{
		Path: hdr.Name, Mode: uint32(hdr.Mode & 0o7777), Mtime: hdr.ModTime,
	}
	var ok [4]bool
	e.UID, ok[0] = number(int64(hdr.Uid))
	e.GID, ok[1] = number(int64(hdr.Gid))
	e.Major, ok[2] = number(hdr.Devmajor)
	e.Minor, ok[3] = number(hdr.Devminor)
	if !ok[0] || !ok[1] {
		return b.failed(hdr.Name, malformed("an owner of %d:%d", hdr.Uid, hdr.Gid))
	}
	for name, value := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(name, xattrRecord); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[name] = value
		}
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Mode |= modeRegular
		e.Size, e.Content = hdr.Size, data
	case tar.TypeDir:
		e.Mode |= modeDir
	case tar.TypeSymlink:
		e.Mode, e.Target = e.Mode|modeSymlink, hdr.Linkname
	case tar.TypeLink:
		if path.Clean("/"+hdr.Name) == path.Clean("/"+hdr.Linkname) {
			return nil
		}
		return b.Link(hdr.Name, hdr.Linkname)
	case tar.TypeFifo:
		e.Mode |= encode.ModeFIFO
	case tar.TypeChar:
		e.Mode |= modeChar
	case tar.TypeBlock:
		e.Mode |= encode.ModeBlock
	case tar.TypeXGlobalHeader, typeVolume:
		return nil
	default:
		return b.failed(hdr.Name, malformed("an entry of the unknown type %q", hdr.Typeflag))
	}
	if e.Mode&modeFmt != modeChar && e.Mode&modeFmt != encode.ModeBlock {
		e.Major, e.Minor = 0, 0
	} else if !ok[2] || !ok[3] {
		return b.failed(hdr.Name, malformed("a device %d:%d", hdr.Devmajor, hdr.Devminor))
	}
	return b.Add(&e)
}

// typeVolume is a label that GNU tar writes.
const typeVolume = 'V'

func number(n int64) (uint32, bool) { return uint32(n), n >= 0 && n < 1<<32 }

// tarWhiteout does what an entry that is no file asks for.
func (b *Builder) tarWhiteout(hdr *tar.Header) (done bool, err error) {
	clean := path.Clean("/" + hdr.Name)
	dir, base := path.Split(clean)
	switch {
	case strings.Contains(clean, "/"+whiteoutMeta):
		if base == whiteoutOpaque {
			return true, b.Opaque(dir)
		}
		return true, nil
	case strings.HasPrefix(base, whiteoutPrefix):
		name := base[len(whiteoutPrefix):]
		if name == "" || name == "." || name == ".." {
			return true, b.failed(hdr.Name, malformed("a whiteout of no file"))
		}
		return true, b.Whiteout(dir + name)
	case hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0:
		return true, b.Whiteout(clean)
	}
	return false, nil
}
