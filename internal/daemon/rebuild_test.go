package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/daemon"
	"banger/internal/fault"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// killAsIfBooted kills a VM's supervisor and makes its record one of another boot of the host.
func (h *host) killAsIfBooted(v *bangerv1.VM) {
	h.t.Helper()
	dir := vmdir.Dir(v.GetDir())
	p, ok, err := dir.ReadProcess()
	if err != nil || !ok {
		h.t.Fatal(p, ok, err)
	}
	h.killSupervisor(v.GetId())
	for p.Supervisor.Alive() {
		time.Sleep(time.Millisecond)
	}
	p.Supervisor.BootID = "another"
	if err := dir.WriteProcess(p); err != nil {
		h.t.Fatal(err)
	}
}

func TestTheDatabaseIsMadeAnew(t *testing.T) {
	for name, spoil := range map[string]func(*host){
		"removed": (*host).loseDatabase,
		"damaged": func(h *host) {
			if err := os.WriteFile(h.paths.Database(), bytes.Repeat([]byte("no database\n"), 1000), 0o600); err != nil {
				h.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.cfg.Log = nil
			kill, _ := h.process()
			running := h.get(h.wait(h.begin(&bangerv1.VMSpec{
				Name: "running", Labels: map[string]string{"a": "b"}, Restart: "always", Description: "mine",
			}, true)).GetResultId())
			h.create("stopped")
			h.wait(h.begin(&bangerv1.VMSpec{Name: "created"}, false))
			h.create("killed")
			h.create("paused")
			if _, err := h.stop("stopped"); err != nil {
				t.Fatal(err)
			}
			if _, err := h.pause("paused"); err != nil {
				t.Fatal(err)
			}
			if _, err := h.rename("running", "renamed"); err != nil {
				t.Fatal(err)
			}
			if _, err := h.set(&bangerv1.SetVMRequest{Ref: "renamed", MemoryBytes: ptr(uint64(2 << 30))}); err != nil {
				t.Fatal(err)
			}
			// The image gets a newer version: the VMs need the old one.
			resp, err := h.imgs.Pull(t.Context(), connect.NewRequest(&bangerv1.PullImageRequest{Force: true}))
			if err != nil {
				t.Fatal(err)
			}
			h.wait(resp.Msg.GetOperationId())
			dead := h.get("killed")
			kill()
			h.killSupervisor(dead.GetId())
			spoil(h)

			h.run()
			h.until("paused", "paused")
			h.inOrder()
			v := h.until("renamed", "running")
			if v.GetId() != running.GetId() || v.GetSupervisorPid() != running.GetSupervisorPid() || v.GetSpec().GetLabels()["a"] != "b" ||
				v.GetSpec().GetRestart() != "always" || v.GetSpec().GetDescription() != "mine" || v.GetSpec().GetMemoryBytes() != 2<<30 ||
				v.GetKernelVersion() != "6.1-fake" || v.GetCreatedAtMs() != running.GetCreatedAtMs() ||
				!slices.Equal(v.GetPending(), []string{"memory", "name"}) {
				t.Errorf("%v", v)
			}
			for name, want := range map[string][2]string{
				"stopped": {"stopped", "stopped"}, "created": {"created", ""}, "killed": {"stopped", "the supervisor was killed"},
			} {
				if v := h.get(name); v.GetState() != want[0] || v.GetReason() != want[1] {
					t.Errorf("%v", v)
				}
			}
			for _, name := range []string{"stopped", "created", "killed"} {
				if v, err := h.start(name); err != nil || v.GetState() != "running" {
					t.Errorf("%v, %v", v, err)
				}
			}
			h.inOrder()
			aside, _ := filepath.Glob(h.paths.Database() + ".corrupt-*[0-9]") // without its log
			if (name == "damaged") != (len(aside) == 1) {
				t.Errorf("moved aside: %v", aside)
			}
		})
	}
}

// TestTheDatabaseIsRemovedUnderARunningDaemon: it ends, and nothing that it knew is lost.
func TestTheDatabaseIsRemovedUnderARunningDaemon(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.cfg.Times.Guard = 20 * time.Millisecond
	d, err := daemon.New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Run(context.Background()) }()
	h.awaitDaemon(ended)
	v := h.create("dev")
	h.loseDatabase()
	select {
	case err := <-ended:
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "was removed while it was in use") {
			t.Errorf("%v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the daemon goes on")
	}
	h.http.CloseIdleConnections()
	h.run()
	h.inOrder()
	if got := h.get("dev"); got.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Errorf("%v", got)
	}
	// Even the history is there: the file was written anew.
	if events := h.kinds("dev"); len(events) != 3 || events[0] != "vm.created: image small" {
		t.Errorf("%q", events)
	}
}

func TestFsck(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.run()
	v, lost := h.create("dev"), h.create("lost")
	if _, err := h.stop("lost"); err != nil {
		t.Fatal(err)
	}
	if found := h.fsck(false); len(found) > 0 {
		t.Fatalf("of a host in order: %q", found)
	}
	make := func(dir string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// A directory from a backup, one that says nothing, a copy.
	backup := vmdir.Dir(h.paths.VM("0123456789ab"))
	make(string(backup))
	r, err := vmdir.Dir(v.GetDir()).ReadRecord()
	if err != nil {
		t.Fatal(err)
	}
	r.ID, r.Spec.Name = "0123456789ab", "backup"
	if err := errors.Join(backup.WriteRecord(r), os.WriteFile(backup.Path("disk.ext4"), nil, 0o600), os.Truncate(backup.Path("disk.ext4"), 256<<20)); err != nil {
		t.Fatal(err)
	}
	nothing, copied := h.paths.VM("aaaaaaaaaaaa"), vmdir.Dir(h.paths.VM("bbbbbbbbbbbb"))
	make(nothing)
	make(string(copied))
	if err := copied.WriteRecord(r); err != nil {
		t.Fatal(err)
	}
	make(filepath.Join(h.paths.VMs(), ".removed-cccccccccccc"))
	make(h.paths.VMRun("dddddddddddd"))
	h.must(os.MkdirAll(h.paths.VMRun("t.123"), 0o700)) // a template is being made
	make(filepath.Join(h.paths.Staging(), "x"))
	if err := errors.Join(
		os.WriteFile(filepath.Join(h.paths.Initramfs(), "old.cpio"), nil, 0o600),
		os.Remove(filepath.Join(lost.GetDir(), "disk.ext4")),
		vmdir.Dir(v.GetDir()).WriteRecord(r),
	); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"disk-without-row 0123456789ab", "disk-without-row aaaaaaaaaaaa", "disk-without-row bbbbbbbbbbbb",
		"half-removed-dir .removed-cccccccccccc", "leftover-run-dir dddddddddddd", "leftover-staging x", "old-initramfs old.cpio",
		"row-without-disk lost", "stale-record vm.json",
	}
	if found := h.fsck(false); !slices.Equal(slices.Sorted(slices.Values(found)), want) {
		t.Errorf("%q", found)
	}
	mended := []string{
		"disk-without-row 0123456789ab mended", "disk-without-row aaaaaaaaaaaa", "disk-without-row bbbbbbbbbbbb",
		"half-removed-dir .removed-cccccccccccc mended", "leftover-run-dir dddddddddddd mended", "leftover-staging x mended",
		"old-initramfs old.cpio mended", "row-without-disk lost", "stale-record vm.json mended",
	}
	if found := h.fsck(true); !slices.Equal(slices.Sorted(slices.Values(found)), mended) {
		t.Errorf("%q", found)
	}
	// What only the user can say is left as it is.
	left := []string{"disk-without-row aaaaaaaaaaaa", "disk-without-row bbbbbbbbbbbb", "row-without-disk lost"}
	if found := h.fsck(true); !slices.Equal(slices.Sorted(slices.Values(found)), left) {
		t.Errorf("%q", found)
	}
	if v, err := h.start("backup"); err != nil || v.GetState() != "running" {
		t.Errorf("%v, %v", v, err)
	}
	for _, err := range []error{h.remove("lost", false), os.Remove(nothing), os.RemoveAll(string(copied))} {
		if err != nil {
			t.Error(err)
		}
	}
	h.must(os.Remove(h.paths.VMRun("t.123")))
	h.inOrder()
}

// TestFsckFindsProcesses: one whose VM has no row any more is told of and left alone.
func TestFsckFindsProcesses(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	stop := h.run()
	v := h.create("dev")
	stop()
	moved := v.GetDir() + "-away"
	if err := os.Rename(v.GetDir(), moved); err != nil {
		t.Fatal(err)
	}
	h.loseDatabase()
	h.run()
	if found := h.fsck(true); len(found) != 2 || !strings.HasPrefix(found[1], "process-without-row ") {
		t.Errorf("%q", found)
	}
	if err := os.Rename(moved, v.GetDir()); err != nil {
		t.Fatal(err)
	}
	if found := h.fsck(true); !slices.Equal(found, []string{"disk-without-row " + v.GetId() + " mended"}) {
		t.Errorf("%q", found)
	}
	if got := h.until("dev", "running"); got.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Errorf("%v", got)
	}
	h.inOrder()
}

func TestFsckOfArtifacts(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.run()
	h.create("dev")
	resp, err := h.imgs.Pull(t.Context(), connect.NewRequest(&bangerv1.PullImageRequest{Reference: "large"}))
	if err != nil {
		t.Fatal(err)
	}
	h.wait(resp.Msg.GetOperationId())
	images, err := h.imgs.List(t.Context(), connect.NewRequest(&bangerv1.ListImagesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images.Msg.GetImages() {
		if err := os.RemoveAll(h.paths.Image(i.GetDigest())); err != nil {
			t.Fatal(err)
		}
	}
	if found := h.fsck(true); !slices.Equal(found, []string{"artifact-without-files large mended", "artifact-without-files small"}) {
		t.Errorf("%q", found)
	}
}
