package guest

import (
	"encoding/json"
	"math"
	"net"
	"strings"
	"testing"
	"unicode"

	"banger/internal/agentwire"
	"banger/internal/fault"
)

func TestHostileSessions(t *testing.T) {
	list := func(sessions ...agentwire.Session) []agentwire.Session {
		t.Helper()
		got, err := scripted(t, func(c net.Conn) {
			_ = agentwire.WriteResult(c, agentwire.Sessions{Sessions: sessions})
		}).Sessions(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	hostile := agentwire.Session{
		ID: "1", Name: "ok", Argv: []string{"a\x1b]0;title\x07", strings.Repeat("x", 5000), "dropped"}, User: "\x1b[2J", Workdir: strings.Repeat("/d", 5000),
		PID: -3, StartedUnix: math.MaxInt64, EndedUnix: 5, Exited: &agentwire.ExecExited{Code: 3, Signal: "\x1b[2J"}, Attached: -1, Output: math.MaxUint64,
	}
	got := list(hostile)
	if len(got) != 1 || !fit(got[0]) {
		t.Errorf("%+v", got)
	}
	if got := list(
		agentwire.Session{ID: ""}, agentwire.Session{ID: "x"}, agentwire.Session{ID: "-1"}, agentwire.Session{ID: strings.Repeat("1", 50)},
		agentwire.Session{ID: "1", Name: "\x1b"}, agentwire.Session{ID: "1", Name: strings.Repeat("a", 70)},
		agentwire.Session{ID: "2", EndedUnix: 1}, agentwire.Session{ID: "3", EndedUnix: 1, Exited: &agentwire.ExecExited{Code: 256}},
	); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if got := list(agentwire.Session{ID: "7", Name: "a"}, agentwire.Session{ID: "7", Name: "b"}); len(got) != 1 {
		t.Errorf("an id twice: %+v", got)
	}
	many := make([]agentwire.Session, 1000)
	for i := range many {
		many[i].ID = strings.Repeat("1", 1+i%19) + strings.Repeat("0", i/1000)
	}
	if got := list(many...); len(got) > agentwire.MaxSessions+agentwire.MaxFinished {
		t.Errorf("%d sessions", len(got))
	}
	for name, answer := range map[string]any{"no id": agentwire.Session{}, "no object": []int{1}, "nothing": nil} {
		c := scripted(t, func(c net.Conn) { _ = agentwire.WriteResult(c, answer) })
		if _, _, err := c.Attach(t.Context(), agentwire.SessionAttach{}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("attach, %s: %v", name, err)
		}
		if _, err := c.StopSession(t.Context(), agentwire.SessionStop{}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("stop, %s: %v", name, err)
		}
	}
}

// fit reports whether everything in s is in the range of the possible and can be shown.
func fit(s agentwire.Session) bool {
	text := strings.Join(append([]string{s.ID, s.Name, s.User, s.Workdir}, s.Argv...), "")
	bad := func(r rune) bool { return !unicode.IsPrint(r) && r != unicode.ReplacementChar }
	return len(text) < 16<<10 && !strings.ContainsFunc(text, bad) && s.PID >= 0 && s.StartedUnix >= 0 && s.StartedUnix <= maxCounter && s.Attached >= 0 &&
		s.Output <= maxCounter && (s.EndedUnix != 0) == (s.Exited != nil) && (s.Exited == nil || s.Exited.Code >= 0 && s.Exited.Code <= 255)
}

// Agents of before there were sessions answer in these very words.
func TestOldAgent(t *testing.T) {
	c := scripted(t, func(c net.Conn) {
		_ = agentwire.WriteFault(c, fault.New(fault.Invalid, `unknown method "session.list"`))
	})
	_, err := c.Sessions(t.Context())
	if _, old := err.(*OldAgentError); !old {
		t.Errorf("%v", err)
	}
	_, err = c.StartSession(t.Context(), agentwire.SessionStart{})
	if _, old := err.(*OldAgentError); old || !fault.Is(err, fault.Invalid) {
		t.Errorf("another method's name is no word about this one: %v", err)
	}
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(`{"id":"1","name":"web","argv":["a","b"],"pid":7,"started":5,"ended":6,"exited":{"code":3,"signal":"SIGHUP"}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var s agentwire.Session
		if json.Unmarshal(in, &s) != nil {
			return
		}
		if got, ok := checkSession(s); ok && !fit(got) {
			t.Errorf("%+v", got)
		}
	})
}
