package agentwire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
)

// FrameType says what a frame carries.
type FrameType byte

// The frames of a stream. A request and its response come first; the others belong to Exec.
const (
	FrameRequest  FrameType = 1  // host: Request as JSON
	FrameResponse FrameType = 2  // agent: Response as JSON
	FrameStdin    FrameType = 3  // host: data, at most as much as the agent gave credit for
	FrameStdinEOF FrameType = 4  // host: no more stdin; empty
	FrameStdout   FrameType = 5  // agent: data
	FrameStderr   FrameType = 6  // agent: data
	FrameExited   FrameType = 7  // agent: ExecExited as JSON; the last frame
	FrameResize   FrameType = 8  // host: Resize as JSON
	FrameSignal   FrameType = 9  // host: a signal's name or number as text
	FrameCredit   FrameType = 10 // agent: 4 bytes big-endian, so many more bytes of stdin may be sent
)

// Limits of a frame. A peer that exceeds them is cut off.
const (
	HeaderLen = 5        // one byte of type, four of length (big-endian)
	MaxData   = 64 << 10 // payload of stdin, stdout, stderr
	MaxJSON   = 1 << 20  // payload of a JSON frame
	maxSmall  = 64       // payload of a resize, signal or credit
)

// StdinWindow is how much stdin the host may send before the first FrameCredit. The agent holds at most this much for a
// command that does not read, so that signals and the end of the stream are always seen behind it.
const StdinWindow = 512 << 10

// ErrFrame is a frame that no correct peer sends.
var ErrFrame = errors.New("malformed frame on the agent channel")

// Resize is a new size of the terminal.
type Resize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// limit is the largest payload that t may have; ok is false for an unknown type.
func (t FrameType) limit() (n int, ok bool) {
	switch t {
	case FrameRequest, FrameResponse:
		return MaxJSON, true
	case FrameStdin, FrameStdout, FrameStderr:
		return MaxData, true
	case FrameExited, FrameResize, FrameSignal, FrameCredit, FrameDropped, FrameOver:
		return maxSmall, true
	case FrameStdinEOF:
		return 0, true
	}
	return 0, false
}

// Reader reads frames. It is for one goroutine.
type Reader struct {
	r   *bufio.Reader
	buf []byte
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReader(r)} }

// Next returns the next frame. The payload is valid until the next call. The error is io.EOF at the end between two
// frames, io.ErrUnexpectedEOF within one, ErrFrame for an unknown type or a length beyond the type's limit.
func (r *Reader) Next() (FrameType, []byte, error) {
	head, err := r.r.Peek(HeaderLen)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	t := FrameType(head[0])
	size := binary.BigEndian.Uint32(head[1:])
	limit, known := t.limit()
	if !known || uint64(size) > uint64(limit) {
		return 0, nil, ErrFrame
	}
	_, _ = r.r.Discard(HeaderLen) // was peeked: cannot fail
	n := int(size)
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	payload := r.buf[:n]
	if _, err := io.ReadFull(r.r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, payload, nil
}

// PutHeader writes the header of a frame of type t with n bytes of payload to the first HeaderLen bytes of b. With it
// a frame is built in place, in the buffer that its payload was read to.
func PutHeader(b []byte, t FrameType, n int) {
	_ = b[HeaderLen-1]
	b[0] = byte(t)
	binary.BigEndian.PutUint32(b[1:], uint32(n))
}

// WriteFrame writes one frame with one Write.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	if limit, known := t.limit(); !known || len(payload) > limit {
		return ErrFrame
	}
	b := make([]byte, HeaderLen+len(payload))
	PutHeader(b, t, len(payload))
	copy(b[HeaderLen:], payload)
	_, err := w.Write(b)
	return err
}

// WriteJSON writes v as the payload of one frame.
func WriteJSON(w io.Writer, t FrameType, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteFrame(w, t, payload)
}

// WriteRequest opens a stream. A nil params is left out.
func WriteRequest(w io.Writer, method string, params any) error {
	req := Request{Method: method}
	if params != nil {
		raw, err := json.Marshal(params)
		if err != nil {
			return err
		}
		req.Params = raw
	}
	return WriteJSON(w, FrameRequest, req)
}

// WriteResult answers a request. A nil result is left out.
func WriteResult(w io.Writer, result any) error {
	var resp Response
	if result != nil {
		raw, err := json.Marshal(result)
		if err != nil {
			return err
		}
		resp.Result = raw
	}
	return WriteJSON(w, FrameResponse, resp)
}

// WriteFault answers a request with err.
func WriteFault(w io.Writer, err error) error {
	return WriteJSON(w, FrameResponse, Response{Fault: FaultOf(err)})
}

// WriteCredit lets the host send n more bytes of stdin.
func WriteCredit(w io.Writer, n int) error {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return WriteFrame(w, FrameCredit, b[:])
}

// ParseCredit reads the payload of a FrameCredit.
func ParseCredit(payload []byte) (int, error) {
	if len(payload) != 4 {
		return 0, ErrFrame
	}
	n := binary.BigEndian.Uint32(payload)
	if n > StdinWindow {
		return 0, ErrFrame
	}
	return int(n), nil
}
