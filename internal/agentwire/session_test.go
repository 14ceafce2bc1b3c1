package agentwire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
)

// handshake runs both sides, after before was sent each way, and returns their streams connected.
func handshake(t *testing.T, toAgent, toHost string) (host, agent net.Conn) {
	t.Helper()
	hostConn, agentConn := net.Pipe()
	t.Cleanup(func() { _ = hostConn.Close(); _ = agentConn.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		_, _ = io.WriteString(agentConn, toHost)
		session, err := Accept(agentConn)
		if err != nil {
			t.Errorf("accept: %v", err)
			close(accepted)
			return
		}
		t.Cleanup(func() { _ = session.Close() })
		stream, err := session.Accept()
		if err != nil {
			t.Errorf("accept a stream: %v", err)
		}
		accepted <- stream
	}()
	if toHost != "" {
		if _, err := io.ReadFull(hostConn, make([]byte, 0)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn := net.Conn(hostConn)
	if toAgent != "" {
		conn = &prefixed{Conn: hostConn, prefix: []byte(toAgent)}
	}
	session, err := Connect(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	stream, err := session.Open()
	if err != nil {
		t.Fatal(err)
	}
	return stream, <-accepted
}

// prefixed sends something before the first write.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Write(b []byte) (int, error) {
	for len(p.prefix) > 0 {
		n, err := p.Conn.Write(p.prefix)
		p.prefix = p.prefix[n:]
		if err != nil {
			return 0, err
		}
	}
	return p.Conn.Write(b)
}

func TestHandshakeSkipsWhatIsLeftOfOtherSessions(t *testing.T) {
	long := strings.Repeat("g", 10_000)
	for _, tc := range []struct{ name, toAgent, toHost string }{
		{"clean", "", ""},
		{"binary", "\x00\x01\x00\x02\xff\xfe", "\x00\x00\x00\x01\xff"},
		{"long lines", long + "\n" + long, long},
		{"stale lines", "BANGER-HOST 1 old\nBANGER-GO older\n", "BANGER-AGENT 1 old\n"},
		{"repeated lines", strings.Repeat("BANGER-HOST 1 old\n", 50), ""},
		{"half a line", "BANGER-HOST 1 12", "BANGER-AGENT 1 12"},
		{"malformed lines", "BANGER-HOST\nBANGER-HOST 1\nBANGER-GO\nBANGER-GO \n", "BANGER-AGENT\nBANGER-AGENT x y\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			host, agent := handshake(t, tc.toAgent, tc.toHost)
			payload := bytes.Repeat([]byte("data"), 100_000)
			go func() { _, _ = host.Write(payload) }()
			got := make([]byte, len(payload))
			if _, err := io.ReadFull(agent, got); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("read: %v, or other bytes", err)
			}
			go func() { _, _ = agent.Write([]byte("back")) }()
			if _, err := io.ReadFull(host, got[:4]); err != nil || string(got[:4]) != "back" {
				t.Errorf("read back: %q, %v", got[:4], err)
			}
		})
	}
}

func TestConnectEndsWithItsContext(t *testing.T) {
	host, agent := net.Pipe()
	defer func() { _ = host.Close(); _ = agent.Close() }()
	go func() { _, _ = io.Copy(io.Discard, agent) }()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, host); !fault.Is(err, fault.Timeout) {
		t.Errorf("err = %v (%s), want a timeout", err, fault.ClassOf(err))
	}
}

func TestConnectRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		agent func(net.Conn, string)
		text  string
	}{
		{"a newer agent", func(c net.Conn, nonce string) {
			_, _ = io.WriteString(c, "BANGER-AGENT 99 "+nonce+"\n")
		}, "generation 99"},
		{"endless garbage", func(c net.Conn, _ string) {
			for junk := bytes.Repeat([]byte("junk\n"), 10_000); ; {
				if _, err := c.Write(junk); err != nil {
					return
				}
			}
		}, "garbage"},
		{"the end", func(c net.Conn, _ string) { _ = c.Close() }, "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			host, agent := net.Pipe()
			defer func() { _ = host.Close(); _ = agent.Close() }()
			go func() {
				in := bufio.NewScanner(agent)
				for in.Scan() {
					if f := strings.Fields(in.Text()); len(f) == 3 {
						go tc.agent(agent, f[2])
						break
					}
				}
				_, _ = io.Copy(io.Discard, agent)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := Connect(ctx, host); err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("err = %v, want one with %q", err, tc.text)
			}
		})
	}
}

func TestAcceptEndsWithItsConnection(t *testing.T) {
	host, agent := net.Pipe()
	_ = host.Close()
	if _, err := Accept(agent); !errors.Is(err, io.EOF) {
		t.Errorf("err = %v", err)
	}
}

func FuzzAwaitHost(f *testing.F) {
	f.Add([]byte("BANGER-HOST 1 n\nBANGER-GO n\n"))
	f.Add([]byte("\nBANGER-HOST 1 n\nBANGER-HOST 1 m\nBANGER-GO n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		err := awaitHost(&out, bufio.NewReader(bytes.NewReader(in)))
		if err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("err = %v", err)
		}
		if err == nil && !bytes.Contains(out.Bytes(), []byte(agentWord)) {
			t.Error("let a host in that was not answered")
		}
	})
}

// writes records each write.
type writes struct{ got []string }

func (w *writes) Write(p []byte) (int, error) { w.got = append(w.got, string(p)); return len(p), nil }
func (w *writes) Close() error                { return nil }

func TestChannelJoinsHeaderAndBody(t *testing.T) {
	w := &writes{}
	c := &channel{conn: w}
	data := "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x03"
	update := "\x00\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x03"
	empty := "\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00"
	for _, p := range []string{update, data, "abc", empty, data, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09"} {
		if n, err := c.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	want := []string{update, data + "abc", empty, data + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09"}
	if strings.Join(w.got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q", w.got)
	}
}
