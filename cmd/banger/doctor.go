package main

import (
	"context"
	"net/url"

	"banger/internal/config"
	"banger/internal/debarchive"
	"banger/internal/fault"
	"banger/internal/image/debian"
	"banger/internal/paths"
	"banger/internal/preflight"
	"banger/internal/program"
)

// doctor checks the host for what this program's parts need.
func doctor(ctx context.Context, h program.Host) []preflight.Result {
	driver := drivers(h)[h.Settings.VMM.Driver]
	if driver == nil {
		driver = drivers(h)[config.Default().VMM.Driver]
	}
	return preflight.Run(ctx, preflight.Env{
		Paths: h.Paths, Driver: driver, BuildHost: debian.CheckHost,
		Mirror: func() (string, error) { return mirror(h.Settings.Mirror.Debian, h.Paths) },
	})
}

// mirror says where packages would come from: what is configured, else what the host's apt uses.
func mirror(configured string, p paths.Paths) (string, error) {
	if configured != "" {
		return redacted(configured) + " (configured)", nil
	}
	for _, s := range debarchive.HostSources("/") {
		return redacted(s.URI) + " and what else the host's apt configuration names", nil
	}
	return "", fault.New(fault.Unavailable, "the host's apt configuration names no archive, and mirror.debian is not set").
		WithHint("${EDITOR:-vi} %s", p.ConfigFile())
}

// redacted hides a password in a URL.
func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "a URL that cannot be read"
	}
	return u.Redacted()
}
