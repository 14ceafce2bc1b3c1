package machine_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/agentwire"
)

// TestVMDebianBuild has real programs change the default image.
func TestVMDebianBuild(t *testing.T) {
	l := newLab(t)
	images, _ := filepath.Glob(filepath.Join(os.Getenv(seedVar), "data", "images", "*", "rootfs.ext4"))
	if len(images) == 0 {
		t.Fatalf("no image in %s=%s", seedVar, os.Getenv(seedVar))
	}
	v := l.boot(t, images[0], func(c *agentwire.Config) { c.Build = true })
	v.run(t, "sh", "-c", `set -e
useradd --create-home --shell /bin/bash dev
rm -f /etc/machine-id
su dev -c 'echo mine >~/file'
mv /usr/share/doc/base-files /usr/share/doc/renamed
find / -xdev -name nothing
df / /etc/hosts >/dev/null; getent hosts localhost >/dev/null`)
	files, _ := readArchive(t, v.must(t, agentwire.ExecStart{Tool: agentwire.ToolChanges}), false)
	var got []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasPrefix(name, "usr/share/doc/renamed/") {
			got = append(got, name)
		}
	}
	want := strings.Fields(`etc/ etc/.pwd.lock etc/.wh.machine-id etc/group etc/group- etc/gshadow etc/gshadow- etc/passwd etc/passwd-
		etc/shadow etc/shadow- etc/subgid etc/subgid- etc/subuid etc/subuid- home/ home/dev/ home/dev/.bash_logout
		home/dev/.bashrc home/dev/.profile home/dev/file usr/ usr/share/ usr/share/doc/ usr/share/doc/.wh.base-files`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
