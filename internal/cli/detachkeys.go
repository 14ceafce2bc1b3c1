package cli

import (
	"io"
	"strings"

	"banger/internal/fault"
)

// defaultDetachKeys are those of container tools.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseDetachKeys reads a sequence of keys: single characters and ctrl-X, with commas between them. An empty one stands
// for none.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(s, ",") {
		letter, ctrl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case ctrl && len(letter) == 1 && letter[0] >= 'a' && letter[0] <= 'z':
			keys = append(keys, letter[0]-'a'+1)
		case ctrl && len(letter) == 1 && strings.Contains(`@[\]^_`, letter):
			keys = append(keys, letter[0]-'@')
		case !ctrl && len(key) == 1 && key[0] > ' ' && key[0] <= '~':
			keys = append(keys, key[0])
		default:
			return nil, fault.New(fault.Invalid, "detach key %q is neither a character nor ctrl-X", key).
				WithHint("banger session attach --detach-keys ctrl-b,d SESSION")
		}
	}
	return keys, nil
}

// detachReader passes keys on until the sequence comes that detaches: then it calls detach and ends. What may be the
// beginning of the sequence is held back until the next key.
type detachReader struct {
	r      io.Reader
	keys   []byte
	detach func()

	held int    // so many keys of the sequence were read
	over bool   // detached
	out  []byte // read and not yet passed on
	err  error  // of r
}

// Read implements io.Reader.
func (d *detachReader) Read(p []byte) (int, error) {
	for len(d.out) == 0 && !d.over && d.err == nil && len(p) > 0 {
		var n int
		n, d.err = d.r.Read(p)
		d.scan(p[:n])
		if d.err != nil && !d.over { // nothing comes that could complete it
			d.out = append(d.out, d.keys[:d.held]...)
		}
	}
	n := copy(p, d.out)
	d.out = d.out[n:]
	switch {
	case n > 0:
		return n, nil
	case d.over:
		d.detach() // not before what was typed in front of it is on its way
		return 0, io.EOF
	}
	return 0, d.err
}

// scan looks for the sequence. A key that does not go on with it may begin it anew.
func (d *detachReader) scan(p []byte) {
	for _, b := range p {
		for d.held > 0 && b != d.keys[d.held] {
			// The longest end of what is held, with b, that begins the sequence goes on being held.
			d.out = append(d.out, d.keys[0])
			rest := d.keys[1:d.held]
			d.held = 0
			for len(rest) > 0 && !strings.HasPrefix(string(d.keys), string(rest)) {
				d.out, rest = append(d.out, rest[0]), rest[1:]
			}
			d.held = len(rest)
		}
		if b != d.keys[d.held] {
			d.out = append(d.out, b)
			continue
		}
		if d.held++; d.held == len(d.keys) {
			d.over = true
			return
		}
	}
}
