package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"banger/internal/ext4"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// build builds and returns the operation as it ended and its log, a line each: "step kind text".
func (h *host) build(req *bangerv1.BuildImageRequest) (*bangerv1.Operation, []string) {
	h.t.Helper()
	resp, err := h.imgs.Build(h.t.Context(), connect.NewRequest(req))
	h.must(err)
	id := resp.Msg.GetOperationId()
	lines := h.log(id)
	return h.wait(id), lines
}

func (h *host) log(id string) (lines []string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	stream, err := h.ops.Logs(ctx, connect.NewRequest(&bangerv1.OperationLogsRequest{Id: id}))
	h.must(err)
	defer stream.Close()
	for stream.Receive() {
		l := stream.Msg()
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%d %s %s", l.GetStep(), l.GetKind(), l.GetText())))
	}
	h.must(stream.Err())
	return lines
}

func TestBuildFromAnImage(t *testing.T) {
	h := newHost(t)
	h.run()
	h.must(h.registerTar("base"))
	op, lines := h.build(&bangerv1.BuildImageRequest{
		Name: "new:1", From: "base", Argv: []string{"a", "b"}, Labels: []string{"x=y"}, Cpus: 2, MemoryBytes: 256 << 20,
	})
	if op.GetState() != "done" || op.GetResultId() != "new:1" || op.GetKind() != "image.build" {
		t.Fatalf("%v", op)
	}
	if diff := cmp.Diff([]string{"1 begin [1/1] a b in base", "1 output a", "1 output b", "1 done"}, lines); diff != "" {
		t.Error(diff)
	}
	base, built := h.image("base"), h.image("new:1")
	if len(base.GetLayers()) != 1 || !base.GetLayers()[0].GetPresent() { // it was packed for this, once
		t.Errorf("base has the layers %v", base.GetLayers())
	}
	if len(built.GetLayers()) != 2 || built.GetLayers()[0].GetDigest() != base.GetLayers()[0].GetDigest() ||
		built.GetConfig().GetLabels()["x"] != "y" || built.GetKernel() != "linux" {
		t.Errorf("%v", built)
	}
	if info, err := os.Stat(built.GetRootfs()); err != nil || info.Size() != ext4.DefaultSize || built.GetUsedBytes() == 0 || built.GetSharedBytes() != 0 {
		t.Errorf("%v, %v", info, err)
	}
	// What changes nothing but the configuration shares the files.
	op, _ = h.build(&bangerv1.BuildImageRequest{Name: "new:2", From: "new:1", Argv: []string{"nothing"}, Labels: []string{"x=z"}})
	same := h.image("new:2")
	if op.GetState() != "done" || same.GetDigest() == built.GetDigest() || same.GetSharedBytes() == 0 || h.image("new:1").GetSharedBytes() == 0 {
		t.Errorf("%v, %v", op, same)
	}
	op, lines = h.build(&bangerv1.BuildImageRequest{From: "new:1", Script: []byte("#!/usr/bin/env perl\nprint")})
	if op.GetState() != "done" || !strings.HasPrefix(op.GetResultId(), "sha256:") {
		t.Fatalf("%v", op)
	}
	if text := strings.Join(lines, "\n"); !strings.Contains(text, "chmod 700 /dev/shm/banger-build-script && exec /dev/shm/banger-build-script") ||
		!strings.Contains(text, "#!/usr/bin/env perl") {
		t.Error(text)
	}
	if v := h.create("dev"); v.GetSpec().GetImage() != "small" {
		t.Errorf("%v", v)
	}
	if op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev2", Image: op.GetResultId()}, true)); op.GetState() != "done" {
		t.Errorf("%v", op)
	}
	endpoint, err := h.vms.Endpoint(t.Context(), connect.NewRequest(&bangerv1.EndpointRequest{Ref: "dev2"}))
	if err != nil || endpoint.Msg.GetConfig().GetLabels()["x"] != "y" {
		t.Errorf("%v, %v", endpoint, err)
	}
	h.inOrder()
	if left := h.fsck(false); len(left) > 0 {
		t.Errorf("fsck: %v", left)
	}
}

func TestABuildThatFails(t *testing.T) {
	h := newHost(t)
	h.run()
	h.must(h.registerTar("base"))
	op, lines := h.build(&bangerv1.BuildImageRequest{Name: "new", From: "base", Argv: []string{"fail"}})
	if op.GetState() != "failed" || !strings.Contains(op.GetFault().GetMessage(), "exit code 3") ||
		lines[len(lines)-1] != "1 error exit code 3" {
		t.Errorf("%v, %v", op, lines)
	}
	h.wantNames("base")
	for name, req := range map[string]*bangerv1.BuildImageRequest{
		"nothing":        {},
		"relative":       {ContextDir: "x"},
		"both":           {From: "base", Argv: []string{"a"}, Script: []byte("b")},
		"neither":        {From: "base"},
		"from and files": {From: "base", Argv: []string{"a"}, ContextDir: "/"},
		"no image":       {Argv: []string{"a"}},
		"bad argument":   {ContextDir: "/", BuildArgs: []string{"x"}},
		"bad label":      {From: "base", Argv: []string{"a"}, Labels: []string{"=x"}},
		"bad name":       {From: "base", Argv: []string{"a"}, Name: "A B"},
		"bad platform":   {From: "base", Argv: []string{"a"}, Platform: "plan9/mips"},
		"too many cpus":  {From: "base", Argv: []string{"a"}, Cpus: 99},
		"little memory":  {From: "base", Argv: []string{"a"}, MemoryBytes: 1},
	} {
		if err := h.tryBuild(req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.tryBuild(&bangerv1.BuildImageRequest{From: "gone", Argv: []string{"a"}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	h.inOrder()
	h.nothingLeft()
}

// TestABuildIsCancelled cancels a build whose command hangs in its VM.
func TestABuildIsCancelled(t *testing.T) {
	h := newHost(t)
	h.run()
	h.must(h.registerTar("base"))
	h.must(h.tryBuild(&bangerv1.BuildImageRequest{Name: "packed", From: "base", Argv: []string{"a"}}))
	resp, err := h.imgs.Build(t.Context(), connect.NewRequest(&bangerv1.BuildImageRequest{Name: "new", From: "base", Argv: []string{"hang"}}))
	h.must(err)
	id := resp.Msg.GetOperationId()
	h.awaitHidden()
	if vms, err := h.list(); err != nil || len(vms) > 0 {
		t.Errorf("%v, %v", vms, err)
	}
	status, err := h.daemons.Status(t.Context(), connect.NewRequest(&bangerv1.StatusRequest{}))
	if err != nil || status.Msg.GetRunningVms() != 0 || status.Msg.GetRunningOperations() != 1 {
		t.Errorf("%v, %v", status, err)
	}
	if m := h.image("base"); len(m.GetUsedBy()) > 0 {
		t.Errorf("%v", m)
	}
	if _, err := h.removeImage("base"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "a build") {
		t.Errorf("%v", err)
	}
	began := time.Now()
	_, err = h.ops.Cancel(t.Context(), connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id}))
	h.must(err)
	if op := h.wait(id); op.GetState() != "cancelled" || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %v", time.Since(began), op)
	}
	h.wantNames("base", "packed")
	h.inOrder()
	h.nothingLeft()
}

// awaitHidden waits until a VM of the daemon's own executes something.
func (h *host) awaitHidden() {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		for _, name := range h.ls(h.paths.VMs()) {
			resp, err := h.vms.Get(h.t.Context(), connect.NewRequest(&bangerv1.GetVMRequest{Ref: name}))
			if err == nil && resp.Msg.GetState() == "running" && resp.Msg.GetSpec().GetPurpose() == "build" {
				return
			}
		}
	}
	h.t.Fatal("no vm of the daemon's own runs")
}

// TestDockerfile builds two stages, again from the cache, and once more from where a file has changed.
func TestDockerfile(t *testing.T) {
	h := newHost(t)
	h.run()
	h.must(h.registerTar("base"))
	dir := filepath.Join(h.outside(), "context")
	h.must(os.MkdirAll(dir, 0o700))
	write := func(name, text string) { h.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)) }
	write("Dockerfile", `FROM base AS builder
RUN ["first"]
COPY hello.c /src/
RUN ["out"]
FROM scratch
COPY --from=builder /out /bin/out
ENTRYPOINT ["/bin/out"]
`)
	write("hello.c", "1")
	count := func(lines []string, kind string) (n int) {
		for _, l := range lines {
			if strings.Fields(l)[1] == kind {
				n++
			}
		}
		return n
	}
	for _, tt := range []struct {
		text   string
		cached int
	}{{"1", 0}, {"1", 4}, {"2", 2}} {
		write("hello.c", tt.text)
		op, lines := h.build(&bangerv1.BuildImageRequest{Name: "app", ContextDir: dir})
		if op.GetState() != "done" || count(lines, "cached") != tt.cached {
			t.Errorf("%q: %v\n%s", tt.text, op, strings.Join(lines, "\n"))
		}
	}
	m := h.image("app")
	if strings.Join(m.GetConfig().GetEntrypoint(), " ") != "/bin/out" || len(m.GetLayers()) != 1 {
		t.Errorf("%v", m)
	}
	write("Dockerfile", "FROM base\nRUN [\"fail\"]\n")
	op, _ := h.build(&bangerv1.BuildImageRequest{Name: "app", ContextDir: dir})
	if op.GetState() != "failed" || !strings.Contains(op.GetFault().GetMessage(), "Dockerfile:2") {
		t.Errorf("%v", op)
	}
	if again := h.image("app"); again.GetDigest() != m.GetDigest() {
		t.Errorf("a build that failed has changed the image: %v", again)
	}
	h.inOrder()
	h.nothingLeft()
}

func TestExports(t *testing.T) {
	h := newHost(t)
	h.run()
	h.must(h.registerTar("base"))
	for format, look := range map[string]string{"oci-layout": "index.json", "oci-archive": "", "bundle": ""} {
		path := filepath.Join(h.outside(), format)
		h.must(h.tryExport("base", path, format))
		if info, err := os.Stat(filepath.Join(path, look)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v, %v", format, info, err)
		}
		if err := h.tryExport("base", path, format); !fault.Is(err, fault.Exists) {
			t.Errorf("%s twice: %v", format, err)
		}
	}
	for _, err := range []error{
		h.tryExport("base", "relative", "bundle"), h.tryExport("base", filepath.Join(h.outside(), "x"), "zip"),
	} {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%v", err)
		}
	}
	if err := h.tryExport("base", filepath.Join(h.outside(), "none", "x"), "bundle"); err == nil {
		t.Error("into a directory that is not there")
	}
	if n := len(h.ls(h.outside())); n != 4 {
		t.Errorf("the user's directory has %v", h.ls(h.outside()))
	}
	h.inOrder()
	h.nothingLeft()
}

// registerExt4 registers an image that is an ext4 file, and returns the file.
func (h *host) registerExt4(name string) string {
	h.t.Helper()
	file := filepath.Join(h.outside(), name+".ext4")
	_, err := ext4.FromTar(h.t.Context(), strings.NewReader(string(tarOf("etc/", "etc/hostname"))), file, ext4.Options{Size: 16 << 20})
	h.must(err)
	h.must(h.tryRegister(&bangerv1.RegisterImageRequest{Name: name, Rootfs: file, Kernel: "linux"}))
	return file
}

func TestRegisteredImages(t *testing.T) {
	h := newHost(t)
	h.run()
	file := h.registerExt4("mine")
	m := h.image("mine")
	if !m.GetUnmanaged() || m.GetRootfs() != file || m.GetProblem() != "" || m.GetUsedBytes() > 64<<10 {
		t.Errorf("%v", m)
	}
	if op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev", Image: "mine"}, true)); op.GetState() != "done" {
		t.Fatalf("%v", op)
	}
	_, err := h.stop("dev")
	h.must(err)
	promote := func(ref string) error {
		resp, err := h.imgs.Promote(t.Context(), connect.NewRequest(&bangerv1.PromoteImageRequest{Ref: ref}))
		if err != nil {
			return err
		}
		return h.outcome(t.Context(), resp.Msg.GetOperationId())
	}
	h.must(promote("mine"))
	copied := h.image("mine")
	if copied.GetUnmanaged() || copied.GetDigest() == m.GetDigest() || copied.GetKernel() != "linux" {
		t.Errorf("%v", copied)
	}
	if info, err := os.Stat(copied.GetRootfs()); err != nil || info.Size() != ext4.DefaultSize || copied.GetUsedBytes() > 1<<20 {
		t.Errorf("%v, %v, %d bytes", info, err, copied.GetUsedBytes())
	}
	a, errA := os.ReadFile(file)
	b, errB := os.Open(copied.GetRootfs())
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	defer b.Close()
	again := make([]byte, len(a))
	if _, err := b.Read(again); err != nil || string(again) != string(a) {
		t.Errorf("the copy differs: %v", err)
	}
	if err := promote("mine"); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
	// The vm goes on with the file, until that changes.
	if v, err := h.start("dev"); err != nil || v.GetImageDigest() != m.GetDigest() {
		t.Errorf("%v, %v", v, err)
	}
	_, err = h.stop("dev")
	h.must(err)
	h.must(os.WriteFile(file, []byte("something else"), 0o600))
	if old := h.image(m.GetDigest()); old.GetProblem() == "" {
		t.Errorf("%v", old)
	}
	if _, err := h.start("dev"); !fault.Is(err, fault.Conflict) || !strings.Contains(fault.HintOf(err), "banger image register --force") {
		t.Errorf("%v, %s", err, fault.HintOf(err))
	}
	h.must(h.remove("dev", true))
	h.wantNames("mine")
	if _, err := os.Stat(file); err != nil {
		t.Errorf("a file of the user's: %v", err)
	}
	h.inOrder()
}

// A kernel that is registered with an image goes with the registration when that fails.
func TestRegisterIsAllOrNothing(t *testing.T) {
	h := newHost(t)
	h.run()
	bad := filepath.Join(h.outside(), "bad.tar")
	h.must(os.WriteFile(bad, []byte("this is no tar"), 0o600))
	if err := h.tryRegister(&bangerv1.RegisterImageRequest{Name: "mine", Rootfs: bad, Kernel: bad}); err == nil {
		t.Error("no error")
	}
	good := filepath.Join(h.outside(), "good.tar")
	h.must(os.WriteFile(good, tarOf("etc/", "etc/hostname"), 0o600))
	for name, req := range map[string]*bangerv1.RegisterImageRequest{
		"relative":         {Name: "x", Rootfs: "good.tar"},
		"no file":          {Name: "x"},
		"no name":          {Rootfs: good},
		"initrd alone":     {Name: "x", Rootfs: good, Initrd: good},
		"modules of name":  {Name: "x", Rootfs: good, Kernel: "linux", Modules: good},
		"a kind's name":    {Name: "oci-layout:x", Rootfs: good},
		"a digest's name":  {Name: "sha256:" + strings.Repeat("a", 64), Rootfs: good},
		"upper-case names": {Name: "ABC", Rootfs: good},
	} {
		if err := h.tryRegister(req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.tryRegister(&bangerv1.RegisterImageRequest{Name: "x", Rootfs: good, Kernel: "none"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	h.inOrder()
	h.nothingLeft()
	if n := len(h.ls(h.paths.Kernels())); n != 0 {
		t.Errorf("%d kernels", n)
	}
	h.must(h.tryRegister(&bangerv1.RegisterImageRequest{Name: "mine:1", Rootfs: good, Kernel: good}))
	if m := h.image("mine:1"); m.GetKernel() != "mine-1" {
		t.Errorf("%v", m)
	}
}
