package cli

import (
	"github.com/spf13/cobra"
)

// Version is what there is to say about this build.
type Version struct {
	Version    string `json:"version"`
	Build      string `json:"build"` // tells two builds of one version apart
	Go         string `json:"go"`
	OS         string `json:"os"`
	Arch       string `json:"arch"`
	Generation int    `json:"generation"` // of the wire to the daemon
}

func newVersion(d *Deps) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Long: "Print the version of banger. This needs no daemon.",
		Example: "  banger version\n  banger version --format json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := d.Version
			if d.Term.JSON() {
				return d.Term.WriteJSON(v)
			}
			return d.Term.Answer("banger %s (%s, %s/%s)", v.Version, v.Go, v.OS, v.Arch)
		},
	}
}
