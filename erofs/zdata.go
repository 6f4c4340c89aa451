package erofs

// zState is what readCompressed keeps about an inode after its first use.
type zState struct{}

// readCompressed fills p from offset off of a compressed inode. The caller
// guarantees 0 <= off and off+len(p) <= in.Size, and len(p) > 0.
func (in *Inode) readCompressed(p []byte, off int64) (int, error) {
	return 0, in.unsupported("data", "%s data layout", in.Layout)
}
