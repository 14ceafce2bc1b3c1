// Package pax writes tar archives in the PAX format of POSIX: what an OCI layer is made of.
//
// It does what archive/tar's Writer does in that format, but has 16 KB in the agent where that has 100: every page of the
// agent is loaded and translated at each start. Times have nanoseconds, extended attributes are SCHILY.xattr records, and there is nothing in
// an archive that is not said by its caller: the same calls give the same bytes.
package pax

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Types of files, as they stand in a header.
const (
	Regular   = '0'
	HardLink  = '1'
	Symlink   = '2'
	Char      = '3'
	Block     = '4'
	Directory = '5'
	Fifo      = '6'

	extended = 'x' // a header of records for the next file
)

// Header is one file.
type Header struct {
	Name         string // relative to the root of the tree; a directory's ends with a slash
	Type         byte
	Link         string // of a symbolic link, what it points to; of a hard link, the name of a file before
	Size         int64  // of a regular file
	Mode         uint32 // permissions, set-user-id, set-group-id and sticky bit
	UID, GID     uint32
	Sec, Nsec    int64  // time of the last modification; Nsec is not negative
	Major, Minor uint32 // of a device
	Xattrs       []Xattr
}

// Xattr is one extended attribute.
type Xattr struct{ Name, Value string }

const (
	blockLen = 512
	// A field of n octal digits holds less than 8^n.
	maxID   = 1<<21 - 1
	maxLong = 1<<33 - 1 // size and time

	nameLen   = 100
	prefixLen = 155
)

// Offsets and lengths of the fields of a header.
const (
	offMode, offUID, offGID = 100, 108, 116
	offSize, offTime        = 124, 136
	offSum, offType         = 148, 156
	offLink, offMagic       = 157, 257
	offMajor, offMinor      = 329, 337
	offPrefix               = 345
)

// Writer writes an archive. It is for one goroutine. After an error it is of no more use.
type Writer struct {
	buf  *bufio.Writer
	left int64 // content of the present file that is still to be written
	pad  int   // zeroes that follow it
}

// NewWriter returns a Writer to w. Nothing has arrived there for sure before Close.
func NewWriter(w io.Writer) *Writer {
	return &Writer{buf: bufio.NewWriterSize(onlyWriter{w}, 64<<10)}
}

// onlyWriter hides whatever else a writer can do from bufio, which would otherwise go past its own buffer.
type onlyWriter struct{ io.Writer }

// errUnfinished is a file with less content than its header said.
var errUnfinished = errors.New("the file before is not complete")

// WriteHeader begins the next file.
func (w *Writer) WriteHeader(h *Header) error {
	if err := w.finish(); err != nil {
		return err
	}
	records, err := h.records()
	if err != nil {
		return err
	}
	if records != "" {
		if err := w.extend(h, records); err != nil {
			return err
		}
	}
	block := h.block()
	if _, err := w.buf.Write(block[:]); err != nil {
		return err
	}
	if h.Type == Regular {
		w.left, w.pad = h.Size, padding(h.Size)
	}
	return nil
}

// extend writes the records that go before the header of h.
func (w *Writer) extend(h *Header, records string) error {
	x := Header{Name: extendedName(h.Name), Type: extended, Size: int64(len(records)), Mode: 0o644}
	block := x.block()
	if _, err := w.buf.Write(block[:]); err != nil {
		return err
	}
	if _, err := w.buf.WriteString(records); err != nil {
		return err
	}
	return w.zeroes(int64(padding(x.Size)))
}

// Write writes content of the present file.
func (w *Writer) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		return 0, errors.New("more content than the header said")
	}
	n, err := w.buf.Write(p)
	w.left -= int64(n)
	return n, err
}

// CopyFrom writes the next n bytes of the present file from r, through no buffer but the Writer's own. An r that ends
// before is io.ErrUnexpectedEOF.
func (w *Writer) CopyFrom(r io.Reader, n int64) error {
	if n > w.left {
		return errors.New("more content than the header said")
	}
	got, err := w.buf.ReadFrom(io.LimitReader(r, n))
	w.left -= got
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Hole writes n zeroes as the next content of the present file.
func (w *Writer) Hole(n int64) error {
	if n > w.left {
		return errors.New("more content than the header said")
	}
	w.left -= n
	return w.zeroes(n)
}

// Close completes the archive. It does not close what is below.
func (w *Writer) Close() error {
	if err := w.finish(); err != nil {
		return err
	}
	if err := w.zeroes(2 * blockLen); err != nil {
		return err
	}
	return w.buf.Flush()
}

// finish completes the present file.
func (w *Writer) finish() error {
	if w.left > 0 {
		return errUnfinished
	}
	n := w.pad
	w.pad = 0
	return w.zeroes(int64(n))
}

var zeroes [32 << 10]byte

func (w *Writer) zeroes(n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeroes)))
		if _, err := w.buf.Write(zeroes[:part]); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// padding is how much is missing to a whole number of blocks.
func padding(size int64) int { return int(-size & (blockLen - 1)) }

// block returns the header itself. What does not fit is left empty: a record says it.
func (h *Header) block() (b [blockLen]byte) {
	prefix, name, ok := splitName(h.Name)
	if !ok {
		name = ascii(h.Name) // for readers that know no records, and people
	}
	copy(b[:nameLen], name)
	copy(b[offPrefix:offPrefix+prefixLen], prefix)
	octal(b[offMode:offUID], uint64(h.Mode))
	octal(b[offUID:offGID], uint64(fitting(int64(h.UID), maxID)))
	octal(b[offGID:offSize], uint64(fitting(int64(h.GID), maxID)))
	octal(b[offSize:offTime], uint64(fitting(h.Size, maxLong)))
	octal(b[offTime:offSum], uint64(fitting(h.Sec, maxLong)))
	b[offType] = h.Type
	copy(b[offLink:offMagic], ascii(h.Link))
	copy(b[offMagic:], "ustar\x0000")
	octal(b[offMajor:offMinor], uint64(h.Major))
	octal(b[offMinor:offPrefix], uint64(h.Minor))
	b[offSum+7] = ' '
	octal(b[offSum:offSum+7], checksum(&b))
	return b
}

// checksum adds up a header's bytes, its own place counting as blanks.
func checksum(b *[blockLen]byte) (sum uint64) {
	for i, c := range b {
		if i >= offSum && i < offType {
			c = ' '
		}
		sum += uint64(c)
	}
	return sum
}

// octal fills a field but for its last byte, which stays NUL. What is too large is cut off.
func octal(field []byte, n uint64) {
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = '0' + byte(n&7)
		n >>= 3
	}
}

// fitting returns n, or 0 if its field cannot hold it.
func fitting(n, limit int64) int64 {
	if n < 0 || n > limit {
		return 0
	}
	return n
}

// records returns what the header cannot say, in the form of PAX.
func (h *Header) records() (string, error) {
	var b strings.Builder
	if strings.IndexByte(h.Name, 0) >= 0 || strings.IndexByte(h.Link, 0) >= 0 {
		return "", errors.New("a NUL in a name")
	}
	if _, _, ok := splitName(h.Name); !ok {
		record(&b, "path", h.Name)
	}
	if len(h.Link) > nameLen || !isASCII(h.Link) {
		record(&b, "linkpath", h.Link)
	}
	if h.Size > maxLong {
		record(&b, "size", strconv.FormatInt(h.Size, 10))
	}
	if h.UID > maxID {
		record(&b, "uid", strconv.FormatUint(uint64(h.UID), 10))
	}
	if h.GID > maxID {
		record(&b, "gid", strconv.FormatUint(uint64(h.GID), 10))
	}
	if h.Nsec != 0 || h.Sec < 0 || h.Sec > maxLong {
		record(&b, "mtime", timeText(h.Sec, h.Nsec))
	}
	for _, x := range h.Xattrs {
		if x.Name == "" || strings.ContainsAny(x.Name, "=\x00") {
			return "", fmt.Errorf("the name of the extended attribute %q cannot be in a tar archive", x.Name)
		}
		record(&b, "SCHILY.xattr."+x.Name, x.Value)
	}
	return b.String(), nil
}

// record appends "LENGTH KEY=VALUE\n", whose length counts its own digits.
func record(b *strings.Builder, key, value string) {
	rest := len(key) + len(value) + 3 // blank, equals sign, newline
	n := rest + len(strconv.Itoa(rest))
	if total := rest + len(strconv.Itoa(n)); total > n {
		n = total
	}
	b.WriteString(strconv.Itoa(n) + " " + key + "=" + value + "\n")
}

// timeText is a time in seconds, with as many decimals as it takes.
func timeText(sec, nsec int64) string {
	if nsec == 0 {
		return strconv.FormatInt(sec, 10)
	}
	sign := ""
	if sec < 0 { // -1.25 is -2 s and 750,000,000 ns
		sign, sec, nsec = "-", -(sec + 1), 1e9-nsec
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, sec, nsec), "0")
}

// splitName divides a name between the two fields that a header has for it. ok is false if it fits in no way.
func splitName(name string) (prefix, rest string, ok bool) {
	if !isASCII(name) {
		return "", "", false
	}
	if len(name) <= nameLen {
		return "", name, true
	}
	// The last slash that leaves the first part short enough; one at the end of a directory's name does not count.
	limit := min(prefixLen+1, len(name)-1)
	i := strings.LastIndexByte(name[:limit], '/')
	if i <= 0 || len(name)-i-1 > nameLen {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}

// extendedName is what a file of records is called by readers that do not know what it is.
func extendedName(name string) string {
	name = strings.TrimRight(name, "/")
	name = ascii(name[strings.LastIndexByte(name, '/')+1:])
	const dir = "PaxHeaders.0/"
	return dir + name[:min(len(name), nameLen-len(dir))]
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// ascii leaves out what is not.
func ascii(s string) string {
	if isASCII(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r >= 0x80 {
			return -1
		}
		return r
	}, s)
}
