package cli

import (
	"github.com/spf13/cobra"

	"banger/internal/fault"
)

// newSupervisor is what the daemon starts for each VM; it is not for people.
func newSupervisor(d *Deps) *cobra.Command {
	cmd := group("supervisor", "The process that runs one vm", "The daemon starts a supervisor for each VM that runs.")
	cmd.Hidden = true
	cmd.Example = "  banger supervisor run --dir DIRECTORY"
	var dir string
	run := &cobra.Command{
		Use: "run --dir DIRECTORY", Short: "Run the vm whose directory it is", Long: "Run the VM whose directory it is until it ends.",
		Example: "  banger supervisor run --dir DIRECTORY",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return fault.New(fault.Invalid, "%s needs --dir", cmd.CommandPath())
			}
			return d.Supervisor(cmd.Context(), dir)
		},
	}
	run.Flags().StringVar(&dir, "dir", "", "the directory of the vm")
	cmd.AddCommand(run)
	return cmd
}
