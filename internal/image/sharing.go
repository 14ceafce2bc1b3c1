package image

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/ext4"
	"banger/internal/image/source"
)

// share makes the root file system of tree that of an image below images which is made of the same layers, and enters in
// m what is known of it. It reports whether it has done so; where it has not, nothing has happened. The layers are
// brought all the same: whoever pushes the image or builds on it needs them.
func (m *Manifest) share(ctx context.Context, tree source.Tree, dir, images string) (bool, error) {
	layers, ok := tree.Tar.(source.Bringer)
	if !ok || images == "" || len(tree.Layers) == 0 || tree.Digest == "" {
		return false, nil
	}
	from, old, ok := twin(images, tree.Layers)
	if !ok || os.Link(Rootfs(from), Rootfs(dir)) != nil { // it may have gone meanwhile
		return false, nil
	}
	if err := layers.Bring(ctx); err != nil {
		return true, err
	}
	m.Size, m.Used, m.Tar, m.Entries, m.Digest = old.Size, old.Used, old.Tar, old.Entries, tree.Digest
	return true, nil
}

// twin looks for an image that is made of exactly these layers and whose file is as long as it should be.
func twin(images string, layers []source.Layer) (dir string, m Manifest, ok bool) {
	entries, err := os.ReadDir(images)
	if err != nil {
		return "", Manifest{}, false
	}
	same := func(a, b source.Layer) bool { return a.Digest == b.Digest }
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") { // on its way out
			continue
		}
		dir := filepath.Join(images, e.Name())
		m, err := Load(dir)
		if err != nil || m.External != nil || !slices.EqualFunc(m.Layers, layers, same) {
			continue
		}
		if info, err := os.Stat(Rootfs(dir)); err == nil && info.Size() == ext4.DefaultSize {
			return dir, m, true
		}
	}
	return "", Manifest{}, false
}
