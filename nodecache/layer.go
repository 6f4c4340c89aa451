package nodecache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layerReader reads a blob from the registry from its first byte to its last,
// where a connection breaks off by another request for the rest. Its errors are
// those of this package.
//
// Invariant: hash has seen exactly the first off bytes, which were given out.
type layerReader struct {
	reg  *registryClient
	ctx  context.Context
	desc ocispec.Descriptor
	hash hash.Hash
	off  int64

	resp   *http.Response
	body   *stallReader
	cancel context.CancelFunc
	err    error // of the last read, once it is for good

	failures int   // in a row, without progress
	since    int64 // off at the last of them
}

// openLayer begins to read a blob. Call close in the end.
func (r *registryClient) openLayer(ctx context.Context, d ocispec.Descriptor) *layerReader {
	return &layerReader{reg: r, ctx: ctx, desc: d, hash: sha256.New()}
}

func (l *layerReader) Read(p []byte) (int, error) {
	for l.err == nil {
		if l.off == l.desc.Size {
			return 0, io.EOF
		}
		n, err := l.read(p[:min(int64(len(p)), l.desc.Size-l.off)])
		l.hash.Write(p[:n])
		l.off += int64(n)
		if err != nil {
			l.close()
			l.err = l.again(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, l.err
}

// read reads from the connection, making one if there is none.
func (l *layerReader) read(p []byte) (int, error) {
	if l.body == nil {
		if err := l.connect(); err != nil {
			return 0, err
		}
	}
	n, err := l.body.Read(p)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) && l.off+int64(n) == l.desc.Size:
		return n, nil // the caller sees that it is complete
	}
	return n, l.reg.bodyFailed(l.ctx, l.body, err)
}

// connect asks for what is missing.
func (l *layerReader) connect() error {
	ctx, cancel := context.WithCancel(l.ctx)
	header := make(http.Header)
	if l.off > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(l.off, 10)+"-")
	}
	resp, err := l.reg.send(ctx, http.MethodGet, "blobs", l.desc.Digest.String(), header) //nolint:bodyclose // close does
	if err != nil {
		cancel()
		return err
	}
	l.resp, l.cancel = resp, cancel
	l.body = newStallReader(resp.Body, l.reg.retry.stall, cancel)
	skip := int64(0)
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable,
		resp.StatusCode == http.StatusPartialContent && !isRange(resp.Header.Get("Content-Range"), l.off, l.desc.Size, l.desc.Size):
		return &transientError{err: fmt.Errorf("%w: %s: the registry can't resume layer %s", ErrUnavailable, l.reg.ref, l.desc.Digest)}
	case resp.StatusCode == http.StatusOK:
		skip = l.off // it sends all of it, whatever was asked
	}
	if n := resp.ContentLength; n >= 0 && n != l.desc.Size-l.off+skip {
		return fmt.Errorf("%w: layer %s of %s: the registry has %d bytes, its descriptor says %d", ErrDigestMismatch, l.desc.Digest, l.reg.ref, l.off-skip+n, l.desc.Size)
	}
	if _, err := io.CopyN(io.Discard, l.body, skip); err != nil {
		return l.reg.bodyFailed(ctx, l.body, err)
	}
	return nil
}

// again waits and returns nil if another request may do better.
func (l *layerReader) again(err error) error {
	var transient *transientError
	if !errors.As(err, &transient) {
		return err
	}
	policy := l.reg.retry
	if l.off-l.since >= policy.progress {
		l.failures = 0
	}
	l.since = l.off
	l.failures++
	if l.failures >= policy.attempts || transient.after > policy.max {
		return transient.err
	}
	timer := time.NewTimer(max(policy.backoff(l.failures), transient.after))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-l.ctx.Done():
		return fmt.Errorf("%w, after: %s", ended(l.ctx), transient.err.Error())
	}
}

// verify checks what was read, after it was read to the end.
func (l *layerReader) verify() error {
	if got := digest.NewDigest(digest.SHA256, l.hash); l.off != l.desc.Size || got != l.desc.Digest {
		return fmt.Errorf("%w: the registry sent %s for the blob %s of %s", ErrDigestMismatch, got, l.desc.Digest, l.reg.ref)
	}
	return nil
}

// close ends the connection, if there is one.
func (l *layerReader) close() {
	if l.body == nil {
		return
	}
	l.body.stop()
	l.cancel()
	_ = l.resp.Body.Close()
	l.body = nil
}
