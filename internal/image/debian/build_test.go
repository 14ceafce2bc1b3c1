package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// TestMain lets the test binary play mmdebstrap for the tests that need one.
func TestMain(m *testing.M) {
	if os.Getenv("FAKE_MMDEBSTRAP") != "" {
		os.Exit(fakeMmdebstrap())
	}
	os.Exit(m.Run())
}

// fakeMmdebstrap prints the messages in the file that the environment names, then does what it is told to.
func fakeMmdebstrap() int {
	if err := os.Mkdir(filepath.Join(os.Getenv("TMPDIR"), "mmdebstrap.X"), 0o755); err != nil {
		return 3
	}
	for line := range strings.Lines(os.Getenv("FAKE_MMDEBSTRAP")) {
		switch command, arg, _ := strings.Cut(strings.TrimSpace(line), " "); command {
		case "say":
			_, _ = io.WriteString(os.Stderr, arg+"\n")
		case "tar":
			tw := tar.NewWriter(os.Stdout)
			_ = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755})
			_ = tw.Close()
		case "exit":
			code, _ := strconv.Atoi(arg)
			return code
		case "stdin":
			data, _ := io.ReadAll(os.Stdin)
			_ = os.WriteFile(arg, data, 0o600)
		case "environ":
			_ = os.WriteFile(arg, []byte(strings.Join(os.Environ(), "\n")), 0o600)
		case "hang": // with a child that holds the pipes too
			child, err := os.StartProcess("/bin/sleep", []string{"sleep", "600"},
				&os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
			if err != nil {
				return 3
			}
			_ = os.WriteFile(arg, []byte(strconv.Itoa(os.Getpid())+" "+strconv.Itoa(child.Pid)), 0o600)
			time.Sleep(10 * time.Minute)
		}
	}
	return 0
}

// start starts a build whose program follows the script.
func start(t *testing.T, ctx context.Context, script string, report progress.Func) *build {
	t.Helper()
	t.Setenv("FAKE_MMDEBSTRAP", script)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := &build{
		argv: []string{exe}, stdin: "Types: deb\n", scratch: t.TempDir(), progress: newMeter(report),
		guest: aptSources{guest: "GUEST"},
	}
	if err := b.start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestBuildStreamsAndPassesOnWhatTheHooksNeed(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DEBIAN_FRONTEND", "x")
	t.Setenv("LC_ALL", "de_DE")
	b := start(t, t.Context(), "stdin "+dir+"/in\nenviron "+dir+"/env\ntar\nsay I: success", nil)
	data, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if hdr, err := tar.NewReader(bytes.NewReader(data)).Next(); err != nil || hdr.Name != "./" {
		t.Errorf("stream: %v, %v", hdr, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if in, _ := os.ReadFile(dir + "/in"); string(in) != "Types: deb\n" {
		t.Errorf("stdin %q", in)
	}
	env, _ := os.ReadFile(dir + "/env")
	for _, want := range []string{"TMPDIR=" + b.scratch, "BANGER_SOURCES=GUEST", "LC_ALL=C.UTF-8"} {
		if !strings.Contains(string(env), want) {
			t.Errorf("no %s in the environment", want)
		}
	}
	if strings.Contains(string(env), "DEBIAN_FRONTEND") || strings.Contains(string(env), "de_DE") {
		t.Error("the caller's settings reached the build")
	}
}

func TestBuildFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		script, message string
		class           fault.Class
	}{
		"no name server": {
			"say Err:1 http://mirror.invalid bookworm InRelease\n" +
				"say   Could not resolve 'mirror.invalid'\nsay I: removing tempdir\nsay E: mmdebstrap failed to run\nexit 1",
			"mmdebstrap: Could not resolve 'mirror.invalid'", fault.Unavailable,
		},
		"gone":        {"say E: Failed to fetch http://x/y.deb  404  Not Found [IP: 1]\nexit 1", "404  Not Found", fault.Unavailable},
		"not signed":  {"say W: GPG error: x NO_PUBKEY 123\nsay E: The repository 'x' is not signed.\nexit 1", "NO_PUBKEY", fault.Denied},
		"disk full":   {"say tar: ./usr: Cannot write: No space left on device\nexit 1", "no space", fault.Exhausted},
		"after a tar": {"tar\nsay something odd\nexit 25", "something odd", fault.Internal},
		"silent":      {"exit 3", "exit status 3", fault.Internal},
		"long line":   {"say " + strings.Repeat("x", 100000) + "\nsay E: cannot do it\nexit 1", "cannot do it", fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := io.ReadAll(start(t, t.Context(), tc.script, nil))
			if fault.ClassOf(err) != tc.class || !strings.Contains(err.Error(), tc.message) {
				t.Errorf("err = %v (%s)", err, fault.ClassOf(err))
			}
			if fault.HintOf(err) == "" || len(err.Error()) > 5000 || strings.Contains(err.Error(), "\n") {
				t.Errorf("hint %q, error of %d bytes", fault.HintOf(err), len(err.Error()))
			}
		})
	}
}

// TestCancelEndsEveryProcess cancels a build that has a child which would outlive it.
func TestCancelEndsEveryProcess(t *testing.T) {
	for _, how := range []string{"cancel", "close", "banger dies"} {
		t.Run(how, func(t *testing.T) {
			pids := filepath.Join(t.TempDir(), "pids")
			cause := errors.New("given up")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			b := start(t, ctx, "hang "+pids, nil)
			running := waitForPids(t, pids)
			read := make(chan error, 1)
			go func() { _, err := io.ReadAll(b); read <- err }()
			switch how {
			case "cancel":
				cancel(cause)
			case "close":
				b.Close()
			default:
				b.hold.Close() // all that the kernel would do
			}
			select {
			case err := <-read:
				if how == "cancel" && !errors.Is(err, cause) {
					t.Errorf("err = %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("the stream did not end")
			}
			for _, pid := range running {
				gone(t, pid)
			}
		})
	}
}

func waitForPids(t *testing.T, file string) []int {
	t.Helper()
	for range 6000 {
		if data, err := os.ReadFile(file); err == nil && len(data) > 0 {
			var out []int
			for _, word := range strings.Fields(string(data)) {
				pid, err := strconv.Atoi(word)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, pid)
			}
			return out
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the fake did not start")
	return nil
}

// gone waits until the process is no more, or is a zombie that init has not yet reaped.
func gone(t *testing.T, pid int) {
	t.Helper()
	for range 6000 {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if _, rest, ok := strings.Cut(string(stat), ") "); err != nil || ok && strings.HasPrefix(rest, "Z") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d still runs", pid)
}

func TestProgress(t *testing.T) {
	root := t.TempDir()
	script := "say I: using " + root + " as tempdir\n" + `say I: running apt-get update...
say Get:1 http://mirror.invalid/debian bookworm InRelease [151 kB]
say I: downloading packages with apt...
say 0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
say Need to get 30.5 MB of archives.
say Get:1 http://mirror.invalid/debian bookworm/main amd64 libc6 amd64 2.36-9+deb12u14 [2759 kB]
say I: extracting archives...
say I: installing essential packages...
say Unpacking libc6:amd64 (2.36) ...
say Setting up libc6:amd64 (2.36) ...
say Setting up too (1) ...
say Setting up many (1) ...
say Setting up lines (1) ...
say Setting up here (1) ...
say I: installing remaining packages inside the chroot...
say 0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
say Need to get 9000 kB/12.0 MB of archives.
say Get:3 http://mirror.invalid/debian bookworm/main amd64 git amd64 1:2.39 [9000 kB]
say Unpacking git (1:2.39) ...
say Setting up git (1:2.39) ...
say I: running --customize-hook in shell: sh -c '
say I: creating tarball...
tar
say I: removing tempdir x...`
	var mu sync.Mutex
	var got []progress.Update
	b := start(t, t.Context(), script, func(u progress.Update) {
		mu.Lock()
		defer mu.Unlock()
		if len(got) == 0 || got[len(got)-1] != u {
			got = append(got, u)
		}
	})
	if _, err := io.Copy(io.Discard, b); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{
		"reading the archive's index 0/0 bytes", "reading the archive's index 151000/0 bytes",
		"downloading packages 0/0 bytes", "downloading packages 0/30500000 bytes", "downloading libc6 2759000/30500000 bytes",
		"unpacking the base system 0/2 packages", "installing packages 0/2 packages", "installing libc6 0/2 packages",
		"installing libc6 1/2 packages", "installing too 1/2 packages", "installing many 2/2 packages",
		"installing lines 2/2 packages", "installing here 2/2 packages", "downloading packages 0/0 bytes",
		"downloading packages 0/9000000 bytes", "downloading git 9000000/9000000 bytes", "installing git 0/1 packages",
		"installing git 1/1 packages", "tidying up 0/0", "writing the disk image", "removing the build's files 0/0",
	}
	var lines []string
	for _, u := range got {
		line := u.Message + " " + strconv.FormatUint(u.Done, 10) + "/" + strconv.FormatUint(u.Total, 10) + " " + u.Unit
		if u.Message == "writing the disk image" { // how much of it was read at that moment is chance
			line = u.Message
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	lines = slices.Compact(lines)
	if len(lines) > 0 && lines[0] == "preparing 0/0" { // the meter has looked before the program said anything
		lines = lines[1:]
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
}

// TestReaderAheadOfTheMessages reads the tar stream before what was said earlier is known.
func TestReaderAheadOfTheMessages(t *testing.T) {
	var got []string
	m := newMeter(func(u progress.Update) { got = append(got, u.Message+" "+strconv.FormatUint(u.Done, 10)) })
	m.line("I: downloading packages with apt...")
	m.written(1536)
	m.line("Need to get 30.5 MB of archives.")
	m.line("I: running --customize-hook in shell")
	m.look()
	m.line("I: creating tarball...")
	m.written(512)
	m.look()
	want := []string{
		"downloading packages 0", "downloading packages 0", "tidying up 0", "tidying up 0",
		"writing the disk image 1536", "writing the disk image 2048",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestArgvHoldsNoMirror(t *testing.T) {
	args := argv("mmdebstrap", source.Request{Location: "bookworm", Arch: "amd64", Mirror: "http://me:secret@mirror.invalid/"}, true)
	if strings.Contains(strings.Join(args, " "), "secret") {
		t.Error("a password on the command line")
	}
	if diff := cmp.Diff([]string{"bookworm", "-", "-"}, args[len(args)-3:]); diff != "" {
		t.Error(diff)
	}
}

func FuzzMeter(f *testing.F) {
	f.Add("I: using /x as tempdir\nNeed to get 1e9999 MB of archives.\nGet:1 a b c [9 kB]\n0 upgraded, 99999999999999999999 newly installed")
	f.Fuzz(func(t *testing.T, text string) {
		m := newMeter(func(u progress.Update) {
			if u.Total > 0 && u.Done > u.Total {
				t.Errorf("%d of %d", u.Done, u.Total)
			}
		})
		m.phase = phaseDownload
		for line := range strings.Lines(text) {
			m.line(strings.TrimRight(line, "\n"))
		}
		_ = m.explain(errors.New("x"), t.TempDir())
	})
}
