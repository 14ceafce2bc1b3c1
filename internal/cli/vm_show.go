package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"
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
	snaps, err := message(c.Snapshots.List(ctx, connect.NewRequest(&bangerv1.ListSnapshotsRequest{Ref: m.GetId()})))
	if err != nil {
		return err
	}
	if d.Term.JSON() {
		return d.Term.WriteJSON(showView{viewVM(m, time.Now()), views(snaps.GetSnapshots(), viewSnapshot)})
	}
	pairs := vmPairs(m, time.Now())
	return d.Term.Pairs(slices.Insert(pairs, len(pairs)-1, snapshotPair(snaps.GetSnapshots())...)) // before its directory
}

// showView is what show says in JSON.
type showView struct {
	vmView
	Snapshots []snapshotView `json:"snapshots"`
}

// snapshotPair names the snapshots of a VM and says what they take.
func snapshotPair(all []*bangerv1.Snapshot) [][2]string {
	if len(all) == 0 {
		return nil
	}
	names := strings.Join(views(all, (*bangerv1.Snapshot).GetName), ", ")
	return [][2]string{{"snapshots", names + " (" + snapshotTotal(all) + ")"}}
}

// vmPairs is what show prints; what is empty is left out.
func vmPairs(m *bangerv1.VM, now time.Time) [][2]string {
	s := m.GetSpec()
	pairs := [][2]string{
		{"name", s.GetName()},
		{"id", m.GetId()},
		{"state", m.GetState()},
		{"reason", m.GetReason()},
		{"description", s.GetDescription()},
		{"labels", labelText(s.GetLabels())},
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
		{"started from", startedFrom(m)},
		{"templates", m.GetTemplateFault()},
		{"forked from", forkedFrom(m.GetForkedFrom())},
		{"not to be forked", s.GetNoFork()},
		{"pid", positive(m.GetVmmPid())},
		{"supervisor pid", positive(m.GetSupervisorPid())},
		{"created", localTime(m.GetCreatedAtMs())},
		{"started", localTime(m.GetStartedAtMs())},
		{"uptime", ""},
		{"stopped", localTime(m.GetStoppedAtMs())},
		{"last used", lastUsed(m, now)},
		{"open sessions", positive(m.GetOpenSessions())},
		{"removed on exit", yes(s.GetRemoveOnExit())},
		{"restart", restartText(m)},
		{"auto-stop", autoStopText(s.GetAutoStopMs())},
		{"at the next start", strings.Join(m.GetPending(), ", ")},
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

// startedFrom says what a VM that runs was started from, if that is a template.
func startedFrom(m *bangerv1.VM) string {
	if m.GetFromTemplate() == "" {
		return ""
	}
	return "template " + m.GetFromTemplate()
}

// forkedFrom says what a VM was forked from.
func forkedFrom(o *bangerv1.VMOrigin) string {
	if o == nil {
		return ""
	}
	return o.GetName() + " (" + o.GetId() + ") at " + localTime(o.GetAtMs())
}

// lastUsed is when somebody last used the VM, and how long ago that is.
func lastUsed(m *bangerv1.VM, now time.Time) string {
	if m.GetLastActiveMs() == 0 {
		return ""
	}
	return localTime(m.GetLastActiveMs()) + " (" + idle(m, now) + " ago)"
}

// idle is how long nobody has used the VM; "" when nobody ever has.
func idle(m *bangerv1.VM, now time.Time) string {
	if m.GetLastActiveMs() == 0 {
		return ""
	}
	return age(now.Sub(time.UnixMilli(m.GetLastActiveMs())))
}

// restartText is the restart policy and what it has done.
func restartText(m *bangerv1.VM) string {
	policy := m.GetSpec().GetRestart()
	if m.GetRestarts() == 0 {
		if policy == string(vm.RestartNo) {
			return ""
		}
		return policy
	}
	return policy + " (" + strconv.Itoa(int(m.GetRestarts())) + " times so far)"
}

func autoStopText(ms int64) string {
	if ms == 0 {
		return ""
	}
	return "after " + age(time.Duration(ms)*time.Millisecond) + " without use"
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
