package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/fault"
	"banger/internal/image/blob"
)

// Limits of what is read into memory. Docker takes manifests of up to 4 MiB.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	maxLayers   = 1000
	maxLayer    = 1 << 40 // bytes; a larger one would be a lie
)

// acceptedManifests is what a registry may answer with.
var acceptedManifests = []string{
	string(types.OCIManifestSchema1), string(types.OCIImageIndex),
	string(types.DockerManifestSchema2), string(types.DockerManifestList),
}

// document is a manifest or an index of manifests: exactly one of both is not nil.
type document struct {
	manifest *v1.Manifest
	index    *v1.IndexManifest
}

// parseDocument reads a manifest or an index, and tells them apart by what they hold: registries are not always right
// about media types.
func parseDocument(data []byte) (document, error) {
	if len(data) > maxManifest {
		return document{}, invalid("the manifest has more than %d bytes", maxManifest)
	}
	var shape struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		ArtifactType  string          `json:"artifactType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &shape); err != nil {
		return document{}, invalid("the manifest is no JSON object: %v", err)
	}
	switch {
	case shape.SchemaVersion == 1 || shape.FSLayers != nil || strings.Contains(shape.MediaType, "distribution.manifest.v1+"):
		return document{}, invalid("the manifest is of docker's schema 1, which nothing can verify: the image has to be pushed anew")
	case shape.Manifests != nil && (shape.Layers != nil || shape.Config != nil):
		return document{}, invalid("the manifest is an index and an image at once")
	case shape.MediaType != "" && !slices.Contains(acceptedManifests, shape.MediaType):
		return document{}, invalid("unknown media type %q of a manifest", short(shape.MediaType))
	case shape.Manifests != nil:
		return parseIndex(data)
	case shape.Config != nil:
		return parseManifest(data, shape.ArtifactType)
	case shape.ArtifactType != "":
		return document{}, notAnImage(shape.ArtifactType)
	}
	return document{}, invalid("the manifest names neither a configuration nor other manifests")
}

func parseIndex(data []byte) (document, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return document{}, invalid("the index of manifests is damaged: %v", err)
	}
	return document{index: index}, nil
}

func parseManifest(data []byte, artifact string) (document, error) {
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return document{}, invalid("the manifest is damaged: %v", err)
	}
	if err := checkConfigType(m.Config.MediaType, artifact); err != nil {
		return document{}, err
	}
	if err := checkDescriptor(m.Config, "the configuration", maxConfig); err != nil {
		return document{}, err
	}
	if len(m.Layers) > maxLayers {
		return document{}, invalid("the manifest names %d layers, more than %d", len(m.Layers), maxLayers)
	}
	for i, l := range m.Layers {
		what := fmt.Sprintf("layer %d of %d", i+1, len(m.Layers))
		if err := checkDescriptor(l, what, maxLayer); err != nil {
			return document{}, err
		}
		if err := checkLayerType(l, what); err != nil {
			return document{}, err
		}
	}
	return document{manifest: m}, nil
}

// checkConfigType tells images from all the other things that are kept in registries.
func checkConfigType(mediaType types.MediaType, artifact string) error {
	switch {
	case artifact != "" && artifact != string(types.OCIConfigJSON) && artifact != string(types.DockerConfigJSON):
		return notAnImage(artifact)
	case mediaType == types.OCIConfigJSON || mediaType == types.DockerConfigJSON:
		return nil
	case mediaType == "":
		return invalid("the manifest does not say what its configuration is")
	}
	return notAnImage(string(mediaType))
}

// artifacts are what people pull by mistake, by a word of their media types.
var artifacts = []struct{ word, what string }{
	{"helm", "a Helm chart"}, {"wasm", "a WebAssembly module"}, {"docker.plugin", "a docker plugin"},
	{"cosign", "a signature"}, {"in-toto", "an attestation"}, {"cyclonedx", "a bill of materials"}, {"spdx", "a bill of materials"},
	{"buildkit.cacheconfig", "a cache of BuildKit"}, {"flux", "a Flux artifact"}, {"vnd.ollama", "a language model"},
}

func notAnImage(mediaType string) error {
	for _, a := range artifacts {
		if strings.Contains(strings.ToLower(mediaType), a.word) {
			return invalid("it is %s and not an image (%s)", a.what, short(mediaType))
		}
	}
	return invalid("it is an artifact of type %q and not an image", short(mediaType))
}

// checkDescriptor refuses what cannot be true.
func checkDescriptor(d v1.Descriptor, what string, limit int64) error {
	if err := blob.CheckDigest(d.Digest.String()); err != nil {
		return fault.Context(err, "%s", what)
	}
	if d.Size < 0 || d.Size > limit {
		return invalid("%s (%s) has an impossible size: %d bytes", what, d.Digest, d.Size)
	}
	return nil
}

// layerTypes are the media types of layers that can be unpacked.
var layerTypes = []types.MediaType{
	types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd,
	types.DockerLayer, types.DockerUncompressedLayer, dockerZstdLayer,
}

// dockerZstdLayer is what docker's own media types would be with zstd; the library has no name for it.
const dockerZstdLayer types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"

func checkLayerType(d v1.Descriptor, what string) error {
	mediaType := string(d.MediaType)
	switch {
	case slices.Contains(layerTypes, d.MediaType):
		return nil
	case strings.Contains(mediaType, "nondistributable") || strings.Contains(mediaType, ".foreign."):
		return invalid("%s (%s) is not kept by registries (%s): that is a Windows image or one under a licence that forbids it", what, d.Digest, short(mediaType))
	case strings.Contains(mediaType, "encrypted"):
		return invalid("%s (%s) is encrypted (%s)", what, d.Digest, short(mediaType))
	}
	return invalid("%s (%s) has the unknown media type %q", what, d.Digest, short(mediaType))
}

// short cuts somebody else's words to what fits in a message, and leaves out what would move the terminal's cursor.
func short(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "..."
	}
	return text
}
