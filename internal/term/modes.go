package term

import (
	"bytes"
	"io"
	"slices"
	"strconv"
)

// Modes passes a program's output on to a terminal and remembers which modes it has set there, so that they can be taken
// back when the terminal is taken from the program: it does not do that itself then.
type Modes struct {
	w   io.Writer
	seq []byte // a control sequence that has begun
	set []int  // the modes that are not as a shell expects them
}

// Modes returns a Modes that writes to stdout.
func (t *Term) Modes() *Modes { return &Modes{w: t.stdout} }

// The private modes that are taken back: keys, alternate screens, mouse, focus, bracketed paste; and those that are on
// where nothing is said: wrapping and the cursor.
var (
	offModes = []int{1, 9, 47, 66, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1047, 1049, 2004}
	onModes  = []int{7, 25}
)

// maxSequence is longer than any sequence that sets modes.
const maxSequence = 64

// Write implements io.Writer.
func (m *Modes) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if len(m.seq) == 0 {
			i := bytes.IndexByte(rest, 0x1b)
			if i < 0 {
				break
			}
			m.seq, rest = append(m.seq, 0x1b), rest[i+1:]
			continue
		}
		m.next(rest[0])
		rest = rest[1:]
	}
	return m.w.Write(p)
}

// next takes one more byte of a sequence: ESC [ ? number ; number ... h or l.
func (m *Modes) next(b byte) {
	n := len(m.seq)
	switch {
	case b == 0x1b:
		m.seq = append(m.seq[:0], b)
	case n == 1 && b == '[', n == 2 && b == '?', n > 2 && n < maxSequence && (b >= '0' && b <= '9' || b == ';'):
		m.seq = append(m.seq, b)
	default:
		if n > 2 && (b == 'h' || b == 'l') {
			for number := range bytes.SplitSeq(m.seq[3:], []byte{';'}) {
				m.note(string(number), b == 'h')
			}
		}
		m.seq = m.seq[:0]
	}
}

func (m *Modes) note(number string, on bool) {
	mode, err := strconv.Atoi(number)
	usuallyOn := slices.Contains(onModes, mode)
	if err != nil || !usuallyOn && !slices.Contains(offModes, mode) {
		return
	}
	m.set = slices.DeleteFunc(m.set, func(n int) bool { return n == mode })
	if on != usuallyOn {
		m.set = append(m.set, mode)
	}
}

// Reset takes back what was set, the last first, and colours with it.
func (m *Modes) Reset() {
	var b bytes.Buffer
	for _, mode := range slices.Backward(m.set) {
		b.WriteString("\x1b[?" + strconv.Itoa(mode))
		if slices.Contains(onModes, mode) {
			b.WriteByte('h')
		} else {
			b.WriteByte('l')
		}
	}
	b.WriteString("\x1b[0m")
	m.set, m.seq = nil, nil
	_, _ = m.w.Write(b.Bytes()) // a terminal that is gone needs none
}
