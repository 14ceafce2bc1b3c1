package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

func newImageTag(d *Deps) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "tag [flags] NAME NEW-NAME", Short: "Give an image another name",
		Long: `Give an image another name. It keeps those that it has. A name that stands for another image is refused unless --force
takes it from there.`,
		Example: "  banger image tag app:latest app:1.2\n  banger image tag app:latest localhost:5000/app:latest",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fault.New(fault.Invalid, "%s takes the name of an image and a new one", cmd.CommandPath()).WithHint("%s --help", cmd.CommandPath())
			}
			return noEmpty(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImageTag(cmd.Context(), &bangerv1.TagImageRequest{Ref: args[0], Name: args[1], Force: force}, d)
		},
		ValidArgsFunction: firstOnly(completeLocalImages(d)),
	}
	cmd.Flags().BoolVar(&force, "force", false, "take the name from the image that has it")
	return cmd
}

func runImageTag(ctx context.Context, req *bangerv1.TagImageRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := message(c.Images.Tag(ctx, connect.NewRequest(req)))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewImage(m))
	}
	return d.Term.Answer("%s", imageRef(m))
}

func newImageRemove(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove images",
		Long: `Remove images: an image goes with its last name. One that a VM uses is refused. The files of a registered image stay; so
do the layers that were downloaded for an image, until banger image prune.`,
		Example: "  banger image rm alpine:3.20\n  banger image rm app:1.1 app:1.2",
		Args:    someOf("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return d.removeEach(cmd.Context(), args, func(ctx context.Context, c *client.Client, ref string) (removal, error) {
				r, err := message(c.Images.Remove(ctx, connect.NewRequest(&bangerv1.RemoveImageRequest{Ref: ref})))
				return removal{Name: r.GetName(), Digest: r.GetDigest(), FreedBytes: r.GetFreedBytes()}, err
			})
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			names, directive := completeLocalImages(d)(cmd, args, word)
			return without(names, args), directive
		},
	}
}

// removal is what became of one image or kernel that was to be removed. It is an element of the JSON answer.
type removal struct {
	Name       string `json:"name"`
	OK         bool   `json:"ok"`
	Digest     string `json:"digest,omitempty"` // of what is gone with the name
	FreedBytes uint64 `json:"freed_bytes"`
	Error      any    `json:"error,omitempty"`
}

// removeEach removes one after the other, answers with the names of those that are gone and tells the failures.
func (d *Deps) removeEach(ctx context.Context, refs []string, remove func(context.Context, *client.Client, string) (removal, error)) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var done []removal
	var failures []error
	for _, ref := range unique(refs) {
		r, err := remove(ctx, c, ref)
		if err != nil {
			failures = append(failures, err)
			done = append(done, removal{Name: ref, Error: term.FailureJSON(err)})
			continue
		}
		r.OK = true
		if r.Name == "" { // it had none
			r.Name = ref
		}
		done = append(done, r)
		if !d.Term.JSON() {
			if err := d.Term.Answer("%s", r.Name); err != nil {
				return err
			}
		}
	}
	if d.Term.JSON() {
		if err := d.Term.WriteJSON(done); err != nil {
			return err
		}
	}
	return d.several(failures)
}
