package daemon

import (
	"context"
	"fmt"
	"os"
	"strings"

	"banger/internal/fault"
	"banger/internal/vm"
	"banger/internal/vmdir"
)

// halfRemoved looks for directories whose removal was cut off. The renaming has been ordered by somebody; only the
// deletion is missing.
func (c *checker) halfRemoved(ctx context.Context) {
	for _, root := range []string{c.paths.VMs(), c.paths.Images(), c.paths.Kernels()} {
		for _, dir := range list(root) {
			id, ok := strings.CutPrefix(name(dir), removedPrefix)
			if !ok {
				continue
			}
			unlock, err := c.fleet.tryLock(ctx, vm.ID(id)) // of a VM: its removal may go on right now
			if err != nil {
				continue
			}
			if _, err := c.store.VM(ctx, vm.ID(id)); err != nil {
				c.find(findHalfRemoved, dir, "its removal was cut off", "it is removed", func() error { return os.RemoveAll(dir) })
			}
			unlock()
		}
	}
}

// staging looks for what pulls have left. While an operation runs it may be that one's.
func (c *checker) staging(ctx context.Context) {
	if c.ops.Running() > 0 {
		return
	}
	for _, dir := range list(c.paths.Staging()) {
		c.find(findStaging, dir, "no operation runs that makes it", "it is removed", func() error { return c.images.discard(ctx, dir) })
	}
}

// artifacts compares the rows of images or kernels with their directories.
func (c *checker) artifacts(ctx context.Context, l *library) {
	rows, err := c.store.Artifacts(ctx, l.kind)
	if err != nil {
		return
	}
	named := map[string]bool{}
	for _, row := range rows {
		dir := l.dir(row.Digest)
		named[dir] = true
		_, err := l.source.Load(dir)
		if err == nil {
			continue
		}
		users := c.users(l, row.Digest)
		message := fmt.Sprintf("%s %s has no usable files: %v", l.kind, row.Name, err)
		if len(users) > 0 {
			c.find(findRowWithoutFiles, row.Name, message+"; "+strings.Join(users, ", ")+" cannot start without it", "", nil)
			continue
		}
		c.find(findRowWithoutFiles, row.Name, message, "it is forgotten, and pulled when it is needed",
			func() error { return c.store.DeleteArtifact(ctx, l.kind, row.Name) })
	}
	for _, dir := range list(l.root) {
		if named[dir] || strings.HasPrefix(name(dir), ".") {
			continue
		}
		c.orphan(ctx, l, dir)
	}
}

// orphan looks at the directory of an image or a kernel that no name stands for. VMs may still use it.
func (c *checker) orphan(ctx context.Context, l *library, dir string) {
	a, err := l.source.Load(dir)
	if err != nil || l.dir(a.Digest) != dir {
		c.find(findUnusableArtifact, dir, fmt.Sprintf("no %s that this banger can use: %v", l.kind, err), "", nil)
		return
	}
	if len(c.users(l, a.Digest)) > 0 {
		return // an older one that VMs were made with
	}
	repair, mend := "its name stands for it again", func() error { return l.adopt(ctx, a) }
	if _, err := c.store.Artifact(ctx, l.kind, a.Name); err == nil {
		repair = "it is removed: its name stands for a newer one, and no vm uses it"
	} else if !fault.Is(err, fault.NotFound) {
		return
	}
	c.find(findFilesWithoutRow, dir, fmt.Sprintf("%s %s has no row", l.kind, a.Name), repair, mend)
}

// users are the names of the VMs that were made with a digest.
func (c *checker) users(l *library, digest string) []string {
	var names []string
	for _, v := range c.rows {
		if l == c.images && v.ImageDigest == digest || l == c.kernels && v.KernelDigest == digest {
			names = append(names, string(v.Name()))
		}
	}
	return names
}

// initramfs looks for files that no kernel of this host and no VM that runs uses: those of older bangers.
func (c *checker) initramfs() {
	used := map[string]bool{}
	for id, v := range c.rows {
		if v.State == vm.Suspended { // goes on with the one that it was started with
			if m, err := vmdir.ReadSaved(c.fleet.suspendedDir(id)); err == nil {
				used[m.Launch.Machine.Initramfs] = true
			}
		}
		if !v.State.Live() {
			continue
		}
		l, err := c.fleet.dir(id).ReadLaunch()
		if err != nil {
			return // one that is starting now: nothing can be said
		}
		used[l.Machine.Initramfs] = true
	}
	for _, dir := range list(c.paths.Kernels()) {
		if strings.HasPrefix(name(dir), ".") {
			continue
		}
		if path, err := c.daemon.cfg.Initramfs(c.paths.Initramfs(), dir); err == nil {
			used[path] = true
		}
	}
	for _, file := range list(c.paths.Initramfs()) {
		if !used[file] && strings.HasSuffix(file, ".cpio") {
			c.find(findOldInitramfs, file, "no kernel of this banger uses it", "it is removed", func() error { return os.Remove(file) })
		}
	}
}
