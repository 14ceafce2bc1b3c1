package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/imageref"
	"banger/internal/nearest"
	bangerv1 "banger/proto/banger/v1"
)

// The formats of an exported image, as they are on the wire.
const (
	formatLayout  = "oci-layout"
	formatArchive = "oci-archive"
	formatBundle  = "bundle"
)

var exportFormats = []string{formatLayout, formatArchive, formatBundle}

func newImageExport(d *Deps) *cobra.Command {
	var req bangerv1.ExportImageRequest
	cmd := &cobra.Command{
		Use: "export [flags] NAME", Short: "Write an image to a file or a directory",
		Long: `Write an image to a file or a directory of the host, in a form that banger image pull takes: a bundle (.tar.zst), an OCI
image layout in a directory, or the same as a tar file (.tar). Container tools read the latter two. The ending of the path
says which it is unless --type does. What is there already is not overwritten.

A bundle can be signed afterwards, with minisign -S -m FILE: the signature goes beside it.`,
		Example: `  banger image export app -o app.tar.zst
  banger image export app -o app.tar.zst --kernel
  banger image export app -o app-layout --type oci-layout`,
		Args: oneOf("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Ref = args[0]
			if err := checkExport(cmd, &req); err != nil {
				return err
			}
			return runImageExport(cmd.Context(), &req, d)
		},
		ValidArgsFunction: firstOnly(completeLocalImages(d)),
	}
	flags := cmd.Flags()
	flags.StringVarP(&req.Path, "output", "o", "", "file or directory to write (required)")
	flags.StringVar(&req.Format, "type", "", "one of "+strings.Join(exportFormats, ", "))
	flags.BoolVar(&req.Kernel, "kernel", false, "put the kernel into the bundle, too")
	complete(cmd, "output", completeFiles)
	complete(cmd, "type", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return exportFormats, cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// checkExport finds out the format, makes the path absolute and looks whether it is free.
func checkExport(cmd *cobra.Command, req *bangerv1.ExportImageRequest) (err error) {
	path := req.GetPath()
	if path == "" || path == "-" {
		return fault.New(fault.Invalid, "%s needs a file or a directory to write", cmd.CommandPath()).
			WithHint("%s %s -o image%s", cmd.CommandPath(), req.GetRef(), imageref.BundleSuffix)
	}
	if req.Format, err = exportFormat(cmd, path, req.GetFormat()); err != nil {
		return err
	}
	if req.GetKernel() && req.GetFormat() != formatBundle {
		return fault.New(fault.Invalid, "only a bundle can hold a kernel, and %q is an %s", path, req.GetFormat()).
			WithHint("%s %s -o image%s --kernel", cmd.CommandPath(), req.GetRef(), imageref.BundleSuffix)
	}
	if req.Path, err = filepath.Abs(path); err != nil {
		return fault.Wrap(fault.Internal, err, "--output %q", path)
	}
	switch _, err := os.Lstat(path); {
	case err == nil:
		return fault.New(fault.Exists, "--output: %q is there already", path).WithHint("rm -r %s", path)
	case !errors.Is(err, fs.ErrNotExist):
		return missing("--output", path, err)
	}
	_, err = hostDir("--output", filepath.Dir(req.GetPath()))
	return err
}

// exportFormat is the given format, or what the ending of the path means.
func exportFormat(cmd *cobra.Command, path, given string) (string, error) {
	switch base := filepath.Base(path); {
	case cmd.Flags().Changed("type"):
		for _, f := range exportFormats {
			if f == given {
				return f, nil
			}
		}
		f := fault.New(fault.Invalid, "--type %q is not one of %s", given, strings.Join(exportFormats, ", "))
		if near := nearest.Of(given, exportFormats); near != "" {
			return "", f.WithHint("%s --type %s", cmd.CommandPath(), near)
		}
		return "", f.WithHint("%s --help", cmd.CommandPath())
	case strings.HasSuffix(base, imageref.BundleSuffix):
		return formatBundle, nil
	case strings.HasSuffix(base, ".tar"):
		return formatArchive, nil
	case strings.HasSuffix(path, "/"), filepath.Ext(base) == "":
		return formatLayout, nil
	}
	return "", fault.New(fault.Invalid, "what to write cannot be told from %q: it ends neither in %s nor in .tar, and is no plain name of a directory", path, imageref.BundleSuffix).
		WithHint("%s --type %s -o %s ...", cmd.CommandPath(), formatLayout, path)
}

func runImageExport(ctx context.Context, req *bangerv1.ExportImageRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Images.Export(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(exportView{Ref: req.GetRef(), Path: req.GetPath(), Type: req.GetFormat()})
	}
	return d.Term.Answer("%s", req.GetPath())
}

// exportView is the JSON form of export.
type exportView struct {
	Ref  string `json:"ref"`
	Path string `json:"path"`
	Type string `json:"type"`
}

func newImagePush(d *Deps) *cobra.Command {
	var req bangerv1.PushImageRequest
	return &cobra.Command{
		Use: "push NAME [TARGET]", Short: "Send an image to a registry",
		Long: `Send an image to a registry, with the credentials that docker login has left there. TARGET is where to: a reference such as
localhost:5000/app:1.2. Without it, the image's name is one. The answer is the image's digest in the registry.

Layers that the registry has are not sent again.`,
		Example: "  banger image push app localhost:5000/app:latest\n  banger image push localhost:5000/app:latest",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return noEmpty(cmd, args)
			}
			return oneOf("image")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Ref = args[0]
			if len(args) > 1 {
				req.Target = args[1]
			}
			return runImagePush(cmd.Context(), &req, d)
		},
		ValidArgsFunction: firstOnly(completeLocalImages(d)),
	}
}

func runImagePush(ctx context.Context, req *bangerv1.PushImageRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Images.Push(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(pushView{Ref: req.GetRef(), Target: req.GetTarget(), Digest: op.GetResultId()})
	}
	return d.Term.Answer("%s", op.GetResultId())
}

// pushView is the JSON form of push.
type pushView struct {
	Ref    string `json:"ref"`
	Target string `json:"target,omitempty"` // absent: the image's name
	Digest string `json:"digest"`
}
