package oci

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/image/blob"
	"banger/internal/image/layer"
)

// FuzzManifest reads manifests and indexes: what is accepted can be used without another look.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + zeroes + `","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + zeroes + `","size":10}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + zeroes + `","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[{"blobSum":"` + zeroes + `"}]}`))
	f.Add([]byte(`{"artifactType":"x","config":null,"manifests":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := parseDocument(data)
		if err != nil {
			if !isFault(err) {
				t.Errorf("not a fault: %v", err)
			}
			return
		}
		if (doc.manifest == nil) == (doc.index == nil) {
			t.Fatal("neither or both")
		}
		if doc.index != nil {
			if d, err := choose(doc.index, "amd64"); err == nil && (d.Size < 0 || d.Size > maxManifest || blob.CheckDigest(d.Digest.String()) != nil) {
				t.Errorf("chosen: %+v", d)
			}
			_, _ = pick(doc.index, "latest", "", "amd64")
			_, _ = pick(doc.index, "", zeroes, "amd64")
			_, _ = pick(doc.index, "", "", "amd64")
			return
		}
		for _, d := range append(doc.manifest.Layers, doc.manifest.Config) {
			if d.Size < 0 || d.Size > maxLayer || blob.CheckDigest(d.Digest.String()) != nil {
				t.Errorf("accepted: %+v", d)
			}
		}
	})
}

// FuzzConfig reads configurations; what is accepted survives being written and read again.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":"ls","ExposedPorts":{"80":{},"1-2/udp":null},"Labels":{"a":"b"}}}`))
	f.Add([]byte(`{"config":{"Entrypoint":["a\u0000"]},"created":1,"rootfs":{"diff_ids":["x"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parseConfig(data)
		if err != nil {
			if !isFault(err) {
				t.Errorf("not a fault: %v", err)
			}
			return
		}
		again, err := json.Marshal(struct {
			Config any `json:"config"`
		}{configOf(got.config)})
		if err != nil {
			t.Fatal(err)
		}
		second, err := parseConfig(again)
		if err != nil {
			t.Fatalf("written and read again: %v", err)
		}
		third, err := json.Marshal(struct {
			Config any `json:"config"`
		}{configOf(second.config)})
		if err != nil || !bytes.Equal(again, third) {
			t.Errorf("%s\n%s\n%v", again, third, err)
		}
	})
}

// FuzzDockerArchive reads whole archives as far as the layers.
func FuzzDockerArchive(f *testing.F) {
	for _, name := range []string{"manifest.json", "sha256:" + zeroes} {
		f.Add(tarOf(f, name, `[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l.tar","x/layer.tar"]}]`, "c.json",
			`{"rootfs":{"diff_ids":["`+zeroes+`","`+zeroes+`"]}}`, "l.tar", "", "x/layer.tar", "\x1f\x8b123456"))
	}
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		name := filepath.Join(dir, "a.tar")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := openArchive(t.Context(), name, dir, layer.Limits{Size: 1 << 20})
		if err != nil {
			return
		}
		defer a.close()
		for _, ref := range []string{"", "a:b"} {
			img, err := readDockerArchive(t.Context(), a, ref, "amd64")
			if err != nil {
				continue
			}
			for _, l := range img.layers {
				if l.Size < 0 || l.Size > int64(len(data)) && len(data) > 0 && a.file.Name() == name || blob.CheckDigest(l.Digest) != nil {
					t.Errorf("accepted: %+v", l.Layer)
				}
			}
		}
		if _, err := (layout{a}).index(); err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
	})
}
