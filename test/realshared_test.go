package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/diskcopy"
	"banger/internal/looptest"
)

// On a file system that shares blocks, copies of disks take no space and no time, are of the instant all the same, and the
// figures say what is shared.
func TestRealSharedBlocks(t *testing.T) {
	wantReal(t)
	place, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(place) })
	dir := looptest.XFS(t, filepath.Join(place, "x"))
	vars := furnish(t, dir)
	must(t, vars, "vm", "run", "--detach", "--name", "dev", "--cpus", "1", "--memory", "256M", "--disk", "1G")
	inGuest(t, vars, "dev", ticking)
	inGuest(t, vars, "dev", "head -c 30M /dev/urandom >/root/data; md5sum /root/data >/root/sum; sync")
	must(t, vars, "vm", "snapshot", "dev", "good")
	var snaps []struct {
		Used   uint64 `json:"used_bytes"`
		Shared uint64 `json:"shared_bytes"`
	}
	if err := json.Unmarshal([]byte(must(t, vars, "snapshot", "list", "dev", "--format", "json")), &snaps); err != nil || len(snaps) != 1 {
		t.Fatal(snaps, err)
	}
	if s := snaps[0]; s.Shared < 30<<20 || s.Shared > s.Used {
		t.Errorf("%d bytes are taken, %d of them shared", s.Used, s.Shared)
	}
	disk := onlyOne(t, dir, "data/vms/*/snapshots/good/disk.ext4")
	shares(t, disk)

	must(t, vars, "vm", "fork", "--names", "one", "dev")
	for _, name := range []string{"dev", "one"} {
		ticks(t, vars, name)
		inGuest(t, vars, name, "md5sum -c --quiet /root/sum; echo "+name+" >/root/mine; sync")
	}
	for _, name := range []string{"dev", "one"} {
		if got := inGuest(t, vars, name, "cat /root/mine"); got != name {
			t.Errorf("%s has the file of %s", name, got)
		}
	}
	disks, err := filepath.Glob(filepath.Join(dir, "data/vms/*/disk.ext4"))
	if err != nil || len(disks) != 2 {
		t.Fatal(disks, err)
	}
	for _, disk := range disks {
		shares(t, disk)
	}
	must(t, vars, "vm", "restore", "--yes", "dev", "good")
	ticks(t, vars, "dev")
	inGuest(t, vars, "dev", "md5sum -c --quiet /root/sum; test ! -e /root/mine")
	inGuest(t, vars, "dev", "test -z \"$(dmesg --level err,crit,alert,emerg | grep -i ext4)\"")
	if said := must(t, vars, "fsck"); !strings.Contains(said, "everything fits together") {
		t.Error(said)
	}
}

func onlyOne(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}

// shares checks that a disk has most of its blocks in common with another.
func shares(t *testing.T, disk string) {
	t.Helper()
	shared, err := diskcopy.Shared(disk)
	if err != nil || shared < 30<<20 {
		t.Errorf("%s shares %d bytes, %v", disk, shared, err)
	}
}
