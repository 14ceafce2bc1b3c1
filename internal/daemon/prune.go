package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/daemon/library"
	"banger/internal/vm"
	"banger/internal/vmdir"
	bangerv1 "banger/proto/banger/v1"
)

// Prune implements the RPC.
func (s *imageService) Prune(ctx context.Context, req *connect.Request[bangerv1.PruneImagesRequest]) (*connect.Response[bangerv1.PruneImagesResponse], error) {
	may := func(digest string) bool { return !req.Msg.GetOnly() || slices.Contains(req.Msg.GetDigests(), digest) }
	all, err := s.parts.prune(ctx, req.Msg.GetAll(), req.Msg.GetDryRun(), may)
	if err != nil {
		return nil, err
	}
	out := &bangerv1.PruneImagesResponse{}
	for _, p := range all {
		out.Pruned = append(out.Pruned, &bangerv1.Pruned{Kind: p.Kind, Name: p.Name, Bytes: p.Bytes, Digest: p.Digest})
		out.FreedBytes += p.Bytes
	}
	return connect.NewResponse(out), nil
}

// prune removes what nobody needs: images, then the blobs and build steps that no image needs (unless an operation counts
// on them), then what is made again when it is missing.
func (p *parts) prune(ctx context.Context, all, dryRun bool, may func(digest string) bool) ([]library.Pruned, error) {
	out, err := p.images.Prune(ctx, all, dryRun, may)
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, image := range out {
		gone[image.Digest] = true
	}
	var steps []library.Pruned
	layers, err := p.images.PruneBlobs(ctx, p.blobs, dryRun, gone, func() (err error) {
		steps, err = pruneFiles("build-step", list(p.daemon.cfg.Paths.BuildCache()), dryRun)
		return err
	})
	if err != nil {
		return nil, err
	}
	stale, err := p.staleInitramfs(ctx)
	if err != nil {
		return nil, err
	}
	ramdisks, err := pruneFiles("initramfs", stale, dryRun)
	if err != nil {
		return nil, err
	}
	disks, err := pruneFiles("disk-template", p.staleDisks(), dryRun)
	out = append(append(append(append(out, layers...), steps...), ramdisks...), disks...)
	return out, err
}

// pruneFiles removes files and directories.
func pruneFiles(kind string, paths []string, dryRun bool) (out []library.Pruned, err error) {
	for _, path := range paths {
		gone := library.Pruned{Kind: kind, Name: name(path), Bytes: library.Usage(path)}
		if !dryRun {
			if err := os.RemoveAll(path); err != nil {
				return out, withClass(err)
			}
		}
		out = append(out, gone)
	}
	return out, nil
}

// staleInitramfs lists the initramfs files that no kernel of this host and no VM that runs uses: those of older bangers.
func (p *parts) staleInitramfs(ctx context.Context) ([]string, error) {
	vms, err := p.store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	cfg := p.daemon.cfg
	used := map[string]bool{}
	for _, v := range vms {
		p.fleet.snapshotRamdisks(v, used)
		if v.State == vm.Suspended { // goes on with the one that it was started with
			if m, err := vmdir.ReadSaved(p.fleet.suspendedDir(v.ID)); err == nil {
				used[m.Launch.Machine.Initramfs] = true
			}
		}
		if !v.State.Live() {
			continue
		}
		l, err := p.fleet.dir(v.ID).ReadLaunch()
		if err != nil {
			return nil, nil // one that is starting now: nothing can be said
		}
		used[l.Machine.Initramfs] = true
	}
	for _, dir := range list(cfg.Paths.Kernels()) {
		if strings.HasPrefix(name(dir), ".") {
			continue
		}
		if path, err := cfg.Initramfs(cfg.Paths.Initramfs(), dir); err == nil {
			used[path] = true
		}
	}
	var stale []string
	for _, file := range list(cfg.Paths.Initramfs()) {
		if !used[file] && strings.HasSuffix(file, ".cpio") {
			stale = append(stale, file)
		}
	}
	return stale, nil
}

// staleDisks lists the formatted disks that VMs were copied from, but for the one that a VM gets whose creator says
// nothing about its disk.
func (p *parts) staleDisks() []string {
	usual := fmt.Sprintf("-%d.img", p.daemon.cfg.Settings.Defaults.Disk)
	var stale []string
	for _, file := range list(p.daemon.cfg.Paths.Disks()) {
		if filepath.Ext(file) == ".img" && !strings.HasSuffix(file, usual) {
			stale = append(stale, file)
		}
	}
	return stale
}
