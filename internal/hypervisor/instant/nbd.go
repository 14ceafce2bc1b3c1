package instant

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
)

// The part of the NBD protocol (doc/proto.md of the NBD project) that QEMU needs to write to an export. QEMU may be under
// its guest's control: lengths are bounded.

const (
	nbdMagic     = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic  = 0x49484156454f5054 // "IHAVEOPT"
	replyMagic   = 0x3e889045565a9    // of an option
	requestMagic = 0x25609513
	simpleMagic  = 0x67446698

	flagFixed   = 1 // fixed newstyle
	flagNoZeros = 2

	optAbort = 2
	optGo    = 7

	repAck         = 1
	repInfo        = 3
	repUnsupported = 1<<31 + 1

	infoExport = 0

	exportHasFlags    = 1 << 0
	exportFlush       = 1 << 2
	exportWriteZeroes = 1 << 6

	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdWriteZeroes = 6

	errInvalid = 22 // EINVAL

	maxOption = 4 << 10
	maxWrite  = 32 << 20
	maxTries  = 16 // options before the export is opened
)

// serveNBD serves one client until it disconnects. Closing conn ends it, too.
func serveNBD(conn net.Conn, c *Copy) error {
	s := session{c: c, in: bufio.NewReaderSize(conn, chunk+4096), out: conn}
	err := s.negotiate()
	for err == nil {
		err = s.request()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

type session struct {
	c   *Copy
	in  *bufio.Reader
	out io.Writer
	buf []byte
}

func (s *session) send(fields ...any) error {
	var p []byte
	for _, f := range fields {
		p, _ = binary.Append(p, binary.BigEndian, f) // all have a fixed size
	}
	_, err := s.out.Write(p)
	return err
}

// negotiate ends with nil when the client has opened the export.
func (s *session) negotiate() error {
	if err := s.send(uint64(nbdMagic), uint64(optionMagic), uint16(flagFixed|flagNoZeros)); err != nil {
		return err
	}
	var flags uint32
	if err := binary.Read(s.in, binary.BigEndian, &flags); err != nil {
		return err
	}
	for range maxTries {
		var option struct {
			Magic       uint64
			Option, Len uint32
		}
		if err := binary.Read(s.in, binary.BigEndian, &option); err != nil {
			return err
		}
		if option.Magic != optionMagic || option.Len > maxOption {
			return errors.New("nbd: this is no option")
		}
		if _, err := s.in.Discard(int(option.Len)); err != nil {
			return err
		}
		answer := func(kind, size uint32, data ...any) error {
			return s.send(append([]any{uint64(replyMagic), option.Option, kind, size}, data...)...)
		}
		switch option.Option {
		case optAbort:
			return io.EOF
		case optGo:
			err := answer(repInfo, 12, uint16(infoExport), uint64(s.c.size), uint16(exportHasFlags|exportFlush|exportWriteZeroes))
			if err == nil {
				err = answer(repAck, 0)
			}
			return err
		}
		if err := answer(repUnsupported, 0); err != nil {
			return err
		}
	}
	return errors.New("nbd: the client does not open the export")
}

// request serves one request. io.EOF is the end.
func (s *session) request() error {
	var r struct {
		Magic       uint32
		Flags, Type uint16
		Handle      uint64
		Offset      uint64
		Len         uint32
	}
	if err := binary.Read(s.in, binary.BigEndian, &r); err != nil {
		return err
	}
	if r.Magic != requestMagic {
		return errors.New("nbd: this is no request")
	}
	inside := r.Offset <= uint64(s.c.size) && uint64(r.Len) <= uint64(s.c.size)-r.Offset
	var code uint32
	switch r.Type {
	case cmdWrite, cmdWriteZeroes:
		if r.Type == cmdWrite && r.Len > maxWrite || !inside {
			return fmt.Errorf("nbd: %d bytes at %d are not possible", r.Len, r.Offset)
		}
		if err := s.write(r.Type, int64(r.Offset), int64(r.Len)); err != nil {
			return err
		}
	case cmdDisconnect:
		return io.EOF
	case cmdFlush:
	default:
		code = errInvalid
	}
	return s.send(uint32(simpleMagic), code, r.Handle)
}

// write takes what comes, or zeroes, in pieces.
func (s *session) write(kind uint16, at, length int64) error {
	s.buf = slices.Grow(s.buf[:0], chunk)[:chunk]
	if kind == cmdWriteZeroes {
		clear(s.buf)
	}
	for length > 0 {
		p := s.buf[:min(length, chunk)]
		if kind == cmdWrite {
			if _, err := io.ReadFull(s.in, p); err != nil {
				return err
			}
		}
		s.c.before(p, at)
		at, length = at+int64(len(p)), length-int64(len(p))
	}
	return nil
}
