package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

// newSnapshot is the group of the commands about snapshots.
func newSnapshot(d *Deps) *cobra.Command {
	cmd := group("snapshot", "VMs as they were", `List, show and remove snapshots: VMs as they were at an instant. "vm snapshot" takes one, "vm restore" and "vm rewind" bring
a VM back to one.`)
	cmd.Example = "  banger vm snapshot dev green\n  banger snapshot list dev\n  banger vm restore dev green"
	cmd.AddCommand(newSnapshotList(d), newSnapshotShow(d), newSnapshotRemove(d))
	return cmd
}

type snapshotView struct {
	VM            string     `json:"vm"`
	VMID          string     `json:"vm_id"`
	Name          string     `json:"name"`
	Description   string     `json:"description,omitempty"`
	Parent        string     `json:"parent,omitempty"`
	Kind          string     `json:"kind,omitempty"`
	Automatic     bool       `json:"automatic"`
	Back          int32      `json:"back,omitempty"` // of an automatic one: 1 is the newest
	Current       bool       `json:"current"`
	CreatedAt     *time.Time `json:"created_at,omitempty"`
	CPUs          uint32     `json:"cpus,omitempty"`
	MemoryBytes   uint64     `json:"memory_bytes,omitempty"`
	DiskBytes     uint64     `json:"disk_bytes,omitempty"`
	MemoryUsed    uint64     `json:"memory_used_bytes"`
	DiskUsed      uint64     `json:"disk_used_bytes"`
	UsedBytes     uint64     `json:"used_bytes"`
	SharedBytes   uint64     `json:"shared_bytes"`
	PausedMS      float64    `json:"paused_ms,omitempty"`
	Problem       string     `json:"problem,omitempty"`
	MemoryProblem string     `json:"memory_problem,omitempty"`
	Dir           string     `json:"dir,omitempty"`
}

func viewSnapshot(s *bangerv1.Snapshot) snapshotView {
	return snapshotView{
		VM: s.GetVm(), VMID: s.GetVmId(), Name: s.GetName(), Description: s.GetDescription(), Parent: s.GetParent(), Kind: s.GetKind(),
		Automatic: s.GetAuto(), Back: s.GetBack(), Current: s.GetCurrent(), CreatedAt: at(s.GetCreatedAtMs()), CPUs: s.GetSpec().GetCpus(),
		MemoryBytes: s.GetSpec().GetMemoryBytes(), DiskBytes: s.GetSpec().GetDiskBytes(), MemoryUsed: s.GetMemoryBytes(), DiskUsed: s.GetDiskBytes(),
		UsedBytes: s.GetUsedBytes(), SharedBytes: s.GetSharedBytes(), PausedMS: float64(s.GetStillUs()) / 1000, Problem: s.GetProblem(),
		MemoryProblem: s.GetMemoryProblem(), Dir: s.GetDir(),
	}
}

func newSnapshotList(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "list [NAME]", Aliases: []string{"ls"}, Short: "List snapshots",
		Long: `List the snapshots of a VM, or of all, the oldest first. PARENT is the snapshot that the VM's state went back to when one
was taken, NOW marks the one that its present state goes back to. BACK is what "vm rewind --to" takes. SIZE is what it takes on
the disk; of that, SHARED are blocks that the VM or another snapshot may have as well: they come free with the last of them.`,
		Example: "  banger snapshot list\n  banger snapshot list dev\n  banger snapshot list dev --format json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneVM(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := ""
			if len(args) > 0 {
				ref = args[0]
			}
			return runSnapshotList(cmd.Context(), ref, d)
		},
		ValidArgsFunction: completeOneVM(d),
	}
}

func runSnapshotList(ctx context.Context, ref string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := message(c.Snapshots.List(ctx, connect.NewRequest(&bangerv1.ListSnapshotsRequest{Ref: ref})))
	if err != nil {
		return err
	}
	all := resp.GetSnapshots()
	if d.Term.JSON() {
		return d.Term.WriteJSON(views(all, viewSnapshot))
	}
	if err := d.Term.Table(snapshotTable(all, ref == "", time.Now())); err != nil || len(all) == 0 {
		return err
	}
	d.Term.Note("%s", snapshotTotal(all))
	return nil
}

// snapshotTotal is what snapshots take altogether.
func snapshotTotal(all []*bangerv1.Snapshot) string {
	var used, shared uint64
	for _, s := range all {
		used, shared = used+s.GetUsedBytes(), shared+s.GetSharedBytes()
	}
	text := strconv.Itoa(len(all)) + " snapshots, " + vm.FormatSize(used)
	if len(all) == 1 {
		text = "1 snapshot, " + vm.FormatSize(used)
	}
	if shared > 0 {
		text += ", up to " + vm.FormatSize(shared) + " of it shared"
	}
	return text
}

func snapshotTable(all []*bangerv1.Snapshot, ofAll bool, now time.Time) term.Table {
	table := term.Table{Columns: []term.Column{
		{Title: "NAME", Fixed: true}, {Title: "PARENT", Rank: 4}, {Title: "KIND", Fixed: true, Rank: 5}, {Title: "BACK", Right: true, Fixed: true, Rank: 2},
		{Title: "TAKEN", Fixed: true}, {Title: "SIZE", Right: true, Fixed: true}, {Title: "SHARED", Right: true, Fixed: true, Rank: 6},
		{Title: "NOW", Fixed: true, Rank: 3}, {Title: "DESCRIPTION", Rank: 1},
	}}
	if ofAll {
		table.Columns = append([]term.Column{{Title: "VM", Fixed: true}}, table.Columns...)
	}
	for _, s := range all {
		note, back, current, taken := s.GetDescription(), "-", "", "-"
		if s.GetCreatedAtMs() > 0 {
			taken = age(max(now.Sub(time.UnixMilli(s.GetCreatedAtMs())), 0)) + " ago"
		}
		if s.GetProblem() != "" {
			note = s.GetProblem()
		}
		if s.GetBack() > 0 {
			back = strconv.Itoa(int(s.GetBack()))
		}
		if s.GetCurrent() {
			current = "*"
		}
		row := []string{
			s.GetName(), orDash(s.GetParent()), orDash(s.GetKind()), back, taken,
			vm.FormatSize(s.GetUsedBytes()), vm.FormatSize(s.GetSharedBytes()), current, note,
		}
		if ofAll {
			row = append([]string{s.GetVm()}, row...)
		}
		table.Rows = append(table.Rows, row)
	}
	return table
}

func newSnapshotShow(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME SNAPSHOT", Short: "Show all about a snapshot",
		Long:    "Show what a snapshot of a VM is, where it comes from, and whether it can be restored on this host.",
		Example: "  banger snapshot show dev green\n  banger snapshot show dev green --format json",
		Args:    vmAndSnapshot(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotShow(cmd.Context(), args[0], args[1], d)
		},
		ValidArgsFunction: completeVMThenSnapshots(d, 1),
	}
}

func runSnapshotShow(ctx context.Context, ref, name string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := message(c.Snapshots.Get(ctx, connect.NewRequest(&bangerv1.GetSnapshotRequest{Ref: ref, Name: name})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewSnapshot(s))
	}
	return d.Term.Pairs(snapshotPairs(s))
}

// snapshotPairs is what show prints; what is empty is left out.
func snapshotPairs(s *bangerv1.Snapshot) [][2]string {
	spec := s.GetSpec()
	restorable := "yes"
	switch {
	case s.GetProblem() != "":
		restorable = "no: " + s.GetProblem()
	case s.GetMemoryProblem() != "":
		restorable = "its disk only: " + s.GetMemoryProblem()
	}
	size := vm.FormatSize(s.GetUsedBytes())
	if s.GetSharedBytes() > 0 {
		size += ", up to " + vm.FormatSize(s.GetSharedBytes()) + " of it shared"
	}
	pairs := [][2]string{
		{"name", s.GetName()}, {"vm", s.GetVm()}, {"description", s.GetDescription()}, {"kind", s.GetKind()}, {"automatic", yes(s.GetAuto())},
		{"back", positive(s.GetBack())}, {"parent", s.GetParent()}, {"now", yes(s.GetCurrent())}, {"taken", localTime(s.GetCreatedAtMs())}, {"size", size},
	}
	if s.GetKind() == "memory" {
		pairs = append(pairs, [2]string{"memory", vm.FormatSize(s.GetMemoryBytes()) + " of " + vm.FormatSize(spec.GetMemoryBytes())})
	}
	if spec.GetDiskBytes() > 0 {
		pairs = append(pairs, [2]string{"disk", vm.FormatSize(s.GetDiskBytes()) + " of " + vm.FormatSize(spec.GetDiskBytes())},
			[2]string{"cpus", strconv.Itoa(int(spec.GetCpus()))}, [2]string{"image", spec.GetImage()})
	}
	if s.GetStillUs() > 0 {
		pairs = append(pairs, [2]string{"guest paused", fmt.Sprintf("%.1f ms", float64(s.GetStillUs())/1000)})
	}
	pairs = append(pairs, [2]string{"can be restored", restorable}, [2]string{"directory", s.GetDir()})
	return slices.DeleteFunc(pairs, func(p [2]string) bool { return p[1] == "" })
}

func newSnapshotRemove(d *Deps) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "rm [flags] NAME SNAPSHOT...", Aliases: []string{"remove"}, Short: "Remove snapshots",
		Long: `Remove snapshots of a VM. Those that were taken after one stay complete: they get its parent. A VM that was restored from
one and runs goes on.`,
		Example: "  banger snapshot rm dev green\n  banger snapshot rm --all dev",
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return oneVM(cmd, args)
			}
			if err := someVMs(cmd, args); err != nil {
				return err
			}
			if len(args) == 1 {
				return fault.New(fault.Invalid, "%s needs the name of a snapshot", cmd.CommandPath()).WithHint("banger snapshot list %s", args[0])
			}
			return noEmpty(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotRemove(cmd.Context(), args[0], unique(args[1:]), all, d)
		},
		ValidArgsFunction: completeVMThenSnapshots(d, -1),
	}
	cmd.Flags().BoolVar(&all, "all", false, "all of the vm's")
	return cmd
}

// removedSnapshotView is one removed snapshot in JSON.
type removedSnapshotView struct {
	VM         string `json:"vm"`
	Name       string `json:"name"`
	FreedBytes uint64 `json:"freed_bytes"`
}

func runSnapshotRemove(ctx context.Context, ref string, names []string, all bool, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if all {
		resp, err := message(c.Snapshots.List(ctx, connect.NewRequest(&bangerv1.ListSnapshotsRequest{Ref: ref})))
		if err != nil {
			return err
		}
		names = views(resp.GetSnapshots(), (*bangerv1.Snapshot).GetName)
	}
	gone := []removedSnapshotView{}
	var failures []error
	for _, name := range names {
		resp, err := message(c.Snapshots.Remove(ctx, connect.NewRequest(&bangerv1.RemoveSnapshotRequest{Ref: ref, Name: name})))
		if err != nil {
			failures = append(failures, err)
			continue
		}
		gone = append(gone, removedSnapshotView{resp.GetVm(), resp.GetName(), resp.GetFreedBytes()})
		if !d.Term.JSON() {
			if err := d.Term.Answer("%s", resp.GetName()); err != nil {
				return err
			}
		}
	}
	if d.Term.JSON() {
		if err := d.Term.WriteJSON(gone); err != nil {
			return err
		}
	}
	return d.several(failures)
}

// snapshotsOf returns the snapshots of a VM for completion.
func snapshotsOf(cmd *cobra.Command, d *Deps, ref string, word func(*bangerv1.Snapshot) string) []string {
	return ask(cmd, d, func(ctx context.Context, c *client.Client) (out []string) {
		resp, err := message(c.Snapshots.List(ctx, connect.NewRequest(&bangerv1.ListSnapshotsRequest{Ref: ref})))
		if err != nil {
			return nil
		}
		for _, s := range resp.GetSnapshots() {
			if w := word(s); w != "" {
				out = append(out, cobra.CompletionWithDesc(w, "taken "+localTime(s.GetCreatedAtMs())+" "+s.GetDescription()))
			}
		}
		return out
	})
}

// completeVMThenSnapshots completes a VM and then its snapshots, at most so many of them.
func completeVMThenSnapshots(d *Deps, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return vmNames(cmd, d, nil), cobra.ShellCompDirectiveNoFileComp
		case most >= 0 && len(args) > most:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return snapshotsOf(cmd, d, args[0], func(s *bangerv1.Snapshot) string {
			if slices.Contains(args[1:], s.GetName()) {
				return ""
			}
			return s.GetName()
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeCheckpoints completes how many checkpoints back one can go with the VM that is named already.
func completeCheckpoints(d *Deps) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return snapshotsOf(cmd, d, args[0], func(s *bangerv1.Snapshot) string { return positive(s.GetBack()) }), cobra.ShellCompDirectiveNoFileComp
	}
}
