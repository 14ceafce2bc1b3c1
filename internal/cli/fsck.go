package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

func newFsck(d *Deps) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "fsck [flags]",
		Short: "Look for what does not fit together, and mend it",
		Long: `Compare the database, the directories and the processes of VMs, and say what does not fit together: disks that no VM
has, VMs whose disk is gone, processes that belong to nobody. --repair mends what can be mended. No disk is ever deleted.

The exit code is 0 when there is nothing to mend or all of it was mended, else 243.`,
		Example: "  banger fsck\n  banger fsck --repair\n  banger fsck --format json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runFsck(cmd.Context(), repair, d) },
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "mend what can be mended")
	return cmd
}

// fsckView is the JSON form of fsck.
type fsckView struct {
	OK       bool          `json:"ok"` // nothing is left to mend
	Findings []findingView `json:"findings"`
}

type findingView struct {
	Kind     string `json:"kind"`
	Object   string `json:"object"`
	Message  string `json:"message"`
	Repair   string `json:"repair,omitempty"`
	Repaired bool   `json:"repaired"`
}

func runFsck(ctx context.Context, repair bool, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Fsck.Check(ctx, connect.NewRequest(&bangerv1.FsckRequest{Repair: repair})))
	if err != nil {
		return err
	}
	left, mendable := 0, 0
	for _, f := range resp.GetFindings() {
		if f.GetRepaired() {
			continue
		}
		left++
		if f.GetRepair() != "" && !repair {
			mendable++
		}
	}
	if err := d.answerFindings(resp.GetFindings(), left); err != nil || left == 0 {
		return err
	}
	what := "findings are not repaired"
	if left == 1 {
		what = "finding is not repaired"
	}
	f := fault.New(fault.Conflict, "%d %s", left, what)
	if mendable > 0 {
		return f.WithHint("banger fsck --repair")
	}
	return f
}

func (d *Deps) answerFindings(findings []*bangerv1.Finding, left int) error {
	if d.Term.JSON() {
		return d.Term.WriteJSON(fsckView{OK: left == 0, Findings: views(findings, func(f *bangerv1.Finding) findingView {
			return findingView{f.GetKind(), f.GetObject(), f.GetMessage(), f.GetRepair(), f.GetRepaired()}
		})})
	}
	if len(findings) == 0 {
		return d.Term.Answer("everything fits together")
	}
	marks := make([]term.Mark, 0, len(findings))
	for _, f := range findings {
		mark := term.Mark{Sign: "found", Name: f.GetKind(), Text: f.GetMessage()}
		if object := f.GetObject(); object != "" {
			mark.Text = object + ": " + mark.Text
		}
		if f.GetRepaired() {
			mark.Sign = "mended"
		}
		if repair := f.GetRepair(); repair != "" {
			mark.Text += " (repair: " + repair + ")"
		}
		marks = append(marks, mark)
	}
	return d.Term.Marks(marks, term.PaintBy([]string{"mended"}, []string{"found"}, nil))
}
