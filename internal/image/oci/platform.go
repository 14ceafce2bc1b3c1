package oci

import (
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/fault"
)

// choose returns the entry of an index for Linux on arch.
func choose(index *v1.IndexManifest, arch string) (v1.Descriptor, error) {
	best, bestRank := -1, 0
	var there []string
	for i, d := range index.Manifests {
		if isAttestation(d) {
			continue
		}
		there = append(there, platformName(d.Platform))
		if rank := rankOf(d.Platform, arch); rank > bestRank {
			best, bestRank = i, rank
		}
	}
	if best < 0 {
		slices.Sort(there)
		return v1.Descriptor{}, wrongPlatform(slices.Compact(there), arch)
	}
	d := index.Manifests[best]
	if err := checkDescriptor(d, "a manifest of the index", maxManifest); err != nil {
		return v1.Descriptor{}, err
	}
	return d, nil
}

// rankOf is how well a platform fits; 0 is not at all. Of several variants of an architecture the one that every
// processor of it can run is the best: an amd64 without variant, an arm64 of v8.
func rankOf(p *v1.Platform, arch string) int {
	switch {
	case p == nil:
		return 1 // an index of one image need not say
	case p.OS != "linux" && p.OS != "" || normalArch(p.Architecture) != arch:
		return 0
	case p.Variant == "" || p.Variant == "v1" || arch == "arm64" && p.Variant == "v8":
		return 3
	}
	return 2
}

// isAttestation tells the entries that BuildKit adds about an image.
func isAttestation(d v1.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// normalArch returns the architecture as Go calls it.
func normalArch(arch string) string {
	switch arch = strings.ToLower(arch); arch {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64", "arm64/v8":
		return "arm64"
	}
	return arch
}

func platformName(p *v1.Platform) string {
	if p == nil {
		return "unknown"
	}
	return short(strings.Trim(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
}

// wrongPlatform says what an image is for instead.
func wrongPlatform(there []string, arch string) error {
	const most = 20
	list := strings.Join(there[:min(len(there), most)], ", ")
	switch {
	case len(there) == 0:
		list = "nothing"
	case len(there) > most:
		list += ", ..."
	}
	return fault.New(fault.Invalid, "the image is for %s, and linux/%s is needed", list, arch).WithHint("banger image catalog")
}
