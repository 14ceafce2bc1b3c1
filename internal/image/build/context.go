package build

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
)

// maxDockerfile is more than package dockerfile reads, so that it can say that a file is too long.
const maxDockerfile = 2 << 20

// Load reads a Dockerfile and the .dockerignore file for it: one with the Dockerfile's name and .dockerignore at its end
// beside it, else .dockerignore in the context.
func Load(contextDir, file string, opt dockerfile.Options) (*dockerfile.Plan, *dockerfile.Ignore, error) {
	data, err := readFile(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fault.New(fault.NotFound, "there is no %s: name the Dockerfile with --file", file)
		}
		return nil, nil, fault.Context(err, "Dockerfile")
	}
	plan, err := dockerfile.Parse(filepath.Base(file), data, opt)
	if err != nil {
		return nil, nil, err
	}
	names := []string{file + ".dockerignore"}
	if contextDir != "" {
		names = append(names, filepath.Join(contextDir, ".dockerignore"))
	}
	for _, name := range names {
		data, err := readFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fault.Context(err, ".dockerignore")
		}
		ignore, err := dockerfile.ParseIgnore(filepath.Base(name), data)
		return plan, ignore, err
	}
	return plan, nil, nil
}

// readFile reads a regular file of bounded size. It does not wait for a pipe.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s is not a regular file", name)
	}
	return io.ReadAll(io.LimitReader(f, maxDockerfile))
}

// contextTree is the directory that COPY and ADD take files from. Everything goes through an os.Root, so that no symbolic
// link leads out of it, whoever changes it meanwhile.
type contextTree struct {
	root   *os.Root
	ignore *dockerfile.Ignore

	mu   sync.Mutex // guards read
	read map[fileState]known
}

// known is what was found in a file that was read before in this build.
type known struct {
	digest string
	xattrs map[string]string
}

// fileState is what a file looked like. One that looks the same is taken to be the same while a build lasts.
type fileState struct {
	id           linkID
	size         int64
	mtime, ctime unix.Timespec
}

// linkID identifies a file of the host.
type linkID struct{ dev, ino uint64 }

func openContext(dir string, ignore *dockerfile.Ignore) (*contextTree, error) {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return nil, fault.New(fault.Invalid, "build context %s is not a directory", dir)
	}
	var root *os.Root
	if err == nil {
		root, err = os.OpenRoot(dir)
	}
	if err != nil {
		class := fault.Internal
		switch {
		case errors.Is(err, fs.ErrNotExist):
			class = fault.NotFound
		case errors.Is(err, fs.ErrPermission):
			class = fault.Denied
		}
		return nil, fault.Wrap(class, cause(err), "build context %s", dir)
	}
	return &contextTree{root: root, ignore: ignore, read: map[fileState]known{}}, nil
}

func (c *contextTree) close() { c.root.Close() }

// relative is a path of a node as os.Root has it.
func relative(at string) string {
	if at = strings.TrimPrefix(at, "/"); at == "" {
		return "."
	}
	return at
}

// find implements finder.
func (c *contextTree) find(at string) (*node, error) { return c.lstat(c.root, relative(at), at) }

// lstat looks at a name in a directory of the context; at is the path from the context's root.
func (c *contextTree) lstat(dir *os.Root, name, at string) (*node, error) {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(at, err)
	}
	st := info.Sys().(*syscall.Stat_t)
	n := &node{mode: int64(st.Mode & 0o7777), mtime: info.ModTime(), at: at}
	switch info.Mode().Type() {
	case 0:
		n.typ, n.size, n.from = tar.TypeReg, info.Size(), c
		n.state = stateOf(info)
		if st.Nlink > 1 {
			n.same = n.state.id
		}
		c.recall(n)
	case fs.ModeDir:
		n.typ = tar.TypeDir
	case fs.ModeSymlink:
		n.typ = tar.TypeSymlink
		if n.link, err = dir.Readlink(name); err != nil {
			return nil, unreadable(at, err)
		}
	}
	return n, nil // one without a type is a socket, a pipe or a device
}

// recall fills in what is known of a file.
func (c *contextTree) recall(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.read[n.state]
	n.digest, n.xattrs = k.digest, k.xattrs
}

// learn remembers a file that was read.
func (c *contextTree) learn(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read[n.state] = known{n.digest, n.xattrs}
}

// list returns what is in a directory, in the order of names.
func (c *contextTree) list(at string) ([]*node, error) {
	dir, err := c.root.OpenRoot(relative(at))
	if err != nil {
		return nil, unreadable(at, err)
	}
	defer dir.Close()
	f, err := dir.Open(".")
	if err != nil {
		return nil, unreadable(at, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, unreadable(at, err)
	}
	slices.Sort(names)
	out := make([]*node, 0, len(names))
	for _, name := range names {
		n, err := c.lstat(dir, name, path.Join(at, name))
		if err != nil {
			return nil, err
		}
		if n == nil {
			return nil, changed(path.Join(at, name))
		}
		out = append(out, n)
	}
	return out, nil
}

// open implements opener.
func (c *contextTree) open(_ context.Context, n *node) (io.ReadCloser, error) {
	f, err := c.root.OpenFile(relative(n.at), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if now, findErr := c.find(n.at); findErr == nil && (now == nil || now.state != n.state) {
			return nil, changed(n.at)
		}
		return nil, unreadable(n.at, err)
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || stateOf(info) != n.state) {
		err = changed(n.at)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	n.takeCapabilities(f)
	return f, nil
}

// stateOf is what a file looks like now.
func stateOf(info fs.FileInfo) fileState {
	st := info.Sys().(*syscall.Stat_t)
	return fileState{linkID{st.Dev, st.Ino}, st.Size, unix.Timespec(st.Mtim), unix.Timespec(st.Ctim)}
}

// takeCapabilities reads the one extended attribute of a file that means the same in a guest.
func (n *node) takeCapabilities(f *os.File) {
	const name = "security.capability"
	if n.xattrs != nil {
		return
	}
	n.xattrs = map[string]string{}
	buf := make([]byte, 64)
	if got, err := unix.Fgetxattr(int(f.Fd()), name, buf); err == nil && got > 0 {
		n.xattrs[name] = string(buf[:got])
	}
}

// unreadable is the error about a file of the context that cannot be read.
func unreadable(at string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Denied, "%s cannot be read: give yourself the right to, or name it in .dockerignore", shown(at))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return changed(at)
	}
	return fault.Wrap(fault.Invalid, cause(err), "%s of the build context", shown(at))
}

// cause is what the system says, without the path that is in the message anyway.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
