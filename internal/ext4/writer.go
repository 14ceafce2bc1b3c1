package ext4

import (
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/sparse"
)

const (
	// runBlocks is how much of the file system a stream takes at once for files that are small, so that those of several
	// streams do not lie mixed. Larger ones get what they need, each in one piece.
	runBlocks   = 256
	smallBlocks = 64

	streamBuffer = 512 << 10 // a multiple of the block size
	// writeback is after how many bytes the kernel is asked to begin to write them to the disk, so that the final fsync
	// has little left to do.
	writeback = 16 << 20
)

// Writer makes a file system in an empty file. It takes the contents of files first, in any order and from any number of
// goroutines (Stream), and then the tree that they belong to. Contents that are in no tree are given back (Discard).
//
// Every file lies in one piece, metadata behind the data. Blocks of zeros are holes in the file on the host.
type Writer struct {
	f   *os.File
	end uint32 // fixed: blocks that the file system may have at most

	early chan span     // what is to be written back; nil: nothing
	done  chan struct{} // closed when the goroutine behind early has ended

	mu      sync.Mutex // guards the fields below
	next    uint32     // first block that nobody was given
	free    []span     // below it, given back
	started uint32     // up to this block it was asked for writing back
	pending int64      // bytes written since
}

// span is a piece of the file system, in blocks.
type span struct{ start, blocks uint32 }

// newWriter begins a file system of at most size bytes. Close must follow.
func newWriter(f *os.File, size uint64, temporary bool) *Writer {
	w := &Writer{f: f, end: uint32(min(size/blockSize, 1<<32-1))}
	w.next = 1 + w.descriptorBlocks()
	if !temporary {
		w.early, w.done = make(chan span, 1), make(chan struct{})
		go w.writeBack()
	}
	return w
}

// close waits for what newWriter has started. Nobody may write any more.
func (w *Writer) close() {
	if w.early != nil {
		close(w.early)
		<-w.done
		w.early = nil
	}
}

func (w *Writer) writeBack() {
	defer close(w.done)
	for s := range w.early {
		// It is only a hint, and blocks when the disk has much to do: then the next is larger.
		_ = unix.SyncFileRange(int(w.f.Fd()), int64(s.start)*blockSize, int64(s.blocks)*blockSize, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// wrote counts bytes and asks for their writing back.
func (w *Writer) wrote(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending += int64(n)
	if w.early == nil || w.pending < writeback {
		return
	}
	select {
	case w.early <- span{w.started, w.next - w.started}:
		w.started, w.pending = w.next, 0
	default: // still at the last one
	}
}

// allocate returns the first of n blocks in one piece. If they can follow upon at, they do.
func (w *Writer) allocate(n uint32) (uint32, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > w.end-w.next {
		return 0, w.full()
	}
	start := w.next
	w.next += n
	return start, nil
}

// extend makes a piece that ends at the block longer by n blocks, if that is possible.
func (w *Writer) extend(end, n uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if end != w.next || n > w.end-w.next {
		return false
	}
	w.next += n
	return true
}

// giveBack returns blocks that nothing was written to.
func (w *Writer) giveBack(s span) {
	if s.blocks == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.start+s.blocks == w.next {
		w.next = s.start
		return
	}
	w.free = append(w.free, s)
}

func (w *Writer) full() error {
	return fault.New(fault.Exhausted, "the files do not fit into %d bytes", int64(w.end)*blockSize)
}

// Extent is where the contents of a file are.
type Extent struct{ start uint32 }

// Offset is where the contents begin in the file.
func (e Extent) Offset() int64 { return int64(e.start) * blockSize }

func blocksOf(size int64) uint32 { return uint32((size + blockSize - 1) / blockSize) }

// Discard gives back the contents of a file of that size. The streams have to be closed.
func (w *Writer) Discard(at Extent, size int64) error {
	if size == 0 {
		return nil
	}
	s := span{at.start, blocksOf(size)}
	err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		int64(s.start)*blockSize, int64(s.blocks)*blockSize)
	if err != nil && err != unix.EOPNOTSUPP { // then it takes space on the host, and nothing else
		return os.NewSyscallError("fallocate", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.free = append(w.free, s)
	return nil
}

// Stream writes contents, one after the other. It is for one goroutine.
type Stream struct {
	w    *Writer
	rest span   // of what was taken for small files
	buf  []byte // what was not written yet
	at   uint32 // the block where it belongs
}

// Stream begins one. Its Close must have been called before the tree comes.
func (w *Writer) Stream() *Stream { return &Stream{w: w, buf: make([]byte, 0, streamBuffer)} }

// Put writes the contents of a file of exactly size bytes.
func (s *Stream) Put(r io.Reader, size int64) (Extent, error) {
	if size == 0 {
		return Extent{}, nil
	}
	if size < 0 || size > maxFileSize {
		return Extent{}, fault.New(fault.Invalid, "file of %d bytes is too big", size)
	}
	start, err := s.place(blocksOf(size))
	if err != nil {
		return Extent{}, err
	}
	defer s.pad()
	for left := size; left > 0; {
		if len(s.buf) == cap(s.buf) {
			if err := s.flush(); err != nil {
				return Extent{}, err
			}
		}
		n, err := io.ReadFull(r, s.buf[len(s.buf):len(s.buf)+int(min(left, int64(cap(s.buf)-len(s.buf))))])
		s.buf = s.buf[:len(s.buf)+n]
		left -= int64(n)
		if err != nil {
			return Extent{}, cutOff(err)
		}
	}
	return Extent{start}, nil
}

// cutOff is the error of contents that have ended too early.
func cutOff(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// place returns where n blocks go, and makes the buffer one for what follows from there.
func (s *Stream) place(n uint32) (start uint32, err error) {
	if n > s.rest.blocks {
		if err := s.take(n); err != nil {
			return 0, err
		}
	}
	if n <= s.rest.blocks {
		start = s.rest.start
		s.rest = span{start + n, s.rest.blocks - n}
	} else if start, err = s.w.allocate(n); err != nil {
		return 0, err
	}
	if start != s.at+uint32(len(s.buf)/blockSize) {
		if err := s.flush(); err != nil {
			return 0, err
		}
		s.at = start
	}
	return start, nil
}

// take makes room for n blocks in rest, unless they are so many that they get a piece of their own.
func (s *Stream) take(n uint32) error {
	missing := n - s.rest.blocks
	switch {
	case s.w.extend(s.rest.start+s.rest.blocks, missing):
		s.rest.blocks = n
		return nil
	case n > smallBlocks:
		return nil
	}
	s.w.giveBack(s.rest)
	s.rest = span{}
	start, err := s.w.allocate(runBlocks)
	if err != nil { // the last ones
		start, err = s.w.allocate(n)
		s.rest = span{start, n}
		return err
	}
	s.rest = span{start, runBlocks}
	return nil
}

// pad fills the last block with zeros.
func (s *Stream) pad() {
	end := (len(s.buf) + blockSize - 1) / blockSize * blockSize
	tail := s.buf[len(s.buf):end]
	clear(tail)
	s.buf = s.buf[:end]
}

// flush writes what is in the buffer, which is whole blocks or full.
func (s *Stream) flush() error {
	n, err := sparse.WriteAt(s.w.f, s.buf, int64(s.at)*blockSize)
	if err != nil {
		return err
	}
	s.w.wrote(n)
	s.at += uint32(len(s.buf) / blockSize)
	s.buf = s.buf[:0]
	return nil
}

var zeros [blockSize]byte

// Close writes what is left and gives back what was not needed.
func (s *Stream) Close() error {
	err := s.flush()
	s.w.giveBack(s.rest)
	s.rest = span{}
	return err
}
