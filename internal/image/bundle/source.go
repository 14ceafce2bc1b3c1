package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/image/source"
	"banger/internal/imageref"
	"banger/internal/progress"
	"banger/internal/signature"
	"banger/internal/transfer"
)

// workDir is where a download lies, in the staging directory.
const workDir = "bundle.work"

// Source is the source of kind "bundle"; a location is the absolute path of a file or the URL of one.
//
// A file from a URL is fetched whole and has to be genuine before anything in it is looked at: its sha256 is the one in
// the request, or the signature beside it (URL.minisig) is by a key of the request or of this Source. A file of this host
// is its user's own business: a signature beside it has to be right, but none is asked for unless the request has keys.
type Source struct {
	Keys   []signature.Key // that are trusted for every bundle
	Limits Limits
	Client *transfer.Client // nil: one with the usual timeouts
}

// Fetch gets and verifies the bundle and reads its manifest. Where it brings a kernel, that is in KernelDir of the staging
// directory when Tree.Tar has come to its end, and Tree.Kernel is its name.
func (s Source) Fetch(ctx context.Context, req source.Request) (source.Tree, error) {
	b := &fetch{Source: s, req: req, limits: s.Limits.withDefaults()}
	if err := b.prepare(); err != nil {
		return source.Tree{}, err
	}
	f, err := b.get(ctx)
	if err != nil {
		return source.Tree{}, err
	}
	r, err := NewReader(ctx, b.name, f, b.limits)
	if err != nil {
		return source.Tree{}, errors.Join(err, f.Close())
	}
	r.onClose, r.atEnd = f.Close, func() error { return b.unchanged(f) }
	tree, err := b.tree(r)
	if err != nil {
		return source.Tree{}, errors.Join(err, r.Close())
	}
	return tree, nil
}

// Remove removes what Fetch has downloaded.
func (s Source) Remove(_ context.Context, staging string) error {
	return os.RemoveAll(filepath.Join(staging, workDir))
}

// fetch is one Fetch.
type fetch struct {
	Source
	req    source.Request
	limits Limits
	keys   []signature.Key
	sha256 string
	name   string // of the bundle, for messages: the last part of its path
	from   string // the bundle, for people

	verified unix.Stat_t // the file as it was when it was verified; zero: nothing was asked for
}

func (b *fetch) prepare() error {
	given, err := signature.ParseKeys(b.req.Keys)
	if err != nil {
		return err
	}
	b.keys = append(given, b.Keys...)
	if b.sha256 = strings.ToLower(strings.TrimPrefix(b.req.SHA256, "sha256:")); b.sha256 != "" {
		if raw, err := hex.DecodeString(b.sha256); err != nil || len(raw) != sha256.Size {
			return fault.New(fault.Invalid, "%.80q is not a sha256: 64 hexadecimal digits", b.req.SHA256).WithHint("sha256sum FILE")
		}
	}
	if imageref.IsURL(b.req.Location) {
		if err := transfer.CheckURL(b.req.Location); err != nil {
			return err
		}
		u, err := url.Parse(b.req.Location)
		if err != nil {
			return err
		}
		b.name, b.from = path.Base(u.Path), transfer.Redact(b.req.Location)
		return nil
	}
	if !filepath.IsAbs(b.req.Location) {
		return fault.New(fault.Invalid, "%q is not an absolute path", b.req.Location).WithHint("banger image pull bundle:$PWD/%s", b.req.Location)
	}
	b.name, b.from = filepath.Base(b.req.Location), b.req.Location
	return nil
}

// get returns the open file, at its start, when it is known to be genuine.
func (b *fetch) get(ctx context.Context) (*os.File, error) {
	if imageref.IsURL(b.req.Location) {
		return b.remote(ctx)
	}
	return b.local(ctx)
}

// tree makes the result of an open bundle.
func (b *fetch) tree(r *Reader) (source.Tree, error) {
	m := r.Manifest()
	if b.req.Arch != "" && m.Arch != b.req.Arch {
		return source.Tree{}, fault.New(fault.Invalid, "bundle %s is for %s and not for %s", b.name, m.Arch, b.req.Arch).
			WithHint("banger image pull --platform linux/%s '%s'", m.Arch, b.from)
	}
	parts := []string{"kernel:" + m.Kernel}
	for _, p := range m.Parts {
		parts = append(parts, "sha256:"+p.SHA256)
	}
	t := source.Tree{
		Tar: r, Origin: b.from, Config: m.Config, Arch: m.Arch, Kernel: m.Kernel, Entries: b.limits.Entries,
		Digest: source.Identity(source.ConfigDigest(m.Config, m.Arch), parts),
	}
	t.Tar = struct {
		io.Reader
		io.Closer
	}{b.req.Progress.Reader(r, b.update("writing the disk image", 0, uint64(m.Parts[0].Size))), r}
	if len(m.Parts) > 1 {
		name := m.Kernel
		if name == "" {
			name = KernelDir
		}
		t.Kernel = adoptedName(name, m.Parts[1])
		r.kernel = func(ctx context.Context, part io.Reader) error {
			dir := filepath.Join(b.req.Staging, KernelDir)
			if err := unpackKernel(ctx, part, dir); err != nil {
				return err
			}
			if err := adopt(dir, m.Parts[1], name, m.Arch, origin(b.from)); err != nil {
				return err
			}
			return syncKernel(dir)
		}
	}
	return t, nil
}

func (b *fetch) update(message string, done, total uint64) progress.Update {
	return progress.Update{Stage: "image", Message: message, Done: done, Total: total, Unit: "bytes"}
}

// remote downloads the bundle and verifies it. What makes it genuine is got first: without that nothing is downloaded.
func (b *fetch) remote(ctx context.Context) (*os.File, error) {
	client := b.Client
	if client == nil {
		client = &transfer.Client{}
	}
	var sig *signature.Signature
	if b.sha256 == "" {
		var err error
		if sig, err = b.remoteSignature(ctx, client); err != nil {
			return nil, err
		}
	}
	work := filepath.Join(b.req.Staging, workDir)
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(work, "download")
	_, err := client.Download(ctx, b.req.Location, file, transfer.Options{
		Limit: b.limits.Download, Size: b.req.Size,
		Progress: func(done, total uint64) { b.req.Progress.Report(b.update("downloading "+b.name, done, total)) },
	})
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	return f, closing(f, b.verify(ctx, f, sig))
}

// closing closes f if err is one.
func closing(f *os.File, err error) error {
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// remoteSignature gets the signature beside the bundle and checks that a trusted key has made it.
func (b *fetch) remoteSignature(ctx context.Context, client *transfer.Client) (*signature.Signature, error) {
	if len(b.keys) == 0 {
		return nil, fault.New(fault.Denied, "%s comes from the network, no key is trusted and no sha256 was given", b.from).
			WithHint("banger config set trust.keys RW...")
	}
	u, err := url.Parse(b.req.Location)
	if err != nil {
		return nil, err
	}
	u.Path, u.RawPath = u.Path+signature.Suffix, ""
	resp, err := client.Get(ctx, u.String(), signature.MaxSize, transfer.Version{})
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.Denied, "%s has no signature beside it (%s), and no sha256 was given", b.from, b.name+signature.Suffix).
			WithHint("banger image pull --sha256 DIGEST '%s'", b.from)
	}
	if err != nil {
		return nil, fault.Context(err, "signature")
	}
	return b.trusted(resp.Body)
}

// trusted parses a signature and checks that a trusted key has made it.
func (b *fetch) trusted(text []byte) (*signature.Signature, error) {
	sig, err := signature.Parse(b.name+signature.Suffix, text)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "%s", b.from).WithHint("%s", b.verifyCommand())
	}
	if _, err := sig.Key(b.keys); err != nil {
		return nil, fault.Wrap(fault.Denied, err, "%s", b.from).WithHint("banger image pull --key RW... '%s'", b.from)
	}
	return sig, nil
}

// local opens a file of this host.
func (b *fetch) local(ctx context.Context) (*os.File, error) {
	f, err := openRegular(b.req.Location)
	if err != nil {
		return nil, err
	}
	sig, err := b.localSignature()
	if err == nil {
		err = b.verify(ctx, f, sig)
	}
	return f, closing(f, err)
}

// openRegular opens a file, and nothing that a Read could wait for.
func openRegular(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fault.New(fault.NotFound, "there is no bundle %s", file).WithHint("ls -l '%s'", filepath.Dir(file))
	case errors.Is(err, os.ErrPermission):
		return nil, fault.New(fault.Denied, "%s may not be read", file).WithHint("ls -l '%s'", file)
	case err != nil:
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Invalid, "%s is not a file", file).WithHint("ls -ld '%s'", file)
	}
	return f, closing(f, err)
}

// localSignature reads the signature beside the file; nil when there is none and none is needed.
func (b *fetch) localSignature() (*signature.Signature, error) {
	f, err := openRegular(b.req.Location + signature.Suffix)
	if fault.Is(err, fault.NotFound) {
		if len(b.req.Keys) > 0 && b.sha256 == "" {
			return nil, fault.New(fault.Denied, "%s has no signature beside it (%s)", b.from, b.name+signature.Suffix).
				WithHint("minisign -S -m '%s'", b.from)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, signature.MaxSize+1))
	if err != nil {
		return nil, err
	}
	return b.trusted(text)
}

// verify holds the whole file against the signature, if there is one, and the digest, if one was given, and goes back to
// its start.
func (b *fetch) verify(ctx context.Context, f *os.File, sig *signature.Signature) error {
	if sig == nil && b.sha256 == "" {
		return nil
	}
	if err := unix.Fstat(int(f.Fd()), &b.verified); err != nil {
		return err
	}
	in := b.req.Progress.Reader(&interruptible{ctx, f}, b.update("verifying "+b.name, 0, uint64(b.verified.Size)))
	hash := sha256.New()
	in = io.TeeReader(in, hash)
	var err error
	if sig != nil {
		err = sig.Verify(ctx, b.name, in, b.keys)
	} else {
		_, err = io.Copy(io.Discard, in)
	}
	if fault.Is(err, fault.Denied) {
		return fault.Wrap(fault.Denied, err, "%s", b.from).WithHint("%s", b.verifyCommand())
	}
	if err != nil {
		return fault.Context(err, "%s", b.from)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); b.sha256 != "" && got != b.sha256 {
		return fault.New(fault.Denied, "%s has sha256 %s and not %s", b.from, got, b.sha256).WithHint("%s", b.sumCommand())
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// verifyCommand checks the signature of the bundle without banger.
func (b *fetch) verifyCommand() string {
	if imageref.IsURL(b.req.Location) {
		return "curl -sSLO '" + b.from + "' -O '" + b.from + signature.Suffix + "' && minisign -V -P RW... -m '" + b.name + "'"
	}
	return "minisign -V -P RW... -m '" + b.from + "'"
}

// sumCommand shows the digest of the bundle.
func (b *fetch) sumCommand() string {
	if imageref.IsURL(b.req.Location) {
		return "curl -sSL '" + b.from + "' | sha256sum"
	}
	return "sha256sum '" + b.from + "'"
}

// unchanged reports whether the file is still the one that was verified. The time of the last change to a file cannot be
// set, and another user's file may change under us.
func (b *fetch) unchanged(f *os.File) error {
	if b.verified == (unix.Stat_t{}) {
		return nil
	}
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return err
	}
	if now.Ctim != b.verified.Ctim || now.Size != b.verified.Size {
		return fault.New(fault.Conflict, "%s changed while it was read", b.from)
	}
	return nil
}
