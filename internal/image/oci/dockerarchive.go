package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// DockerArchive is the source of images in files that `docker save` has written.
type DockerArchive struct{ opt Options }

// NewDockerArchive returns the source for such files.
func NewDockerArchive(opt Options) *DockerArchive { return &DockerArchive{opt: opt.withDefaults()} }

// Remove implements source.Source.
func (s *DockerArchive) Remove(_ context.Context, staging string) error {
	return removeScratch(staging)
}

// Fetch implements source.Source. Layers whose name does not tell their digest are read once for it here.
func (s *DockerArchive) Fetch(ctx context.Context, req source.Request) (source.Tree, error) {
	file, ref, digest, err := splitPath(req.Location)
	if err != nil {
		return source.Tree{}, err
	}
	if digest != "" {
		return source.Tree{}, invalid("images of a docker archive are named by their tags, not by digests")
	}
	req.Progress.Report(progress.Update{Stage: "image", Message: "reading " + file})
	from, err := openArchive(ctx, file, req.Staging, s.opt.Limits)
	if err != nil {
		return source.Tree{}, err
	}
	img, err := readDockerArchive(ctx, from, ref, req.Arch)
	if err != nil {
		from.close()
		return source.Tree{}, about(err, file)
	}
	tree, err := s.opt.tree(ctx, req, img, "reading", from.close)
	if err != nil {
		return source.Tree{}, about(err, file)
	}
	tree.Origin = KindDockerArchive + ":" + req.Location
	return tree, nil
}

// saved is one image of an archive's manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// parseSaved reads manifest.json and chooses the image of that reference, or the only one.
func parseSaved(data []byte, ref string) (saved, error) {
	var images []saved
	if err := json.Unmarshal(data, &images); err != nil {
		return saved{}, invalid("its manifest.json is damaged: %v", err)
	}
	var found, tags []string
	var out saved
	for _, img := range images {
		tags = append(tags, img.RepoTags...)
		if ref != "" && !slices.ContainsFunc(img.RepoTags, func(tag string) bool { return sameReference(tag, ref) }) {
			continue
		}
		found, out = append(found, img.Config), img
	}
	for i, tag := range tags {
		tags[i] = short(tag)
	}
	has := strings.Join(tags, ", ")
	switch {
	case len(images) == 0:
		return saved{}, invalid("there is no image in it")
	case len(found) == 0:
		return saved{}, fault.New(fault.NotFound, "there is no image %q in it; it has %s", short(ref), has)
	case len(found) > 1 && ref == "":
		return saved{}, invalid("there are several images in it, and one has to be chosen by a colon and its reference: %s", has)
	case out.Config == "":
		return saved{}, invalid("its manifest.json names no configuration")
	case len(out.Layers) > maxLayers:
		return saved{}, invalid("it has %d layers, more than %d", len(out.Layers), maxLayers)
	}
	return out, nil
}

// sameReference compares two references as docker does, which adds what is missing.
func sameReference(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := name.NewTag(a)
	y, errY := name.NewTag(b)
	return errX == nil && errY == nil && x.Name() == y.Name()
}

// readDockerArchive describes an image of an archive. Its layers are named by the configuration when they are not
// compressed, by their file names as other tools make these, or else by what they are.
func readDockerArchive(ctx context.Context, from *archive, ref, arch string) (found, error) {
	data, err := readFile(from, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return found{}, invalid("it is not what docker save writes: there is no manifest.json in it")
	}
	if err != nil {
		return found{}, err
	}
	img, err := parseSaved(data, ref)
	if err != nil {
		return found{}, err
	}
	data, err = readFile(from, img.Config, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return found{}, invalid("the configuration %s is missing", short(img.Config))
	}
	if err != nil {
		return found{}, err
	}
	conf, err := parseConfig(data)
	if err != nil {
		return found{}, err
	}
	if err := checkArch(conf.arch, arch); err != nil {
		return found{}, err
	}
	if len(conf.diffIDs) != len(img.Layers) {
		return found{}, invalid("it has %d layers, and its configuration names %d", len(img.Layers), len(conf.diffIDs))
	}
	out := found{config: conf, configDigest: digestOf(data), arch: arch}
	for i, file := range img.Layers {
		l, err := savedLayer(ctx, from, file, conf.diffIDs[i])
		if err != nil {
			return found{}, fault.Context(err, "%s", label(i, len(img.Layers)))
		}
		out.layers = append(out.layers, l)
	}
	return out, nil
}

// savedLayer describes one layer of an archive.
func savedLayer(ctx context.Context, from *archive, file, diffID string) (foundLayer, error) {
	r, size, err := from.open(file, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return foundLayer{}, invalid("%s is missing", short(file))
	}
	if err != nil {
		return foundLayer{}, err
	}
	defer r.Close()
	head := make([]byte, 6)
	n, _ := io.ReadFull(r, head)
	l := foundLayer{
		Layer: source.Layer{Size: size, MediaType: string(types.DockerLayer)},
		open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			r, _, err := from.open(file, offset)
			return r, err
		},
	}
	switch {
	case !isCompressed(head[:n]):
		l.MediaType, l.Digest, l.DiffID = string(types.DockerUncompressedLayer), diffID, diffID
	case head[0] == 0x28:
		l.MediaType = string(dockerZstdLayer)
	}
	if l.Digest == "" {
		if l.Digest = digestInName(file); l.Digest == "" {
			l.Digest, err = hashOf(ctx, from, file)
		}
	}
	if err == nil {
		err = blob.CheckDigest(l.Digest)
	}
	return l, err
}

// digestInName returns the digest that tools other than docker put into the names of compressed layers:
// "sha256:HEX.tar.gz", "HEX.tar.gz", "blobs/sha256/HEX". The HEX/layer.tar of docker is another thing.
func digestInName(file string) string {
	base := strings.TrimPrefix(path.Base(file), "sha256:")
	for _, suffix := range []string{".gz", ".zst", ".tar"} {
		base = strings.TrimSuffix(base, suffix)
	}
	if digest := "sha256:" + base; blob.CheckDigest(digest) == nil {
		return digest
	}
	return ""
}

func hashOf(ctx context.Context, from *archive, file string) (string, error) {
	r, _, err := from.open(file, 0)
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, &contextReader{ctx, r}); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
