package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/fault"
	"banger/internal/imageref"
)

// hostReference makes the path in a reference to a file of the host absolute: the daemon runs in another directory. The
// file must be there. Other references are returned as they are.
func hostReference(ref string) (string, error) {
	kind, path := imageref.Split(ref)
	switch {
	case kind == "" && (filepath.IsAbs(ref) || strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../")):
		return "", barePath(ref)
	case kind == "" || imageref.IsURL(path):
		return ref, nil
	}
	if kind != imageref.Bundle {
		path = withoutTag(path)
	}
	if _, err := hostPath(kind, path); err != nil {
		return "", err
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "find the present directory")
	}
	return imageref.Absolute(ref, dir), nil
}

// withoutTag is the path in front of the tag that may stand behind it. A path with a colon in it is itself if it is there.
func withoutTag(s string) string {
	for path := s; ; {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		i := strings.LastIndexByte(path, ':')
		if i <= 0 {
			return path
		}
		path = path[:i]
	}
}

// barePath is the error for a path that does not say what is there, with the command that does.
func barePath(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return missing("image", path, err)
	}
	f := fault.New(fault.Invalid, "%q is a path: what is there has to be said in front of it", path)
	_, err = os.Stat(filepath.Join(path, "oci-layout"))
	switch {
	case err == nil:
		return f.WithHint("banger image pull oci-layout:%s", path)
	case info.IsDir():
		return f.WithHint("banger image build %s", path)
	}
	return f.WithHint("banger image pull docker-archive:%s   # or: banger image register NAME --rootfs %s", path, path)
}

// hostPath returns the absolute path of something that is there. what names it in errors.
func hostPath(what, path string) (string, error) {
	if _, err := os.Stat(path); err != nil {
		return "", missing(what, path, err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "%s %q", what, path)
	}
	return abs, nil
}

// hostFile is hostPath for a regular file that can be read.
func hostFile(what, path string) (string, error) {
	abs, err := hostPath(what, path)
	if err != nil {
		return "", err
	}
	f, err := os.Open(abs)
	if err != nil {
		return "", missing(what, path, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", fault.New(fault.Invalid, "%s %q is no regular file", what, path).WithHint("ls -ld %s", path)
	}
	return abs, nil
}

// hostDir is hostPath for a directory.
func hostDir(what, path string) (string, error) {
	abs, err := hostPath(what, path)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return "", fault.New(fault.Invalid, "%s %q is no directory", what, path).WithHint("ls -ld %s", path)
	}
	return abs, nil
}

// missing is the fault for a path that cannot be used.
func missing(what, path string, err error) error {
	switch {
	case path == "":
		return fault.New(fault.Invalid, "the path of the %s is empty", strings.TrimPrefix(what, "--"))
	case errors.Is(err, fs.ErrNotExist):
		f := fault.New(fault.NotFound, "%s: there is no %q", what, path)
		if dir := filepath.Dir(path); path != dir {
			if _, err := os.Stat(dir); err == nil {
				return f.WithHint("ls %s", dir)
			}
		}
		return f
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "%s: %q cannot be read by you", what, path).WithHint("ls -ld %s", path)
	}
	return fault.Wrap(fault.Invalid, err, "%s", what)
}
