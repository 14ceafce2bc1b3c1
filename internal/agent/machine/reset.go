package machine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/atomicfile"
)

// Names on the data disk.
const (
	changesDir = "root"          // the overlay's upper and work directories
	droppedDir = ".root-dropped" // what a reset has put aside and is being removed
	resetFile  = "reset"         // in changesDir: the word of the last reset
)

// resetRoot drops what was changed in the image's part of the root, unless the reset of that word has been done. The
// changes are put aside by a rename, and the word is durable before anything can be changed anew: a guest that is cut
// off in between does it once more and loses nothing by that. leftover is what still has to be removed, if not empty.
func resetRoot(data, word string) (leftover string, err error) {
	changes, dropped := filepath.Join(data, changesDir), filepath.Join(data, droppedDir)
	done, err := os.ReadFile(filepath.Join(changes, resetFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if word != "" && strings.TrimSpace(string(done)) != word {
		if err := os.RemoveAll(dropped); err != nil { // of a reset before, whose removal was cut off
			return "", err
		}
		if err := os.Rename(changes, dropped); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := os.Mkdir(changes, 0o755); err != nil {
			return "", err
		}
		if err := atomicfile.Write(filepath.Join(changes, resetFile), []byte(word+"\n"), 0o600); err != nil {
			return "", err
		}
		if err := atomicfile.SyncDir(data); err != nil {
			return "", err
		}
	}
	if _, err := os.Lstat(dropped); err == nil {
		leftover = dropped
	}
	return leftover, nil
}
