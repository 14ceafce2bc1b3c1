package cli

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"banger/internal/fault"
	"banger/internal/term"
	"banger/internal/userunit"
	bangerv1 "banger/proto/banger/v1"
)

func newOnline(t *testing.T, width int) (d *Deps, out, errOut *safeBuffer) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	out, errOut = new(safeBuffer), new(safeBuffer)
	return &Deps{
		Term: term.New(term.Config{
			Stdin: null, Stdout: out, Stderr: errOut, Width: width, Getenv: func(string) string { return "" },
		}),
		LookupEnv: func(string) (string, bool) { return "", false },
	}, out, errOut
}

// What is wrong with the new commands' lines is said before anything is reached.
func TestRefusedLifecycle(t *testing.T) {
	for _, tc := range []struct{ line, want string }{
		{"vm set dev", "banger: error: banger vm set: nothing to change is given\nbanger: hint: banger vm set --help\n"},
		{"vm set dev --cpus 0", "banger: error: a vm needs at least 1 cpu, not 0\n"},
		{"vm set dev --memory 1M", "banger: error: memory of 1M is too small: the kernel needs at least 128M\nbanger: hint: banger vm set --memory 512M dev\n"},
		{"vm set dev --disk much", "banger: error: size \"much\" is not a number with K, M, G or T behind it, such as 512M or 10G\n"},
		{"vm set dev --restart sometimes", "banger: error: unknown restart policy \"sometimes\": one of no, on-failure, always\nbanger: hint: banger vm set --restart on-failure NAME\n"},
		{"vm create --restart sometimes", "banger: error: unknown restart policy \"sometimes\": one of no, on-failure, always\nbanger: hint: banger vm create --restart on-failure\n"},
		{"run --auto-stop -1s", "banger: error: an idle time of -1s is not possible\nbanger: hint: banger run --auto-stop 30m\n"},
		{"vm create --label =x", "banger: error: label \"=x\" has no name that can be used: KEY=VALUE, no spaces in KEY\nbanger: hint: banger vm create --label team=web\n"},
		{"vm create --label draft-", "banger: error: label \"draft-\": a new vm has none to remove\nbanger: hint: banger vm create --label team=web\n"},
		{"vm set dev --label a=1 --label a-", "banger: error: label \"a\" is both set and removed\nbanger: hint: banger vm set --label team=web NAME\n"},
		{"vm set dev --label -", "banger: error: label \"-\" has no name that can be used: KEY=VALUE, no spaces in KEY\nbanger: hint: banger vm set --label team=web NAME\n"},
		{"vm list --label =x", "banger: error: label \"=x\" has no name: KEY or KEY=VALUE\nbanger: hint: banger vm list --label team=web\n"},
		{"vm rename dev", "banger: error: banger vm rename takes the name of a vm and a new one\nbanger: hint: banger vm rename --help\n"},
		{"vm rename dev Dev", "banger: error: vm name \"Dev\" has upper-case letters; names are lower-case letters, digits and '-'\nbanger: hint: banger vm rename dev dev\n"},
		{"vm wait dev --timeout -1s", "banger: error: a timeout of -1s is not possible\nbanger: hint: banger vm wait --timeout 30s NAME\n"},
		{"vm restart --grace -1s dev", "banger: error: a grace of -1s is not possible\nbanger: hint: banger vm restart --help\n"},
		{"vm pause", "banger: error: banger vm pause needs the name of a vm\nbanger: hint: banger vm list\n"},
		{"vm unpause --all dev", "banger: error: banger vm unpause: --all and the name of a vm exclude each other\nbanger: hint: banger vm unpause dev\n"},
		{"vm stats --watch --interval 10ms", "banger: error: an interval of 10ms is too short: 200ms at least\nbanger: hint: banger vm stats --watch --interval 1s\n"},
		{"op watch", "banger: error: banger op watch needs the id of an operation\nbanger: hint: banger op list\n"},
		{"op watch a b", "banger: error: banger op watch takes one operation, not 2\nbanger: hint: banger op watch --help\n"},
		{"events --tail -5", "banger: error: -5 events are not possible\nbanger: hint: banger events --tail 20\n"},
		{"config set defaults.cpus", "banger: error: banger config set takes a key and a value\nbanger: hint: banger config show\n"},
		{"config set defaults.cpus=4", "banger: error: banger config set takes a key and a value\nbanger: hint: banger config set defaults.cpus 4\n"},
	} {
		t.Run(tc.line, func(t *testing.T) {
			d, out, errOut := offline(t)
			if code := Main(t.Context(), strings.Fields(tc.line), d); code != fault.ExitCode(fault.Invalid) {
				t.Errorf("exit code %d", code)
			}
			if diff := cmp.Diff(tc.want, errOut.String()); diff != "" || out.Len() > 0 {
				t.Errorf("stdout %q, stderr %s", out, diff)
			}
		})
	}
}

func TestSet(t *testing.T) {
	home := shortDir(t)
	var got *bangerv1.SetVMRequest
	pending := []string{"cpus", "memory"}
	f := &fakeDaemon{set: func(req *bangerv1.SetVMRequest) (*bangerv1.VM, error) {
		got = proto.CloneOf(req)
		return &bangerv1.VM{Spec: &bangerv1.VMSpec{Name: "dev"}, State: "running", Pending: pending}, nil
	}}
	f.start(t, home)
	d, out, errOut := online(t, home)
	args := []string{
		"vm", "set", "dev", "--cpus", "4", "--memory", "2G", "--disk", "20G", "--auto-stop", "30m", "--restart", "on-failure", "--description", "",
		"--label", "team=web", "--label", "empty", "--label", "draft-", "--label", "k=v=w", "--label", "dash-=x",
	}
	if code := Main(t.Context(), args, d); code != 0 {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	want := &bangerv1.SetVMRequest{
		Ref: "dev", Cpus: proto.Uint32(4), MemoryBytes: proto.Uint64(2 << 30), DiskBytes: proto.Uint64(20 << 30), AutoStopMs: proto.Int64(1_800_000),
		Restart: proto.String("on-failure"), Description: proto.String(""),
		SetLabels: map[string]string{"team": "web", "empty": "", "k": "v=w", "dash-": "x"}, RemoveLabels: []string{"draft"},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if out.String() != "dev\n" {
		t.Errorf("stdout %q", out)
	}
	if diff := cmp.Diff("banger: cpus and memory of vm dev take effect at the next start\nbanger: hint: banger vm restart dev\n", errOut.String()); diff != "" {
		t.Error(diff)
	}
	pending = nil
	d, _, errOut = online(t, home)
	if code := Main(t.Context(), []string{"vm", "set", "dev", "--auto-stop", "0"}, d); code != 0 || errOut.String() != "" {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	if diff := cmp.Diff(&bangerv1.SetVMRequest{Ref: "dev", AutoStopMs: proto.Int64(0)}, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestEnumerate(t *testing.T) {
	for want, words := range map[string][]string{"": nil, "a": {"a"}, "a and b": {"a", "b"}, "a, b and c": {"a", "b", "c"}} {
		if got := enumerate(words); got != want {
			t.Errorf("%v: %q", words, got)
		}
	}
}

func TestWait(t *testing.T) {
	home := shortDir(t)
	dev := &bangerv1.VM{Id: "0123456789ab", State: "running", Spec: &bangerv1.VMSpec{Name: "dev"}}
	f := &fakeDaemon{
		get: func(string) (*bangerv1.VM, error) { return dev, nil },
		wait: func(ctx context.Context, req *bangerv1.WaitVMRequest) (*bangerv1.VM, error) {
			if req.GetRef() != dev.GetId() {
				return nil, fault.New(fault.Internal, "asked for %q", req.GetRef())
			}
			if len(req.GetStates()) > 0 && req.GetStates()[0] == "paused" {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return &bangerv1.VM{Id: dev.GetId(), State: "stopped", Spec: dev.GetSpec()}, nil
		},
	}
	f.start(t, home)
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), []string{"vm", "wait", "dev"}, d); code != 0 || out.String() != "stopped\n" {
		t.Errorf("exit code %d, %q, %s", code, out, errOut)
	}
	d, out, errOut = online(t, home)
	code := Main(t.Context(), []string{"vm", "wait", "--state", "paused,failed", "--timeout", "50ms", "dev"}, d)
	want := "banger: error: vm dev did not come to be paused or failed within 50ms\nbanger: hint: banger vm show dev\n"
	if code != 247 || out.String() != "" || errOut.String() != want {
		t.Errorf("exit code %d, %q, %s", code, out, errOut)
	}
}

// A wait goes on over the end of the daemon.
func TestWaitOutlivesTheDaemon(t *testing.T) {
	home := shortDir(t)
	dev := &bangerv1.VM{Id: "0123456789ab", State: "running", Spec: &bangerv1.VMSpec{Name: "dev"}}
	asked := make(chan struct{}, 8)
	get := func(string) (*bangerv1.VM, error) { return dev, nil }
	first := &fakeDaemon{get: get, wait: func(ctx context.Context, _ *bangerv1.WaitVMRequest) (*bangerv1.VM, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return nil, fault.New(fault.Unavailable, "the daemon is stopping")
	}}
	stop := first.start(t, home)
	d, out, errOut := online(t, home)
	code := make(chan int, 1)
	go func() { code <- Main(t.Context(), []string{"vm", "wait", "dev"}, d) }()
	<-asked
	stop()
	second := &fakeDaemon{get: get, wait: func(context.Context, *bangerv1.WaitVMRequest) (*bangerv1.VM, error) {
		return &bangerv1.VM{Id: dev.GetId(), State: "failed", Spec: dev.GetSpec()}, nil
	}}
	second.start(t, home)
	if got := <-code; got != 0 || out.String() != "failed\n" {
		t.Errorf("exit code %d, %q, %s", got, out, errOut)
	}
}

func TestOperations(t *testing.T) {
	home := shortDir(t)
	now := time.Now().UnixMilli()
	f := &fakeDaemon{
		ops: []*bangerv1.Operation{
			{Id: "op1", Kind: "vm.create", Target: "dev", State: "running", StartedAtMs: now, Progress: &bangerv1.Progress{Stage: "image", Message: "fetching", Done: 1, Total: 3}},
			{Id: "op2", Kind: "image.pull", Target: "debian", State: "failed", StartedAtMs: now - 5000, EndedAtMs: now - 1000, Fault: &bangerv1.Fault{Class: "unavailable", Message: "no mirror", Hint: "banger doctor"}},
			{Id: "op3", Kind: "kernel.pull", Target: "k", State: "done", StartedAtMs: now - 5000, EndedAtMs: now - 1000, ResultId: "k"},
		},
	}
	f.cancel = func(id string) { f.ops[0].State = "cancelled" }
	f.opStates = func(id string, send func(*bangerv1.Operation) error) error {
		op, _ := fakeOps{f: f}.find(id)
		return send(op)
	}
	f.start(t, home)
	for _, tc := range []struct {
		line, out, errOut string
		code              int
	}{
		{"op list -q", "op1\nop2\nop3\n", "", 0},
		{"op list -q --running", "op1\n", "", 0},
		{"op watch op3", "k\n", "", 0},
		{"op watch op2", "", "banger: error: no mirror\nbanger: hint: banger doctor\n", 244},
		{"op watch nope", "", "banger: error: no operation has the id \"nope\"\n", 241},
		{"op cancel op3", "", "banger: error: operation op3 (kernel.pull k) is done already\nbanger: hint: banger op list\n", 243},
		{"op cancel nope op1 op2", "op1\n", "banger: error: no operation has the id \"nope\"\nbanger: error: operation op2 (image.pull debian) has failed already\nbanger: hint: banger op list\n", 241},
		{"op cancel op1", "", "banger: error: operation op1 (vm.create dev) is cancelled already\nbanger: hint: banger op list\n", 243},
	} {
		d, out, errOut := online(t, home)
		code := Main(t.Context(), strings.Fields(tc.line), d)
		if code != tc.code || out.String() != tc.out || errOut.String() != tc.errOut {
			t.Errorf("%s: exit code %d, want %d; stdout %q, stderr %q", tc.line, code, tc.code, out, errOut)
		}
	}
	f.ops[0].State = "running"
	d, out, _ := online(t, home)
	if code := Main(t.Context(), []string{"op", "list", "--format", "json"}, d); code != 0 ||
		!strings.Contains(out.String(), "\"progress\": {\n      \"stage\": \"image\",\n      \"message\": \"fetching\",\n      \"done\": 1,\n      \"total\": 3\n    }") ||
		!strings.Contains(out.String(), "\"error\": {\n      \"class\": \"unavailable\"") {
		t.Errorf("%d: %s", code, out)
	}
	d, out, _ = online(t, home)
	if code := Main(t.Context(), []string{"op", "list"}, d); code != 0 || !strings.Contains(out.String(), "fetching 33%") || !strings.Contains(out.String(), "4.0s  no mirror\n") {
		t.Errorf("%d: %s", code, out)
	}
}

func event(seq int64, kind string) *bangerv1.Event {
	return &bangerv1.Event{Seq: seq, AtMs: aMoment().UnixMilli() + seq, Kind: kind, ObjectId: "0123456789ab", Object: "dev", Message: "m\x1b[31m"}
}

// A follower misses nothing and shows nothing twice when the daemon is replaced, also by one with a new history.
func TestEventsOverDaemons(t *testing.T) {
	home := shortDir(t)
	f := &fakeDaemon{pid: 1}
	f.events.add(event(1, "vm.created"), event(2, "vm.running"))
	stop := f.start(t, home)
	d, out, errOut := online(t, home)
	ctx, cancel := context.WithCancelCause(t.Context())
	code := make(chan int, 1)
	go func() { code <- Main(ctx, []string{"events", "--follow", "--format", "json"}, d) }()
	see := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); seqs(out.String()) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("printed %s, want %s; stderr %s", seqs(out.String()), want, errOut)
			}
		}
	}
	see("1 2")
	f.events.add(event(3, "vm.stopped"))
	see("1 2 3")
	stop()
	g := &fakeDaemon{pid: 2}
	g.events.add(event(1, "vm.created"), event(2, "vm.running"), event(3, "vm.stopped"), event(4, "vm.running"))
	stop = g.start(t, home)
	see("1 2 3 4")
	g.events.add(event(5, "vm.failed"))
	see("1 2 3 4 5")
	stop()
	h := &fakeDaemon{pid: 3}
	h.events.add(event(1, "vm.created"))
	h.start(t, home)
	see("1 2 3 4 5 1")
	cancel(&Interrupted{syscall.SIGINT})
	if got := <-code; got != 130 {
		t.Errorf("exit code %d: %s", got, errOut)
	}
}

func seqs(lines string) string {
	var all []string
	for line := range strings.Lines(lines) {
		_, rest, _ := strings.Cut(line, `"seq":`)
		n, _, _ := strings.Cut(rest, ",")
		all = append(all, n)
	}
	return strings.Join(all, " ")
}

func TestEventsFit(t *testing.T) {
	home := shortDir(t)
	f := &fakeDaemon{}
	long := event(7, "vm.failed")
	long.Object, long.Message = strings.Repeat("n", 63), strings.Repeat("the guest did not answer ", 10)
	f.events.add(event(6, "vm.running"), long, &bangerv1.Event{Seq: 8, AtMs: 1, Kind: "image.pulled"})
	f.start(t, home)
	for _, width := range []int{40, 80, 200} {
		d, out, _ := newOnline(t, width)
		on, _, _ := online(t, home)
		d.Attach, d.Connect = on.Attach, on.Connect
		if code := Main(t.Context(), []string{"events"}, d); code != 0 {
			t.Fatal(code)
		}
		fits(t, out.String(), width)
		if strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != 3 {
			t.Errorf("%q", out)
		}
	}
	d, out, _ := online(t, home)
	if code := Main(t.Context(), []string{"events", "--tail", "1", "--format", "json"}, d); code != 0 ||
		out.String() != `{"seq":8,"at":"1970-01-01T00:00:00.001Z","kind":"image.pulled"}`+"\n" {
		t.Errorf("%d: %s", code, out)
	}
}

func TestFsck(t *testing.T) {
	home := shortDir(t)
	f := &fakeDaemon{fsck: func(repair bool) []*bangerv1.Finding {
		return []*bangerv1.Finding{
			{Kind: "disk-without-row", Object: "/x/disk.ext4", Message: "no vm has it"},
			{Kind: "row-without-disk", Object: "dev", Message: "its disk is gone", Repair: "mark it failed", Repaired: repair},
		}
	}}
	f.start(t, home)
	for _, tc := range []struct {
		line, out, errOut string
		code              int
	}{
		{"fsck", "found  disk-without-row  /x/disk.ext4: no vm has it\nfound  row-without-disk  dev: its disk is gone (repair: mark it failed)\n", "banger: error: 2 findings are not repaired\nbanger: hint: banger fsck --repair\n", 243},
		{"fsck --repair", "found   disk-without-row  /x/disk.ext4: no vm has it\nmended  row-without-disk  dev: its disk is gone (repair: mark it failed)\n", "banger: error: 1 finding is not repaired\n", 243},
	} {
		d, out, errOut := online(t, home)
		if code := Main(t.Context(), strings.Fields(tc.line), d); code != tc.code || out.String() != tc.out || errOut.String() != tc.errOut {
			t.Errorf("%s: %d, stdout %q, stderr %q", tc.line, code, out, errOut)
		}
	}
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), []string{"fsck", "--format", "json"}, d); code != 243 || !strings.HasPrefix(out.String(), "{\n  \"ok\": false,\n  \"findings\": [\n    {\n      \"kind\": \"disk-without-row\",") {
		t.Errorf("%d %s %s", code, out, errOut)
	}
	f.fsck = func(bool) []*bangerv1.Finding { return nil }
	d, out, errOut = online(t, home)
	if code := Main(t.Context(), []string{"fsck"}, d); code != 0 || out.String() != "everything fits together\n" {
		t.Errorf("%d %s %s", code, out, errOut)
	}
	d, out, _ = online(t, home)
	if code := Main(t.Context(), []string{"fsck", "--format", "json"}, d); code != 0 || out.String() != "{\n  \"ok\": true,\n  \"findings\": []\n}\n" {
		t.Errorf("%d %s", code, out)
	}
}

func TestDaemonUnit(t *testing.T) {
	for _, tc := range []struct {
		verb, out, errOut string
		code              int
		systemctl         func(args ...string) error
	}{
		{"install", "unit          DIR/banger.service\nenabled       yes\nrunning       yes\nfrom boot on  no\n", "banger: hint: loginctl enable-linger\n", 0, func(...string) error { return nil }},
		{"uninstall", "the service is not installed; the daemon starts with the first command\n", "", 0, func(...string) error { return nil }},
		{"install", "", "banger: error: systemd does not answer for this user (no bus): it does so in a login session\nbanger: hint: loginctl enable-linger\n", 244, func(...string) error { return errors.New("no bus") }},
	} {
		d, out, errOut := online(t, shortDir(t))
		dir := t.TempDir()
		d.Unit = func() (userunit.Config, error) {
			return userunit.Config{
				Executable: "/opt/banger", Dir: dir, Lingers: func() (bool, bool) { return false, true },
				Systemctl: func(_ context.Context, args ...string) (string, error) { return "", tc.systemctl(args...) },
			}, nil
		}
		code := Main(t.Context(), []string{"daemon", tc.verb}, d)
		if code != tc.code || out.String() != strings.ReplaceAll(tc.out, "DIR", dir) || errOut.String() != tc.errOut {
			t.Errorf("%s: %d, stdout %q, stderr %q", tc.verb, code, out, errOut)
		}
	}
}
