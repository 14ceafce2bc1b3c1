package proc

import (
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// background is the lowest priority that there is.
const background = 19

// Background gives a process, of which everything is disposable, what the host's processors have left over. There is no way
// back without privileges. It is best effort; threads that the process starts later inherit it.
func Background(pid int) {
	tasks, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, background)
		}
	}
}
