// Package qmp speaks the QEMU Machine Protocol: JSON objects over a stream, one on each line.
//
// QEMU is the VMM of a hostile guest and may be under its control, so what it sends is bounded: a line has a size
// limit, a command has the context's deadline, and anything that is not QMP ends the connection.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// MaxLine is the longest message taken from QEMU. The longest that a command of banger's can return has a few
// hundred bytes; query-qmp-schema, the longest there is, about 250 KB.
const MaxLine = 1 << 20

// ErrClosed is what a command returns when the connection is gone: QEMU has ended, or Close was called.
var ErrClosed = errors.New("qmp: connection closed")

// Event is something that happened in QEMU.
type Event struct {
	Name string          // "SHUTDOWN"
	Data json.RawMessage // may be empty
}

// Error is a command's failure as QEMU tells it.
type Error struct {
	Command string
	Class   string // "GenericError"
	Desc    string
}

// Error returns the command and QEMU's description.
func (e *Error) Error() string { return e.Command + ": " + e.Desc }

// Client is a connection to one QEMU. It is safe for concurrent use; commands run one after the other.
type Client struct {
	conn    net.Conn
	onEvent func(Event)
	replies chan message  // holds the last reply until a command takes it
	turn    chan uint64   // holds the next command's id; taken while a command runs
	done    chan struct{} // closed when the reader has returned; err is valid then
	err     error
}

// message is every form that QMP sends: greeting, reply, error, event.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	ID     uint64          `json:"id"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// request is a command.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// New takes over conn: it waits for the greeting and leaves capabilities negotiation. Events go to onEvent, which may
// be nil, is called by one goroutine and must not block. On error conn is closed.
func New(ctx context.Context, conn net.Conn, onEvent func(Event)) (*Client, error) {
	c := &Client{
		conn: conn, onEvent: onEvent, replies: make(chan message, 1), turn: make(chan uint64, 1),
		done: make(chan struct{}),
	}
	go c.read()
	if err := c.negotiate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	c.turn <- 2
	return c, nil
}

func (c *Client) negotiate(ctx context.Context) error {
	greeting, err := c.next(ctx)
	if err != nil {
		return fmt.Errorf("qmp greeting: %w", err)
	}
	if greeting.QMP == nil {
		return errors.New("qmp greeting: the peer is not QEMU")
	}
	return c.command(ctx, request{Execute: "qmp_capabilities", ID: 1}, nil)
}

// Execute runs a command and decodes what it returns into result; both args and result may be nil. A command that
// fails is an *Error.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	select {
	case id := <-c.turn:
		defer func() { c.turn <- id + 1 }()
		return c.command(ctx, request{Execute: command, Arguments: args, ID: id}, result)
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
}

func (c *Client) command(ctx context.Context, req request, result any) error {
	line, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", req.Execute, err)
	}
	deadline, _ := ctx.Deadline() // the zero time means none
	c.conn.SetWriteDeadline(deadline)
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("qmp %s: %w", req.Execute, errors.Join(ErrClosed, err))
	}
	for {
		reply, err := c.next(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("qmp %s: %w", req.Execute, err)
		case reply.ID != req.ID: // of a command whose caller gave up
		case reply.Error != nil:
			return &Error{Command: req.Execute, Class: reply.Error.Class, Desc: reply.Error.Desc}
		case result == nil:
			return nil
		default:
			if err := json.Unmarshal(reply.Return, result); err != nil {
				return fmt.Errorf("qmp %s: unexpected answer: %w", req.Execute, err)
			}
			return nil
		}
	}
}

// next returns the next message that is not an event.
func (c *Client) next(ctx context.Context) (message, error) {
	select {
	case m := <-c.replies:
		return m, nil
	case <-c.done:
		return message{}, c.err
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	}
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits for the last event to be delivered. It may be called again.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// read delivers messages until the connection ends or something comes that is not QMP.
func (c *Client) read() {
	defer close(c.done)
	c.err = ErrClosed
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(make([]byte, 4096), MaxLine)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		m, err := decode(line)
		if err != nil {
			c.err = err
			c.conn.SetDeadline(time.Unix(1, 0)) // nothing more is taken or sent; Close closes it
			return
		}
		if m.Event != "" {
			if c.onEvent != nil {
				c.onEvent(Event{Name: m.Event, Data: m.Data})
			}
			continue
		}
		select {
		case <-c.replies: // of a command whose caller gave up
		default:
		}
		c.replies <- m // does not block: nobody else sends
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		c.err = fmt.Errorf("qmp: a line of more than %d bytes", MaxLine)
	}
}

// decode reads one message and refuses what is none.
func decode(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("qmp: not a message: %w", err)
	}
	if m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
		return message{}, errors.New("qmp: not a message: no known member")
	}
	return m, nil
}
