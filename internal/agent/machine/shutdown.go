package machine

import (
	"encoding/binary"
	"errors"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
)

const (
	// defaultGrace is what processes get when a program in the guest asks for the shutdown.
	defaultGrace = 10 * time.Second
	// killGrace is how long killed processes may take to be gone.
	killGrace = 2 * time.Second
	// unmountGrace bounds the rest: after it the guest ends whatever state its disks are in.
	unmountGrace = 15 * time.Second
	// busyGrace is how long a disk may stay in use after the processes are gone.
	busyGrace = time.Second
)

// Shutdown ends every process, unmounts the disks and powers the machine off. It does not return.
func (m *Machine) Shutdown(s agentwire.Shutdown) { m.goDown(s, m.PowerOff) }

// goDown is the way down; end, which does not return, is its last step.
func (m *Machine) goDown(s agentwire.Shutdown, end func()) {
	m.shutdownOnce.Do(func() {
		grace := max(time.Duration(s.GraceMillis)*time.Millisecond, 0)
		m.Log("the guest goes down")
		defer end() // also if what follows panics
		watchdog := time.AfterFunc(grace+killGrace+unmountGrace, m.Reset)
		defer watchdog.Stop()
		endProcesses(grace)
		unix.Sync()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.unmount()
		unix.Sync()
	})
	sleepForever() // another goroutine is at it
}

// PowerOff ends the machine at once, in the way that the VMM reports as its own doing if there is one.
func (m *Machine) PowerOff() {
	if m.powerOff {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	m.Reset()
}

// Reset ends the machine at once in the way of a guest that failed. The kernel was told to reboot by a triple fault
// and the VMM to end on a reboot: that works on machines without any power management.
func (m *Machine) Reset() {
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	m.Error("the kernel does not reboot")
	sleepForever()
}

// canPowerOff reports whether the machine has a register for that (ACPI's table FADT). Trying is not the way to find
// out: without one the kernel halts instead, from which nothing comes back.
func canPowerOff() bool {
	table, err := os.ReadFile("/sys/firmware/acpi/tables/FACP")
	return err == nil && hasPowerRegister(table)
}

// hasPowerRegister looks into a FADT for the address of the sleep control register, which hardware-reduced machines
// such as QEMU's microvm have, or of the PM1a control block, which others have.
func hasPowerRegister(fadt []byte) bool {
	const (
		pm1aControl   = 64      // 32 bits
		pm1aExtended  = 172 + 4 // the address in a generic address structure
		sleepControl  = 244 + 4 // likewise
		flags         = 112     // 32 bits
		reducedFlag   = 1 << 20 // HW_REDUCED_ACPI: there is no PM1a, whatever stands there
		shortestTable = flags + 4
	)
	le := binary.LittleEndian
	if len(fadt) < shortestTable {
		return false
	}
	extended := func(offset int) bool { return len(fadt) >= offset+8 && le.Uint64(fadt[offset:]) != 0 }
	if le.Uint32(fadt[flags:])&reducedFlag != 0 {
		return extended(sleepControl)
	}
	return le.Uint32(fadt[pm1aControl:]) != 0 || extended(pm1aExtended)
}

// sleepForever parks this goroutine. A bare select{} on the last goroutine is fatal to the Go runtime, and so would
// be to the kernel.
func sleepForever() {
	for {
		time.Sleep(time.Hour)
	}
}

// ServeSignals goes down when a program of the guest asks for it in the way of init programs: poweroff, halt and reboot
// of busybox and of systemd send PID 1 a signal. Any other signal does nothing.
func (m *Machine) ServeSignals() {
	const rtmin = 34
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM, syscall.SIGPWR,
		syscall.Signal(rtmin+3), syscall.Signal(rtmin+4), syscall.Signal(rtmin+5))
	ignored := make(chan os.Signal, 1) // signal.Ignore would be inherited by every command
	signal.Notify(ignored, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	for {
		select {
		case <-ignored:
		case sig := <-asked:
			m.Log("asked to go down by " + sig.String())
			end := m.PowerOff
			if sig == syscall.SIGTERM || sig == syscall.Signal(rtmin+5) {
				end = m.Reset // reboot
			}
			m.goDown(agentwire.Shutdown{GraceMillis: defaultGrace.Milliseconds()}, end)
		}
	}
}

// endProcesses asks every other process to end, and kills those that remain.
func endProcesses(grace time.Duration) {
	// Interactive shells heed only SIGHUP; a stopped process heeds nothing before it is continued.
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGCONT} {
		_ = syscall.Kill(-1, sig)
	}
	if alone(grace) {
		return
	}
	_ = syscall.Kill(-1, syscall.SIGKILL)
	alone(killGrace)
}

// alone waits until PID 1 has no children, which is when there are no other processes.
func alone(limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if errors.Is(err, unix.ECHILD) {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// unmount gets the data disk into a state that needs no recovery. m.mu is held.
func (m *Machine) unmount() {
	if m.switched {
		unmountUsers()
		m.leaveRoot()
	} else {
		_ = unix.Unmount(rootDir, unix.MNT_DETACH)
	}
	for _, fd := range []int{m.data, m.modules} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if m.data < 0 {
		return // never mounted
	}
	// Read-only is what counts: a mount can go and leave the file system in use.
	var err error
	for deadline := time.Now().Add(busyGrace); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Mount("", dataDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		if err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		m.Error("the data disk was not unmounted: " + err.Error())
	}
	_ = unix.Unmount(dataDir, 0)
}

// unmountUsers unmounts everything below the root but what the kernel offers, last mounted first.
func unmountUsers() {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	targets := mountPoints(string(data))
	slices.Reverse(targets)
	for _, target := range targets {
		if unix.Unmount(target, unix.UMOUNT_NOFOLLOW) != nil {
			_ = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
	}
}

// mountPoints lists what mountinfo says is mounted, in its order, without the root and the kernel's own.
func mountPoints(mountinfo string) []string {
	var targets []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		target := unescape(fields[4])
		top, _, _ := strings.Cut(strings.TrimPrefix(target, "/"), "/")
		if target == "/" || top == "dev" || top == "proc" || top == "sys" {
			continue
		}
		targets = append(targets, target)
	}
	return targets
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// leaveRoot goes back to the initramfs and takes the root away from above it.
func (m *Machine) leaveRoot() {
	root, err := openDir("/")
	if err != nil {
		return
	}
	_ = unix.Fchdir(m.oldRoot)
	_ = unix.Chroot(".")
	_ = unix.Fchdir(root)
	_ = unix.Unmount(".", unix.MNT_DETACH)
	_ = unix.Chdir("/")
	_ = unix.Close(root)
}
