package diskcopy

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Shares reports whether copies in dir share their blocks with the original, so that they take no space at first. It makes
// two small files there to find out.
func Shares(dir string) bool {
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(dir, ".probe-*")
		if err != nil {
			return false
		}
		defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
		files[i] = f
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return false
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) == nil
}
