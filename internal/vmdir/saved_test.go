package vmdir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A manifest of a saved machine may have been changed by anything: it is taken whole or refused.
func FuzzReadSaved(f *testing.F) {
	dir := f.TempDir()
	m := SavedMachine{Shape: "qemu\n1.0", Disks: map[string]uint64{"data": 1 << 30}, Disk: DiskStamp{Size: 1 << 30, MTime: 7}}
	if err := WriteSaved(dir, m); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, SavedManifest))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"layout": 1, "disks": {"data": -1}, "still_us": 9223372036854775808}`))
	f.Add([]byte(`{"layout": 2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, SavedManifest)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := ReadSaved(dir)
		if err != nil {
			return
		}
		if m.Layout != savedLayout {
			t.Errorf("layout %d", m.Layout)
		}
		if s := m.Saved(dir); filepath.Dir(s.Memory) != dir || filepath.Dir(s.State) != dir || strings.Contains(s.Memory, "..") {
			t.Errorf("%+v", s)
		}
	})
}
