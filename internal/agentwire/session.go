package agentwire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"banger/internal/fault"
)

// A session on a byte stream begins with three lines:
//
//	host:  BANGER-HOST <generation> <nonce>
//	agent: BANGER-AGENT <generation> <nonce>
//	host:  BANGER-GO <nonce>
//
// after which both sides speak yamux. The host repeats its first line until it is answered, because nobody may listen
// yet; the agent answers each nonce once. The third line is there for the repetitions that are already on their way:
// the agent drops everything before it. Either side skips what it does not know, remains of a session that broke (the
// supervisor died, the guest was restored from a snapshot) included.
const (
	hostWord  = "BANGER-HOST"
	agentWord = "BANGER-AGENT"
	goWord    = "BANGER-GO"

	maxLine    = 128     // a longer line is not one of the handshake
	maxGarbage = 4 << 20 // what the host skips before it gives a guest up

	firstRepeat = 20 * time.Millisecond
	lastRepeat  = 500 * time.Millisecond
)

// Connect begins a session as the host and returns its streams. It ends with ctx. The caller closes conn on failure.
// A fault of class Internal is final: the agent speaks another generation of the wire. Any other may pass.
func Connect(ctx context.Context, conn net.Conn) (*yamux.Session, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	in := bufio.NewReaderSize(conn, MaxData)
	err := greet(ctx, conn, in)
	if !stop() && err == nil {
		err = ctx.Err() // the deadline of the past was set, or is being set right now
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, fault.Wrap(fault.ClassOf(ctx.Err()), context.Cause(ctx), "the guest's agent does not answer")
		}
		var f *fault.Error
		if !errors.As(err, &f) { // of the connection: the next one may do better
			return nil, fault.Wrap(fault.Unavailable, err, "agent channel")
		}
		return nil, fault.Context(err, "agent channel")
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	config := muxConfig()
	config.AcceptBacklog = 1 // an agent opens no streams
	return yamux.Client(&channel{Reader: in, conn: conn}, config)
}

// greet does the host's part of the handshake.
func greet(ctx context.Context, conn net.Conn, in *bufio.Reader) error {
	lines := lineScanner{in: in, budget: maxGarbage}
	nonce, err := knock(ctx, conn, &lines)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if ctx.Err() != nil { // its deadline may just have been overwritten
		return ctx.Err()
	}
	_, err = conn.Write([]byte(goWord + " " + nonce + "\n"))
	return err
}

// knock repeats the host's first line until an agent answers it.
func knock(ctx context.Context, conn net.Conn, lines *lineScanner) (nonce string, err error) {
	nonce = strconv.FormatUint(rand.Uint64(), 16)
	// The first line feed ends a line of which only a part got through.
	line := fmt.Appendf(nil, "\n%s %d %s\n", hostWord, Generation, nonce)
	for repeat := firstRepeat; ctx.Err() == nil; repeat = min(2*repeat, lastRepeat) {
		if err := conn.SetDeadline(time.Now().Add(repeat)); err != nil {
			return "", err
		}
		if _, err := conn.Write(line); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return "", err
		}
		generation, err := lines.answer(nonce)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return "", err
		case generation < 1 || generation > Generation:
			// Not Unavailable: it will not learn another one.
			return "", fault.New(fault.Internal, "the guest's agent speaks generation %d of the wire, this banger up to %d",
				generation, Generation)
		}
		return nonce, nil
	}
	return "", ctx.Err()
}

// Accept waits as the agent for a host and begins a session with it. It returns the error of conn if that ends first,
// io.EOF included. The session owns conn.
func Accept(conn io.ReadWriteCloser) (*yamux.Session, error) {
	in := bufio.NewReaderSize(conn, MaxData)
	if err := awaitHost(conn, in); err != nil {
		return nil, err
	}
	return yamux.Server(&channel{Reader: in, conn: conn}, muxConfig())
}

// awaitHost does the agent's part of the handshake.
func awaitHost(conn io.Writer, in *bufio.Reader) error {
	lines := lineScanner{in: in, budget: -1}
	answered := ""
	for {
		line, err := lines.next()
		if err != nil {
			return err
		}
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case hostWord:
			_, nonce, _ := strings.Cut(rest, " ")
			if nonce == "" || nonce == answered {
				continue
			}
			answered = nonce
			if _, err := fmt.Fprintf(conn, "\n%s %d %s\n", agentWord, Generation, nonce); err != nil {
				return err
			}
		case goWord:
			if answered != "" && rest == answered {
				return nil
			}
		}
	}
}

// lineScanner finds lines in a stream that may hold anything else. It survives read errors: a partial line is kept.
type lineScanner struct {
	in     *bufio.Reader
	line   []byte
	long   bool // the current line is too long to be one of ours
	budget int  // bytes left before giving up; negative: no limit
}

// next returns the next line of at most maxLine bytes.
func (s *lineScanner) next() (string, error) {
	for {
		b, err := s.in.ReadByte()
		if err != nil {
			return "", err
		}
		if s.budget == 0 {
			return "", fault.New(fault.Unavailable, "the guest sends garbage instead of its agent's answer")
		}
		s.budget--
		switch {
		case b != '\n' && len(s.line) == maxLine:
			s.long = true
		case b != '\n':
			s.line = append(s.line, b)
		default:
			line, long := string(s.line), s.long
			s.line, s.long = s.line[:0], false
			if !long {
				return line, nil
			}
		}
	}
}

// answer scans for the agent's answer to nonce and returns its generation.
func (s *lineScanner) answer(nonce string) (int, error) {
	for {
		line, err := s.next()
		if err != nil {
			return 0, err
		}
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != agentWord || fields[2] != nonce {
			continue
		}
		if generation, err := strconv.Atoi(fields[1]); err == nil {
			return generation, nil
		}
	}
}

// muxConfig is the same on both sides. All of yamux's own time limits are off or far away: a guest that is paused, or
// starved on a busy host, is not broken. Callers have deadlines of their own.
func muxConfig() *yamux.Config {
	config := yamux.DefaultConfig()
	config.EnableKeepAlive = false
	config.ConnectionWriteTimeout = 24 * time.Hour
	config.StreamOpenTimeout = 0
	config.MaxStreamWindowSize = 1 << 20
	config.LogOutput = io.Discard
	return config
}

// channel is the connection below yamux. Yamux writes the header of a data frame and its body separately; on
// virtio-serial each write is a trip through the VMM, so channel joins the two.
type channel struct {
	*bufio.Reader
	conn io.WriteCloser
	out  []byte // a header that waits for its body
}

// Sizes and codes of yamux's header: version, type, flags (2), stream (4), length (4).
const (
	muxHeaderLen = 12
	muxTypeData  = 0
)

// Write is called by yamux's one sending goroutine.
func (c *channel) Write(p []byte) (int, error) {
	if len(c.out) == 0 && len(p) == muxHeaderLen && p[1] == muxTypeData && string(p[8:]) != "\x00\x00\x00\x00" {
		c.out = append(c.out, p...)
		return len(p), nil
	}
	if len(c.out) == 0 {
		return c.conn.Write(p)
	}
	c.out = append(c.out, p...)
	_, err := c.conn.Write(c.out)
	if c.out = c.out[:0]; cap(c.out) > 2*MaxData {
		c.out = nil
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close closes the connection.
func (c *channel) Close() error { return c.conn.Close() }

// Await waits as the host until an agent answers, and begins no session: the agent goes on waiting for one. It is for a
// guest that is to be saved while it waits.
func Await(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	lines := lineScanner{in: bufio.NewReader(conn), budget: maxGarbage}
	if _, err := knock(ctx, conn, &lines); err != nil {
		return fault.Wrap(fault.Unavailable, err, "agent channel")
	}
	return ctx.Err()
}
