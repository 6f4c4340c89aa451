package driver

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// intercept wraps each RPC: the logger goes into its context, a panic becomes
// an error, an error becomes a status, and both ends are logged. A panic must
// not end the process, whose end is that of every mount of the node.
//
// V4 logs the calls, V5 their bodies without secrets. Failures are logged at
// every level, except "in flight", which is kubelet's ordinary repetition.
func intercept(logger klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		logger := logger.WithValues("method", info.FullMethod)
		if v, ok := req.(interface{ GetVolumeId() string }); ok {
			logger = logger.WithValues("volumeID", v.GetVolumeId())
		}
		ctx = klog.NewContext(ctx, logger)
		logger.V(4).Info("Handling call")
		if l := logger.V(5); l.Enabled() {
			l.Info("Request", "request", redacted{req}.String())
		}
		start := time.Now()
		res, err := guard(ctx, func() (any, error) { return handler(ctx, req) })
		took := time.Since(start)
		if err != nil {
			err = statusOf(ctx, err)
			if code := status.Code(err); code == codes.Aborted {
				logger.V(4).Info("Call is already in progress", "took", took)
			} else {
				logger.Error(err, "Call failed", "code", code.String(), "took", took)
			}
			return nil, err
		}
		if l := logger.V(5); l.Enabled() {
			l.Info("Response", "response", redacted{res}.String())
		}
		logger.V(4).Info("Handled call", "took", took)
		return res, nil
	}
}

// guard turns a panic of fn into an error of the class errPanic. The caller
// learns no more than that; the log has the value and the stack.
func guard[T any](ctx context.Context, fn func() (T, error)) (res T, err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.FromContext(ctx).Error(fmt.Errorf("%w: %v", errPanic, p), "Panic", "stack", string(debug.Stack()))
			err = refuse(errPanic, "internal error: the log of the plugin has the details")
		}
	}()
	return fn()
}
