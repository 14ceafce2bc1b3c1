package oci

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// Names in an OCI image layout.
const (
	layoutFile    = "oci-layout"
	layoutVersion = `{"imageLayoutVersion":"1.0.0"}`
	indexFile     = "index.json"
	blobsDir      = "blobs/sha256/"

	refName        = "org.opencontainers.image.ref.name" // annotation: the tag
	containerdName = "io.containerd.image.name"          // annotation: the whole reference
)

// Layout is the source of images in OCI image layouts.
type Layout struct{ opt Options }

// NewLayout returns the source for directories and tar files that are OCI image layouts.
func NewLayout(opt Options) *Layout { return &Layout{opt: opt.withDefaults()} }

// Remove implements source.Source.
func (l *Layout) Remove(_ context.Context, staging string) error { return removeScratch(staging) }

// Fetch implements source.Source.
func (l *Layout) Fetch(ctx context.Context, req source.Request) (source.Tree, error) {
	name, tag, digest, err := splitPath(req.Location)
	if err != nil {
		return source.Tree{}, err
	}
	req.Progress.Report(progress.Update{Stage: "image", Message: "reading " + name})
	info, err := os.Stat(name)
	if err != nil {
		return source.Tree{}, fileError(err, name)
	}
	var from files = directory(name)
	kind := KindLayout
	if !info.IsDir() {
		kind = KindArchive
		if from, err = openArchive(ctx, name, req.Staging, l.opt.Limits); err != nil {
			return source.Tree{}, err
		}
	}
	tree, err := l.fetch(ctx, layout{from}, tag, digest, req)
	if err != nil {
		from.close()
		return source.Tree{}, about(err, name)
	}
	tree.Origin = kind + ":" + req.Location
	return tree, nil
}

func (l *Layout) fetch(ctx context.Context, in layout, tag, digest string, req source.Request) (source.Tree, error) {
	index, err := in.index()
	if err != nil {
		return source.Tree{}, err
	}
	d, err := pick(index, tag, digest, req.Arch)
	if err != nil {
		return source.Tree{}, err
	}
	data, err := verified(d, "the manifest")(in.manifest(ctx, d))
	if err != nil {
		return source.Tree{}, err
	}
	img, err := resolve(ctx, in, data, req.Arch)
	if err != nil {
		return source.Tree{}, err
	}
	tree, err := l.opt.tree(ctx, req, img, "reading", in.close)
	tree.Upstream = d.Digest.String()
	return tree, err
}

// layout is the place of an image in a layout.
type layout struct{ files }

// index reads what the layout holds.
func (l layout) index() (*v1.IndexManifest, error) {
	data, err := readFile(l, layoutFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, invalid("it is no OCI image layout: there is no file %s in it", layoutFile)
	}
	if err != nil {
		return nil, err
	}
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(data, &version); err != nil || !strings.HasPrefix(version.Version, "1.") {
		return nil, invalid("it is an OCI image layout of the unknown version %q", short(version.Version))
	}
	data, err = readFile(l, indexFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, invalid("it is no OCI image layout: there is no file %s in it", indexFile)
	}
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(data)
	if err == nil && doc.index == nil {
		err = invalid("it is no index of manifests")
	}
	return doc.index, fault.Context(err, "%s", indexFile)
}

// pick returns the entry of a layout's index that a tag or digest names, or the only one there is.
func pick(index *v1.IndexManifest, tag, digest, arch string) (v1.Descriptor, error) {
	fits := func(d v1.Descriptor) bool {
		switch {
		case digest != "":
			return d.Digest.String() == digest
		case tag != "":
			return d.Annotations[refName] == tag || d.Annotations[containerdName] == tag ||
				strings.HasSuffix(d.Annotations[refName], ":"+tag) && !strings.Contains(tag, "/")
		}
		return !isAttestation(d)
	}
	var found []v1.Descriptor
	var tags []string
	for _, d := range index.Manifests {
		if name := d.Annotations[refName]; name != "" {
			tags = append(tags, short(name))
		}
		if fits(d) && !slices.ContainsFunc(found, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
			found = append(found, d)
		}
	}
	has := "it has " + strings.Join(tags, ", ")
	if len(tags) == 0 {
		has = "it has no tags"
	}
	switch {
	case len(found) == 1:
		return found[0], checkDescriptor(found[0], "the manifest", maxManifest)
	case len(found) == 0 && tag+digest != "":
		return v1.Descriptor{}, fault.New(fault.NotFound, "the layout has no image %q; %s", short(tag+digest), has)
	case len(found) == 0:
		return v1.Descriptor{}, fault.New(fault.NotFound, "the layout has no image")
	case tag == "" && len(tags) > 0:
		return v1.Descriptor{}, invalid("the layout has several images, and one has to be chosen by a colon and its tag: %s", has)
	}
	return choose(&v1.IndexManifest{Manifests: found}, arch)
}

// manifest implements place.
func (l layout) manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	data, err := readFile(l, blobsDir+d.Digest.Hex, maxManifest)
	return data, l.explain(err, d)
}

// config implements place.
func (l layout) config(_ context.Context, d v1.Descriptor) ([]byte, error) {
	data, err := readFile(l, blobsDir+d.Digest.Hex, maxConfig)
	return data, l.explain(err, d)
}

// layer implements place.
func (l layout) layer(d v1.Descriptor) blob.Opener {
	return func(_ context.Context, offset int64) (io.ReadCloser, error) {
		r, _, err := l.open(blobsDir+d.Digest.Hex, offset)
		return r, l.explain(err, d)
	}
}

func (l layout) explain(err error, d v1.Descriptor) error {
	if errors.Is(err, fs.ErrNotExist) {
		return invalid("blob %s is missing in the layout", d.Digest)
	}
	return err
}
