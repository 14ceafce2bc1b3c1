package signature

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fault"
)

func generate(t testing.TB) SecretKey {
	t.Helper()
	k, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signed writes a file with its signature and returns the path and the signature's text.
func signed(t testing.TB, k SecretKey, name, content string) (path string, sig []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := SignFile(t.Context(), path, k)
	if err != nil {
		t.Fatal(err)
	}
	if sig, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	return path, sig
}

func TestVerify(t *testing.T) {
	mine, other := generate(t), generate(t)
	_, sig := signed(t, mine, "a.tar.zst", "content")
	comment := strings.Replace(string(sig), "file:a.tar.zst", "file:b.tar.zst", 1)
	lines := strings.SplitAfter(string(sig), "\n")
	for name, tt := range map[string]struct {
		sig, content, file string
		keys               []Key
		want               string // of the error; empty: genuine
	}{
		"genuine":         {string(sig), "content", "a.tar.zst", []Key{other.Public(), mine.Public()}, ""},
		"renamed":         {string(sig), "content", "c.tar.zst", []Key{mine.Public()}, ""},
		"windows lines":   {strings.ReplaceAll(string(sig), "\n", "\r\n"), "content", "a.tar.zst", []Key{mine.Public()}, ""},
		"no keys":         {string(sig), "content", "a.tar.zst", nil, "S was made with key " + mine.Public().ID() + ", which is not trusted here"},
		"unknown key":     {string(sig), "content", "a.tar.zst", []Key{other.Public()}, "S was made with key " + mine.Public().ID() + ", which is not trusted here"},
		"changed":         {string(sig), "contenT", "a.tar.zst", []Key{mine.Public()}, "a.tar.zst is not what key " + mine.Public().ID() + " has signed: it was changed, or the signature is for another file"},
		"another file":    {string(sig), "other", "b.tar.zst", []Key{mine.Public()}, "b.tar.zst is not what key " + mine.Public().ID() + ` has signed: the signature is for another file, "a.tar.zst"`},
		"changed comment": {comment, "content", "b.tar.zst", []Key{mine.Public()}, "S is not genuine: key " + mine.Public().ID() + " did not make it as it stands"},
		"empty file":      {string(sig), "", "a.tar.zst", []Key{mine.Public()}, "a.tar.zst is not what key " + mine.Public().ID() + " has signed: it was changed, or the signature is for another file"},
		"empty":           {"", "content", "a.tar.zst", []Key{mine.Public()}, "S is no minisign signature: minisign: invalid signature"},
		"cut off":         {lines[0] + lines[1], "content", "a.tar.zst", []Key{mine.Public()}, "S is no minisign signature: minisign: invalid signature"},
		"a web page":      {"<html>\n<body>\n404\n</html>", "content", "a.tar.zst", []Key{mine.Public()}, "S is no minisign signature: minisign: invalid signature: invalid untrusted comment"},
		"endless":         {strings.Repeat("x", MaxSize+1), "content", "a.tar.zst", []Key{mine.Public()}, "S is no minisign signature: it is longer than 16384 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Parse("S", []byte(tt.sig))
			if err == nil {
				err = s.Verify(t.Context(), tt.file, strings.NewReader(tt.content), tt.keys)
			}
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || err.Error() != tt.want || !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v\nwant %s", fault.ClassOf(err), err, tt.want)
			}
		})
	}
}

// Every bit of a signature matters, and of the file.
func TestOneFlippedBitIsRefused(t *testing.T) {
	k := generate(t)
	_, sig := signed(t, k, "f", "content")
	start := strings.IndexByte(string(sig), '\n') + 1 // the first line is a comment that nobody believes
	for i := start; i < len(sig)-1; i++ {
		bad := append([]byte{}, sig...)
		if sig[i+1] == '=' { // the last bits of this character are none of the signature's
			continue
		}
		bad[i] ^= 1
		s, err := Parse("S", bad)
		if err == nil {
			err = s.Verify(t.Context(), "f", strings.NewReader("content"), []Key{k.Public()})
		}
		if err == nil {
			t.Errorf("accepted with byte %d changed: %q", i, bad)
		}
	}
}

func TestVerifyEndsWithTheContext(t *testing.T) {
	k := generate(t)
	_, sig := signed(t, k, "f", "content")
	s, err := Parse("S", sig)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := s.Verify(ctx, "f", strings.NewReader("content"), []Key{k.Public()}); !errors.Is(err, cause) {
		t.Error(err)
	}
}

func TestParseKey(t *testing.T) {
	k := generate(t).Public()
	for _, text := range []string{k.String(), " " + k.String() + "\n", "untrusted comment: minisign public key X\n" + k.String() + "\n"} {
		if got, err := ParseKey(text); err != nil || got.String() != k.String() || got.ID() != k.ID() {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "RW", k.String()[1:], k.String() + "A", "xx" + k.String()[2:], k.String()[:20] + "\n" + k.String()[20:], strings.Repeat("A", 1000)} {
		if _, err := ParseKey(text); !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" || len(err.Error()) > 200 {
			t.Errorf("%q: %v", text, err)
		}
	}
	if len(k.String()) != 56 || !strings.HasPrefix(k.String(), "RW") {
		t.Error("keys do not look as the documentation says:", k)
	}
}

// The program minisign and this package understand each other, in both directions.
func TestMinisignItself(t *testing.T) {
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("minisign is not installed")
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "minisign", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("minisign %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("-G", "-W", "-p", "key.pub", "-s", "key.sec")
	public, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseKey(string(public))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := LoadSecretKey(filepath.Join(dir, "key.sec"), nil)
	if err != nil || secret.Public().String() != key.String() {
		t.Fatalf("%v, %v", secret.Public(), err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := SignFile(t.Context(), file, secret); err != nil {
		t.Fatal(err)
	}
	run("-V", "-p", "key.pub", "-m", "file")
	run("-S", "-s", "key.sec", "-m", "file")
	check := func() error {
		sig, err := os.ReadFile(file + Suffix)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse("S", sig)
		if err != nil {
			return err
		}
		return s.Verify(t.Context(), "file", strings.NewReader("content"), []Key{key})
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	run("-S", "-l", "-s", "key.sec", "-m", "file")
	if err := check(); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "old kind") {
		t.Errorf("legacy signature: %v", err)
	}
}

func TestLoadSecretKeyFailures(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("untrusted comment: x\nAAAA\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSecretKey(bad, nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := LoadSecretKey(filepath.Join(dir, "none"), nil); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	k := generate(f)
	_, sig := signed(f, k, "f", "content")
	f.Add(sig)
	f.Add([]byte("untrusted comment: \n\ntrusted comment: \n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse("S", text)
		if err != nil {
			return
		}
		_, _, _ = s.KeyID(), s.FileName(), s.Verify(t.Context(), "f", strings.NewReader("other content"), []Key{k.Public()})
		if s.Verify(t.Context(), "f", strings.NewReader("other content"), []Key{k.Public()}) == nil {
			t.Errorf("verified: %q", text)
		}
	})
}
