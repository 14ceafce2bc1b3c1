package term

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Input reads the process's stdin and can be told to stop: unlike a plain read, it leaves what was typed or piped after
// that for whoever reads next.
type Input struct {
	fd       int
	stop     *os.File // reading end of a pipe; readable once stopped
	stopping *os.File
	once     sync.Once
}

// Input returns a reader of stdin. Close it.
func (t *Term) Input() (*Input, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &Input{fd: int(t.stdin.Fd()), stop: r, stopping: w}, nil
}

// Read waits for bytes, the end of the input, or Stop, which reads as the end.
func (in *Input) Read(p []byte) (int, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(in.fd), Events: unix.POLLIN}, {Fd: int32(in.stop.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return 0, err
		}
		if fds[1].Revents != 0 {
			return 0, io.EOF
		}
		n, err := unix.Read(in.fd, p)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.EIO), errors.Is(err, unix.EBADF): // the terminal was hung up, or stdin is not open
			return 0, io.EOF
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Stop ends a Read that waits and all later ones.
func (in *Input) Stop() { in.once.Do(func() { in.stopping.Close() }) }

// Close stops reading and releases what Input holds; stdin itself stays open. No Read may run any more.
func (in *Input) Close() {
	in.Stop()
	in.stop.Close()
}
