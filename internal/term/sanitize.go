package term

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Sanitize returns s as one line that is safe to show on a terminal: escape sequences are dropped, line breaks become
// spaces, other control characters, directional overrides and invalid bytes become '?'.
func Sanitize(s string) string {
	if clean(s) {
		return s
	}
	var b strings.Builder
	f := filter{oneLine: true}
	f.write(&b, []byte(s), true)
	return strings.TrimRight(b.String(), " ")
}

// clean is the fast path: printable ASCII only.
func clean(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// NewSanitizer returns a writer that passes what is safe to show on a terminal on to w. Line feeds and tabs are kept.
// It works on a stream: a sequence or character that is cut by the end of a Write goes on in the next one.
func NewSanitizer(w io.Writer) io.Writer { return &sanitizer{w: w} }

type sanitizer struct {
	w io.Writer
	f filter
}

func (s *sanitizer) Write(p []byte) (int, error) {
	var b strings.Builder
	s.f.write(&b, p, false)
	if _, err := io.WriteString(s.w, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// filter follows the structure of ECMA-48 control sequences far enough to drop them whole. A line feed ends any of
// them, so that a sequence that is never closed hides one line at most.
type filter struct {
	oneLine bool
	state   func(*filter, *strings.Builder, rune)
	rest    []byte // the start of a character that was cut
}

func (f *filter) write(b *strings.Builder, p []byte, last bool) {
	if f.state == nil {
		f.state = (*filter).ground
	}
	p = append(f.rest, p...)
	f.rest = nil
	for len(p) > 0 {
		if !last && !utf8.FullRune(p) {
			f.rest = append([]byte(nil), p...)
			return
		}
		r, size := utf8.DecodeRune(p)
		if r == utf8.RuneError && size == 1 {
			r = -1
		}
		if r == '\n' {
			f.state = (*filter).ground
		}
		f.state(f, b, r)
		p = p[size:]
	}
}

func (f *filter) ground(b *strings.Builder, r rune) {
	switch {
	case r == 0x1b:
		f.state = (*filter).escape
	case r == 0x9b:
		f.state = (*filter).sequence
	case r == '\n', r == '\t':
		if f.oneLine {
			r = ' '
		}
		b.WriteRune(r)
	case r == '\r':
	case r < ' ', r >= 0x7f && r <= 0x9f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x2028, r == 0x2029:
		b.WriteByte('?')
	default:
		b.WriteRune(r)
	}
}

// escape is the state after ESC.
func (f *filter) escape(_ *strings.Builder, r rune) {
	switch {
	case r == '[':
		f.state = (*filter).sequence
	case r == ']', r == 'P', r == 'X', r == '^', r == '_': // OSC, DCS, SOS, PM, APC
		f.state = (*filter).text
	case r >= 0x20 && r <= 0x2f: // intermediate characters
	default:
		f.state = (*filter).ground
	}
}

// sequence is the state inside CSI ... final character.
func (f *filter) sequence(_ *strings.Builder, r rune) {
	if r >= 0x40 && r <= 0x7e {
		f.state = (*filter).ground
	} else if r == 0x1b {
		f.state = (*filter).escape
	}
}

// text is the state inside a string, ended by BEL or ESC \.
func (f *filter) text(_ *strings.Builder, r rune) {
	switch r {
	case 0x07, 0x9c:
		f.state = (*filter).ground
	case 0x1b:
		f.state = (*filter).escape
	}
}
