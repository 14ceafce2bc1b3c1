package tool

import (
	"io"

	"golang.org/x/sys/unix"
)

// Archive writes the tree below a directory to w. It changes the working directory of the process.
func Archive(w io.Writer, dir int) error {
	t := newTree(w)
	err := within(dir, ".", func(fd int) error {
		if err := t.addRoot(); err != nil {
			return err
		}
		return t.archive(fd, "")
	})
	if err != nil {
		return err
	}
	return t.out.Close()
}

// addRoot writes the working directory as the root of the archive.
func (t *tree) addRoot() error {
	st, err := stat(".")
	if err != nil {
		return err
	}
	h, err := t.header("", ".", &st)
	if err != nil {
		return err
	}
	return t.out.WriteHeader(h)
}

// archive writes what is in the working directory, which fd has open and which is path in the archive.
func (t *tree) archive(fd int, path string) error {
	names, err := t.list(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if path == "" && name == LostAndFound && HasLostAndFound(fd) {
			continue
		}
		st, err := stat(name)
		if err == nil {
			err = t.add(path, name, &st)
		}
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = within(fd, name, func(sub int) error { return t.archive(sub, join(path, name)) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}
