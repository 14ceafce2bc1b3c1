package oci

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"banger/internal/fault"
	"banger/internal/image/blob"
	"banger/internal/image/source"
	"banger/internal/progress"
)

// Registry is the source of images that are in registries. It is safe for concurrent use.
type Registry struct {
	opt  Options
	http *http.Transport
}

// NewRegistry returns the source for references like "alpine" and "localhost:5000/dev:1.2".
func NewRegistry(opt Options) *Registry {
	return &Registry{opt: opt.withDefaults(), http: newTransport()}
}

// Remove implements source.Source.
func (r *Registry) Remove(_ context.Context, staging string) error { return removeScratch(staging) }

// Fetch implements source.Source.
func (r *Registry) Fetch(ctx context.Context, req source.Request) (source.Tree, error) {
	ref, err := parseReference(req.Location, r.opt.Insecure)
	if err != nil {
		return source.Tree{}, err
	}
	what := shown(ref.Name())
	req.Progress.Report(progress.Update{Stage: "image", Message: "looking up " + what})
	s, err := r.open(ctx, ref.Context(), []string{ref.Scope(transport.PullScope)})
	if err != nil {
		return source.Tree{}, err
	}
	tree, err := s.fetch(ctx, ref, req)
	if err != nil {
		s.close()
		return source.Tree{}, err
	}
	tree.Origin = what
	return tree, nil
}

// session is the conversation with one repository: it is logged in.
type session struct {
	opt    Options
	repo   name.Repository
	base   *http.Transport
	client *http.Client
	login  bool // with credentials of the user's
}

// open logs in to a repository.
func (r *Registry) open(ctx context.Context, repo name.Repository, scopes []string) (*session, error) {
	base, err := certified(r.http, repo.RegistryStr(), r.opt.certs)
	if err != nil {
		return nil, err
	}
	s := &session{opt: r.opt, repo: repo, base: base}
	auth, err := authn.Resolve(ctx, r.opt.Keychain, repo)
	if err != nil {
		return nil, cause(ctx, err)
	}
	s.login = auth != authn.Anonymous
	chain := scheme{
		plain: mayBePlain(repo.RegistryStr(), r.opt.Insecure),
		next:  retrier{backoff: r.opt.Backoff, next: staller{after: r.opt.Stall, next: base}},
	}
	wrapped, err := transport.NewWithContext(ctx, repo.Registry, auth, chain, scopes)
	if err != nil {
		return nil, s.explain(ctx, err, "")
	}
	s.client = &http.Client{Transport: wrapped, CheckRedirect: checkRedirect}
	return s, nil
}

// close gives idle connections back. Downloads that others share go on.
func (s *session) close() { s.base.CloseIdleConnections() }

// fetch finds the image of a reference and begins to bring it.
func (s *session) fetch(ctx context.Context, ref name.Reference, req source.Request) (source.Tree, error) {
	data, err := s.document(ctx, ref.Identifier())
	if err != nil {
		return source.Tree{}, err
	}
	upstream := digestOf(data)
	if _, ok := ref.(name.Digest); ok && upstream != ref.Identifier() {
		return source.Tree{}, invalid("the manifest %s is damaged: its %d bytes have the digest %s", ref.Identifier(), len(data), upstream)
	}
	img, err := resolve(ctx, s, data, req.Arch)
	if err != nil {
		return source.Tree{}, err
	}
	tree, err := s.opt.tree(ctx, req, img, "downloading", s.close)
	tree.Upstream = upstream
	return tree, err
}

// url is that of a resource of the repository.
func (s *session) url(elem ...string) *url.URL {
	return &url.URL{
		Scheme: s.repo.Scheme(), Host: s.repo.RegistryStr(),
		Path: "/v2/" + s.repo.RepositoryStr() + "/" + strings.Join(elem, "/"),
	}
}

// get makes one request (and those that the chain adds), and returns the answer when its status is one of ok.
func (s *session) get(ctx context.Context, u *url.URL, header http.Header, ok ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	return s.do(req, ok...)
}

func (s *session) do(req *http.Request, ok ...int) (*http.Response, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	for _, status := range ok {
		if resp.StatusCode == status {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	return nil, statusOf(resp)
}

// document gets a manifest by tag or digest.
func (s *session) document(ctx context.Context, identifier string) ([]byte, error) {
	for attempt := 0; ; attempt++ {
		resp, err := s.get(ctx, s.url("manifests", identifier), http.Header{"Accept": {strings.Join(acceptedManifests, ", ")}}, http.StatusOK)
		if isStatus(err, http.StatusNotFound) {
			return nil, s.missing(ctx, identifier, err)
		}
		if err != nil {
			return nil, s.explain(ctx, err, "")
		}
		data, err := readAll(resp.Body, maxManifest, "the manifest")
		resp.Body.Close()
		switch {
		case err == nil && strings.Contains(resp.Header.Get("Content-Type"), "distribution.manifest.v1+"):
			return []byte(`{"schemaVersion":1}`), nil // signed ones are not always told by what they hold
		case err == nil:
			return data, nil
		case attempt == len(s.opt.Backoff) || isFault(err) || !passes(err):
			return nil, s.explain(ctx, err, "")
		}
		if err := sleep(ctx, s.opt.Backoff[attempt]); err != nil {
			return nil, err
		}
	}
}

// manifest implements place.
func (s *session) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	return s.document(ctx, d.Digest.String())
}

// config implements place.
func (s *session) config(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	r, err := s.layer(d)(ctx, 0)
	if err != nil {
		return nil, fault.Context(err, "the configuration")
	}
	defer r.Close()
	data, err := readAll(r, maxConfig, "the configuration")
	return data, fault.Context(err, "the configuration")
}

// layer implements place.
func (s *session) layer(d v1.Descriptor) blob.Opener {
	return func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		b := &body{ctx: ctx, session: s, digest: d.Digest.String(), size: d.Size, off: offset}
		err := b.request() // so that what is refused is refused here; the chain has tried again as far as that makes sense
		if isStatus(err, http.StatusRequestedRangeNotSatisfiable) {
			return io.NopCloser(strings.NewReader("")), nil // it is no longer than what is there, which is for others to judge
		}
		if err != nil {
			return nil, s.explain(ctx, err, b.what())
		}
		return b, nil
	}
}

// tags lists some tags of the repository; ok is false when there is no such repository, or the registry does not tell.
func (s *session) tags(ctx context.Context) (tags []string, ok bool, err error) {
	resp, err := s.get(ctx, s.url("tags", "list"), nil, http.StatusOK)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	data, err := readAll(resp.Body, maxManifest, "the list of tags")
	if err != nil {
		return nil, true, nil
	}
	var list struct {
		Tags []string `json:"tags"`
	}
	_ = json.Unmarshal(data, &list)
	return slices.DeleteFunc(list.Tags, func(tag string) bool { return !tagForm.MatchString(tag) }), true, nil
}
