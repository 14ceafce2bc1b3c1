package oci

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"banger/internal/fault"
)

const secret = "s3cr3t-word"

// cleanHome takes every place away where credentials could come from, and returns the home directory.
func cleanHome(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, key := range []string{"DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(key, "")
	}
	return home
}

func writeFiles(t *testing.T, dir string, files ...string) {
	t.Helper()
	for i := 0; i+1 < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

func auths(host string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, basic("someone", secret))
}

func TestKeychainFindsLogins(t *testing.T) {
	someone := authn.AuthConfig{Username: "someone", Password: secret}
	for title, tc := range map[string]struct {
		env   map[string]string // HOME is replaced
		files []string
		repo  string
		want  authn.AuthConfig
	}{
		"nothing":       {repo: "host.example/a"},
		"docker":        {files: []string{".docker/config.json", auths("host.example")}, repo: "host.example/a", want: someone},
		"another host":  {files: []string{".docker/config.json", auths("host.example")}, repo: "other.example/a"},
		"old key":       {files: []string{".docker/config.json", auths("https://host.example/v1/")}, repo: "host.example/a", want: someone},
		"docker.io":     {files: []string{".docker/config.json", auths(authn.DefaultAuthKey)}, repo: "alpine", want: someone},
		"DOCKER_CONFIG": {env: map[string]string{"DOCKER_CONFIG": "HOME/d"}, files: []string{"d/config.json", auths("host.example")}, repo: "host.example/a", want: someone},
		"inline":        {env: map[string]string{"DOCKER_AUTH_CONFIG": auths("host.example")}, repo: "host.example/a", want: someone},
		"podman":        {files: []string{".config/containers/auth.json", auths("host.example/a")}, repo: "host.example/a", want: someone},
		"podman's file": {env: map[string]string{"REGISTRY_AUTH_FILE": "HOME/x"}, files: []string{"x", auths("host.example")}, repo: "host.example/a", want: someone},
		"token": {files: []string{".docker/config.json", `{"auths":{"host.example":{"identitytoken":"t"}}}`}, repo: "host.example/a",
			want: authn.AuthConfig{IdentityToken: "t"}},
		"store": {files: []string{".docker/config.json", `{"credsStore":"test"}`}, repo: "host.example/a", want: someone},
		"helper": {files: []string{".docker/config.json", `{"credHelpers":{"host.example":"test"},"credsStore":"broken"}`}, repo: "host.example/a",
			want: someone},
		"helper's token": {files: []string{".docker/config.json", `{"credHelpers":{"token.example":"test"}}`}, repo: "token.example/a",
			want: authn.AuthConfig{IdentityToken: secret}},
		"helper has nothing": {files: []string{".docker/config.json", `{"credsStore":"test","auths":{"file.example":{"username":"u","password":"p"}}}`},
			repo: "file.example/a", want: authn.AuthConfig{Username: "u", Password: "p"}},
	} {
		t.Run(title, func(t *testing.T) {
			home := cleanHome(t)
			writeFiles(t, home, tc.files...)
			for key, value := range tc.env {
				t.Setenv(key, strings.ReplaceAll(value, "HOME", home))
			}
			installHelpers(t)
			repo, err := name.NewRepository(tc.repo)
			if err != nil {
				t.Fatal(err)
			}
			auth, err := Keychain{}.Resolve(repo)
			if err != nil {
				t.Fatal(err)
			}
			got, err := auth.Authorization()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, *got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// installHelpers puts credential helpers before everything else in PATH.
func installHelpers(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir,
		"docker-credential-test", `#!/bin/sh
read -r host
case $1/$host in
  get/host.example) echo '{"ServerURL":"host.example","Username":"someone","Secret":"`+secret+`"}' ;;
  get/token.example) echo '{"Username":"<token>","Secret":"`+secret+`"}' ;;
  *) echo "credentials not found in native keychain"; exit 1 ;;
esac
`,
		"docker-credential-broken", "#!/bin/sh\necho "+secret+"\necho "+secret+" >&2\nexit 3\n",
		"docker-credential-chatty", "#!/bin/sh\necho hello "+secret+"\n",
		"docker-credential-hangs", "#!/bin/sh\nsleep 1000 & sleep 1000\n",
	)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestKeychainFailuresTellNoSecrets(t *testing.T) {
	for title, tc := range map[string]struct {
		conf  string
		class fault.Class
		words string
	}{
		"broken":        {`{"credsStore":"broken"}`, fault.Unavailable, "credential helper docker-credential-broken: exit status 3"},
		"not installed": {`{"credsStore":"missing"}`, fault.Unavailable, "credential helper docker-credential-missing is not installed"},
		"no JSON":       {`{"credsStore":"chatty"}`, fault.Unavailable, "credential helper docker-credential-chatty does not answer in JSON"},
		"hangs":         {`{"credsStore":"hangs"}`, fault.Unavailable, "credential helper docker-credential-hangs has not answered for 100ms"},
		"a path":        {`{"credsStore":"../x"}`, fault.Invalid, "is no credential helper"},
		"damaged":       {`{"auths":` + secret, fault.Invalid, "config.json is no JSON object of docker's configuration"},
		"no base64":     {`{"auths":{"host.example":{"auth":"` + secret + `"}}}`, fault.Invalid, "what is kept for host.example is no user and password"},
	} {
		t.Run(title, func(t *testing.T) {
			writeFiles(t, cleanHome(t), ".docker/config.json", tc.conf)
			installHelpers(t)
			repo, err := name.NewRepository("host.example/a")
			if err != nil {
				t.Fatal(err)
			}
			timeout := time.Minute
			if title == "hangs" {
				timeout = 100 * time.Millisecond
			}
			_, err = Keychain{Timeout: timeout}.Resolve(repo)
			wantFault(t, err, tc.class, tc.words)
			if strings.Contains(fmt.Sprint(err, fault.HintOf(err)), secret) {
				t.Errorf("the secret is in %v", err)
			}
		})
	}
}

func TestHelperEndsWithTheContext(t *testing.T) {
	writeFiles(t, cleanHome(t), ".docker/config.json", `{"credsStore":"hangs"}`)
	installHelpers(t)
	repo, err := name.NewRepository("host.example/a")
	if err != nil {
		t.Fatal(err)
	}
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gaveUp)
	if _, err := (Keychain{}).ResolveContext(ctx, repo); !errors.Is(err, gaveUp) {
		t.Errorf("%v", err)
	}
}

// guarded is a registry that wants a login: by user and password, or by a token that it gives for these.
func guarded(t *testing.T, tokens bool) (b boxed, seen *[]string) {
	b = newBoxed(t)
	var mu sync.Mutex
	var list []string
	used := map[string]bool{}
	login := "Basic " + basic("someone", secret)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spoil = func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		got := r.Header.Get("Authorization")
		mu.Lock()
		defer mu.Unlock()
		list = append(list, r.URL.Path+" "+got)
		switch {
		case tokens && r.URL.Path == "/token":
			if got != login {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			fmt.Fprintf(w, `{"token":"token-%d"}`, len(list))
			return true
		case tokens && strings.HasPrefix(got, "Bearer token-") && !used[got]:
			used[got] = r.URL.Path != "/v2/" && strings.Contains(r.URL.Path, "/manifests/") // then it has expired
			return false
		case !tokens && got == login:
			return false
		case tokens:
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+b.URL+`/token",service="test",scope="repository:dev/box:pull"`)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		}
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return true
	}
	return b, &list
}

func TestLogin(t *testing.T) {
	for title, tokens := range map[string]bool{"password": false, "token": true} {
		t.Run(title, func(t *testing.T) {
			b, seen := guarded(t, tokens)
			home := cleanHome(t)
			writeFiles(t, home, ".docker/config.json", auths(b.host))
			opt := testOptions(t)
			opt.Keychain = Keychain{}
			got, err := fetchAll(t, t.Context(), NewRegistry(opt), ref(b.testRegistry, "dev/box"))
			if err != nil || got.files["a"] != b.contents {
				t.Fatalf("%v\n%q", err, *seen)
			}
			if text := fmt.Sprint(got.tree.Origin, got.progress.messages()); strings.Contains(text, secret) {
				t.Errorf("the secret is in %s", text)
			}
			for _, tc := range []struct{ conf, words string }{
				{`{}`, "wants a login for dev/box"},
				{strings.ReplaceAll(auths(b.host), basic("someone", secret), basic("someone", secret+"x")), "does not accept the login that is kept for it"},
			} {
				writeFiles(t, home, ".docker/config.json", tc.conf)
				_, err := fetchAll(t, t.Context(), NewRegistry(opt), ref(b.testRegistry, "dev/box"))
				wantFault(t, err, fault.Denied, tc.words)
				if strings.Contains(fmt.Sprint(err), secret) || fault.HintOf(err) != "docker login "+b.host {
					t.Errorf("%v, hint %q", err, fault.HintOf(err))
				}
			}
		})
	}
}

// The URL that a registry redirects to is as good as a password, and the login is not for where it leads.
func TestRedirects(t *testing.T) {
	b := newBoxed(t)
	other := newBoxed(t)
	var mu sync.Mutex
	var leaked string
	other.whenGetting("/blobs/", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		defer mu.Unlock()
		leaked += r.Header.Get("Authorization")
		if r.URL.Query().Get("fail") != "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	opt := testOptions(t)
	opt.Keychain = fixedKeychain{}
	for query, words := range map[string]string{"signature=" + secret: "", "fail=1&signature=" + secret: "forbids access to blob"} {
		b.whenGetting(b.digest, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if r.Header.Get("Authorization") == "" {
				t.Error("no login at the registry itself")
			}
			http.Redirect(w, r, other.URL+r.URL.Path+"?"+query, http.StatusTemporaryRedirect)
		})
		opt.Blobs = testOptions(t).Blobs
		got, err := fetchAll(t, t.Context(), NewRegistry(opt), ref(b.testRegistry, "dev/box"))
		if words == "" && (err != nil || got.files["a"] != b.contents) {
			t.Errorf("%v", err)
		}
		if words != "" {
			wantFault(t, err, fault.Denied, words)
		}
		if strings.Contains(fmt.Sprint(err), secret) {
			t.Errorf("the URL is in %v", err)
		}
	}
	if leaked != "" {
		t.Errorf("the login went to another host: %q", leaked)
	}
	// One that goes nowhere, with a secret in its URL.
	b.whenGetting(b.digest, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, "http://someone:"+secret+"@localhost:1/x?signature="+secret, http.StatusTemporaryRedirect)
	})
	opt.Blobs = testOptions(t).Blobs
	_, err := fetchAll(t, t.Context(), NewRegistry(opt), ref(b.testRegistry, "dev/box"))
	wantFault(t, err, fault.Unavailable, "no registry is listening at localhost:1")
	if strings.Contains(fmt.Sprint(err, fault.HintOf(err)), secret) {
		t.Errorf("the URL is in %v", err)
	}
}

type fixedKeychain struct{}

func (fixedKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "someone", Password: secret}, nil
}

// A registry of the world does not send anybody into the own network.
func TestRedirectsIntoPrivateNetworks(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		ok       bool
	}{
		{"https://registry.example/v2/", "https://cdn.example/x", true},
		{"https://registry.example/v2/", "https://169.254.169.254/x", false},
		{"https://registry.example/v2/", "https://10.0.0.1/x", false},
		{"https://registry.example/v2/", "https://localhost/x", false},
		{"https://registry.example/v2/", "https://[::1]/x", false},
		{"https://10.0.0.1/v2/", "https://10.0.0.2/x", true},
		{"http://localhost:5000/v2/", "http://127.0.0.1:5001/x", true},
	} {
		from, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tc.from, nil)
		if err != nil {
			t.Fatal(err)
		}
		to, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tc.to, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRedirect(to, []*http.Request{from}); (err == nil) != tc.ok {
			t.Errorf("%s to %s: %v", tc.from, tc.to, err)
		}
		if err := checkRedirect(to, make([]*http.Request, 10)); err == nil {
			t.Error("redirects without end")
		}
	}
}
