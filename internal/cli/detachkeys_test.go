package cli

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"banger/internal/fault"
)

func TestDetachKeys(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "ctrl-p,ctrl-q": "\x10\x11", "Ctrl-B,d": "\x02d", "ctrl-[": "\x1b", "ctrl-@": "\x00", "a,a,b": "aab", "~,.": "~.",
	} {
		if got, err := parseDetachKeys(s); string(got) != want || err != nil {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{",", "ctrl-", "ctrl-pq", "ctrl-1", "ab", "a,", "ä", " "} {
		if _, err := parseDetachKeys(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// What is typed arrives but for the keys that detach, however it is cut into reads.
func TestDetachReader(t *testing.T) {
	for _, tc := range []struct {
		keys, in, want string
		detached       bool
	}{
		{"pq", "hello", "hello", false},
		{"pq", "hellopq and more", "hello", true},
		{"pq", "ppq", "p", true},
		{"pq", "p", "p", false},
		{"pq", "pxpq", "px", true},
		{"aab", "aaab", "a", true},
		{"aab", "aaxaab", "aax", true},
		{"abab", "ababab", "", true},
		{"abab", "abaabab", "aba", true},
		{"aaa", "aa", "aa", false},
		{"x", "abxc", "ab", true},
	} {
		for name, cut := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "with the end": iotest.DataErrReader} {
			detached := 0
			got, err := io.ReadAll(&detachReader{r: cut(strings.NewReader(tc.in)), keys: []byte(tc.keys), detach: func() { detached++ }})
			if string(got) != tc.want || err != nil || (detached > 0) != tc.detached {
				t.Errorf("%q of %q, %s: %q, %d, %v", tc.in, tc.keys, name, got, detached, err)
			}
		}
	}
}
