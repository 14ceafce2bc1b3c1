package machine

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/agent/tool"
	"banger/internal/agentwire"
	"banger/internal/fault"
)

// Tool says how one of the agent's own programs is started; see agentwire.ExecStart.Tool. For ToolChanges it ends every
// other process first, as the end of a container does: an image must not hold what one of them has half written.
func (m *Machine) Tool(name string) (tool.Program, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dirs := []string{""}
	switch name {
	case agentwire.ToolArchive:
	case agentwire.ToolChanges:
		if m.build < 0 {
			return tool.Program{}, fault.New(fault.Conflict, "the guest was not started for a build: its changes are no layer of an image")
		}
		_ = syscall.Kill(-1, syscall.SIGKILL)
		if !alone(killGrace) {
			return tool.Program{}, fault.New(fault.Conflict, "a process of the build does not end")
		}
		dirs = append(dirs, changesDir+"/"+filepath.Base(upperDir))
	default:
		return tool.Program{}, fault.New(fault.Invalid, "there is no tool %q in the guest", name)
	}
	// The agent's file has no path any more, but /proc knows it.
	p := tool.Program{File: "/proc/self/exe", Args: []string{"banger-agent", name}}
	for i, dir := range dirs {
		fd, err := unix.Openat([]int{m.image, m.data}[i], filepath.Join(".", dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			p.Close()
			return tool.Program{}, fault.Wrap(fault.Internal, err, "guest %s", name)
		}
		p.Files = append(p.Files, os.NewFile(uintptr(fd), name))
	}
	return p, nil
}
