package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/image/source"
)

// compile is a file of two stages as people write them.
const compile = `FROM base AS builder
WORKDIR /src
RUN install
COPY main.c .
RUN compile
FROM scratch
COPY --from=builder /src/main /
ENTRYPOINT ["/main"]
`

// compiler is a Host whose base image has a file and whose commands make what the test above needs.
func compiler(t *testing.T) *bench {
	b := newBench(t)
	b.images["base"] = Base{Config: source.Config{Env: []string{"PATH=/bin"}}, Layers: mustLayers(b.layer(base...)), Arch: "amd64"}
	b.run = func(_ context.Context, job RunJob) ([]file, error) {
		switch command := job.Argv[len(job.Argv)-1]; command {
		case "compile":
			for _, line := range b.tree(job.Layers) {
				if src, ok := strings.CutPrefix(line, "src/main.c 644 0:0 "); ok {
					return []file{{name: "src/main", data: strings.ToUpper(strings.Split(src, "#")[0]), mode: 0o755}}, nil
				}
			}
			return nil, &ExitError{Code: 1}
		default:
			return []file{{name: "did-" + command}}, nil
		}
	}
	return b
}

func TestBuildOfTwoStages(t *testing.T) {
	b := compiler(t)
	dir := contextDir(t, file{name: "main.c", data: "main"})
	out := b.mustBuild(compile, dir, func(o *Options) { o.Labels = map[string]string{"l": "1"} })
	if diff := cmp.Diff([]string{"main 755 0:0 MAIN"}, b.tree(out.Layers)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	want := source.Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Entrypoint: []string{"/main"}, Labels: map[string]string{"l": "1"}}
	if diff := cmp.Diff(want, out.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	if out.Arch != "amd64" || len(out.Layers) != 1 || out.Layers[0].DiffID == "" {
		t.Errorf("arch %q, layers %v", out.Arch, out.Layers)
	}
	wantLog := []string{
		"1 begin [builder 1/5] FROM base", "1 done",
		"2 begin [builder 2/5] WORKDIR /src", "2 done",
		"3 begin [builder 3/5] RUN install", "3 done",
		"4 begin [builder 4/5] COPY main.c .", "4 output copying 1 file, 4B", "4 done",
		"5 begin [builder 5/5] RUN compile", "5 done",
		"6 begin [stage-1 1/1] COPY --from=builder /src/main /", "6 output copying 1 file, 4B", "6 done",
	}
	if diff := cmp.Diff(wantLog, b.log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"base linux/amd64"}, b.pulls); diff != "" {
		t.Errorf("pulls (-want +got):\n%s", diff)
	}
	job := RunJob{Title: "RUN compile", Platform: "linux/amd64", Argv: []string{"/bin/sh", "-c", "compile"}, Env: []string{"PATH=/bin"}, Workdir: "/src"}
	got := b.jobs[1]
	if len(got.Layers) != 4 {
		t.Errorf("the second command has %d layers", len(got.Layers))
	}
	got.Layers, got.Stdout, got.Stderr = nil, nil, nil
	if diff := cmp.Diff(job, got); diff != "" {
		t.Errorf("job (-want +got):\n%s", diff)
	}
}

func TestStepCache(t *testing.T) {
	b := compiler(t)
	dir := contextDir(t, file{name: "main.c", data: "main"}, file{name: "other", data: "x"})
	main := filepath.Join(dir, "main.c")
	write := func(name, data string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first := b.mustBuild(compile, dir)
	for _, tc := range []struct {
		name   string
		change func()
		text   string
		setup  setup
		want   []string // commands that are run
		same   bool     // as the first result
	}{
		{name: "nothing changed", same: true},
		{name: "another file", change: func() { write(filepath.Join(dir, "other"), "y") }, same: true},
		{name: "another time", change: func() {
			if err := os.Chtimes(main, time.Now(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}, same: true},
		{name: "other contents, other result", change: func() { write(main, "main2") }, want: []string{"compile"}},
		{name: "back again", change: func() { write(main, "main") }, same: true},
		{name: "other contents, same result", change: func() { write(main, "main#comment") }, want: []string{"compile"}, same: true},
		{name: "another mode that comes out the same", change: func() {
			if err := os.Chmod(main, 0o640); err != nil {
				t.Fatal(err)
			}
		}, text: strings.ReplaceAll(compile, "COPY main.c", "COPY --chmod=644 main.c"), same: true},
		{name: "another command", change: func() { write(main, "main"); os.Chmod(main, 0o644) }, text: strings.ReplaceAll(compile, "install", "install2"), want: []string{"install2", "compile"}, same: true},
		{name: "another environment", text: strings.ReplaceAll(compile, "RUN compile", "ARG A=1\nRUN compile"), want: []string{"compile"}, same: true},
		{name: "another environment that is the same", text: strings.ReplaceAll(compile, "RUN compile", "ENV A=1\nRUN compile"), same: true},
		{name: "a comment", text: "# comment\n" + compile, same: true},
		{name: "configuration only", text: compile + "LABEL a=b\n"},
		{name: "no cache", setup: func(o *Options) { o.NoCache = true }, want: []string{"install", "compile"}, same: true},
		{name: "a proxy is no part of it", setup: func(o *Options) {
			plan, err := dockerfile.Parse("Dockerfile", []byte(compile), dockerfile.Options{BuildPlatform: "linux/amd64", BuildArgs: map[string]string{"http_proxy": "p"}})
			if err != nil {
				t.Fatal(err)
			}
			o.Plan = plan
		}, same: true},
		{name: "the layer is gone", change: func() {
			if err := b.blobs.Remove(first.Layers[0].Digest); err != nil {
				t.Fatal(err)
			}
		}, same: true},
		{name: "other base", change: func() { b.images["base"] = Base{Layers: mustLayers(b.layer(file{name: "new"}))} }, want: []string{"install", "compile"}, same: true},
	} {
		if tc.change != nil {
			tc.change()
		}
		text := tc.text
		if text == "" {
			text = compile
		}
		set := tc.setup
		if set == nil {
			set = func(*Options) {}
		}
		b.commands()
		out := b.mustBuild(text, dir, set)
		if diff := cmp.Diff(tc.want, b.commands()); diff != "" {
			t.Errorf("%s: commands (-want +got):\n%s", tc.name, diff)
		}
		if got := cmp.Equal(out, first); got != tc.same {
			t.Errorf("%s: the result is the same: %v, want %v", tc.name, got, tc.same)
		}
	}
}

func TestCachedStepsSaySo(t *testing.T) {
	b := compiler(t)
	dir := contextDir(t, file{name: "main.c", data: "main"})
	b.mustBuild(compile, dir)
	b.log()
	b.mustBuild(compile, dir)
	want := []string{
		"1 begin [builder 1/5] FROM base", "1 done", "2 begin [builder 2/5] WORKDIR /src", "2 cached",
		"3 begin [builder 3/5] RUN install", "3 cached", "4 begin [builder 4/5] COPY main.c .", "4 cached",
		"5 begin [builder 5/5] RUN compile", "5 cached", "6 begin [stage-1 1/1] COPY --from=builder /src/main /", "6 cached",
	}
	if diff := cmp.Diff(want, b.log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestCacheIsListedAndRemoved(t *testing.T) {
	b := compiler(t)
	dir := contextDir(t, file{name: "main.c", data: "main"})
	b.mustBuild(compile, dir)
	list, err := b.cache.List()
	if err != nil {
		t.Fatal(err)
	}
	titles := map[string]int{}
	for _, e := range list {
		titles[e.Title]++
		if e.Layer.Size <= 0 || time.Since(e.Used) > time.Hour {
			t.Errorf("entry %+v", e)
		}
	}
	// A copy out of a stage has two keys.
	if diff := cmp.Diff(map[string]int{"WORKDIR /src": 1, "RUN install": 1, "COPY main.c .": 1, "RUN compile": 1, "COPY --from=builder /src/main /": 2}, titles); diff != "" {
		t.Errorf("titles (-want +got):\n%s", diff)
	}
	if err := os.WriteFile(filepath.Join(b.cache.dir, list[0].Key), []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(b.cache.dir, ".new-1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := b.cache.List(); err != nil || len(again) != len(list) {
		t.Errorf("a damaged entry is not listed: %v", err)
	}
	b.commands()
	b.mustBuild(compile, dir) // as if the damaged one were not there
	for _, e := range list {
		if err := errors.Join(b.cache.Remove(e.Key), b.cache.Remove(e.Key)); err != nil {
			t.Error(err)
		}
	}
	if err := b.cache.Sweep(0); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(b.cache.dir); err != nil || len(names) != 0 {
		t.Errorf("left: %v %v", names, err)
	}
	b.commands()
	b.mustBuild(compile, dir)
	if diff := cmp.Diff([]string{"install", "compile"}, b.commands()); diff != "" {
		t.Errorf("commands after the cache was removed (-want +got):\n%s", diff)
	}
	if err := b.cache.Remove("../x"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a key that is none: %v", err)
	}
	none := OpenCache(filepath.Join(b.dir, "none"))
	if list, err := none.List(); err != nil || list != nil || none.Sweep(0) != nil {
		t.Errorf("a cache that is not there: %v %v", list, err)
	}
}

func TestCommandThatFails(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{}
	b.run = func(_ context.Context, job RunJob) ([]file, error) {
		fmt.Fprint(job.Stdout, "one\ntwo")
		fmt.Fprint(job.Stderr, " half\r\n 1%\r 50%\r100%\r\nno end")
		return nil, fmt.Errorf("exec: %w", &ExitError{Code: 3})
	}
	_, err := b.build(t.Context(), "FROM base\n\nRUN make \\\n  all", "")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || !fault.Is(err, fault.Invalid) || err.Error() != "Dockerfile:3: RUN make all: the command failed: exit code 3" {
		t.Errorf("%v", err)
	}
	want := []string{
		"1 begin [1/2] FROM base", "1 done", "2 begin [2/2] RUN make all", "2 output one", "2 output two half", "2 output 100%", "2 output no end",
		"2 error Dockerfile:3: RUN make all: the command failed: exit code 3",
	}
	if diff := cmp.Diff(want, b.log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if list, err := b.cache.List(); err != nil || len(list) != 0 {
		t.Errorf("a step that failed is kept: %v %v", list, err)
	}
}

func TestLongLinesAreDivided(t *testing.T) {
	b := newBench(t)
	l := &lines{r: &reporter{log: b, step: 1}}
	if _, err := io.WriteString(l, strings.Repeat("x", 3*maxLine)+"\xff\n"); err != nil {
		t.Fatal(err)
	}
	l.flush()
	if len(b.events) != 4 || len(b.events[0].Text) != maxLine || b.events[3].Text != "\uFFFD" {
		t.Errorf("%d events", len(b.events))
	}
}

func TestImageThatIsNotThere(t *testing.T) {
	b := newBench(t)
	b.images["arm"] = Base{Arch: "arm64"}
	for text, want := range map[string]string{
		"FROM none":                          "Dockerfile:1: FROM none: no image is called none",
		"FROM scratch\nCOPY --from=none a /": "Dockerfile:2: COPY --from=none a /: no image is called none",
		"FROM arm":                           "Dockerfile:1: FROM arm: image arm is for arm64, not for amd64",
	} {
		if _, err := b.build(t.Context(), text, ""); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// Stages that do not need each other run at the same time, and no more than two steps of them.
func TestStagesRunInParallel(t *testing.T) {
	b := newBench(t)
	text := ""
	for _, name := range []string{"a", "b", "c", "d"} {
		text += "FROM base AS " + name + "\nRUN " + name + "\n"
	}
	text += "FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\nCOPY --from=c /c /\nCOPY --from=d /d /\n"
	b.images["base"] = Base{}
	running := make(chan struct{}, 2)
	meet := make(chan struct{})
	b.run = func(ctx context.Context, job RunJob) ([]file, error) {
		select {
		case running <- struct{}{}:
		default:
			t.Error("a third command runs")
		}
		// Each waits for another one: with one at a time this would not end.
		select {
		case meet <- struct{}{}:
		case <-meet:
		case <-ctx.Done():
		}
		<-running
		return []file{{name: job.Argv[2]}}, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := b.build(ctx, text, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a 644 0:0 ", "b 644 0:0 ", "c 644 0:0 ", "d 644 0:0 "}, b.tree(out.Layers)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if len(b.pulls) != 1 {
		t.Errorf("the image is asked for %d times", len(b.pulls))
	}
}

// A stage that fails ends the others, and its error is the build's.
func TestFailureEndsEverything(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{}
	begun := make(chan struct{})
	ended := false
	b.run = func(ctx context.Context, job RunJob) ([]file, error) {
		if job.Argv[2] == "fail" {
			<-begun
			return nil, &ExitError{Code: 2}
		}
		close(begun)
		<-ctx.Done()
		ended = true
		return nil, context.Cause(ctx)
	}
	_, err := b.build(t.Context(), "FROM base AS a\nRUN wait\nFROM base AS b\nRUN fail\nFROM scratch\nCOPY --from=a x /\nCOPY --from=b x /", "")
	if err == nil || err.Error() != "Dockerfile:4: RUN fail: the command failed: exit code 2" || !ended {
		t.Errorf("%v, ended %v", err, ended)
	}
	told := 0
	for _, line := range b.log() {
		if strings.HasSuffix(line, " error cancelled") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("%d steps are told that they were cancelled", told)
	}
}

func TestCancel(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{}
	ctx, cancel := context.WithCancelCause(t.Context())
	b.run = func(ctx context.Context, job RunJob) ([]file, error) {
		cancel(fault.New(fault.Cancelled, "enough"))
		<-ctx.Done()
		return nil, errors.New("killed")
	}
	_, err := b.build(ctx, "FROM base\nRUN a\nRUN b", "")
	if err == nil || err.Error() != "enough" || !fault.Is(err, fault.Cancelled) || len(b.jobs) != 1 {
		t.Errorf("%v after %d commands", err, len(b.jobs))
	}
	if left, err := os.ReadDir(b.dir); err != nil || len(left) != 0 {
		t.Errorf("left in scratch: %v %v", left, err)
	}
}

func TestScriptIsInNoImage(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{Layers: mustLayers(b.layer(file{name: "a"}))}
	var seen []string
	b.run = func(_ context.Context, job RunJob) ([]file, error) {
		seen = append(b.tree(job.Layers), strings.Join(job.Argv, " "))
		return []file{{name: "made"}}, nil
	}
	out := b.mustBuild("FROM base\nRUN <<EOF\n#!/bin/x\nEOF\nRUN b", "")
	want := []string{".banger-run/ 755 0:0", ".banger-run/EOF 755 0:0 #!/bin/x\n", "a 644 0:0 ", "/bin/sh -c b"}
	if diff := cmp.Diff(without(want[2:], nil), without(seen, []string{"made 644 0:0 "})); diff != "" {
		t.Errorf("the second command sees (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[:3], b.tree(b.jobs[0].Layers)); diff != "" {
		t.Errorf("the first command sees (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a 644 0:0 ", "made 644 0:0 "}, b.tree(out.Layers)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}

func TestBuildWithoutDockerfile(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{Config: source.Config{User: "u", Cmd: []string{"c"}}, Layers: mustLayers(b.layer(file{name: "a"}))}
	plan, err := dockerfile.Command("base", nil, []byte("install\n"), dockerfile.Options{BuildPlatform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	opt := Options{Plan: plan, Host: b, Blobs: b.blobs, Cache: b.cache, Scratch: b.dir, Log: b, Size: Size{CPUs: 3, Memory: 1 << 30}}
	out, err := Build(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	job := b.jobs[0]
	if !contains(b.tree(job.Layers), job.Argv[0][1:]+" 755 0:0 #!/bin/sh -e\ninstall") || job.User != "u" || job.CPUs != 3 || job.Memory != 1<<30 {
		t.Errorf("job %+v in %q", job, b.tree(job.Layers))
	}
	if len(out.Layers) != 2 || out.Config.User != "u" || len(out.Config.Cmd) != 1 {
		t.Errorf("result %+v", out)
	}
	b.run = func(context.Context, RunJob) ([]file, error) { return nil, &ExitError{1} }
	opt.NoCache = true
	if _, err := Build(t.Context(), opt); err == nil || err.Error() != "RUN a script: the command failed: exit code 1" {
		t.Errorf("%v", err)
	}
}

func TestTriggersOfAnImage(t *testing.T) {
	b := newBench(t)
	b.images["base"] = Base{Config: source.Config{OnBuild: []string{"COPY --from=tools /t /", "RUN trigger"}}}
	out := b.mustBuild("FROM scratch AS tools\nCOPY <<t /\nT\nt\nFROM base\nRUN own", "")
	if diff := cmp.Diff([]string{"trigger", "own"}, b.commands()); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	if log := b.log(); !contains(log, "5 begin [stage-1 4/4] RUN own") || !contains(log, "4 begin [stage-1 3/4] ONBUILD RUN trigger") {
		t.Errorf("log: %q", log)
	}
	if !contains(b.tree(out.Layers), "t 644 0:0 T") || len(out.Config.OnBuild) != 0 {
		t.Errorf("tree %q, triggers %q", b.tree(out.Layers), out.Config.OnBuild)
	}
}

func TestWarningsAreInTheLog(t *testing.T) {
	b := newBench(t)
	b.mustBuild("FROM scratch\nVOLUME /v", "")
	if diff := cmp.Diff([]string{"0 output warning: Dockerfile:2: VOLUME /v makes no disk of its own: what is written there is on the disk of the VM"}, b.log()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestLoad(t *testing.T) {
	dir := contextDir(t, file{name: "Dockerfile", data: "FROM scratch"}, file{name: "sub/app.Dockerfile", data: "FROM scratch\nRUNN"}, file{name: "b.Dockerfile", data: "FROM scratch"},
		file{name: "b.Dockerfile.dockerignore", data: "x\ny"}, file{name: ".dockerignore", data: "a"}, file{name: "bad/Dockerfile", data: "FROM scratch"}, file{name: "bad/.dockerignore", data: "["})
	for _, tc := range []struct {
		context, file string
		ignores       int
		err           string
	}{
		{dir, "Dockerfile", 1, ""},
		{dir, "b.Dockerfile", 2, ""},
		{dir, "sub/app.Dockerfile", 0, "app.Dockerfile:2: unknown instruction: RUNN (did you mean RUN?): RUNN"},
		{dir, "none", 0, "there is no " + dir + "/none: name the Dockerfile with --file"},
		{dir, "sub", 0, "Dockerfile: " + dir + "/sub is not a regular file"},
		{filepath.Join(dir, "bad"), "bad/Dockerfile", 0, `.dockerignore: pattern "[": syntax error in pattern`},
	} {
		plan, ignore, err := Load(tc.context, filepath.Join(dir, tc.file), dockerfile.Options{})
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%s: %v, want %s", tc.file, err, tc.err)
			}
			continue
		}
		if err != nil || plan.Name != filepath.Base(tc.file) || ignore.Len() != tc.ignores {
			t.Errorf("%s: %v, %d patterns", tc.file, err, ignore.Len())
		}
	}
}

func TestBuildsAtTheSameTime(t *testing.T) {
	b := compiler(t)
	dir := contextDir(t, file{name: "main.c", data: "main"})
	results := make([]Result, 6)
	var group errgroup.Group
	for i := range results {
		group.Go(func() (err error) {
			results[i], err = b.build(t.Context(), compile, dir)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, r := range results[1:] {
		if diff := cmp.Diff(results[0], r); diff != "" {
			t.Errorf("results differ:\n%s", diff)
		}
	}
	if names, err := filepath.Glob(filepath.Join(b.cache.dir, ".new-*")); err != nil || len(names) != 0 {
		t.Errorf("left: %q %v", names, err)
	}
}
