package dockerfile

import (
	"fmt"
	"strconv"
	"strings"
)

// Chmod is the --chmod of COPY and ADD.
type Chmod struct {
	octal   int64 // -1: clauses
	clauses []clause
	text    string
}

// clause is one part of a symbolic mode: u+rwX.
type clause struct {
	who   int64 // which of the three groups of bits: 0700, 0070, 0007
	op    byte  // + - =
	perm  int64 // 0..7
	exec  bool  // X: x for directories and for what somebody may run
	setid bool
	stick bool
	from  int64 // u, g or o as the source of bits; 0: perm
}

// ParseChmod reads 755, 4755 or u=rwX,go=rX.
func ParseChmod(text string) (*Chmod, error) {
	bad := fmt.Errorf("--chmod=%s is not a mode: write it as 755 or u=rwX,go=rX", oneLine(text, 40))
	if text == "" {
		return nil, bad
	}
	if text[0] >= '0' && text[0] <= '9' {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || mode > 0o7777 {
			return nil, bad
		}
		return &Chmod{octal: int64(mode), text: text}, nil
	}
	out := &Chmod{octal: -1, text: text}
	for part := range strings.SplitSeq(text, ",") {
		clauses, ok := parseClause(part)
		if !ok {
			return nil, bad
		}
		out.clauses = append(out.clauses, clauses...)
	}
	return out, nil
}

// String returns the mode as it was written.
func (c *Chmod) String() string { return c.text }

// Octal returns the mode of a number; false for a symbolic one. Directories made for a destination have it too.
func (c *Chmod) Octal() (int64, bool) { return c.octal, c.octal >= 0 }

// Apply returns the permission bits of a file, with setuid, setgid and sticky, that had mode.
func (c *Chmod) Apply(mode int64, isDir bool) int64 {
	if c.octal >= 0 {
		return c.octal
	}
	for _, cl := range c.clauses {
		mode = cl.apply(mode, isDir)
	}
	return mode
}

// parseClause reads [ugoa...]([+-=][rwxXstugo...])...
func parseClause(text string) ([]clause, bool) {
	who := int64(0)
	i := 0
	for ; i < len(text) && strings.IndexByte("ugoa", text[i]) >= 0; i++ {
		who |= map[byte]int64{'u': 0o700, 'g': 0o070, 'o': 0o007, 'a': 0o777}[text[i]]
	}
	if who == 0 {
		who = 0o777
	}
	var out []clause
	for i < len(text) {
		cl := clause{who: who, op: text[i]}
		if strings.IndexByte("+-=", cl.op) < 0 {
			return nil, false
		}
		for i++; i < len(text) && strings.IndexByte("+-=", text[i]) < 0; i++ {
			if !cl.add(text[i]) {
				return nil, false
			}
		}
		out = append(out, cl)
	}
	return out, len(out) > 0
}

func (c *clause) add(letter byte) bool {
	switch letter {
	case 'r':
		c.perm |= 4
	case 'w':
		c.perm |= 2
	case 'x':
		c.perm |= 1
	case 'X':
		c.exec = true
	case 's':
		c.setid = true
	case 't':
		c.stick = true
	case 'u', 'g', 'o':
		c.from = map[byte]int64{'u': 6, 'g': 3, 'o': 0}[letter] + 1
	default:
		return false
	}
	return true
}

func (c clause) apply(mode int64, isDir bool) int64 {
	perm := c.perm
	if c.from != 0 {
		perm |= mode >> (c.from - 1) & 7
	}
	if c.exec && (isDir || mode&0o111 != 0) {
		perm |= 1
	}
	bits := (perm<<6 | perm<<3 | perm) & c.who
	setid := int64(0)
	if c.who&0o700 != 0 {
		setid |= 0o4000
	}
	if c.who&0o070 != 0 {
		setid |= 0o2000
	}
	special := int64(0)
	if c.setid {
		special = setid
	}
	if c.stick && c.who == 0o777 {
		special |= 0o1000
	}
	switch c.op {
	case '+':
		return mode | bits | special
	case '-':
		return mode &^ (bits | special)
	}
	cleared := c.who
	if !isDir {
		cleared |= setid
	}
	return mode&^cleared | bits | special
}
