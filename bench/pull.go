package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// pullLayers are the sizes of the layers, uncompressed: 300 MB.
var pullLayers = []int{20 << 20, 140 << 20, 80 << 20, 60 << 20}

// puller measures pulls from a registry in this process, with a home of its own.
type puller struct {
	*bench
	home   string
	host   string // of the registry
	sent   atomic.Int64
	blobs  []string // URLs of the layers of the first image
	first  string   // reference
	second string   // of one that has another layer at the top
	own    int64    // bytes of that layer
}

// pull compares a pull with what it cannot do without: downloading and decompressing the same layers. Both come from the
// same registry, and both take several layers at a time.
func (b *bench) pull(ctx context.Context, n int) error {
	if !b.wanted("pull") {
		return nil
	}
	home, err := os.MkdirTemp("", "bb")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	p := &puller{bench: b, home: home}
	stop, err := p.serve()
	if err != nil {
		return err
	}
	defer stop()
	if err := p.upload(); err != nil {
		return err
	}
	defer func() { _, _ = p.command(context.WithoutCancel(ctx), "daemon", "stop") }()
	if _, err := p.command(ctx, "image", "list"); err != nil { // starts the daemon
		return err
	}
	if err := p.times(ctx, max(min(n, 7), 5)); err != nil {
		return err
	}
	if err := p.memory(ctx); err != nil {
		return err
	}
	return p.sharing(ctx)
}

// command is bench.command in the home of this measurement.
func (p *puller) command(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.banger, args...)
	cmd.Env = append(os.Environ(), "BANGER_HOME="+p.home)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("banger %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaints.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// serve runs the registry until stop is called.
func (p *puller) serve() (stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.host = listener.Addr().String()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(&counted{w, &p.sent}, r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // until it is closed
	}()
	return func() {
		_ = server.Close()
		<-done
	}, nil
}

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	sent *atomic.Int64
}

// Write implements io.Writer.
func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// upload makes both images.
func (p *puller) upload() error {
	var layers []v1.Layer
	for i, size := range append(pullLayers, pullLayers[len(pullLayers)-1]) {
		data, err := pullLayer(i, size)
		if err != nil {
			return err
		}
		layers = append(layers, static.NewLayer(data, types.OCILayer))
	}
	top := len(pullLayers) - 1
	var err error
	if p.first, err = p.push("first", layers[:top+1]); err != nil {
		return err
	}
	for _, l := range layers[:top+1] {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		p.blobs = append(p.blobs, fmt.Sprintf("http://%s/v2/first/blobs/%s", p.host, digest))
	}
	if p.own, err = layers[top+1].Size(); err != nil {
		return err
	}
	p.second, err = p.push("second", append(layers[:top:top], layers[top+1]))
	return err
}

func (p *puller) push(repo string, layers []v1.Layer) (string, error) {
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux"})
	if err != nil {
		return "", err
	}
	if img, err = mutate.AppendLayers(mutate.MediaType(img, types.OCIManifestSchema1), layers...); err != nil {
		return "", err
	}
	ref, err := name.ParseReference(p.host + "/" + repo + ":1")
	if err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, img)
}

// pullLayer is a layer as they are: files of all sizes, of which half are text and half are not. It is the same in every run.
func pullLayer(number, size int) ([]byte, error) {
	random := rand.New(rand.NewPCG(uint64(number), 1))
	var data bytes.Buffer
	z := gzip.NewWriter(&data)
	w := tar.NewWriter(z)
	content := make([]byte, 1<<20)
	for i := 0; size > 0; i++ {
		part := content[:min(size, 512<<random.IntN(12))]
		size -= len(part)
		fill(part, random, i%2 == 0)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/%d/%d/%d", number, i/100, i), Mode: 0o644, Size: int64(len(part))}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(part); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	err := z.Close()
	return data.Bytes(), err
}

// fill writes words of a small vocabulary, or something in between text and noise.
func fill(p []byte, random *rand.Rand, text bool) {
	for n := 0; n < len(p); {
		if text {
			n += copy(p[n:], "word-"+strconv.Itoa(random.IntN(3000))+" ")
			continue
		}
		p[n] = byte(random.Uint32())
		n++
		n += copy(p[n:], "\x00\x48\x8b"[:random.IntN(3)])
	}
}

// times pairs each pull with a download of the same, so that the host's noise hits both. What decides is the median of the
// pairs. The ratio of the processor time of all that take part, the registry too, tells work from waiting: where both use
// every processor, the ratio of the times cannot be below it.
func (p *puller) times(ctx context.Context, n int) error {
	floor, pull := &series{Name: "download and decompress 300 MB"}, &series{Name: "image pull of 300 MB"}
	var wall, work []float64
	daemon, err := p.daemonPID(ctx)
	if err != nil {
		return err
	}
	for range n {
		before := p.cpu(daemon)
		one, err := p.time(floor.Name, 1, func() error { return p.download(ctx) })
		if err != nil {
			return err
		}
		between := p.cpu(daemon)
		two, err := p.time(pull.Name, 1, func() error { _, err := p.command(ctx, "image", "pull", p.first); return err })
		if err != nil {
			return err
		}
		work = append(work, (p.cpu(daemon)-between).Seconds()/(between-before).Seconds())
		wall = append(wall, two.Millis[0]/one.Millis[0])
		for _, args := range [][]string{{"image", "rm", p.first}, {"image", "prune", "--yes"}} {
			if _, err := p.command(ctx, args...); err != nil {
				return err
			}
		}
		floor.Millis, pull.Millis = append(floor.Millis, one.Millis...), append(pull.Millis, two.Millis...)
	}
	p.add(floor, pull)
	p.figure("pull against download and decompress (median of pairs)", "x", median(wall), 1.3)
	p.figure("pull against the same, processor time", "x", median(work), 0)
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// cpu is the processor time that this process (with the registry), its commands and the daemon have had.
func (p *puller) cpu(daemon int) time.Duration {
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	stat, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(daemon), "stat"))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, i := range []int{11, 12} { // utime and stime of proc(5), in hundredths of a second
		if i < len(fields) {
			ticks, _ := strconv.Atoi(fields[i])
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

// download brings every layer and decompresses it.
func (p *puller) download(ctx context.Context) error {
	var group errgroup.Group
	for _, url := range p.blobs {
		group.Go(func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			z, err := gzip.NewReader(resp.Body)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, z)
			return err
		})
	}
	return group.Wait()
}

func (p *puller) daemonPID(ctx context.Context) (int, error) {
	text, err := p.command(ctx, "daemon", "status", "--format", "json")
	if err != nil {
		return 0, err
	}
	var status struct{ PID int }
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return 0, fmt.Errorf("daemon status: %w", err)
	}
	return status.PID, nil
}

// memory is the most that the daemon has had in memory during all of these pulls.
func (p *puller) memory(ctx context.Context) error {
	pid, err := p.daemonPID(ctx)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	var kilobytes float64
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		return fmt.Errorf("VmHWM of the daemon: %w", err)
	}
	p.figure("pull: peak memory of the daemon", "MB", kilobytes*1024/1e6, 150)
	return nil
}

// sharing is what is downloaded for an image of which all layers but one are here.
func (p *puller) sharing(ctx context.Context) error {
	if _, err := p.command(ctx, "image", "pull", p.first); err != nil {
		return err
	}
	before := p.sent.Load()
	if _, err := p.command(ctx, "image", "pull", p.second); err != nil {
		return err
	}
	p.figure("pull of one new layer: bytes against its size", "x", float64(p.sent.Load()-before)/float64(p.own), 1.01)
	return nil
}
