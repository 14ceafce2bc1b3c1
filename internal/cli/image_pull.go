package cli

import (
	"context"
	"encoding/hex"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// pullArgs wants one reference.
func pullArgs(noun string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fault.New(fault.Invalid, "%s takes the name of one %s", cmd.CommandPath(), noun).WithHint("banger %s catalog", noun)
		}
		return noEmpty(cmd, args)
	}
}

func newImagePull(d *Deps) *cobra.Command {
	var req bangerv1.PullImageRequest
	cmd := &cobra.Command{
		Use: "pull [flags] REFERENCE", Short: "Get an image",
		Long: `Get an image and wait until it is there. The answer is what it is called here. REFERENCE is one of

  debian-bookworm            a name from a catalog (banger image catalog)
  alpine, host:5000/app:1.2  an image in a registry, as container tools name it; with the credentials that docker login
                             has left
  oci-layout:DIR[:TAG]       a directory with an OCI image layout
  oci-archive:FILE[:TAG]     the same in a tar file
  docker-archive:FILE[:NAME] what docker save wrote
  bundle:FILE, bundle:URL    a bundle; the word can be left out if it ends in .tar.zst. One from the network must be signed
                             with a key of the configuration or of --key, or be the file that --sha256 says

An image that is being pulled already is waited for; one that is there is not fetched again unless --force says so. An
interrupt (^C) takes everything back but the layers that have come: the next pull goes on with them.`,
		Example: `  banger image pull debian-bookworm
  banger image pull alpine:3.20
  banger image pull docker-archive:app.tar --name app
  banger image pull https://example.org/app.tar.zst --key minisign.pub`,
		Args: pullArgs("image"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.Reference, err = hostReference(args[0]); err != nil {
				return err
			}
			if err := checkPull(cmd, &req); err != nil {
				return err
			}
			return runImagePull(cmd.Context(), &req, d)
		},
		ValidArgsFunction: firstOnly(completeReferences(d)),
	}
	flags := cmd.Flags()
	flags.BoolVar(&req.Force, "force", false, "make it anew although it is there")
	flags.StringVar(&req.Platform, "platform", "", "of which platform, such as linux/amd64 (default: the host's)")
	flags.StringVar(&req.Name, "name", "", "what to call it here (default: after the reference)")
	flags.StringArrayVar(&req.Keys, "key", nil, "minisign public key that a bundle may be signed with, or its file; may be given several times")
	flags.StringVar(&req.Sha256, "sha256", "", "digest of a bundle's file: makes a signature unnecessary")
	complete(cmd, "platform", completePlatforms)
	complete(cmd, "key", completeFiles)
	for _, flag := range []string{"name", "sha256"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
	return cmd
}

// checkPull refuses flags that cannot be meant, and puts the contents in the place of a key's file.
func checkPull(cmd *cobra.Command, req *bangerv1.PullImageRequest) error {
	if err := checkPlatform(cmd, req.GetPlatform()); err != nil {
		return err
	}
	if cmd.Flags().Changed("name") && req.GetName() == "" {
		return fault.New(fault.Invalid, "--name is empty").WithHint("%s --help", cmd.CommandPath())
	}
	if sum := strings.ToLower(strings.TrimPrefix(req.GetSha256(), "sha256:")); cmd.Flags().Changed("sha256") {
		if raw, err := hex.DecodeString(sum); err != nil || len(raw) != 32 {
			return fault.New(fault.Invalid, "--sha256 %q is not 64 hexadecimal digits", req.GetSha256()).WithHint("sha256sum FILE")
		}
		req.Sha256 = sum
	}
	for i, key := range req.GetKeys() {
		var err error
		if req.Keys[i], err = minisignKey(key); err != nil {
			return err
		}
	}
	return nil
}

// minisignKey is a public key as it stands, or the one in the file of that name, below its comment.
func minisignKey(key string) (string, error) {
	const longest = 4096 // bytes of a key's file; a real one has about 110
	text := key
	if info, err := os.Stat(key); err == nil && info.Mode().IsRegular() && info.Size() <= longest {
		data, err := os.ReadFile(key)
		if err != nil {
			return "", fault.Wrap(fault.Denied, err, "--key")
		}
		text = string(data)
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "untrusted comment:") {
			text = line
			break
		}
	}
	if !strings.HasPrefix(text, "RW") || strings.ContainsAny(text, " \n") {
		return "", fault.New(fault.Invalid, "--key %q is neither a minisign public key (RW...) nor a file with one", key).WithHint("minisign -G")
	}
	return text, nil
}

// checkPlatform refuses what does not look like os/arch.
func checkPlatform(cmd *cobra.Command, platform string) error {
	if !cmd.Flags().Changed("platform") {
		return nil
	}
	parts := strings.Split(platform, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] != "linux" || parts[1] == "" {
		return fault.New(fault.Invalid, "--platform %q is not linux/ARCH, such as linux/amd64", platform).
			WithHint("%s --platform linux/amd64", cmd.CommandPath())
	}
	return nil
}

func runImagePull(ctx context.Context, req *bangerv1.PullImageRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Images.Pull(ctx, connect.NewRequest(req)))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	return d.answerImage(ctx, c, op.GetResultId())
}
