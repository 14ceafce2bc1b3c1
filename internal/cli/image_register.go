package cli

import (
	"context"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

func newImageRegister(d *Deps) *cobra.Command {
	var req bangerv1.RegisterImageRequest
	cmd := &cobra.Command{
		Use: "register [flags] NAME", Short: "Use a root file system of one's own as an image",
		Long: `Give a root file system of the host a name: an ext4 file system or a tar file, and a kernel if it brings its own.

The files stay yours: banger neither changes nor removes them. An ext4 file system is used where it is, and refused when it
has changed; banger image promote makes a copy that banger looks after. A tar file is made into a file system once.`,
		Example: `  banger image register mine --rootfs rootfs.tar
  banger image register mine --rootfs rootfs.ext4 --kernel vmlinux --modules lib/modules/6.1.0`,
		Args: oneOf("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			if err := checkRegister(cmd, &req); err != nil {
				return err
			}
			return runImageRegister(cmd.Context(), &req, d)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Rootfs, "rootfs", "", "ext4 file system or tar file (required)")
	flags.StringVar(&req.Kernel, "kernel", "", "vmlinux or bzImage, or the name of a kernel (default: the default kernel)")
	flags.StringVar(&req.Initrd, "initrd", "", "initial RAM disk of a kernel file")
	flags.StringVar(&req.Modules, "modules", "", "modules directory of a kernel file (/lib/modules/RELEASE)")
	flags.BoolVar(&req.Force, "force", false, "take the name from the image that has it")
	complete(cmd, "rootfs", completeFiles)
	complete(cmd, "initrd", completeFiles)
	complete(cmd, "modules", completeDirs)
	complete(cmd, "kernel", completeKernelOrFile(d))
	return cmd
}

// checkRegister makes the paths absolute and looks whether the files are there.
func checkRegister(cmd *cobra.Command, req *bangerv1.RegisterImageRequest) (err error) {
	if req.GetRootfs() == "" {
		return fault.New(fault.Invalid, "%s needs a root file system", cmd.CommandPath()).
			WithHint("%s %s --rootfs rootfs.tar", cmd.CommandPath(), req.GetName())
	}
	if info, err := os.Stat(req.GetRootfs()); err == nil && info.IsDir() {
		return fault.New(fault.Invalid, "--rootfs %q is a directory, not an ext4 file system or a tar file", req.GetRootfs()).
			WithHint("tar -C %s -cf rootfs.tar .", req.GetRootfs())
	}
	given := req.GetRootfs()
	if req.Rootfs, err = hostFile("--rootfs", given); err != nil {
		return err
	}
	file := kernelFile(req.GetKernel())
	if file {
		if req.Kernel, err = hostFile("--kernel", req.GetKernel()); err != nil {
			return err
		}
	}
	for _, flag := range []string{"initrd", "modules"} {
		if cmd.Flags().Changed(flag) && !file {
			return fault.New(fault.Invalid, "--%s belongs to a kernel file, but --kernel names none", flag).
				WithHint("%s %s --rootfs %s --kernel ./vmlinux --%s ...", cmd.CommandPath(), req.GetName(), given, flag)
		}
	}
	if cmd.Flags().Changed("initrd") {
		if req.Initrd, err = hostFile("--initrd", req.GetInitrd()); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("modules") {
		req.Modules, err = hostDir("--modules", req.GetModules())
	}
	return err
}

// kernelFile tells the path of a kernel from the name of one.
func kernelFile(kernel string) bool {
	if strings.ContainsRune(kernel, '/') {
		return true
	}
	info, err := os.Stat(kernel)
	return kernel != "" && err == nil && info.Mode().IsRegular()
}

func runImageRegister(ctx context.Context, req *bangerv1.RegisterImageRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Images.Register(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	return d.answerImage(ctx, c, op.GetResultId())
}

func newImagePromote(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "promote NAME", Short: "Make a copy of a registered image that banger looks after",
		Long: `Copy the files of a registered image into banger's store. The name stands for the copy from then on; VMs that use the
image go on with your files, which stay where they are.`,
		Example: "  banger image promote mine",
		Args:    oneOf("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImagePromote(cmd.Context(), args[0], d)
		},
		ValidArgsFunction: firstOnly(completeRegistered(d)),
	}
}

func runImagePromote(ctx context.Context, ref string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Images.Promote(ctx, connect.NewRequest(&bangerv1.PromoteImageRequest{Ref: ref})))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	return d.answerImage(ctx, c, op.GetResultId())
}
