package erofs

// Walk calls fn for every entry of the tree but "." and "..", the root first
// as ".". Paths are relative, with slashes; names can be any bytes.
func (im *Image) Walk(fn func(path string, in *Inode) error) error {
	return fail(ErrUnsupported, "walk", 0, noOffset, "not yet")
}
