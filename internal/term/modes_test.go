package term

import (
	"bytes"
	"testing"
)

func TestModesAreTakenBack(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"plain", "\x1b[0m"},
		{"\x1b[?1049h\x1b[?25l\x1b[31m", "\x1b[?25h\x1b[?1049l\x1b[0m"},
		{"\x1b[?1049h text \x1b[?1049l", "\x1b[0m"},
		{"\x1b[?1000;1006h\x1b[?25h", "\x1b[?1006l\x1b[?1000l\x1b[0m"},
		{"\x1b[?12345678901234567890h\x1b[?h\x1b[?;h\x1b[1049h\x1b\x1b[?2004h", "\x1b[?2004l\x1b[0m"},
		{"\x1b[?25l\x1b[?25l", "\x1b[?25h\x1b[0m"},
	} {
		for size := 1; size <= len(tc.in); size++ { // in pieces of every size
			var b bytes.Buffer
			m := &Modes{w: &b}
			for rest := tc.in; rest != ""; {
				n := min(size, len(rest))
				_, _ = m.Write([]byte(rest[:n]))
				rest = rest[n:]
			}
			m.Reset()
			if got := b.String(); got != tc.in+tc.want {
				t.Errorf("%q in pieces of %d: %q, want %q", tc.in, size, got[len(tc.in):], tc.want)
			}
		}
	}
}
