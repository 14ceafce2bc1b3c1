package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"Alpine", "a:b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	sum := "sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]string{ // name, source
		"debian-bookworm":                          "debian-bookworm debian:bookworm",
		"alpine":                                   "alpine:latest oci:docker.io/library/alpine:latest",
		"alpine:3.19":                              "alpine:3.19 oci:docker.io/library/alpine:3.19",
		"docker.io/library/alpine":                 "alpine:latest oci:docker.io/library/alpine:latest",
		"team/app":                                 "team/app:latest oci:docker.io/team/app:latest",
		"localhost:5000/alpine:test":               "localhost:5000/alpine:test oci:localhost:5000/alpine:test",
		"localhost/app":                            "localhost:80/app:latest oci:localhost:80/app:latest",
		"[::1]:5000/a":                             "[::1]:5000/a:latest oci:[::1]:5000/a:latest",
		"127.0.0.1:5000/a/b/c:X":                   "127.0.0.1:5000/a/b/c:X oci:127.0.0.1:5000/a/b/c:X",
		"r.example/a@" + sum:                       "r.example/a@" + sum + " oci:r.example/a@" + sum,
		"alpine:3@" + sum:                          "alpine@" + sum + " oci:docker.io/library/alpine@" + sum,
		"debian":                                   "debian:latest oci:docker.io/library/debian:latest",
		"bundle":                                   "docker.io/library/bundle:latest oci:docker.io/library/bundle:latest",
		"docker.io/library/oci-layout:1":           "docker.io/library/oci-layout:1 oci:docker.io/library/oci-layout:1",
		"oci:latest":                               "oci:latest oci:docker.io/library/oci:latest",
		"oci-layout:" + dir + "/Alpine":            "alpine:latest oci-layout:" + dir + "/Alpine",
		"oci-layout:" + dir + "/Alpine:3":          "alpine:3 oci-layout:" + dir + "/Alpine:3",
		"oci-layout:" + dir + "/Alpine:b:3":        "b:3 oci-layout:" + dir + "/Alpine:b:3",
		"oci-layout:" + dir + "/a:b":               "a-b:latest oci-layout:" + dir + "/a:b",
		"oci-layout:" + dir + "/x@" + sum:          "x:latest oci-layout:" + dir + "/x@" + sum,
		"oci-archive:/srv/app.tar:1":               "app:1 oci-archive:/srv/app.tar:1",
		"docker-archive:/srv/My App.tar.gz":        "my-app:latest docker-archive:/srv/My App.tar.gz",
		"docker-archive:" + dir + "/Alpine:team/a": "team/a:latest docker-archive:" + dir + "/Alpine:team/a",
		"bundle:/srv/Dev_1.2.tar.zst":              "dev_1.2 bundle:/srv/Dev_1.2.tar.zst",
		"/srv/dev.tar.zst":                         "dev bundle:/srv/dev.tar.zst",
		"/srv/--.tar.zst":                          "image bundle:/srv/--.tar.zst",
		"https://h/d/dev.tar.zst?x=1":              "dev bundle:https://h/d/dev.tar.zst?...",
		"bundle:http://h/dev":                      "dev bundle:http://h/dev",
	} {
		e, err := Resolve(ref)
		if err != nil {
			t.Errorf("%q: %v", ref, err)
			continue
		}
		if got := e.Name + " " + e.Sources[0].String(); got != want {
			t.Errorf("%q: %s, want %s", ref, got, want)
		}
		// Its name resolves to an image of the same name, unless it says where the file is.
		if e.Sources[0].Kind == KindRegistry {
			if again, err := Resolve(e.Name); err != nil || again.Name != e.Name {
				t.Errorf("%q: %q, %v", e.Name, again.Name, err)
			}
		}
	}
}

func TestBadReferences(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for ref, want := range map[string][2]string{ // message, hint
		"":                            {"an image reference is needed, and this one is empty", catalogHint},
		"debian-bokworm":              {`no image is called "debian-bokworm"; did you mean debian-bookworm?`, catalogHint},
		"debian-trixi":                {`no image is called "debian-trixi"; did you mean debian-trixie?`, catalogHint},
		" alpine":                     {`image reference " alpine" begins or ends with a space`, "banger image pull alpine"},
		"al\x1bpine":                  {`image reference "al\x1bpine" has a control character in it`, catalogHint},
		"-x":                          {`image reference "-x" begins with a dash`, "banger image pull --help"},
		"al pine":                     {`"al pine" has " " in it: names of images have letters, digits, '.', '_', '-' and '/'`, catalogHint},
		"Alpine:3":                    {`"Alpine:3" has capital letters: names of images are lower case`, "banger image pull alpine:3"},
		"Bad Name":                    {`"Bad Name" has capital letters: names of images are lower case`, "banger image catalog"},
		"R.example/Team/App":          {`"R.example/Team/App" has capital letters: names of images are lower case`, "banger image pull R.example/team/app"},
		"alpine:":                     {`"alpine:" has an empty tag`, "banger image pull alpine"},
		"alpine:a b":                  {`"alpine:a b" has a bad tag: up to 128 letters, digits, '_', '.' and '-'`, catalogHint},
		"alpine:a:b":                  {`"alpine:a:b" has a bad tag: up to 128 letters, digits, '_', '.' and '-'`, catalogHint},
		"alpine@sha256:12":            {`"alpine@sha256:12" has a bad digest: sha256: and 64 hexadecimal digits`, "banger image pull alpine"},
		"alpine@":                     {`"alpine@" has a bad digest: sha256: and 64 hexadecimal digits`, "banger image pull alpine"},
		"a@sha512:" + sum:             {`"a@sha512:` + sum + `": only sha256 digests are known`, "banger image pull a"},
		"me:secret@r.example/a":       {"an image reference holds no user and no password: docker's configuration does", "docker login r.example"},
		"r.example/":                  {`"r.example/" names a host and no image`, catalogHint},
		"localhost:x/a":               {`"localhost:x/a" has "x" for the port of its host`, catalogHint},
		"localhost:99999/a":           {`"localhost:99999/a" has "99999" for the port of its host`, catalogHint},
		":5000/a":                     {`":5000/a" has no host before the port`, catalogHint},
		`."0/0`:                       {`".\"0/0" has ".\"0" for its host: a name or an address is needed`, catalogHint},
		"-x.y/a":                      {`image reference "-x.y/a" begins with a dash`, "banger image pull --help"},
		"r..example./a":               {`"r..example./a" has "r..example." for its host: a name or an address is needed`, catalogHint},
		"[::1/a":                      {`"[::1/a" has a '[' without a ']' in its host`, catalogHint},
		"a//b":                        {`"a//b" has an empty part between slashes`, catalogHint},
		"a/b/":                        {`"a/b/" has an empty part between slashes`, catalogHint},
		"a/_b":                        {`"a/_b": each part of an image's name begins and ends with a letter or digit`, catalogHint},
		"a:b/c:d/e":                   {`"a:b/c:d/e" has "b" for the port of its host`, catalogHint},
		"docker://alpine":             {`image references have no scheme such as "docker://"`, "banger image pull alpine"},
		"https://r.example/a":         {"https://r.example/a is a web page's address: a bundle's ends in .tar.zst, and an image in a registry is named without https://", "banger image pull r.example/a"},
		"https://u:secret@r.example/": {"https://r.example/ is a web page's address: a bundle's ends in .tar.zst, and an image in a registry is named without https://", "banger image pull r.example"},
		"./x":                         {`"./x" is a path: say what kind of image is there`, "banger image pull oci-layout:./x"},
		"/srv/x.tar":                  {`"/srv/x.tar" is a path: say what kind of image is there`, "banger image pull docker-archive:/srv/x.tar"},
		"oci-layuot:/srv/x":           {`"oci-layuot" is not a kind of image: there are oci-layout, oci-archive, docker-archive, bundle`, "banger image pull oci-layout:/srv/x"},
		"oci-layout:":                 {"oci-layout: names no file", "banger image pull oci-layout:PATH"},
		"oci-layout:x":                {"oci-layout:x: the path is not absolute", `banger image pull oci-layout:"$PWD"/x`},
		"bundle:http://h/":            {"bundle: http://h/ names no file", ""},
		strings.Repeat("a", 300):      {`image reference "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"... is too long: 255 characters without the host`, catalogHint},
		strings.Repeat("a", 5000):     {"an image reference of 5000 bytes is too long", catalogHint},
	} {
		_, err := Resolve(ref)
		if err == nil {
			t.Errorf("%q is accepted", ref)
			continue
		}
		if diff := cmp.Diff(want, [2]string{err.Error(), fault.HintOf(err)}); diff != "" {
			t.Errorf("%q: %s", ref, diff)
		}
		if class := fault.ClassOf(err); class != fault.Invalid && class != fault.NotFound || strings.Contains(err.Error()+fault.HintOf(err), "secret") {
			t.Errorf("%q: %s: %v", ref, class, err)
		}
	}
}

func TestLocalNames(t *testing.T) {
	for ref, want := range map[string][]string{
		"dev":                       {"dev", "dev:latest"},
		"debian-bookworm":           {"debian-bookworm", "debian-bookworm:latest"},
		"docker.io/library/a":       {"docker.io/library/a", "a:latest"},
		"localhost:5000/a:1":        {"localhost:5000/a:1"},
		"acme/dev":                  {"acme/dev", "acme/dev:latest"},
		"bundle:/x.tar.zst":         {"bundle:/x.tar.zst"},
		"Not A Reference":           {"Not A Reference"},
		"/srv":                      {"/srv"},
		"":                          {""},
		"sha256:0123456789abcdef01": {"sha256:0123456789abcdef01"},
	} {
		if diff := cmp.Diff(want, LocalNames(ref)); diff != "" {
			t.Errorf("%q: %s", ref, diff)
		}
	}
}

func TestParseName(t *testing.T) {
	for text, want := range map[string]string{
		"dev": "dev", "my-app:1.0": "my-app:1.0", "dev:latest": "dev:latest", "docker.io/library/x": "x", "team/app": "team/app",
		"localhost:5000/a": "localhost:5000/a", "localhost:5000/a:latest": "localhost:5000/a:latest", "debian-bookworm": "debian-bookworm",
	} {
		if got, err := ParseName(text); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "A", "a b", "bundle:x", "oci-layout:x", "x.tar.zst", "deadbeef", "sha256:deadbeef", "a@sha256:" + strings.Repeat("a", 64),
		"/etc", "../x", "http://x/y", "a:", "-a", "a\n", "a/../b",
	} {
		if got, err := ParseName(text); !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
			t.Errorf("%q: %q, %v, hint %q", text, got, err, fault.HintOf(err))
		}
	}
}

func FuzzResolve(f *testing.F) {
	for _, ref := range []string{"alpine", "localhost:5000/a/b:c@sha256:" + strings.Repeat("0", 64), "oci-layout:/a:b", "https://h/x.tar.zst", "[::1]:5/a"} {
		f.Add(ref)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		for _, name := range LocalNames(ref) {
			if len(name) > len(ref)+32 {
				t.Errorf("%q has the local name %q", ref, name)
			}
		}
		e, err := Resolve(ref)
		if err != nil {
			if fault.Is(err, fault.Internal) {
				t.Errorf("%q: %v", ref, err)
			}
			return
		}
		if e.Name == "" || len(e.Sources) == 0 || strings.ContainsAny(e.Name, " \t\n\x00\x1b'\"") {
			t.Errorf("%q: %+v", ref, e)
		}
		if kind := e.Sources[0].Kind; kind == KindRegistry {
			if again, err := Resolve(e.Name); err != nil || again.Name != e.Name {
				t.Errorf("%q: name %q resolves to %q, %v", ref, e.Name, again.Name, err)
			}
		}
	})
}
