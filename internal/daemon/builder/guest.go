package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"

	"banger/internal/fault"
	"banger/internal/image/source"
	"banger/internal/vm"
	"banger/internal/vmclient"
	bangerv1 "banger/proto/banger/v1"
)

// layerType is what layers that are made here are.
const layerType = "application/vnd.oci.image.layer.v1.tar+gzip"

// tailSize is how much of what a tool says is kept for its failure.
const tailSize = 2 << 10

// tool runs one of the agent's own programs in a guest and keeps the tar stream that it writes as a layer in the blob
// store; an empty stream is a layer without a digest.
func (b *Builder) tool(ctx context.Context, socket, tool string, passed func(n int)) (_ source.Layer, err error) {
	blob, err := b.cfg.Blobs.Create()
	if err != nil {
		return source.Layer{}, err
	}
	defer func() {
		if abortErr := blob.Abort(); abortErr != nil { // nothing after Commit
			b.cfg.Log.WarnContext(ctx, "cannot remove what is left of a layer", "error", abortErr)
		}
	}()
	zw, err := gzip.NewWriterLevel(blob, gzip.BestSpeed)
	if err != nil {
		return source.Layer{}, err
	}
	plain := sha256.New()
	said, begin := &tail{}, &head{}
	code, err := exec(ctx, socket, vmclient.Exec{
		Start:  &bangerv1.ExecStart{Tool: tool},
		Stdout: io.MultiWriter(&bound{limit: b.cfg.Limits.Size}, zw, plain, begin, counter(passed)), Stderr: said,
	})
	if err != nil {
		return source.Layer{}, fault.Context(err, "%s of the guest's files", tool)
	}
	if code != 0 {
		return source.Layer{}, fault.New(fault.Unavailable, "%s of the guest's files: %s", tool, said)
	}
	if begin.isEnd() {
		return source.Layer{}, b.at(ctx, StepLayer)
	}
	if err := zw.Close(); err != nil {
		return source.Layer{}, err
	}
	digest, size, err := blob.Commit()
	if err != nil {
		return source.Layer{}, err
	}
	out := source.Layer{MediaType: layerType, Digest: digest, Size: size, DiffID: "sha256:" + hex.EncodeToString(plain.Sum(nil))}
	return out, b.at(ctx, StepLayer)
}

// bound fails when a guest writes more than an image may hold.
type bound struct {
	limit   int64 // 0: none
	written int64
}

// Write counts.
func (b *bound) Write(p []byte) (int, error) {
	if b.written += int64(len(p)); b.limit > 0 && b.written > b.limit {
		return 0, fault.New(fault.Exhausted, "the guest's files are more than the %s that an image may hold", vm.FormatSize(uint64(b.limit))).
			WithHint("banger config set limits.image_size %dG", 2*(b.limit>>30)+1)
	}
	return len(p), nil
}

// exec runs a command in a guest.
func exec(ctx context.Context, socket string, e vmclient.Exec) (code int, err error) {
	c := vmclient.New(socket)
	defer c.Close()
	code, err = c.Exec(ctx, e)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return code, err
}

// counter is a writer that only counts.
type counter func(n int)

func (c counter) Write(p []byte) (int, error) {
	if c != nil {
		c(len(p))
	}
	return len(p), nil
}

// head looks at the beginning of a tar stream.
type head struct {
	seen  int
	bytes byte // all of the first block, or'ed
}

func (h *head) Write(p []byte) (int, error) {
	const block = 512
	for _, c := range p[:min(len(p), block-min(h.seen, block))] {
		h.bytes |= c
		h.seen++
	}
	return len(p), nil
}

// isEnd reports whether the stream has begun with its end: there is nothing in it.
func (h *head) isEnd() bool { return h.bytes == 0 }

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards the field below
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if extra := len(t.text) - tailSize; extra > 0 {
		t.text = append([]byte(nil), t.text[extra:]...)
	}
	return len(p), nil
}

// String is what is kept, as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(t.text), "?")), " ")
}
