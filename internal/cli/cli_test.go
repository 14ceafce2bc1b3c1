package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// What is wrong with a command line is said before anything is reached: Connect is nil here.
func TestRefusedBeforeAnythingIsReached(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"vm", "run", "somewhere"}, `banger: error: argument "somewhere": this place is reserved for a directory to bring in, which is not possible yet; an image goes to --image, a command behind --
banger: hint: banger vm run --image somewhere
`},
		{[]string{"run", "alpine", "--", "ls", "-l"}, `banger: error: argument "alpine": this place is reserved for a directory to bring in, which is not possible yet; an image goes to --image, a command behind --
banger: hint: banger run --image alpine -- ls -l
`},
		{[]string{"vm", "crate"}, "banger: error: unknown command \"crate\" for \"banger vm\", did you mean create?\nbanger: hint: banger vm create --help\n"},
		{[]string{"--verison"}, "banger: error: banger: unknown flag --verison\nbanger: hint: banger --help\n"},
		{[]string{"vm", "rm", "-x", "a"}, "banger: error: banger vm rm: unknown shorthand flag: 'x' in -x\nbanger: hint: banger vm rm --help\n"},
		{[]string{"vm", "rm", "--all", "a"}, "banger: error: banger vm rm: --all and the name of a vm exclude each other\nbanger: hint: banger vm rm a\n"},
		{[]string{"exec", "-e", "GONE", "dev"}, "banger: error: environment variable GONE has no value on the host to pass on\nbanger: hint: export GONE=...\n"},
		{[]string{"exec", "--tty", "--no-tty", "dev"}, "banger: error: --tty and --no-tty exclude each other\n"},
		{[]string{"version", "x", "--format", "json"}, `{"error":{"class":"invalid","message":"banger version takes no argument \"x\"","hint":"banger version --help"}}` + "\n"},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			d, out, errOut := offline(t)
			if code := Main(t.Context(), tc.args, d); code != fault.ExitCode(fault.Invalid) {
				t.Errorf("exit code %d", code)
			}
			if diff := cmp.Diff(tc.want, errOut.String()); diff != "" || out.Len() > 0 {
				t.Errorf("stdout %q, stderr %s", out, diff)
			}
		})
	}
}

func TestExitCodeOf(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(&Interrupted{syscall.SIGTERM})
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		want int
	}{
		{"nothing", t.Context(), nil, 0},
		{"guest's", t.Context(), &exitError{code: 7}, 7},
		{"not found in the guest", t.Context(), sessionError(&vmclient.NotStartedError{Err: fault.New(fault.NotFound, "x")}), 127},
		{"not executable", t.Context(), sessionError(&vmclient.NotStartedError{Err: fault.New(fault.Denied, "x")}), 126},
		{"bad user", t.Context(), sessionError(&vmclient.NotStartedError{Err: fault.New(fault.Invalid, "x")}), 240},
		{"class", t.Context(), fault.New(fault.Exists, "x"), 242},
		{"no class", t.Context(), errors.New("x"), 125},
		{"cancelled by the daemon", t.Context(), fault.New(fault.Cancelled, "x"), 130},
		{"^C", t.Context(), &Interrupted{syscall.SIGINT}, 130},
		{"signal", interrupted, fault.Wrap(fault.Cancelled, context.Canceled, "list"), 143},
		{"reader is gone", t.Context(), &vmclient.OutputError{Err: syscall.EPIPE}, 141},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := codeOf(tc.ctx, tc.err); got != tc.want {
				t.Errorf("code = %d, want %d", got, tc.want)
			}
		})
	}
}

func TestEndOfAnOperation(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(&Interrupted{syscall.SIGINT})
	op := func(state string, f *bangerv1.Fault) *bangerv1.Operation {
		return &bangerv1.Operation{State: state, Fault: f}
	}
	broken := &bangerv1.Fault{Class: "unavailable", Message: "no mirror", Hint: "banger doctor"}
	for _, tc := range []struct {
		name   string
		ctx    context.Context
		op     *bangerv1.Operation
		stream error
		class  fault.Class // "": done
		hint   string
	}{
		{"done", t.Context(), op("done", nil), nil, "", ""},
		{"done although interrupted", interrupted, op("done", nil), nil, "", ""},
		{"failed", t.Context(), op("failed", broken), nil, fault.Unavailable, "banger doctor"},
		{"failed without a reason", t.Context(), op("failed", nil), nil, fault.Internal, ""},
		{"cancelled by us", interrupted, op("cancelled", nil), nil, fault.Cancelled, ""},
		{"cancelled by another", t.Context(), op("cancelled", &bangerv1.Fault{Class: "cancelled", Message: "x"}), nil, fault.Cancelled, ""},
		{"daemon gone", t.Context(), op("running", nil), io.ErrUnexpectedEOF, fault.Internal, ""},
		{"stream ended early", t.Context(), op("running", nil), nil, fault.Unavailable, "banger daemon logs"},
		{"nothing came", t.Context(), nil, nil, fault.Unavailable, "banger daemon logs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ended(tc.ctx, tc.op, tc.stream)
			if (err == nil) != (tc.class == "") || err != nil && !fault.Is(err, tc.class) || fault.HintOf(err) != tc.hint {
				t.Errorf("err = %v (%s), hint %q", err, fault.ClassOf(err), fault.HintOf(err))
			}
		})
	}
}

func TestExpandEnv(t *testing.T) {
	lookup := func(name string) (string, bool) {
		value, ok := map[string]string{"HOST": "h", "EMPTY": ""}[name]
		return value, ok
	}
	got, err := expandEnv([]string{"A=1", "HOST", "EMPTY", "B=x=y", "C="}, lookup)
	if diff := cmp.Diff([]string{"A=1", "HOST=h", "EMPTY=", "B=x=y", "C="}, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	for _, bad := range []string{"", "=1", "UNSET"} {
		if _, err := expandEnv([]string{bad}, lookup); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNamesAreOrderedAsPeopleDo(t *testing.T) {
	names := []string{"test-1", "test-2", "test-10", "test-10a", "test-x", "tests"}
	for i := range names {
		for j := range names {
			if got := compareNames(names[i], names[j]); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("compareNames(%q, %q) = %d", names[i], names[j], got)
			}
		}
	}
}

func TestSignals(t *testing.T) {
	ctx, s := NewSignals(t.Context())
	defer s.Close()
	patient := s.Patient(ctx)
	taken, release := s.Take()
	s.handle(syscall.SIGTERM)
	if sig := <-taken; sig != syscall.SIGTERM || ctx.Err() != nil {
		t.Errorf("taken %v, context %v", sig, ctx.Err())
	}
	release()
	s.handle(syscall.SIGINT)
	if interrupt := interruptOf(ctx, context.Cause(ctx)); interrupt == nil || interrupt.code() != 130 || patient.Err() != nil {
		t.Errorf("cause %v, patient %v", context.Cause(ctx), patient.Err())
	}
	s.handle(syscall.SIGINT)
	if patient.Err() == nil {
		t.Error("the second signal did not end patience")
	}
	s.handle(syscall.SIGINT)
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	long := strings.Repeat("x", 100<<10)
	write(t, path+".1", "r1\nr2\nr3\n")
	write(t, path, "a\n"+long+"\nb\nc\n")
	for _, tc := range []struct {
		lines int
		want  string
	}{
		{-1, "r1\nr2\nr3\na\n" + long + "\nb\nc\n"},
		{0, ""},
		{1, "c\n"},
		{2, "b\nc\n"},
		{3, long + "\nb\nc\n"},
		{4, "a\n" + long + "\nb\nc\n"},
		{6, "r2\nr3\na\n" + long + "\nb\nc\n"},
		{99, "r1\nr2\nr3\na\n" + long + "\nb\nc\n"},
	} {
		var out bytes.Buffer
		log := logFile{path: path, lines: tc.lines, out: &out}
		if err := log.show(t.Context()); err != nil || out.String() != tc.want {
			t.Errorf("%d lines: %v, %d bytes, want %d", tc.lines, err, out.Len(), len(tc.want))
		}
	}
	log := logFile{path: path + ".missing", lines: 5, out: io.Discard}
	if err := log.show(t.Context()); err != nil {
		t.Errorf("missing: %v", err)
	}
}

// A log that is followed is read on through a rotation, until nothing can be added any more.
func TestLogFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	write(t, path, "one\n")
	r, w := io.Pipe()
	result := make(chan error, 1)
	over := make(chan struct{})
	go func() {
		log := logFile{path: path, lines: -1, follow: true, out: w, ended: func(context.Context) bool {
			select {
			case <-over:
				return true
			default:
				return false
			}
		}}
		result <- log.show(t.Context())
		w.Close()
	}()
	read := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
			t.Fatalf("read %q, %v; want %q", buf, err, want)
		}
	}
	read("one\n")
	add(t, path, "two\n")
	read("two\n")
	add(t, path, "three\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, path, "four\n")
	read("three\nfour\n")
	add(t, path, "five\n")
	close(over)
	rest, err := io.ReadAll(r)
	if err != nil || string(rest) != "five\n" {
		t.Errorf("rest %q, %v", rest, err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestShow(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	m := &bangerv1.VM{
		Id: "0123456789ab", State: "running", VmmPid: 42, StartedAtMs: now.UnixMilli() - 65_000, Vmm: "qemu", Accelerator: "tcg",
		Spec: &bangerv1.VMSpec{Name: "dev\x1b[31m", Image: "debian-bookworm", Cpus: 2, MemoryBytes: 1 << 30, DiskBytes: 10 << 30},
	}
	d, out, _ := offline(t)
	if err := d.Term.Table(vmTable([]*bangerv1.VM{m}, now)); err != nil {
		t.Fatal(err)
	}
	want := "NAME  STATE    IMAGE            CPUS  MEMORY  UPTIME  PID\ndev   running  debian-bookworm     2      1G   1m05s   42\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	got := map[string]string{}
	for _, p := range vmPairs(m, now) {
		got[p[0]] = p[1]
	}
	for name, want := range map[string]string{"uptime": "1m05s", "vmm": "qemu, tcg", "disk": "10G (0B used on the host)", "pid": "42"} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	if _, ok := got["reason"]; ok {
		t.Error("an empty reason is shown")
	}
}
