package erofs

import "io/fs"

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	NID  uint64
	Type FileType
	Next int64 // the cookie of the entry after this one
}

// Lookup finds the entry of that name in a directory.
//
// Errors: fs.ErrNotExist, ErrInvalid for an inode that is no directory, and
// those of the format.
func (in *Inode) Lookup(name string) (Dirent, error) { return Dirent{}, fs.ErrNotExist }

// ReadDir calls fn with the entries of a directory from the cookie pos on (0
// is the first), "." and ".." included, until fn returns false.
func (in *Inode) ReadDir(pos int64, fn func(Dirent) bool) error {
	return in.unsupported("readdir", "not yet")
}
