package oci

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/image/source"
)

// imageConfig is what is used of an image's configuration.
type imageConfig struct {
	config  source.Config
	arch    string
	created time.Time
	diffIDs []string
}

// words is a list that old tools write as one string.
type words []string

// UnmarshalJSON implements json.Unmarshaler.
func (w *words) UnmarshalJSON(data []byte) error {
	var one string
	if err := json.Unmarshal(data, &one); err == nil {
		if *w = nil; one != "" {
			*w = words{one}
		}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// portForm is what a port of ExposedPorts looks like, with a protocol or without.
var portForm = regexp.MustCompile(`^[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?$`)

// parseConfig reads the configuration blob of an image, leniently where docker is: what is missing is empty, what is
// unknown is passed over.
func parseConfig(data []byte) (imageConfig, error) {
	if len(data) > maxConfig {
		return imageConfig{}, invalid("the configuration has more than %d bytes", maxConfig)
	}
	var doc struct {
		Architecture string          `json:"architecture"`
		Variant      string          `json:"variant"`
		OS           string          `json:"os"`
		Created      json.RawMessage `json:"created"`
		Config       struct {
			User         string
			WorkingDir   string
			Env          []string
			Entrypoint   words
			Cmd          words
			Shell        words
			OnBuild      []string
			ExposedPorts map[string]json.RawMessage
			Labels       map[string]string
			StopSignal   string
		} `json:"config"`
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return imageConfig{}, invalid("the configuration is damaged: %v", err)
	}
	if os := strings.ToLower(doc.OS); os != "linux" && os != "" {
		return imageConfig{}, wrongOS(doc.OS, doc.Architecture)
	}
	if slices.ContainsFunc(doc.RootFS.DiffIDs, func(id string) bool { return len(id) > 200 }) || len(doc.RootFS.DiffIDs) > maxLayers {
		return imageConfig{}, invalid("the configuration lists impossible layers")
	}
	c := doc.Config
	out := imageConfig{arch: normalArch(doc.Architecture), diffIDs: doc.RootFS.DiffIDs, config: source.Config{
		User: c.User, Workdir: c.WorkingDir, Env: environment(c.Env), Entrypoint: c.Entrypoint, Cmd: c.Cmd, RunShell: c.Shell,
		OnBuild: c.OnBuild, Labels: c.Labels, StopSignal: c.StopSignal,
	}}
	if out.config.Workdir == "" {
		out.config.Workdir = "/" // what containers have; banger's own default is the user's home
	}
	for _, port := range slices.Sorted(maps.Keys(c.ExposedPorts)) {
		if port = strings.ToLower(port); !portForm.MatchString(port) {
			continue
		}
		if !strings.Contains(port, "/") {
			port += "/tcp"
		}
		out.config.ExposedPorts = append(out.config.ExposedPorts, port)
	}
	_ = json.Unmarshal(doc.Created, &out.created) // for people only
	return out, checkConfig(out.config)
}

// environment leaves out what is no variable.
func environment(env []string) (out []string) {
	for _, kv := range env {
		if i := strings.IndexByte(kv, '='); i > 0 {
			out = append(out, kv)
		}
	}
	return out
}

// checkConfig refuses what no program can be started with.
func checkConfig(c source.Config) error {
	for _, list := range [][]string{{c.User, c.Workdir, c.StopSignal}, c.Env, c.Entrypoint, c.Cmd, c.RunShell} {
		for _, text := range list {
			if strings.ContainsRune(text, 0) {
				return invalid("the configuration has a zero byte in %q", short(text))
			}
		}
	}
	return nil
}

func wrongOS(os, arch string) error {
	return fault.New(fault.Invalid, "the image is for %s/%s, and only Linux can be run", short(os), short(arch)).WithHint("banger image catalog")
}
