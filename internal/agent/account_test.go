package agent

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

func TestLookupAccount(t *testing.T) {
	etc := t.TempDir()
	for name, content := range map[string]string{
		"passwd": "# a comment\nroot:x:0:0:root:/root:/bin/bash\nbad:x:y:0::/:\nshort:x:1\nearly:x:77:78\nlong:x:1:1::/:/bin/sh:\ndev:x:1000:100:Dev:/home/dev:/bin/zsh\n4242:x:7:7::/seven:\n",
		"group":  "root:x:0:\nusers:x:100:dev\nwheel:x:10:root,dev\nearly:x:79\nodd:x:z:dev\nsudo:x:27:devil\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dev := account{name: "dev", uid: 1000, gid: 100, groups: []uint32{100, 10}, home: "/home/dev", shell: "/bin/zsh"}
	devRoot := dev
	devRoot.gid, devRoot.groups = 0, []uint32{0}
	for _, tc := range []struct {
		spec string
		want account
	}{
		{"dev", dev},
		{"1000", dev},
		{"dev:root", devRoot},
		{"1000:0", devRoot},
		{"root", account{name: "root", groups: []uint32{0, 10}, home: "/root", shell: "/bin/bash"}},
		{"4242", account{name: "4242", uid: 7, gid: 7, groups: []uint32{7}, home: "/seven"}}, // a name before a number
		{"early", account{name: "early", uid: 77, gid: 78, groups: []uint32{78}, home: "/"}},
		{"early:early", account{name: "early", uid: 77, gid: 79, groups: []uint32{79}, home: "/"}},
		{"555", account{uid: 555, groups: []uint32{0}, home: "/"}},
		{"555:666", account{uid: 555, gid: 666, groups: []uint32{666}, home: "/"}},
	} {
		got, err := lookupAccount(etc, tc.spec)
		if err != nil {
			t.Errorf("%s: %v", tc.spec, err)
		}
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(account{})); diff != "" {
			t.Errorf("%s: %s", tc.spec, diff)
		}
	}
	for _, spec := range []string{"nobody", "bad", "short", "long", "", "-1", "4294967295", "dev:nogroup", "dev:", "99999999999"} {
		if got, err := lookupAccount(etc, spec); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
	if got, err := lookupAccount(t.TempDir(), "root"); err != nil || got.home != "/root" || got.uid != 0 {
		t.Errorf("root without files: %+v, %v", got, err)
	}
}

func TestRememberedAccountsFollowTheFiles(t *testing.T) {
	etc := t.TempDir()
	write := func(uid string) {
		t.Helper()
		path := filepath.Join(etc, "passwd")
		if err := os.WriteFile(path+".new", []byte("dev:x:"+uid+":100::/home/dev:/bin/sh\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	var a accounts
	for _, uid := range []uint32{1000, 1001, 1000} {
		write(uint32Text(uid))
		for range 2 {
			if acc, err := a.lookUp(etc, "dev"); err != nil || acc.uid != uid {
				t.Errorf("got %+v, %v; want uid %d", acc, err, uid)
			}
		}
	}
	if err := os.Remove(filepath.Join(etc, "passwd")); err != nil {
		t.Fatal(err)
	}
	if acc, err := a.lookUp(etc, "dev"); err == nil {
		t.Errorf("still there: %+v", acc)
	}
}

func TestAPipeForATableHoldsNothingUp(t *testing.T) {
	etc := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(etc, "passwd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if acc, err := new(accounts).lookUp(etc, "root"); err != nil || acc.uid != 0 {
		t.Errorf("got %+v, %v", acc, err)
	}
}
