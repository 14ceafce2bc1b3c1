package cli

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"banger/internal/term"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

func newPorts(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use:               "ports NAME",
		Short:             "List what listens in a running vm",
		Long:              "List the ports on which processes of a running VM listen, with the names of the processes.",
		Example:           "  banger vm ports dev\n  banger vm ports dev --format json",
		Args:              oneVM,
		RunE:              func(cmd *cobra.Command, args []string) error { return runPorts(cmd.Context(), args[0], d) },
		ValidArgsFunction: completeOneVM(d, "running"),
	}
}

type portView struct {
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
	Port     uint32 `json:"port"`
	PID      int32  `json:"pid,omitempty"`
	Process  string `json:"process,omitempty"`
}

func viewPort(p *bangerv1.Port) portView {
	return portView{p.GetProtocol(), p.GetAddress(), p.GetPort(), p.GetPid(), p.GetProcess()}
}

func runPorts(ctx context.Context, ref string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	where, err := endpoint(ctx, c, ref)
	if err != nil {
		return err
	}
	sup := vmclient.New(where.GetSocket())
	defer sup.Close()
	ports, err := sup.Ports(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(ports, func(a, b *bangerv1.Port) int {
		return cmp.Or(cmp.Compare(a.GetPort(), b.GetPort()), cmp.Compare(a.GetProtocol(), b.GetProtocol()), cmp.Compare(a.GetAddress(), b.GetAddress()))
	})
	if d.Term.JSON() {
		return d.Term.WriteJSON(views(ports, viewPort))
	}
	table := term.Table{Columns: []term.Column{
		{Title: "PORT", Right: true, Fixed: true}, {Title: "PROTOCOL", Fixed: true}, {Title: "ADDRESS", Fixed: true},
		{Title: "PID", Right: true, Fixed: true}, {Title: "PROCESS"},
	}}
	for _, p := range ports {
		table.Rows = append(table.Rows, []string{
			strconv.Itoa(int(p.GetPort())), p.GetProtocol(), p.GetAddress(), orDash(positive(p.GetPid())), orDash(p.GetProcess()),
		})
	}
	return d.Term.Table(table)
}

// orDash is s, or a dash for what is not known.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
