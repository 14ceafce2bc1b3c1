package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/daemon"
	"banger/internal/fault"
	"banger/internal/paths"
	"banger/internal/snapshot"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// snapshot takes a snapshot and returns its name.
func (h *host) snapshot(req *bangerv1.CreateSnapshotRequest) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := h.snaps.Create(ctx, connect.NewRequest(req))
	if err != nil {
		return "", err
	}
	if err := h.outcomeWithHint(ctx, resp.Msg.GetOperationId()); err != nil {
		return "", err
	}
	op, err := h.ops.Get(ctx, connect.NewRequest(&bangerv1.GetOperationRequest{Id: resp.Msg.GetOperationId()}))
	if err != nil {
		return "", err
	}
	return op.Msg.GetResultId(), nil
}

func (h *host) mustSnapshot(ref, name string) {
	h.t.Helper()
	if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: ref, Name: name}); err != nil {
		h.t.Fatalf("snapshot %s: %v", name, err)
	}
}

// outcomeWithHint is outcome with the fault's hint.
func (h *host) outcomeWithHint(ctx context.Context, id string) error {
	err := h.outcome(ctx, id)
	if err == nil {
		return nil
	}
	op, getErr := h.ops.Get(ctx, connect.NewRequest(&bangerv1.GetOperationRequest{Id: id}))
	if getErr != nil {
		return err
	}
	return fault.Wrap(fault.ClassOf(err), err, "operation").WithHint("%s", op.Msg.GetFault().GetHint())
}

// restore restores a VM with force.
func (h *host) restore(ref, name string) error {
	return h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: ref, Name: name, Force: true})
}

func (h *host) restoreWith(req *bangerv1.RestoreSnapshotRequest) error {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := h.snaps.Restore(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	return h.outcomeWithHint(ctx, resp.Msg.GetOperationId())
}

func (h *host) removeSnapshot(ref, name string) (*bangerv1.RemoveSnapshotResponse, error) {
	resp, err := h.snaps.Remove(h.t.Context(), connect.NewRequest(&bangerv1.RemoveSnapshotRequest{Ref: ref, Name: name}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (h *host) snapshots(ref string) []*bangerv1.Snapshot {
	h.t.Helper()
	resp, err := h.snaps.List(h.t.Context(), connect.NewRequest(&bangerv1.ListSnapshotsRequest{Ref: ref}))
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.Msg.GetSnapshots()
}

// chain lists the snapshots of a VM as "name<parent", with "*" behind the one that its state goes back to.
func (h *host) chain(ref string) string {
	h.t.Helper()
	var all []string
	for _, s := range h.snapshots(ref) {
		text := s.GetName() + "<" + s.GetParent()
		if s.GetCurrent() {
			text += "*"
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

// untilChain waits until chain says what is wanted.
func (h *host) untilChain(ref, want string) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); h.chain(ref) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s, not %s", h.chain(ref), want)
		}
	}
}

// writeDisk has a VM's disk begin with a word, as a guest that writes to it would.
func (h *host) writeDisk(v *bangerv1.VM, word string) {
	h.t.Helper()
	f, err := os.OpenFile(filepath.Join(v.GetDir(), paths.VMDisk), os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(word+"\n"), 0)
	if err := errors.Join(err, f.Close()); err != nil {
		h.t.Fatal(err)
	}
}

// diskSays is the word that a VM's disk begins with.
func (h *host) diskSays(v *bangerv1.VM) string {
	h.t.Helper()
	f, err := os.Open(filepath.Join(v.GetDir(), paths.VMDisk))
	if err != nil {
		h.t.Errorf("vm %s has no disk: %v", v.GetSpec().GetName(), err)
		return ""
	}
	defer f.Close()
	buf := make([]byte, 64)
	n, _ := f.ReadAt(buf, 0)
	word, _, _ := strings.Cut(string(buf[:n]), "\n")
	return word
}

// twoStates takes a snapshot "one" of a VM whose disk says so, and has it say "two".
func (h *host) twoStates(ref string) {
	h.t.Helper()
	v := h.get(ref)
	h.writeDisk(v, "one")
	h.mustSnapshot(ref, "one")
	time.Sleep(20 * time.Millisecond) // a file's time has ticks of up to 10 ms, and tells the two disks apart
	h.writeDisk(v, "two")
}

// eitherState checks that a VM has one of its two disks, that memory goes with the first only, and that nothing is left over.
func (h *host) eitherState(ref string) {
	h.t.Helper()
	v := h.get(ref)
	says := h.diskSays(v)
	switch state := v.GetState(); {
	case state == "running" || state == "suspended" || state == "stopped" || state == "failed":
	default:
		h.t.Errorf("vm %s is %s", ref, state)
	}
	if says != "one" && says != "two" {
		h.t.Errorf("its disk says %q", says)
	}
	if saved, err := vmdir.ReadSaved(filepath.Join(v.GetDir(), paths.VMSuspended)); err == nil {
		stamp, err := vmdir.StampOf(filepath.Join(v.GetDir(), paths.VMDisk))
		if err != nil || stamp != saved.Disk || says != "one" || v.GetState() != "suspended" {
			h.t.Errorf("vm %s is %s, its disk says %q and is %+v; its memory goes with %+v", ref, v.GetState(), says, stamp, saved.Disk)
		}
	} else if v.GetState() == "suspended" {
		h.t.Errorf("vm %s is suspended and has no memory", ref)
	}
	for _, name := range h.ls(v.GetDir()) {
		if name == paths.VMRestoring || strings.HasPrefix(name, ".") {
			h.t.Errorf("%s is left in the directory of vm %s, which is %s", name, ref, v.GetState())
		}
	}
}

func TestSnapshotAndRestore(t *testing.T) {
	h := newHost(t)
	h.run()
	v := h.create("dev")
	h.twoStates("dev")
	if got := h.get("dev"); got.GetState() != "running" || got.GetSupervisorPid() != v.GetSupervisorPid() {
		t.Fatalf("it has not gone on: %v", got)
	}
	s := h.snapshots("dev")
	if len(s) != 1 || s[0].GetKind() != "memory" || s[0].GetStillUs() != 7 || s[0].GetProblem() != "" || s[0].GetUsedBytes() == 0 || s[0].GetDiskBytes() == 0 {
		t.Fatalf("%v", s)
	}
	if err := h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: "dev", Name: "one"}); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger vm restore --yes dev one" {
		t.Errorf("without force: %v, hint %q", err, fault.HintOf(err))
	}
	for range 3 {
		if err := h.restore("dev", "one"); err != nil {
			t.Fatal(err)
		}
		v := h.get("dev")
		if l := h.launched(v); v.GetState() != "running" || h.diskSays(v) != "one" || l.Resume == nil || l.Identity != nil {
			t.Errorf("%v, disk %q, launch %+v", v, h.diskSays(v), l)
		}
		h.eitherState("dev")
		h.inOrder()
		h.writeDisk(v, "three")
	}
	if left := h.fsck(false); len(left) > 0 {
		t.Errorf("fsck: %v", left)
	}
	if events := h.kinds("dev"); !slices.Contains(events, "vm.restored: to one") {
		t.Errorf("%q", events)
	}
}

// What state a VM is in decides what its snapshot has, and a snapshot can be restored in every state.
func TestSnapshotsInEveryState(t *testing.T) {
	h := newHost(t)
	h.run()
	states := map[string]struct {
		bring func(string) error
		kind  string
	}{
		"created":   {func(n string) error { return nil }, "disk"},
		"running":   {func(n string) error { return second(h.start(n)) }, "memory"},
		"paused":    {func(n string) error { return errors.Join(second(h.start(n)), second(h.pause(n))) }, "memory"},
		"suspended": {func(n string) error { return errors.Join(second(h.start(n)), second(h.suspend(n))) }, "memory"},
		"stopped":   {func(n string) error { return errors.Join(second(h.start(n)), second(h.stop(n))) }, "disk"},
	}
	for from, one := range states {
		for to, two := range states {
			if to == "created" {
				continue
			}
			name := from + "-" + to
			h.wait(h.begin(&bangerv1.VMSpec{Name: name}, false))
			if from != "created" {
				h.must(one.bring(name))
			}
			v := h.get(name)
			if from != "suspended" { // its memory would not fit any more
				h.writeDisk(v, "one")
			}
			before := h.diskSays(v)
			h.mustSnapshot(name, "one")
			if got := h.get(name).GetState(); got != from {
				t.Errorf("%s: after the snapshot it is %s", name, got)
			}
			if s := h.snapshots(name); s[0].GetKind() != one.kind {
				t.Errorf("%s: the snapshot has %s", name, s[0].GetKind())
			}
			if from == "paused" && to != "paused" {
				h.must(second(h.unpause(name)))
			}
			if h.get(name).GetState() != to {
				h.must(two.bring(name))
			}
			if to != "suspended" {
				h.writeDisk(v, "two")
			}
			if err := h.restore(name, "one"); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			want := map[string]string{"memory": "running", "disk": "stopped"}[one.kind]
			if got := h.get(name); got.GetState() != want || h.diskSays(got) != before || h.memory(got) {
				t.Errorf("%s: %s, disk %q, memory %v", name, got.GetState(), h.diskSays(got), h.memory(got))
			}
			h.must(h.remove(name, true))
		}
	}
	h.nothingLeft()
}

func TestDiskOnly(t *testing.T) {
	h := newHost(t)
	h.run()
	v := h.create("dev")
	h.writeDisk(v, "one")
	if name, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", DiskOnly: true, Description: "a disk"}); err != nil || name != "snap-1" {
		t.Fatalf("%q, %v", name, err)
	}
	s := h.snapshots("dev")[0]
	if s.GetKind() != "disk" || s.GetMemoryBytes() != 0 || s.GetDescription() != "a disk" {
		t.Errorf("%v", s)
	}
	if left := h.ls(s.GetDir()); !slices.Equal(left, []string{"disk.ext4", "snapshot.json"}) {
		t.Errorf("%v", left)
	}
	h.mustSnapshot("dev", "full")
	h.writeDisk(v, "two")
	for _, tc := range []struct {
		name  string
		start bool
		state string
	}{{"snap-1", false, "stopped"}, {"snap-1", true, "running"}, {"full", false, "stopped"}, {"full", true, "running"}} {
		if err := h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: "dev", Name: tc.name, DiskOnly: true, Start: tc.start, Force: true}); err != nil {
			t.Fatal(err)
		}
		if v := h.get("dev"); v.GetState() != tc.state || h.diskSays(v) != "one" || tc.start && h.launched(v).Resume != nil {
			t.Errorf("%+v: %v, disk %q", tc, v, h.diskSays(v))
		}
		h.writeDisk(v, "two")
		h.inOrder()
	}
}

// Snapshots know where they come from, and go on to when one between them goes.
func TestTheChainOfSnapshots(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	for _, name := range []string{"a", "b", "c"} {
		h.mustSnapshot("dev", name)
	}
	h.must(h.restore("dev", "a"))
	h.mustSnapshot("dev", "d")
	if got := h.chain("dev"); got != "a< b<a c<b d<a*" {
		t.Errorf("%s", got)
	}
	h.must(second(h.rename("dev", "new")))
	h.must(second(h.removeSnapshot("new", "b")))
	if got := h.chain("new"); got != "a< c<a d<a*" {
		t.Errorf("%s", got)
	}
	h.must(second(h.removeSnapshot("new", "d")))
	h.must(second(h.removeSnapshot("new", "a")))
	h.mustSnapshot("new", "e")
	if got := h.chain("new"); got != "c< e<*" {
		t.Errorf("%s", got)
	}
	if _, err := h.removeSnapshot("new", "a"); !fault.Is(err, fault.NotFound) || fault.HintOf(err) != "banger snapshot list new" {
		t.Errorf("%v", err)
	}
	if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "new", Name: "e"}); !fault.Is(err, fault.Exists) {
		t.Errorf("%v", err)
	}
	if got := h.chain("new"); got != "c< e<*" {
		t.Errorf("after a name that is taken: %s", got)
	}
	if err := h.restore("new", "x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestNamesOfSnapshots(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	for name, want := range map[string]string{
		"Before": "has upper-case letters", "a b": "has a character other than", "../x": "has a character other than", "-a": "starts with '-'",
		"a-": "ends with '-'", ".new-a": "has a character other than", strings.Repeat("x", 64): "is longer than 63",
	} {
		_, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Name: name})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(fault.HintOf(err), "banger vm snapshot dev ") {
			t.Errorf("%q: %v, hint %q", name, err, fault.HintOf(err))
		}
	}
	if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "nobody"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	if got := h.chain("dev"); got != "" {
		t.Errorf("%s", got)
	}
}

// Automatic snapshots are a ring; going back counts from the newest.
func TestCheckpoints(t *testing.T) {
	h := newHost(t)
	h.cfg.Settings.Limits.Checkpoints = 3
	h.run()
	v := h.create("dev")
	if err := h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: "dev", Back: 1, Force: true}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "has no checkpoints") {
		t.Errorf("%v", err)
	}
	for i := range 5 {
		h.writeDisk(v, fmt.Sprint("state ", i+1))
		if i == 2 {
			h.mustSnapshot("dev", "mine")
		}
		if name, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Auto: true}); err != nil || name != fmt.Sprint("auto-", i+1) {
			t.Fatalf("%q, %v", name, err)
		}
	}
	h.untilChain("dev", "mine< auto-3<mine auto-4<auto-3 auto-5<auto-4*") // the oldest go a moment later
	for back, want := range map[int32]string{1: "state 5", 3: "state 3"} {
		h.must(h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: "dev", Back: back, Force: true}))
		if got := h.diskSays(v); got != want {
			t.Errorf("%d back: %q", back, got)
		}
	}
	for back, class := range map[int32]fault.Class{4: fault.NotFound, -1: fault.Invalid} {
		if err := h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: "dev", Back: back, Force: true}); !fault.Is(err, class) {
			t.Errorf("%d back: %v", back, err)
		}
	}
	h.must(second(h.stop("dev")))
	if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Auto: true}); !fault.Is(err, fault.Conflict) {
		t.Errorf("of a stopped vm: %v", err)
	}
}

// What was taken by hand is not removed by the way.
func TestRemoveVMsThatHaveSnapshots(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Auto: true}); err != nil {
		t.Fatal(err)
	}
	if err := h.remove("dev", false); !fault.Is(err, fault.Conflict) || fault.HintOf(err) != "banger vm rm --force dev" {
		t.Errorf("with checkpoints: %v", err)
	}
	h.mustSnapshot("dev", "mine")
	h.mustSnapshot("dev", "too")
	if err := h.remove("dev", false); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "is running and has 2 snapshots (") {
		t.Errorf("%v", err)
	}
	h.must(second(h.removeSnapshot("dev", "too")))
	h.must(second(h.stop("dev")))
	if err := h.remove("dev", false); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "has a snapshot (") || !strings.HasPrefix(fault.HintOf(err), "banger vm rm --force dev") {
		t.Errorf("%v", err)
	}
	h.must(second(h.removeSnapshot("dev", "mine")))
	h.must(h.remove("dev", false))
	h.nothingLeft()
}

// A snapshot that is not what it was is refused before anything is touched, with what still works.
func TestDamagedSnapshots(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.run()
	flip := func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		spoil  func(t *testing.T, dir string)
		want   string
		disk   bool // its disk can be restored
		listed bool // the list says so
	}{
		"memory": {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "memory")) }, "its file memory was changed", true, false},
		"state":  {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "state")) }, "its file state was changed", true, false},
		"saved":  {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "saved.json")) }, "its file saved.json was changed", true, false},
		"disk": {func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, "disk.ext4"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt([]byte("X"), 1)
			h.must(errors.Join(err, f.Close()))
		}, "its file disk.ext4 was changed", false, false},
		"short":    {func(t *testing.T, dir string) { h.must(os.Truncate(filepath.Join(dir, "memory"), 3)) }, "its file memory has 3 bytes and not", true, true},
		"gone":     {func(t *testing.T, dir string) { h.must(os.Remove(filepath.Join(dir, "disk.ext4"))) }, "its file disk.ext4 is gone", false, true},
		"manifest": {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "snapshot.json")) }, "its file snapshot.json is damaged", false, true},
		"nothing":  {func(t *testing.T, dir string) { h.must(os.Remove(filepath.Join(dir, "snapshot.json"))) }, "its file snapshot.json is gone", false, true},
		"layout": {func(t *testing.T, dir string) {
			h.must(os.WriteFile(filepath.Join(dir, "snapshot.json"), []byte(`{"layout": 99}`), 0o600))
		}, "it was taken by another banger (layout 99", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			v := h.create(name)
			h.twoStates(name)
			tc.spoil(t, h.snapshots(name)[0].GetDir())
			err := h.restore(name, "one")
			if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v", err)
			}
			if got := strings.HasPrefix(fault.HintOf(err), "banger vm restore --disk-only "+name+" one"); got != tc.disk {
				t.Errorf("hint %q", fault.HintOf(err))
			}
			if got := h.get(name); got.GetState() != "running" || got.GetSupervisorPid() != v.GetSupervisorPid() || h.diskSays(got) != "two" {
				t.Errorf("it was touched: %v", got)
			}
			if got := h.snapshots(name)[0].GetProblem() != ""; got != tc.listed {
				t.Errorf("listed as damaged: %v", got)
			}
			if got := slices.Contains(h.fsck(false), "damaged-snapshot "+name+" one"); got != tc.listed {
				t.Errorf("fsck: %v", h.fsck(false))
			}
			if tc.disk {
				if err := h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: name, Name: "one", DiskOnly: true, Force: true}); err != nil {
					t.Errorf("its disk: %v", err)
				}
				if got := h.get(name); got.GetState() != "stopped" || h.diskSays(got) != "one" {
					t.Errorf("its disk: %v, %q", got, h.diskSays(got))
				}
			}
			h.must(second(h.removeSnapshot(name, "one")))
			h.must(h.remove(name, true))
		})
	}
}

// Another VMM or host cannot take the memory. The disk can be had.
func TestSnapshotsOfAnotherHost(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	h.twoStates("dev")
	dir := h.snapshots("dev")[0].GetDir()
	m, err := vmdir.ReadSaved(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.Shape = strings.Replace(m.Shape, "cpus 1", "cpus 9", 1)
	h.must(vmdir.WriteSaved(dir, m))
	h.must(snapshot.Reseal(t.Context(), dir))
	got, err := h.snaps.Get(t.Context(), connect.NewRequest(&bangerv1.GetSnapshotRequest{Ref: "dev", Name: "one"}))
	if err != nil || !strings.Contains(got.Msg.GetMemoryProblem(), "the VMM or the host is another one") {
		t.Errorf("%v, %v", got, err)
	}
	if err := h.restore("dev", "one"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "cpus 9") || !strings.Contains(fault.HintOf(err), "--disk-only") {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
	if v := h.get("dev"); v.GetState() != "running" {
		t.Errorf("%v", v)
	}
}

// A guest that cannot go on from the snapshot leaves the VM with what it had on its disk.
func TestARestoreThatFails(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.run()
	h.create("dev", noResume)
	h.twoStates("dev")
	for _, state := range []string{"running", "suspended"} {
		if state == "suspended" {
			h.must(second(h.start("dev")))
			h.must(second(h.suspend("dev")))
		}
		if err := h.restore("dev", "one"); err == nil || !strings.Contains(err.Error(), "cannot go on from its memory") {
			t.Errorf("%v", err)
		}
		v := h.get("dev")
		if h.diskSays(v) != "two" || h.memory(v) != (state == "suspended") || v.GetState() == "suspended" != (state == "suspended") {
			t.Errorf("it was %s: %v, disk %q, memory %v", state, v, h.diskSays(v), h.memory(v))
		}
		if left := h.ls(v.GetDir()); slices.Contains(left, paths.VMRestoring) {
			t.Errorf("left: %v", left)
		}
		h.inOrder()
	}
}

// A disk that has grown since stays as large as it is, and the guest hears of it.
func TestRestoreOntoAGrownDisk(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	h.twoStates("dev")
	size, cpus := uint64(512<<20), uint32(2)
	h.must(second(h.set(&bangerv1.SetVMRequest{Ref: "dev", DiskBytes: &size, Cpus: &cpus})))
	v := h.get("dev")
	h.must(os.Remove(filepath.Join(v.GetDir(), paths.VMDisk+".told")))
	h.must(h.restore("dev", "one"))
	v = h.get("dev")
	if v.GetSpec().GetDiskBytes() != size || h.diskSays(v) != "one" || !slices.Equal(v.GetPending(), []string{"cpus"}) {
		t.Errorf("%v", v)
	}
	if told, err := os.ReadFile(filepath.Join(v.GetDir(), paths.VMDisk+".told")); err != nil || string(told) != fmt.Sprint(size) {
		t.Errorf("the guest was told %q, %v", told, err)
	}
	if l := h.launched(v); l.Machine.CPUs != 1 || l.Resume.Disks["data"] != 256<<20 {
		t.Errorf("%+v", l)
	}
	h.inOrder()
}

// A supervisor that dies while it saves leaves no snapshot, and the VM as after a power cut.
func TestSupervisorsThatDieDuringASnapshot(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	h.run()
	for name, env := range map[string]string{"before": savingDies, "not": saveFails} {
		h.create(name, env)
		if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: name, Name: "one"}); err == nil {
			t.Errorf("%s: no error", name)
		}
		v := h.until(name, map[string]string{"before": "stopped", "not": "running"}[name])
		if got := h.chain(name); got != "" {
			t.Errorf("%s: %s", name, got)
		}
		if left := h.ls(filepath.Join(v.GetDir(), paths.VMSnapshots)); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
		h.must(second(h.start(name)))
	}
	h.inOrder()
}

// Snapshots need no database.
func TestSnapshotsOutliveTheDatabase(t *testing.T) {
	h := newHost(t)
	h.cfg.Log = nil
	stop := h.run()
	h.create("dev")
	h.twoStates("dev")
	h.must(second(h.stop("dev")))
	stop()
	h.loseDatabase()
	h.run()
	if got := h.chain("dev"); got != "one<*" {
		t.Errorf("%s", got)
	}
	h.must(h.restore("dev", "one"))
	if v := h.get("dev"); v.GetState() != "running" || h.diskSays(v) != "one" {
		t.Errorf("%v", v)
	}
}

// A daemon that dies in the middle of a restore of a suspended VM leaves it suspended, with one memory or the other.
func TestTheDaemonCanDieDuringARestoreOfASuspendedVM(t *testing.T) {
	for _, step := range []daemon.Step{daemon.StepRestorePrepared, daemon.StepRestoreMemory, daemon.StepRestoreDisk, daemon.StepRestoreRow} {
		t.Run(string(step), func(t *testing.T) {
			h := newHost(t)
			h.cfg.Log = nil
			stop := h.run()
			h.create("dev")
			h.twoStates("dev")
			h.must(second(h.suspend("dev")))
			stop()
			ended := h.dying(step)
			if err := h.restore("dev", "one"); err == nil {
				t.Error("no error")
			}
			awaitDeath(t, ended)
			h.run()
			v := h.get("dev")
			placed := step == daemon.StepRestoreDisk || step == daemon.StepRestoreRow
			if want := map[bool]string{true: "one", false: "two"}[placed]; v.GetState() != "suspended" || h.diskSays(v) != want {
				t.Errorf("%v, disk %q", v, h.diskSays(v))
			}
			if v, err := h.start("dev"); err != nil || h.launched(v).Resume == nil {
				t.Errorf("%v, %v", v, err)
			}
			h.inOrder()
			if left := h.fsck(false); len(left) > 0 {
				t.Errorf("fsck: %v", left)
			}
		})
	}
}

// A snapshot that does not fit leaves nothing, and neither does a restore.
func TestNoSpaceForSnapshots(t *testing.T) {
	h := newHost(t)
	h.mountSmall("8m")
	h.cfg.Log = nil
	h.run()
	op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev"}, false))
	v := h.get(op.GetResultId())
	h.fillDisk(v, 3<<20)
	h.mustSnapshot("dev", "one")
	_, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Name: "two"})
	if !fault.Is(err, fault.Exhausted) || fault.HintOf(err) != "banger snapshot rm dev one" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
	if err := h.restore("dev", "one"); !fault.Is(err, fault.Exhausted) {
		t.Errorf("restore: %v", err)
	}
	if got := h.chain("dev"); got != "one<*" {
		t.Errorf("%s", got)
	}
	h.must(second(h.start("dev")))
	if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev"}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("running: %v", err)
	}
	h.must(second(h.stop("dev")))
	h.inOrder()
	if left := h.fsck(false); len(left) > 0 {
		t.Errorf("fsck: %v", left)
	}
}

// Space that runs out in the middle undoes all of it.
func TestSpaceRunsOutDuringASnapshot(t *testing.T) {
	h := newHost(t)
	h.mountSmall("12m")
	h.cfg.Log = nil
	ballast := filepath.Join(h.paths.Data, "ballast")
	h.cfg.Step = func(_ context.Context, s daemon.Step) error {
		if s == daemon.StepSnapshotDir {
			if err := os.WriteFile(ballast, make([]byte, 16<<20), 0o600); err == nil {
				t.Error("there is room for the ballast")
			}
		}
		return nil
	}
	h.run()
	op := h.wait(h.begin(&bangerv1.VMSpec{Name: "dev"}, false))
	v := h.get(op.GetResultId())
	h.fillDisk(v, 3<<20)
	if _, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Name: "one"}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("%v", err)
	}
	h.must(os.Remove(ballast))
	if left := h.ls(filepath.Join(v.GetDir(), paths.VMSnapshots)); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	h.inOrder()
}

// A reset that waits for the next start belongs to the state that the VM has, not to the one that it is put back to.
func TestRestoreAndReset(t *testing.T) {
	h := newHost(t)
	h.run()
	h.create("dev")
	h.must(second(h.stop("dev")))
	h.mustSnapshot("dev", "before")
	h.must(second(h.reset("dev", false)))
	h.mustSnapshot("dev", "pending")
	for name, want := range map[string]bool{"before": false, "pending": true} {
		if err := h.restoreWith(&bangerv1.RestoreSnapshotRequest{Ref: "dev", Name: name, Force: true, Start: true}); err != nil {
			t.Fatal(err)
		}
		if got := h.launched(h.get("dev")).Guest.ResetRoot != ""; got != want {
			t.Errorf("%s: it is reset: %v", name, got)
		}
		h.inOrder()
	}
}

// fillDisk writes so many bytes to the disk of a VM.
func (h *host) fillDisk(v *bangerv1.VM, n int) {
	h.t.Helper()
	f, err := os.OpenFile(filepath.Join(v.GetDir(), paths.VMDisk), os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(strings.Repeat("x", n)), 0)
	h.must(errors.Join(err, f.Close()))
}

// Of a VM that ends while it is saved, the error says that it has.
func TestSnapshotOfAVMThatEnds(t *testing.T) {
	h := newHost(t)
	var v *bangerv1.VM
	h.cfg.Step = func(_ context.Context, s daemon.Step) error {
		if s == daemon.StepSnapshotDir {
			h.killSupervisor(v.GetId())
		}
		return nil
	}
	h.run()
	v = h.create("dev")
	_, err := h.snapshot(&bangerv1.CreateSnapshotRequest{Ref: "dev", Name: "one"})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "it has ended: ") || fault.HintOf(err) != "banger vm start dev" {
		t.Errorf("err = %v, hint %q", err, fault.HintOf(err))
	}
	h.inOrder()
}
