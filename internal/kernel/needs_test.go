package kernel

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs/kernels.md has a row for every option and no others, vital ones in the first table.
func TestNeedsAreDocumented(t *testing.T) {
	data, err := os.ReadFile("../../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	vital, rest, ok := strings.Cut(string(data), "and Linux 5.2 or later")
	if !ok {
		t.Fatal("the oldest version is not documented")
	}
	var want []string
	for _, n := range needs() {
		what, module := n.what, ""
		if n.arch != "" {
			what += ", " + n.arch + " only"
		}
		if n.module != "" {
			module = "`" + n.module + "`"
		}
		want = append(want, fmt.Sprintf("%v | `CONFIG_%s` | %s | %s |", n.vital, n.option, what, module))
	}
	got := append(rows(vital, true), rows(rest, false)...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/kernels.md (-want +got)\n%s", diff)
	}
}

// rows are the lines of a text's table.
func rows(text string, vital bool) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "| `CONFIG_") {
			out = append(out, fmt.Sprintf("%v %s", vital, strings.TrimSpace(line)))
		}
	}
	return out
}

// What tells that an option is there, in the order of belief.
func TestJudge(t *testing.T) {
	blk := map[string]string{"virtio_blk": "kernel/virtio_blk.ko"}
	for _, tc := range []struct {
		name  string
		e     evidence
		has   bool
		known bool
	}{
		{name: "nothing"},
		{name: "a module that is there", e: evidence{modules: index{files: blk}}, has: true, known: true},
		{name: "which the configuration does not know", e: evidence{modules: index{files: blk}, config: map[string]string{}}, has: true, known: true},
		{name: "listed as built in", e: evidence{modules: index{builtin: map[string]bool{"virtio_blk": true}}}, has: true, known: true},
		{name: "not listed", e: evidence{modules: index{builtin: map[string]bool{"ext4": true}}}, known: true},
		{name: "configured", e: evidence{config: map[string]string{"VIRTIO_BLK": "y"}}, has: true, known: true},
		{name: "configured as a module that is not there", e: evidence{config: map[string]string{"VIRTIO_BLK": "m"}}, known: true},
		{name: "configured, not listed", e: evidence{config: map[string]string{"VIRTIO_BLK": "y"}, modules: index{builtin: map[string]bool{}}}, has: true, known: true},
		{name: "not configured", e: evidence{config: map[string]string{}}, known: true},
	} {
		has, known := tc.e.has(need{option: "VIRTIO_BLK", module: "virtio_blk"})
		if has != tc.has || known != tc.known {
			t.Errorf("%s: has %v, known %v", tc.name, has, known)
		}
	}
	plain := need{option: "UNIX"}
	if has, known := (evidence{config: map[string]string{"UNIX": "m"}}).has(plain); !has || !known {
		t.Errorf("an option without a module of banger's: has %v, known %v", has, known)
	}
	// A distribution knows what it does: an option that has gone has another name.
	e := evidence{image: imageFacts{arch: "amd64", pvh: true}, config: map[string]string{}, trusted: true}
	if v := judge(e); len(v.missing) != len(needs())-2 || len(v.fatal) != 6 {
		t.Errorf("missing %q, fatal %q", v.missing, v.fatal)
	}
}

func TestTooOld(t *testing.T) {
	for release, want := range map[string]bool{
		"5.1.21": true, "4.19.0-9-amd64": true, "5.2": false, "5.2-rc1": false, "5.10.0": false, "6.1.0-56-cloud-amd64": false, "": false, "x.y": false,
		"99999999999999999999.1": false,
	} {
		if got := tooOld(release); got != want {
			t.Errorf("tooOld(%q) = %v", release, got)
		}
	}
}
