package debarchive

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/ProtonMail/go-crypto/openpgp"

	"banger/internal/fault"
)

// keySource says where the keys of a repo are: the first that is set counts, and Debian's own keyring if none is.
type keySource struct {
	override string   // a file
	armored  string   // the key itself
	files    []string // all of them together
}

// debianKeyrings are the places of the package debian-archive-keyring, which other distributions have too.
func debianKeyrings() []string {
	return []string{"/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"}
}

func (k keySource) load() (openpgp.EntityList, error) {
	switch {
	case k.override != "":
		return readKeyring(k.override)
	case k.armored != "":
		return parseKeyring([]byte(k.armored), "the Signed-By key of the apt configuration")
	case len(k.files) > 0:
		var all openpgp.EntityList
		for _, file := range k.files {
			keys, err := readKeyring(file)
			if err != nil {
				return nil, err
			}
			all = append(all, keys...)
		}
		return all, nil
	}
	for _, file := range debianKeyrings() {
		if keys, err := readKeyring(file); err == nil || !fault.Is(err, fault.Unavailable) {
			return keys, err
		}
	}
	return nil, fault.New(fault.Unavailable, "the keys of Debian's archive are missing: no %s", debianKeyrings()[0]).
		WithHint("sudo apt-get install debian-archive-keyring")
}

func readKeyring(file string) (openpgp.EntityList, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Unavailable, err, "keyring").WithHint("sudo apt-get install debian-archive-keyring")
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "keyring")
	}
	return parseKeyring(data, file)
}

// parseKeyring reads keys, binary or armored; a file may hold several armored blocks.
func parseKeyring(data []byte, name string) (openpgp.EntityList, error) {
	begin := []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----")
	if !bytes.Contains(data, begin) {
		keys, err := openpgp.ReadKeyRing(bytes.NewReader(data))
		return checkKeys(keys, err, name)
	}
	var all openpgp.EntityList
	for _, block := range bytes.SplitAfter(data, []byte("-----END PGP PUBLIC KEY BLOCK-----")) {
		if !bytes.Contains(block, begin) {
			continue
		}
		keys, err := openpgp.ReadArmoredKeyRing(io.MultiReader(bytes.NewReader(block), bytes.NewReader([]byte("\n"))))
		if keys, err = checkKeys(keys, err, name); err != nil {
			return nil, err
		}
		all = append(all, keys...)
	}
	return all, nil
}

func checkKeys(keys openpgp.EntityList, err error, name string) (openpgp.EntityList, error) {
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "keyring %s", name)
	}
	if len(keys) == 0 {
		return nil, fault.New(fault.Invalid, "keyring %s holds no key", name)
	}
	return keys, nil
}
