package nodecache

import "errors"

// Every error of this package wraps one of these, or is an I/O error or the
// error of a cancelled context. The text around them names the reference, the
// path or the registry concerned and, where there is one, the fix.
var (
	// ErrNotFound: no such file, repository, tag, manifest or blob, or
	// nothing on the node under policy [Never].
	ErrNotFound = errors.New("image not found")
	// ErrDigestMismatch: bytes whose digest or size is not the promised one.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrNoSpace: the blob does not fit on the disk of the store, or not within
	// its limit, and evicting what nobody uses is not enough.
	ErrNoSpace = errors.New("not enough space in the image store")
	// ErrUnauthorized: the registry refused access (401, 403).
	ErrUnauthorized = errors.New("unauthorized")
	// ErrUnavailable: the registry cannot be reached or is overloaded; the
	// same call may succeed later.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrNotAllowed: a path outside of the directories of Config.AllowedPaths.
	ErrNotAllowed = errors.New("path not allowed")
	// ErrInvalidReference: text that names no image.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrInvalidCredentials: a pull secret that is no dockerconfigjson.
	ErrInvalidCredentials = errors.New("invalid registry credentials")
	// ErrConfiguration: a file of the node's configuration of registries that
	// can't be used.
	ErrConfiguration = errors.New("unusable configuration of registries")
	// ErrUnsupportedImage: an artifact that holds no EROFS image this release
	// can use.
	ErrUnsupportedImage = errors.New("unsupported image")
	// ErrInUse: an image that somebody uses or has pinned can't be removed.
	ErrInUse = errors.New("image is in use")
	// ErrLocked: another process owns the store directory.
	ErrLocked = errors.New("image store is in use")
	// ErrInterrupted: the store was closed while the call ran.
	ErrInterrupted = errors.New("interrupted: the image store was closed")
	// ErrChanged: an image used in place was written to or replaced while in use.
	ErrChanged = errors.New("image file changed while in use")
)
