package dockerfile

import "banger/internal/image/source"

// Resolved is a stage whose variables are expanded.
type Resolved struct {
	Steps    []Step
	Config   source.Config // of the stage's image
	Warnings []Warning
	Total    int // steps of the stage with those of triggers, and one for an image that FROM names

	scope *vars // at its end
}

// Step is an instruction that can change files.
type Step struct {
	Line    int
	Text    string // the instruction as in the file, on one line; for messages
	Title   string // "RUN make": the same with values in the place of variables; for progress
	Trigger bool   // it is an ONBUILD of the image below

	User    string // that USER has named so far; may be empty
	Workdir string // absolute

	// Exactly one of these is set.
	Run  *Run
	Copy *Copy
	Make bool // WORKDIR: make the directory Workdir, of User
}

// Run is a command.
type Run struct {
	Argv   []string
	Env    []string // NAME=VALUE: ENV and the ARGs so far
	Proxy  []string // the same for proxies that were passed as build arguments: these do not count for the cache
	Script *Script  // file that Argv runs, or nil
}

// Script is a heredoc that begins with #!.
type Script struct {
	Path string // absolute
	Data []byte
}

// Copy is COPY or ADD.
type Copy struct {
	Add      bool
	Stage    *Stage // to copy from; nil: Image or the build context
	Image    string // reference; empty: the build context
	Sources  []string
	Contents []Content
	Dest     string // absolute; a slash at its end means a directory
	Chown    string // USER[:GROUP], names or numbers; may be empty
	Chmod    *Chmod // may be nil
	Exclude  []string
	Parents  bool
	Unpack   *bool  // of ADD: nil: local archives are unpacked, downloaded ones are not
	Checksum string // of ADD: "sha256:..." of the one URL in Sources
}

// Content is a file whose text is in the Dockerfile.
type Content struct {
	Name string
	Data []byte
}
