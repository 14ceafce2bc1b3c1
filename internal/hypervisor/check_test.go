package hypervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fault"
)

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		spec  Spec
		class fault.Class // "" means good
		want  string
	}{
		{"good", Spec{Kernel: file, Initramfs: file, Disks: []Disk{{Path: file, Serial: "data"}}}, "", ""},
		{"no initramfs is fine", Spec{Kernel: file}, "", ""},
		{"no kernel", Spec{Kernel: dir + "/none"}, fault.NotFound, "kernel"},
		{"initramfs", Spec{Kernel: file, Initramfs: dir + "/none"}, fault.NotFound, "initramfs"},
		{"disk", Spec{Kernel: file, Disks: []Disk{{Path: dir + "/none", Serial: "data"}}}, fault.NotFound, "disk data"},
		{"directory", Spec{Kernel: dir}, fault.Invalid, "not a regular file"},
		{"no serial", Spec{Kernel: file, Disks: []Disk{{Path: file}}}, fault.Invalid, "1 to 20 bytes"},
		{
			"long serial", Spec{Kernel: file, Disks: []Disk{{Path: file, Serial: strings.Repeat("s", MaxSerial+1)}}},
			fault.Invalid, "1 to 20 bytes",
		},
	} {
		err := tc.spec.CheckFiles()
		if tc.class == "" && err != nil || tc.class != "" && !fault.Is(err, tc.class) ||
			err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want class %q with %q", tc.name, err, tc.class, tc.want)
		}
	}
}
