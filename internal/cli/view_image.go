package cli

import (
	"time"

	bangerv1 "banger/proto/banger/v1"
)

// The JSON shapes of what is said of images and kernels. The rules of view.go hold here, too.

type imageView struct {
	Name        string      `json:"name"`
	Names       []string    `json:"names,omitempty"` // all that stand for it
	Digest      string      `json:"digest"`
	Source      string      `json:"source"`
	Origin      string      `json:"origin,omitempty"`
	Arch        string      `json:"arch,omitempty"`
	SizeBytes   uint64      `json:"size_bytes"`   // virtual
	UsedBytes   uint64      `json:"used_bytes"`   // real, on the host
	SharedBytes uint64      `json:"shared_bytes"` // the part of used_bytes that other images have, too
	Kernel      string      `json:"kernel,omitempty"`
	CreatedAt   *time.Time  `json:"created_at,omitempty"`
	UsedBy      []string    `json:"used_by"`
	Unmanaged   bool        `json:"unmanaged,omitempty"` // its files are the user's own
	Problem     string      `json:"problem,omitempty"`   // why it cannot be used
	Rootfs      string      `json:"rootfs,omitempty"`
	Config      *configView `json:"config,omitempty"`
	Layers      []layerView `json:"layers,omitempty"`
}

type configView struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	User         string            `json:"user,omitempty"`
	Workdir      string            `json:"workdir,omitempty"`
	Env          []string          `json:"env,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	StopSignal   string            `json:"stop_signal,omitempty"`
	Shell        string            `json:"shell,omitempty"`
}

type layerView struct {
	MediaType string `json:"media_type,omitempty"`
	Digest    string `json:"digest"`
	SizeBytes uint64 `json:"size_bytes"`
	Present   bool   `json:"present"` // it is in the cache
}

func viewImage(m *bangerv1.Image) imageView {
	v := imageView{
		Name: m.GetName(), Names: m.GetNames(), Digest: m.GetDigest(), Source: m.GetSource(), Origin: m.GetOrigin(), Arch: m.GetArch(),
		SizeBytes: m.GetSizeBytes(), UsedBytes: m.GetUsedBytes(), SharedBytes: m.GetSharedBytes(), Kernel: m.GetKernel(),
		CreatedAt: at(m.GetCreatedAtMs()), UsedBy: append([]string{}, m.GetUsedBy()...), Unmanaged: m.GetUnmanaged(),
		Problem: m.GetProblem(), Rootfs: m.GetRootfs(),
	}
	if c := m.GetConfig(); c != nil {
		v.Config = &configView{
			Entrypoint: c.GetEntrypoint(), Cmd: c.GetCmd(), User: c.GetUser(), Workdir: c.GetWorkdir(), Env: c.GetEnv(),
			ExposedPorts: c.GetExposedPorts(), Labels: c.GetLabels(), StopSignal: c.GetStopSignal(), Shell: c.GetShell(),
		}
	}
	for _, l := range m.GetLayers() {
		v.Layers = append(v.Layers, layerView{l.GetMediaType(), l.GetDigest(), l.GetSizeBytes(), l.GetPresent()})
	}
	return v
}

type kernelView struct {
	Name        string     `json:"name"`
	Names       []string   `json:"names,omitempty"`
	Version     string     `json:"version"`
	Digest      string     `json:"digest"`
	Source      string     `json:"source"`
	Package     string     `json:"package,omitempty"`
	Arch        string     `json:"arch,omitempty"`
	UsedBytes   uint64     `json:"used_bytes"`
	SharedBytes uint64     `json:"shared_bytes"`
	CreatedAt   *time.Time `json:"created_at,omitempty"`
	UsedBy      []string   `json:"used_by"`
	Missing     []string   `json:"missing,omitempty"` // what it lacks for banger
	Problem     string     `json:"problem,omitempty"`
}

func viewKernel(m *bangerv1.Kernel) kernelView {
	return kernelView{
		Name: m.GetName(), Names: m.GetNames(), Version: m.GetVersion(), Digest: m.GetDigest(), Source: m.GetSource(), Package: m.GetPackage(),
		Arch: m.GetArch(), UsedBytes: m.GetUsedBytes(), SharedBytes: m.GetSharedBytes(), CreatedAt: at(m.GetCreatedAtMs()),
		UsedBy: append([]string{}, m.GetUsedBy()...), Missing: m.GetMissing(), Problem: m.GetProblem(),
	}
}

type catalogView struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Source      string `json:"source"`
	Present     bool   `json:"present"`
	Default     bool   `json:"default"`
	Catalog     string `json:"catalog,omitempty"` // of the configuration; absent: the built-in one
}

func viewCatalog(entries []*bangerv1.CatalogEntry) []catalogView {
	return views(entries, func(e *bangerv1.CatalogEntry) catalogView {
		return catalogView{e.GetName(), e.GetDescription(), e.GetSource(), e.GetPresent(), e.GetIsDefault(), e.GetCatalog()}
	})
}

// pruneView is the JSON form of prune.
type pruneView struct {
	DryRun     bool         `json:"dry_run"`
	FreedBytes uint64       `json:"freed_bytes"` // or what would be freed
	Pruned     []prunedView `json:"pruned"`
}

type prunedView struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Bytes uint64 `json:"bytes"`
}

func viewPrune(resp *bangerv1.PruneImagesResponse, dryRun bool) pruneView {
	return pruneView{DryRun: dryRun, FreedBytes: resp.GetFreedBytes(), Pruned: views(resp.GetPruned(), func(p *bangerv1.Pruned) prunedView {
		return prunedView{p.GetKind(), p.GetName(), p.GetBytes()}
	})}
}
