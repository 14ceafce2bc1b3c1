// Package tool is the agent's own programs: they write a root file system, or what was changed in one, as a tar
// archive to their standard output (see agentwire.ToolArchive and agentwire.ToolChanges).
//
// They run as child processes of PID 1, from the same binary, so that neither their memory nor a crash is PID 1's. What
// they read they get as open directories: the mounts of the image and of the overlay's upper layer have no path in a
// guest whose root is switched. Every file is reached from its directory, never by a path from a root, and no symbolic
// link of a tree is followed.
package tool

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/agentwire"
)

// Program is how one of the agent's own programs is started, as root.
type Program struct {
	File  string     // what is executed
	Args  []string   // its arguments; the first is its name
	Files []*os.File // its descriptors from 3 on, which whoever starts it closes
}

// Close closes the files.
func (p Program) Close() {
	for _, f := range p.Files {
		_ = f.Close()
	}
}

// Descriptors of a program.
const (
	imageFD = 3 + iota // the image's root directory
	upperFD            // the overlay's upper layer
)

// Main runs the program that args names and returns its exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	if err := run(args, stdout); err != nil {
		fmt.Fprintln(stderr, "banger-agent: error: "+err.Error())
		return 1
	}
	return 0
}

func run(args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return errors.New("it is the init program of a banger guest and runs as process 1 only")
	}
	if len(args) > 1 {
		return fmt.Errorf("%s takes no arguments", args[0])
	}
	switch args[0] {
	case agentwire.ToolArchive:
		return Archive(stdout, imageFD)
	case agentwire.ToolChanges:
		if err := sync(upperFD); err != nil {
			return err
		}
		return Changes(stdout, upperFD, imageFD)
	}
	return fmt.Errorf("there is no tool %q", args[0])
}

// sync brings what was written to the disk, where it may turn out that it cannot be.
func sync(dir int) error {
	fd, err := openDir(dir, ".")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return os.NewSyscallError("syncfs", unix.Syncfs(fd))
}

// LostAndFound is a directory that is in every ext4 and need not be the image's.
const LostAndFound = "lost+found"

// HasLostAndFound reports whether the directory, the root of an image, has a lost+found that no image brought: package
// ext4 makes it first and without a time. What is in it is not asked: there is no way to put anything there.
func HasLostAndFound(dir int) bool {
	const firstInode = 11 // that is not reserved
	var st unix.Stat_t
	err := unix.Fstatat(dir, LostAndFound, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Ino == firstInode && st.Mode == unix.S_IFDIR|0o700 && st.Uid == 0 && st.Gid == 0 &&
		st.Nlink == 2 && st.Mtim == unix.Timespec{}
}
