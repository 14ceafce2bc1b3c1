package image

import (
	"banger/internal/image/blob"
	"banger/internal/image/bundle"
	"banger/internal/image/debian"
	"banger/internal/image/layer"
	"banger/internal/image/oci"
	"banger/internal/image/source"
	"banger/internal/imageref"
	"banger/internal/signature"
)

// Kinds of sources.
const (
	KindDebian        = "debian"
	KindRegistry      = oci.KindRegistry
	KindLayout        = imageref.Layout
	KindLayoutArchive = imageref.LayoutArchive
	KindDockerArchive = imageref.DockerArchive
	KindBundle        = imageref.Bundle
)

// SourceOptions are what the sources need from the daemon.
type SourceOptions struct {
	Blobs    *blob.Store // of layers
	Limits   Limits
	Keys     []string // minisign public keys that bundles may be signed with (config trust.keys)
	Insecure []string // registries that may be spoken to by plain HTTP (config registry.insecure)
}

// Limits bound what an image may be; zero means the default of each.
type Limits struct {
	Size     uint64 // all files of an image, uncompressed
	Entries  int    // files, directories and links of an image
	Download uint64 // a bundle from the network
}

// Sources returns every source of this program by its kind, for PullOptions.Sources. A key that is none is a fault.
func Sources(opt SourceOptions) (map[string]source.Source, error) {
	keys, err := signature.ParseKeys(opt.Keys)
	if err != nil {
		return nil, err
	}
	all := oci.Sources(oci.Options{
		Blobs: opt.Blobs, Limits: layer.Limits{Size: int64(opt.Limits.Size), Entries: opt.Limits.Entries}, Insecure: opt.Insecure,
	})
	all[KindDebian] = debian.Source{}
	all[KindBundle] = bundle.Source{
		Keys: keys, Limits: bundle.Limits{
			Size: int64(opt.Limits.Size), Entries: opt.Limits.Entries, Download: int64(opt.Limits.Download),
		},
	}
	return all, nil
}
