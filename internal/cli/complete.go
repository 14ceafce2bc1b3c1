package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// completeTimeout bounds what a press of the tab key may take.
const completeTimeout = time.Second

// ask calls fn with the daemon that runs. Completion starts none and stays silent about failures.
func ask(cmd *cobra.Command, d *Deps, fn func(context.Context, *client.Client) []string) []string {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTimeout)
	defer cancel()
	c, err := d.Attach(ctx)
	if err != nil {
		return nil
	}
	defer c.Close()
	return fn(ctx, c)
}

// vmNames returns the names of the VMs in one of states, of all with none.
func vmNames(cmd *cobra.Command, d *Deps, states []string) []string {
	return ask(cmd, d, func(ctx context.Context, c *client.Client) (names []string) {
		resp, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListVMsRequest{States: states}))
		if err != nil {
			return nil
		}
		for _, m := range resp.Msg.GetVms() {
			names = append(names, m.GetSpec().GetName())
		}
		slices.SortFunc(names, compareNames)
		return names
	})
}

// completeVMs completes names of VMs in one of states, as many as wanted.
func completeVMs(d *Deps, states ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return without(vmNames(cmd, d, states), args), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeOneVM completes the first argument only. What follows may be a command of the guest: nothing is known of it.
func completeOneVM(d *Deps, states ...string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return vmNames(cmd, d, states), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeStates completes the states that a VM can be in.
func completeStates(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	states := []vm.State{vm.Created, vm.Starting, vm.Running, vm.Paused, vm.Stopping, vm.Stopped, vm.Suspended, vm.Failed, vm.Deleting}
	return views(states, func(s vm.State) string { return string(s) }), cobra.ShellCompDirectiveNoFileComp
}

// compareNames orders names with numbers in them as people do: test-2 before test-10.
func compareNames(a, b string) int {
	for {
		i := 0
		for i < len(a) && i < len(b) && a[i] == b[i] && !digit(a[i]) {
			i++
		}
		a, b = a[i:], b[i:]
		x, restA := number(a)
		y, restB := number(b)
		if x == "" || y == "" || a == "" || b == "" {
			return strings.Compare(a, b)
		}
		if len(x) != len(y) {
			return len(x) - len(y)
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		a, b = restA, restB
	}
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// number cuts the digits off the front of s.
func number(s string) (digits, rest string) {
	i := 0
	for i < len(s) && digit(s[i]) {
		i++
	}
	return s[:i], s[i:]
}
