package debarchive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"banger/internal/fault"
)

// maxRelease is far above the 150 KiB of a Debian release.
const maxRelease = 8 << 20

// errOtherVendor says that an archive is well signed but not Debian's.
var errOtherVendor = errors.New("not Debian's archive")

// release is what a verified InRelease says.
type release struct {
	origin     string
	suite      string
	codename   string
	byHash     bool
	validUntil time.Time // zero: for ever
	files      map[string]fileRef
}

// fileRef is the size and SHA-256 of a file.
type fileRef struct {
	size   int64
	sha256 string
}

// release fetches and verifies the InRelease of a repo.
func (a *Archive) release(ctx context.Context, r repo) (release, error) {
	keys, err := r.keys.load()
	if err != nil {
		return release{}, err
	}
	uri, err := join(r.base, "dists", r.suite, "InRelease")
	if err != nil {
		return release{}, err
	}
	data, err := a.fetch.bytes(ctx, uri, maxRelease)
	if err != nil {
		return release{}, err
	}
	text, err := verifyClearsigned(data, keys, a.now())
	if err != nil {
		return release{}, fault.Wrap(fault.Denied, err, "InRelease")
	}
	rel, err := parseRelease(text)
	if err != nil {
		return release{}, fault.Wrap(fault.Denied, err, "InRelease")
	}
	return rel, rel.check(r, a.now())
}

// check refuses a release that is not the wanted one: the right signature on the wrong or an outdated file.
func (rel release) check(r repo, now time.Time) error {
	vendor := "Debian"
	if strings.HasSuffix(r.suite, backports) {
		vendor = "Debian Backports"
	}
	switch {
	case rel.origin != vendor:
		return fault.Wrap(fault.NotFound, errOtherVendor, "origin %q", rel.origin)
	case rel.suite != r.suite && rel.codename != r.suite:
		return fault.New(fault.Denied, "InRelease is of suite %q (%q)", rel.codename, rel.suite)
	case !rel.validUntil.IsZero() && now.After(rel.validUntil) && !r.noExpiry:
		return fault.New(fault.Denied, "InRelease was valid until %s only: the mirror is out of date or this host's clock is wrong",
			rel.validUntil.UTC().Format(time.DateTime))
	}
	return nil
}

// verifyClearsigned returns the text that is signed. One good signature by a key of the keyring is enough; those by
// other keys do not matter, and neither does anything outside the signed text.
func verifyClearsigned(data []byte, keys openpgp.EntityList, now time.Time) ([]byte, error) {
	block, _ := clearsign.Decode(data)
	if block == nil {
		return nil, errors.New("no signed text")
	}
	conf := &packet.Config{Time: func() time.Time { return now }}
	failure := errors.New("not signed by a key of the keyring")
	packets := packet.NewReader(block.ArmoredSignature.Body)
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			return nil, failure
		}
		if err != nil {
			return nil, err
		}
		sig, ok := p.(*packet.Signature)
		if !ok || sig.IssuerKeyId == nil || len(keys.KeysById(*sig.IssuerKeyId)) == 0 {
			continue
		}
		var one bytes.Buffer // go-crypto looks at the first known signer only: hand it one signature at a time
		if err := sig.Serialize(&one); err != nil {
			return nil, err
		}
		if _, err := openpgp.CheckDetachedSignature(keys, bytes.NewReader(block.Bytes), &one, conf); err != nil {
			failure = err
			continue
		}
		return block.Plaintext, nil
	}
}

// parseRelease parses a Release file.
func parseRelease(text []byte) (release, error) {
	paragraphs := parseParagraphs(text)
	if len(paragraphs) != 1 {
		return release{}, errors.New("not one paragraph")
	}
	fields := paragraphs[0]
	rel := release{
		origin: fields["origin"], suite: fields["suite"], codename: fields["codename"],
		byHash: fields["acquire-by-hash"] == "yes", files: map[string]fileRef{},
	}
	if until := fields["valid-until"]; until != "" {
		var err error
		if rel.validUntil, err = time.Parse(time.RFC1123, until); err != nil {
			return release{}, err
		}
	}
	for line := range strings.Lines(fields["sha256"]) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 3 || !isDigest(words[0]) {
			return release{}, errors.New("bad line among the sha256 digests")
		}
		size, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil || size < 0 {
			return release{}, errors.New("bad size among the sha256 digests")
		}
		rel.files[words[2]] = fileRef{size: size, sha256: words[0]}
	}
	return rel, nil
}

// isDigest reports whether s is a SHA-256 in lower-case hexadecimal.
func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
