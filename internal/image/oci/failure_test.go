package oci

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"banger/internal/fault"
)

// spoiler is what a registry does to GETs.
type spoiler func(w http.ResponseWriter, r *http.Request, next http.Handler)

func status(code int, header ...string) spoiler {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"errors":[{"code":"X","message":"so it is\u001b[2J"}]}`)
	}
}

// firstly does something the first n times, and then what is right.
func firstly(n int32, do spoiler) spoiler {
	var count atomic.Int32
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if count.Add(1) <= n {
			do(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// cut ends the connection after n bytes of what would be right.
func cut(n int) spoiler {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for key, v := range rec.Header() {
			w.Header()[key] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()[:min(n, rec.Body.Len())])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// send answers with these bytes. length is what is announced; negative: nothing.
func send(data string, length int) spoiler {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if length >= 0 {
			w.Header().Set("Content-Length", strconv.Itoa(length))
		}
		w.WriteHeader(http.StatusOK)
		for i := 0; i < len(data); i += 1000 {
			if _, err := w.Write([]byte(data[i:min(i+1000, len(data))])); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush() // chunked when there is no length
		}
	}
}

// noRange answers as a registry that does not know about ranges.
func noRange(then spoiler) spoiler {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Header.Del("Range")
		then(w, r, next)
	}
}

func stall(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	<-r.Context().Done()
}

// boxed is the image of the tests here: its layer has the contents of "a" in it, larger than one read.
type boxed struct {
	*testRegistry
	layer    []byte
	digest   string
	contents string
}

func newBoxed(t *testing.T) boxed {
	b := boxed{testRegistry: newTestRegistry(t), contents: noise(7, 100_000)}
	b.layer = layerOf(t, "a", b.contents)
	b.digest = digestOf(b.layer)
	b.putImage(t, "dev/box", "latest", defaultConfig(), b.layer)
	return b
}

// impatient is for the tests of that name; all others would fail on a machine that is slow for a moment.
func impatient(opt Options, test string, stall time.Duration) Options {
	if strings.Contains(test, "stall") {
		opt.Stall = stall
	}
	return opt
}

// What passes is not noticed by anybody.
func TestFailuresThatPass(t *testing.T) {
	b := newBoxed(t)
	half := len(b.layer) / 2
	for name, tc := range map[string]struct {
		part string
		do   spoiler
	}{
		"ping 503":                {"/v2/", firstly(2, status(503))},
		"manifest 500":            {"/manifests/", firstly(2, status(500))},
		"manifest 429":            {"/manifests/", firstly(1, status(429, "Retry-After", "0"))},
		"manifest cut":            {"/manifests/", firstly(2, cut(0))},
		"config 502":              {"/blobs/", firstly(2, status(502))},
		"layer 503":               {"LAYER", firstly(2, status(503, "Retry-After", time.Now().UTC().Format(http.TimeFormat)))},
		"layer cut":               {"LAYER", firstly(2, cut(half))},
		"layer cut each time":     {"LAYER", cut(20_000)},
		"layer cut, no ranges":    {"LAYER", firstly(2, noRange(cut(half)))},
		"layer cut at its end":    {"LAYER", firstly(1, cut(len(b.layer)-1))},
		"layer stalls":            {"LAYER", firstly(1, stallAfter(half))},
		"layer ends early":        {"LAYER", firstly(1, send(string(b.layer[:half]), -1))},
		"layer stalls, no ranges": {"LAYER", noRange(firstly(1, stallAfter(half)))},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			b.whenGetting(strings.ReplaceAll(tc.part, "LAYER", b.digest), tc.do)
			opt := impatient(testOptions(t), name, time.Second)
			src := NewRegistry(opt)
			defer src.http.CloseIdleConnections()
			got, err := fetchAll(t, t.Context(), src, ref(b.testRegistry, "dev/box"))
			if err != nil || got.files["a"] != b.contents {
				t.Errorf("%d bytes, %v", len(got.files["a"]), err)
			}
			if diff := cmp.Diff([]string{"sha256/" + b.digest[7:]}, blobsOf(t, opt.Blobs)); diff != "" {
				t.Errorf("store (-want +got):\n%s", diff)
			}
		})
	}
}

// stallAfter sends n bytes of what would be right and then nothing.
func stallAfter(n int) spoiler {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for key, v := range rec.Header() {
			w.Header()[key] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()[:n])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// A layer that was cut is gone on with where it ended.
func TestResumedBytesAreNotSentAgain(t *testing.T) {
	b := newBoxed(t)
	var ranges []string
	first := firstly(1, cut(50_000))
	b.whenGetting(b.digest, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		ranges = append(ranges, r.Header.Get("Range"))
		first(w, r, next)
	})
	if _, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(b.testRegistry, "dev/box")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"", fmt.Sprintf("bytes=50000-%d", len(b.layer)-1)}, ranges); diff != "" {
		t.Errorf("ranges (-want +got):\n%s", diff)
	}
}

// So is one of an earlier pull, which has failed or was killed.
func TestPullGoesOnWhereAnEarlierOneFailed(t *testing.T) {
	b := newBoxed(t)
	opt := testOptions(t)
	src := NewRegistry(opt)
	b.whenGetting(b.digest, firstly(100, noRange(cut(50_000))))
	_, err := fetchAll(t, t.Context(), src, ref(b.testRegistry, "dev/box"))
	wantFault(t, err, fault.Unavailable, "has cut the connection several times")
	if diff := cmp.Diff([]string{"partial/" + b.digest[7:]}, blobsOf(t, opt.Blobs)); diff != "" {
		t.Errorf("store (-want +got):\n%s", diff)
	}
	var asked string
	b.whenGetting(b.digest, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		asked = r.Header.Get("Range")
		next.ServeHTTP(w, r)
	})
	got, err := fetchAll(t, t.Context(), src, ref(b.testRegistry, "dev/box"))
	if err != nil || got.files["a"] != b.contents {
		t.Fatalf("%d bytes, %v", len(got.files["a"]), err)
	}
	if want := fmt.Sprintf("bytes=50000-%d", len(b.layer)-1); asked != want {
		t.Errorf("asked for %q, want %q", asked, want)
	}
}

// What the registry says or sends that cannot be used: each has its own message and hint, and leaves nothing.
func TestFailuresThatStay(t *testing.T) {
	b := newBoxed(t)
	wrong := noise(9, len(b.layer))
	layer := string(b.layer)
	host := b.host
	for name, tc := range map[string]struct {
		part  string
		do    spoiler
		class fault.Class
		hint  string
		words []string
	}{
		"ping 403":     {"/v2/", status(403), fault.Denied, "docker login HOST", []string{"forbids access to dev/box"}},
		"ping 500":     {"/v2/", status(500), fault.Unavailable, "curl -v http://HOST/v2/", []string{"out of order: 500 Internal Server Error"}},
		"ping 401":     {"/v2/", status(401), fault.Denied, "docker login HOST", []string{"wants a login for dev/box", `it says "so it is [2J"`}},
		"manifest 401": {"/manifests/", status(401), fault.Denied, "docker login HOST", []string{"wants a login for dev/box"}},
		"manifest 403": {"/manifests/", status(403), fault.Denied, "docker login HOST", []string{"forbids access to dev/box"}},
		"manifest 429": {"/manifests/", status(429), fault.Unavailable, "docker login HOST", []string{"too many requests from here (429)"}},
		"manifest 429 for long": {"/manifests/", status(429, "Retry-After", "3600"), fault.Unavailable, "docker login HOST",
			[]string{"it may be asked again in 1h0m0s"}},
		"manifest 503":    {"/manifests/", status(503), fault.Unavailable, "curl -v http://HOST/v2/", []string{"out of order: 503 Service Unavailable"}},
		"manifest 418":    {"/manifests/", status(418), fault.Unavailable, "", []string{"answers 418 I'm a teapot about dev/box"}},
		"manifest cut":    {"/manifests/", cut(0), fault.Unavailable, "", []string{"has cut the connection several times"}},
		"manifest stalls": {"/manifests/", stall, fault.Unavailable, "curl -v http://HOST/v2/", []string{"has stalled: nothing has come from it for 300ms"}},
		"ping stalls":     {"/v2/", stall, fault.Unavailable, "curl -v http://HOST/v2/", []string{"has stalled: nothing has come from it for 300ms"}},
		"manifest endless": {"/manifests/", send(strings.Repeat(" ", maxManifest+2000), -1), fault.Invalid, "",
			[]string{"the manifest is longer than 4194304 bytes"}},
		"config damaged": {digestOf(encode(t, defaultConfig())), send(strings.Repeat("x", len(encode(t, defaultConfig()))), -1), fault.Invalid, "",
			[]string{"the configuration " + digestOf(encode(t, defaultConfig())) + " is damaged"}},
		"config 404": {digestOf(encode(t, defaultConfig())), status(404), fault.NotFound, "banger image catalog", []string{"the configuration", "has no blob sha256:"}},
		"layer 404":  {b.digest, status(404), fault.NotFound, "banger image catalog", []string{"layer 1 of 1", "has no blob " + b.digest}},
		"layer 403":  {b.digest, status(403), fault.Denied, "docker login HOST", []string{"layer 1 of 1", "forbids access to blob"}},
		"layer 503":  {b.digest, status(503), fault.Unavailable, "curl -v http://HOST/v2/", []string{"layer 1 of 1", "503"}},
		"layer stalls": {b.digest, stall, fault.Unavailable, "curl -v http://HOST/v2/",
			[]string{"layer 1 of 1", "nothing has come from it for 300ms"}},
		"layer of other bytes": {b.digest, send(wrong, len(wrong)), fault.Invalid, "",
			[]string{"layer 1 of 1: " + b.digest + " is damaged", "have the digest " + digestOf([]byte(wrong))}},
		"layer too long": {b.digest, send(layer+"more", -1), fault.Invalid, "",
			[]string{"layer 1 of 1: " + b.digest + " is longer than the", "have the digest " + b.digest}},
		"layer announced too long": {b.digest, send(layer, len(layer)+5), fault.Invalid, "",
			[]string{"layer 1 of 1", fmt.Sprintf("has %d bytes at the registry, and its manifest says %d", len(layer)+5, len(layer))}},
		"layer announced too short": {b.digest, send(layer[:10], 10), fault.Invalid, "",
			[]string{"layer 1 of 1", fmt.Sprintf("has 10 bytes at the registry, and its manifest says %d", len(layer))}},
		"layer truncated": {b.digest, noRange(send(layer[:50_000], -1)), fault.Invalid, "",
			[]string{"layer 1 of 1: " + b.digest + " is cut off after 50000 of", "have the digest " + digestOf(b.layer[:50_000])}},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			b.whenGetting(tc.part, tc.do)
			opt := impatient(testOptions(t), name, 300*time.Millisecond)
			src := NewRegistry(opt)
			defer src.http.CloseIdleConnections()
			_, err := fetchAll(t, t.Context(), src, ref(b.testRegistry, "dev/box"))
			wantFault(t, err, tc.class, tc.words...)
			if want := strings.ReplaceAll(tc.hint, "HOST", host); fault.HintOf(err) != want {
				t.Errorf("hint %q, want %q", fault.HintOf(err), want)
			}
			if got := blobsOf(t, opt.Blobs); len(got) > 0 {
				t.Errorf("left in the store: %q", got)
			}
			b.whenGetting("nothing", nil)
			if got, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(b.testRegistry, "dev/box")); err != nil || got.files["a"] != b.contents {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// A server that answers with another part than it was asked for is not believed.
func TestWrongRangeIsRefused(t *testing.T) {
	b := newBoxed(t)
	first := firstly(1, cut(50_000))
	b.whenGetting(b.digest, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("Range") == "" {
			first(w, r, next)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 60000-%d/%d", len(b.layer)-1, len(b.layer)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(b.layer[60_000:])
	})
	_, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(b.testRegistry, "dev/box"))
	wantFault(t, err, fault.Invalid, "layer 1 of 1", "answers with another range (bytes 60000-")
}

func TestWhatIsNotThere(t *testing.T) {
	b := newBoxed(t)
	b.putImage(t, "dev/box", "1.26", defaultConfig(), b.layer)
	none := "sha256:" + strings.Repeat("0", 64)
	for name, want := range map[string]struct{ words, hint string }{
		"dev/nothing":      {"registry " + b.host + " has no repository dev/nothing", "banger image catalog"},
		"dev/box:1.25":     {"repository dev/box at " + b.host + ` has no tag "1.25"; it has 1.26, latest`, "banger image pull " + b.host + "/dev/box:1.26"},
		"dev/box:whatever": {`has no tag "whatever"`, "banger image catalog"},
		"dev/box@" + none:  {"has no image with the digest " + none, "banger image catalog"},
	} {
		_, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(b.testRegistry, name))
		wantFault(t, err, fault.NotFound, want.words)
		if fault.HintOf(err) != want.hint {
			t.Errorf("%s: hint %q, want %q", name, fault.HintOf(err), want.hint)
		}
	}
	// Some registries say of every repository that the manifest is unknown; the list of tags tells.
	b.whenGetting("dev/nothing/manifests", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.WriteHeader(404)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`)
	})
	_, err := fetchAll(t, t.Context(), NewRegistry(testOptions(t)), ref(b.testRegistry, "dev/nothing"))
	wantFault(t, err, fault.NotFound, "has no repository dev/nothing")
}

func TestUnreachableRegistries(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := closed.Addr().String()
	closed.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = nolog()
	untrusted.StartTLS()
	defer untrusted.Close()
	to := func(server *httptest.Server) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
		}
	}
	for name, tc := range map[string]struct {
		location string
		dial     func(context.Context, string, string) (net.Conn, error)
		words    string
		hint     string
	}{
		"refused": {refused + "/box", nil, "no registry is listening at " + refused, "curl -v http://" + refused + "/v2/"},
		"no such host": {"registry.invalid/box", func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "registry.invalid", IsNotFound: true}}
		}, "there is no host called registry.invalid", "getent hosts registry.invalid"},
		"no name server": {"registry.invalid:5000/box", func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "server misbehaving", Name: "registry.invalid", IsTemporary: true}}
		}, "the name of registry registry.invalid cannot be looked up: server misbehaving", "getent hosts registry.invalid"},
		"no route": {"registry.invalid/box", func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("no route to host")}
		}, "registry registry.invalid: dial tcp: no route to host", ""},
		"plain HTTP":   {"registry.invalid/box", to(plain), "registry registry.invalid speaks plain HTTP, which is allowed only for", "curl -v http://registry.invalid/v2/"},
		"private HTTP": {"10.1.2.3:5000/box", to(plain), "registry 10.1.2.3:5000 speaks plain HTTP, which is allowed only for", "curl -v http://10.1.2.3:5000/v2/"},
		"not trusted": {"registry.invalid/box", to(untrusted), "registry registry.invalid: its certificate is not trusted: x509: ",
			"curl -v https://registry.invalid/v2/"},
		"local and not trusted": {strings.TrimPrefix(untrusted.URL, "https://") + "/box", nil, "its certificate is not trusted: x509: ",
			"curl -v " + untrusted.URL + "/v2/"},
	} {
		t.Run(name, func(t *testing.T) {
			opt := testOptions(t)
			src := NewRegistry(opt)
			if tc.dial != nil {
				src.http.DialContext = tc.dial
			}
			_, err := fetchAll(t, t.Context(), src, tc.location)
			wantFault(t, err, fault.Unavailable, tc.words)
			if fault.HintOf(err) != tc.hint {
				t.Errorf("hint %q, want %q", fault.HintOf(err), tc.hint)
			}
			if got := blobsOf(t, opt.Blobs); len(got) > 0 {
				t.Errorf("left in the store: %q", got)
			}
		})
	}
}

// A host that the configuration names may speak plain HTTP, and TLS is spoken where it is.
func TestInsecureAndTLS(t *testing.T) {
	b := newBoxed(t)
	secure := httptest.NewTLSServer(b.Config.Handler)
	defer secure.Close()
	pool := secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for name, tc := range map[string]struct {
		location string
		server   *httptest.Server
		insecure []string
	}{
		"named with port":    {"registry.invalid:5000/dev/box", b.Server, []string{"registry.invalid:5000"}},
		"named without port": {"registry.invalid:5000/dev/box", b.Server, []string{"registry.invalid"}},
		"TLS":                {"example.com/dev/box", secure, nil},
		"TLS on this host":   {strings.TrimPrefix(secure.URL, "https://") + "/dev/box", secure, nil},
	} {
		t.Run(name, func(t *testing.T) {
			opt := testOptions(t)
			opt.Insecure = tc.insecure
			src := NewRegistry(opt)
			src.http.TLSClientConfig = &tls.Config{RootCAs: pool}
			src.http.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, tc.server.Listener.Addr().String())
			}
			// ggcr's registry keys repositories by host, too: the manifests are there for every host.
			got, err := fetchAll(t, t.Context(), src, tc.location)
			if err != nil || got.files["a"] != b.contents {
				t.Errorf("%d bytes, %v", len(got.files["a"]), err)
			}
		})
	}
}
