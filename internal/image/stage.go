package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image/bundle"
	"banger/internal/image/source"
	"banger/internal/kernel"
)

// Identity is the digest of an image that banger itself has put together: built, or layered on another. The layers'
// digests are verified by whoever calls this.
func Identity(c source.Config, arch string, layers []source.Layer) string {
	digests := make([]string, len(layers))
	for i, l := range layers {
		digests[i] = l.Digest
	}
	return source.Identity(source.ConfigDigest(c, arch), digests)
}

// FromTree makes an image directory of a tree: a new directory below staging, for the caller to publish by rename or to
// give to RemoveStaged, and what it holds. m is what the manifest begins with (Name, Source, Arch, Kernel); what the tree
// says goes over it. The tree's stream is read to its end and closed. On failure nothing is left.
//
// The image is identified by Tree.Digest; without one by the stream, the configuration and the kernel.
func FromTree(ctx context.Context, staging string, m Manifest, tree source.Tree) (dir string, _ Manifest, err error) {
	dir, err = os.MkdirTemp(staging, "image-*")
	if err != nil {
		tree.Tar.Close()
		return "", Manifest{}, explain(err, staging)
	}
	if err = m.make(ctx, tree, dir, ""); err == nil {
		err = m.write(dir)
	}
	if err != nil {
		_ = os.RemoveAll(dir) // what is left is removed with the next daemon's staging
		return "", Manifest{}, explain(err, staging)
	}
	return dir, m, nil
}

// FromLayers is FromTree for layers that are in the blob store and whose flat tar stream is given: what a build has made.
func FromLayers(ctx context.Context, staging string, m Manifest, tree source.Tree) (dir string, _ Manifest, err error) {
	if len(tree.Layers) == 0 {
		tree.Tar.Close()
		return "", Manifest{}, fault.New(fault.Internal, "image %s has no layers", m.Name)
	}
	if tree.Arch == "" {
		tree.Arch = m.Arch
	}
	tree.Digest = Identity(tree.Config, tree.Arch, tree.Layers)
	return FromTree(ctx, staging, m, tree)
}

// make makes the root file system of tree in dir, or shares that of an image below images (if that is not empty), and
// enters in m what came of it. It closes the stream.
func (m *Manifest) make(ctx context.Context, tree source.Tree, dir, images string) error {
	m.Origin, m.Config, m.Layers, m.Upstream = tree.Origin, tree.Config, tree.Layers, tree.Upstream
	if tree.Arch != "" {
		m.Arch = tree.Arch
	}
	if tree.Kernel != "" {
		m.Kernel = tree.Kernel
	}
	if shared, err := m.share(ctx, tree, dir, images); shared {
		return errors.Join(err, tree.Tar.Close())
	}
	res, err := ext4.FromTar(ctx, tree.Tar, Rootfs(dir), ext4.Options{
		Size: ext4.DefaultSize, Label: "banger-image", Identity: tree.Digest, Entries: tree.Entries,
	})
	if closeErr := tree.Tar.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	m.Size, m.Used, m.Tar, m.Entries = ext4.DefaultSize, res.Used, res.Read, res.Entries
	if m.Digest = tree.Digest; m.Digest == "" {
		m.Digest = source.Identity(source.ConfigDigest(m.Config, m.Arch), []string{res.Digest, "kernel:" + m.Kernel})
	}
	return nil
}

// write writes the manifest: the directory is complete with it.
func (m *Manifest) write(dir string) error {
	m.Layout, m.Created = Layout, time.Now().UTC().Truncate(time.Second)
	return atomicfile.WriteJSON(filepath.Join(dir, ManifestFile), m)
}

// StagedKernel returns the directory of the kernel that a bundle brought, below a staged image directory. It is to be
// moved to the kernel store, under the digest in its manifest, before the image is published: Manifest.Kernel names it.
func StagedKernel(dir string) (kernelDir string, ok bool) {
	kernelDir = filepath.Join(dir, bundle.KernelDir)
	_, err := os.Stat(filepath.Join(kernelDir, kernel.ManifestFile))
	return kernelDir, err == nil
}
