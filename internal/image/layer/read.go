package layer

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"banger/internal/fault"
	"banger/internal/pipe"
	"banger/internal/vm"
)

// job reads the layers of one call of Flatten or OpenTree, several at once.
type job struct {
	layers []Blob
	opt    Options   // with the defaults of its limits filled in
	begun  []*opened // layers whose reading has begun; each is for whoever reads that layer

	// What was read so far, of all layers together.
	uncompressed, files, entries, memory atomic.Int64

	meter meter
}

func newJob(layers []Blob, opt Options) *job {
	opt.Limits = opt.Limits.withDefaults()
	return &job{layers: layers, opt: opt, begun: make([]*opened, len(layers)), meter: meter{report: opt.Progress}}
}

// restart forgets what was read, since it is read again.
func (j *job) restart() {
	j.uncompressed.Store(0)
	j.files.Store(0)
	j.entries.Store(0)
	j.memory.Store(0)
	j.meter.restart()
}

// entryFunc gets each entry of a layer with its contents, which it need not read.
type entryFunc func(hdr *tar.Header, contents io.Reader) error

// read calls each for every entry of a layer. It has read the blob to its end, checked what can be checked and ended
// everything that it has started when it returns.
func (j *job) read(ctx context.Context, i int, each entryFunc) error {
	j.begin(ctx, i, usual)
	err := j.readLayer(ctx, j.begun[i].out, j.layers[i], each)
	j.end(i)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return fault.Context(err, "%s", j.layers[i].describe(i+1))
}

// How far the decompression of a layer may be ahead of its reader: of the one that is read, and of the one whose turn is
// next. Decompression takes longest by far, and of one layer it cannot be shared out.
const (
	usual   = 1 << 20
	farther = 16 << 20
)

// opened is the tar stream of a layer that is being decompressed.
type opened struct {
	out     *pipe.Reader
	cancel  context.CancelFunc
	working sync.WaitGroup
}

// begin begins to decompress a layer, unless that was begun before.
func (j *job) begin(ctx context.Context, i, ahead int) {
	if j.begun[i] != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	out, in := pipe.NewDeep(ahead)
	u := &opened{out: out, cancel: cancel}
	u.working.Go(func() { in.CloseWithError(j.unpack(ctx, j.layers[i], in)) })
	j.begun[i] = u
}

// end ends what begin has begun and waits for it.
func (j *job) end(i int) {
	if u := j.begun[i]; u != nil {
		u.out.Close()
		u.cancel()
		u.working.Wait()
		j.begun[i] = nil
	}
}

func (j *job) unpack(ctx context.Context, b Blob, w io.ReaderFrom) error {
	raw, err := b.Open(ctx)
	if err != nil {
		return err
	}
	defer raw.Close()
	return j.decompress(ctx, b, raw, w)
}

func (j *job) readLayer(ctx context.Context, from io.Reader, b Blob, each entryFunc) error {
	stream := &tarStream{r: from}
	if b.DiffID != "" {
		stream.hash = sha256.New()
	}
	tr := tar.NewReader(stream)
	var end int64 // of the last file
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badStream(err)
		}
		end = stream.n + hdr.Size
		if hdr.Typeflag == tar.TypeXGlobalHeader { // defaults for what follows, of which none matters here
			continue
		}
		if err := j.entry(ctx, hdr, tr, each); err != nil {
			return fault.Context(err, "entry %q", short(hdr.Name))
		}
	}
	// Some tools make layers without an end marker, or even without the padding of the last file (umoci insert does).
	if stream.ended && stream.n%tarBlock != 0 && stream.n != end {
		return badStream(io.ErrUnexpectedEOF)
	}
	// What follows the end marker is padding. The checks are at the end of it.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return err
	}
	if b.DiffID != "" {
		if got := "sha256:" + hex.EncodeToString(stream.hash.Sum(nil)); got != b.DiffID {
			return invalid("its uncompressed data has the digest %s instead of %s", got, b.DiffID)
		}
	}
	return nil
}

const tarBlock = 512

// tarStream knows whether the tar reader has come to the end of the stream, which it takes for the end of the archive. It
// hashes the stream, if somebody wants it: here and not where it is decompressed, which takes longer as it is.
type tarStream struct {
	r     io.Reader
	hash  hash.Hash // may be nil
	n     int64
	ended bool
}

func (s *tarStream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.hash != nil {
		s.hash.Write(p[:n])
	}
	s.n += int64(n)
	s.ended = s.ended || errors.Is(err, io.EOF)
	return n, err
}

// entry counts an entry and passes it on.
func (j *job) entry(ctx context.Context, hdr *tar.Header, contents io.Reader, each entryFunc) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if j.entries.Add(1) > int64(j.opt.Limits.Entries) {
		return fault.New(fault.Exhausted, "the layers have more than %d entries", j.opt.Limits.Entries).
			WithHint("banger config set limits.image_entries %d", min(2*j.opt.Limits.Entries, defaultEntries))
	}
	if hdr.Size < 0 || hdr.Size > j.opt.Limits.Size || j.files.Add(hdr.Size) > j.opt.Limits.Size {
		return j.tooLarge()
	}
	if err := each(hdr, contents); err != nil {
		return badStream(err)
	}
	return nil
}

// remember counts what stays in memory.
func (j *job) remember(n int64) error {
	if j.memory.Add(n) > j.opt.Limits.Memory {
		return fault.New(fault.Exhausted, "the list of all files takes more than %s of memory",
			vm.FormatSize(uint64(j.opt.Limits.Memory)))
	}
	return nil
}

func (j *job) tooLarge() error {
	return fault.New(fault.Exhausted, "the layers hold more than %s, uncompressed", vm.FormatSize(uint64(j.opt.Limits.Size))).
		WithHint("banger config set limits.image_size %dG", 2*(j.opt.Limits.Size>>30)+1)
}

// decompress writes the tar stream of a blob to w.
func (j *job) decompress(ctx context.Context, b Blob, raw io.Reader, w io.ReaderFrom) error {
	counted := &blobReader{r: raw, meter: &j.meter}
	plain, err := Decompress(b.MediaType, counted)
	if err != nil {
		return err
	}
	defer plain.Close()
	if _, err := w.ReadFrom(&boundedReader{ctx: ctx, job: j, r: plain}); err != nil {
		return err
	}
	// Whoever supplies the blob says at its end whether it is what it should be.
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return err
	}
	if b.Size > 0 && counted.n != b.Size {
		return invalid("it has %d bytes instead of %d", counted.n, b.Size)
	}
	return nil
}

// boundedReader counts the uncompressed bytes of a layer.
type boundedReader struct {
	ctx context.Context
	job *job
	r   io.Reader
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	if b.job.uncompressed.Add(int64(n)) > b.job.opt.Limits.Size {
		return 0, b.job.tooLarge()
	}
	return n, err
}

// blobReader counts the bytes of a blob.
type blobReader struct {
	r     io.Reader
	n     int64
	meter *meter
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	b.meter.add(int64(n))
	return n, err
}

// meter reports how many compressed bytes were read. What is read a second time is not reported again.
type meter struct {
	report func(int64) // may be nil

	mu             sync.Mutex // guards what follows, and is held while report runs
	done, reported int64
}

func (m *meter) add(n int64) {
	if m.report == nil || n == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done += n; m.done > m.reported {
		m.reported = m.done
		m.report(m.done)
	}
}

func (m *meter) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = 0
}

// badStream gives the errors of the tar format a class; all others have one, or are for those who supply the blob.
func badStream(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Invalid, "its tar stream is cut off")
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fault.Wrap(fault.Invalid, fmt.Errorf("%w", err), "its tar stream is damaged")
	}
	return err
}
