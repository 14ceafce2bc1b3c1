package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const greeting = `{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}`

// peer plays QEMU on the other end of conn: it answers each request with what answer returns, line by line.
func peer(t *testing.T, first string, answer func(req request) []string) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer server.Close()
		if _, err := fmt.Fprintln(server, first); err != nil {
			return
		}
		lines := bufio.NewScanner(server)
		for lines.Scan() {
			var req request
			if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
				t.Errorf("request %q: %v", lines.Bytes(), err)
				return
			}
			for _, line := range answer(req) {
				if _, err := fmt.Fprintln(server, line); err != nil {
					return
				}
			}
		}
	})
	t.Cleanup(func() { client.Close(); wg.Wait() })
	return client
}

func ok(req request) []string { return []string{fmt.Sprintf(`{"return":{},"id":%d}`, req.ID)} }

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestExecute(t *testing.T) {
	var asked []string
	var events []Event
	conn := peer(t, greeting, func(req request) []string {
		asked = append(asked, req.Execute)
		switch req.Execute {
		case "query-status":
			return []string{
				`{"event":"RTC_CHANGE","data":{"offset":1}}`,
				fmt.Sprintf(`{"return":{"status":"running"},"id":%d}`, req.ID),
			}
		case "bad":
			return []string{fmt.Sprintf(`{"id":%d,"error":{"class":"CommandNotFound","desc":"no such command"}}`, req.ID)}
		}
		return ok(req)
	})
	ctx := testContext(t)
	c, err := New(ctx, conn, func(e Event) { events = append(events, e) })
	if err != nil {
		t.Fatal(err)
	}
	var status struct{ Status string }
	if err := c.Execute(ctx, "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("query-status = %+v, %v", status, err)
	}
	var failure *Error
	if err := c.Execute(ctx, "bad", nil, nil); !errors.As(err, &failure) || failure.Class != "CommandNotFound" {
		t.Errorf("bad command = %v", err)
	} else if got := err.Error(); got != "bad: no such command" {
		t.Errorf("message = %q", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"qmp_capabilities", "query-status", "bad"}, asked); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	if len(events) != 1 || events[0].Name != "RTC_CHANGE" || string(events[0].Data) != `{"offset":1}` {
		t.Errorf("events = %v", events)
	}
	if err := c.Execute(ctx, "query-status", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	c.Close() // may be called again
}

func TestLateReplyIsNotTakenForTheNextCommand(t *testing.T) {
	late := make(chan struct{})
	conn := peer(t, greeting, func(req request) []string {
		if req.Execute == "slow" {
			<-late
			return []string{fmt.Sprintf(`{"return":{"name":"slow"},"id":%d}`, req.ID)}
		}
		return []string{fmt.Sprintf(`{"return":{"name":%q},"id":%d}`, req.Execute, req.ID)}
	})
	ctx := testContext(t)
	c, err := New(ctx, conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(short, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("slow = %v", err)
	}
	close(late)
	var got struct{ Name string }
	if err := c.Execute(ctx, "fast", nil, &got); err != nil || got.Name != "fast" {
		t.Errorf("fast = %+v, %v", got, err)
	}
}

func TestHostilePeer(t *testing.T) {
	for _, tc := range []struct{ name, first, answer, want string }{
		{"not JSON", "SSH-2.0-OpenSSH_9.2", "", "not a message"},
		{"JSON of another kind", `{"hello":1}`, "", "no known member"},
		{"no greeting", `{"return":{}}`, "", "the peer is not QEMU"},
		{"endless line", strings.Repeat("x", MaxLine+1), "", "a line of more than"},
		{"rubbish for an answer", greeting, "%%%", "not a message"},
		{"closes", "", "", "connection closed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var conn net.Conn
			if tc.name == "closes" {
				client, server := net.Pipe()
				server.Close()
				conn = client
			} else {
				conn = peer(t, tc.first, func(request) []string { return []string{tc.answer} })
			}
			c, err := New(testContext(t), conn, nil)
			if err == nil {
				c.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
		})
	}
}

func TestSilentPeerMeetsTheDeadline(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, client, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		greeting, `{"return":{},"id":1}`, `{"error":{"class":"GenericError","desc":"x"},"id":2}`,
		`{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}`, `[]`, `{"id":-1}`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(bytes.TrimSpace(line))
		if err == nil && m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Error("an empty message was taken")
		}
	})
}
