package hostmem

import (
	"os"
	"path/filepath"
	"testing"
)

// tree makes a host of files.
func tree(t *testing.T, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root}
}

const (
	meminfo = "MemTotal:        8000000 kB\nMemFree:  1 kB\nMemAvailable:    4000000 kB\n"
	v2mount = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
	v1mount = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)

func TestAvailable(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		name  string
		files map[string]string
		want  Free
	}{
		{"host", map[string]string{"proc/meminfo": meminfo}, Free{4000000 << 10, "the host"}},
		{"v2, the parent limits", map[string]string{
			"proc/meminfo": meminfo, "proc/self/mountinfo": v2mount, "proc/self/cgroup": "0::/user.slice/a.service\n",
			"sys/fs/cgroup/user.slice/a.service/memory.max":     "max\n",
			"sys/fs/cgroup/user.slice/a.service/memory.current": "1000\n",
			"sys/fs/cgroup/user.slice/memory.max":               "536870912\n",
			"sys/fs/cgroup/user.slice/memory.current":           "268435456\n",
			"sys/fs/cgroup/user.slice/memory.stat":              "anon 5\ninactive_file 67108864\n",
		}, Free{320 * mib, "control group /user.slice"}},
		{"v2, used up", map[string]string{
			"proc/meminfo": meminfo, "proc/self/mountinfo": v2mount, "proc/self/cgroup": "0::/a\n",
			"sys/fs/cgroup/a/memory.max": "1000\n", "sys/fs/cgroup/a/memory.current": "2000\n",
		}, Free{0, "control group /a"}},
		{"v1", map[string]string{
			"proc/meminfo": meminfo, "proc/self/mountinfo": v1mount, "proc/self/cgroup": "4:memory:/x\n1:cpu:/\n0::/\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "104857600\n",
			"sys/fs/cgroup/memory/x/memory.usage_in_bytes": "94371840\n",
			"sys/fs/cgroup/memory/x/memory.stat":           "total_inactive_file 41943040\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":   "9223372036854771712\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes":   "5\n",
		}, Free{50 * mib, "control group /x"}},
		{"v1, the parent limits", map[string]string{
			"proc/meminfo": meminfo, "proc/self/mountinfo": v1mount, "proc/self/cgroup": "4:memory:/x/inner\n0::/\n",
			"sys/fs/cgroup/memory/x/inner/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/memory/x/inner/memory.usage_in_bytes": "1\n",
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes":       "104857600\n",
			"sys/fs/cgroup/memory/x/memory.usage_in_bytes":       "52428800\n",
		}, Free{50 * mib, "control group /x"}},
		{"v2, slowed down before it is killed", map[string]string{
			"proc/meminfo": meminfo, "proc/self/mountinfo": v2mount, "proc/self/cgroup": "0::/a\n",
			"sys/fs/cgroup/a/memory.max": "209715200\n", "sys/fs/cgroup/a/memory.high": "104857600\n",
			"sys/fs/cgroup/a/memory.current": "52428800\n",
		}, Free{50 * mib, "control group /a"}},
		{"v2, slowed down and never killed", map[string]string{
			"proc/meminfo": meminfo, "proc/self/mountinfo": v2mount, "proc/self/cgroup": "0::/a\n",
			"sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/a/memory.high": "104857600\n",
			"sys/fs/cgroup/a/memory.current": "52428800\n",
		}, Free{50 * mib, "control group /a"}},
		{"a container that sees its own group as the root", map[string]string{
			"proc/meminfo":                 meminfo,
			"proc/self/mountinfo":          "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
			"proc/self/cgroup":             "0::/../other\n",
			"sys/fs/cgroup/memory.max":     "1048576\n",
			"sys/fs/cgroup/memory.current": "0\n",
		}, Free{mib, "control group /docker/abc"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := tree(t, test.files).Available()
			if err != nil || got != test.want {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
	for name, text := range map[string]string{"none": "", "nonsense": "MemAvailable: lots kB\n"} {
		if got, err := tree(t, map[string]string{"proc/meminfo": text}).Available(); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestPressure(t *testing.T) {
	h := tree(t, map[string]string{
		"proc/pressure/memory": "some avg10=3.50 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.50 avg60=0 avg300=0 total=0\n",
		"proc/self/mountinfo":  v2mount, "proc/self/cgroup": "0::/a\n",
		"sys/fs/cgroup/a/memory.pressure": "some avg10=12.00 avg60=0.00 total=0\nfull avg10=garbage\n",
	})
	if got, want := h.Pressure(), (Pressure{Some: 12, Full: 0.5}); got != want || !got.High() {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := tree(t, nil).Pressure(); got != (Pressure{}) || got.High() {
		t.Errorf("no pressure file: %+v", got)
	}
}

func TestThisHost(t *testing.T) {
	free, err := Host{}.Available()
	if err != nil || free.Bytes == 0 || free.Limit == "" {
		t.Errorf("%+v, %v", free, err)
	}
}
