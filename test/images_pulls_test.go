package test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// meeting lets the downloads of several pulls go on only when all of them are under way.
func meeting(t *testing.T, parties int) func(http.ResponseWriter, *http.Request, http.Handler) {
	var mu sync.Mutex
	there, all := map[string]bool{}, make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request, good http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
			mu.Lock()
			if there[repo] = true; len(there) == parties {
				close(all)
				parties = -1
			}
			mu.Unlock()
			select {
			case <-all:
			case <-time.After(3 * patience):
				t.Errorf("%s waits for the other pull", repo)
			}
		}
		good.ServeHTTP(w, r)
	}
}

// together runs commands at the same time.
func together(t *testing.T, vars []string, commands ...[]string) []result {
	t.Helper()
	out := make([]result, len(commands))
	var group sync.WaitGroup
	for i, args := range commands {
		group.Go(func() { out[i] = runBanger(t, vars, args...) })
	}
	group.Wait()
	return out
}

// Pulls of different images do not wait for each other; those of the same one are one; and of two images that are to
// have one name, one gets it.
func TestImagePullsTogether(t *testing.T) {
	home, vars := emptyHome(t)
	s := newStand(t)
	base := layerOf(t, fileOf("base", 1<<20))
	refs := map[string]string{}
	for _, repo := range []string{"one", "two", "three", "left", "right"} {
		refs[repo] = s.put(repo, runtime.GOARCH, base, layerOf(t, fileOf(repo, 1<<20)))
	}
	must(t, vars, "image", "list") // so that no two commands have to start a daemon

	both := meeting(t, 2)
	s.misbehave("one", both)
	s.misbehave("two", both)
	for i, got := range together(t, vars, []string{"image", "pull", refs["one"]}, []string{"image", "pull", refs["two"]}) {
		if got.code != 0 {
			t.Errorf("pull %d of two: exit code %d: %s", i+1, got.code, got.stderr)
		}
	}
	if n := total(s.blobsAsked("one")) + total(s.blobsAsked("two")); n != 5 { // two configurations, three layers
		t.Errorf("%d blobs were downloaded for two images that share a layer: %v %v", n, s.blobsAsked("one"), s.blobsAsked("two"))
	}

	same := []string{"image", "pull", refs["three"]}
	var once sync.Once
	s.misbehave("three", func(w http.ResponseWriter, r *http.Request, good http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			once.Do(func() { time.Sleep(3 * time.Second) }) // so that the others have begun, too
		}
		good.ServeHTTP(w, r)
	})
	for _, got := range together(t, vars, same, same, same) {
		if got.code != 0 || got.stdout != refs["three"]+"\n" {
			t.Errorf("one of three pulls of the same image: exit code %d: %s%s", got.code, got.stdout, got.stderr)
		}
	}
	if n := total(s.blobsAsked("three")); n != 2 {
		t.Errorf("three pulls of the same image: %v", s.blobsAsked("three"))
	}

	clash := meeting(t, 2)
	s.misbehave("left", clash)
	s.misbehave("right", clash)
	ended := together(t, vars, []string{"image", "pull", "--name", "name", refs["left"]}, []string{"image", "pull", "--name", "name", refs["right"]})
	codes := []int{ended[0].code, ended[1].code}
	slices.Sort(codes)
	if !slices.Equal(codes, []int{0, 242}) {
		t.Errorf("two images for one name: %+v", ended)
	}
	var names []string
	for _, i := range listImages(t, vars) {
		names = append(names, strings.TrimPrefix(i.Name, s.host+"/"))
	}
	slices.Sort(names)
	if want := []string{"name", "one:1", "three:1", "two:1"}; !slices.Equal(names, want) {
		t.Errorf("images %v, want %v", names, want)
	}
	nothingHalfMade(t, home, vars)
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// pullStage is a point of a pull at which the daemon is killed.
type pullStage struct {
	name    string
	hold    bool     // the largest layer comes only by half
	reached []string // files below the home that are there by then; each stands for so many
	most    int      // blobs that the next pull has to ask for
}

// A daemon that is killed in the middle of a pull leaves nothing that the next one would not mend: the same pull works,
// and goes on with what had come.
func TestImagePullKilled(t *testing.T) {
	home, vars := emptyHome(t)
	s := newStand(t)
	layers := []*struct {
		name string
		size int64
	}{{"small", 1 << 20}, {"large", 40 << 20}, {"upper", 1 << 20}}
	const rootfs, blobs = "data/staging/image-*/rootfs.ext4*", "cache/blobs/sha256/????????*"
	for _, stage := range []pullStage{ // the configuration is always asked for
		{name: "downloading", hold: true, most: 4},
		{name: "flattening", hold: true, reached: []string{rootfs, blobs, blobs}, most: 2},
		{name: "ext4", reached: []string{rootfs, blobs, blobs, blobs}, most: 1},
		{name: "publication", reached: []string{"data/staging/image-*/manifest.json"}, most: 1},
	} {
		t.Run(stage.name, func(t *testing.T) {
			s.t = t
			ref := s.put(stage.name, runtime.GOARCH,
				layerOf(t, fileOf(stage.name+layers[0].name, layers[0].size)), layerOf(t, fileOf(stage.name+layers[1].name, layers[1].size)),
				layerOf(t, fileOf(stage.name+layers[2].name, layers[2].size)))
			stage.kill(t, s, home, vars, ref)
			s.misbehave(stage.name, nil)
			before, rests := total(s.blobsAsked(stage.name)), s.restsAsked()
			answers(t, vars, ref+"\n", "image", "pull", ref)
			if again := total(s.blobsAsked(stage.name)) - before; again > stage.most {
				t.Errorf("%d blobs were asked for again: %v", again, s.blobsAsked(stage.name))
			}
			if stage.hold && s.restsAsked() == rests {
				t.Error("the half that was there was downloaded again")
			}
			if !slices.ContainsFunc(listImages(t, vars), func(i listedImage) bool { return i.Name == ref }) {
				t.Errorf("%s is not listed", ref)
			}
			nothingHalfMade(t, home, vars)
		})
	}
}

// kill pulls until the daemon was killed at that point. What comes after everything else is short, and may be missed.
func (stage pullStage) kill(t *testing.T, s *stand, home string, vars []string, ref string) {
	t.Helper()
	const attempts = 20
	for range attempts {
		must(t, vars, "image", "list")
		pid := daemonPID(t, vars)
		half, blobsBefore := make(chan struct{}), len(matching(home, "cache/blobs/sha256/????????*"))
		if stage.hold {
			s.misbehave(stage.name, onlyHalf(half))
		}
		pulling := make(chan result, 1)
		go func() { pulling <- runBanger(t, vars, "image", "pull", ref) }()
		if stage.hold {
			select {
			case <-half:
			case got := <-pulling:
				t.Fatalf("it has ended: exit code %d: %s", got.code, got.stderr)
			}
		}
		arrived := false
		for !arrived && len(pulling) == 0 {
			arrived = there(home, stage.reached, blobsBefore)
		}
		if arrived {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		got := <-pulling
		if got.code != 0 {
			if !strings.HasPrefix(got.stderr, "banger: error: ") && !strings.Contains(got.stderr, "\nbanger: error: ") {
				t.Errorf("the pull that was cut off: exit code %d: %s", got.code, got.stderr)
			}
			t.Logf("killed; left in staging: %v", staged(home))
			return
		}
		must(t, vars, "image", "rm", ref)
	}
	t.Fatalf("%d pulls were over before the daemon could be killed", attempts)
}

// there reports whether all files are, each pattern as often as it is listed; blobs of before do not count.
func there(home string, patterns []string, blobs int) bool {
	want := map[string]int{}
	for _, p := range patterns {
		want[p]++
	}
	for p, n := range want {
		if strings.HasPrefix(p, "cache/") {
			n += blobs
		}
		if len(matching(home, p)) < n {
			return false
		}
	}
	return true
}

func matching(home, pattern string) []string {
	found, _ := filepath.Glob(filepath.Join(home, pattern))
	return found
}

// staged is what is in staging, two levels deep.
func staged(home string) (all []string) {
	for _, pattern := range []string{"*", "*/*", "*/.*"} {
		found, _ := filepath.Glob(filepath.Join(home, "data", "staging", pattern))
		for _, path := range found {
			all = append(all, strings.TrimPrefix(path, filepath.Join(home, "data", "staging")+"/"))
		}
	}
	return all
}

// onlyHalf sends half of what is large, says so, and waits.
func onlyHalf(sent chan<- struct{}) func(http.ResponseWriter, *http.Request, http.Handler) {
	var once sync.Once
	return func(w http.ResponseWriter, r *http.Request, good http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			good.ServeHTTP(w, r)
			return
		}
		good.ServeHTTP(&halfWriter{ResponseWriter: w, then: func() {
			once.Do(func() { close(sent) })
			<-r.Context().Done()
		}}, r)
	}
}

// halfWriter passes on half of an answer that is large.
type halfWriter struct {
	http.ResponseWriter
	left int64 // -1: all
	then func()
}

// WriteHeader implements http.ResponseWriter.
func (h *halfWriter) WriteHeader(code int) {
	var size int64
	_, _ = fmt.Sscan(h.Header().Get("Content-Length"), &size)
	if h.left = -1; size > 10<<20 {
		h.left = size / 2
	}
	h.ResponseWriter.WriteHeader(code)
}

// Write implements io.Writer.
func (h *halfWriter) Write(p []byte) (int, error) {
	if h.left < 0 || int64(len(p)) < h.left {
		n, err := h.ResponseWriter.Write(p)
		if h.left >= 0 {
			h.left -= int64(n)
		}
		return n, err
	}
	_, _ = h.ResponseWriter.Write(p[:h.left])
	h.ResponseWriter.(http.Flusher).Flush()
	h.then()
	return 0, io.ErrClosedPipe
}

// A disk that is full in the middle of a pull is said, and nothing takes room any more afterwards.
func TestImagePullNoSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	home, vars := emptyHome(t)
	data := filepath.Join(home, "data")
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=96m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before tearDown, which needs no data
		_, _ = banger(vars, "daemon", "stop")
		if err := syscall.Unmount(data, 0); err != nil {
			t.Error(err)
		}
	})
	s := newStand(t)
	small := s.put("small", runtime.GOARCH, layerOf(t, fileOf("small", 1<<20)))
	answers(t, vars, small+"\n", "image", "pull", small)
	before := listImages(t, vars)
	big := s.put("big", runtime.GOARCH, layerOf(t, fileOf("text", 200<<20)))
	got := runBanger(t, vars, "image", "pull", big)
	t.Log(got.stderr)
	if got.code != 245 || !strings.Contains(got.stderr, "banger: hint: ") {
		t.Errorf("on a full disk: exit code %d: %s", got.code, got.stderr)
	}
	undisturbed(t, home, vars, before)
}
