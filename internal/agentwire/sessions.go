package agentwire

import "encoding/binary"

// Methods about sessions: commands that outlive the stream that started them. An agent that is older does not know them.
const (
	MethodSessionStart  = "session.start"  // params SessionStart; result Session
	MethodSessionList   = "session.list"   // no params; result Sessions
	MethodSessionAttach = "session.attach" // params SessionAttach; result Session, then data frames
	MethodSessionWrite  = "session.write"  // params SessionWrite; no result
	MethodSessionStop   = "session.stop"   // params SessionStop; result Session
	MethodSessionRemove = "session.remove" // params SessionRemove; no result
)

// Limits of sessions.
const (
	MaxSessions     = 64      // that run
	MaxFinished     = 32      // that have ended and are kept; the oldest goes first
	SessionOutput   = 1 << 20 // bytes of output that each keeps
	MaxSessionName  = 63
	MaxSessionWrite = 64 << 10
	// MaxSessionText bounds what a list says of each command line and directory, so that every list fits into a frame.
	MaxSessionText = 512
)

// Frames that only an attached stream has.
const (
	FrameDropped FrameType = 11 // agent: 8 bytes big-endian, so much output was dropped before what comes next
	FrameOver    FrameType = 12 // agent: the last frame, why there is no more although the session was not seen to end
)

// What a FrameOver can say.
const (
	OverRead    = "read"    // that was all there is, and more was not asked for
	OverRemoved = "removed" // the session was removed
)

// SessionStart is a command to run as a session. Without a terminal, ExecStart.Stdin makes an input that stays open until
// a SessionWrite ends it, whoever comes and goes.
type SessionStart struct {
	ExecStart
	Name string `json:"name,omitempty"` // no two sessions that run have the same
}

// Session is a command that outlives who started it.
type Session struct {
	ID          string      `json:"id"` // a number, never used again until the guest is started anew
	Name        string      `json:"name,omitempty"`
	Argv        []string    `json:"argv"` // perhaps shortened
	User        string      `json:"user,omitempty"`
	Workdir     string      `json:"workdir,omitempty"`
	TTY         bool        `json:"tty,omitempty"`
	Stdin       bool        `json:"stdin,omitempty"`
	PID         int         `json:"pid"`
	StartedUnix int64       `json:"started"`         // milliseconds, by the guest's clock
	EndedUnix   int64       `json:"ended,omitempty"` // 0 while it runs
	Exited      *ExecExited `json:"exited,omitempty"`
	Attached    int         `json:"attached,omitempty"` // streams
	Output      uint64      `json:"output,omitempty"`   // bytes that it has written
}

// Sessions are those of a guest, the oldest first.
type Sessions struct {
	Sessions []Session `json:"sessions"`
}

// SessionAttach connects a stream to a session. The agent sends what is kept of the output and then, with Follow, what
// comes, until FrameExited or FrameOver. The end of the stream does nothing to the session. A stream that is not read
// misses output, which a FrameDropped says; it holds nobody up.
type SessionAttach struct {
	ID string `json:"id"`
	// Bytes and Lines bound how much of the past is sent: the last so many, from the beginning of a line. Negative: all.
	Bytes  int  `json:"bytes"`
	Lines  int  `json:"lines"`
	Follow bool `json:"follow,omitempty"`
	Quiet  bool `json:"quiet,omitempty"` // no output at all, only how it ends
	Stdin  bool `json:"stdin,omitempty"` // the stream may send stdin; its end is not the end of the session's
	// Rows and Cols are the size of the terminal at the other end, 0 if there is none. The last one to say so wins.
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`
}

// SessionWrite sends input to a session. All of it is
// taken, for the command to read when it likes, or nothing.
type SessionWrite struct {
	ID   string `json:"id"`
	Data []byte `json:"data,omitempty"`
	// Enter ends Data with what the enter key does: a carriage return on a terminal, a line feed elsewhere.
	Enter bool `json:"enter,omitempty"`
	EOF   bool `json:"eof,omitempty"` // nothing comes after it: ^D on a terminal
}

// SessionStop ends a session: a signal, and after the grace SIGKILL. It is answered when the session has ended.
type SessionStop struct {
	ID          string `json:"id"`
	Signal      string `json:"signal,omitempty"` // empty: HUP with a terminal, TERM without
	GraceMillis int64  `json:"grace_millis"`
}

// SessionRemove forgets a session that has ended, with Force also one that runs, which is killed.
type SessionRemove struct {
	ID    string `json:"id"`
	Force bool   `json:"force,omitempty"`
}

// DroppedFrame is the payload of a FrameDropped.
func DroppedFrame(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// ParseDropped reads the payload of a FrameDropped.
func ParseDropped(payload []byte) (uint64, error) {
	if len(payload) != 8 {
		return 0, ErrFrame
	}
	return binary.BigEndian.Uint64(payload), nil
}
