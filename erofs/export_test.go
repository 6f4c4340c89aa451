package erofs

// Lacks is Inode.lacksXattr, to test that the Bloom filter of names is used.
func (in *Inode) Lacks(name string) (bool, error) { return in.lacksXattr(name) }
