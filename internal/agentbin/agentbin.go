// Package agentbin carries the guest agent inside the banger binary.
//
// The agent is built before banger and put into dist (see the Makefile). A tree in which that did not happen still
// builds; Binary then says what to do.
package agentbin

import (
	"embed"
	"errors"
	"io/fs"
	"os"

	"banger/internal/fault"
)

// EnvOverride names a file that is used instead of the embedded agent.
const EnvOverride = "BANGER_AGENT"

// name of the agent in dist.
const name = "dist/banger-agent"

// The hidden .keep makes the pattern match before the agent was ever built.
//
//go:embed all:dist
var dist embed.FS

// Binary returns the agent for guests of the host's architecture.
func Binary() ([]byte, error) {
	if path := os.Getenv(EnvOverride); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "guest agent of %s", EnvOverride)
		}
		return data, nil
	}
	data, err := dist.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "this banger was built without its guest agent").WithHint("make build")
	}
	return data, err
}
