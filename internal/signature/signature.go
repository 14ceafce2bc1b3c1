// Package signature checks and makes minisign signatures of whole files, as the program minisign does: FILE.minisig beside
// FILE. A key is its 56 characters of base64 ("RW..."), which is also the second line of a minisign.pub file.
//
// A signature has two parts: that of the file's BLAKE2b hash, and that of the first one with the "trusted comment", in
// which minisign writes the file's name. The second can be checked without the file, which tells a file that was changed
// from a signature that was made for another one.
package signature

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"strings"

	"aead.dev/minisign"

	"banger/internal/fault"
)

// Suffix is what the name of a signature has beyond that of its file.
const Suffix = ".minisig"

// MaxSize is how long a signature's file can be. minisign's are below 1 KiB, and its comments are not for novels.
const MaxSize = 16 << 10

// Key is a public key that is trusted for something.
type Key struct {
	public minisign.PublicKey
}

// ParseKey reads a public key: its base64, alone or below minisign's comment line.
func ParseKey(text string) (Key, error) {
	var k Key
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "untrusted comment:") {
		_, text, _ = strings.Cut(text, "\n")
		text = strings.TrimSpace(text)
	}
	if err := k.public.UnmarshalText([]byte(text)); err != nil || strings.ContainsAny(text, "\r\n") {
		return Key{}, fault.New(fault.Invalid, "%q is not a minisign public key: 56 characters that begin with RW", short(text)).
			WithHint("tail -n 1 minisign.pub")
	}
	return k, nil
}

// ParseKeys reads several keys.
func ParseKeys(texts []string) ([]Key, error) {
	keys := make([]Key, 0, len(texts))
	for _, text := range texts {
		k, err := ParseKey(text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// ID is how minisign calls the key in its messages: 16 hexadecimal digits.
func (k Key) ID() string { return id(k.public.ID()) }

// String returns the key as ParseKey reads it.
func (k Key) String() string { return k.public.String() }

func id(n uint64) string { return fmt.Sprintf("%016X", n) }

// Signature is a parsed signature. It is checked by Verify.
type Signature struct {
	parsed minisign.Signature
	text   []byte
	name   string // of the signature, for messages
}

// Parse reads the text of a signature that was found under that name.
func Parse(name string, text []byte) (*Signature, error) {
	s := &Signature{text: bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")), name: name}
	if len(text) > MaxSize {
		return nil, fault.New(fault.Invalid, "%s is no minisign signature: it is longer than %d bytes", name, MaxSize)
	}
	if err := s.parsed.UnmarshalText(s.text); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "%s is no minisign signature", name)
	}
	return s, nil
}

// KeyID is the id of the key that the signature says it was made with.
func (s *Signature) KeyID() string { return id(s.parsed.KeyID) }

// FileName is the name of the signed file as minisign noted it in the trusted comment, or "".
func (s *Signature) FileName() string {
	for field := range strings.SplitSeq(s.parsed.TrustedComment, "\t") {
		if name, ok := strings.CutPrefix(field, "file:"); ok {
			return short(name)
		}
	}
	return ""
}

// Key returns which of the keys the signature was made with; a fault of class Denied when it is none of them, or when the
// signature does not fit itself. It does not look at the file: Verify does.
func (s *Signature) Key(keys []Key) (Key, error) {
	candidates := 0
	for _, k := range keys {
		if k.public.ID() != s.parsed.KeyID {
			continue
		}
		candidates++ // an id is chosen at random and not protected: two keys may have the same
		if ed25519.Verify(raw(k), append(s.parsed.Signature[:], s.parsed.TrustedComment...), s.parsed.CommentSignature[:]) {
			return k, s.checkAlgorithm()
		}
	}
	if candidates == 0 {
		return Key{}, fault.New(fault.Denied, "%s was made with key %s, which is not trusted here", s.name, s.KeyID())
	}
	return Key{}, fault.New(fault.Denied, "%s is not genuine: key %s did not make it as it stands", s.name, s.KeyID())
}

// checkAlgorithm refuses the old kind of signature, for which the whole file would have to be in memory.
func (s *Signature) checkAlgorithm() error {
	if s.parsed.Algorithm == minisign.HashEdDSA {
		return nil
	}
	return fault.New(fault.Denied, "%s is of minisign's old kind (-l), which is not supported", s.name).
		WithHint("minisign -S -m %s", quoted(strings.TrimSuffix(s.name, Suffix)))
}

// Verify reads the file to its end and reports a fault of class Denied unless it is what one of the keys has signed. file
// is its name, for messages.
func (s *Signature) Verify(ctx context.Context, file string, r io.Reader, keys []Key) error {
	k, err := s.Key(keys)
	if err != nil {
		return err
	}
	hashed := minisign.NewReader(&reader{ctx, r})
	if _, err := io.Copy(io.Discard, hashed); err != nil {
		return err
	}
	if hashed.Verify(k.public, s.text) {
		return nil
	}
	if signed := s.FileName(); signed != "" && signed != file {
		return fault.New(fault.Denied, "%s is not what key %s has signed: the signature is for another file, %q", file, k.ID(), signed)
	}
	return fault.New(fault.Denied, "%s is not what key %s has signed: it was changed, or the signature is for another file", file, k.ID())
}

// reader ends when ctx does.
type reader struct {
	ctx context.Context //nolint:containedctx // of one Verify
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// raw is the key as crypto/ed25519 takes it; minisign's type keeps it to itself.
func raw(k Key) ed25519.PublicKey {
	text, err := base64.StdEncoding.DecodeString(k.public.String())
	if err != nil || len(text) != 10+ed25519.PublicKeySize {
		panic("signature: a parsed key does not encode") // it was decoded from that form
	}
	return text[10:] // behind the algorithm and the id
}

// short cuts what comes from elsewhere to what fits in a message.
func short(text string) string {
	if len(text) > 80 {
		return text[:80] + "..."
	}
	return text
}

func quoted(file string) string {
	return "'" + strings.ReplaceAll(file, "'", `'\''`) + "'"
}
