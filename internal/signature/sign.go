package signature

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"

	"banger/internal/atomicfile"
	"banger/internal/fault"
)

// SecretKey signs files.
type SecretKey struct {
	private minisign.PrivateKey
}

// Generate makes a new pair of keys from the operating system's randomness.
func Generate() (SecretKey, error) {
	_, private, err := minisign.GenerateKey(nil)
	return SecretKey{private}, err
}

// LoadSecretKey reads a key file of minisign. The password is asked for only if the file is encrypted; it may be nil for
// one that is not.
func LoadSecretKey(path string, password func() (string, error)) (SecretKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return SecretKey{}, fault.Wrap(fault.NotFound, err, "secret key").WithHint("minisign -G -s %s", quoted(path))
	}
	text = []byte(strings.TrimRight(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n"))
	var k SecretKey
	if !minisign.IsEncrypted(text) {
		if err := k.private.UnmarshalText(text); err != nil {
			return SecretKey{}, fault.Wrap(fault.Invalid, err, "%s is no minisign secret key", path)
		}
		return k, nil
	}
	if password == nil {
		return SecretKey{}, fault.New(fault.Denied, "%s is encrypted and there is no way to ask for its password", path).
			WithHint("minisign -S -s %s -m FILE", quoted(path))
	}
	word, err := password()
	if err != nil {
		return SecretKey{}, err
	}
	if k.private, err = minisign.DecryptKey(word, text); err != nil {
		return SecretKey{}, fault.New(fault.Denied, "%s does not open with this password", path)
	}
	return k, nil
}

// Public returns the key that checks what this one signs.
func (k SecretKey) Public() Key {
	public, ok := k.private.Public().(minisign.PublicKey)
	if !ok {
		panic("signature: minisign's key has another type") // its documented one
	}
	return Key{public}
}

// SignFile writes the signature of the file beside it and returns its path. The trusted comment is that of minisign.
func SignFile(ctx context.Context, path string, k SecretKey) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fault.Wrap(fault.NotFound, err, "sign")
	}
	defer f.Close()
	hashed := minisign.NewReader(&reader{ctx, f})
	if _, err := io.Copy(io.Discard, hashed); err != nil {
		return "", fault.Context(err, "sign %s", path)
	}
	trusted := "timestamp:" + strconv.FormatInt(time.Now().Unix(), 10) + "\tfile:" + filepath.Base(path) + "\thashed"
	text := hashed.SignWithComments(k.private, trusted, "signature from minisign secret key")
	return path + Suffix, fault.Context(atomicfile.Write(path+Suffix, text, 0o644), "sign %s", path)
}
