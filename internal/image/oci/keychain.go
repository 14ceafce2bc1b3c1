package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"banger/internal/fault"
)

// helperTimeout bounds how long a credential helper may think. It may be asking the user to unlock something.
const helperTimeout = 30 * time.Second

// Keychain finds what the user has given to `docker login` or `podman login`, where authn.DefaultKeychain finds it:
// DOCKER_CONFIG, ~/.docker/config.json, REGISTRY_AUTH_FILE, containers/auth.json, and the credential helpers that these
// name. Unlike that one it ends a helper that hangs, and nobody else waits for it meanwhile.
type Keychain struct {
	Timeout time.Duration // of a helper; 0: 30 s
}

// dockerConfig is what is used of docker's configuration file.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type dockerAuth struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Resolve implements authn.Keychain.
func (k Keychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), target)
}

// ResolveContext implements authn.ContextKeychain. No error of it holds what a file or a helper says.
func (k Keychain) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	conf, err := loadDockerConfig()
	if err != nil {
		return nil, err
	}
	// A login may be to one repository, as podman has it, or to the registry. Docker's store knows only registries.
	for _, key := range []string{target.String(), target.RegistryStr()} {
		store := ""
		if key == target.RegistryStr() {
			store = conf.CredsStore
		}
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		auth, err := k.lookup(ctx, conf, key, store)
		if err != nil {
			return nil, err
		}
		if auth != (authn.AuthConfig{}) {
			return authn.FromConfig(auth), nil
		}
	}
	return authn.Anonymous, nil
}

// loadDockerConfig reads the first configuration that is there; none is an empty one.
func loadDockerConfig() (dockerConfig, error) {
	var conf dockerConfig
	if inline := os.Getenv("DOCKER_AUTH_CONFIG"); inline != "" {
		if err := json.Unmarshal([]byte(inline), &conf); err != nil {
			return conf, fault.New(fault.Invalid, "DOCKER_AUTH_CONFIG is no JSON object of docker's configuration")
		}
		return conf, nil
	}
	for _, path := range configPaths() {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return conf, fault.Wrap(fault.Invalid, err, "docker's configuration")
		}
		if err := json.Unmarshal(data, &conf); err != nil {
			return conf, fault.New(fault.Invalid, "%s is no JSON object of docker's configuration", path).WithHint("docker config --help")
		}
		return conf, nil
	}
	return conf, nil
}

// configPaths lists where a configuration may be, docker's before podman's.
func configPaths() (out []string) {
	home, _ := os.UserHomeDir()
	add := func(base string, elem ...string) {
		if base != "" {
			out = append(out, filepath.Join(append([]string{base}, elem...)...))
		}
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(home, ".docker", "config.json")
	}
	add(os.Getenv("REGISTRY_AUTH_FILE"))
	add(os.Getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		add(dir, "containers", "auth.json")
	} else {
		add(home, ".config", "containers", "auth.json")
	}
	return out
}

// lookup returns what is known for key; a zero value is nothing. store is the helper to ask when none is named for key.
func (k Keychain) lookup(ctx context.Context, conf dockerConfig, key, store string) (authn.AuthConfig, error) {
	helper, ok := conf.CredHelpers[key]
	if !ok {
		helper = store
	}
	if helper != "" {
		auth, err := k.ask(ctx, helper, key)
		if err != nil || auth != (authn.AuthConfig{}) || ok {
			return auth, err
		}
	}
	entry, ok := conf.Auths[key]
	if !ok {
		// Old files have URLs for keys.
		for stored, e := range conf.Auths {
			if hostOfKey(stored) == key {
				entry = e
			}
		}
	}
	return entry.config(key)
}

// hostOfKey returns the host of a key that is a URL or has a path.
func hostOfKey(key string) string {
	if u, err := url.Parse(key); err == nil && u.Host != "" {
		return u.Host
	}
	host, _, _ := strings.Cut(key, "/")
	return host
}

func (a dockerAuth) config(key string) (authn.AuthConfig, error) {
	out := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth == "" {
		return out, nil
	}
	plain, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(a.Auth), "="))
	user, password, ok := strings.Cut(string(plain), ":")
	if err != nil || !ok {
		return out, fault.New(fault.Invalid, "docker's configuration: what is kept for %s is no user and password", key).
			WithHint("%s", loginHint(key))
	}
	out.Username, out.Password = user, strings.Trim(password, "\x00")
	return out, nil
}

// ask runs a credential helper: `docker-credential-NAME get` reads the host and writes a JSON object.
func (k Keychain) ask(ctx context.Context, helper, key string) (authn.AuthConfig, error) {
	timeout := k.Timeout
	if timeout <= 0 {
		timeout = helperTimeout
	}
	program := "docker-credential-" + helper
	if strings.ContainsAny(helper, "/\\ ") || slices.Contains([]string{".", ".."}, helper) {
		return authn.AuthConfig{}, fault.New(fault.Invalid, "docker's configuration: %q is no credential helper", helper)
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, program, "get")
	cmd.Stdin = strings.NewReader(key)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // helpers are often scripts: what they have started ends too
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return authn.AuthConfig{}, context.Cause(ctx)
	case limited.Err() != nil:
		return authn.AuthConfig{}, fault.New(fault.Unavailable, "credential helper %s has not answered for %v", program, timeout).
			WithHint("%s", loginHint(key))
	case errors.Is(err, exec.ErrNotFound):
		return authn.AuthConfig{}, fault.New(fault.Unavailable, "credential helper %s is not installed", program).WithHint("%s", loginHint(key))
	case err != nil && isNotFound(out.String()):
		return authn.AuthConfig{}, nil
	case err != nil:
		return authn.AuthConfig{}, fault.Wrap(fault.Unavailable, err, "credential helper %s", program).WithHint("%s", loginHint(key))
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal(out.Bytes(), &answer) != nil {
		return authn.AuthConfig{}, fault.New(fault.Unavailable, "credential helper %s does not answer in JSON", program).
			WithHint("%s", loginHint(key))
	}
	if answer.Username == "<token>" {
		return authn.AuthConfig{IdentityToken: answer.Secret}, nil
	}
	return authn.AuthConfig{Username: answer.Username, Password: answer.Secret}, nil
}

// loginHint is the command that logs in to what a key stands for.
func loginHint(key string) string {
	if key == authn.DefaultAuthKey || key == name.DefaultRegistry {
		return "docker login"
	}
	return "docker login " + hostOfKey(key)
}

// isNotFound tells a helper's way to say that it has nothing.
func isNotFound(output string) bool {
	output = strings.TrimSpace(output)
	return output == "credentials not found in native keychain" || output == "no credentials server URL" || output == "no credentials username"
}
