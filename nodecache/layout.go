package nodecache

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// noFollow: a symbolic link in the store is none of ours.
const noFollow = unix.O_NOFOLLOW

// layout holds the paths of a store directory; see the package comment.
type layout struct {
	root, lock, blobs, refs, tmp, paths string
}

func newLayout(root string) layout {
	return layout{
		root:  root,
		lock:  filepath.Join(root, "lock"),
		blobs: filepath.Join(root, "blobs", "sha256"),
		refs:  filepath.Join(root, "refs"),
		tmp:   filepath.Join(root, "tmp"),
		paths: filepath.Join(root, "paths"),
	}
}

// directories are all below root, parents first.
func (l layout) directories() []string {
	return []string{filepath.Dir(l.blobs), l.blobs, l.refs, l.tmp, l.paths}
}

// blob is the path of the blob d, a valid SHA-256 digest.
func (l layout) blob(d digest.Digest) string { return filepath.Join(l.blobs, d.Encoded()) }

// ref is the path of the record of a registry reference.
func (l layout) ref(ref reference) string {
	sum := sha256.Sum256([]byte(ref.canonical()))
	return filepath.Join(l.refs, hex.EncodeToString(sum[:]))
}
