package daemon

import (
	"context"
	"fmt"
	"os"
	"strings"

	"banger/internal/daemon/library"
	"banger/internal/store"
	"banger/internal/vm"
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
		c.find(findStaging, dir, "no operation runs that makes it", "it is removed", func() error { return c.images.Discard(ctx, dir) })
	}
}

// artifacts compares the rows of images or kernels with their directories.
func (c *checker) artifacts(ctx context.Context, l *library.Library) {
	rows, err := c.store.Artifacts(ctx, l.Kind())
	if err != nil {
		return
	}
	for _, row := range rows {
		_, err := l.Source().Load(l.Dir(row.Digest))
		if err == nil {
			continue
		}
		users := c.users(l, row.Digest)
		message := fmt.Sprintf("%s %s has no usable files: %v", l.Kind(), row.Name, err)
		if len(users) > 0 {
			c.find(findRowWithoutFiles, row.Name, message+"; "+strings.Join(users, ", ")+" cannot start without it", "", nil)
			continue
		}
		c.find(findRowWithoutFiles, row.Name, message, "it is forgotten, and pulled when it is needed",
			func() error { return c.store.DeleteArtifact(ctx, l.Kind(), row.Name) })
	}
	strays, err := l.Strays(ctx)
	if err != nil {
		return
	}
	for _, s := range strays {
		c.stray(ctx, l, s)
	}
}

// stray tells of the directory of an image or a kernel that no name stands for and no VM uses.
func (c *checker) stray(ctx context.Context, l *library.Library, s library.Stray) {
	if s.Problem != "" {
		c.find(findUnusableArtifact, s.Dir, fmt.Sprintf("no %s that this banger can use: %s", l.Kind(), s.Problem), "", nil)
		return
	}
	repair := "its name stands for it again"
	if s.Replaced {
		repair = "it is removed: its name stands for another one, and no vm uses it"
	}
	c.find(findFilesWithoutRow, s.Dir, fmt.Sprintf("%s %s has no row", l.Kind(), s.Name), repair, func() error { return s.Mend(ctx) })
}

// users are the names of the VMs that were made with a digest.
func (c *checker) users(l *library.Library, digest string) []string {
	var names []string
	for _, v := range c.rows {
		if l == c.images && v.ImageDigest == digest || l == c.kernels && v.KernelDigest == digest {
			names = append(names, string(v.Name()))
		}
	}
	return names
}

// initramfs looks for files that no kernel of this host and no VM that runs uses: those of older bangers.
func (c *checker) initramfs(ctx context.Context) {
	files, err := c.staleInitramfs(ctx)
	if err != nil {
		return
	}
	for _, file := range files {
		c.find(findOldInitramfs, file, "no kernel of this banger uses it", "it is removed", func() error { return os.Remove(file) })
	}
}

// snapshots looks for what snapshots and restores of a VM have left that were cut off, and for snapshots that cannot be
// used. The caller holds the VM's lock, so that none is under way.
func (c *checker) snapshots(ctx context.Context, v store.VM) {
	f := c.fleet
	for _, path := range f.leftovers(v.ID) {
		c.find(findLeftover, path, "it was half made or half removed", "it is removed", func() error { return os.RemoveAll(path) })
	}
	if r := f.restoring(v.ID); r.isThere() && !v.State.Live() {
		c.find(findCutOffRestore, string(v.Name()), "a restore was cut off", "it is finished or taken back", func() error {
			if err := f.endRestore(v.ID); err != nil {
				return err
			}
			_, err := f.matchMemory(ctx, v)
			return err
		})
	}
	all, err := f.snapshotsOf(v).List()
	if err != nil {
		return
	}
	for _, snap := range all {
		if snap.Problem != "" {
			c.find(findDamagedSnapshot, string(v.Name())+" "+snap.Name, fmt.Sprintf("snapshot %s of vm %s cannot be restored: %s: banger snapshot rm %s %s removes it",
				snap.Name, v.Name(), snap.Problem, v.Name(), snap.Name), "", nil)
		}
	}
}
