// Package sock listens on Unix sockets that only this user may use.
package sock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/paths"
)

// Listen listens on a Unix socket at path, mode 0600. A socket that a crashed process left there is replaced, so the
// caller must hold the lock that says it is the only one to listen there; any other kind of file is refused. Peers of
// another uid are disconnected before they can say anything. Close removes the file.
func Listen(path string) (net.Listener, error) {
	if len(path) > paths.MaxSocketPath {
		return nil, fault.New(fault.Invalid, "socket path %s is %d bytes long, more than the %d that Linux allows",
			path, len(path), paths.MaxSocketPath).WithHint("export BANGER_HOME=/var/tmp/banger")
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fault.New(fault.Conflict, "%s is in the way and is not a socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The directory is 0700 (paths.Ensure), so nobody else can connect between bind and chmod.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return &listener{UnixListener: ln, uid: uint32(os.Getuid())}, nil
}

// listener refuses peers of another uid.
type listener struct {
	*net.UnixListener
	uid uint32
}

// Accept returns the next connection of this user.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(conn); err == nil && uid == l.uid {
			return conn, nil
		}
		conn.Close()
	}
}

// peerUID is the uid of the process that connected (SO_PEERCRED, unix(7)).
func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("peer credentials: %w", credErr)
	}
	return cred.Uid, nil
}
