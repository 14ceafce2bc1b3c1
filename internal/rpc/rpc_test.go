package rpc

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/sock"
	bangerv1 "banger/proto/banger/v1"
	"banger/proto/banger/v1/bangerv1connect"
)

type operations struct {
	bangerv1connect.UnimplementedOperationServiceHandler
	err error
}

func (o *operations) Get(context.Context, *connect.Request[bangerv1.GetOperationRequest]) (*connect.Response[bangerv1.Operation], error) {
	return nil, o.err
}

func (o *operations) Watch(context.Context, *connect.Request[bangerv1.WatchOperationRequest], *connect.ServerStream[bangerv1.Operation]) error {
	return o.err
}

func TestFaultsCrossTheWire(t *testing.T) {
	h := &operations{err: fmt.Errorf("outer: %w", fault.New(fault.Conflict, "vm dev is running").WithHint("banger vm stop dev"))}
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewOperationServiceHandler(h, connect.WithInterceptors(Faults(nil))))
	path := filepath.Join(t.TempDir(), "s")
	ln, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, ln, mux, time.Second) }()

	hc := Client(path)
	client := bangerv1connect.NewOperationServiceClient(hc, BaseURL, connect.WithInterceptors(Faults(nil)))
	want := &fault.Error{Class: fault.Conflict, Message: "outer: vm dev is running", Hint: "banger vm stop dev"}

	_, err = client.Get(t.Context(), connect.NewRequest(&bangerv1.GetOperationRequest{}))
	if diff := cmp.Diff(want, err); diff != "" {
		t.Errorf("unary (-want +got):\n%s", diff)
	}
	stream, err := client.Watch(t.Context(), connect.NewRequest(&bangerv1.WatchOperationRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if stream.Receive() {
		t.Error("the stream has a message")
	}
	if diff := cmp.Diff(want, FromConnect(stream.Err())); diff != "" {
		t.Errorf("stream (-want +got):\n%s", diff)
	}
	stream.Close()
	hc.CloseIdleConnections()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeCutsOffWhatDoesNotEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := sock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan struct{})
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, ln, h, 10*time.Millisecond) }()
	go func() {
		if resp, err := Client(path).Get(BaseURL); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Serve hangs")
	}
}
