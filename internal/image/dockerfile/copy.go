package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// IsURL reports whether a source of ADD is downloaded.
func IsURL(source string) bool {
	return strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://")
}

// gitSource fits what docker takes for a git repository.
var gitSource = regexp.MustCompile(`^(?:git@|git://|ssh://|https?://[^?#]+\.git(?:[?#]|$))`)

var checksum = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// checkCopy refuses what COPY cannot do. Words with variables in them are left for later.
func checkCopy(c *instructions.CopyCommand) error {
	for _, src := range c.SourcePaths {
		if IsURL(src) || gitSource.MatchString(src) {
			return fmt.Errorf("COPY cannot download %s: use ADD", oneLine(src, 60))
		}
	}
	return checkFiles(c.SourcesAndDest, c.Chmod, c.ExcludePatterns)
}

func checkAdd(c *instructions.AddCommand) error {
	urls := 0
	for _, src := range c.SourcePaths {
		if gitSource.MatchString(src) {
			return fmt.Errorf("ADD of a git repository is not supported: clone it, then COPY it, or use RUN git clone")
		}
		if IsURL(src) {
			urls++
		}
	}
	switch {
	case c.KeepGitDir != nil:
		return errors.New("ADD --keep-git-dir is not supported, because git repositories are not: remove it")
	case c.Checksum != "" && (len(c.SourcePaths) != 1 || len(c.SourceContents) != 0):
		return errors.New("--checksum needs exactly one source, a URL")
	case c.Checksum != "" && urls == 0 && !strings.ContainsRune(c.SourcePaths[0], '$'):
		return errors.New("--checksum is for a URL: remove it")
	case c.Checksum != "" && !strings.ContainsRune(c.Checksum, '$') && !checksum.MatchString(c.Checksum):
		return errors.New("--checksum has to be sha256: and 64 hexadecimal digits")
	}
	return checkFiles(c.SourcesAndDest, c.Chmod, c.ExcludePatterns)
}

func checkFiles(f instructions.SourcesAndDest, chmod string, exclude []string) error {
	if len(f.SourcePaths)+len(f.SourceContents) == 0 {
		return errors.New("there is nothing to copy: name a source and a destination")
	}
	if chmod != "" && !strings.ContainsRune(chmod, '$') {
		if _, err := ParseChmod(chmod); err != nil {
			return err
		}
	}
	for _, pattern := range exclude {
		if err := try(pattern); err != nil {
			return fmt.Errorf("--exclude=%s: %w", oneLine(pattern, 40), err)
		}
	}
	for _, word := range append(slices.Clone(f.SourcePaths), f.DestPath) {
		if strings.ContainsRune(word, 0) {
			return errors.New("a path has a NUL in it")
		}
	}
	for _, doc := range f.SourceContents {
		if doc.Path == "." || doc.Path == ".." || strings.ContainsAny(doc.Path, "/\x00") {
			return fmt.Errorf("%q cannot be the name of a file", doc.Path)
		}
	}
	return nil
}

func (r *resolver) copy(c *instructions.CopyCommand, n *parser.Node) error {
	if err := checkCopy(c); err != nil {
		return err
	}
	stage, image, err := r.stage.sourceOf(c.From)
	if err != nil {
		return err
	}
	out := &Copy{Stage: stage, Image: image, Parents: c.Parents}
	return r.files(out, n, c.SourcesAndDest, c.Chown, c.Chmod, c.ExcludePatterns)
}

func (r *resolver) add(c *instructions.AddCommand, n *parser.Node) error {
	if err := checkAdd(c); err != nil {
		return err
	}
	out := &Copy{Add: true, Unpack: c.Unpack, Checksum: c.Checksum}
	return r.files(out, n, c.SourcesAndDest, c.Chown, c.Chmod, c.ExcludePatterns)
}

// files fills in what COPY and ADD have in common, and adds the step.
func (r *resolver) files(out *Copy, n *parser.Node, f instructions.SourcesAndDest, chown, chmod string, exclude []string) error {
	out.Sources, out.Chown, out.Exclude = f.SourcePaths, chown, exclude
	if i := slices.Index(out.Sources, ""); i >= 0 {
		return errors.New("a source is empty: the whole build context is ./")
	}
	for _, doc := range f.SourceContents {
		out.Contents = append(out.Contents, Content{doc.Path, []byte(doc.Data)})
	}
	if chmod != "" {
		mode, err := ParseChmod(chmod)
		if err != nil {
			return err
		}
		out.Chmod = mode
	}
	if strings.ContainsFunc(chown, notInName) || strings.Count(chown, ":") > 1 {
		return fmt.Errorf("--chown=%s: write it as USER or USER:GROUP", oneLine(chown, 40))
	}
	out.Dest = absolute(r.dir(), f.DestPath)
	r.step(n, Step{Copy: out})
	return nil
}

// absolute is the destination below dir. That it names a directory stays visible as a slash at its end.
func absolute(dir, dest string) string {
	isDir := dest == "" || dest == "." || dest == ".." || strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.") || strings.HasSuffix(dest, "/..")
	if !path.IsAbs(dest) {
		dest = path.Join(dir, dest)
	}
	dest = path.Clean(dest)
	if isDir && dest != "/" {
		dest += "/"
	}
	return dest
}
