package kernel

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

// limited takes some megabytes and then fails, so that a fuzzer cannot fill the memory.
type limited int

var errLimit = errors.New("enough")

func (l *limited) Write(p []byte) (int, error) {
	if *l += limited(len(p)); *l > 16<<20 {
		return 0, errLimit
	}
	return len(p), nil
}

// forms are all compressed forms of some data.
func forms(t testing.TB, plain []byte) map[string][]byte {
	return map[string][]byte{
		"gzip": gzipped(t, plain), "xz": xzipped(t, plain), "zstd": zstandard(t, plain),
		"lz4": lz4Blocks(t, plain), "lzma": lzmaed(t, plain), "bzip2": fromTestdata(t, "hello.bz2"), "plain": plain,
	}
}

// Boot files of every kind: the payload is found and taken out, or the file is refused.
func FuzzExtract(f *testing.F) {
	plain := fakeKernel(pvhNote, 10)
	for name, data := range forms(f, plain) {
		f.Add(bzImage(withSize(data, plain)))
		f.Add(zboot(name, data))
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		if p, err := findPayload(image); err == nil && len(p.data) > len(image) {
			t.Errorf("a payload of %d bytes in %d", len(p.data), len(image))
		}
		var out limited
		_ = extract(image, &out)
	})
}

// The decompressors: an output of no more than what was asked for, whatever the input says.
func FuzzDecompress(f *testing.F) {
	for _, data := range forms(f, fakeKernel(pvhNote, 10)) {
		f.Add(data)
	}
	f.Add(wideZstandard(f))
	f.Add(fromTestdata(f, "x86-filter.xz"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, plain, err := open(data)
		if err != nil {
			return
		}
		if plain {
			if all, _ := io.ReadAll(r); !bytes.Equal(all, data) {
				t.Error("what is not compressed has changed")
			}
			return
		}
		const limit = 4 << 20
		if out, err := readLimited(r, limit); err == nil && len(out) > limit {
			t.Errorf("%d bytes", len(out))
		}
	})
}

// An extracted kernel: its notes, its release and the configuration in it.
func FuzzInspect(f *testing.F) {
	f.Add(fakeKernel(pvhNote, 1))
	f.Add(withConfig(f, fakeKernel(pvhNote+1, 1), fakeConfig()))
	f.Add(append(make([]byte, 0x38), "ARM\x64 ........................... Linux version 6.1.0 x"...))
	f.Add([]byte("Linux version 1.2.3 IKCFG_STIKCFG_ST\x1f\x8b\x08IKCFG_ED"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if release := findRelease(data); release != "" && (!filepath.IsLocal(release) || strings.ContainsAny(release, "/ \n")) {
			t.Errorf("release %q", release)
		}
		if config := findConfig(data); config != nil && !bytes.Contains(config, []byte("CONFIG_")) {
			t.Errorf("configuration %q", config)
		}
		_, _ = inspect(data)
	})
}

// A configuration and the judgement of it.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(fakeConfig()), "6.1.0-9-cloud-amd64")
	f.Add([]byte("CONFIG_X=y\nCONFIG_=\n# CONFIG_ACPI is not set\nCONFIG_ACPI=m"), "4.19.0")
	f.Fuzz(func(t *testing.T, text []byte, release string) {
		options, err := parseConfig(text)
		if err != nil {
			return
		}
		v := judge(evidence{image: imageFacts{arch: "amd64", release: release}, config: options})
		if len(v.unknown) != 0 || len(v.fatal) > len(v.missing) || len(v.load) != 0 {
			t.Errorf("%+v", v)
		}
	})
}

// The indexes of a modules directory, and a module.
func FuzzModules(f *testing.F) {
	f.Add(modulesDep, "kernel/x.ko\n", "softdep virtio_blk pre: crc32c post: a\n", "alias crc32c crc32c_generic\n", []byte("\x7fELF\x00vermagic=5.0 SMP\x00"))
	f.Add("a.ko: b.ko\nb.ko: a.ko\n", "", "softdep a pre: a b\n", "alias * a\n", xzipped(f, []byte("\x7fELF")))
	f.Fuzz(func(t *testing.T, dep, builtin, soft, alias string, module []byte) {
		ix := parseDep(dep)
		ix.addBuiltin(builtin)
		ix.addSoft(soft)
		ix.addAliases(alias)
		var wanted []string
		for name, file := range ix.files {
			if name == "" || !filepath.IsLocal(file) {
				t.Errorf("module %q is %q", name, file)
			}
			wanted = append(wanted, name)
		}
		files, err := ix.loadOrder(wanted)
		seen := map[string]bool{}
		for _, file := range files {
			if seen[file] {
				t.Errorf("%s twice", file)
			}
			seen[file] = true
		}
		if err == nil && len(files) > len(ix.files) {
			t.Errorf("%d files of %d modules", len(files), len(ix.files))
		}
		if len(module) < 1<<20 {
			if data, err := readModule(module); err == nil {
				_ = checkRelease(data, "6.1")
			}
		}
	})
}

// An initial RAM disk, plain, compressed or both.
func FuzzInitrd(f *testing.F) {
	for _, data := range forms(f, []byte(small())) {
		f.Add(data)
		f.Add(append([]byte(small()), data...))
	}
	f.Fuzz(func(t *testing.T, data []byte) { _ = checkInitrd(t.Context(), data) })
}
