package store

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/vm"
)

// lockedBuffer is a buffer that a child's output is copied to while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func vmName(s string) vm.Name { return vm.Name(s) }

var birth = time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)

func row(name, id string) VM {
	return VM{
		ID: vm.ID(id),
		Spec: vm.Spec{
			Name: vm.Name(name), Image: "i", Kernel: "k", CPUs: 1, Memory: 1 << 30, Disk: 1 << 30,
			Env: []string{"A=b"}, Labels: map[string]string{"x": "y"},
		},
		MachineID: "m", Driver: "fake", ImageDigest: "sha256:i", KernelDigest: "sha256:k", KernelVersion: "6.1",
		State: vm.Created, CreatedAt: birth,
	}
}

func insert(t *testing.T, s *Store, name, id string) VM {
	t.Helper()
	for kind, a := range map[Kind]Artifact{
		Image: {Kind: Image, Name: "i", Digest: "sha256:i"}, Kernel: {Kind: Kernel, Name: "k", Digest: "sha256:k"},
	} {
		if err := s.PutArtifact(t.Context(), a, Happened{Verb: "added"}); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	if err := s.InsertVM(t.Context(), row(name, id)); err != nil {
		t.Fatal(err)
	}
	v, err := s.VM(t.Context(), vm.ID(id)) // with its address
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestInsertAndReadBack(t *testing.T) {
	s := fresh(t)
	want := insert(t, s, "dev", "0123456789ab")
	if err := s.MarkMade(t.Context(), want.ID); err != nil {
		t.Fatal(err)
	}
	want.Made = true
	got, err := s.VM(t.Context(), want.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := s.DeleteVM(t.Context(), want.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVM(t.Context(), want.ID); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if _, err := s.VM(t.Context(), want.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("err = %v", err)
	}
}

func TestInsertRefusesATakenName(t *testing.T) {
	s := fresh(t)
	insert(t, s, "beta-sandbox", "000000000001")
	insert(t, s, "dev", "beta00000002")
	if err := s.CheckName(t.Context(), "beta"); err != nil {
		t.Errorf("a name that is a prefix of others: %v", err)
	}
	insert(t, s, "beta", "000000000003")
	err := s.InsertVM(t.Context(), row("beta", "000000000004"))
	if !fault.Is(err, fault.Exists) || err.Error() != "a vm called beta exists already" {
		t.Errorf("err = %v", err)
	}
}

func TestConcurrentInsertsOfOneNameLeaveOne(t *testing.T) {
	s := fresh(t)
	insert(t, s, "other", "ffffffffffff")
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = s.InsertVM(t.Context(), row("dev", fmt.Sprintf("%012d", i))) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !fault.Is(err, fault.Exists) {
			t.Errorf("err = %v", err)
		}
	}
	if all, err := s.VMs(t.Context()); won != 1 || err != nil || len(all) != 2 {
		t.Errorf("%d inserts won, %d rows, %v", won, len(all), err)
	}
}

func TestInsertNeedsAnImageAndAKernelThatStay(t *testing.T) {
	s := fresh(t)
	insert(t, s, "dev", "000000000001")
	if err := s.PutArtifact(t.Context(), Artifact{Kind: Image, Name: "i", Digest: "sha256:new"}, Happened{Verb: "added"}); err != nil {
		t.Fatal(err)
	}
	gone, shared := row("gone", "000000000002"), row("shared", "000000000003")
	gone.ImageDigest = "sha256:old"
	if err := s.InsertVM(t.Context(), gone); !fault.Is(err, fault.Unavailable) {
		t.Errorf("err = %v", err)
	}
	// The name stands for another one now, but dev keeps this one here.
	if err := s.InsertVM(t.Context(), shared); err != nil {
		t.Errorf("err = %v", err)
	}
	if err := s.DeleteVM(t.Context(), shared.ID); err != nil {
		t.Fatal(err)
	}
	rootless := row("build-1", "000000000004")
	rootless.ImageDigest = ""
	if err := s.InsertVM(t.Context(), rootless); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a vm of a user's without an image: %v", err)
	}
	rootless.Spec.Purpose = vm.PurposeBuild
	if err := s.InsertVM(t.Context(), rootless); err != nil {
		t.Errorf("a vm of the daemon's own: %v", err)
	}
	for digest, want := range map[string]bool{"sha256:i": true, "sha256:new": true, "sha256:x": false} {
		if got, err := s.DigestUsed(t.Context(), Image, digest); err != nil || got != want {
			t.Errorf("DigestUsed(%s) = %v, %v", digest, got, err)
		}
	}
	if err := s.DeleteVM(t.Context(), "000000000001"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.DigestUsed(t.Context(), Image, "sha256:i"); err != nil || got {
		t.Errorf("after the vm is gone: %v, %v", got, err)
	}
}

func TestFindVM(t *testing.T) {
	s := fresh(t)
	insert(t, s, "beta", "aaaaaaaaaaa1")
	insert(t, s, "beta-sandbox", "beta00000000") // its id starts like the names
	insert(t, s, "dev", "aaaaaaaaaaa2")
	insert(t, s, "web-1", "b00000000000")
	insert(t, s, "web-2", "c00000000000")
	insert(t, s, "aaaaaaaaaaa1", "d00000000000") // a name that is another one's id
	for ref, want := range map[string]string{
		"beta": "beta", "beta-": "beta-sandbox", "beta00000000": "beta-sandbox", "beta0": "beta-sandbox", "de": "dev",
		"aaaaaaaaaaa1": "beta", "aaaaaaaaaaa2": "dev", "b0": "web-1", "web-2": "web-2", "d": "", "%": "", "": "", "Beta": "",
		"a": "", "web": "", "_____": "",
	} {
		got, err := s.FindVM(t.Context(), ref)
		if want == "" {
			if err == nil {
				t.Errorf("FindVM(%q) = %s", ref, got.Name())
			}
			continue
		}
		if err != nil || string(got.Name()) != want {
			t.Errorf("FindVM(%q) = %s, %v, want %s", ref, got.Name(), err, want)
		}
	}
}

func TestFindVMFaults(t *testing.T) {
	s := fresh(t)
	for i := range 12 {
		insert(t, s, fmt.Sprintf("web-%02d", i), fmt.Sprintf("0000000000%02d", i))
	}
	_, err := s.FindVM(t.Context(), "web")
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "web-00 (000000000000), web-01") ||
		!strings.HasSuffix(err.Error(), "4 more") {
		t.Errorf("ambiguous: %v", err)
	}
	_, err = s.FindVM(t.Context(), "wbe-07")
	if !fault.Is(err, fault.NotFound) || err.Error() != `no vm is called "wbe-07", did you mean web-07?` ||
		fault.HintOf(err) != "banger vm list" {
		t.Errorf("unknown: %v", err)
	}
}

func TestMoves(t *testing.T) {
	moves := map[vm.State]func(*Store, vm.ID) (VM, error){
		vm.Starting: func(s *Store, id vm.ID) (VM, error) { return s.MoveToStarting(t.Context(), id, false) },
		vm.Running: func(s *Store, id vm.ID) (VM, error) {
			return s.MoveToRunning(t.Context(), id, Running{SupervisorPID: 1, VMMPID: 2, Accelerator: "tcg", At: birth})
		},
		vm.Stopping: func(s *Store, id vm.ID) (VM, error) { return s.MoveToStopping(t.Context(), id, true) },
		vm.Stopped: func(s *Store, id vm.ID) (VM, error) {
			return s.MoveToEnded(t.Context(), id, Ended{Reason: "stopped", At: birth})
		},
		vm.Failed: func(s *Store, id vm.ID) (VM, error) {
			return s.MoveToEnded(t.Context(), id, Ended{Failed: true, Reason: "no boot", Code: -1, At: birth})
		},
		vm.Paused:   func(s *Store, id vm.ID) (VM, error) { return s.MoveToPaused(t.Context(), id) },
		vm.Deleting: func(s *Store, id vm.ID) (VM, error) { return s.MoveToDeleting(t.Context(), id) },
	}
	s := fresh(t)
	n := 0
	for _, from := range vm.States() {
		for to, move := range moves {
			n++
			v := insert(t, s, fmt.Sprintf("vm-%d", n), fmt.Sprintf("%012d", n))
			if _, err := s.db.Exec("UPDATE vms SET state = ? WHERE id = ?", from, v.ID); err != nil {
				t.Fatal(err)
			}
			got, err := move(s, v.ID)
			if from.CanGo(to) {
				if err != nil || got.State != to {
					t.Errorf("%s to %s: %s, %v", from, to, got.State, err)
				}
				continue
			}
			if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), string(from)) || fault.HintOf(err) == "" {
				t.Errorf("%s to %s: %s, %v", from, to, got.State, err)
			}
		}
	}
	if _, err := s.MoveToStarting(t.Context(), "nobody", false); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown vm: %v", err)
	}
}

func TestARunIsRecorded(t *testing.T) {
	s := fresh(t)
	v := insert(t, s, "dev", "000000000001")
	if _, err := s.MoveToStarting(t.Context(), v.ID, false); err != nil {
		t.Fatal(err)
	}
	run := Running{SupervisorPID: 10, VMMPID: 11, Accelerator: "tcg", At: birth}
	got, err := s.MoveToRunning(t.Context(), v.ID, run)
	if err != nil {
		t.Fatal(err)
	}
	want := v
	want.State, want.SupervisorPID, want.VMMPID, want.Accelerator, want.StartedAt = vm.Running, 10, 11, "tcg", birth
	want.Wanted = true
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err = s.MoveToEnded(t.Context(), v.ID, Ended{Reason: "killed", Code: -1, At: birth.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	want.State, want.SupervisorPID, want.VMMPID, want.StartedAt = vm.Stopped, 0, 0, time.Time{}
	want.Reason, want.ExitCode, want.StoppedAt = "killed", -1, birth.Add(time.Hour)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestArtifacts(t *testing.T) {
	s := fresh(t)
	if _, err := s.Artifact(t.Context(), Image, "x"); !fault.Is(err, fault.NotFound) || fault.HintOf(err) != "banger image pull x" {
		t.Errorf("err = %v", err)
	}
	for _, a := range []Artifact{
		{Kind: Image, Name: "x", Digest: "sha256:1", CreatedAt: birth}, {Kind: Image, Name: "x", Digest: "sha256:2", CreatedAt: birth},
		{Kind: Kernel, Name: "x", Digest: "sha256:3", CreatedAt: birth}, {Kind: Image, Name: "a", Digest: "sha256:4", CreatedAt: birth},
	} {
		if err := s.PutArtifact(t.Context(), a, Happened{Verb: "added"}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Artifacts(t.Context(), Image)
	if err != nil {
		t.Fatal(err)
	}
	want := []Artifact{
		{Kind: Image, Name: "a", Digest: "sha256:4", CreatedAt: birth}, {Kind: Image, Name: "x", Digest: "sha256:2", CreatedAt: birth},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := s.DeleteArtifact(t.Context(), Image, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Artifact(t.Context(), Image, "x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("err = %v", err)
	}
}

// Several names may stand for one digest; the last one cannot be forgotten while a VM uses it.
func TestNamesOfOneDigest(t *testing.T) {
	s := fresh(t)
	insert(t, s, "dev", "000000000001") // of i, sha256:i
	put := func(name, digest string) {
		t.Helper()
		if err := s.PutArtifact(t.Context(), Artifact{Kind: Image, Name: name, Digest: digest, CreatedAt: birth}, Happened{Verb: "tagged"}); err != nil {
			t.Fatal(err)
		}
	}
	names := func() (all []string) {
		t.Helper()
		found, err := s.Artifacts(t.Context(), Image)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range found {
			all = append(all, a.Name)
		}
		return all
	}
	forget := func(name string) []VM {
		t.Helper()
		users, err := s.ForgetArtifact(t.Context(), Image, name)
		if err != nil {
			t.Fatal(err)
		}
		return users
	}
	put("other", "sha256:i")
	put("sha256:i", "sha256:i") // it has names: nothing to keep it for
	put("sha256:lone", "sha256:lone")
	if diff := cmp.Diff([]string{"i", "other", "sha256:lone"}, names()); diff != "" {
		t.Error(diff)
	}
	put("named", "sha256:lone")
	if diff := cmp.Diff([]string{"i", "named", "other"}, names()); diff != "" {
		t.Error(diff)
	}
	if users := forget("i"); len(users) != 0 {
		t.Errorf("not the last name, but %d users", len(users))
	}
	if users := forget("other"); len(users) != 1 || users[0].Name() != "dev" {
		t.Errorf("the last name: %+v", users)
	}
	if users := forget("named"); len(users) != 0 {
		t.Errorf("without users: %+v", users)
	}
	if users := forget("named"); len(users) != 0 {
		t.Errorf("forgotten already: %+v", users)
	}
	if diff := cmp.Diff([]string{"other"}, names()); diff != "" {
		t.Error(diff)
	}
}

// The daemon's own VMs are found by whole ids and names only, and no events tell of them.
func TestHiddenVMs(t *testing.T) {
	s := fresh(t)
	insert(t, s, "dev", "000000000001")
	own := row("deployment", "000000000002")
	own.Spec.Purpose = vm.PurposeExport
	if err := s.InsertVM(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]vm.ID{"de": "000000000001", "deployment": "000000000002", "000000000002": "000000000002"} {
		if v, err := s.FindVM(t.Context(), ref); err != nil || v.ID != want {
			t.Errorf("%s: %s, %v", ref, v.ID, err)
		}
	}
	if _, err := s.FindVM(t.Context(), "deploymen"); !fault.Is(err, fault.NotFound) || strings.Contains(err.Error(), "deployment") {
		t.Errorf("err = %v", err)
	}
	events, err := s.LatestEvents(t.Context(), EventFilter{ObjectID: own.ID}, 10)
	if err != nil || len(events) > 0 {
		t.Errorf("%+v, %v", events, err)
	}
}

func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "banger.db")
	for b.Loop() {
		s, err := Open(b.Context(), path)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkList50(b *testing.B) {
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "banger.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for i := range 50 {
		if _, err := s.db.Exec(`INSERT INTO vms (id, name, spec, machine_id, driver, image_digest, kernel_digest, kernel_version,
			state, created_ms) VALUES (?, ?, '{"name":"x","env":["A=b"],"labels":{"a":"b"}}', 'm', 'd', 'i', 'k', 'v', 'running', 1)`,
			fmt.Sprintf("%012d", i), fmt.Sprintf("vm-%d", i)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if all, err := s.VMs(b.Context()); err != nil || len(all) != 50 {
			b.Fatal(len(all), err)
		}
	}
}
