package cli

import (
	"context"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/vm"
	bangerv1 "banger/proto/banger/v1"
)

func newShow(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show all about a vm",
		Long:              "Show what a VM is, what state it is in, and why.",
		Example:           "  banger vm show dev\n  banger vm show dev --format json",
		Args:              oneVM,
		RunE:              func(cmd *cobra.Command, args []string) error { return runShow(cmd.Context(), args[0], d) },
		ValidArgsFunction: completeOneVM(d),
	}
}

func runShow(ctx context.Context, ref string, d *Deps) error {
	c, err := d.Connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := message(c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetVMRequest{Ref: ref})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(viewVM(m, time.Now()))
	}
	return d.Term.Pairs(vmPairs(m, time.Now()))
}

// vmPairs is what show prints; what is empty is left out.
func vmPairs(m *bangerv1.VM, now time.Time) [][2]string {
	s := m.GetSpec()
	pairs := [][2]string{
		{"name", s.GetName()},
		{"id", m.GetId()},
		{"state", m.GetState()},
		{"reason", m.GetReason()},
		{"image", s.GetImage()},
		{"image digest", m.GetImageDigest()},
		{"kernel", m.GetKernelVersion()},
		{"cpus", strconv.Itoa(int(s.GetCpus()))},
		{"memory", vm.FormatSize(s.GetMemoryBytes())},
		{"disk", vm.FormatSize(s.GetDiskBytes()) + " (" + vm.FormatSize(m.GetDiskUsedBytes()) + " used on the host)"},
		{"user", s.GetUser()},
		{"workdir", s.GetWorkdir()},
		{"address", m.GetAddress()},
		{"vmm", joinNonEmpty(m.GetVmm(), m.GetAccelerator())},
		{"pid", positive(m.GetVmmPid())},
		{"supervisor pid", positive(m.GetSupervisorPid())},
		{"created", localTime(m.GetCreatedAtMs())},
		{"started", localTime(m.GetStartedAtMs())},
		{"uptime", ""},
		{"stopped", localTime(m.GetStoppedAtMs())},
		{"removed on exit", yes(s.GetRemoveOnExit())},
		{"directory", m.GetDir()},
	}
	out := pairs[:0]
	for _, p := range pairs {
		if p[0] == "uptime" && m.GetStartedAtMs() > 0 {
			p[1] = age(uptime(m, now))
		}
		if p[1] != "" {
			out = append(out, p)
		}
	}
	return out
}

func joinNonEmpty(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ", " + b
}

func positive(n int32) string {
	if n <= 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func localTime(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).Format("2006-01-02 15:04:05")
}
