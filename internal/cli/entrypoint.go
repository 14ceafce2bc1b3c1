package cli

import (
	"errors"
	"slices"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// guestCommand is what the user wants to run in a new VM.
type guestCommand struct {
	args       []string // behind "--"
	entrypoint string   // that takes the place of the image's; "" for none
	given      bool     // there is one
}

// argv is the command line in a guest of an image with that configuration, as container tools make it up. Empty means a
// login shell.
func (g guestCommand) argv(image *bangerv1.ImageConfig) []string {
	entrypoint, cmd := image.GetEntrypoint(), image.GetCmd()
	if g.given { // the image's command was made for the image's entrypoint
		entrypoint, cmd = nil, nil
		if g.entrypoint != "" {
			entrypoint = []string{g.entrypoint}
		}
	}
	if len(g.args) > 0 {
		cmd = g.args
	}
	return slices.Concat(entrypoint, cmd)
}

// notFoundInGuest reports whether a session did not begin because the guest has no such program.
func notFoundInGuest(err error) bool {
	exit, ok := errors.AsType[*exitError](err)
	return ok && exit.code == notFoundCode
}

// nothingToRun is the failure to open a shell in a guest that has none.
func nothingToRun(image string) error {
	return &exitError{notFoundCode, fault.New(fault.NotFound, "image %s has neither a command of its own nor a shell", image).
		WithHint("banger vm run --image %s -- /path/of/a/program", image)}
}
