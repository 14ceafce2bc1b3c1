package image

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
	"banger/internal/image/webcatalog"
	"banger/internal/signature"
	"banger/internal/transfer"
)

// publish writes a signed catalog.json to dir.
func publish(t *testing.T, k signature.SecretKey, dir string, entries ...webcatalog.Entry) {
	t.Helper()
	data, err := json.Marshal(webcatalog.List{Schema: webcatalog.Schema, Entries: entries})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "catalog.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signature.SignFile(t.Context(), path, k); err != nil {
		t.Fatal(err)
	}
}

func listed(name string) webcatalog.Entry {
	return webcatalog.Entry{Name: name, Description: "a test", Arch: runtime.GOARCH, Kernel: "k", URL: name + ".tar.zst", SHA256: strings.Repeat("a", 64), Size: 5}
}

// web serves a directory and says what it is called there.
func web(t *testing.T) (dir, url string, server *httptest.Server) {
	t.Helper()
	dir = t.TempDir()
	server = httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return dir, server.URL, server
}

func newKey(t *testing.T) signature.SecretKey {
	t.Helper()
	k, err := signature.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// twoCatalogs are acme, which has dev, other and an image called like the default, and beta, which has dev and more.
func twoCatalogs(t *testing.T) (x *Index, first, second *httptest.Server) {
	t.Helper()
	k := newKey(t)
	dirA, urlA, first := web(t)
	dirB, urlB, second := web(t)
	foreign := listed("foreign")
	foreign.Arch = "sparc"
	publish(t, k, dirA, listed("dev"), listed(Default), foreign)
	publish(t, k, dirB, listed("dev"), listed("more"))
	key := k.Public().String()
	return &Index{
		Catalogs: []CatalogConfig{{Name: "acme", URL: urlA + "/catalog.json", Key: key}, {Name: "beta", URL: urlB + "/catalog.json", Key: key}},
		Dir:      filepath.Join(t.TempDir(), "catalogs"),
		Client:   &transfer.Client{Stall: time.Minute, Backoff: []time.Duration{}},
	}, first, second
}

func names(entries []Entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Name)
	}
	return out
}

func TestIndexMergesCatalogsInOrder(t *testing.T) {
	x, first, _ := twoCatalogs(t)
	entries, warnings := x.Catalog(t.Context(), false)
	want := append(names(Catalog()), "dev", "acme/"+Default, "beta/dev", "more")
	if diff := cmp.Diff(want, names(entries)); diff != "" || len(warnings) > 0 {
		t.Error(diff, warnings)
	}
	for ref, want := range map[string]string{
		Default: "debian:bookworm", "dev": "bundle:" + first.URL + "/dev.tar.zst", "acme/" + Default: "bundle:" + first.URL + "/" + Default + ".tar.zst",
		"acme/dev": "bundle:" + first.URL + "/dev.tar.zst", "alpine": "oci:docker.io/library/alpine:latest", "other/dev": "oci:docker.io/other/dev:latest",
	} {
		e, warnings, err := x.Resolve(t.Context(), ref)
		if err != nil || e.Sources[0].String() != want || len(warnings) > 0 {
			t.Errorf("%s: %+v, %v, %v", ref, e, warnings, err)
		}
		if e.Sources[0].Kind == KindBundle && (e.Name != ref || e.Catalog != "acme" || e.Kernel != "k" || e.Sources[0].SHA256 == "" || e.Sources[0].Size != 5) {
			t.Errorf("%s: %+v", ref, e)
		}
	}
	for ref, want := range map[string]string{
		"mroe":         `no image is called "mroe"; did you mean more?`,
		"acme/foreign": "catalog acme has image foreign for sparc and not for " + runtime.GOARCH,
		"acme/dve":     `catalog acme has no image "dve"; did you mean acme/dev?`,
		"acme/zebra":   `catalog acme has no image "zebra"`,
		"":             "an image reference is needed, and this one is empty",
	} {
		_, _, err := x.Resolve(t.Context(), ref)
		if err == nil || err.Error() != want || fault.HintOf(err) == "" {
			t.Errorf("%q: %v, hint %q", ref, err, fault.HintOf(err))
		}
	}
}

func TestUnreachableCatalog(t *testing.T) {
	x, first, second := twoCatalogs(t)
	second.Close()
	entries, warnings := x.Catalog(t.Context(), false)
	if len(entries) != len(Catalog())+2 || len(warnings) != 1 || !strings.HasPrefix(warnings[0], "catalog beta: ") {
		t.Errorf("%v, %q", names(entries), warnings)
	}
	// A name that the other one has does not need it; one that it may have is not looked for elsewhere.
	if e, _, err := x.Resolve(t.Context(), "dev"); err != nil || e.Catalog != "acme" {
		t.Errorf("%+v, %v", e, err)
	}
	_, _, err := x.Resolve(t.Context(), "more")
	if !fault.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), `no image is called "more", unless catalog beta has it: `) ||
		fault.HintOf(err) != "banger image pull docker.io/library/more" {
		t.Errorf("%v, hint %q", err, fault.HintOf(err))
	}
	// What says where it is needs no catalog, and neither does the embedded one.
	for _, ref := range []string{Default, "localhost:5000/a", "docker.io/library/more"} {
		if _, _, err := x.Resolve(t.Context(), ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	// The copy serves.
	first.Close()
	entries, warnings = x.Catalog(t.Context(), true)
	if len(entries) != len(Catalog())+2 || len(warnings) != 2 {
		t.Errorf("%v, %q", names(entries), warnings)
	}
}
