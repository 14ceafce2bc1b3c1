package oci

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// What a registry gives for a manifest, and what is said about it. Nothing of it gets as far as a layer.
func TestManifestsThatAreRefused(t *testing.T) {
	b := newBoxed(t)
	config := encode(t, defaultConfig())
	good := describeBlob(gzipType, b.layer)
	with := func(change object, layers ...object) []byte {
		m := object{"schemaVersion": 2, "mediaType": manifestType, "config": describeBlob(configType, config), "layers": layers}
		for key, v := range change {
			m[key] = v
		}
		return encode(t, m)
	}
	typed := func(mediaType string) object {
		d := describeBlob(mediaType, b.layer)
		return d
	}
	sized := func(size any) object {
		d := describeBlob(gzipType, b.layer)
		d["size"] = size
		return d
	}
	for name, tc := range map[string]struct {
		data      []byte
		mediaType string
		words     string
	}{
		"no JSON":          {[]byte("<html>"), manifestType, "the manifest is no JSON object"},
		"a list":           {[]byte("[]"), manifestType, "the manifest is no JSON object"},
		"empty":            {[]byte("{}"), manifestType, "names neither a configuration nor other manifests"},
		"schema 1":         {[]byte(`{"schemaVersion":1,"fsLayers":[]}`), "application/vnd.docker.distribution.manifest.v1+json", "is of docker's schema 1"},
		"schema 1, signed": {[]byte(`{"name":"x"}`), "application/vnd.docker.distribution.manifest.v1+prettyjws", "is of docker's schema 1"},
		"schema 1 by body": {[]byte(`{"fsLayers":[{"blobSum":"sha256:0"}]}`), manifestType, "is of docker's schema 1"},
		"index and image":  {with(object{"manifests": []object{}}, good), manifestType, "is an index and an image at once"},
		"unknown type":     {with(object{"mediaType": "text/plain"}, good), manifestType, `unknown media type "text/plain" of a manifest`},
		"helm":             {with(object{"config": describeBlob("application/vnd.cncf.helm.config.v1+json", config)}), manifestType, "it is a Helm chart and not an image"},
		"wasm":             {with(object{"config": describeBlob("application/vnd.wasm.config.v0+json", config)}), manifestType, "it is a WebAssembly module and not an image"},
		"artifact":         {with(object{"artifactType": "application/x.thing"}), manifestType, `it is an artifact of type "application/x.thing" and not an image`},
		"old artifact":     {[]byte(`{"mediaType":"","artifactType":"application/x.thing","blobs":[]}`), manifestType, `it is an artifact of type "application/x.thing"`},
		"empty config":     {with(object{"config": describeBlob("application/vnd.oci.empty.v1+json", []byte("{}"))}), manifestType, "it is an artifact of type"},
		"config untyped":   {with(object{"config": describeBlob("", config)}), manifestType, "does not say what its configuration is"},
		"config of 9 MB":   {with(object{"config": object{"mediaType": configType, "digest": digestOf(config), "size": 9 << 20}}), manifestType, "the configuration (" + digestOf(config) + ") has an impossible size"},
		"foreign":          {with(nil, typed("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), manifestType, "layer 1 of 1 (" + b.digest + ") is not kept by registries"},
		"nondistributable": {with(nil, good, typed("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")), manifestType, "layer 2 of 2 (" + b.digest + ") is not kept by registries"},
		"encrypted":        {with(nil, typed(gzipType+"+encrypted")), manifestType, "is encrypted"},
		"unknown layer":    {with(nil, typed("application/x-lzma\x1b[2J")), manifestType, `has the unknown media type "application/x-lzma [2J"`},
		"negative size":    {with(nil, sized(-1)), manifestType, "has an impossible size: -1 bytes"},
		"enormous size":    {with(nil, sized(int64(1)<<60)), manifestType, "has an impossible size"},
		"size no number":   {with(nil, sized("1")), manifestType, "the manifest is damaged"},
		"bad digest":       {with(nil, object{"mediaType": gzipType, "digest": "sha256:../../etc/passwd", "size": 1}), manifestType, "the manifest is damaged"},
		"no digest":        {with(nil, object{"mediaType": gzipType, "size": 1}), manifestType, "is not a sha256 digest"},
		"sha512":           {with(nil, object{"mediaType": gzipType, "digest": "sha512:" + strings.Repeat("0", 128), "size": 1}), manifestType, "digest"},
		"many layers":      {with(nil, make([]object, maxLayers+1)...), manifestType, "names 1001 layers"},
		"empty index":      {[]byte(`{"schemaVersion":2,"manifests":[]}`), indexType, "the image is for nothing, and linux/amd64 is needed"},
		"damaged index":    {[]byte(`{"schemaVersion":2,"manifests":{}}`), indexType, "the index of manifests is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			b.whenGetting("/manifests/latest", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Content-Type", tc.mediaType)
				_, _ = w.Write(tc.data)
			})
			opt := testOptions(t)
			_, err := fetchAll(t, t.Context(), NewRegistry(opt), ref(b.testRegistry, "dev/box"))
			wantFault(t, err, fault.Invalid, tc.words)
			if got := blobsOf(t, opt.Blobs); len(got) > 0 {
				t.Errorf("left in the store: %q", got)
			}
		})
	}
}

// A document that is asked for by its digest has to have it.
func TestDocumentsAreVerified(t *testing.T) {
	b := newBoxed(t)
	manifest := imageManifest(t, defaultConfig(), b.layer)
	other := append(bytes.Clone(manifest), '\n')
	b.whenGetting("/manifests/"+digestOf(manifest), func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { _, _ = w.Write(other) })
	_, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(b.testRegistry, "dev/box@"+digestOf(manifest)))
	wantFault(t, err, fault.Invalid, "the manifest "+digestOf(manifest)+" is damaged", digestOf(other))

	entry := describeBlob(manifestType, manifest)
	entry["platform"] = object{"os": "linux", "architecture": "amd64"}
	b.put(t, http.MethodPut, "/v2/dev/box/manifests/multi", indexType, encode(t, object{"schemaVersion": 2, "manifests": []object{entry}}))
	_, err = fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(b.testRegistry, "dev/box:multi"))
	wantFault(t, err, fault.Invalid, "the manifest "+digestOf(manifest)+" is damaged", digestOf(other))
}

func TestNestedIndexesEnd(t *testing.T) {
	var data []byte
	loop := v1.Descriptor{MediaType: indexType, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}
	data = encode(t, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{loop}})
	_, err := parseDocument(data)
	if err != nil {
		t.Fatal(err)
	}
	reg := newTestRegistry(t)
	reg.putImage(t, "box", "x", defaultConfig())
	inner := imageManifest(t, defaultConfig())
	for i := range 4 {
		d := describeBlob(indexType, inner)
		inner = encode(t, object{"schemaVersion": 2, "mediaType": indexType, "manifests": []object{d}})
		reg.put(t, http.MethodPut, fmt.Sprintf("/v2/box/manifests/n%d", i), indexType, inner)
	}
	_, err = fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(reg, "box:n3"))
	wantFault(t, err, fault.Invalid, "nested too deeply")
	if _, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(reg, "box:n1")); err != nil {
		t.Errorf("two are fine: %v", err)
	}
}

func TestConfigs(t *testing.T) {
	for name, tc := range map[string]struct {
		json string
		want imageConfig
		bad  string
	}{
		"everything": {json: `{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","rootfs":{"type":"layers","diff_ids":["sha256:1"]},
			"config":{"User":"1000:1000","WorkingDir":"/src","Env":["PATH=/bin","EMPTY="],"Entrypoint":["/e","x y"],"Cmd":["c"],"Shell":["/bin/bash","-c"],
			"OnBuild":["RUN x"],"ExposedPorts":{"80/tcp":{},"53/udp":{},"8000-8010":{}},"Labels":{"a":"b"},"StopSignal":"SIGINT","Volumes":{"/v":{}}}}`,
			want: imageConfig{arch: "amd64", diffIDs: []string{"sha256:1"}, created: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC), config: source.Config{
				User: "1000:1000", Workdir: "/src", Env: []string{"PATH=/bin", "EMPTY="}, Entrypoint: []string{"/e", "x y"}, Cmd: []string{"c"},
				RunShell: []string{"/bin/bash", "-c"}, OnBuild: []string{"RUN x"}, ExposedPorts: []string{"53/udp", "80/tcp", "8000-8010/tcp"},
				Labels: map[string]string{"a": "b"}, StopSignal: "SIGINT",
			}}},
		"nothing": {json: `{}`, want: imageConfig{config: source.Config{Workdir: "/"}}},
		"nulls": {json: `{"config":{"Env":null,"Cmd":null,"Entrypoint":null,"Labels":null,"ExposedPorts":null},"rootfs":null}`,
			want: imageConfig{config: source.Config{Workdir: "/"}}},
		"strings for lists": {json: `{"config":{"Cmd":"ls","Entrypoint":""}}`, want: imageConfig{config: source.Config{Workdir: "/", Cmd: []string{"ls"}}}},
		"odd ports and variables": {json: `{"config":{"ExposedPorts":{"80":{},"x/tcp":{},"9/TCP":null},"Env":["=x","NOVALUE","A=b=c"]}}`,
			want: imageConfig{config: source.Config{Workdir: "/", ExposedPorts: []string{"80/tcp", "9/tcp"}, Env: []string{"A=b=c"}}}},
		"x86_64":     {json: `{"architecture":"x86_64","os":"Linux","created":"yesterday"}`, want: imageConfig{arch: "amd64", config: source.Config{Workdir: "/"}}},
		"windows":    {json: `{"architecture":"amd64","os":"windows"}`, bad: "the image is for windows/amd64, and only Linux can be run"},
		"no JSON":    {json: `hello`, bad: "the configuration is damaged"},
		"wrong kind": {json: `{"config":{"Env":"A=b"}}`, bad: "the configuration is damaged"},
		"zero byte":  {json: `{"config":{"Cmd":["a\u0000b"]}}`, bad: "has a zero byte in"},
		"huge":       {json: `{"x":"` + strings.Repeat("x", maxConfig) + `"}`, bad: "has more than 8388608 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseConfig([]byte(tc.json))
			if tc.bad != "" {
				wantFault(t, err, fault.Invalid, tc.bad)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(imageConfig{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An image that cannot have room is refused before anything of it is downloaded.
func TestSpaceIsCheckedEarly(t *testing.T) {
	b := newBoxed(t)
	big := describeBlob(gzipType, b.layer)
	big["size"] = maxLayer
	layers := []object{}
	for range 500 { // half a petabyte
		big := describeBlob(gzipType, []byte{byte(len(layers)), byte(len(layers) >> 8)})
		big["size"] = maxLayer
		layers = append(layers, big)
	}
	m := encode(t, object{"schemaVersion": 2, "config": describeBlob(configType, encode(t, defaultConfig())), "layers": layers})
	b.put(t, http.MethodPut, "/v2/dev/box/manifests/big", manifestType, m)
	opt := testOptions(t)
	_, err := fetchAll(t, t.Context(), NewRegistry(opt), ref(b.testRegistry, "dev/box:big"))
	wantFault(t, err, fault.Exhausted, "no space for the image in ", "1.5P needed", "free")
	if !strings.HasPrefix(fault.HintOf(err), "df -h ") {
		t.Errorf("hint %q", fault.HintOf(err))
	}
	if got := blobsOf(t, opt.Blobs); len(got) > 0 {
		t.Errorf("left in the store: %q", got)
	}
}

func TestReferences(t *testing.T) {
	for location, want := range map[string]string{
		"alpine":                         "docker.io/library/alpine:latest",
		"alpine:3.19":                    "docker.io/library/alpine:3.19",
		"someone/box":                    "docker.io/someone/box:latest",
		"localhost:5000/a/b:c":           "localhost:5000/a/b:c",
		"localhost/a":                    "localhost/a:latest",
		"[::1]:5000/a":                   "[::1]:5000/a:latest",
		"registry.example/a@" + zeroes:   "registry.example/a@" + zeroes,
		"registry.example/a:b@" + zeroes: "registry.example/a@" + zeroes,
	} {
		got, err := parseReference(location, nil)
		if err != nil {
			t.Errorf("%s: %v", location, err)
			continue
		}
		if name := shown(got.Name()); name != want {
			t.Errorf("%s is %s, want %s", location, name, want)
		}
		local := strings.HasPrefix(want, "localhost") || strings.HasPrefix(want, "[::1]")
		if plain := got.Context().Scheme() == "http"; plain != local {
			t.Errorf("%s by plain HTTP: %v", location, plain)
		}
	}
	for location, words := range map[string]string{
		"":                              "no image reference given",
		"https://someone:secret@host/a": "has no scheme and no password",
		"someone:secret@host:5000/a":    "holds no user and no password",
		"Upper/Case":                    "image reference \"Upper/Case\"",
		"a b":                           "image reference \"a b\"",
		"host.example/a@sha512:" + strings.Repeat("0", 128): "image reference",
	} {
		_, err := parseReference(location, nil)
		wantFault(t, err, fault.Invalid, words)
		if err != nil && strings.Contains(err.Error()+fault.HintOf(err), "secret") {
			t.Errorf("the password is in %v", err)
		}
	}
}

const zeroes = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
