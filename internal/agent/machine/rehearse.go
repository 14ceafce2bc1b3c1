package machine

import (
	"context"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/agent"
)

var _ agent.Rehearser = (*Machine)(nil)

// firstFiles are what nearly every first command of most images reads. One that is not there is left out.
var firstFiles = []string{
	"/bin/sh", "/bin/bash", "/bin/true", "/usr/bin/env", "/bin/cat", "/bin/ls", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
	"/etc/ld.so.cache", "/etc/profile", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6",
	"/lib/x86_64-linux-gnu/libtinfo.so.6", "/lib/x86_64-linux-gnu/libselinux.so.1", "/lib/x86_64-linux-gnu/libpcre2-8.so.0",
	"/lib64/libc.so.6", "/lib64/libtinfo.so.6", "/lib/ld-musl-x86_64.so.1",
}

// firstDirs are where a first command is looked for, and where it runs.
var firstDirs = append(strings.Split(agent.DefaultPath, ":"), "/root", "/home")

const (
	maxFirst = 4 << 20 // how much of a file is read
	maxNames = 4096    // how many entries of a directory
)

// Rehearse implements agent.Rehearser. It reads the image's programs and runs none: nothing of the image has run in a
// guest that many are made from.
func (m *Machine) Rehearse(ctx context.Context) error {
	for _, path := range firstFiles {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
				_, _ = io.Copy(io.Discard, io.LimitReader(f, maxFirst))
			}
			_ = f.Close()
		}
	}
	for _, dir := range firstDirs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
			_, _ = f.Readdirnames(maxNames)
			_ = f.Close()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.withoutLinkLocal()
	return m.syncData()
}
