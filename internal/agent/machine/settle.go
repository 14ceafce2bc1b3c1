package machine

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// settleDelay is how long after a command its writes go to disk. Commands in quick succession share one sync.
const settleDelay = 50 * time.Millisecond

// Settle has what was written so far put on disk soon, and returns at once. A user who saw a command succeed expects
// its files to be there whatever happens to the VMM after; left alone, the kernel may keep them to itself for 30 s.
func (m *Machine) Settle() { m.settling.Reset(settleDelay) }

func (m *Machine) settle() {
	m.mu.Lock() // Shutdown, which would wait here, syncs as well
	defer m.mu.Unlock()
	if m.data < 0 || m.build >= 0 { // what a build wrote is fetched, or lost with the guest
		return
	}
	if err := m.syncData(); err != nil {
		m.Error("sync of the data disk: " + err.Error())
	}
}

// Sync implements agent.System. It does not hold mu while it writes: a guest that is saved before it is done would have
// Wake wait for it.
func (m *Machine) Sync() error {
	m.mu.Lock()
	fd, err := m.openData()
	m.mu.Unlock()
	return syncAndClose(fd, err)
}

// syncData has the data disk's file system written out. m.mu is held.
func (m *Machine) syncData() error { return syncAndClose(m.openData()) }

// syncAndClose takes what openData returns.
func syncAndClose(fd int, err error) error {
	if err != nil {
		return os.NewSyscallError("open the data disk", err)
	}
	defer func() { _ = unix.Close(fd) }()
	return os.NewSyscallError("syncfs", unix.Syncfs(fd))
}

// writeBackEarly bounds what is lost with a killed VMM while a command runs: files are written back when they are
// 3 s old, not 30 s.
func writeBackEarly() {
	for name, value := range map[string]string{"dirty_expire_centisecs": "300", "dirty_writeback_centisecs": "100"} {
		_ = os.WriteFile("/proc/sys/vm/"+name, []byte(value), 0o644) // a kernel without the knob keeps its own ways
	}
}
