package oci

import (
	"context"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
)

// place is where the parts of one image are.
type place interface {
	// manifest and config return documents that are no longer than d says; the caller verifies them.
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	config(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// layer returns what opens a blob.
	layer(d v1.Descriptor) blob.Opener
}

// found is an image as its place describes it, before any layer was read.
type found struct {
	config       imageConfig
	configDigest string
	arch         string
	layers       []foundLayer
}

// foundLayer is one layer and where it comes from.
type foundLayer struct {
	source.Layer
	open blob.Opener
}

// maxIndexes is how deep indexes may be nested.
const maxIndexes = 3

// resolve follows a document, which the caller has verified, to the image for arch.
func resolve(ctx context.Context, p place, data []byte, arch string) (found, error) {
	for range maxIndexes {
		doc, err := parseDocument(data)
		if err != nil {
			return found{}, err
		}
		if doc.manifest != nil {
			return describe(ctx, p, doc.manifest, arch)
		}
		d, err := choose(doc.index, arch)
		if err != nil {
			return found{}, err
		}
		if data, err = verified(d, "the manifest")(p.manifest(ctx, d)); err != nil {
			return found{}, err
		}
	}
	return found{}, invalid("indexes of manifests are nested too deeply")
}

// describe reads the configuration that a manifest names.
func describe(ctx context.Context, p place, m *v1.Manifest, arch string) (found, error) {
	data, err := verified(m.Config, "the configuration")(p.config(ctx, m.Config))
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
	out := found{config: conf, configDigest: m.Config.Digest.String(), arch: arch}
	for _, d := range m.Layers {
		out.layers = append(out.layers, foundLayer{
			Layer: source.Layer{MediaType: string(d.MediaType), Digest: d.Digest.String(), Size: d.Size}, open: p.layer(d),
		})
	}
	return out, nil
}

// checkArch compares what a configuration says with what is needed. One that says nothing is believed to fit.
func checkArch(is, needed string) error {
	if is != "" && is != needed {
		return wrongPlatform([]string{"linux/" + short(is)}, needed)
	}
	return nil
}

// verified returns a function that compares a document with the descriptor that led to it.
func verified(d v1.Descriptor, what string) func([]byte, error) ([]byte, error) {
	return func(data []byte, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		if got := digestOf(data); got != d.Digest.String() {
			return nil, invalid("%s %s is damaged: its %d bytes have the digest %s", what, d.Digest, len(data), got)
		}
		if int64(len(data)) != d.Size {
			return nil, invalid("%s %s has %d bytes, and %d were announced", what, d.Digest, len(data), d.Size)
		}
		return data, nil
	}
}

// readAll reads a document of at most limit bytes.
func readAll(r io.Reader, limit int64, what string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, invalid("%s is longer than %d bytes", what, limit)
	}
	return data, err
}

// label names layer i of n in messages.
func label(i, n int) string { return fmt.Sprintf("layer %d of %d", i+1, n) }

// about adds which image a failure is about.
func about(err error, what string) error { return fault.Context(err, "%s", what) }
