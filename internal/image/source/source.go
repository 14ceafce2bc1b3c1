// Package source is the seam between images and where they come from.
package source

import (
	"context"
	"io"

	"banger/internal/progress"
)

// Source makes a root file system out of something outside of banger: a distribution's archive, a registry, a file.
//
// The contract of an implementation:
//   - Fetch returns when it knows what the tree is, which may be after a download. What else takes long happens while the
//     caller reads Tree.Tar, and its failures come out of Read as a fault, in place of the end of the stream. A stream
//     that ends with io.EOF is complete.
//   - Everything temporary is below Request.Staging, or is found again from there by Remove.
//   - Ending ctx or closing the stream ends every process that Fetch has started, and Close waits for that.
//   - Remove is idempotent, and works on what a killed banger has left.
type Source interface {
	Fetch(ctx context.Context, req Request) (Tree, error)
	// Remove takes back what Fetch left in staging or because of it, where os.RemoveAll is not enough: files
	// of other users, files elsewhere. The directory itself may stay.
	Remove(ctx context.Context, staging string) error
}

// Request says what to fetch.
type Request struct {
	Location string // in the source's own words: a suite, a reference, a URL
	Arch     string // as Go and Debian call it: amd64, arm64
	Staging  string // existing directory of this request alone
	Mirror   string // instead of the place that the source would choose; may be empty
	Keyring  string // file of keys to trust, instead of those the source would choose; may be empty

	// What a file from elsewhere is checked with (kind "bundle").
	Keys   []string // minisign public keys that are trusted for this request, besides the source's own
	SHA256 string   // hexadecimal digest of the file: makes a signature unnecessary; may be empty
	Size   int64    // of the file, where it is known; 0: not

	Progress progress.Func
}

// Tree is a root file system on its way.
type Tree struct {
	Tar    io.ReadCloser // flat: no whiteouts, no path twice
	Origin string        // where it comes from, for people; without credentials
	Config Config
	Arch   string // amd64, arm64; empty: the request's
	Kernel string // kernel reference that comes with it; empty: the entry's

	// Entries is the most that Tar may have, where the source does not itself count them; 0: as many as are possible.
	Entries int
	// Digest identifies the content by what the source has verified (the configuration and the blobs of the layers), so
	// that the stream need not be hashed; empty: the digest of the stream is taken.
	Digest string
	// Layers are the blobs that the tree is made of, lowest first, if there are any. They are in the blob store when Tar
	// has been read to its end.
	Layers []Layer
	// Upstream is the digest by which the place of origin knows it ("sha256:..." of a registry's manifest); may be empty.
	Upstream string
}

// Bringer is a Tree.Tar that can be asked for nothing but its layers, where somebody has their files already. It is not
// read then.
type Bringer interface {
	// Bring returns when every layer is in the blob store.
	Bring(ctx context.Context) error
}

// Layer is one layer of an image, as the OCI image specification describes it: a tar stream with whiteouts, usually
// compressed.
type Layer struct {
	MediaType string `json:"media_type"`
	Digest    string `json:"digest"`            // of the blob, "sha256:..."
	Size      int64  `json:"size"`              // of the blob, bytes
	DiffID    string `json:"diff_id,omitempty"` // of the uncompressed stream, as far as it was verified; empty: not known
}

// Config is what an image says about how to run things in it (OCI image specification, "config").
type Config struct {
	User    string   `json:"user"`              // of commands that name none
	Workdir string   `json:"workdir,omitempty"` // empty: the user's home
	Shell   string   `json:"shell"`             // the interactive login shell; empty: what the user's account says
	Env     []string `json:"env,omitempty"`     // KEY=VALUE

	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp"
	Labels       map[string]string `json:"labels,omitempty"`
	StopSignal   string            `json:"stop_signal,omitempty"`
	RunShell     []string          `json:"run_shell,omitempty"` // of a Dockerfile's SHELL
	OnBuild      []string          `json:"on_build,omitempty"`
}
