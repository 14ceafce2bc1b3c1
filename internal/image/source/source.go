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
//   - Fetch returns soon. What takes long happens while the caller reads Tree.Tar, and its failures come out of Read as
//     a fault, in place of the end of the stream. A stream that ends with io.EOF is complete.
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
	Progress progress.Func
}

// Tree is a root file system on its way.
type Tree struct {
	Tar    io.ReadCloser // flat: no whiteouts, no path twice
	Origin string        // where it comes from, for people; without credentials
	Config Config
}

// Config is what an image says about how to run things in it.
type Config struct {
	User    string   `json:"user"`              // of commands that name none
	Workdir string   `json:"workdir,omitempty"` // empty: the user's home
	Shell   string   `json:"shell"`             // the interactive login shell
	Env     []string `json:"env,omitempty"`     // KEY=VALUE
}
