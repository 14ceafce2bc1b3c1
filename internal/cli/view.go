package cli

import (
	"strconv"
	"time"

	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

// The JSON shapes of answers. They are stable: fields are added, never renamed or removed. Times are RFC 3339 in UTC;
// what is not known is absent.

type vmView struct {
	ID            string            `json:"id"`
	Name          string            `json:"name"`
	State         string            `json:"state"`
	Reason        string            `json:"reason,omitempty"`
	Image         string            `json:"image"`
	ImageDigest   string            `json:"image_digest,omitempty"`
	Kernel        string            `json:"kernel_version,omitempty"`
	CPUs          uint32            `json:"cpus"`
	MemoryBytes   uint64            `json:"memory_bytes"`
	DiskBytes     uint64            `json:"disk_bytes"`
	DiskUsedBytes uint64            `json:"disk_used_bytes"`
	RemoveOnExit  bool              `json:"remove_on_exit"`
	User          string            `json:"user,omitempty"`
	Workdir       string            `json:"workdir,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	VMM           string            `json:"vmm,omitempty"`
	Accelerator   string            `json:"accelerator,omitempty"`
	Address       string            `json:"address,omitempty"`
	VMMPID        int32             `json:"vmm_pid,omitempty"`
	SupervisorPID int32             `json:"supervisor_pid,omitempty"`
	ExitCode      int32             `json:"exit_code,omitempty"`
	CreatedAt     *time.Time        `json:"created_at,omitempty"`
	StartedAt     *time.Time        `json:"started_at,omitempty"`
	StoppedAt     *time.Time        `json:"stopped_at,omitempty"`
	UptimeSeconds int64             `json:"uptime_seconds,omitempty"`
	Dir           string            `json:"dir,omitempty"`
	Description   string            `json:"description,omitempty"`
	Restart       string            `json:"restart,omitempty"`
	Restarts      int32             `json:"restarts,omitempty"`
	AutoStop      float64           `json:"auto_stop_seconds,omitempty"`
	LastActiveAt  *time.Time        `json:"last_active_at,omitempty"`
	OpenSessions  int32             `json:"open_sessions,omitempty"`
	Pending       []string          `json:"pending,omitempty"` // settings that take effect at the next start
	FromTemplate  string            `json:"from_template,omitempty"`
	TemplateFault string            `json:"template_fault,omitempty"`
	NoFork        string            `json:"no_fork,omitempty"`
	ForkedFrom    *originView       `json:"forked_from,omitempty"`
}

// originView is the VM that another one was forked from, as it was then.
type originView struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	At      *time.Time `json:"at,omitempty"`
	StillUS int64      `json:"still_us,omitempty"` // for how long it stood still
}

func viewOrigin(o *bangerv1.VMOrigin) *originView {
	if o == nil {
		return nil
	}
	return &originView{ID: o.GetId(), Name: o.GetName(), At: at(o.GetAtMs()), StillUS: o.GetStillUs()}
}

func viewVM(m *bangerv1.VM, now time.Time) vmView {
	s := m.GetSpec()
	return vmView{
		ID: m.GetId(), Name: s.GetName(), State: m.GetState(), Reason: m.GetReason(),
		Image: s.GetImage(), ImageDigest: m.GetImageDigest(), Kernel: m.GetKernelVersion(),
		CPUs: s.GetCpus(), MemoryBytes: s.GetMemoryBytes(), DiskBytes: s.GetDiskBytes(), DiskUsedBytes: m.GetDiskUsedBytes(),
		RemoveOnExit: s.GetRemoveOnExit(), User: s.GetUser(), Workdir: s.GetWorkdir(), Labels: s.GetLabels(),
		VMM: m.GetVmm(), Accelerator: m.GetAccelerator(), Address: m.GetAddress(),
		VMMPID: m.GetVmmPid(), SupervisorPID: m.GetSupervisorPid(), ExitCode: m.GetExitCode(),
		CreatedAt: at(m.GetCreatedAtMs()), StartedAt: at(m.GetStartedAtMs()), StoppedAt: at(m.GetStoppedAtMs()),
		UptimeSeconds: int64(uptime(m, now).Seconds()), Dir: m.GetDir(),
		Description: s.GetDescription(), Restart: s.GetRestart(), Restarts: m.GetRestarts(), AutoStop: float64(s.GetAutoStopMs()) / 1000,
		LastActiveAt: at(m.GetLastActiveMs()), OpenSessions: m.GetOpenSessions(), Pending: m.GetPending(),
		FromTemplate: m.GetFromTemplate(), TemplateFault: m.GetTemplateFault(),
		NoFork: s.GetNoFork(), ForkedFrom: viewOrigin(m.GetForkedFrom()),
	}
}

// at is a time of the wire, nil for none.
func at(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

// uptime is how long the VM has been running, 0 if it does not.
func uptime(m *bangerv1.VM, now time.Time) time.Duration {
	if m.GetStartedAtMs() == 0 {
		return 0
	}
	return max(now.Sub(time.UnixMilli(m.GetStartedAtMs())), 0)
}

// age is a duration in whole seconds, for people.
func age(d time.Duration) string {
	if d < 10*time.Second {
		return strconv.Itoa(int(d.Seconds())) + "s"
	}
	return term.FormatDuration(d)
}

// views maps each message of a list to its view. The result is never nil: an empty list is [] in JSON.
func views[M, V any](messages []M, view func(M) V) []V {
	out := make([]V, 0, len(messages))
	for _, m := range messages {
		out = append(out, view(m))
	}
	return out
}
