package nodecache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

const (
	// chunkSize of writes, in bytes.
	chunkSize = 1 << 20
	// windowSize: after so many bytes they are sent to the disk and dropped
	// from the page cache, so that a pull neither fills it nor piles up dirty
	// pages that the fsync at the end would have to wait for.
	windowSize = 16 << 20
)

// download brings the blob of rec into the store: room, bytes, digest, name.
// After an error nothing of it is left.
func (s *Store) download(ctx context.Context, reg *registryClient, rec record) (err error) {
	what := "blob " + rec.Blob.String() + " of " + reg.ref.String()
	if err := s.removeBlob(rec.Blob); err != nil { // of the wrong length, or none
		return s.diskError("replace damaged "+what, err)
	}
	f, err := s.makeRoom(what, rec.Size)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.discard(f)
		}
	}()
	t := &transfer{store: s, reg: reg, blob: rec.Blob, size: rec.Size, file: f, hash: sha256.New(), buf: make([]byte, chunkSize)}
	err = reg.verified(rec.Blob.String(), func() error {
		t.restart()
		if err := reg.retry.do(ctx, func() (int64, error) { return t.attempt(ctx) }); err != nil {
			return err
		}
		if got := digest.NewDigest(digest.SHA256, t.hash); got != rec.Blob {
			return fmt.Errorf("%w: the registry sent %s for the %s", ErrDigestMismatch, got, what)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := ended(ctx); err != nil {
		return fmt.Errorf("pull %s: %w", reg.ref, err)
	}
	t.flush(rec.Size)
	if err := s.publish(f, s.dir.blob(rec.Blob)); err != nil {
		return s.diskError("store "+what, err)
	}
	return nil
}

// transfer is the bytes of one blob on their way into a file.
//
// Invariant: hash has seen exactly the first off bytes, which are in file;
// off <= size.
type transfer struct {
	store   *Store
	reg     *registryClient
	blob    digest.Digest
	size    int64
	file    *os.File
	hash    hash.Hash
	off     int64
	highest int64 // off at its highest, over all restarts
	flushed int64
	buf     []byte
}

// attempt makes one request for what is missing. It returns how many bytes it
// came further than any attempt before.
func (t *transfer) attempt(ctx context.Context) (int64, error) {
	if t.off == t.size {
		return 0, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	header := make(http.Header)
	if t.off > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(t.off, 10)+"-")
	}
	resp, err := t.reg.send(ctx, http.MethodGet, "blobs", t.blob.String(), header)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		t.restart()
		return 0, &transientError{err: fmt.Errorf("%w: %s: the registry can't resume the blob", ErrUnavailable, t.reg.ref)}
	case resp.StatusCode == http.StatusPartialContent && !continues(resp.Header.Get("Content-Range"), t.off, t.size):
		t.restart()
		return 0, &transientError{err: fmt.Errorf("%w: %s: the registry resumed the blob elsewhere", ErrUnavailable, t.reg.ref)}
	case resp.StatusCode == http.StatusOK:
		t.restart() // it sends all of it, whatever was asked
	}
	if n := resp.ContentLength; n >= 0 && n != t.size-t.off {
		return 0, t.wrongSize(t.off + n)
	}
	body := newStallReader(resp.Body, t.reg.retry.stall, cancel)
	defer body.stop()
	err = t.copy(ctx, body)
	gained := t.off - t.highest
	t.highest = max(t.highest, t.off)
	return gained, err
}

// continues checks a Content-Range: bytes <first>-<last>/<size or *>.
func continues(contentRange string, first, size int64) bool {
	spec, ok := strings.CutPrefix(contentRange, "bytes ")
	span, total, ok2 := strings.Cut(spec, "/")
	from, _, ok3 := strings.Cut(span, "-")
	n, err := strconv.ParseInt(from, 10, 64)
	return ok && ok2 && ok3 && err == nil && n == first && (total == "*" || total == strconv.FormatInt(size, 10))
}

// restart forgets all bytes; those in the file are written over.
func (t *transfer) restart() {
	t.off, t.flushed = 0, 0
	t.hash.Reset()
}

// copy appends the body to the file, and fails on the first byte too many.
func (t *transfer) copy(ctx context.Context, body *stallReader) error {
	for t.off < t.size {
		n, err := io.ReadFull(body, t.buf[:min(int64(len(t.buf)), t.size-t.off)])
		if n > 0 {
			if werr := t.append(t.buf[:n]); werr != nil {
				return werr
			}
		}
		if err != nil && t.off < t.size {
			return t.reg.bodyFailed(ctx, body, err)
		}
	}
	var extra [1]byte
	if n, err := io.ReadFull(body, extra[:]); n > 0 {
		return t.wrongSize(-1)
	} else if !errors.Is(err, io.EOF) && ended(ctx) != nil && !body.stalled.Load() {
		return t.reg.bodyFailed(ctx, body, err)
	}
	return nil // all bytes are here, however the connection ended
}

func (t *transfer) append(p []byte) error {
	if err := t.store.disk.writeAt(t.file, p, t.off); err != nil {
		return t.store.diskError("write blob "+t.blob.String(), err)
	}
	t.hash.Write(p)
	t.off += int64(len(p))
	if t.off-t.flushed >= 2*windowSize {
		t.flush(t.flushed + windowSize)
	}
	return nil
}

// flush sends the bytes below end to the disk and drops their pages. It is no
// fsync: errors come out there.
func (t *transfer) flush(end int64) {
	fd, n := int(t.file.Fd()), end-t.flushed
	_ = unix.SyncFileRange(fd, t.flushed, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	_ = unix.Fadvise(fd, t.flushed, (n+4095)&^4095, unix.FADV_DONTNEED)
	t.flushed = end
}

func (t *transfer) wrongSize(got int64) error {
	if got < 0 {
		return fmt.Errorf("%w: blob %s of %s: the registry sent more than the %d bytes of its descriptor", ErrDigestMismatch, t.blob, t.reg.ref, t.size)
	}
	return fmt.Errorf("%w: blob %s of %s: the registry has %d bytes, its descriptor says %d", ErrDigestMismatch, t.blob, t.reg.ref, got, t.size)
}
