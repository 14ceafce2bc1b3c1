package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/fault"
	"banger/internal/vm"
)

func TestEventsAreBoundedAndTheirNumbersAreNeverUsedAgain(t *testing.T) {
	s := fresh(t)
	s.KeepEvents(100)
	const n = 500
	for i := range n {
		if err := s.AddEvent(t.Context(), Event{Kind: "x", Object: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Events(t.Context(), EventFilter{}, 0, n)
	if err != nil || len(all) < 100 || len(all) >= 100+pruneEvery || all[len(all)-1].Seq != n {
		t.Fatalf("%d events, %v", len(all), err)
	}
	for i, e := range all[1:] {
		if e.Seq != all[i].Seq+1 {
			t.Errorf("%d after %d", e.Seq, all[i].Seq)
		}
	}
	if _, err := s.db.Exec("DELETE FROM events"); err != nil {
		t.Fatal(err)
	}
	if last, err := s.LastEvent(t.Context()); err != nil || last != n {
		t.Errorf("last event %d, %v", last, err)
	}
	changed := s.Changed()
	if err := s.AddEvent(t.Context(), Event{Kind: "x"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
	if all, err := s.LatestEvents(t.Context(), EventFilter{}, 5); err != nil || len(all) != 1 || all[0].Seq != n+1 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestEveryMoveIsAnEvent(t *testing.T) {
	s := fresh(t)
	v := insert(t, s, "dev", "000000000001")
	steps := []func() error{
		func() error { _, err := s.MoveToStarting(t.Context(), v.ID, false); return err },
		func() error { _, err := s.MoveToRunning(t.Context(), v.ID, Running{}); return err },
		func() error { _, err := s.MoveToPaused(t.Context(), v.ID); return err },
		func() error { _, err := s.MoveToPaused(t.Context(), v.ID); return ignoreConflict(err) },
		func() error { _, err := s.MoveToStopping(t.Context(), v.ID, true); return err },
		func() error {
			_, err := s.MoveToEnded(t.Context(), v.ID, Ended{Failed: true, Reason: "boom"})
			return err
		},
		func() error { _, err := s.MoveToDeleting(t.Context(), v.ID); return err },
		func() error { return s.DeleteVM(t.Context(), v.ID) },
		func() error { return s.DeleteVM(t.Context(), v.ID) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatal(i, err)
		}
	}
	all, err := s.Events(t.Context(), EventFilter{ObjectID: v.ID}, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, e := range all {
		got += e.Kind + "(" + e.Message + ") "
		if e.Object != "dev" || e.At.IsZero() {
			t.Errorf("%+v", e)
		}
	}
	const want = "vm.created(image i) vm.starting() vm.running() vm.paused() vm.stopping() vm.failed(boom) vm.deleting() vm.removed() "
	if got != want {
		t.Errorf("%s", got)
	}
}

func ignoreConflict(err error) error {
	if fault.Is(err, fault.Conflict) {
		return nil
	}
	return errors.Join(errors.New("no conflict"), err)
}

func TestWanted(t *testing.T) {
	s := fresh(t)
	v := insert(t, s, "dev", "000000000001")
	check := func(when string, wanted bool, restarts int) {
		t.Helper()
		got, err := s.VM(t.Context(), v.ID)
		if err != nil || got.Wanted != wanted || got.Restarts != restarts {
			t.Errorf("%s: wanted %v, %d restarts, %v", when, got.Wanted, got.Restarts, err)
		}
	}
	must := func(_ VM, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.MoveToStarting(t.Context(), v.ID, false))
	check("before it was ready", false, 0)
	must(s.MoveToRunning(t.Context(), v.ID, Running{}))
	must(s.MoveToEnded(t.Context(), v.ID, Ended{}))
	check("its end", true, 0)
	must(s.MoveToStarting(t.Context(), v.ID, true))
	check("again", true, 1)
	must(s.MoveToEnded(t.Context(), v.ID, Ended{Failed: true}))
	check("again, failed", true, 1)
	must(s.MoveToStarting(t.Context(), v.ID, true))
	must(s.MoveToRunning(t.Context(), v.ID, Running{}))
	must(s.MoveToStopping(t.Context(), v.ID, false))
	check("on its way down by itself", true, 2)
	must(s.MoveToEnded(t.Context(), v.ID, Ended{StaysDown: true}))
	check("not by its policy", false, 2)
	must(s.MoveToStarting(t.Context(), v.ID, false))
	must(s.MoveToRunning(t.Context(), v.ID, Running{}))
	must(s.MoveToStopping(t.Context(), v.ID, true))
	check("stopped by hand", false, 0)
}

func TestUpdateVM(t *testing.T) {
	s := fresh(t)
	v := insert(t, s, "dev", "000000000001")
	insert(t, s, "dev-2", "000000000002")
	spec := v.Spec
	spec.Name, spec.CPUs = "dev-2", 3
	if _, err := s.UpdateVM(t.Context(), v.ID, Change{Spec: spec, Kind: EventRenamed}); !fault.Is(err, fault.Exists) {
		t.Errorf("a taken name: %v", err)
	}
	spec.Name = "de" // a prefix of both
	got, err := s.UpdateVM(t.Context(), v.ID, Change{Spec: spec, Pending: []string{"cpus", "name"}, Kind: EventRenamed, Message: "m"})
	if err != nil || got.Name() != "de" || got.Spec.CPUs != 3 || fmt.Sprint(got.Pending) != "[cpus name]" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.CheckName(t.Context(), "dev"); err != nil {
		t.Errorf("the old name: %v", err)
	}
	if _, err := s.MoveToDeleting(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateVM(t.Context(), v.ID, Change{Spec: spec}); !fault.Is(err, fault.Conflict) || fault.HintOf(err) == "" {
		t.Errorf("of one that is being deleted: %v", err)
	}
	if _, err := s.UpdateVM(t.Context(), "nobody", Change{Spec: spec}); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestRescue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	s := open(t, path)
	insert(t, s, "dev", "000000000001")
	if err := s.CheckFile(); err != nil {
		t.Fatal(err)
	}
	if rescued, err := s.Rescue(t.Context()); err != nil || rescued {
		t.Errorf("of a file that is there: %v, %v", rescued, err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CheckFile(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
	if rescued, err := s.Rescue(t.Context()); err != nil || !rescued {
		t.Fatalf("%v, %v", rescued, err)
	}
	if err := s.CheckFile(); !fault.Is(err, fault.Unavailable) { // it is another file
		t.Errorf("%v", err)
	}
	again := open(t, path)
	if v, err := again.FindVM(t.Context(), "dev"); err != nil || v.State != vm.Created {
		t.Errorf("%+v, %v", v, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestMoveAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	tear(t, path)
	_, err := Open(t.Context(), path)
	if !IsDamaged(err) {
		t.Fatalf("%v", err)
	}
	aside, err := MoveAside(path, "now")
	if err != nil || aside != path+".corrupt-now" {
		t.Fatalf("%s, %v", aside, err)
	}
	if _, err := os.Stat(aside); err != nil {
		t.Error(err)
	}
	open(t, path)
	raw(t, filepath.Join(t.TempDir(), "other.db"), "CREATE TABLE x (y)")
	if IsDamaged(fault.New(fault.Conflict, "x")) {
		t.Error("any conflict is damage")
	}
}

// TestRowsOfTheFirstSchema: what was written before the second migration is all there after it.
func TestRowsOfTheFirstSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger.db")
	first, err := migrations.ReadFile("migrations/0001_init.sql")
	if err != nil {
		t.Fatal(err)
	}
	raw(t, path, string(first), "PRAGMA application_id = 0x626e6772", "PRAGMA user_version = 1",
		`INSERT INTO vms (id, name, spec, machine_id, driver, image_digest, kernel_digest, kernel_version, made, state, created_ms)
			VALUES ('000000000001', 'dev', '{"name":"dev","cpus":2}', 'm', 'd', 'i', 'k', 'v', 1, 'running', 5)`)
	s := open(t, path)
	v, err := s.FindVM(t.Context(), "dev")
	if err != nil || v.State != vm.Running || v.Spec.CPUs != 2 || !v.Made || v.Wanted {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := s.MoveToPaused(t.Context(), v.ID); err != nil {
		t.Error(err)
	}
}
