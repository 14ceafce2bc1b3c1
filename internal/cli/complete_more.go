package cli

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// completeLabels completes labels that some VM has: KEY and KEY=VALUE.
func completeLabels(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return labels(cmd, d, "", func(key, value string) []string { return []string{key, key + "=" + value} }),
			cobra.ShellCompDirectiveNoFileComp
	}
}

// completeLabelsOf completes the labels of the VM that is named already, to set (KEY=) and to remove (KEY-); those of all
// while none is.
func completeLabelsOf(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ref := ""
		if len(args) > 0 {
			ref = args[0]
		}
		return labels(cmd, d, ref, func(key, _ string) []string { return []string{key + "=", key + "-"} }),
			cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// labels returns what words makes of each label of the VM called name, of every VM for "".
func labels(cmd *cobra.Command, d *Deps, name string, words func(key, value string) []string) []string {
	return ask(cmd, d, func(ctx context.Context, c *client.Client) (out []string) {
		resp, err := message(c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{})))
		if err != nil {
			return nil
		}
		for _, m := range resp.GetVms() {
			if name != "" && name != m.GetSpec().GetName() {
				continue
			}
			for key, value := range m.GetSpec().GetLabels() {
				out = append(out, words(key, value)...)
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	})
}

// completeOperations completes ids of operations, with what they do as description; running says that others are of no use.
func completeOperations(d *Deps, running bool, several bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !several {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return ask(cmd, d, func(ctx context.Context, c *client.Client) (out []string) {
			resp, err := message(c.Operations.List(ctx, connect.NewRequest(&bangerv1.ListOperationsRequest{})))
			if err != nil {
				return nil
			}
			for _, op := range resp.GetOperations() {
				if (!running || op.GetState() == opRunning) && !slices.Contains(args, op.GetId()) {
					out = append(out, cobra.CompletionWithDesc(op.GetId(), op.GetKind()+" "+op.GetTarget()))
				}
			}
			return out
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTemplates completes keys of templates, with what they are for as description.
func completeTemplates(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return ask(cmd, d, func(ctx context.Context, c *client.Client) (out []string) {
			resp, err := message(c.Templates.List(ctx, connect.NewRequest(&bangerv1.ListTemplatesRequest{})))
			if err != nil {
				return nil
			}
			for _, t := range resp.GetTemplates() {
				if !slices.Contains(args, t.GetKey()) {
					out = append(out, cobra.CompletionWithDesc(t.GetKey(), fmt.Sprintf("%d cpus, %s", t.GetCpus(), vm.FormatSize(t.GetMemoryBytes()))))
				}
			}
			return out
		}), cobra.ShellCompDirectiveNoFileComp
	}
}
