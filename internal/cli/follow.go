package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	logPoll    = 100 * time.Millisecond // between looks at a log that is followed
	endedEvery = time.Second            // between questions whether it can still grow
)

// logFile is a log that is rotated to path + ".1".
type logFile struct {
	path  string
	lines int // how many of the last lines to show; negative: all
	// follow goes on until ended says that nothing will be added any more; nil: for ever.
	follow bool
	ended  func(context.Context) bool
	out    io.Writer
}

// show writes the log to out.
func (l *logFile) show(ctx context.Context) error {
	f, err := l.openTail()
	if err != nil {
		return err
	}
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	asked := time.Now()
	for {
		over := false
		if l.follow && l.ended != nil && time.Since(asked) >= endedEvery {
			over, asked = l.ended(ctx), time.Now() // asked before the last look, so that nothing is missed
		}
		if f != nil {
			if _, err := io.Copy(l.out, f); err != nil {
				return err
			}
		}
		if !l.follow || over {
			return nil
		}
		if f, err = l.next(f); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(logPoll):
		}
	}
}

// next opens the log anew if it was rotated or has come to be.
func (l *logFile) next(f *os.File) (*os.File, error) {
	now, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	if f != nil {
		had, err := f.Stat()
		if err != nil || os.SameFile(had, now) {
			return f, err
		}
		if _, err := io.Copy(l.out, f); err != nil { // what was added before the rotation
			return f, err
		}
		f.Close()
	}
	return os.Open(l.path)
}

// openTail opens the log where the lines to show begin, and writes those that are in the rotated file. A log that does
// not exist yet is nil.
func (l *logFile) openTail() (*os.File, error) {
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	missing := l.lines
	if l.lines >= 0 {
		if missing, err = seekLines(f, l.lines); err != nil {
			f.Close()
			return nil, err
		}
	}
	if missing == 0 {
		return f, nil
	}
	return f, errors.Join(l.showRotated(missing))
}

// showRotated writes the last lines of the rotated file, all with a negative number.
func (l *logFile) showRotated(lines int) error {
	f, err := os.Open(l.path + ".1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if lines > 0 {
		if _, err := seekLines(f, lines); err != nil {
			return err
		}
	}
	_, err = io.Copy(l.out, f)
	return err
}

// seekLines puts f's offset before its last lines and returns how many it does not have.
func seekLines(f *os.File, lines int) (missing int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 {
		return 0, err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	found := 0
	for pos := end; pos > 0; {
		n := min(pos, block)
		pos -= n
		if _, err := f.ReadAt(buf[:n], pos); err != nil {
			return 0, err
		}
		for i := int(n); i > 0; {
			i = bytes.LastIndexByte(buf[:i], '\n')
			if i < 0 {
				break
			}
			if pos+int64(i) == end-1 { // the line feed at the very end ends the last line
				continue
			}
			if found++; found == lines {
				_, err := f.Seek(pos+int64(i)+1, io.SeekStart)
				return 0, err
			}
		}
	}
	if end > 0 {
		found++ // the first line has no line feed before it
	}
	_, err = f.Seek(0, io.SeekStart)
	return max(lines-found, 0), err
}
