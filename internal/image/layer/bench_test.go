package layer

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"banger/internal/ext4"
)

// forest writes the layers of a made-up image of size bytes to dir: files of the sizes and about as compressible as
// those of a distribution, the same at each call. Each layer above the first replaces and removes some of what is below.
func forest(b *testing.B, dir string, size, meanFile int64, layers int) []Blob {
	b.Helper()
	out := make([]Blob, layers)
	for i := range out {
		path := filepath.Join(dir, fmt.Sprintf("layer-%d-of-%d-%d", i, layers, meanFile))
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			writeLayer(b, path, i, size/int64(layers), meanFile)
			info, err = os.Stat(path)
		}
		if err != nil {
			b.Fatal(err)
		}
		out[i] = Blob{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Size: info.Size(),
			Open: func(context.Context) (io.ReadCloser, error) { return os.Open(path) }}
	}
	return out
}

func writeLayer(b *testing.B, path string, number int, size, meanFile int64) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	zw, err := gzip.NewWriterLevel(buffered, gzip.DefaultCompression)
	if err != nil {
		b.Fatal(err)
	}
	tw := tar.NewWriter(zw)
	add := func(hdr tar.Header, body []byte) {
		hdr.ModTime, hdr.Size, hdr.Format = time.Unix(1700000000, 0), int64(len(body)), tar.FormatPAX
		if err := tw.WriteHeader(&hdr); err != nil {
			b.Fatal(err)
		}
		if _, err := tw.Write(body); err != nil {
			b.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, uint64(number)))
	words := newWords(rng)
	for written, i := int64(0), 0; written < size; i++ {
		if i%16 == 0 {
			add(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("usr/share/package%d/", i/16), Mode: 0o755}, nil)
		}
		// Sizes are spread like those of real files: many small, a few large.
		n := min(int64(math.Exp(rng.NormFloat64()*1.8)*float64(meanFile)/5), 40<<20)
		name := fmt.Sprintf("usr/share/package%d/file%d", i/16, i*layerStep(number))
		switch {
		case i%7 == 6:
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "../other/target"}, nil)
		case number > 0 && i%31 == 30:
			add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/package%d/.wh.file%d", i/16, i)}, nil)
		default:
			add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, words.text(rng, int(n)))
			written += n
		}
	}
	for _, end := range []func() error{tw.Close, zw.Close, buffered.Flush} {
		if err := end(); err != nil {
			b.Fatal(err)
		}
	}
}

// layerStep makes some names of upper layers those of lower ones.
func layerStep(number int) int { return 1 + number }

// words makes data that compresses to about two fifths.
type words [][]byte

func newWords(rng *rand.Rand) words {
	w := make(words, 4096)
	for i := range w {
		w[i] = make([]byte, 3+rng.IntN(8))
		for j := range w[i] {
			w[i][j] = byte('a' + rng.IntN(26))
		}
	}
	return w
}

func (w words) text(rng *rand.Rand, n int) []byte {
	out := make([]byte, 0, n+16)
	for len(out) < n {
		out = append(append(out, w[int(rng.ExpFloat64()*400)%len(w)]...), byte(rng.Uint32()))
	}
	return out[:n]
}

// decompressAll is what the time of a pull is held against: everything decompressed and thrown away.
func decompressAll(b *testing.B, layers []Blob) {
	b.Helper()
	for _, l := range layers {
		r, err := l.Open(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		plain, err := Decompress(l.MediaType, r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(onlyWriter{io.Discard}, plain); err != nil {
			b.Fatal(err)
		}
		plain.Close()
		r.Close()
	}
}

// BenchmarkImage makes an ext4 file system of an image. The metric "ratio" is its time divided by that of decompressing
// the same layers to nowhere, one after the other. BANGER_BENCH_DIR keeps the layers for the next time.
func BenchmarkImage(b *testing.B) {
	for _, bc := range []struct {
		name   string
		size   int64
		mean   int64
		layers int
	}{
		{"300MB-1-layer", 300 << 20, 20 << 10, 1},
		{"300MB-5-layers", 300 << 20, 20 << 10, 5},
		{"200k-files", 300 << 20, 1500, 1},
	} {
		b.Run(bc.name, func(b *testing.B) {
			dir := cmp.Or(os.Getenv("BANGER_BENCH_DIR"), b.TempDir())
			layers := forest(b, dir, bc.size, bc.mean, bc.layers)
			entries := 0
			var base, whole, baseCPU, wholeCPU time.Duration
			for b.Loop() {
				began, before := time.Now(), cpuTime()
				decompressAll(b, layers)
				base += time.Since(began)
				began = time.Now()
				between := cpuTime()
				entries = image(b, dir, layers)
				whole += time.Since(began)
				baseCPU, wholeCPU = baseCPU+between-before, wholeCPU+cpuTime()-between
			}
			b.ReportMetric(float64(entries), "entries")
			b.ReportMetric(base.Seconds()/float64(b.N), "gunzip-s")
			b.ReportMetric(whole.Seconds()/float64(b.N), "image-s")
			b.ReportMetric(float64(whole)/float64(base), "ratio")
			b.ReportMetric(float64(wholeCPU)/float64(baseCPU), "cpu-ratio")
		})
	}
}

// cpuTime is the processor time that this process has had. Other processes of the host do not change it much.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// image makes the file system once and removes it.
func image(b *testing.B, dir string, layers []Blob) int {
	b.Helper()
	path := filepath.Join(dir, "image.ext4")
	r := Flatten(b.Context(), layers, Options{Scratch: dir})
	defer r.Close()
	res, err := ext4.FromTar(b.Context(), r, path, ext4.Options{Identity: "x"})
	if err != nil {
		b.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		b.Fatal(err)
	}
	return res.Entries
}
