package ext4

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"banger/internal/fault"
)

// Places in a header block of the GNU format, the only one with room for all three times: the others need another
// header and a third as much time for each file.
const (
	tarBlock    = 512
	tarName     = 0
	tarMode     = 100
	tarUID      = 108
	tarGID      = 116
	tarSize     = 124
	tarMtime    = 136
	tarChecksum = 148
	tarType     = 156
	tarLink     = 157
	tarMagic    = 257
	tarMajor    = 329
	tarMinor    = 337
	tarAtime    = 345
	tarCtime    = 357
	tarNameSize = 100
)

var tarZeros [2 * tarBlock]byte

// encoder writes the tar stream that the converter reads.
type encoder struct {
	w   io.Writer
	buf []byte // for contents
}

// entry writes an entry with its contents, which must be as long as the header says.
func (e *encoder) entry(hdr *tar.Header, contents io.Reader) error {
	if err := e.header(hdr); err != nil || hdr.Size == 0 {
		return err
	}
	n, err := e.copy(contents)
	if err != nil {
		return err
	}
	if n != hdr.Size {
		return io.ErrUnexpectedEOF
	}
	_, err = e.w.Write(tarZeros[:(tarBlock-n%tarBlock)%tarBlock])
	return err
}

func (e *encoder) copy(contents io.Reader) (int64, error) {
	if rf, ok := e.w.(io.ReaderFrom); ok {
		return rf.ReadFrom(contents)
	}
	return io.CopyBuffer(onlyWriter{e.w}, onlyReader{contents}, e.buf)
}

// end writes the end marker.
func (e *encoder) end() error {
	_, err := e.w.Write(tarZeros[:])
	return err
}

func (e *encoder) header(hdr *tar.Header) error {
	simple := len(hdr.Name) <= tarNameSize && len(hdr.Linkname) <= tarNameSize && len(hdr.PAXRecords) == 0 &&
		hdr.ModTime.Nanosecond() == 0
	if !simple {
		var b bytes.Buffer
		if err := tar.NewWriter(&b).WriteHeader(hdr); err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot be converted")
		}
		_, err := e.w.Write(b.Bytes())
		return err
	}
	var block [tarBlock]byte
	copy(block[tarName:], hdr.Name)
	copy(block[tarLink:], hdr.Linkname)
	copy(block[tarMagic:], "ustar  \x00")
	block[tarType] = hdr.Typeflag
	putNumber(block[tarMode:tarUID], hdr.Mode)
	putNumber(block[tarUID:tarGID], int64(hdr.Uid))
	putNumber(block[tarGID:tarSize], int64(hdr.Gid))
	putNumber(block[tarSize:tarMtime], hdr.Size)
	putNumber(block[tarMtime:tarChecksum], hdr.ModTime.Unix())
	putNumber(block[tarMajor:tarMinor], hdr.Devmajor)
	putNumber(block[tarMinor:tarAtime], hdr.Devminor)
	putNumber(block[tarAtime:tarCtime], hdr.AccessTime.Unix())
	putNumber(block[tarCtime:tarCtime+12], hdr.ChangeTime.Unix())
	sum := int64(8 * ' ') // the checksum counts as spaces
	for _, c := range block {
		sum += int64(c)
	}
	copy(block[tarChecksum:], fmt.Sprintf("%06o\x00 ", sum))
	_, err := e.w.Write(block[:])
	return err
}

// putNumber writes n in binary, which the highest bit of the field tells.
func putNumber(field []byte, n int64) {
	for i := range field[:len(field)-8] {
		field[i] = byte(n >> 63)
	}
	binary.BigEndian.PutUint64(field[len(field)-8:], uint64(n))
	field[0] |= 0x80
}
