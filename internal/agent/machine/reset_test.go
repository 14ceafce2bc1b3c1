package machine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestResetRootHappensOnceForEachWord(t *testing.T) {
	data := t.TempDir()
	change := func(name string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(data, changesDir, "upper", "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, changesDir, "upper", "etc", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	there := func(path ...string) bool {
		_, err := os.Lstat(filepath.Join(append([]string{data}, path...)...))
		return err == nil
	}
	reset := func(word string) string {
		t.Helper()
		leftover, err := resetRoot(data, word)
		if err != nil {
			t.Fatal(err)
		}
		return leftover
	}
	if left := reset("first"); left != "" { // of a disk that never was mounted
		t.Errorf("%s is left", left)
	}
	if err := os.MkdirAll(filepath.Join(data, keepDir, "home"), 0o755); err != nil {
		t.Fatal(err)
	}
	change("a")
	for _, word := range []string{"", "first"} {
		if left := reset(word); left != "" || !there(changesDir, "upper", "etc", "a") {
			t.Errorf("%q: the changes are gone", word)
		}
	}
	if left := reset("second"); left == "" || there(changesDir, "upper") || !there(droppedDir, "upper", "etc", "a") || !there(keepDir, "home") {
		t.Errorf("left %q", left)
	}
	// The removal was cut off; the next boot finishes it, and so does the next reset.
	if left := reset(""); left == "" {
		t.Error("the leftover is forgotten")
	}
	change("b")
	if left := reset("third"); left == "" || there(changesDir, "upper") || there(droppedDir, "upper", "etc", "a") || !there(droppedDir, "upper", "etc", "b") {
		t.Errorf("left %q", left)
	}
	// Cut off between the two renames: no directory, no word.
	if err := os.RemoveAll(filepath.Join(data, changesDir)); err != nil {
		t.Fatal(err)
	}
	reset("third")
	if !there(changesDir, resetFile) {
		t.Error("no word")
	}
}
