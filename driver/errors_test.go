package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofs-csi/erofs-csi/driver/claims"
	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

func TestCodes(t *testing.T) {
	tests := []struct {
		err  error
		want codes.Code
	}{
		{errInFlight, codes.Aborted},
		{errInvalid, codes.InvalidArgument},
		{errExists, codes.AlreadyExists},
		{errPrecondition, codes.FailedPrecondition},
		{errVolumeNotFound, codes.NotFound},
		{errRange, codes.OutOfRange},
		{errNotResponding, codes.Unavailable},
		{errPanic, codes.Internal},
		{nodecache.ErrNotFound, codes.NotFound},
		{nodecache.ErrDigestMismatch, codes.DataLoss},
		{nodecache.ErrNoSpace, codes.ResourceExhausted},
		{nodecache.ErrUnauthorized, codes.Unauthenticated},
		{nodecache.ErrUnavailable, codes.Unavailable},
		{nodecache.ErrNotAllowed, codes.PermissionDenied},
		{nodecache.ErrInvalidReference, codes.InvalidArgument},
		{nodecache.ErrInvalidCredentials, codes.InvalidArgument},
		{nodecache.ErrUnsupportedImage, codes.FailedPrecondition},
		{nodecache.ErrLocked, codes.FailedPrecondition},
		{nodecache.ErrInterrupted, codes.Unavailable},
		{nodecache.ErrChanged, codes.DataLoss},
		{claims.ErrNotFound, codes.NotFound},
		{claims.ErrForbidden, codes.FailedPrecondition},
		{claims.ErrUnavailable, codes.Unavailable},
		{engine.ErrForged, codes.DataLoss},
		{engine.ErrKernel, codes.FailedPrecondition},
		{erofs.ErrFormat, codes.InvalidArgument},
		{erofs.ErrUnsupported, codes.FailedPrecondition},
		{erofs.ErrCorrupt, codes.DataLoss},
		{&os.PathError{Op: "write", Err: syscall.ENOSPC}, codes.ResourceExhausted},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{errors.New("anything else"), codes.Internal},
		// What the driver does itself wins over what it wraps: a stalled
		// registry is down, not a call out of time.
		{fmt.Errorf("%w: %w", nodecache.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable},
		// grpc's own errors pass.
		{status.Error(codes.Unimplemented, "no such method"), codes.Unimplemented},
		{status.Error(codes.Unknown, "a bare error"), codes.Internal},
	}
	for _, test := range tests {
		wrapped := []error{test.err}
		if _, ok := status.FromError(test.err); !ok {
			wrapped = append(wrapped, fmt.Errorf("wrapped: %w", test.err), errors.Join(errors.New("other"), test.err))
		}
		for _, err := range wrapped {
			got := statusOf(context.Background(), err)
			if status.Code(got) != test.want {
				t.Errorf("%v: code %s, want %s", err, status.Code(got), test.want)
			}
		}
	}
	if err := statusOf(context.Background(), nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}

// TestCodeOfAnEndedCall: whatever broke because the call ended, the call ended.
func TestCodeOfAnEndedCall(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	err := fmt.Errorf("copying: %w", nodecache.ErrUnavailable)
	if got := codeOf(canceled, err); got != codes.Canceled {
		t.Errorf("code %s, want Canceled", got)
	}
	if got := codeOf(late, err); got != codes.DeadlineExceeded {
		t.Errorf("code %s, want DeadlineExceeded", got)
	}
}

func TestRefusalShowsItsMessageOnly(t *testing.T) {
	err := refuse(errInvalid, "the %s is wrong", "knob")
	if err.Error() != "the knob is wrong" || !errors.Is(err, errInvalid) {
		t.Errorf("got %q of class %v", err, errors.Unwrap(err))
	}
}
