package oci

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/ext4"
)

const (
	spaceMargin = 64 << 20 // bytes that are left over on every file system
	expansion   = 2        // at least: what compressed layers become when they are unpacked
)

// checkSpace refuses an image early that cannot have room: the layers that are missing in the store, and what comes of
// all of them where the image is made. It can be wrong about the second, which a manifest does not tell.
func (o Options) checkSpace(staging string, img found) error {
	missing, unpacked := uint64(0), uint64(0)
	seen := map[string]bool{}
	for _, l := range img.layers {
		size := uint64(l.Size)
		unpacked += size
		if compressed(l.MediaType) {
			unpacked += (expansion - 1) * size
		}
		if have, ok := o.Blobs.Stat(l.Digest); (!ok || have != l.Size) && !seen[l.Digest] {
			missing += size - min(size, uint64(o.Blobs.Partial(l.Digest)))
			seen[l.Digest] = true
		}
	}
	store := existing(o.Blobs.Dir())
	if sameDevice(store, staging) {
		return checkFree(o.Blobs.Dir(), missing+unpacked+spaceMargin)
	}
	if missing > 0 {
		if err := checkFree(o.Blobs.Dir(), missing+spaceMargin); err != nil {
			return err
		}
	}
	return checkFree(staging, unpacked+spaceMargin)
}

func compressed(mediaType string) bool {
	return len(mediaType) >= 4 && (mediaType[len(mediaType)-4:] == "gzip" || mediaType[len(mediaType)-4:] == "zstd")
}

// checkFree says when less than needed can be written where dir is or will be.
func checkFree(dir string, needed uint64) error {
	free, err := ext4.Free(dir)
	if err != nil || free >= needed {
		return nil // what cannot be asked shows itself when it is written to
	}
	return ext4.Exhausted(syscall.ENOSPC, filepath.Join(dir, "the image"), needed)
}

// existing returns the nearest directory on the way up that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func sameDevice(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Dev == y.Dev
}
