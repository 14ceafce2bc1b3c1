package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	bangerv1 "banger/proto/banger/v1"
)

// must ends the test when what is only preparation fails.
func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// tryPull pulls an image and waits for the outcome.
func (h *host) tryPull(reference string, force bool) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := h.imgs.Pull(ctx, connect.NewRequest(&bangerv1.PullImageRequest{Reference: reference, Force: force}))
	if err != nil {
		return err
	}
	return h.outcome(ctx, resp.Msg.GetOperationId())
}

func (h *host) removeImage(ref string) (*bangerv1.RemoveImageResponse, error) {
	resp, err := h.imgs.Remove(h.t.Context(), connect.NewRequest(&bangerv1.RemoveImageRequest{Ref: ref}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// outside is a directory of the user's, beside banger's own.
func (h *host) outside() string {
	h.t.Helper()
	dir := filepath.Join(filepath.Dir(h.paths.Data), "user")
	h.must(os.MkdirAll(dir, 0o700))
	return dir
}

// registerTar registers an image that is a tar file.
func (h *host) registerTar(name string) error {
	h.t.Helper()
	file := filepath.Join(h.outside(), name+".tar")
	h.must(os.WriteFile(file, tarOf("etc/", "etc/hostname", name), 0o600))
	return h.tryRegister(&bangerv1.RegisterImageRequest{Name: name, Rootfs: file, Kernel: "linux"})
}

func (h *host) tryRegister(req *bangerv1.RegisterImageRequest) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := h.imgs.Register(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	return h.outcome(ctx, resp.Msg.GetOperationId())
}

func (h *host) tryBuild(req *bangerv1.BuildImageRequest) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := h.imgs.Build(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	return h.outcome(ctx, resp.Msg.GetOperationId())
}

func (h *host) tryExport(ref, path, format string) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := h.imgs.Export(ctx, connect.NewRequest(&bangerv1.ExportImageRequest{Ref: ref, Path: path, Format: format}))
	if err != nil {
		return err
	}
	return h.outcome(ctx, resp.Msg.GetOperationId())
}
