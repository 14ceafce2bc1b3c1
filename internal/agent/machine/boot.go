package machine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// moduleList is the file of the initramfs that names the modules to load: a path per line, in order.
const moduleList = "/banger/modules"

// portTimeout is how long the channel's device may take to appear.
const portTimeout = 20 * time.Second

// loadModules loads the modules of the initramfs. An initramfs without a list has none to load.
func (m *Machine) loadModules() error {
	list, err := os.ReadFile(moduleList)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "modules")
	}
	m.initramfs = []string{"/init", moduleList}
	for line := range strings.Lines(string(list)) {
		path := strings.TrimSpace(line)
		if path == "" {
			continue
		}
		if err := loadModule(path); err != nil {
			return fault.Wrap(fault.Unavailable, err, "load module %s", path)
		}
		m.initramfs = append(m.initramfs, path)
	}
	return nil
}

// loadModule loads one module file. One that is there already is fine. An error of ENOENT means that a symbol is not
// found: the module needs one that comes later in the list.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// setFileLimit sets the limit of open files.
func setFileLimit(soft, hard uint64) error {
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: soft, Max: hard})
}

// OpenChannel opens the channel to the host, for which it waits.
func (m *Machine) OpenChannel(ctx context.Context) (*os.File, error) {
	var port *os.File
	last := errors.New("no such virtio port")
	found, err := poll(ctx, portTimeout, func() (bool, error) {
		name := findPort()
		if name == "" {
			return false, nil
		}
		var err error
		// Not blocking, so that the runtime polls it. The device is there a moment before it can be opened (ENXIO).
		port, err = os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			last = err
		}
		return err == nil, nil
	})
	if err != nil || !found {
		return nil, fault.Wrap(fault.Unavailable, errors.Join(err, last), "channel %s", agentwire.PortName)
	}
	return port, nil
}

// findPort returns the device of the agent's virtio port, or "".
func findPort() string {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, file := range names {
		if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == agentwire.PortName {
			return filepath.Base(filepath.Dir(file))
		}
	}
	return ""
}
