package supervisor

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	defaultConsoleLimit = 4 << 20
	tailSize            = 4 << 10
	maxLogLines         = 1000 // of what one VMM says; a guest can make it complain as often as it likes
	maxLogLine          = 1 << 10
)

// tail is the end of what was written to it. The zero value is ready.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte     // at most 2*tailSize
}

func (t *tail) write(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailSize):]...)
	if len(t.buf) > 2*tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
}

func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = t.buf[:0]
}

// lines returns the last n lines that say something, fit to be part of a message: the guest wrote them, so control
// characters are dropped and long lines cut.
func (t *tail) lines(n int) []string {
	t.mu.Lock()
	text := string(t.buf[max(0, len(t.buf)-tailSize):])
	t.mu.Unlock()
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = cleanLine(line); line != "" {
			out = append(out, line)
		}
	}
	return out[max(0, len(out)-n):]
}

// cleanLine makes one line of hostile text harmless for a terminal.
func cleanLine(line string) string {
	line = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(line, "")))
	if runes := []rune(line); len(runes) > 160 {
		line = string(runes[:157]) + "..."
	}
	return line
}

// console is the guest's console log: a file of at most limit bytes, which is renamed to NAME.1 when it is full.
//
// Write never fails: a full disk on the host must cost log lines and not stop the VMM from draining the console, which
// would stop the guest.
type console struct {
	// Fixed after newConsole.
	path  string
	limit int64
	log   *slog.Logger

	end tail // own-synchronised

	mu      sync.Mutex // guards the fields below
	file    *os.File   // nil after Close or while it cannot be opened
	size    int64
	partial bool // the last line has no end yet
	failing bool // said so in the log
	closed  bool
}

func newConsole(path string, limit int64, log *slog.Logger) *console {
	if limit <= 0 {
		limit = defaultConsoleLimit
	}
	return &console{path: path, limit: limit, log: log}
}

// Write appends p, rotating as often as needed.
func (c *console) Write(p []byte) (int, error) {
	c.end.write(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeLocked(p)
	return len(p), nil
}

// begin marks the start of a boot in the file and forgets the tail of the boot before.
func (c *console) begin(attempt int, now time.Time) {
	c.end.reset()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.partial {
		c.writeLocked([]byte("\n"))
	}
	c.writeLocked(fmt.Appendf(nil, "--- banger: start at %s, attempt %d ---\n", now.Format(time.RFC3339), attempt))
}

// Close closes the file. Later writes go to the tail only.
func (c *console) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
}

func (c *console) writeLocked(p []byte) {
	for len(p) > 0 && !c.closed {
		if err := c.makeRoomLocked(); err != nil {
			c.failedLocked(err)
			return
		}
		n, err := c.file.Write(p[:min(int64(len(p)), c.limit-c.size)])
		if n > 0 {
			c.partial = p[n-1] != '\n'
			c.size += int64(n)
			p = p[n:]
		}
		if err != nil {
			c.failedLocked(err)
			return
		}
		c.failing = false
	}
}

// makeRoomLocked sees to it that the file is open and not full.
func (c *console) makeRoomLocked() error {
	if c.file != nil && c.size < c.limit {
		return nil
	}
	if c.file == nil {
		if err := c.openLocked(); err != nil || c.size < c.limit {
			return err
		}
	}
	_ = c.file.Close()
	c.file = nil
	if err := os.Rename(c.path, c.path+".1"); err != nil {
		return err
	}
	return c.openLocked()
}

func (c *console) openLocked() error {
	file, err := os.OpenFile(c.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return err
	}
	c.file, c.size = file, info.Size()
	return nil
}

// failedLocked logs the first of a row of failures and lets the next write open the file again.
func (c *console) failedLocked(err error) {
	if !c.failing {
		c.log.Warn("console log loses output", "error", err)
	}
	c.failing = true
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
}

// vmmLog receives what the VMM itself says: line by line into the supervisor's log, up to a limit, and into a tail.
type vmmLog struct {
	log *slog.Logger
	end tail

	mu    sync.Mutex // guards the fields below
	line  []byte     // without an end yet, at most maxLogLine
	count int
}

// Write never fails.
func (l *vmmLog) Write(p []byte) (int, error) {
	l.end.write(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	for part := range bytes.Lines(p) {
		l.line = append(l.line, part[:min(len(part), maxLogLine-len(l.line))]...)
		if part[len(part)-1] == '\n' || len(l.line) == maxLogLine {
			l.flushLocked()
		}
	}
	return len(p), nil
}

func (l *vmmLog) flushLocked() {
	line := cleanLine(string(l.line))
	l.line = l.line[:0]
	if line == "" {
		return
	}
	if l.count++; l.count <= maxLogLines {
		l.log.Warn("vmm says", "line", line)
	}
	if l.count == maxLogLines {
		l.log.Warn("vmm says too much: no more of it is logged")
	}
}
