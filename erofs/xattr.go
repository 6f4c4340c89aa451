package erofs

// Xattr is an extended attribute with its full name, such as "user.comment".
type Xattr struct {
	Name  string
	Value []byte
}

// xattrPrefix is an entry of the table of long name prefixes.
type xattrPrefix struct {
	name string // base prefix and infix
}

// Xattrs returns all extended attributes, without the fingerprint that the
// image itself carries.
func (in *Inode) Xattrs() ([]Xattr, error) { return nil, in.unsupported("xattr", "not yet") }

// Xattr returns the value of one attribute, or ErrNoXattr.
func (in *Inode) Xattr(name string) ([]byte, error) { return nil, ErrNoXattr }

// ImageFingerprint returns the SHA-256 of the content that the image claims
// for a regular file. It is a claim: nothing has checked it.
func (in *Inode) ImageFingerprint() (sha256 []byte, ok bool, err error) { return nil, false, nil }
