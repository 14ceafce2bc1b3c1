package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is for what a busy machine does in the end.
const patience = time.Minute

// cmdCode is: code N COMMAND [ARG...]. It runs the command, wants exit code N, and leaves its output for stdout, stderr
// and cmp as exec does. A file named by the environment variable STDIN is its stdin.
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	execErr := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](execErr); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(execErr)
	}
	ts.Logf("%s%s", prefixed("[stdout]\n", ts.ReadFile("stdout")), prefixed("[stderr]\n", ts.ReadFile("stderr")))
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// cmdPost is: post METHOD BODY. It calls the daemon's socket as curl would and writes the answer to the file answer.
// With "!" it wants a failure.
func cmdPost(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: post METHOD BODY")
	}
	socket := filepath.Join(ts.Getenv("BANGER_HOME"), "run", "daemon.sock")
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("http://banger/banger.v1."+args[0], "application/json", strings.NewReader(args[1])) //nolint:noctx // has a timeout
	ts.Check(err)
	defer resp.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	ts.Check(err)
	ts.Logf("%s %s", resp.Status, body.String())
	ts.Check(os.WriteFile(ts.MkAbs("answer"), body.Bytes(), 0o600))
	if failed := resp.StatusCode != http.StatusOK; failed != neg {
		ts.Fatalf("unexpected %s", resp.Status)
	}
}

// cmdAwait is: await PATTERN COMMAND [ARG...]. It runs the command until its stdout matches. With "!" until it does not.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: await PATTERN COMMAND [ARG...]")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_ = ts.Exec(args[1], args[2:]...) // its failure is one of the things that are waited out
		if out := ts.ReadFile("stdout"); pattern.MatchString(out) != neg {
			return
		} else if time.Now().After(deadline) {
			ts.Fatalf("after %s:\n%s%s", patience, out, ts.ReadFile("stderr"))
		}
	}
}

// cmdKillPID is: killpid SIGNAL FILE. It signals the process whose id is the only number in the file and waits until it is
// gone for KILL.
func cmdKillPID(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: killpid SIGNAL FILE")
	}
	signals := map[string]syscall.Signal{"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[1])))
	ts.Check(err)
	if pid <= 1 {
		ts.Fatalf("process %d is none of ours", pid)
	}
	ts.Check(syscall.Kill(pid, signals[args[0]]))
	for deadline := time.Now().Add(patience); args[0] == "KILL" && running(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("process %d is still there", pid)
		}
	}
}

// running reports whether the process is there and no zombie.
func running(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	stat := string(data)
	if err != nil {
		return false
	}
	i := strings.LastIndexByte(stat, ')')
	return i >= 0 && !strings.HasPrefix(stat[i:], ") Z")
}

// cmdRepeat is: repeat N COMMAND [ARG...]. It runs the command N times at once; all have to succeed.
func cmdRepeat(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: repeat N COMMAND [ARG...]")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	type outcome struct {
		text []byte
		err  error
	}
	results := make(chan outcome, n)
	for range n {
		cmd := exec.Command("banger", args[2:]...)
		cmd.Env = append(cmd.Environ(), "BANGER_HOME="+ts.Getenv("BANGER_HOME"))
		go func() { // ends with the command, which is waited for below
			out, err := cmd.CombinedOutput()
			results <- outcome{out, err}
		}()
	}
	for range n {
		if r := <-results; r.err != nil {
			ts.Fatalf("%v: %s", r.err, r.text)
		}
	}
}

// cmdSchema is: schema N. It marks the database as one of schema N and leaves the number it had in the file schema-was;
// "schema back" puts that back. The daemon must not run.
func cmdSchema(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: schema N")
	}
	const userVersion = 60 // offset in the header of an SQLite file, 4 bytes, big endian
	path, was := filepath.Join(ts.Getenv("BANGER_HOME"), "data", "banger.db"), ts.MkAbs("schema-was")
	data, err := os.ReadFile(path)
	ts.Check(err)
	number := args[0]
	if number == "back" {
		number = ts.ReadFile("schema-was")
	} else {
		ts.Check(os.WriteFile(was, strconv.AppendUint(nil, uint64(binary.BigEndian.Uint32(data[userVersion:])), 10), 0o600))
	}
	n, err := strconv.ParseUint(number, 10, 32)
	ts.Check(err)
	binary.BigEndian.PutUint32(data[userVersion:], uint32(n))
	ts.Check(os.WriteFile(path, data, 0o600))
}
