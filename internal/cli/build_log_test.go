package cli

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	bangerv1 "banger/proto/banger/v1"
)

// aBuild is the log of one: two stages side by side, output that overwrites itself, a guest that plays with the terminal.
func aBuild() []*bangerv1.OperationLog {
	e := func(step int32, kind, text string, at, took int64) *bangerv1.OperationLog {
		return &bangerv1.OperationLog{Step: step, Kind: kind, Text: text, AtMs: 1_000_000 + at, DurationMs: took}
	}
	return []*bangerv1.OperationLog{
		e(0, "output", "2 stages", 0, 0),
		e(1, "begin", "[internal] load Dockerfile", 0, 0),
		e(1, "done", "", 30, 30),
		e(2, "begin", "[builder 1/2] FROM debian-bookworm", 40, 0),
		e(2, "cached", "", 40, 0),
		e(3, "begin", "[builder 2/2] RUN gcc -o app app.c", 50, 0),
		e(3, "output", "compiling", 582, 0),
		e(4, "begin", "[stage-1 1/1] RUN fetch", 600, 0),
		e(4, "output", "10%\r20%\r100%\r", 700, 0),
		e(3, "output", "\x1b[2J\x1b]0;owned\x07app.c:1: warning", 1050, 0),
		e(3, "lost", "12 lines lost", 1100, 0),
		e(3, "done", "", 1250, 1200),
		e(4, "error", "exit code 1", 2600, 2000),
	}
}

const aBuildAsText = `#0 2 stages

#1 [internal] load Dockerfile
#1 DONE 0.0s

#2 [builder 1/2] FROM debian-bookworm
#2 CACHED

#3 [builder 2/2] RUN gcc -o app app.c
#3 0.532 compiling
#3 ...

#4 [stage-1 1/1] RUN fetch
#4 0.100 100%
#4 ...

#3 [builder 2/2] RUN gcc -o app app.c
#3 1.000 app.c:1: warning
#3 [12 lines lost]
#3 DONE 1.2s

#4 [stage-1 1/1] RUN fetch
#4 ERROR: exit code 1
`

func TestBuildLog(t *testing.T) {
	inDir(t, "Dockerfile")
	home, f := shortDir(t), &fakeDaemon{logs: aBuild(), library: fakeLibrary{result: "app", images: []*bangerv1.Image{{Name: "app", Digest: "sha256:0"}}}}
	f.start(t, home)
	for _, tc := range []struct {
		flags, out, errOut string
	}{
		{"", "app\n", aBuildAsText},
		{"--progress plain", "app\n", aBuildAsText},
		{"--progress quiet", "app\n", ""},
		{"-q", "app\n", ""},
	} {
		d, out, errOut := online(t, home)
		if code := Main(t.Context(), strings.Fields("image build -t app . "+tc.flags), d); code != 0 || out.String() != tc.out {
			t.Errorf("%s: %d, %q", tc.flags, code, out)
		}
		if diff := cmp.Diff(tc.errOut, errOut.String()); diff != "" {
			t.Errorf("%s: %s", tc.flags, diff)
		}
	}
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), strings.Fields("image build . --format json"), d); code != 0 || errOut.String() != "" || !strings.Contains(out.String(), `"name": "app"`) {
		t.Errorf("%d %s %s", code, out, errOut)
	}
}

// Every name but the first is given with the result at hand.
func TestBuildWithSeveralNames(t *testing.T) {
	inDir(t, "Dockerfile")
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{result: "app:1"}}
	f.start(t, home)
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), strings.Fields("image build -t app:1 -t app:latest ."), d); code != 0 || out.String() != "app:1\n" {
		t.Errorf("%d %s %s", code, out, errOut)
	}
	last := f.library.asked[len(f.library.asked)-1]
	if want := (&bangerv1.TagImageRequest{Ref: "app:1", Name: "app:latest", Force: true}); !proto.Equal(want, last) {
		t.Errorf("asked %v", last)
	}
}

// A build that fails says so after its log; a quiet one shows the end of the step that failed.
func TestBuildFails(t *testing.T) {
	inDir(t, "Dockerfile")
	home, f := shortDir(t), &fakeDaemon{logs: aBuild(), library: fakeLibrary{
		fault: &bangerv1.Fault{Class: "failed_precondition", Message: "Dockerfile:3: RUN fetch: exit code 1", Hint: "banger image build --progress plain"},
	}}
	f.start(t, home)
	const failure = "banger: error: Dockerfile:3: RUN fetch: exit code 1\nbanger: hint: banger image build --progress plain\n"
	for flags, want := range map[string]string{
		"":   aBuildAsText + failure,
		"-q": "banger: #4 [stage-1 1/1] RUN fetch\nbanger: 100%\n" + failure,
	} {
		d, out, errOut := online(t, home)
		if code := Main(t.Context(), strings.Fields("image build . "+flags), d); code != 243 || out.String() != "" {
			t.Errorf("%q: %d, %q", flags, code, out)
		}
		if diff := cmp.Diff(want, errOut.String()); diff != "" {
			t.Errorf("%q: %s", flags, diff)
		}
	}
}

// An interrupt cancels the build and waits for its end, and the log until then is shown.
func TestBuildIsInterrupted(t *testing.T) {
	inDir(t, "Dockerfile")
	home, ended := shortDir(t), make(chan struct{})
	f := &fakeDaemon{logs: aBuild()[:2], logsEnd: ended}
	f.start(t, home)
	ctx, interrupt := context.WithCancelCause(t.Context())
	state := &bangerv1.Operation{Id: "op", State: opRunning}
	f.cancel = func(string) { close(ended) }
	f.library.watch = func(send func(*bangerv1.Operation) error) error {
		if err := send(state); err != nil {
			return err
		}
		interrupt(&Interrupted{syscall.SIGINT})
		<-ended
		return send(&bangerv1.Operation{Id: "op", State: opCancelled, Fault: &bangerv1.Fault{Class: "cancelled", Message: "cancelled"}})
	}
	d, out, errOut := online(t, home)
	code := Main(ctx, []string{"image", "build", "."}, d)
	if code != 130 || out.String() != "" || !strings.HasSuffix(errOut.String(), "banger: error: interrupted\n") || !strings.Contains(errOut.String(), "#0 2 stages\n") {
		t.Errorf("%d %q %q", code, out, errOut)
	}
}

func TestWatchedBuild(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{logs: aBuild()}
	f.ops = []*bangerv1.Operation{{Id: "op", Kind: opBuild, State: opDone, ResultId: "app"}}
	f.opStates = func(_ string, send func(*bangerv1.Operation) error) error { return send(f.ops[0]) }
	f.start(t, home)
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), []string{"op", "watch", "op"}, d); code != 0 || out.String() != "app\n" {
		t.Errorf("%d %s", code, out)
	}
	if diff := cmp.Diff(aBuildAsText, errOut.String()); diff != "" {
		t.Error(diff)
	}
}

func TestTailIsBounded(t *testing.T) {
	var s buildStep
	for i := range 100 {
		s.keep(strings.Repeat("x", i))
	}
	if len(s.tail) != tailLines || len(s.tail[tailLines-1]) != 99 || len(s.tail[0]) != 100-tailLines {
		t.Errorf("%d lines", len(s.tail))
	}
}

func TestLastOfLine(t *testing.T) {
	got := []string{lastOfLine("a\rb"), lastOfLine("a\r\r"), lastOfLine(""), lastOfLine("\r")}
	if want := []string{"b", "a", "", ""}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
