// Package hostclock tells when the host's wall clock jumps: somebody has set it, or the host was asleep. Guests know
// nothing of either; their clocks have to be set.
package hostclock

import (
	"errors"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch waits for jumps. It costs nothing while there are none: the kernel cancels a timer that never ends
// (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
type Watch struct{ timer *os.File }

// New returns a Watch that hears of every jump from now on. The caller closes it.
func New() (*Watch, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	w := &Watch{timer: os.NewFile(uintptr(fd), "timerfd")}
	if err := w.arm(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// never is a time that does not come, in seconds: the last one that the kernel can wait for.
const never = math.MaxInt64 / int64(time.Second)

// arm sets the timer to a time that does not come.
func (w *Watch) arm() error {
	end := unix.ItimerSpec{Value: unix.Timespec{Sec: never}}
	conn, err := w.timer.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = conn.Control(func(fd uintptr) {
		set = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &end, nil)
	})
	if errors.Is(set, unix.ECANCELED) { // it jumped since it was set last; it is set all the same
		set = nil
	}
	return errors.Join(err, os.NewSyscallError("timerfd_settime", set))
}

// Wait returns when the clock has jumped. It returns os.ErrClosed when the Watch was closed, from any goroutine.
func (w *Watch) Wait() error {
	var expirations [8]byte
	if _, err := w.timer.Read(expirations[:]); err != nil && !errors.Is(err, unix.ECANCELED) {
		return err
	}
	return w.arm()
}

// Close ends a Wait.
func (w *Watch) Close() error { return w.timer.Close() }
