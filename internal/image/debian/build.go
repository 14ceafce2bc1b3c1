package debian

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// leash runs the build so that it ends with banger, however that ends: the watcher waits for the end of a pipe whose
// other side is held by banger and by nobody else, and then kills the whole process group, itself included.
const leash = `umask 022
(read -r _ <&3; kill -KILL 0) </dev/null >/dev/null 2>&1 &
exec "$@" 3<&-`

// build is one run of mmdebstrap. It is the stream of its stdout.
type build struct {
	argv     []string
	stdin    string // apt sources
	scratch  string // TMPDIR
	isolate  bool   // give it a mount namespace of its own; an ordinary user's user namespace brings one
	guest    aptSources
	progress *meter

	ctx    context.Context //nolint:containedctx // of the whole run: Read reports its end
	cmd    *exec.Cmd
	stdout io.ReadCloser
	hold   *os.File    // banger's side of the pipe
	stop   func() bool // ends the watch on ctx
	logged chan struct{}
	poll   chan struct{} // closed to end the meter's polling
	wait   sync.Once
	result error

	mu   sync.Mutex // guards gone
	gone bool       // the process group's number may be somebody else's by now
}

// start starts the program.
func (b *build) start(ctx context.Context) error {
	watch, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	defer watch.Close()
	b.ctx, b.hold = ctx, hold
	b.logged, b.poll = make(chan struct{}), make(chan struct{})
	b.cmd = exec.Command("sh", append([]string{"-c", leash, "banger-build"}, b.argv...)...) //nolint:noctx // see kill
	b.cmd.Env = environment(ctx, b.scratch, b.guest)
	b.cmd.Dir = "/"
	b.cmd.Stdin = strings.NewReader(b.stdin)
	b.cmd.ExtraFiles = []*os.File{watch}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if b.isolate {
		// With this flag Go also makes all mounts private. mmdebstrap does not, and as root it would mount into the
		// host's own tree where mounts are shared.
		b.cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	}
	stderr, err := b.cmd.StderrPipe()
	if err == nil {
		b.stdout, err = b.cmd.StdoutPipe()
	}
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		hold.Close()
		return fault.Wrap(fault.Unavailable, err, "start mmdebstrap")
	}
	go b.log(stderr)
	b.stop = context.AfterFunc(ctx, b.kill)
	return nil
}

// log reads the program's messages to their end, and looks at the tree in between.
func (b *build) log(stderr io.Reader) {
	defer close(b.logged)
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		for {
			select {
			case <-b.poll:
				return
			case <-time.After(200 * time.Millisecond):
				b.progress.look()
			}
		}
	}()
	lines := bufio.NewReaderSize(stderr, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		b.progress.line(strings.TrimRight(string(line), "\r\n")) // of a longer line, its pieces
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
	}
	close(b.poll)
	<-polled
}

// kill ends every process of the build at once. What they leave are files; the mounts go with their namespaces.
func (b *build) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.gone {
		_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) // ESRCH: they have just ended
	}
}

// Read reads the tar stream. At its end it waits for the program and reports its failure, if it has failed.
func (b *build) Read(p []byte) (int, error) {
	n, err := b.stdout.Read(p)
	if n > 0 {
		b.progress.written(n)
		return n, nil
	}
	if err == nil {
		return 0, nil
	}
	if failure := b.finish(); failure != nil {
		return 0, failure
	}
	return 0, err
}

// Close ends the build and waits for it. It returns no error: whoever reads to the end has had it from Read.
func (b *build) Close() error {
	b.kill()
	_ = b.finish()
	return nil
}

// finish waits for the program and says why it has failed. What it started is gone when it returns.
func (b *build) finish() error {
	b.wait.Do(func() {
		<-b.logged
		err := b.cmd.Wait()
		b.stop()
		b.kill() // the watcher, which has kept the group's number in use, and what a package may have left running
		b.mu.Lock()
		b.gone = true
		b.mu.Unlock()
		b.hold.Close()
		switch {
		case err == nil:
		case b.ctx.Err() != nil:
			b.result = fault.Context(context.Cause(b.ctx), "build")
		default:
			b.result = b.progress.explain(err, b.scratch)
		}
	})
	return b.result
}
