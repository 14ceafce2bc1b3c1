package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"slices"

	"banger/internal/fault"
	"banger/internal/image/dockerfile"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// copySource is where a COPY takes files from, if that is not the build context.
type copySource struct{ layers []source.Layer }

// copySource waits for the stage or the image that a step copies from; nil for the context, and for other steps.
func (sb *stageBuild) copySource(ctx context.Context, step dockerfile.Step) (*copySource, error) {
	switch c := step.Copy; {
	case c == nil:
		return nil, nil
	case c.Stage != nil:
		from, err := sb.b.stage(ctx, c.Stage)
		if err != nil {
			return nil, err
		}
		return &copySource{from.layers}, nil
	case c.Image == dockerfile.Scratch:
		return &copySource{}, nil
	case c.Image != "":
		base, err := sb.b.image(ctx, c.Image, sb.stage.Platform)
		return &copySource{base.Layers}, err
	}
	return nil, nil
}

// copy carries out COPY and ADD. A copy out of an image has two keys: one of the layers copied from, which needs no look
// into them, and like every copy one of the files copied, so that a stage that came out differently elsewhere changes
// nothing here.
func (sb *stageBuild) copy(ctx context.Context, below string, step dockerfile.Step, from *copySource, r *reporter) (source.Layer, bool, error) {
	c := step.Copy
	quick := ""
	if from != nil {
		quick = keyOf(below, "copy of layers", placeKey(c), sourceKey(c), layersKey("", from.layers))
		if made, ok := sb.find(quick); ok {
			return made, true, nil
		}
	}
	o, err := sb.origin(ctx, c, from)
	if err != nil {
		return source.Layer{}, false, err
	}
	sources, err := sb.collect(ctx, c, o, r.say)
	if err != nil {
		return source.Layer{}, false, err
	}
	files, err := sb.filesKey(ctx, sources, sb.b.report(step.Title))
	if err != nil {
		return source.Layer{}, false, err
	}
	made, cached, err := sb.cached(step, keyOf(below, "copy", placeKey(c), files), func() (source.Layer, error) {
		for _, s := range sources {
			if s.bring != nil {
				if err := s.bring(ctx); err != nil {
					return source.Layer{}, err
				}
			}
		}
		r.say("copying %s", summary(sources))
		return sb.copyLayer(ctx, c, sources)
	})
	if err == nil && quick != "" {
		err = sb.keep(quick, step, made)
	}
	return made, cached, err
}

// origin opens what a step copies from.
func (sb *stageBuild) origin(ctx context.Context, c *dockerfile.Copy, from *copySource) (origin, error) {
	if from != nil {
		return sb.b.tree(ctx, from.layers)
	}
	if sb.b.context != nil {
		return sb.b.context, nil
	}
	if slices.ContainsFunc(c.Sources, func(s string) bool { return !c.Add || !dockerfile.IsURL(s) }) {
		return nil, fault.New(fault.Invalid, "there is no build context to copy from")
	}
	return nothing{}, nil
}

// nothing is the origin of a build without a context.
type nothing struct{}

func (nothing) find(string) (*node, error)   { return nil, nil }
func (nothing) list(string) ([]*node, error) { return nil, nil }

// placeKey is what a COPY says about the destination.
func placeKey(c *dockerfile.Copy) string {
	chmod, unpack := "", "by itself"
	if c.Chmod != nil {
		chmod = c.Chmod.String()
	}
	if c.Unpack != nil {
		unpack = fmt.Sprint(*c.Unpack)
	}
	return keyOf(fmt.Sprint(c.Add), c.Dest, c.Chown, chmod, unpack)
}

// sourceKey is what it says about the sources.
func sourceKey(c *dockerfile.Copy) string {
	words := []string{fmt.Sprint(c.Parents), listKey(c.Sources), listKey(c.Exclude)}
	for _, doc := range c.Contents {
		words = append(words, doc.Name, string(doc.Data))
	}
	return keyOf(words...)
}

// filesKey identifies what is copied: names, types, modes, owners and contents, but not times. It reads all files.
func (sb *stageBuild) filesKey(ctx context.Context, sources []picked, report progress.Func) (string, error) {
	var read int64
	count := func(n int64) {
		read += n
		report.Report(progress.Update{Done: uint64(read), Unit: "bytes"})
	}
	h := sha256.New()
	links := map[any]string{}
	for i, s := range sources {
		// The name of a directory is nowhere in the result.
		name := s.name
		if s.top.isDir() {
			name = ""
		}
		fmt.Fprintf(h, "source %d %q %t %t\n", i, name, s.top.isDir(), s.local)
		if !s.top.isDir() {
			if err := hashNode(ctx, h, "", s.top, links, count); err != nil {
				return "", err
			}
		}
		for _, b := range s.below {
			if err := hashNode(ctx, h, b.rel, b.node, links, count); err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashNode adds one file to the hash.
func hashNode(ctx context.Context, h hash.Hash, rel string, n *node, links map[any]string, count func(int64)) error {
	if err := n.sum(ctx, count); err != nil {
		return err
	}
	fmt.Fprintf(h, "%q %c %o %d:%d %q %d:%d %s", rel, n.typ, n.mode, n.uid, n.gid, n.link, n.major, n.minor, n.digest)
	if n.typ == tar.TypeReg && n.same != nil {
		if first, ok := links[n.same]; ok {
			fmt.Fprintf(h, " link %q", first)
		} else {
			links[n.same] = rel
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.xattrs)) {
		fmt.Fprintf(h, " %q=%q", name, n.xattrs[name])
	}
	fmt.Fprintln(h)
	return nil
}

// copyLayer places the sources and writes the layer.
func (sb *stageBuild) copyLayer(ctx context.Context, c *dockerfile.Copy, sources []picked) (source.Layer, error) {
	root, err := sb.rootfs(ctx)
	if err != nil {
		return source.Layer{}, err
	}
	p := newPlacer(ctx, root)
	p.chmod = c.Chmod
	if limit := sb.b.opt.Limits.Size; limit > 0 {
		p.limit = limit
	}
	if c.Chown != "" {
		who, err := root.owner(ctx, c.Chown)
		if err != nil {
			return source.Layer{}, err
		}
		p.owner = &who
	}
	if err := p.place(c, sources); err != nil {
		return source.Layer{}, err
	}
	return sb.finish(ctx, p)
}

// workdir makes the directory of a WORKDIR, for the user that USER names.
func (sb *stageBuild) workdir(ctx context.Context, step dockerfile.Step) (source.Layer, error) {
	root, err := sb.rootfs(ctx)
	if err != nil {
		return source.Layer{}, err
	}
	p := newPlacer(ctx, root)
	if step.User != "" {
		who, err := root.owner(ctx, step.User)
		if err != nil {
			return source.Layer{}, err
		}
		p.owner = &who
	}
	if _, err := p.makeDirs(step.Workdir); err != nil {
		return source.Layer{}, err
	}
	return sb.finish(ctx, p)
}

// finish writes the layer of what was placed; a step that placed nothing has none.
func (sb *stageBuild) finish(ctx context.Context, p *placer) (source.Layer, error) {
	if len(p.items) == 0 {
		return source.Layer{}, nil
	}
	made, err := sb.b.writeLayer(ctx, p.items, p.archives)
	if err == nil {
		// What was placed is in the rootfs already.
		sb.root.layers++
	}
	return made, err
}
