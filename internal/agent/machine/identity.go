package machine

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

// Requests of /dev/urandom.
const (
	rndAddEntropy = 0x40085203 // _IOW('R', 3, int[2])
	rndReseedCRNG = 0x5207     // _IO('R', 7)
)

// setIdentity sets the clock, the state of the random number generator and the host name.
func setIdentity(config agentwire.Config) error {
	if config.UnixNano > 0 {
		if err := setClock(config.UnixNano); err != nil {
			return err
		}
	}
	if err := addEntropy(config.Entropy); err != nil {
		return err
	}
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte(config.Hostname)))
}

func setClock(unixNano int64) error {
	now := unix.NsecToTimespec(unixNano)
	return os.NewSyscallError("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &now))
}

// addEntropy credits entropy and has the generator use it from now on. Without it two guests of one snapshot would
// draw the same numbers.
func addEntropy(entropy []byte) error {
	if len(entropy) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// struct rand_pool_info: bits of entropy, bytes, the bytes.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(entropy)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(entropy)))
	info = append(info, entropy...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return os.NewSyscallError("add entropy", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return os.NewSyscallError("reseed", errno)
	}
	return nil
}

// hostsMark ends the lines of /etc/hosts that are banger's: they are replaced, the others are the user's.
const hostsMark = "# banger"

// writeFiles writes what depends on the VM into /etc, and what an image may lack. What cannot be written, because the
// image has a directory in its place or the disk is full, does not keep a guest from starting: it is where that can be
// mended.
func (m *Machine) writeFiles(config agentwire.Config) error {
	if config.Build {
		m.mountBuildFiles(config)
		return nil
	}
	if err := makeDir("/etc", 0o755); err != nil {
		m.Error("no place for /etc: " + err.Error())
		return nil
	}
	files := append(identityFiles(config),
		file{"/etc/passwd", func(old string) string { return withRoot(old, "root:x:0:0:root:/root:/bin/sh\n") }},
		file{"/etc/group", func(old string) string { return withRoot(old, "root:x:0:\n") }},
	)
	for _, f := range files {
		if err := rewrite(f.path, f.content); err != nil {
			m.Error(err.Error())
		}
	}
	return nil
}

// file is one file that the agent writes. Its content depends on what is there already.
type file struct {
	path    string
	content func(old string) string
}

// identityFiles are the files that depend on which VM this is.
func identityFiles(config agentwire.Config) []file {
	files := []file{
		{"/etc/hostname", func(string) string { return config.Hostname + "\n" }},
		{"/etc/hosts", func(old string) string { return hosts(old, config.Hostname) }},
	}
	if config.MachineID != "" {
		files = append(files, file{"/etc/machine-id", func(string) string { return config.MachineID + "\n" }})
	}
	if config.Network != nil && len(config.Network.DNS) > 0 {
		files = append(files, file{"/etc/resolv.conf", func(string) string { return resolvConf(config.Network) }})
	}
	return files
}

// onePage bounds what is changed in place: it reaches the disk as a whole or not at all.
const onePage = 4096

// amend is rewrite for a file that this guest, or the one that it was made from, has written before: where the new content
// is not shorter and fits a page the file is written to. Under software emulation each part of the kernel that is used for
// the first time takes its time, and replacing a file by another uses many.
func amend(path string, content func(old string) string) error {
	old, err := readSmall(path)
	if err != nil {
		return rewrite(path, content)
	}
	text := content(old)
	if text == old {
		return nil
	}
	if len(text) >= len(old) && len(text) <= onePage && inPlace(path, []byte(text)) == nil {
		return nil
	}
	return rewrite(path, content)
}

// inPlace writes to a file that is there and no symbolic link, from its beginning.
func inPlace(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	return errors.Join(err, f.Close())
}

// rewrite replaces a file if its content is to change. A symbolic link, which may dangle, becomes a file.
func rewrite(path string, content func(old string) string) error {
	old, err := readSmall(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ELOOP) {
		return err
	}
	text := content(old)
	if err == nil && text == old {
		return nil
	}
	temp := path + ".banger"
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		_ = os.Remove(temp)
		return fault.Wrap(fault.Internal, err, "write %s", path)
	}
	return nil
}

// maxSmall bounds what is read of a file that the image or its users may have made.
const maxSmall = 32 << 20

// readSmall reads a regular file. What is none is fs.ErrNotExist: a pipe or an endless device must not hold up the guest.
func readSmall(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", &os.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	case info.Size() > maxSmall:
		return "", &os.PathError{Op: "read", Path: path, Err: unix.EFBIG}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSmall))
	return string(data), err
}

// hosts brings the host name into /etc/hosts and keeps the user's lines.
func hosts(old, hostname string) string {
	var b strings.Builder
	for line := range strings.Lines(old) {
		if line = strings.TrimRight(line, "\n"); !strings.HasSuffix(line, hostsMark) {
			b.WriteString(line + "\n")
		}
	}
	if strings.TrimSpace(b.String()) == "" {
		b.Reset()
		b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	}
	b.WriteString("127.0.1.1 " + hostname + " " + hostsMark + "\n")
	return b.String()
}

// withRoot adds root to a table of users or groups that has none.
func withRoot(old, line string) string {
	if strings.HasPrefix(old, "root:") || strings.Contains(old, "\nroot:") {
		return old
	}
	return line + old
}

// resolvConf is the resolver's configuration.
func resolvConf(n *agentwire.Network) string {
	var b strings.Builder
	for _, server := range n.DNS {
		b.WriteString("nameserver " + server + "\n")
	}
	if len(n.Search) > 0 {
		b.WriteString("search " + strings.Join(n.Search, " ") + "\n")
	}
	return b.String()
}
