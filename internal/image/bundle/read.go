package bundle

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
)

const (
	maxWindow  = 64 << 20 // of zstd; its own programs use up to 8 MiB without --ultra or --long
	maxPadding = 1 << 20  // zeros behind the end marker; tar pads to 10 KiB
)

// Reader reads a bundle from its start to its end. It is the stream of the root file system; io.EOF from Read means that
// all of the bundle is as its manifest says.
type Reader struct {
	ctx     context.Context //nolint:containedctx // of the whole reading: Close ends what Read is doing
	cancel  context.CancelFunc
	name    string // of the bundle, for messages
	zr      *zstd.Decoder
	tr      *tar.Reader
	m       Manifest
	kernel  func(context.Context, io.Reader) error // takes the kernel part; nil: it is only checked
	atEnd   func() error                           // the last check before io.EOF; may be nil
	onClose func() error

	mu     sync.Mutex // guards the fields below, and whatever reads from zr
	part   *part      // the root file system
	err    error      // why reading is over
	closed bool
}

// NewReader reads the manifest of the bundle that r delivers. name is what the bundle is called in messages. The caller
// closes what is below r, after Close.
func NewReader(ctx context.Context, name string, r io.Reader, limits Limits) (_ *Reader, err error) {
	ctx, cancel := context.WithCancel(ctx)
	b := &Reader{ctx: ctx, cancel: cancel, name: name}
	if b.zr, err = zstd.NewReader(&interruptible{ctx, r}, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderConcurrency(2)); err != nil {
		cancel()
		return nil, b.damaged(err)
	}
	b.tr = tar.NewReader(b.zr)
	if err := b.start(limits); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Manifest is what the bundle says of itself.
func (b *Reader) Manifest() Manifest { return b.m }

// start reads the manifest and goes to the root file system.
func (b *Reader) start(limits Limits) error {
	hdr, err := b.next(ManifestName)
	if err != nil {
		return err
	}
	if hdr.Size > maxManifest {
		return fault.New(fault.Invalid, "bundle %s: %s has %d bytes, more than %d", b.name, ManifestName, hdr.Size, maxManifest)
	}
	data, err := io.ReadAll(b.tr)
	if err != nil {
		return b.damaged(err)
	}
	if b.m, err = ParseManifest(data, limits); err != nil {
		return fault.Context(err, "bundle %s", b.name)
	}
	b.part, err = b.open(b.m.Parts[0])
	return err
}

// next goes to the next entry, which has to be the regular file of that name.
func (b *Reader) next(name string) (*tar.Header, error) {
	hdr, err := b.tr.Next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, fault.New(fault.Invalid, "bundle %s ends where %s should be", b.name, name)
	case err != nil:
		return nil, b.damaged(err)
	case hdr.Name != name:
		return nil, fault.New(fault.Invalid, "bundle %s has %.80q where %s should be", b.name, hdr.Name, name)
	case hdr.Typeflag != tar.TypeReg || sparse(hdr):
		return nil, fault.New(fault.Invalid, "bundle %s: %s is not a plain file", b.name, name)
	}
	return hdr, nil
}

// sparse reports whether the entry's data stands for more than there is of it.
func sparse(hdr *tar.Header) bool {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return hdr.Typeflag == tar.TypeGNUSparse
}

// open goes to the next entry, which has to be that part.
func (b *Reader) open(p Part) (*part, error) {
	hdr, err := b.next(p.Name)
	if err != nil {
		return nil, err
	}
	if hdr.Size != p.Size {
		return nil, fault.New(fault.Invalid, "bundle %s: %s has %d bytes, its manifest says %d", b.name, p.Name, hdr.Size, p.Size)
	}
	return &part{b: b, Part: p, hash: sha256.New()}, nil
}

// part is the stream of one part, which ends as the manifest says or with a fault.
type part struct {
	Part
	b    *Reader
	hash hash.Hash
}

func (p *part) Read(buf []byte) (int, error) {
	n, err := p.b.tr.Read(buf)
	p.hash.Write(buf[:n])
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, p.b.damaged(err)
	}
	if got := hex.EncodeToString(p.hash.Sum(nil)); got != p.SHA256 {
		return n, fault.New(fault.Invalid, "bundle %s: %s has sha256 %s, its manifest says %s", p.b.name, p.Name, got, p.SHA256)
	}
	return n, io.EOF
}

// Read reads the root file system, and at its end the rest of the bundle.
func (b *Reader) Read(buf []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.part.Read(buf)
	if errors.Is(err, io.EOF) {
		err = b.finish()
		if err == nil {
			err = io.EOF
		}
	}
	b.err = err
	return n, err
}

// finish reads what follows the root file system; mu is held.
func (b *Reader) finish() error {
	if len(b.m.Parts) > 1 {
		p, err := b.open(b.m.Parts[1])
		if err == nil && b.kernel != nil {
			err = b.kernel(b.ctx, p)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, p) // what the taker has left: the digest is that of the whole
		}
		if err != nil {
			return fault.Context(err, "kernel")
		}
	}
	hdr, err := b.tr.Next()
	switch {
	case err == nil:
		return fault.New(fault.Invalid, "bundle %s holds %.80q, which its manifest does not list", b.name, hdr.Name)
	case !errors.Is(err, io.EOF):
		return b.damaged(err)
	}
	if err := b.padding(); err != nil || b.atEnd == nil {
		return err
	}
	return b.atEnd()
}

// padding reads the rest of the stream, which is zeros.
func (b *Reader) padding() error {
	rest, err := io.ReadAll(io.LimitReader(b.zr, maxPadding+1))
	if err != nil {
		return b.damaged(err)
	}
	if len(rest) > maxPadding || strings.Trim(string(rest), "\x00") != "" {
		return fault.New(fault.Invalid, "bundle %s goes on after its end", b.name)
	}
	return nil
}

// damaged gives the errors of the two formats a class; a fault keeps its own.
func (b *Reader) damaged(err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	switch {
	case b.ctx.Err() != nil:
		return fault.Context(context.Cause(b.ctx), "bundle %s", b.name)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Invalid, "bundle %s is cut off", b.name)
	case errors.Is(err, zstd.ErrMagicMismatch):
		return fault.New(fault.Invalid, "bundle %s is not compressed with zstd", b.name)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fault.New(fault.Invalid, "bundle %s needs more than %s of memory to unpack", b.name, size(maxWindow))
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fault.New(fault.Invalid, "bundle %s is not a tar file", b.name)
	case isZstd(err):
		return fault.New(fault.Invalid, "bundle %s is damaged: %s", b.name, err)
	}
	return fault.Context(err, "read bundle %s", b.name)
}

// isZstd tells damage that zstd has found from a failure of the host's. Only some of its errors have names.
func isZstd(err error) bool {
	var host *hostError
	return !errors.As(err, &host)
}

// Close ends a Read that is under way, and waits for it.
func (b *Reader) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	if b.err == nil {
		b.err = fault.New(fault.Cancelled, "bundle %s was closed", b.name)
	}
	b.zr.Close()
	if b.onClose != nil {
		return b.onClose()
	}
	return nil
}

// interruptible ends when ctx does, and marks the host's failures.
type interruptible struct {
	ctx context.Context //nolint:containedctx // the Reader's
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := context.Cause(i.ctx); err != nil {
		return 0, &hostError{err}
	}
	n, err := i.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &hostError{err}
	}
	return n, err
}

// hostError is a failure to read the file, as opposed to one of what is in it.
type hostError struct{ error }

func (e *hostError) Unwrap() error { return e.error }
