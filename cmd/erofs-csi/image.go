package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/erofs-csi/erofs-csi/nodecache"
)

// imageArg is an IMAGE argument of the command line.
type imageArg struct {
	ref  string // for nodecache: a reference, or absolute path[,device=path]...
	path bool   // ref is of the second kind
}

// deviceOption separates the extra devices of an image from its path.
const deviceOption = ",device="

// files are the primary and the extra devices of a path image.
func (a imageArg) files() []string { return strings.Split(a.ref, deviceOption) }

// parseImage tells paths from references. An absolute path, one that begins
// with ./ or ../, and a file that exists are paths; the rest is a reference if
// it has a scheme or its first part looks like a registry's host, as in
// oci://host/name, host.example/name:tag or localhost/name.
func parseImage(arg string) (imageArg, error) {
	arg = strings.TrimPrefix(arg, "file://")
	files := strings.Split(arg, deviceOption)
	_, err := os.Stat(files[0])
	explicit := filepath.IsAbs(arg) || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "../")
	switch {
	case err == nil || explicit:
	case looksLikeReference(arg):
		return imageArg{ref: arg}, nodecache.ValidateReference(arg)
	case arg == "":
		return imageArg{}, usagef("empty IMAGE: give the path of an EROFS image, or a reference HOST/NAME:TAG")
	}
	for i, file := range files {
		if files[i], err = imageFile(file); err != nil {
			return imageArg{}, err
		}
	}
	return imageArg{ref: strings.Join(files, deviceOption), path: true}, nil
}

// imageFile checks that name can be a device of an image and makes it absolute.
func imageFile(name string) (string, error) {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", failf("%s: no such file: give the path of an EROFS image, or a reference HOST/NAME:TAG", name)
	case err != nil:
		return "", err
	case info.IsDir():
		return "", failf("%s is a directory: give the path of an EROFS image", name)
	case !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeDevice:
		return "", failf("%s is neither a file nor a block device: give the path of an EROFS image", name)
	}
	return filepath.Abs(name)
}

func looksLikeReference(arg string) bool {
	if strings.Contains(arg, "://") {
		return true
	}
	host, name, ok := strings.Cut(arg, "/")
	return ok && name != "" && (host == "localhost" || strings.ContainsAny(host, ".:"))
}
