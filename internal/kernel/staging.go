package kernel

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"banger/internal/atomicfile"
	"banger/internal/ext4"
	"banger/internal/fault"
)

// stageName is what every progress update carries.
const stageName = "kernel"

// spaceNeeded is what a Debian cloud kernel takes while it is unpacked.
const spaceNeeded = 400 << 20

// stage makes a new directory in staging, has do fill it and writes the manifest that do returns. work is a directory
// inside of it for what is needed only meanwhile. On failure nothing is left. All of it is in that one directory: what
// a killed process leaves is removed with it.
func stage(ctx context.Context, staging, name string, do func(dir, work string) (Manifest, error)) (stagedDir string, m Manifest, err error) {
	dir, err := os.MkdirTemp(staging, "kernel-*")
	if err != nil {
		return "", Manifest{}, explain(err, staging)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	work := filepath.Join(dir, "work")
	if err = os.Mkdir(work, 0o700); err == nil {
		m, err = do(dir, work)
	}
	if err == nil {
		err = os.RemoveAll(work)
	}
	if err == nil {
		err = atomicfile.WriteJSON(filepath.Join(dir, ManifestFile), m)
	}
	if ctx.Err() != nil {
		err = cancelled(ctx)
	}
	if err != nil {
		return "", Manifest{}, fault.Context(explain(err, staging), "kernel %s", name)
	}
	return dir, m, nil
}

// cancelled returns why ctx ended. A cause without a class of its own gets that of the context.
func cancelled(ctx context.Context) error {
	cause := context.Cause(ctx)
	if fault.Is(cause, fault.Internal) {
		return fault.Wrap(fault.ClassOf(ctx.Err()), cause, "stopped")
	}
	return cause
}

// explain gives a full disk its class.
func explain(err error, staging string) error {
	if ext4.NoSpace(err) && !fault.Is(err, fault.Exhausted) {
		return ext4.Exhausted(err, filepath.Join(staging, "the kernel"), spaceNeeded)
	}
	return err
}
