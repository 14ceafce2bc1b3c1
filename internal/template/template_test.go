package template

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/agentwire"
	"banger/internal/atomicfile"
	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
)

func TestMain(m *testing.M) {
	fakevmm.Main()
	os.Exit(m.Run())
}

// request is one for a machine of the fake VMM.
func request(t *testing.T, faults string) Request {
	t.Helper()
	scratch, err := os.MkdirTemp("/tmp", "bt") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(scratch) })
	file := func(name string) string {
		path := filepath.Join(scratch, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	driver := fakevmm.New(fakevmm.Options{Faults: faults})
	spec := hypervisor.Spec{
		ID: "0123456789ab", Name: "dev", CPUs: 1, Memory: 128 << 20, Kernel: file("kernel"), Initramfs: file("initramfs"),
		Disks: []hypervisor.Disk{{Path: file("image"), ReadOnly: true, Serial: "image"}, {Path: file("disk"), Serial: "data"}},
	}
	run := filepath.Join(scratch, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	shape, err := driver.Shape(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return Request{Driver: driver, Spec: spec, Shape: shape, Kernel: "6.1", Scratch: run}
}

func store(t *testing.T) *Store { return Open(filepath.Join(t.TempDir(), "templates")) }

// empty checks that a directory has nothing in it but the named entries.
func empty(t *testing.T, dir string, but ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.Contains(strings.Join(but, " "), e.Name()) {
			t.Errorf("%s is left in %s", e.Name(), dir)
		}
	}
}

func TestMakeAndGet(t *testing.T) {
	s, r := store(t), request(t, "")
	key := Key(r.Shape)
	if _, err := s.Get(key); !fault.Is(err, fault.NotFound) {
		t.Fatalf("before: %v", err)
	}
	made, err := s.Make(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(key)
	if err != nil || !cmp.Equal(got.Meta, made.Meta) || got.CPUs != 1 || got.Memory != 128<<20 || got.Used == 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	empty(t, r.Scratch)
	empty(t, s.dir, key)

	clone := r.Spec
	clone.Restore, clone.RunDir = &got.Saved, r.Scratch
	m, err := r.Driver.Start(t.Context(), clone)
	if err != nil {
		t.Fatal(err)
	}
	if err := end(m); err != nil {
		t.Error(err)
	}
	// Making it again keeps the one that is there.
	again, err := s.Make(t.Context(), r)
	if err != nil || !cmp.Equal(again.Meta, made.Meta) {
		t.Errorf("again: %+v, %v", again, err)
	}
	if err := s.Drop(key); err != nil {
		t.Error(err)
	}
	empty(t, s.dir)
}

// prepared makes the request one for a prepared template.
func (r Request) prepared(image string) Request {
	r.Shape += "\nimage " + image
	network := &agentwire.Network{Address: "10.90.0.16/16"}
	r.Prepare = &Preparation{
		Image: image, Identity: agentwire.Identity{Hostname: "x", MachineID: strings.Repeat("0", 32), Network: network},
		Guest: agentwire.Config{
			Hostname: "x", MachineID: strings.Repeat("0", 32), Network: network, Disks: agentwire.Disks{Image: "image", Data: "data"},
		},
		Disk: func(_ context.Context, path string) error { return os.WriteFile(path, []byte("a new disk"), 0o600) },
	}
	r.Background = true
	return r
}

// A prepared template has a disk, and its guest is configured: who starts from it has to wake it only.
func TestPrepared(t *testing.T) {
	s, r := store(t), request(t, "").prepared("debian")
	made, err := s.Make(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if disk, err := os.ReadFile(made.Disk); err != nil || string(disk) != "a new disk" || made.Image != "debian" {
		t.Errorf("%+v, disk %q, %v", made, disk, err)
	}
	state, err := os.ReadFile(made.Saved.State)
	if err != nil || !strings.Contains(string(state), `"hostname": "x"`) && !strings.Contains(string(state), `"hostname":"x"`) {
		t.Errorf("the guest was not configured: %s, %v", state, err)
	}
	empty(t, r.Scratch)

	for name, damage := range map[string]func() error{
		"written": func() error { return os.WriteFile(made.Disk, []byte("another one"), 0o600) },
		"touched": func() error { return os.Chtimes(made.Disk, time.Now(), time.Now()) },
		"removed": func() error { return os.Remove(made.Disk) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(made.Key); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
		if made, err = s.Make(t.Context(), r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// A preparation that fails leaves nothing.
func TestPreparationFails(t *testing.T) {
	s, r := store(t), request(t, "").prepared("debian")
	r.Prepare.Guest.Hostname = ""
	r.Prepare.Disk = func(context.Context, string) error { return errors.New("no disk") }
	if _, err := s.Make(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("err = %v", err)
	}
	empty(t, s.dir)
	empty(t, r.Scratch)
}

func TestDamage(t *testing.T) {
	flip := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 1
		return os.WriteFile(path, data, 0o600)
	}
	for name, damage := range map[string]func(Template) error{
		"state flipped":    func(t Template) error { return flip(t.Saved.State) },
		"state cut":        func(t Template) error { return os.Truncate(t.Saved.State, 10) },
		"state removed":    func(t Template) error { return os.Remove(t.Saved.State) },
		"memory removed":   func(t Template) error { return os.Remove(t.Saved.Memory) },
		"memory cut":       func(t Template) error { return os.Truncate(t.Saved.Memory, 4096) },
		"memory written":   func(t Template) error { return os.Chtimes(t.Saved.Memory, time.Now(), time.Now()) },
		"metadata flipped": func(t Template) error { return flip(filepath.Join(filepath.Dir(t.Saved.State), metaFile)) },
		"metadata emptied": func(t Template) error {
			return os.Truncate(filepath.Join(filepath.Dir(t.Saved.State), metaFile), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, r := store(t), request(t, "")
			made, err := s.Make(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(made); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(made.Key); !fault.Is(err, fault.Conflict) {
				t.Errorf("err = %v (%s)", err, fault.ClassOf(err))
			}
			if all, err := s.List(); err != nil || len(all) != 1 || all[0].Key != made.Key {
				t.Errorf("listed %+v, %v", all, err)
			}
			// It is made anew, in place of the damaged one.
			again, err := s.Make(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(again.Key); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMakeFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		faults string
		want   fault.Class
		cancel bool
	}{
		"vmm does not start": {"start-error", fault.Unavailable, false},
		"vmm dies":           {"die-after=20ms,never-ready", fault.Unavailable, false},
		"cancelled":          {"never-ready", fault.Cancelled, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, r := store(t), request(t, tc.faults)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tc.cancel {
				time.AfterFunc(50*time.Millisecond, cancel)
			}
			if _, err := s.Make(ctx, r); !fault.Is(err, tc.want) {
				t.Errorf("err = %v (%s)", err, fault.ClassOf(err))
			}
			empty(t, s.dir)
			empty(t, r.Scratch)
		})
	}
}

func TestFailuresSwitchOff(t *testing.T) {
	s, r := store(t), request(t, "")
	key := Key(r.Shape)
	for i := range maxFailures {
		if err := s.Off(key); err != nil {
			t.Fatalf("off after %d failures: %v", i, err)
		}
		if err := s.Fail(key, errors.New("restore failed")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Off(key); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "restore failed") {
		t.Errorf("err = %v", err)
	}
	if all := s.Failures(); len(all) != 1 || all[0].Count != maxFailures {
		t.Errorf("failures %+v", all)
	}
	if err := errors.Join(s.Forget(key), s.Forget(key), s.Off(key)); err != nil {
		t.Error(err)
	}
}

func TestEvict(t *testing.T) {
	s, r := store(t), request(t, "")
	var keys []string
	for cpus := 1; cpus <= 3; cpus++ {
		r.Spec.CPUs = cpus
		shape, err := r.Driver.(hypervisor.Shaper).Shape(t.Context(), r.Spec)
		if err != nil {
			t.Fatal(err)
		}
		r.Shape = shape
		made, err := s.Make(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(cpus-10) * time.Hour)
		if err := os.Chtimes(filepath.Join(s.path(made.Key), metaFile), at, at); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, made.Key)
	}
	s.Touch(keys[0]) // the oldest one is used now
	gone, err := s.Evict(0, func(key string) bool { return key == keys[2] })
	if err != nil || len(gone) != 2 {
		t.Errorf("gone %+v, %v", gone, err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 || all[0].Key != keys[2] {
		t.Errorf("left %+v, %v", all, err)
	}
	if gone, err := s.Evict(1<<40, func(string) bool { return false }); err != nil || len(gone) != 0 {
		t.Errorf("gone %+v, %v", gone, err)
	}
}

// A template goes when there is another one for the same purpose and no VM that runs was started from it.
func TestEvictWhatHasASuccessor(t *testing.T) {
	s, r := store(t), request(t, "")
	r.Shape += "\nagent 1"
	old, err := s.Make(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	old.Created = old.Created.Add(-time.Hour) // times are in whole seconds
	old.Sum = old.sum()
	if err := atomicfile.WriteJSON(filepath.Join(s.path(old.Key), metaFile), old.Meta); err != nil {
		t.Fatal(err)
	}
	r.Shape += "\nagent 2"
	made, err := s.Make(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := s.Evict(1<<40, func(key string) bool { return key == old.Key }); err != nil || len(gone) != 0 {
		t.Errorf("in use: gone %+v, %v", gone, err)
	}
	if gone, err := s.Evict(1<<40, func(string) bool { return false }); err != nil || len(gone) != 1 || gone[0].Key != old.Key {
		t.Errorf("gone %+v, %v", gone, err)
	}
	if _, err := s.Get(made.Key); err != nil {
		t.Error(err)
	}
}

func TestClean(t *testing.T) {
	s := store(t)
	if err := s.Clean(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.MkdirAll(filepath.Join(s.dir, ".new-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Clean(t.Context()); err != nil {
		t.Error(err)
	}
	empty(t, s.dir)
}
