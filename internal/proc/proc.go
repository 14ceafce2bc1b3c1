// Package proc identifies processes and starts ones that outlive their parent.
//
// A pid alone is not an identity: it is used again. A pid with the time the process started is (proc(5), field 22 of
// /proc/PID/stat), as long as the host has not been booted anew, so the boot id is part of it.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Identity is one process of one boot of the host. The zero value is no process.
type Identity struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`   // clock ticks since boot
	BootID string `json:"boot_id"` // of /proc/sys/kernel/random/boot_id
}

// Self is this process.
func Self() (Identity, error) { return Of(os.Getpid()) }

// Of returns the identity of the process that has pid now.
func Of(pid int) (Identity, error) {
	stat, err := readStat(pid)
	if err != nil {
		return Identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, Start: stat.start, BootID: strings.TrimSpace(string(boot))}, nil
}

// Alive reports whether the process still runs. A zombie does not.
func (id Identity) Alive() bool {
	if id.PID <= 0 {
		return false
	}
	now, err := Of(id.PID)
	if err != nil || now != id {
		return false
	}
	stat, err := readStat(id.PID)
	return err == nil && stat.state != 'Z' && stat.state != 'X'
}

// Kill sends sig to the process if it is still the same one. A process that is gone is no error.
func (id Identity) Kill(sig syscall.Signal) error {
	if id.PID <= 0 {
		return nil
	}
	// The pidfd pins the process, so that the check and the signal are about the same one.
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", id.PID, err)
	}
	defer unix.Close(fd)
	if !id.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", id.PID, err)
	}
	return nil
}

type stat struct {
	state byte
	start uint64
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The command name is in parentheses and may hold anything, a ')' too: fields count from the last one.
	_, rest, ok := bytes.Cut(data, []byte(" ("))
	i := bytes.LastIndexByte(rest, ')')
	if !ok || i < 0 {
		return stat{}, fmt.Errorf("process %d: stat has no command name", pid)
	}
	fields := strings.Fields(string(rest[i+1:]))
	const state, start = 0, 22 - 3 // fields 3 and 22 of proc(5), counted from the third
	if len(fields) <= start {
		return stat{}, fmt.Errorf("process %d: stat has %d fields", pid, len(fields))
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	return stat{state: fields[state][0], start: ticks}, nil
}

// Spawn starts argv as a process of its own session that goes on when this one ends: stdin is /dev/null, stdout and
// stderr are appended to the file log (0600), extra files are inherited as descriptors 3, 4, ... It is reaped in the
// background as long as this process lives; ended is closed then.
func Spawn(argv, env []string, log string, extra ...*os.File) (id Identity, ended <-chan struct{}, err error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Identity{}, nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = env, "/"
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, extra
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Identity{}, nil, err
	}
	// Not reaped yet, so /proc has it even if it has ended already.
	id, err = Of(cmd.Process.Pid)
	done := make(chan struct{})
	go func() { // ends with the child; holds nothing else
		defer close(done)
		_ = cmd.Wait()
	}()
	return id, done, err
}
