package cli

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// When the image of a new VM is fetched.
const (
	fetchMissing = "missing"
	fetchAlways  = "always"
	fetchNever   = "never"
)

var fetchPolicies = []string{fetchMissing, fetchAlways, fetchNever}

// fetchFlags say when and for which platform the image of a new VM is fetched.
type fetchFlags struct {
	policy, platform string
}

func (f *fetchFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.policy, "pull", fetchMissing, "when to fetch the image: missing, always or never")
	cmd.Flags().StringVar(&f.platform, "platform", "", "of which platform the image is to be, such as linux/amd64 (default: the host's)")
	complete(cmd, "pull", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return fetchPolicies, cobra.ShellCompDirectiveNoFileComp
	})
	complete(cmd, "platform", completePlatforms)
}

func (f *fetchFlags) check(cmd *cobra.Command, image string) error {
	if !slices.Contains(fetchPolicies, f.policy) {
		return fault.New(fault.Invalid, "--pull %q is not one of %s", f.policy, strings.Join(fetchPolicies, ", ")).
			WithHint("%s --pull %s", cmd.CommandPath(), fetchAlways)
	}
	if err := checkPlatform(cmd, f.platform); err != nil {
		return err
	}
	if (f.policy == fetchAlways || f.platform != "") && image == "" {
		flag := map[bool]string{true: "--pull " + fetchAlways, false: "--platform " + f.platform}[f.policy == fetchAlways]
		return fault.New(fault.Invalid, "%s is about an image, but none is named", flag).WithHint("%s --image IMAGE %s", cmd.CommandPath(), flag)
	}
	if f.platform != "" && f.policy == fetchNever {
		return fault.New(fault.Invalid, "--platform and --pull %s exclude each other", fetchNever)
	}
	return nil
}

// prepare sees to the image before a VM is made of it. An image that is missing is otherwise the daemon's matter. A fetched
// image may have another name than its reference: the spec has that one then.
func (f *fetchFlags) prepare(ctx context.Context, c *client.Client, spec *bangerv1.VMSpec, d *Deps) error {
	switch {
	case f.policy == fetchNever:
		return f.mustBeHere(ctx, c, spec)
	case f.policy != fetchAlways && f.platform == "":
		return nil
	}
	op, err := d.job(ctx, c, func(ctx context.Context) (string, error) {
		resp, err := message(c.Images.Pull(ctx, connect.NewRequest(&bangerv1.PullImageRequest{
			Reference: spec.GetImage(), Platform: f.platform, Force: f.policy == fetchAlways,
		})))
		return resp.GetOperationId(), err
	})
	if err != nil {
		return err
	}
	spec.Image = op.GetResultId()
	return nil
}

// mustBeHere refuses an image that would have to be fetched.
func (f *fetchFlags) mustBeHere(ctx context.Context, c *client.Client, spec *bangerv1.VMSpec) error {
	name := spec.GetImage()
	if name == "" {
		resp, err := message(c.Images.Catalog(ctx, connect.NewRequest(&bangerv1.ImageCatalogRequest{})))
		if err != nil {
			return err
		}
		for _, e := range resp.GetEntries() {
			if e.GetIsDefault() {
				name = e.GetName()
			}
		}
	}
	_, err := c.Images.Get(ctx, connect.NewRequest(&bangerv1.GetImageRequest{Ref: name}))
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, "image %s is not here, and --pull %s forbids to fetch it", name, fetchNever).WithHint("banger image pull %s", name)
	}
	return err
}
