package nodecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// maxUnsized bounds in bytes what a web server sends without saying how long it
// is.
const maxUnsized = 16 << 30

// firstByte asks for as little as there is: the answer tells the length of the
// whole. Unlike HEAD it is what a signed address was signed for.
func firstByte() http.Header { return http.Header{"Range": {"bytes=0-0"}} }

// measure asks a web server how long the file of an https:// reference is. From
// one that doesn't say it reads the file to its end, once more than the pull
// will.
func (r *registryClient) measure(ctx context.Context) (record, error) {
	rec := record{Reference: r.ref.canonical(), Resolved: r.ref.digest, Manifest: r.ref.digest, Blob: r.ref.digest}
	err := r.retry.do(ctx, func() (n int64, err error) {
		rec.Size, err = r.measureOnce(ctx, firstByte())
		if err == nil && rec.Size < 0 {
			rec.Size, err = r.measureOnce(ctx, nil)
		}
		return 0, err
	})
	switch {
	case err != nil:
		return record{}, err
	case rec.Size == 0:
		return record{}, fmt.Errorf("%w: %s is empty", ErrUnsupportedImage, r.ref)
	}
	return rec, nil
}

// measureOnce makes one request; -1: the answer is one byte of an unknown number.
func (r *registryClient) measureOnce(ctx context.Context, header http.Header) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := r.send(ctx, http.MethodGet, "blobs", r.ref.digest.String(), header)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return 0, nil
	case resp.StatusCode == http.StatusPartialContent:
		_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
		if n, err := strconv.ParseInt(total, 10, 64); err == nil && n >= 0 && n < math.MaxInt64 {
			return n, nil
		}
		return -1, nil
	case resp.ContentLength >= 0:
		return resp.ContentLength, nil
	}
	body := newStallReader(resp.Body, r.retry.stall, cancel)
	defer body.stop()
	n, err := io.Copy(io.Discard, io.LimitReader(body, maxUnsized+1))
	if err != nil || body.stalled.Load() { // a server may take our giving up for a reason to end in order
		return 0, r.bodyFailed(ctx, body, err)
	}
	if n > maxUnsized {
		return 0, fmt.Errorf("%w: %s: the server does not say how long it is, and it is longer than %d bytes", ErrUnsupportedImage, r.ref, int64(maxUnsized))
	}
	return n, nil
}

// authorizeWeb asks a web server whether the caller may read the file. Some
// refuse HEAD of what they give to GET.
func (r *registryClient) authorizeWeb(ctx context.Context) error {
	return r.retry.do(ctx, func() (int64, error) {
		resp, err := r.send(ctx, http.MethodHead, "blobs", r.ref.digest.String(), nil)
		if err != nil && ended(ctx) == nil && !errors.Is(err, ErrNotFound) {
			var transient *transientError
			if !errors.As(err, &transient) {
				resp, err = r.send(ctx, http.MethodGet, "blobs", r.ref.digest.String(), firstByte())
			}
		}
		if err != nil {
			return 0, err
		}
		_ = resp.Body.Close()
		return 0, nil
	})
}
