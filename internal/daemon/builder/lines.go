package builder

import (
	"bytes"
	"strings"
	"sync"

	"banger/internal/operation"
)

// longestLine is where a line of output is divided.
const longestLine = 8 << 10

// lineWriter writes what it is given to a log, line by line.
type lineWriter struct {
	step int
	log  operation.LogFunc

	mu   sync.Mutex // guards the field below
	rest []byte     // the beginning of a line
}

// Write implements io.Writer.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		end := bytes.IndexByte(w.rest, '\n')
		if end < 0 && len(w.rest) < longestLine {
			return len(p), nil
		}
		if end < 0 || end > longestLine {
			w.say(w.rest[:longestLine])
			w.rest = w.rest[longestLine:]
			continue
		}
		w.say(w.rest[:end])
		w.rest = w.rest[end+1:]
	}
}

// flush writes a last line that has no end.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.say(w.rest)
		w.rest = nil
	}
}

// say writes one line. Of what a program wrote over and over with carriage returns, the last is kept. mu is held.
func (w *lineWriter) say(line []byte) {
	line = bytes.TrimRight(line, "\r")
	line = line[bytes.LastIndexByte(line, '\r')+1:]
	w.log(operation.Line{Step: w.step, Kind: operation.LineOutput, Text: strings.ToValidUTF8(string(line), "\uFFFD")})
}
