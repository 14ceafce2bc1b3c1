package term

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

func TestSanitize(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"plain", "vm dev is stopped", "vm dev is stopped"},
		{"unicode stays", "größe ✓", "größe ✓"},
		{"colour", "\x1b[31mred\x1b[0m text", "red text"},
		{"title", "a\x1b]0;owned\x07b", "ab"},
		{"title ended by ST", "a\x1b]0;owned\x1b\\b", "ab"},
		{"charset", "a\x1b(Bb", "ab"},
		{"c1 csi", "a\u009b31mb", "ab"},
		{"cursor up", "one\x1b[1Atwo", "onetwo"},
		{"line breaks", "one\r\ntwo\n", "one two"},
		{"bell and nul", "a\x07b\x00c", "a?b?c"},
		{"invalid utf-8", "a\xffb", "a?b"},
		{"direction override", "a\u202eb", "a?b"},
		{"unfinished", "a\x1b[31", "a"},
		{"unclosed string ends with its line", "a\x1b]0;x\nb", "a b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Sanitize(tc.in); got != tc.want {
				t.Errorf("Sanitize(%q) = %q, want %q", tc.in, got, tc.want)
			}
		})
	}
}

// However the stream is cut, the result is the same and holds nothing that a terminal acts upon.
func FuzzSanitizer(f *testing.F) {
	f.Add([]byte("boot\r\n\x1b[0;32m  OK  \x1b[0m x\x1b]0;t\x07\xc3\xa4\xe2\x9c"), 3)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		whole, parts := new(bytes.Buffer), new(bytes.Buffer)
		_, _ = NewSanitizer(whole).Write(data)
		w := NewSanitizer(parts)
		cut = max(1, min(cut, 16))
		for rest := data; len(rest) > 0; {
			n := min(cut, len(rest))
			_, _ = w.Write(rest[:n])
			rest = rest[n:]
		}
		if whole.String() != parts.String() {
			t.Errorf("in one piece %q, in pieces of %d %q", whole, cut, parts)
		}
		for _, r := range whole.String() {
			if r != '\n' && r != '\t' && unicode.IsControl(r) {
				t.Errorf("control character %U is left in %q", r, whole)
			}
		}
		if one := Sanitize(string(data)); strings.ContainsAny(one, "\n\t\r\x1b") {
			t.Errorf("one line holds %q", one)
		}
	})
}
