package daemon_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"banger/internal/daemon"
	"banger/internal/daemon/library"
	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

func (h *host) tag(ref, name string, force bool) error {
	_, err := h.imgs.Tag(h.t.Context(), connect.NewRequest(&bangerv1.TagImageRequest{Ref: ref, Name: name, Force: force}))
	return err
}

func (h *host) image(ref string) *bangerv1.Image {
	h.t.Helper()
	resp, err := h.imgs.Get(h.t.Context(), connect.NewRequest(&bangerv1.GetImageRequest{Ref: ref}))
	if err != nil {
		h.t.Fatalf("image %s: %v", ref, err)
	}
	return resp.Msg
}

// names lists the images as "name,name used-by", "-" for none.
func (h *host) names() (all []string) {
	h.t.Helper()
	resp, err := h.imgs.List(h.t.Context(), connect.NewRequest(&bangerv1.ListImagesRequest{}))
	h.must(err)
	for _, m := range resp.Msg.GetImages() {
		names := strings.Join(m.GetNames(), ",")
		if names == "" {
			names = "-"
		}
		all = append(all, strings.TrimSpace(names+" "+strings.Join(m.GetUsedBy(), ",")))
	}
	return all
}

func (h *host) wantNames(want ...string) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.names()); diff != "" {
		h.t.Errorf("images (-want +got):\n%s", diff)
	}
}

func TestNamesOfImages(t *testing.T) {
	h := newHost(t)
	h.run()
	h.must(h.tryPull("small", false))
	h.must(h.tryPull("large", false))
	digest := h.image("small").GetDigest()
	digits := strings.TrimPrefix(digest, "sha256:")
	h.must(h.tag("small", "work:latest", false))
	h.must(h.tag("small", "work:latest", false)) // it is so already
	h.wantNames("large", "small,work:latest")
	for _, ref := range []string{"small", "work", "work:latest", digest, digits[:12], "sha256:" + digits[:4]} {
		if m := h.image(ref); m.GetDigest() != digest {
			t.Errorf("%s is %v", ref, m)
		}
	}
	if got := h.image("work").GetName(); got != "work:latest" {
		t.Errorf("asked for work: %s", got)
	}
	for ref, class := range map[string]fault.Class{"none": fault.NotFound, digits[:3]: fault.NotFound, "": fault.NotFound} {
		if _, err := h.imgs.Get(t.Context(), connect.NewRequest(&bangerv1.GetImageRequest{Ref: ref})); !fault.Is(err, class) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if err := h.tag("large", "work:latest", false); !fault.Is(err, fault.Exists) || !strings.Contains(fault.HintOf(err), "--force large work:latest") {
		t.Errorf("%v, %s", err, fault.HintOf(err))
	}
	if err := h.tag("large", "sha256:"+digits, false); !fault.Is(err, fault.Invalid) {
		t.Errorf("a digest as a name: %v", err)
	}
	h.must(h.tag("large", "work:latest", true))
	h.wantNames("large,work:latest", "small")
	// By a digest that has several names nobody says which of them is meant.
	large := h.image("large").GetDigest()
	if _, err := h.removeImage(large); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger image rm large work:latest" {
		t.Errorf("%v, %s", err, fault.HintOf(err))
	}
	gone, err := h.removeImage("large")
	if err != nil || gone.GetName() != "large" || gone.GetDigest() != "" || gone.GetFreedBytes() != 0 {
		t.Errorf("%v, %v", gone, err)
	}
	gone, err = h.removeImage(large)
	if err != nil || gone.GetName() != "work:latest" || gone.GetDigest() != large || gone.GetFreedBytes() == 0 {
		t.Errorf("%v, %v", gone, err)
	}
	h.wantNames("small")
	h.inOrder()
}

func TestAnImageInUseIsNotRemoved(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	h.must(h.tag("small", "other", false))
	if _, err := h.removeImage("other"); err != nil {
		t.Errorf("a name beside another: %v", err)
	}
	if _, err := h.removeImage("small"); !fault.Is(err, fault.Conflict) || err.Error() != "image small is used by vm dev" || fault.HintOf(err) != "banger vm rm dev" {
		t.Errorf("%v, %s", err, fault.HintOf(err))
	}
	h.wantNames("small dev")
	// A newer one takes the name: the old one is found by its digest as long as the vm has it, also for new vms.
	old := h.image("small").GetDigest()
	h.must(h.tryPull("small", true))
	h.wantNames("small", "- dev")
	if op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev2", Image: old[:20]}, false)); op.GetState() != "done" {
		t.Errorf("%v", op)
	}
	if v := h.get("dev2"); v.GetImageDigest() != old || v.GetSpec().GetImage() != old {
		t.Errorf("%v", v)
	}
	if _, err := h.removeImage(old); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "2 vms: dev, dev2") {
		t.Errorf("%v", err)
	}
	h.inOrder()
	h.must(h.remove("dev", true))
	h.must(h.remove("dev2", true))
	h.wantNames("small")
	h.inOrder()
}

func TestNamesOutliveTheDatabase(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	h.must(h.tryPull("small", false))
	h.must(h.tryPull("large", false))
	h.must(h.tag("small", "a:1", false))
	h.must(h.tag("small", "b", false))
	h.must(h.tag("large", "b", true))
	h.create("dev")
	h.must(h.tryPull("small", true))
	h.must(h.registerTar("base"))
	h.must(h.tryBuild(&bangerv1.BuildImageRequest{From: "base", Argv: []string{"unnamed"}}))
	want := []string{"b,large", "base", "small", "a:1 dev", "-"}
	before := h.names()
	stop()
	h.loseDatabase()
	h.run()
	if diff := cmp.Diff(before, h.names()); diff != "" || len(before) != len(want) {
		t.Errorf("%v before (-before +now):\n%s", before, diff)
	}
	h.inOrder()
}

// One of those who want a new name at the same time gets it.
func TestOneNameHasOneWinner(t *testing.T) {
	h := newHost(t)
	var both sync.WaitGroup
	both.Add(2)
	h.images.During = func(context.Context, string) error { // a pull that has looked at the name and is not done
		both.Done()
		both.Wait()
		return nil
	}
	h.run()
	first := make(chan error, 1)
	go func() { first <- h.tryPullAs("small", "x") }()
	second := h.tryPullAs("large", "x")
	errs := []error{<-first, second}
	if (errs[0] == nil) == (errs[1] == nil) || !fault.Is(errors.Join(errs...), fault.Exists) {
		t.Errorf("%v", errs)
	}
	h.images.During = nil
	h.inOrder()
	h.wantNames("x")
	if err := h.tryRegister(&bangerv1.RegisterImageRequest{Name: "x", Rootfs: filepath.Join(h.outside(), "none")}); !fault.Is(err, fault.Exists) {
		t.Errorf("%v", err)
	}
}

func (h *host) tryPullAs(reference, name string) error {
	resp, err := h.imgs.Pull(h.t.Context(), connect.NewRequest(&bangerv1.PullImageRequest{Reference: reference, Name: name}))
	if err != nil {
		return err
	}
	return h.outcome(h.t.Context(), resp.Msg.GetOperationId())
}

func TestPruneImages(t *testing.T) {
	h := newHost(t)
	h.run()
	prune := func(all, dryRun bool) (found []string) {
		t.Helper()
		resp, err := h.imgs.Prune(t.Context(), connect.NewRequest(&bangerv1.PruneImagesRequest{All: all, DryRun: dryRun}))
		h.must(err)
		sum := uint64(0)
		for _, p := range resp.Msg.GetPruned() {
			sum += p.GetBytes()
			name := p.GetName()
			if strings.HasPrefix(name, "sha256:") {
				name = "sha256:"
			}
			found = append(found, p.GetKind()+" "+name)
		}
		if sum != resp.Msg.GetFreedBytes() {
			t.Errorf("%d bytes, %d in sum", resp.Msg.GetFreedBytes(), sum)
		}
		return found
	}
	h.create("dev")
	h.must(h.tryPull("large", false))
	h.must(h.registerTar("base"))
	h.must(h.tryBuild(&bangerv1.BuildImageRequest{From: "base", Argv: []string{"unnamed"}}))
	h.must(os.MkdirAll(h.paths.BuildCache(), 0o700))
	h.must(os.WriteFile(filepath.Join(h.paths.BuildCache(), "step"), []byte("{}"), 0o600))
	h.must(os.MkdirAll(h.paths.Disks(), 0o700))
	h.must(os.WriteFile(filepath.Join(h.paths.Disks(), "ext4-v1-12345.img"), []byte("old"), 0o600))
	h.must(os.WriteFile(filepath.Join(h.paths.Initramfs(), "old.cpio"), []byte("old"), 0o600))
	rest := []string{"build-step step", "initramfs old.cpio", "disk-template ext4-v1-12345.img"}
	want := append([]string{"image sha256:", "layer sha256:"}, rest...)
	for _, dryRun := range []bool{true, false} {
		if diff := cmp.Diff(want, prune(false, dryRun)); diff != "" {
			t.Error(diff)
		}
	}
	h.wantNames("base", "large", "small dev")
	if got := prune(false, false); len(got) > 0 {
		t.Errorf("once more: %v", got)
	}
	want = []string{"image base", "image large", "layer sha256:"}
	for _, dryRun := range []bool{true, false} {
		if diff := cmp.Diff(want, prune(true, dryRun)); diff != "" {
			t.Error(diff)
		}
	}
	h.wantNames("small dev")
	h.inOrder()
}

// What was not shown to somebody is not removed because of what was.
func TestPruneTakesOnlyWhatWasAgreedTo(t *testing.T) {
	h := newHost(t)
	h.run()
	h.must(h.registerTar("base"))
	prune := func(req *bangerv1.PruneImagesRequest) (images []string) {
		t.Helper()
		resp, err := h.imgs.Prune(t.Context(), connect.NewRequest(req))
		h.must(err)
		for _, p := range resp.Msg.GetPruned() {
			if p.GetKind() == "image" {
				images = append(images, p.GetDigest())
			} else if p.GetDigest() != "" {
				t.Errorf("%v", p)
			}
		}
		return images
	}
	shown := prune(&bangerv1.PruneImagesRequest{All: true, DryRun: true})
	if len(shown) != 1 || !strings.HasPrefix(shown[0], "sha256:") {
		t.Fatalf("shown: %v", shown)
	}
	h.must(h.registerTar("late")) // while the question is on the screen
	if got := prune(&bangerv1.PruneImagesRequest{All: true, Only: true}); len(got) > 0 {
		t.Errorf("of none: %v", got)
	}
	if diff := cmp.Diff(shown, prune(&bangerv1.PruneImagesRequest{All: true, Only: true, Digests: shown})); diff != "" {
		t.Error(diff)
	}
	h.wantNames("late")
	h.inOrder()
}

func TestKernels(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	file := filepath.Join(h.outside(), "vmlinux")
	importAs := func(name string, force bool) error {
		resp, err := h.kernls.Import(t.Context(), connect.NewRequest(&bangerv1.ImportKernelRequest{Name: name, Image: file, Force: force}))
		if err != nil {
			return err
		}
		return h.outcome(t.Context(), resp.Msg.GetOperationId())
	}
	h.must(importAs("mine", false))
	if err := importAs("mine", false); !fault.Is(err, fault.Exists) {
		t.Errorf("%v", err)
	}
	get := func(ref string) *bangerv1.Kernel {
		resp, err := h.kernls.Get(t.Context(), connect.NewRequest(&bangerv1.GetKernelRequest{Ref: ref}))
		h.must(err)
		return resp.Msg
	}
	first := get("mine").GetDigest()
	h.must(importAs("mine", true))
	if again := get("mine"); again.GetDigest() == first || again.GetVersion() == "" || len(again.GetUsedBy()) > 0 {
		t.Errorf("%v", again)
	}
	if k := get("linux"); len(k.GetUsedBy()) != 1 || k.GetUsedBytes() == 0 {
		t.Errorf("%v", k)
	}
	remove := func(ref string) (*bangerv1.RemoveKernelResponse, error) {
		resp, err := h.kernls.Remove(t.Context(), connect.NewRequest(&bangerv1.RemoveKernelRequest{Ref: ref}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	if _, err := remove("linux"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "vm dev") {
		t.Errorf("%v", err)
	}
	h.must(os.WriteFile(filepath.Join(h.outside(), "root.tar"), tarOf("etc/", "etc/hostname", "x"), 0o600))
	h.must(h.tryRegister(&bangerv1.RegisterImageRequest{Name: "base", Rootfs: filepath.Join(h.outside(), "root.tar"), Kernel: "mine"}))
	if _, err := remove("mine"); !fault.Is(err, fault.Conflict) || err.Error() != "kernel mine is the one of image base" ||
		fault.HintOf(err) != "banger image rm base" {
		t.Errorf("%v", err)
	}
	_, err := h.imgs.Remove(t.Context(), connect.NewRequest(&bangerv1.RemoveImageRequest{Ref: "base"}))
	h.must(err)
	if gone, err := remove("mine"); err != nil || gone.GetName() != "mine" || gone.GetDigest() == "" || gone.GetFreedBytes() == 0 {
		t.Errorf("%v, %v", gone, err)
	}
	if n := len(h.ls(h.paths.Kernels())); n != 1 {
		t.Errorf("%d kernel directories", n)
	}
	for _, bad := range []string{"", "a/b", "-x", ".."} {
		if err := importAs(bad, false); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A kernel that comes with an image is in the store when the image is, and not when the image's name was lost to another.
func TestAKernelComesWithAnImage(t *testing.T) {
	h := newHost(t)
	h.cfg.Images.Brought = func(string) (string, daemon.Artifact, bool, error) {
		dir, a, err := h.cfg.Kernels.Pull(t.Context(), library.Request{Reference: "linux", Name: "brought"}, h.paths.Staging(), nil)
		return dir, a, true, err
	}
	h.run()
	kernels := func() (names []string) {
		resp, err := h.kernls.List(t.Context(), connect.NewRequest(&bangerv1.ListKernelsRequest{}))
		h.must(err)
		for _, k := range resp.Msg.GetKernels() {
			names = append(names, k.GetName())
		}
		return names
	}
	h.must(h.tryPull("large", false))
	if diff := cmp.Diff([]string{"brought"}, kernels()); diff != "" {
		t.Error(diff)
	}
	h.must(h.tryPullAs("large", "second")) // another kernel that is called the same
	if diff := cmp.Diff([]string{"brought", ""}, kernels()); diff != "" {
		t.Error(diff)
	}
	h.images.During = func(context.Context, string) error { return h.tag("large", "small", false) }
	if err := h.tryPull("small", false); !fault.Is(err, fault.Exists) {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{"brought", ""}, kernels()); diff != "" {
		t.Error(diff)
	}
	h.inOrder()
}
