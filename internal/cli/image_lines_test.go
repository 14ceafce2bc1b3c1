package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"banger/internal/fault"
	bangerv1 "banger/proto/banger/v1"
)

// inDir makes a directory with these files (a name that ends in / is a directory) the present one.
func inDir(t *testing.T, files ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Chdir(dir)
	for _, name := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, "/") {
			write(t, filepath.Join(dir, name), "x")
		} else if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What is wrong with the lines of image and kernel commands is said before anything is reached.
func TestRefusedImages(t *testing.T) {
	inDir(t, "rootfs.tar", "tree/", "ctx/Containerfile", "layout/oci-layout", "empty", "vmlinux")
	write(t, "empty", "")
	for _, tc := range []struct{ line, want string }{
		{"image pull", "banger image pull takes the name of one image\nbanger: hint: banger image catalog\n"},
		{"image pull docker-archive:nope.tar", "docker-archive: there is no \"nope.tar\"\nbanger: hint: ls .\n"},
		{"image pull oci-layout:gone:1.0", "oci-layout: there is no \"gone\"\nbanger: hint: ls .\n"},
		{"image pull sub/x.tar.zst", "bundle: there is no \"sub/x.tar.zst\"\n"},
		{"image pull ./layout", "\"./layout\" is a path: what is there has to be said in front of it\nbanger: hint: banger image pull oci-layout:./layout\n"},
		{"image pull ./tree", "\"./tree\" is a path: what is there has to be said in front of it\nbanger: hint: banger image build ./tree\n"},
		{"vm run --image ./rootfs.tar", "\"./rootfs.tar\" is a path: what is there has to be said in front of it\nbanger: hint: banger image pull docker-archive:./rootfs.tar   # or: banger image register NAME --rootfs ./rootfs.tar\n"},
		{"image pull x --platform amd64", "--platform \"amd64\" is not linux/ARCH, such as linux/amd64\nbanger: hint: banger image pull --platform linux/amd64\n"},
		{"image pull x --sha256 12", "--sha256 \"12\" is not 64 hexadecimal digits\nbanger: hint: sha256sum FILE\n"},
		{"image pull x --key rootfs.tar", "--key \"rootfs.tar\" is neither a minisign public key (RW...) nor a file with one\nbanger: hint: minisign -G\n"},
		{"image register mine", "banger image register needs a root file system\nbanger: hint: banger image register mine --rootfs rootfs.tar\n"},
		{"image register mine --rootfs tree", "--rootfs \"tree\" is a directory, not an ext4 file system or a tar file\nbanger: hint: tar -C tree -cf rootfs.tar .\n"},
		{"image register mine --rootfs gone.ext4", "--rootfs: there is no \"gone.ext4\"\nbanger: hint: ls .\n"},
		{"image register mine --rootfs rootfs.tar --initrd x", "--initrd belongs to a kernel file, but --kernel names none\nbanger: hint: banger image register mine --rootfs rootfs.tar --kernel ./vmlinux --initrd ...\n"},
		{"image register mine --rootfs rootfs.tar --kernel vmlinux --modules rootfs.tar", "--modules \"rootfs.tar\" is no directory\nbanger: hint: ls -ld rootfs.tar\n"},
		{"image register mine --rootfs rootfs.tar --kernel ./gone", "--kernel: there is no \"./gone\"\nbanger: hint: ls .\n"},
		{"image show", "banger image show needs the name of an image\nbanger: hint: banger image list\n"},
		{"image rm", "banger image rm needs the name of an image\nbanger: hint: banger image list\n"},
		{"image tag a", "banger image tag takes the name of an image and a new one\nbanger: hint: banger image tag --help\n"},
		{"image push a b c", "banger image push takes one image, not 3\nbanger: hint: banger image push --help\n"},
		{"image prune", "nobody is there to be asked whether to remove images\nbanger: hint: banger image prune --yes   # or --dry-run\n"},
		{"image prune -a", "nobody is there to be asked whether to remove images\nbanger: hint: banger image prune --all --yes   # or --dry-run\n"},
		{"image prune -y --dry-run", "--dry-run and --yes exclude each other\nbanger: hint: banger image prune --dry-run\n"},
		{"image export app", "banger image export needs a file or a directory to write\nbanger: hint: banger image export app -o image.tar.zst\n"},
		{"image export app -o x.tar.gz", "what to write cannot be told from \"x.tar.gz\": it ends neither in .tar.zst nor in .tar, and is no plain name of a directory\nbanger: hint: banger image export --type oci-layout -o x.tar.gz ...\n"},
		{"image export app -o x.tar --kernel", "only a bundle can hold a kernel, and \"x.tar\" is an oci-archive\nbanger: hint: banger image export app -o image.tar.zst --kernel\n"},
		{"image export app -o gone/x.tar", "--output: there is no \"DIR/gone\"\nbanger: hint: ls DIR\n"},
		{"image export app -o x --type oci", "--type \"oci\" is not one of oci-layout, oci-archive, bundle\nbanger: hint: banger image export --help\n"},
		{"image build", "banger image build needs the directory with the Dockerfile\nbanger: hint: banger image build .\n"},
		{"image build a b", "banger image build takes one directory, not 2\nbanger: hint: banger image build --help\n"},
		{"image build -- make", "a script or a command needs an image to run in\nbanger: hint: banger image build --from debian-bookworm -- make\n"},
		{"image build --script s .", "a script or a command needs an image to run in\nbanger: hint: banger image build --from debian-bookworm --script s\n"},
		{"image build --from a", "a build --from an image needs a script or a command, one of them\nbanger: hint: banger image build --from a --script setup.sh\n"},
		{"image build --from a make", "argument \"make\": a build --from an image takes no directory; a command stands behind --\nbanger: hint: banger image build --from a -- make\n"},
		{"image build --from a --target t -- make", "--target is for a Dockerfile, and --from is instead of one\nbanger: hint: banger image build --help\n"},
		{"image build --from a --script empty", "--script: \"empty\" is empty\n"},
		{"image build gone", "the context: there is no \"gone\"\nbanger: hint: ls .\n"},
		{"image build tree", "there is no Dockerfile in \"tree\"\nbanger: hint: banger image build -f DOCKERFILE tree\n"},
		{"image build ctx", "there is no Dockerfile in \"ctx\"\nbanger: hint: banger image build -f ctx/Containerfile ctx\n"},
		{"image build -", "a build does not read stdin: it takes a directory\nbanger: hint: banger image build -f Dockerfile .\n"},
		{"image build https://example.org/x.git", "\"https://example.org/x.git\" is not a directory: a build takes one of this host\nbanger: hint: git clone https://example.org/x.git\n"},
		{"image build --progress fancy ctx", "--progress \"fancy\" is not one of auto, plain, quiet\nbanger: hint: banger image build --progress plain\n"},
		{"image build --label x ctx", "label \"x\" is not NAME=VALUE\nbanger: hint: banger image build --label version=1.2\n"},
		{"image build --memory 1M ctx", "memory of 1M is too small: the kernel needs at least 128M\nbanger: hint: banger image build --memory 512M .\n"},
		{"image build --build-arg GONE ctx", "--build-arg: environment variable GONE has no value on the host to pass on\nbanger: hint: export GONE=...\n"},
		{"kernel import mine", "banger kernel import takes a name and the file of a kernel\nbanger: hint: banger kernel import --help\n"},
		{"kernel import mine gone", "the kernel: there is no \"gone\"\nbanger: hint: ls .\n"},
		{"kernel import mine tree", "the kernel \"tree\" is no regular file\nbanger: hint: ls -ld tree\n"},
		{"vm run --pull sometimes", "--pull \"sometimes\" is not one of missing, always, never\nbanger: hint: banger vm run --pull always\n"},
		{"vm run --pull always", "--pull always is about an image, but none is named\nbanger: hint: banger vm run --image IMAGE --pull always\n"},
		{"vm run --image x --platform linux/arm64 --pull never", "--platform and --pull never exclude each other\n"},
		{"vm run --detach --entrypoint sh", "--detach runs no entrypoint\nbanger: hint: banger vm run --detach\n"},
	} {
		t.Run(tc.line, func(t *testing.T) {
			d, out, errOut := offline(t)
			code := Main(t.Context(), strings.Fields(tc.line), d)
			dir, _ := os.Getwd()
			want := "banger: error: " + strings.ReplaceAll(tc.want, "DIR", dir)
			if diff := cmp.Diff(want, errOut.String()); diff != "" || out.Len() > 0 {
				t.Errorf("stdout %q, stderr %s", out, diff)
			}
			wantCode := fault.ExitCode(fault.Invalid)
			if strings.Contains(tc.want, "there is no ") {
				wantCode = fault.ExitCode(fault.NotFound)
			}
			if code != wantCode {
				t.Errorf("exit code %d, want %d", code, wantCode)
			}
		})
	}
}

// The daemon gets absolute paths, and everything that was given.
func TestImageRequests(t *testing.T) {
	const key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
	dir := inDir(t, "rootfs.tar", "vmlinux", "initrd", "modules/", "config", "layout:x/oci-layout", "app.tar.zst", "ctx/Dockerfile", "other", "setup.sh", "layout/oci-layout")
	write(t, "minisign.pub", "untrusted comment: minisign public key\n"+key+"\n")
	sum := strings.Repeat("0aF", 21) + "0"
	for _, tc := range []struct {
		line string
		want proto.Message
	}{
		{"image pull alpine", &bangerv1.PullImageRequest{Reference: "alpine"}},
		{"image pull --force --platform linux/arm64 --name mine h:5000/a@sha256:0", &bangerv1.PullImageRequest{Reference: "h:5000/a@sha256:0", Force: true, Platform: "linux/arm64", Name: "mine"}},
		{"image pull oci-layout:layout:x", &bangerv1.PullImageRequest{Reference: "oci-layout:" + dir + "/layout:x"}},
		{"image pull oci-layout:./layout:1.0", &bangerv1.PullImageRequest{Reference: "oci-layout:" + dir + "/layout:1.0"}},
		{"image pull docker-archive:rootfs.tar:team/app:1.0", &bangerv1.PullImageRequest{Reference: "docker-archive:" + dir + "/rootfs.tar:team/app:1.0"}},
		{"image pull docker-archive:rootfs.tar", &bangerv1.PullImageRequest{Reference: "docker-archive:" + dir + "/rootfs.tar"}},
		{"image pull app.tar.zst --key minisign.pub --key " + key + " --sha256 sha256:" + sum, &bangerv1.PullImageRequest{
			Reference: "bundle:" + dir + "/app.tar.zst", Keys: []string{key, key}, Sha256: strings.ToLower(sum),
		}},
		{"image pull https://h/app.tar.zst", &bangerv1.PullImageRequest{Reference: "https://h/app.tar.zst"}},
		{"image register mine --rootfs rootfs.tar", &bangerv1.RegisterImageRequest{Name: "mine", Rootfs: dir + "/rootfs.tar"}},
		{"image register mine --rootfs rootfs.tar --kernel debian-bookworm --force", &bangerv1.RegisterImageRequest{Name: "mine", Rootfs: dir + "/rootfs.tar", Kernel: "debian-bookworm", Force: true}},
		{"image register mine --rootfs rootfs.tar --kernel vmlinux --initrd initrd --modules modules", &bangerv1.RegisterImageRequest{
			Name: "mine", Rootfs: dir + "/rootfs.tar", Kernel: dir + "/vmlinux", Initrd: dir + "/initrd", Modules: dir + "/modules",
		}},
		{"image promote mine", &bangerv1.PromoteImageRequest{Ref: "mine"}},
		{"image export mine -o x.tar.zst --kernel", &bangerv1.ExportImageRequest{Ref: "mine", Path: dir + "/x.tar.zst", Format: "bundle", Kernel: true}},
		{"image export mine -o x.tar", &bangerv1.ExportImageRequest{Ref: "mine", Path: dir + "/x.tar", Format: "oci-archive"}},
		{"image export mine -o out/", &bangerv1.ExportImageRequest{Ref: "mine", Path: dir + "/out", Format: "oci-layout"}},
		{"image export mine -o x.img --type bundle", &bangerv1.ExportImageRequest{Ref: "mine", Path: dir + "/x.img", Format: "bundle"}},
		{"image push mine", &bangerv1.PushImageRequest{Ref: "mine"}},
		{"image push mine localhost:5000/mine", &bangerv1.PushImageRequest{Ref: "mine", Target: "localhost:5000/mine"}},
		{"image build ctx", &bangerv1.BuildImageRequest{ContextDir: dir + "/ctx"}},
		{"image build -t app --build-arg A=1 --build-arg HOST -f other --target t --no-cache --pull --platform linux/amd64 --label a=b --cpus 2 --memory 1G --disk 20G ctx", &bangerv1.BuildImageRequest{
			Name: "app", ContextDir: dir + "/ctx", Dockerfile: dir + "/other", BuildArgs: []string{"A=1", "HOST=h"}, Target: "t", NoCache: true, Pull: true,
			Platform: "linux/amd64", Labels: []string{"a=b"}, Cpus: 2, MemoryBytes: 1 << 30, DiskBytes: 20 << 30,
		}},
		{"image build --from debian-bookworm --script setup.sh", &bangerv1.BuildImageRequest{From: "debian-bookworm", Script: []byte("x")}},
		{"image build --from debian-bookworm -t a -- make -j 2", &bangerv1.BuildImageRequest{From: "debian-bookworm", Name: "a", Argv: []string{"make", "-j", "2"}}},
		{"kernel pull debian-bookworm --force", &bangerv1.PullKernelRequest{Reference: "debian-bookworm", Force: true}},
		{"kernel import mine vmlinux --modules modules --config config --force", &bangerv1.ImportKernelRequest{
			Name: "mine", Image: dir + "/vmlinux", Modules: dir + "/modules", Config: dir + "/config", Force: true,
		}},
	} {
		t.Run(tc.line, func(t *testing.T) {
			home, f := shortDir(t), &fakeDaemon{}
			f.library = fakeLibrary{
				result: "made", images: []*bangerv1.Image{{Name: "made"}}, kernels: []*bangerv1.Kernel{{Name: "made"}},
			}
			f.start(t, home)
			d, out, errOut := online(t, home)
			d.LookupEnv = func(name string) (string, bool) { return "h", name == "HOST" }
			if code := Main(t.Context(), strings.Fields(tc.line), d); code != 0 {
				t.Fatalf("exit code %d: %s", code, errOut)
			}
			want := "made\n"
			if e, ok := tc.want.(*bangerv1.ExportImageRequest); ok {
				want = e.GetPath() + "\n"
			}
			if out.String() != want || errOut.String() != "" {
				t.Errorf("stdout %q, stderr %q", out, errOut)
			}
			if diff := cmp.Diff([]proto.Message{tc.want}, f.library.asked, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
