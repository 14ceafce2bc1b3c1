package layer

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"sync"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/pipe"
)

// Flatten returns the flat tar stream of the layers, lowest first, in the form that ext4.FromTar takes: the contents of
// a directory may come before itself, and a Read may fail once with ext4.ErrAnew. One io.EOF means that all of it is
// there and was checked. Layers are read one after the other, the highest first; the next one is opened early. Nothing
// begins before the first Read. Instead of being read the stream can fill a file system (Fill).
//
// Close ends everything that was started and waits for it. It may be called while a Read or Fill is going on, which then
// fails.
func Flatten(ctx context.Context, layers []Blob, opt Options) *Stream {
	s := &Stream{layers: layers, opt: opt}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	for range 2 {
		r, w := pipe.New()
		s.parts, s.in = append(s.parts, r), append(s.in, w)
	}
	return s
}

// Stream is what Flatten returns.
type Stream struct {
	layers []Blob
	opt    Options
	ctx    context.Context
	cancel context.CancelCauseFunc

	begin   sync.Once
	working sync.WaitGroup
	in      []*pipe.Writer
	parts   []*pipe.Reader // the stream, and the stream anew
	part    int            // being read
}

// work writes the stream.
func (s *Stream) work() {
	j := newJob(s.layers, s.opt)
	err := flatten(s.ctx, j, s.in[0], passAll)
	s.in[0].CloseWithError(err)
	if errors.Is(err, ext4.ErrAnew) {
		j.restart()
		s.in[1].CloseWithError(flatten(s.ctx, j, s.in[1], waitAll))
	}
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	s.begin.Do(func() { s.working.Go(s.work) })
	n, err := s.parts[s.part].Read(p)
	if errors.Is(err, ext4.ErrAnew) && s.part == 0 {
		s.part++
	}
	return n, err
}

// Close implements io.Closer.
func (s *Stream) Close() error {
	s.cancel(os.ErrClosed)
	for _, part := range s.parts {
		part.Close()
	}
	s.begin.Do(func() {}) // what has not begun does not begin any more
	s.working.Wait()
	return nil
}

// flattener writes the flat stream of a job.
type flattener struct {
	job    *job
	tree   *tree
	layers []indexed
	tw     *tar.Writer
	buf    []byte
	first  map[*Entry]string // of an entry with several names: one that is in the stream

	// disturbed is set when a layer has removed or replaced an entry of its own that was sent.
	disturbed bool
}

// flatten writes the flat stream to w. It fails with ext4.ErrAnew when something was sent that should not have been.
func flatten(ctx context.Context, j *job, w io.Writer, read func(context.Context, *flattener) error) (err error) {
	f := &flattener{
		job: j, tree: newTree(j.remember), layers: make([]indexed, len(j.layers)), tw: tar.NewWriter(w),
		buf: make([]byte, 256<<10), first: map[*Entry]string{},
	}
	defer func() { err = errors.Join(err, closeAll(f.layers)) }()
	err = read(ctx, f)
	if f.disturbed || f.tree.disturbed {
		return ext4.ErrAnew
	}
	if err == nil {
		err = f.rest(ctx)
	}
	if err != nil {
		return err
	}
	return f.tw.Close()
}

// waitAll reads the layers and sends nothing yet.
func waitAll(ctx context.Context, f *flattener) error {
	if err := f.job.index(ctx, f.layers); err != nil {
		return err
	}
	return f.job.apply(f.tree, f.layers)
}

// rest sends what the stream lacks, in the order of names.
func (f *flattener) rest(ctx context.Context) error {
	f.findFirst(f.tree.root, "")
	return f.dir(ctx, f.tree.root, "")
}

// findFirst looks for names of entries that are in the stream and have others which are not.
func (f *flattener) findFirst(dir *Entry, path string) {
	for base, n := range dir.children {
		switch {
		case n.IsDir():
			f.findFirst(n.Entry, place{path: path}.join(base))
		case n.sent && n.Links > 1:
			if p := (place{path: path}).join(base); f.first[n.Entry] == "" || p < f.first[n.Entry] {
				f.first[n.Entry] = p
			}
		}
	}
}

// dir sends a directory and what is below it.
func (f *flattener) dir(ctx context.Context, dir *Entry, path string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := f.header(dir.Header(cmp.Or(path, ".") + "/")); err != nil {
		return err
	}
	for _, base := range slices.Sorted(maps.Keys(dir.children)) {
		n, below := dir.children[base], place{path: path}.join(base)
		var err error
		switch {
		case n.IsDir():
			err = f.dir(ctx, n.Entry, below)
		case n.sent:
		case f.first[n.Entry] != "":
			err = f.link(n.Entry, below, f.first[n.Entry])
		default:
			if n.Links > 1 {
				f.first[n.Entry] = below
			}
			err = f.file(n.Entry, below, n.open())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// file sends anything but a directory and a hard link.
func (f *flattener) file(e *Entry, path string, contents io.Reader) error {
	if err := f.header(e.Header(path)); err != nil || e.Size == 0 {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{f.tw}, onlyReader{contents}, f.buf)
	if err == nil && n != e.Size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// link sends one more name of an entry.
func (f *flattener) link(e *Entry, path, target string) error {
	hdr := e.Header(path)
	hdr.Typeflag, hdr.Linkname, hdr.Size, hdr.PAXRecords = tar.TypeLink, target, 0, nil
	return f.header(hdr)
}

func (f *flattener) header(hdr *tar.Header) error {
	err := f.tw.WriteHeader(hdr)
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return fault.Wrap(fault.Invalid, err, "%q cannot be sent", short(hdr.Name))
	}
	return err
}

// onlyReader and onlyWriter hide ReadFrom and WriteTo, so that io.CopyBuffer uses the buffer it is given.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
