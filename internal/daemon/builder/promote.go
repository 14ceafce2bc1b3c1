package builder

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/atomicfile"
	"banger/internal/daemon/library"
	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/image"
	"banger/internal/image/source"
	"banger/internal/progress"
	"banger/internal/store"
)

// Promote makes a copy of a registered image in banger's store and gives it the image's name. VMs that use the registered
// one go on with it.
func (b *Builder) Promote(ctx context.Context, a library.Artifact, report progress.Func) (err error) {
	if err := Registered(a); err != nil {
		return err
	}
	claim, err := b.cfg.Images.Claim(ctx, a.Name)
	if err != nil {
		return err
	}
	staged, err := os.MkdirTemp(b.cfg.Paths.Staging(), "image-*")
	if err != nil {
		return err
	}
	m, err := promoted(ctx, a, staged, report)
	if err != nil {
		return errors.Join(err, b.cfg.Images.Discard(ctx, staged))
	}
	return b.cfg.Images.Take(ctx, library.Publication{
		Name: a.Name, Staged: staged, Artifact: library.Artifact{Digest: m.Digest, Name: a.Name}, Before: claim,
		Happened: store.Happened{Verb: "promoted", Message: "a copy of " + a.Rootfs},
	})
}

// Registered returns a fault when an image is banger's own, or its file is not what it was.
func Registered(a library.Artifact) error {
	if !a.Unmanaged {
		return fault.New(fault.Conflict, "image %s is banger's own already", a.Ref()).WithHint("banger image show %s", a.Ref())
	}
	if a.Problem != "" {
		return library.Unusable(store.Image, a)
	}
	return nil
}

// promoted makes the directory of the copy.
func promoted(ctx context.Context, a library.Artifact, staged string, report progress.Func) (image.Manifest, error) {
	m, err := image.Load(a.Dir)
	if err != nil {
		return m, err
	}
	used := library.Usage(a.Rootfs)
	digest, err := copyImage(ctx, a.Rootfs, image.Rootfs(staged), func(done uint64) {
		report.Report(progress.Update{Stage: stage, Message: "copying " + filepath.Base(a.Rootfs), Done: min(done, used), Total: used, Unit: "bytes"})
	})
	if err != nil {
		return m, err
	}
	if err := m.CheckExternal(); err != nil { // it changed while it was copied
		return m, err
	}
	m.Digest = source.Identity(source.ConfigDigest(m.Config, m.Arch), []string{digest, "kernel:" + m.Kernel})
	m.External, m.Used = nil, library.Usage(image.Rootfs(staged))
	m.Size = max(m.Size, ext4.DefaultSize)
	return m, atomicfile.WriteJSON(filepath.Join(staged, image.ManifestFile), m)
}

// copyBlock is how much is copied at a time; copyPiece is what is a hole or not, and is in the digest or not.
const (
	copyBlock = 1 << 20
	copyPiece = 4096
)

// copyImage copies a file to a new one, pads it with a hole to the size that all images have, and returns a digest of
// what is in it. Blocks of zeros become holes, so that the digest is the same whatever was a hole before.
func copyImage(ctx context.Context, from, to string, report func(done uint64)) (digest string, err error) {
	src, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return "", err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer dst.Close()
	c := &copier{src: src, dst: dst, hash: sha256.New(), report: report, block: make([]byte, copyBlock)}
	if err = c.run(ctx, info.Size()); err == nil {
		err = dst.Truncate(max(info.Size(), ext4.DefaultSize))
	}
	if err == nil {
		err = dst.Sync()
	}
	if ext4.NoSpace(err) {
		return "", ext4.Exhausted(err, to, library.Usage(from))
	}
	return "sha256:" + hex.EncodeToString(c.hash.Sum(nil)), err
}

type copier struct {
	src, dst *os.File
	hash     hash.Hash
	report   func(done uint64)
	block    []byte
	done     uint64
}

func (c *copier) run(ctx context.Context, size int64) error {
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		data, err := unix.Seek(int(c.src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil {
			data = at // a file system that does not know its holes
		}
		if data >= size { // it grows: whoever compares it with what it was will see that
			return nil
		}
		at = data - data%copyBlock
		if err := c.copy(at, min(copyBlock, size-at)); err != nil {
			return err
		}
		at += copyBlock
	}
	return nil
}

// copy copies one block, unless it is all zeros.
func (c *copier) copy(at, size int64) error {
	block := c.block[:size]
	if _, err := c.src.ReadAt(block, at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for from := 0; from < len(block); {
		to := from + run(block[from:])
		if part := block[from:to]; !isZero(part[:min(len(part), copyPiece)]) {
			if err := c.write(at+int64(from), part); err != nil {
				return err
			}
		}
		from = to
	}
	c.done += uint64(size)
	c.report(c.done)
	return nil
}

func (c *copier) write(at int64, part []byte) error {
	for i := 0; i < len(part); i += copyPiece { // each for itself: what is beside it may be a hole elsewhere
		var offset [8]byte
		binary.BigEndian.PutUint64(offset[:], uint64(at)+uint64(i))
		c.hash.Write(offset[:])
		c.hash.Write(part[i:min(i+copyPiece, len(part))])
	}
	_, err := c.dst.WriteAt(part, at)
	return err
}

// run is how much of the beginning of p is pieces of one kind: zeros, or not.
func run(p []byte) int {
	first := isZero(p[:min(copyPiece, len(p))])
	for i := copyPiece; i < len(p); i += copyPiece {
		if isZero(p[i:min(i+copyPiece, len(p))]) != first {
			return i
		}
	}
	return len(p)
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
