package driver

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofs-csi/erofs-csi/driver/claims"
	"github.com/erofs-csi/erofs-csi/driver/engine"
	"github.com/erofs-csi/erofs-csi/erofs"
	"github.com/erofs-csi/erofs-csi/nodecache"
)

// Classes of the errors that this package makes itself. A class names no code;
// codeTable does.
var (
	errInFlight       = errors.New("operation in flight")
	errInvalid        = errors.New("invalid request")
	errExists         = errors.New("already exists with other properties")
	errPrecondition   = errors.New("precondition not met")
	errVolumeNotFound = errors.New("volume not found")
	errRange          = errors.New("out of range")
	errTopology       = errors.New("not on these nodes")
	errPulling        = errors.New("image is not on the node yet")
	errNotResponding  = errors.New("mount does not respond")
	errPanic          = errors.New("internal error")
)

// codeTable maps error classes to gRPC codes, the first match wins. It is the
// only place where codes are assigned.
//
// Kubelet holds Canceled, DeadlineExceeded, Unavailable, ResourceExhausted and
// Aborted for "maybe still in progress" and goes on to unpublish or unstage
// later even if the pod is gone (isFinalError in kubernetes
// pkg/volume/csi/csi_client.go); every other code means "nothing was done".
// Both are true here, because a failed call undoes all it did, so the choice
// is by meaning.
var codeTable = []struct {
	class error
	code  codes.Code
}{
	{errInFlight, codes.Aborted},
	{errInvalid, codes.InvalidArgument},
	{errExists, codes.AlreadyExists},
	{errPrecondition, codes.FailedPrecondition},
	{errVolumeNotFound, codes.NotFound},
	{errRange, codes.OutOfRange},
	// "Unable to provision in accessible_topology": another node may be chosen.
	{errTopology, codes.ResourceExhausted},
	{errPulling, codes.DeadlineExceeded},
	{errNotResponding, codes.Unavailable},
	{errPanic, codes.Internal},

	{nodecache.ErrInvalidReference, codes.InvalidArgument},
	{nodecache.ErrInvalidCredentials, codes.InvalidArgument},
	{nodecache.ErrNotFound, codes.NotFound},
	// The registry said no to the pull secret, or to having none.
	// PermissionDenied is this driver's own no: with any secret at all, the
	// answer would be the same.
	{nodecache.ErrUnauthorized, codes.Unauthenticated},
	{nodecache.ErrNotAllowed, codes.PermissionDenied},
	{nodecache.ErrUnavailable, codes.Unavailable},
	{nodecache.ErrInterrupted, codes.Unavailable},
	{nodecache.ErrNoSpace, codes.ResourceExhausted},
	{nodecache.ErrDigestMismatch, codes.DataLoss},
	{nodecache.ErrChanged, codes.DataLoss},
	{nodecache.ErrUnsupportedImage, codes.FailedPrecondition},
	{nodecache.ErrConfiguration, codes.FailedPrecondition},
	{nodecache.ErrLocked, codes.FailedPrecondition},

	{claims.ErrNotFound, codes.NotFound},
	{claims.ErrForbidden, codes.FailedPrecondition},
	{claims.ErrUnavailable, codes.Unavailable},

	// A newer kernel, or another front by --front, would do.
	{engine.ErrNotIDMapped, codes.FailedPrecondition},
	{engine.ErrNoPassthrough, codes.FailedPrecondition},

	// What the request names is no EROFS image: the request is wrong. A valid
	// image that this release cannot read becomes right by an upgrade: the
	// state of the system is.
	{engine.ErrForged, codes.DataLoss},
	{engine.ErrKernel, codes.FailedPrecondition},
	{erofs.ErrFormat, codes.InvalidArgument},
	{erofs.ErrUnsupported, codes.FailedPrecondition},
	{erofs.ErrCorrupt, codes.DataLoss},

	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{syscall.ENOMEM, codes.ResourceExhausted},
	{syscall.EMFILE, codes.ResourceExhausted},
	{syscall.ENFILE, codes.ResourceExhausted},

	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// statusOf converts the error of a handler to the error of its RPC: the code
// of its class, Internal without one, never Unknown. An RPC whose own context
// ended says so whatever broke first because of it; the deadline of an inner
// step (a registry that stalls) keeps its class.
func statusOf(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return err // grpc's own, such as Unimplemented
	}
	return status.Error(codeOf(ctx, err), err.Error())
}

func codeOf(ctx context.Context, err error) codes.Code {
	switch ctxErr := ctx.Err(); {
	case errors.Is(ctxErr, context.Canceled):
		return codes.Canceled
	case errors.Is(ctxErr, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	for _, row := range codeTable {
		if errors.Is(err, row.class) {
			return row.code
		}
	}
	return codes.Internal
}

// refusal is an error of a class whose message stands alone.
type refusal struct {
	class   error
	message string
}

func (r *refusal) Error() string { return r.message }
func (r *refusal) Unwrap() error { return r.class }

// refuse returns an error of a class; the message is all that the user sees
// and tells the fix.
func refuse(class error, format string, args ...any) error {
	return &refusal{class: class, message: fmt.Sprintf(format, args...)}
}
