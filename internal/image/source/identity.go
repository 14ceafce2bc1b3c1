package source

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Identity is the digest of an image whose configuration and layers have these digests, lowest layer first. Every source
// that sets Tree.Digest uses it, so that the same content has the same digest whichever way it came.
func Identity(config string, layers []string) string {
	return digest(struct {
		Config string   `json:"config"`
		Layers []string `json:"layers"`
	}{config, append([]string{}, layers...)})
}

// ConfigDigest is the digest of a configuration that has no blob of its own: of a build, a bundle, a registered file.
func ConfigDigest(c Config, arch string) string {
	return digest(struct {
		Arch   string `json:"arch"`
		Config Config `json:"config"`
	}{arch, c})
}

// digest is that of v as JSON: struct fields are in their order there and map keys are sorted, so equal values have
// equal text.
func digest(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic("source: " + err.Error()) // strings and lists of strings: cannot happen
	}
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}
