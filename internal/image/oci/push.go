package oci

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// Push uploads an image under a tag and returns the digest of its manifest. Layers that the repository has are not
// uploaded, and those that another repository of opt.From has are mounted if the registry can do that.
func (r *Registry) Push(ctx context.Context, reference string, img Image, opt WriteOptions) (digest string, err error) {
	ref, err := parseReference(reference, r.opt.Insecure)
	if err != nil {
		return "", err
	}
	tag, ok := ref.(name.Tag)
	if !ok {
		return "", invalid("an image is pushed to a tag, not to a digest")
	}
	what := shown(tag.Name())
	opt.Progress.Report(progress.Update{Stage: "image", Message: "preparing " + what})
	w, err := assemble(ctx, r.opt.Blobs, img)
	if err != nil {
		return "", about(err, what)
	}
	from := r.mountable(tag.Context(), opt.From)
	scopes := []string{tag.Scope(transport.PushScope)}
	for _, repo := range from {
		scopes = append(scopes, repo.Scope(transport.PullScope))
	}
	s, err := r.open(ctx, tag.Context(), scopes)
	if err != nil {
		return "", about(err, what)
	}
	defer s.close()
	if err := s.push(ctx, tag, w, from, opt.Progress); err != nil {
		return "", about(err, what)
	}
	return digestOf(w.manifest), nil
}

// mountable are the repositories of refs that are on the same registry as repo.
func (r *Registry) mountable(repo name.Repository, refs []string) (out []name.Repository) {
	for _, text := range refs {
		ref, err := parseReference(text, r.opt.Insecure)
		if err == nil && ref.Context().RegistryStr() == repo.RegistryStr() && ref.Context().RepositoryStr() != repo.RepositoryStr() {
			out = append(out, ref.Context())
		}
	}
	return out
}

func (s *session) push(ctx context.Context, tag name.Tag, w written, from []name.Repository, report progress.Func) error {
	var items []*item
	for _, l := range w.layers {
		items = append(items, &item{want: blob.Wanted{Digest: l.Digest, Size: l.Size}})
	}
	m := &meter{report: report, message: "uploading " + layersWord(len(items)), done: map[*item]int64{}}
	for _, it := range items {
		m.total += uint64(it.want.Size)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(s.opt.Parallel)
	for i, l := range w.layers {
		group.Go(func() error {
			done := m.arrived(items[i])
			open := func() (io.ReadCloser, error) { return s.openCounted(groupCtx, l, done) }
			if err := s.upload(groupCtx, l.Digest, l.Size, from, open); err != nil {
				return fault.Context(err, "layer %s", l.Digest)
			}
			done(l.Size)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return cause(ctx, err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(w.config)), nil }
	if err := s.upload(ctx, digestOf(w.config), int64(len(w.config)), nil, open); err != nil {
		return fault.Context(err, "the configuration")
	}
	return s.putManifest(ctx, tag, w.manifest)
}

func (s *session) openCounted(ctx context.Context, l source.Layer, done func(int64)) (io.ReadCloser, error) {
	r, err := openStored(ctx, s.opt.Blobs, l)
	if err != nil {
		return nil, err
	}
	return &counted{ReadCloser: r, done: done}, nil
}

// counted tells how much was read.
type counted struct {
	io.ReadCloser
	n    int64
	done func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	c.done(c.n)
	return n, err
}

// upload brings one blob to the repository unless it is there. One that is interrupted begins anew.
func (s *session) upload(ctx context.Context, digest string, size int64, from []name.Repository, open func() (io.ReadCloser, error)) error {
	for attempt := 0; ; attempt++ {
		err := s.uploadOnce(ctx, digest, size, from, open)
		if err == nil {
			return nil
		}
		var refused *statusError
		if ctx.Err() != nil || isFault(err) || errors.As(err, &refused) || !passes(err) || attempt == len(s.opt.Backoff) {
			return s.explain(ctx, err, "")
		}
		if err := sleep(ctx, s.opt.Backoff[attempt]); err != nil {
			return err
		}
	}
}

func (s *session) uploadOnce(ctx context.Context, digest string, size int64, from []name.Repository, open func() (io.ReadCloser, error)) error {
	there, err := s.hasBlob(ctx, digest)
	if err != nil || there {
		return err
	}
	location, mounted, err := s.begin(ctx, digest, from)
	if err != nil || mounted {
		return err
	}
	query := location.Query()
	query.Set("digest", digest)
	location.RawQuery = query.Encode()
	return s.put(ctx, location, "application/octet-stream", size, open)
}

func (s *session) hasBlob(ctx context.Context, digest string) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, s.url("blobs", digest).String(), nil)
	if err != nil {
		return false, err
	}
	resp, err := s.do(req, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// begin asks for a place to upload a blob to, unless the registry finds it in one of the repositories.
func (s *session) begin(ctx context.Context, digest string, from []name.Repository) (*url.URL, bool, error) {
	for _, repo := range from {
		location, mounted, err := s.post(ctx, url.Values{"mount": {digest}, "from": {repo.RepositoryStr()}})
		if err == nil && (mounted || repo == from[len(from)-1]) {
			return location, mounted, nil
		}
	}
	return s.post(ctx, nil)
}

func (s *session) post(ctx context.Context, query url.Values) (*url.URL, bool, error) {
	u := s.url("blobs", "uploads", "")
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, false, err
	}
	resp, err := s.do(req, http.StatusCreated, http.StatusAccepted)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return nil, true, nil
	}
	location, err := resp.Location()
	if err != nil || isPrivate(location.Hostname()) && !isPrivate(u.Hostname()) {
		return nil, false, fault.New(fault.Unavailable, "registry %s names no usable place to upload to", shown(s.repo.RegistryStr()))
	}
	return location, false, nil
}

// put uploads what open returns.
func (s *session) put(ctx context.Context, to *url.URL, mediaType string, size int64, open func() (io.ReadCloser, error)) error {
	body, err := open()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.String(), body)
	if err != nil {
		body.Close()
		return err
	}
	req.ContentLength, req.GetBody = size, open
	if size == 0 {
		body.Close()
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := s.do(req, http.StatusCreated, http.StatusNoContent, http.StatusOK)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (s *session) putManifest(ctx context.Context, tag name.Tag, manifest []byte) error {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(manifest)), nil }
	err := s.put(ctx, s.url("manifests", tag.TagStr()), string(types.OCIManifestSchema1), int64(len(manifest)), open)
	if err != nil {
		return s.explain(ctx, err, strings.TrimPrefix(shown(tag.Name()), shown(s.repo.RegistryStr())+"/"))
	}
	return nil
}
