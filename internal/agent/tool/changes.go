package tool

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agent/pax"
)

// How overlayfs says that a file of the layers below is gone: a character device 0:0 in its place, or for everything
// in a directory an attribute of that.
const (
	overlayPrefix = "trusted.overlay."
	opaqueXattr   = overlayPrefix + "opaque"
)

// How an OCI layer says it.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Changes writes the upper layer of an overlay as an OCI layer to w: what is in upper, with whiteouts for what it hides
// of the image below. Those for what no image has are left out, as are the parts of the overlay that only it
// understands. It changes the working directory of the process.
func Changes(w io.Writer, upper, image int) error {
	t := newTree(w)
	err := within(upper, ".", func(fd int) error {
		changed, err := t.rootChanged(image)
		if err == nil && changed {
			err = t.addRoot()
		}
		if err != nil {
			return err
		}
		return t.changes(fd, image, "")
	})
	if err != nil {
		return err
	}
	return t.out.Close()
}

// rootChanged reports whether the working directory, the root of the upper layer, is another than the image's. When
// it was changed last is of no importance: any new file in it does that.
func (t *tree) rootChanged(image int) (bool, error) {
	now, err := stat(".")
	if err != nil {
		return false, err
	}
	nowXattrs, err := t.xattrs(".")
	if err != nil {
		return false, err
	}
	changed := false
	upper, err := openDir(unix.AT_FDCWD, ".")
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(upper) }()
	if err := unix.Fchdir(image); err != nil {
		return false, err
	}
	was, err := stat(".")
	if err == nil {
		var wasXattrs []pax.Xattr
		wasXattrs, err = t.xattrs(".")
		changed = now.Mode != was.Mode || now.Uid != was.Uid || now.Gid != was.Gid || !slices.Equal(nowXattrs, wasXattrs)
	}
	if err != nil {
		return false, err
	}
	return changed, unix.Fchdir(upper)
}

// noImage is the directory of the image where it has none.
const noImage = -1

// changes writes what is in the working directory, which fd has open, which is path in the archive and lies over the
// image's directory. The whiteouts come first: whoever applies a layer as it comes must not remove what is new.
func (t *tree) changes(fd, image int, path string) error {
	names, err := t.list(fd)
	if err != nil {
		return err
	}
	files := names[:0]
	for _, name := range names {
		st, err := stat(name)
		if err == nil && strings.HasPrefix(name, whiteoutPrefix) {
			err = fmt.Errorf("%s: a name that begins with %s cannot be in a layer", join(path, name), whiteoutPrefix)
		}
		if err == nil && isWhiteout(&st) {
			err = t.whiteout(image, path, name)
		} else {
			files = append(files, name)
		}
		if err != nil {
			return err
		}
	}
	for _, name := range files {
		if err := t.change(fd, image, path, name); err != nil {
			return err
		}
	}
	return nil
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// whiteout writes that a file is gone, if the image has it.
func (t *tree) whiteout(image int, path, name string) error {
	var st unix.Stat_t
	if image == noImage || unix.Fstatat(image, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return nil
	}
	if path == "" && name == LostAndFound && HasLostAndFound(image) {
		return nil
	}
	return t.out.WriteHeader(&pax.Header{Name: join(path, whiteoutPrefix+name), Type: pax.Regular})
}

// change writes one file, or a directory with what is in it.
func (t *tree) change(fd, image int, path, name string) error {
	st, err := stat(name)
	if err == nil {
		err = t.add(path, name, &st)
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	below := noImage
	if image != noImage {
		// Whatever is wrong with it, it is no directory that the overlay has merged.
		if dir, err := unix.Openat(image, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			defer func() { _ = unix.Close(dir) }()
			below = dir
		}
	}
	sub := join(path, name)
	if below != noImage && t.isOpaque(name) {
		below = noImage
		if err := t.out.WriteHeader(&pax.Header{Name: sub + "/" + whiteoutOpaque, Type: pax.Regular}); err != nil {
			return err
		}
	}
	return within(fd, name, func(next int) error { return t.changes(next, below, sub) })
}

// isOpaque reports whether a directory of the upper layer hides the image's.
func (t *tree) isOpaque(name string) bool {
	n, err := unix.Lgetxattr(name, opaqueXattr, t.value)
	return err == nil && n == 1 && t.value[0] == 'y'
}
