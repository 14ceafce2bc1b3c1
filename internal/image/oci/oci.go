// Package oci brings images in and out as the world outside keeps them: in registries, in OCI image layouts (directories
// and tar files) and in what `docker save` writes.
//
// An image is a manifest, which names a configuration and layers by their digests. Nothing is taken on trust except,
// where a tag is asked for, the digest that it stands for: every document is compared with the digest that led to it,
// and every layer while it streams (package blob). Layers go into the blob store, each once for all images, several at a
// time, and the lowest is being unpacked (package layer) before the others have come.
//
// Registries are spoken to by the rules of the OCI distribution specification, with names, credentials and tokens handled
// by google/go-containerregistry. A session's transport is, from the outside in: the tokens, what tries again (retrier),
// what notices that nothing comes any more (staller), net/http.
package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/layer"
	"banger/internal/image/source"
)

// Kinds of sources: what stands before the colon of an image's origin.
const (
	KindRegistry      = "oci"            // location: a reference as docker users know it
	KindLayout        = "oci-layout"     // PATH[:TAG|@DIGEST] of a directory, or of a tar file of one
	KindArchive       = "oci-archive"    // the same
	KindDockerArchive = "docker-archive" // PATH[:REFERENCE] of a file that docker save has written, also compressed
)

// Options are what the sources of this package share. Only Blobs is required.
type Options struct {
	Blobs    *blob.Store
	Limits   layer.Limits    // of unpacking
	Keychain authn.Keychain  // nil: what docker and podman know (Keychain)
	Insecure []string        // hosts ("name" or "name:port") besides this one that may be spoken to by plain HTTP
	Parallel int             // layers that are downloaded at a time; 0: 4
	Stall    time.Duration   // after how long without a byte a registry counts as stalled; 0: 30 s
	Backoff  []time.Duration // how long to wait before trying again, one for each time; nil: about 8 s altogether

	certs []string // directories of certificates; nil: certDirs
}

// withDefaults fills in what is not set.
func (o Options) withDefaults() Options {
	if o.Keychain == nil {
		o.Keychain = Keychain{}
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Stall <= 0 {
		o.Stall = 30 * time.Second
	}
	if o.Backoff == nil {
		o.Backoff = []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}
	}
	if o.certs == nil {
		o.certs = certDirs()
	}
	return o
}

// Sources returns a source for every kind of this package.
func Sources(opt Options) map[string]source.Source {
	layout := NewLayout(opt)
	return map[string]source.Source{
		KindRegistry: NewRegistry(opt), KindLayout: layout, KindArchive: layout, KindDockerArchive: NewDockerArchive(opt),
	}
}

// scratchName is the directory in a request's staging directory that unpacking works in. It is gone when the stream is
// closed.
const scratchName = ".oci-scratch"

// removeScratch is the Remove of all sources here.
func removeScratch(staging string) error {
	return os.RemoveAll(filepath.Join(staging, scratchName))
}

// identity is the digest of an image's content: of its configuration and the blobs of its layers, all of which are
// verified by the time that the stream ends.
func identity(config string, layers []source.Layer) string {
	content := struct {
		Config string   `json:"config"`
		Layers []string `json:"layers"`
	}{Config: config, Layers: make([]string, len(layers))}
	for i, l := range layers {
		content.Layers[i] = l.Digest
	}
	data, err := json.Marshal(content)
	if err != nil {
		panic(err) // strings only
	}
	return digestOf(data)
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// cause returns why ctx has ended, or err when it has not.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// invalid is a fault about what somebody else has made.
func invalid(format string, args ...any) error { return fault.New(fault.Invalid, format, args...) }
