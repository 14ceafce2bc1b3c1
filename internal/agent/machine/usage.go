package machine

import (
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/agent/procfs"
	"banger/internal/agentwire"
)

const proc = procfs.Root("/proc")

// Stats implements agent.System.
func (m *Machine) Stats() (agentwire.Stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stats, err := proc.Stats(m.nic)
	if err != nil {
		return agentwire.Stats{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(m.data, &fs); err != nil {
		return agentwire.Stats{}, os.NewSyscallError("statfs", err)
	}
	stats.DataTotal = fs.Blocks * uint64(fs.Frsize)
	stats.DataUsed = (fs.Blocks - fs.Bfree) * uint64(fs.Frsize)
	return stats, nil
}

// Ports implements agent.System.
func (m *Machine) Ports() (agentwire.Ports, error) { return proc.Ports() }

// SetClock implements agent.System.
func (m *Machine) SetClock(c agentwire.Clock) error { return setClock(c.UnixNano) }
