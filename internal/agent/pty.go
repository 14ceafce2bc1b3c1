package agent

import (
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
)

// Size of a terminal when the request names none.
const (
	defaultRows = 24
	defaultCols = 80
)

// openPTY opens a new terminal that belongs to uid. The master is pollable, so that closing it wakes its readers.
func openPTY(uid uint32, rows, cols uint16) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	slaveFD, err := openSlave(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, nil, os.NewSyscallError("open the terminal", err)
	}
	master, slave = os.NewFile(uintptr(fd), "/dev/ptmx"), os.NewFile(uintptr(slaveFD), "tty")
	if rows == 0 || cols == 0 {
		rows, cols = defaultRows, defaultCols
	}
	setUp := func() error {
		if err := setUTF8(fd); err != nil {
			return err
		}
		// The group stays the one of the mount, which is tty's.
		if err := unix.Fchown(slaveFD, int(uid), -1); err != nil && os.Geteuid() == 0 {
			return err
		}
		return resize(master, agentwire.Resize{Rows: rows, Cols: cols})
	}
	if err := setUp(); err != nil {
		_ = master.Close()
		_ = slave.Close()
		return nil, nil, os.NewSyscallError("set the terminal up", err)
	}
	return master, slave, nil
}

// openSlave opens the other side of a master without going by its name, which depends on what is mounted where.
func openSlave(master int) (int, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return 0, err
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return 0, errno
	}
	return int(slave), nil
}

// setUTF8 lets the kernel's line editing erase whole characters.
func setUTF8(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag |= unix.IUTF8
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// resize sets the size of a terminal, of which the kernel tells the foreground group.
func resize(master *os.File, size agentwire.Resize) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if err != nil {
		return err
	}
	return failed
}

// foreground returns the process group that has the terminal, 0 if there is none.
func foreground(master *os.File) int {
	raw, err := master.SyscallConn()
	if err != nil {
		return 0
	}
	group := 0
	_ = raw.Control(func(fd uintptr) {
		group, _ = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP)
	})
	return group
}
