package kernel

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const modulesDep = `kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/core/failover.ko:
kernel/drivers/net/net-failover.ko: kernel/net/core/failover.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net-failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
kernel/c.ko: kernel/gone.ko
kernel/crypto/crc32c_generic.ko.zst:
kernel/arch/crc32c-fast.ko:
x/.ko:
../../escape.ko:
`

func TestLoadOrder(t *testing.T) {
	const soft = "# a comment\nsoftdep virtio_blk pre: crc32c absent post: a\nsoftdep overlay post: a\n"
	const alias = "alias crc32c crc32c_fast\nalias crc32c crc32c_generic\nalias pci:v*d* a\n"
	for _, tc := range []struct {
		name    string
		builtin string
		soft    string
		wanted  string
		want    string
		text    string
	}{
		{name: "dependencies first", wanted: "virtio_blk", want: "virtio_ring virtio virtio_blk"},
		{
			name: "each once, dashes in file names", wanted: "virtio_blk virtio_net",
			want: "virtio_ring virtio virtio_blk failover net_failover virtio_net",
		},
		{
			name: "built in", builtin: "kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio_ring.ko\nkernel/fs/overlayfs/overlay.ko\n",
			wanted: "virtio_blk overlay", want: "virtio_blk",
		},
		{name: "what it asks for by another name", soft: soft, wanted: "virtio_blk", want: "crc32c_generic virtio_ring virtio virtio_blk"},
		{name: "that is built in", soft: soft, builtin: "x/crc32c-generic.ko", wanted: "virtio_blk", want: "virtio_ring virtio virtio_blk"},
		{name: "a circle ends", wanted: "a", want: "b a"},
		{name: "missing", wanted: "absent", text: "kernel has no module absent"},
		{name: "missing dependency", wanted: "c", text: "kernel has no module gone"},
		{name: "not inside", wanted: "escape", text: "kernel has no module escape"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ix := parseDep(modulesDep)
			ix.addBuiltin(tc.builtin)
			ix.addSoft(tc.soft)
			ix.addAliases(alias)
			files, err := ix.loadOrder(strings.Fields(tc.wanted))
			if (err == nil) != (tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("error %v, want %q", err, tc.text)
			}
			var names []string
			for _, f := range files {
				names = append(names, moduleName(f))
			}
			if diff := cmp.Diff(tc.want, strings.Join(names, " ")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestReadModule(t *testing.T) {
	module := []byte("\x7fELF a module")
	for name, data := range map[string][]byte{
		"plain": module, "gzip": gzipped(t, module), "xz": xzipped(t, module), "zstd": zstandard(t, module),
	} {
		if got, err := readModule(data); err != nil || string(got) != string(module) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := readModule([]byte("no module")); err == nil {
		t.Error("garbage is taken for a module")
	}
}
