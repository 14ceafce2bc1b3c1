// Package machine is the guest as its PID 1 sees it: devices and modules of the initramfs, the channel to the host,
// identity and disks when the host sends them, and the way down.
//
// Nothing before Configure depends on which VM this is, so that a snapshot of the waiting agent serves every VM.
// Configure then mounts the image read-only, lays an overlay of the VM's own disk over it and makes that the root:
//
//	image (ext4, read-only)      lower layer of /
//	data:root/upper, root/work   upper layer of /
//	data:keep/NAME               /root, /home, /workspace, /var/lib/docker: see keeps
//	modules (ext4, read-only)    /lib/modules/RELEASE
//
// A guest of Config.Build has no kept directories, and its root another layer: see build.go.
//
// The program that uses this package is PID 1 of a virtual machine. It must not be used anywhere else: it mounts,
// kills and reboots.
package machine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// Machine is the guest. It implements agent.System.
type Machine struct {
	kmsg     *os.File // nil if there is none
	powerOff bool     // the machine can power itself off; fixed by Boot

	shutdownOnce sync.Once
	settling     *time.Timer // runs settle; never nil

	mu sync.Mutex // held by Configure and by the last steps of Shutdown; guards the fields below
	// initramfs are the files that nobody needs once the root is switched.
	initramfs []string
	// The roots of mounts that have no path any more once the root is switched; -1 before.
	oldRoot, image, data, modules int
	build                         int // the tmpfs of a build, -1 in other guests
	switched                      bool
	dataSerial                    string  // of the data disk
	nic                           string  // "" for none
	applied                       network // what nic was set up with
	lacksLinkLocal                bool    // nic gets its IPv6 link-local address after the next Wake
}

// New returns the machine of this process, which is PID 1.
func New() *Machine {
	m := &Machine{oldRoot: -1, image: -1, data: -1, modules: -1, build: -1}
	m.settling = time.AfterFunc(time.Hour, m.settle)
	m.settling.Stop()
	return m
}

// Boot mounts what the kernel offers and loads the modules of the initramfs.
func (m *Machine) Boot() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mnt := range bootMounts() {
		if err := mnt.do(); err != nil {
			return err
		}
	}
	// Without it nothing is logged but by what the kernel gave PID 1 as standard error.
	m.kmsg, _ = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	m.powerOff = canPowerOff() // /sys is gone when it matters
	raiseLimits()
	return m.loadModules()
}

// step is one part of Configure.
type step struct {
	name string
	do   func() error
}

// Configure gives the guest its identity and its disks and makes the image its root. After an error the guest is of
// no use but to be shut down, which unmounts whatever was mounted.
func (m *Machine) Configure(ctx context.Context, config agentwire.Config) (agentwire.Configured, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := check(config); err != nil {
		return agentwire.Configured{}, err
	}
	result := agentwire.Configured{Millis: map[string]int64{}}
	for _, s := range []step{
		{"identity", func() error { return setIdentity(config) }},
		{"disks", func() error { return m.mountDisks(ctx, config) }},
		{"root", m.switchRoot},
		{"system", func() error { return mountSystem(config.Build) }},
		{"keep", func() error { return m.mountKeeps(config) }},
		{"modules", func() error { return m.mountModules(config.Build) }},
		{"files", func() error { return m.writeFiles(config) }},
		{"workdir", func() error { m.makeWorkdir(config.Workdir); return nil }},
		{"network", func() error { return m.setNetwork(ctx, config.Network) }},
	} {
		began := time.Now()
		if err := s.do(); err != nil {
			return agentwire.Configured{}, fault.Context(err, "guest %s", s.name)
		}
		result.Millis[s.name] = time.Since(began).Milliseconds()
	}
	return result, nil
}

// makeWorkdir makes the directory that commands start in, as for a container, if the image has none.
func (m *Machine) makeWorkdir(dir string) {
	if dir == "" {
		return
	}
	if err := makeDir(filepath.Join("/", dir), 0o755); err != nil {
		m.Error("working directory: " + err.Error()) // as does every command that is to start there
	}
}

// check refuses what would fail halfway.
func check(config agentwire.Config) error {
	switch {
	case config.Hostname == "":
		return fault.New(fault.Invalid, "the configuration has no hostname")
	case len(config.Hostname) > 64:
		return fault.New(fault.Invalid, "hostname %q is longer than 64 bytes", config.Hostname)
	case config.Disks.Image == "" || config.Disks.Data == "":
		return fault.New(fault.Invalid, "the configuration names no image or no data disk")
	}
	for _, kv := range config.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" {
			return fault.New(fault.Invalid, "environment %q is not of the form KEY=VALUE", kv)
		}
	}
	if config.Network != nil {
		_, err := parseNetwork(config.Network)
		return err
	}
	return nil
}

// raiseLimits lets the agent, and by inheritance every command, open more files than the kernel's first process may.
// The soft limit is not the hard one: programs that walk over all possible descriptors would take for ever.
func raiseLimits() {
	// Not by package unix: syscall's own version makes the Go runtime pass the limit on to children.
	_ = setFileLimit(65536, 524288)
}

// release returns the kernel's release, the name of its directory of modules.
func release() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

// poll calls f until it says that it is done, has an error, or the time is over (done is false then).
func poll(ctx context.Context, limit time.Duration, f func() (done bool, err error)) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if done, err := f(); done || err != nil {
			return done, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(pause):
		}
	}
}
