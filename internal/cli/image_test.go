package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"banger/internal/term"
	bangerv1 "banger/proto/banger/v1"
)

// someImages are of every kind that makes a table hard.
func someImages() []*bangerv1.Image {
	sum := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	at := aMoment().UnixMilli()
	return []*bangerv1.Image{
		{Name: "debian-bookworm", Digest: sum("a"), Source: "debian:bookworm", UsedBytes: 400 << 20, CreatedAtMs: at, Arch: "amd64", Kernel: "debian-bookworm", UsedBy: []string{"dev", "test-1", "test-2"}},
		{Name: "registry.example.org:5000/team/a-service/with-a-long-name:2026.11.23-rc1", Digest: sum("b"), Source: "oci", UsedBytes: 300 << 20, SharedBytes: 200 << 20, CreatedAtMs: at, Arch: "amd64"},
		{Name: "app:10", Names: []string{"app:10", "app:9"}, Digest: sum("c"), Source: "build", UsedBytes: 220 << 20, SharedBytes: 200 << 20, CreatedAtMs: at},
		{Digest: sum("d"), Source: "build", UsedBytes: 1 << 20},
		{Name: "mine", Digest: sum("e"), Source: "registered", Unmanaged: true, Problem: "rootfs.ext4 has \x1b[31mchanged"},
	}
}

func TestImageList(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{images: someImages(), cache: 340 << 20, used: 721 << 20}}
	f.start(t, home)
	for _, width := range []int{60, 80, 120, 200} {
		on, _, _ := online(t, home)
		d, out, errOut := newOnline(t, width)
		d.Attach, d.Connect = on.Attach, on.Connect
		if code := Main(t.Context(), []string{"image", "ls"}, d); code != 0 {
			t.Fatal(code, errOut)
		}
		fits(t, out.String(), width)
		golden(t, fmt.Sprintf("images_%d.golden", width), out.String())
		if errOut.String() != "banger: image mine cannot be used: rootfs.ext4 has changed\n" {
			t.Errorf("stderr %q", errOut)
		}
	}
	d, out, _ := online(t, home)
	if code := Main(t.Context(), []string{"image", "list", "-q"}, d); code != 0 ||
		!strings.HasPrefix(out.String(), "sha256:dddd") || !strings.Contains(out.String(), "app:9\napp:10\n") {
		t.Errorf("%s", out)
	}
	d, out, _ = online(t, home)
	if code := Main(t.Context(), []string{"image", "list"}, d); code != 0 || strings.Contains(out.String(), "cache") {
		t.Errorf("a pipe gets\n%s", out)
	}
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), []string{"image", "list", "--format", "json"}, d); code != 0 || errOut.String() != "" ||
		!strings.Contains(out.String(), `"shared_bytes": 209715200,`) || !strings.Contains(out.String(), `"problem": "rootfs.ext4 has \u001b[31mchanged"`) {
		t.Errorf("%s %s", out, errOut)
	}
}

func TestImageShow(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{}
	layer := func(c string) *bangerv1.ImageLayer {
		return &bangerv1.ImageLayer{Digest: "sha256:" + strings.Repeat(c, 64), MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", SizeBytes: 3 << 20, Present: c == "1"}
	}
	f.library.images = []*bangerv1.Image{
		{
			Name: "app:1", Names: []string{"app:1", "app:latest"}, Digest: "sha256:" + strings.Repeat("a", 64), Source: "oci", Arch: "amd64",
			UsedBytes: 30 << 20, SharedBytes: 20 << 20, SizeBytes: 16 << 30, Rootfs: "/x/rootfs.ext4", Layers: []*bangerv1.ImageLayer{layer("1"), layer("2")},
			Config: &bangerv1.ImageConfig{
				Entrypoint: []string{"/bin/app", "--name", "it's me"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "GREETING=hello there"},
				ExposedPorts: []string{"80/tcp"}, Labels: map[string]string{"a": "b"}, User: "app", Workdir: "/srv",
			},
		},
		{Name: "other", Digest: "sha256:b", Layers: []*bangerv1.ImageLayer{layer("2")}},
	}
	f.start(t, home)
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), []string{"image", "inspect", "app:1"}, d); code != 0 {
		t.Fatal(errOut)
	}
	golden(t, "image_show.golden", out.String())
	d, out, errOut = online(t, home)
	if code := Main(t.Context(), []string{"image", "show", "app"}, d); code != 241 || out.String() != "" ||
		errOut.String() != "banger: error: there is no image \"app\"\nbanger: hint: banger image list\n" {
		t.Errorf("%d %s %s", code, out, errOut)
	}
	d, out, _ = online(t, home)
	if code := Main(t.Context(), []string{"image", "show", "app:1", "--format", "json"}, d); code != 0 {
		t.Fatal(code)
	}
	golden(t, "image_show_json.golden", out.String())
}

func TestImageRemove(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{images: []*bangerv1.Image{
		{Name: "a", Digest: "sha256:a", UsedBytes: 7}, {Name: "b", UsedBy: []string{"dev"}}, {Digest: "sha256:c"},
	}}}
	f.start(t, home)
	d, out, errOut := online(t, home)
	code := Main(t.Context(), []string{"image", "rm", "a", "b", "sha256:c", "gone", "a"}, d)
	if code != 243 || out.String() != "a\nsha256:c\n" ||
		errOut.String() != "banger: error: image b is used by vm dev\nbanger: hint: banger vm rm dev\nbanger: error: there is no image \"gone\"\nbanger: hint: banger image list\n" {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	d, out, errOut = online(t, home)
	code = Main(t.Context(), []string{"image", "rm", "a", "b", "--format", "json"}, d)
	want := `[
  {
    "name": "a",
    "ok": true,
    "digest": "sha256:a",
    "freed_bytes": 7
  },
  {
    "name": "b",
    "ok": false,
    "freed_bytes": 0,
    "error": {
      "class": "failed_precondition",
      "message": "image b is used by vm dev",
      "hint": "banger vm rm dev"
    }
  }
]
`
	if diff := cmp.Diff(want, out.String()); diff != "" || code != 243 || !strings.HasPrefix(errOut.String(), `{"error":{"class":"failed_precondition"`) {
		t.Errorf("%d %s %s", code, diff, errOut)
	}
}

func TestPrune(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{pruned: []*bangerv1.Pruned{
		{Kind: "image", Name: "app:1", Bytes: 20 << 20}, {Kind: "image", Bytes: 1 << 20}, {Kind: "layer", Name: "sha256:1", Bytes: 3 << 20}, {Kind: "layer", Name: "sha256:2", Bytes: 5 << 20},
	}}}
	f.start(t, home)
	const table = "KIND   NAME       SIZE\nimage  app:1       20M\nimage  <none>       1M\nlayer  2 of them    8M\n"
	for line, want := range map[string]string{
		"image prune --dry-run": table + "would free 29M\n",
		"image prune -y":        table + "freed 29M\n",
	} {
		d, out, errOut := online(t, home)
		if code := Main(t.Context(), strings.Fields(line), d); code != 0 || errOut.String() != "" {
			t.Errorf("%s: %d, %s", line, code, errOut)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("%s: %s", line, diff)
		}
	}
	d, out, _ := online(t, home)
	if code := Main(t.Context(), strings.Fields("image prune --all --yes --format json"), d); code != 0 ||
		!strings.HasPrefix(out.String(), "{\n  \"dry_run\": false,\n  \"freed_bytes\": 30408704,\n  \"pruned\": [\n    {\n      \"kind\": \"image\",") {
		t.Errorf("%d %s", code, out)
	}
	if diff := cmp.Diff(&bangerv1.PruneImagesRequest{All: true}, f.library.asked[len(f.library.asked)-1].(*bangerv1.PruneImagesRequest), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	d, _, errOut := online(t, home)
	if code := Main(t.Context(), strings.Fields("image prune --format json"), d); code != 240 || !strings.HasPrefix(errOut.String(), `{"error":`) {
		t.Errorf("%d %s", code, errOut)
	}
	f.library.pruned = nil
	d, out, _ = online(t, home)
	if code := Main(t.Context(), strings.Fields("image prune --dry-run"), d); code != 0 || out.String() != "there is nothing to remove\n" {
		t.Errorf("%d %s", code, out)
	}
}

// A person is asked; only yes removes anything.
func TestPruneAsks(t *testing.T) {
	for typed, want := range map[string]string{"y\n": "freed 20M\r\n", "n\n": "banger: nothing was removed\r\n"} {
		home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{pruned: []*bangerv1.Pruned{{Kind: "image", Name: "app:1", Bytes: 20 << 20}}}}
		f.start(t, home)
		master, tty, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { master.Close(); tty.Close() })
		screen := make(chan string, 1)
		go func() { // ends when both ends are closed
			var b bytes.Buffer
			buf := make([]byte, 1024)
			for {
				n, err := master.Read(buf)
				b.Write(buf[:n])
				if bytes.HasSuffix(b.Bytes(), []byte("[y/N] ")) {
					_, err = master.WriteString(typed)
				}
				if err != nil {
					screen <- b.String()
					return
				}
			}
		}()
		d, _, _ := online(t, home)
		d.Term = term.New(term.Config{Stdin: tty, Stdout: tty, Stderr: tty, Getenv: func(string) string { return "" }})
		code := Main(t.Context(), []string{"image", "prune"}, d)
		tty.Close()
		text := <-screen
		want = "remove this and free 20M? [y/N] " + strings.ReplaceAll(typed, "\n", "\r\n") + want
		if code != 0 || !strings.HasSuffix(text, want) || !strings.Contains(text, "image  app:1   20M\r\n") {
			t.Errorf("%d %q", code, text)
		}
		if asked := len(f.library.asked); asked != map[string]int{"y\n": 2, "n\n": 1}[typed] {
			t.Errorf("%q: %d calls", typed, asked)
		}
	}
}

func TestCatalogWarnings(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{
		catalog: []*bangerv1.CatalogEntry{
			{Name: "debian-bookworm", Description: "Debian 12", Source: "debian:bookworm", IsDefault: true, Present: true},
			{Name: "tools", Description: "ours", Source: "bundle:https://h/tools.tar.zst", Catalog: "team"},
		},
		warnings: []string{"catalog other: \x1b[31mno answer"},
	}}
	f.start(t, home)
	on, _, _ := online(t, home)
	d, out, errOut := newOnline(t, 120)
	d.Attach, d.Connect = on.Attach, on.Connect
	code := Main(t.Context(), []string{"image", "catalog", "--refresh"}, d)
	want := `NAME             PRESENT  DEFAULT  SOURCE                          DESCRIPTION  CATALOG
debian-bookworm  yes      yes      debian:bookworm                 Debian 12    -
tools            no       no       bundle:https://h/tools.tar.zst  ours         team
`
	if diff := cmp.Diff(want, out.String()); diff != "" || code != 0 || errOut.String() != "banger: warning: catalog other: no answer\n" {
		t.Errorf("%d %s %q", code, diff, errOut)
	}
	if !f.library.asked[0].(*bangerv1.ImageCatalogRequest).GetRefresh() {
		t.Error("nothing was asked anew")
	}
	d, _, errOut = online(t, home)
	if code := Main(t.Context(), []string{"image", "catalog", "--format", "json"}, d); code != 0 || errOut.String() != "" {
		t.Errorf("%d %q", code, errOut)
	}
}

func TestKernels(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{result: "mine", kernels: []*bangerv1.Kernel{
		{Name: "mine", Version: "6.1.0", Digest: "sha256:" + strings.Repeat("a", 64), UsedBytes: 90 << 20, SharedBytes: 40 << 20, CreatedAtMs: aMoment().UnixMilli(), Source: "import", UsedBy: []string{"dev"}, Missing: []string{"CONFIG_A (a)", "CONFIG_B (b)"}},
	}}}
	f.start(t, home)
	d, out, _ := online(t, home)
	if code := Main(t.Context(), []string{"kernel", "list"}, d); code != 0 ||
		out.String() != "NAME  VERSION       DIGEST        SIZE  SHARED  CREATED     SOURCE        USED BY\nmine  6.1.0         aaaaaaaaaaaa   50M     40M  2027-01-15  import        dev\n" {
		t.Errorf("%d\n%s", code, out)
	}
	d, out, _ = online(t, home)
	if code := Main(t.Context(), []string{"kernel", "show", "mine"}, d); code != 0 || !strings.Contains(out.String(), "\nlacks    CONFIG_A (a)\nlacks    CONFIG_B (b)\n") ||
		!strings.Contains(out.String(), "\nsize     90M (50M its own, 40M shared)\n") {
		t.Errorf("%d\n%s", code, out)
	}
	inDir(t, "vmlinux")
	d, out, errOut := online(t, home)
	if code := Main(t.Context(), strings.Fields("kernel import mine vmlinux --force"), d); code != 0 || out.String() != "mine\n" ||
		errOut.String() != "banger: kernel mine lacks CONFIG_A (a) and CONFIG_B (b)\n" {
		t.Errorf("%d %s %s", code, out, errOut)
	}
	d, out, _ = online(t, home)
	if code := Main(t.Context(), strings.Fields("kernel rm mine"), d); code != 0 || out.String() != "mine\n" {
		t.Errorf("%d %s", code, out)
	}
}

func TestFetchPolicies(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{
		result: "alpine:latest", images: []*bangerv1.Image{{Name: "here"}}, catalog: []*bangerv1.CatalogEntry{{Name: "a"}, {Name: "std", IsDefault: true}},
	}}
	f.start(t, home)
	for _, tc := range []struct {
		flags    fetchFlags
		image    string
		want     string // the spec's image afterwards
		asked    *bangerv1.PullImageRequest
		errStart string
	}{
		{fetchFlags{policy: fetchMissing}, "alpine", "alpine", nil, ""},
		{fetchFlags{policy: fetchAlways}, "alpine", "alpine:latest", &bangerv1.PullImageRequest{Reference: "alpine", Force: true}, ""},
		{fetchFlags{policy: fetchMissing, platform: "linux/arm64"}, "alpine", "alpine:latest", &bangerv1.PullImageRequest{Reference: "alpine", Platform: "linux/arm64"}, ""},
		{fetchFlags{policy: fetchNever}, "here", "here", nil, ""},
		{fetchFlags{policy: fetchNever}, "alpine", "alpine", nil, "image alpine is not here, and --pull never forbids to fetch it"},
		{fetchFlags{policy: fetchNever}, "", "", nil, "image std is not here, and --pull never forbids to fetch it"},
	} {
		f.library.asked = nil
		d, _, _ := online(t, home)
		c, err := d.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		spec := &bangerv1.VMSpec{Image: tc.image}
		err = tc.flags.prepare(t.Context(), c, spec, d)
		c.Close()
		if got := fmt.Sprint(err); (err != nil || tc.errStart != "") && got != tc.errStart || spec.GetImage() != tc.want {
			t.Errorf("%+v %q: %v, image %q", tc.flags, tc.image, err, spec.GetImage())
		}
		var pulls []*bangerv1.PullImageRequest
		for _, m := range f.library.asked {
			if p, ok := m.(*bangerv1.PullImageRequest); ok {
				pulls = append(pulls, p)
			}
		}
		if (tc.asked != nil) != (len(pulls) == 1) || tc.asked != nil && !proto.Equal(tc.asked, pulls[0]) {
			t.Errorf("%+v: pulls %v", tc.flags, pulls)
		}
	}
}

func TestEntrypoint(t *testing.T) {
	app := &bangerv1.ImageConfig{Entrypoint: []string{"/app", "-v"}, Cmd: []string{"serve"}}
	shell := &bangerv1.ImageConfig{Cmd: []string{"/bin/sh"}}
	for _, tc := range []struct {
		name  string
		what  guestCommand
		image *bangerv1.ImageConfig
		want  []string
	}{
		{"nothing at all", guestCommand{}, nil, nil},
		{"command only", guestCommand{args: []string{"ls", "-l"}}, nil, []string{"ls", "-l"}},
		{"entrypoint and its command", guestCommand{}, app, []string{"/app", "-v", "serve"}},
		{"entrypoint and a command", guestCommand{args: []string{"test", "x"}}, app, []string{"/app", "-v", "test", "x"}},
		{"another entrypoint drops the command", guestCommand{entrypoint: "sh", given: true}, app, []string{"sh"}},
		{"another entrypoint and a command", guestCommand{entrypoint: "sh", given: true, args: []string{"-c", "id"}}, app, []string{"sh", "-c", "id"}},
		{"no entrypoint", guestCommand{given: true}, app, nil},
		{"no entrypoint but a command", guestCommand{given: true, args: []string{"id"}}, app, []string{"id"}},
		{"the image's shell", guestCommand{}, shell, []string{"/bin/sh"}},
		{"instead of the image's shell", guestCommand{args: []string{"id"}}, shell, []string{"id"}},
	} {
		if got := tc.what.argv(tc.image); !cmp.Equal(tc.want, got) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := app.GetEntrypoint(); !cmp.Equal(got, []string{"/app", "-v"}) {
		t.Errorf("the configuration was changed: %q", got)
	}
}

func TestImageCompletion(t *testing.T) {
	home, f := shortDir(t), &fakeDaemon{library: fakeLibrary{
		images:  []*bangerv1.Image{{Name: "app:10", Names: []string{"app:10", "app:9"}}, {Name: "mine", Unmanaged: true}},
		catalog: []*bangerv1.CatalogEntry{{Name: "debian-bookworm"}}, kernels: []*bangerv1.Kernel{{Name: "k"}},
	}}
	f.start(t, home)
	for line, want := range map[string]string{
		"image show ":              "app:9 app:10 mine :4",
		"image rm app:9 ":          "app:10 mine :4",
		"image promote ":           "mine :4",
		"image pull ":              "app:10 app:9 debian-bookworm mine :4",
		"image pull ./":            ":0",
		"image tag mine ":          ":4",
		"image push ":              "app:9 app:10 mine :4",
		"image build --progress ":  "auto plain quiet :4",
		"image build ":             ":16",
		"image export --type ":     "oci-layout oci-archive bundle :4",
		"vm run --image ":          "app:10 app:9 debian-bookworm mine :4",
		"vm run --pull ":           "missing always never :4",
		"kernel show ":             "k :4",
		"kernel rm ":               "k :4",
		"kernel import mine ":      ":0",
		"image register --kernel ": "k :0",
		"image register --rootfs ": ":0",
	} {
		d, out, _ := online(t, home)
		args := strings.Split(line, " ")
		if code := Main(t.Context(), append([]string{"__completeNoDesc"}, args...), d); code != 0 {
			t.Errorf("%q: %d", line, code)
		}
		if got := strings.Join(strings.Fields(out.String()), " "); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
