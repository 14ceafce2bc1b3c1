// Package rpc carries Connect services over Unix sockets: HTTP/2 without TLS for streams in both directions, HTTP/1.1
// for plain curl, and faults as error details.
package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// BaseURL is the URL for clients of Client: the host in it means nothing.
const BaseURL = "http://banger"

// window is how much of a stream may be on its way unread. The default of 64 KiB would make every file copy wait for
// acknowledgements.
const window = 1 << 20

// idleTimeout ends a connection that nobody uses. CloseIdleConnections misses one whose last call is just ending.
const idleTimeout = 2 * time.Second

// Client returns an HTTP client that speaks HTTP/2 to the Unix socket at path. CloseIdleConnections ends it.
func Client(path string) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		Protocols:          protocols,
		DisableCompression: true,
		IdleConnTimeout:    idleTimeout,
		HTTP2:              &http.HTTP2Config{MaxReceiveBufferPerConnection: 4 * window, MaxReceiveBufferPerStream: window},
	}}
}

// Serve serves h on ln until ctx ends, then lets running calls finish for the time of grace before it cuts them off.
// It closes ln and returns nil after an orderly end. Every request's context ends when the grace is over.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, grace time.Duration) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           h,
		Protocols:         protocols,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerConnection: 4 * window, MaxReceiveBufferPerStream: window, MaxConcurrentStreams: 1000,
		},
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // ends by Shutdown or Close below
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stop, cancelStop := context.WithTimeout(base, grace)
	defer cancelStop()
	if err := srv.Shutdown(stop); err != nil {
		cancel()
		srv.Close()
	}
	<-served
	return nil
}

// codes maps each class to the Connect code that plain clients see.
var codes = map[fault.Class]connect.Code{
	fault.Invalid: connect.CodeInvalidArgument, fault.NotFound: connect.CodeNotFound,
	fault.Exists: connect.CodeAlreadyExists, fault.Conflict: connect.CodeFailedPrecondition,
	fault.Unavailable: connect.CodeUnavailable, fault.Exhausted: connect.CodeResourceExhausted,
	fault.Denied: connect.CodePermissionDenied, fault.Timeout: connect.CodeDeadlineExceeded,
	fault.Cancelled: connect.CodeCanceled, fault.Internal: connect.CodeInternal,
}

// Proto returns err as the wire's Fault.
func Proto(err error) *bangerv1.Fault {
	return &bangerv1.Fault{Class: string(fault.ClassOf(err)), Message: err.Error(), Hint: fault.HintOf(err)}
}

// FromProto returns the wire's Fault as an error, nil for nil.
func FromProto(f *bangerv1.Fault) error {
	if f == nil {
		return nil
	}
	return &fault.Error{Class: fault.ParseClass(f.GetClass()), Message: f.GetMessage(), Hint: f.GetHint()}
}

// ToConnect returns err as a Connect error that carries the fault.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	out := connect.NewError(codes[fault.ClassOf(err)], errors.New(err.Error()))
	if detail, detailErr := connect.NewErrorDetail(Proto(err)); detailErr == nil {
		out.AddDetail(detail)
	}
	return out
}

// FromConnect returns the fault that a Connect error carries. A transport's own error becomes a fault of the class
// that fits its code.
func FromConnect(err error) error {
	var ce *connect.Error
	if err == nil || !errors.As(err, &ce) {
		return err
	}
	for _, detail := range ce.Details() {
		if value, err := detail.Value(); err == nil {
			if f, ok := value.(*bangerv1.Fault); ok {
				return FromProto(f)
			}
		}
	}
	// A peer that was killed in the middle of a message is seen as a malformed message.
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return &fault.Error{Class: fault.Unavailable, Message: "the connection was cut off: " + ce.Message()}
	}
	if ce.Code() == connect.CodeUnimplemented { // also what is made of an answer whose end never came
		return &fault.Error{Class: fault.Unavailable, Message: "the daemon does not know this call, or was cut off: " + ce.Message(),
			Hint: "banger daemon stop"}
	}
	for class, code := range codes {
		if code == ce.Code() {
			return &fault.Error{Class: class, Message: ce.Message()}
		}
	}
	return &fault.Error{Class: fault.Internal, Message: ce.Message()}
}

// Faults translates between faults and Connect errors on both ends of a wire. On the serving end an internal error's
// full text goes to log as well.
func Faults(log *slog.Logger) connect.Interceptor { return &faults{log: log} }

type faults struct{ log *slog.Logger }

func (f *faults) serverError(ctx context.Context, procedure string, err error) error {
	if err != nil && fault.ClassOf(err) == fault.Internal && f.log != nil {
		f.log.ErrorContext(ctx, "call failed", "op", procedure, "error", err)
	}
	return ToConnect(err)
}

// WrapUnary implements connect.Interceptor.
func (f *faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err == nil {
			return resp, nil
		}
		if req.Spec().IsClient {
			return nil, FromConnect(err)
		}
		return nil, f.serverError(ctx, req.Spec().Procedure, err)
	}
}

// WrapStreamingClient implements connect.Interceptor. Connect hands out a stream's errors by itself: callers of a
// stream pass them through FromConnect.
func (f *faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (f *faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return f.serverError(ctx, conn.Spec().Procedure, next(ctx, conn))
	}
}
