package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/preflight"
	"banger/internal/term"
	"banger/internal/vm"
)

func newDoctor(d *Deps) *cobra.Command {
	var ref string
	cmd := &cobra.Command{
		Use: "doctor [flags]", Short: "Check whether this host can run vms",
		Long: `Check whether this host can run VMs and how fast: the virtual machine monitor, hardware virtualisation, what images
and kernels are made with, and room on the disk. What is wrong comes with a command that mends it.

The exit code is 0 unless a check fails. This needs no daemon.

With --vm it asks a running VM who it is and compares that with the other VMs that were started from the same template:
each must have its own machine-id, boot id, hostname, hardware address and random numbers, and the right time.`,
		Example: "  banger doctor\n  banger doctor --format json\n  banger doctor --vm dev",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("vm") {
				return runDoctorVM(cmd.Context(), ref, d)
			}
			return runDoctor(cmd.Context(), d)
		},
	}
	cmd.Flags().StringVar(&ref, "vm", "", "check a running vm instead of the host")
	complete(cmd, "vm", completeVMs(d, string(vm.Running)))
	return cmd
}

// doctorView is the JSON form of doctor.
type doctorView struct {
	OK     bool               `json:"ok"`
	Checks []preflight.Result `json:"checks"`
}

func runDoctor(ctx context.Context, d *Deps) error {
	checks := d.Doctor(ctx)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return d.answerDoctor(checks, "vms cannot run here as it is")
}

// answerDoctor prints what was checked. That a check fails is a failure, and what that means is added to it.
func (d *Deps) answerDoctor(checks []preflight.Result, meaning string) error {
	failed := 0
	for _, c := range checks {
		if c.Status == preflight.Fail {
			failed++
		}
	}
	if err := d.answerChecks(doctorView{OK: failed == 0, Checks: checks}); err != nil || failed == 0 {
		return err
	}
	plural := "checks fail"
	if failed == 1 {
		plural = "check fails"
	}
	return fault.New(fault.Unavailable, "%d %s: %s", failed, plural, meaning)
}

func (d *Deps) answerChecks(view doctorView) error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(view)
	}
	marks := make([]term.Mark, 0, len(view.Checks))
	for _, c := range view.Checks {
		marks = append(marks, term.Mark{Sign: string(c.Status), Name: c.ID, Text: c.Detail, Hint: c.Hint})
	}
	return d.Term.Marks(marks, term.PaintBy([]string{string(preflight.OK)}, []string{string(preflight.Warn)}, []string{string(preflight.Fail)}))
}
