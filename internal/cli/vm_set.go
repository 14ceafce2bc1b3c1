package cli

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"banger/internal/fault"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// setFlags are the settings of vm set. Only what is given changes.
type setFlags struct {
	cpus         int
	memory, disk string
	policy       policyFlags
}

func newSet(d *Deps) *cobra.Command {
	var flags setFlags
	cmd := &cobra.Command{
		Use:   "set [flags] NAME",
		Short: "Change the settings of a vm",
		Long: `Change the settings of a VM. A disk grows at once, also in a running guest, and never shrinks. What a running VM
cannot take over is kept for its next start, and said.`,
		Example: `  banger vm set dev --disk 20G
  banger vm set dev --cpus 4 --memory 4G
  banger vm set dev --auto-stop 30m --restart on-failure
  banger vm set dev --label team=web --label draft- --description reviews`,
		Args: oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := flags.request(cmd, args[0])
			if err != nil {
				return err
			}
			return runSet(cmd.Context(), req, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
	fs := cmd.Flags()
	fs.IntVar(&flags.cpus, "cpus", 0, "number of virtual CPUs")
	fs.StringVar(&flags.memory, "memory", "", "memory, such as 512M or 2G")
	fs.StringVar(&flags.disk, "disk", "", "size of its disk, such as 20G; it can only grow")
	flags.policy.add(cmd, "label: KEY=VALUE sets it, KEY- removes it; may be given several times", completeLabelsOf(d))
	for _, flag := range []string{"cpus", "memory", "disk"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
	return cmd
}

// request checks the flags and returns what they ask for.
func (f *setFlags) request(cmd *cobra.Command, ref string) (*bangerv1.SetVMRequest, error) {
	given := cmd.Flags().Changed
	req := &bangerv1.SetVMRequest{Ref: ref}
	check := vm.Spec{CPUs: 1, Memory: vm.MinMemory, Disk: vm.MinDisk}
	if given("cpus") {
		check.CPUs, req.Cpus = f.cpus, proto.Uint32(uint32(max(f.cpus, 0))) //nolint:gosec // checked below
	}
	for _, size := range []struct {
		flag, text string
		check      *uint64
		to         **uint64
	}{{"memory", f.memory, &check.Memory, &req.MemoryBytes}, {"disk", f.disk, &check.Disk, &req.DiskBytes}} {
		if !given(size.flag) {
			continue
		}
		n, err := vm.ParseSize(size.text)
		if err != nil {
			return nil, err
		}
		*size.check, *size.to = n, &n
	}
	if err := check.Validate(); err != nil {
		return nil, hintFor(err, "banger vm set", ref)
	}
	policy, err := f.policy.parse(cmd, true)
	if err != nil {
		return nil, err
	}
	if given("auto-stop") {
		req.AutoStopMs = proto.Int64(f.policy.autoStop.Milliseconds())
	}
	if given("restart") {
		req.Restart = &f.policy.restart
	}
	if given("description") {
		req.Description = &f.policy.description
	}
	if given("no-fork") {
		req.NoFork = &f.policy.noFork
	}
	req.SetLabels, req.RemoveLabels = policy.set, policy.remove
	if cmd.Flags().NFlag() == 0 {
		return nil, fault.New(fault.Invalid, "%s: nothing to change is given", cmd.CommandPath()).WithHint("%s --help", cmd.CommandPath())
	}
	return req, nil
}

// hintFor makes the hint of a fault about a new VM's shape fit another command with such flags.
func hintFor(err error, command, arg string) error {
	if flags, ok := strings.CutPrefix(fault.HintOf(err), "banger vm run "); ok {
		return fault.New(fault.ClassOf(err), "%s", err).WithHint("%s %s %s", command, flags, arg)
	}
	return err
}

func runSet(ctx context.Context, req *bangerv1.SetVMRequest, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := message(c.VMs.Set(ctx, connect.NewRequest(req)))
	if err != nil {
		return err
	}
	if err := d.answerVM(m); err != nil || len(m.GetPending()) == 0 {
		return err
	}
	name := m.GetSpec().GetName()
	verb := "takes"
	if len(m.GetPending()) > 1 {
		verb = "take"
	}
	d.Term.Note("%s of vm %s %s effect at the next start", enumerate(m.GetPending()), name, verb)
	d.Term.Hint("banger vm restart %s", name)
	return nil
}

// enumerate is "a", "a and b", "a, b and c".
func enumerate(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
