package instant

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// vmm writes to a disk as QEMU does while a copy is made: what it overwrites is sent first.
type vmm struct {
	t    *testing.T
	disk *os.File
	size int64
	conn net.Conn
	in   *bufio.Reader
	sent map[int64]bool
}

func (v *vmm) send(fields ...any) {
	v.t.Helper()
	var p []byte
	for _, f := range fields {
		p, _ = binary.Append(p, binary.BigEndian, f)
	}
	if _, err := v.conn.Write(p); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vmm) expect(fields ...any) {
	v.t.Helper()
	var want []byte
	for _, f := range fields {
		want, _ = binary.Append(want, binary.BigEndian, f)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(v.in, got); err != nil || !bytes.Equal(got, want) {
		v.t.Fatalf("got %x, %v; want %x", got, err, want)
	}
}

// dial opens the export as QEMU does, which asks for structured replies first.
func dial(t *testing.T, disk, socket string) *vmm {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, _ := f.Stat()
	v := &vmm{t: t, disk: f, size: info.Size(), conn: conn, in: bufio.NewReader(conn), sent: map[int64]bool{}}
	v.expect(uint64(nbdMagic), uint64(optionMagic), uint16(3))
	v.send(uint32(3), uint64(optionMagic), uint32(8), uint32(0))
	v.expect(uint64(replyMagic), uint32(8), uint32(repUnsupported), uint32(0))
	v.send(uint64(optionMagic), uint32(optGo), uint32(6), uint32(0), uint16(0))
	v.expect(uint64(replyMagic), uint32(optGo), uint32(repInfo), uint32(12), uint16(0), uint64(v.size), uint16(0x45))
	v.expect(uint64(replyMagic), uint32(optGo), uint32(repAck), uint32(0))
	return v
}

// overwrite writes to the disk, after the cluster was sent if that is the first time.
func (v *vmm) overwrite(at int64, p []byte) {
	v.t.Helper()
	for c := at / cluster * cluster; c < at+int64(len(p)); c += cluster {
		if v.sent[c] {
			continue
		}
		old := make([]byte, min(cluster, v.size-c))
		if _, err := v.disk.ReadAt(old, c); err != nil {
			v.t.Fatal(err)
		}
		if bytes.Equal(old, make([]byte, len(old))) {
			v.send(uint32(requestMagic), uint16(2), uint16(cmdWriteZeroes), uint64(c), uint64(c), uint32(len(old)))
		} else {
			v.send(uint32(requestMagic), uint16(0), uint16(cmdWrite), uint64(c), uint64(c), uint32(len(old)), old)
		}
		v.expect(uint32(simpleMagic), uint32(0), uint64(c))
		v.sent[c] = true
	}
	if _, err := v.disk.WriteAt(p, at); err != nil {
		v.t.Fatal(err)
	}
}

// A copy is what the disk held at the instant, whatever is written to it while the copy is made.
func TestCopyOfAnInstant(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk, copied := filepath.Join(dir, "disk"), filepath.Join(dir, "copy")
	const size = 16<<20 + 512 // the last cluster is not whole
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < size-(1<<20); at += 3 << 20 { // data and holes
		for i := range 1 << 20 {
			want[at+i] = byte(rng.Uint32())
		}
	}
	copy(want[size-10:], "the end!!!")
	sparse(t, disk, want)
	c, err := New(disk, copied, filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	v := dial(t, disk, filepath.Join(dir, "s"))
	v.overwrite(0, []byte("before the copy begins"))
	done := make(chan error, 1)
	go func() { done <- c.Run(t.Context()) }()
	for range 400 {
		p := bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(200<<10))
		v.overwrite(rng.Int64N(size-int64(len(p))), p)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	v.overwrite(size-10, []byte("after that"))
	v.send(uint32(requestMagic), uint16(0), uint16(cmdFlush), uint64(7), uint64(0), uint32(0))
	v.expect(uint32(simpleMagic), uint32(0), uint64(7))
	v.send(uint32(requestMagic), uint16(0), uint16(0), uint64(8), uint64(0), uint32(512)) // a read
	v.expect(uint32(simpleMagic), uint32(errInvalid), uint64(8))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(copied)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the copy is another: %d bytes, %v", len(got), err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(copied, &st); err != nil || st.Blocks*512 > 7<<20 {
		t.Errorf("the copy takes %d KiB; %v", st.Blocks/2, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "s")); err == nil {
		t.Error("the socket is left")
	}
}

func sparse(t *testing.T, path string, content []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &Copy{dst: f}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if err := c.write(content, 0); err != nil {
		t.Fatal(err)
	}
}

// A guest does not get to see that its copy fails, and a copy that lacks something is not handed out.
func TestFailureIsTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
	sparse(t, disk, bytes.Repeat([]byte("x"), 256<<10))
	c, err := New(disk, filepath.Join(dir, "copy"), socket)
	if err != nil {
		t.Fatal(err)
	}
	v := dial(t, disk, socket)
	// Half a cluster: what is the other half?
	v.send(uint32(requestMagic), uint16(0), uint16(cmdWriteZeroes), uint64(1), uint64(512), uint32(512))
	v.expect(uint32(simpleMagic), uint32(0), uint64(1))
	if err := c.Run(t.Context()); err == nil {
		t.Error("the copy is complete")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	// Nobody comes.
	c, err = New(disk, filepath.Join(dir, "copy2"), socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := New(disk, filepath.Join(dir, "copy2"), socket); err == nil {
		t.Error("a file that exists was overwritten")
	}
}

// A disk that grows while it is copied is copied as it was.
func TestADiskThatGrows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk, copied := filepath.Join(dir, "disk"), filepath.Join(dir, "copy")
	want := bytes.Repeat([]byte("x"), 256<<10)
	sparse(t, disk, want)
	c, err := New(disk, copied, filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{256 << 10, 4 << 20} {
		if _, err := f.WriteAt([]byte("more"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A VMM that connects at the last moment keeps nobody from ending.
func TestCloseIsTheEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	sparse(t, disk, []byte("x"))
	c, err := New(disk, filepath.Join(dir, "copy"), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if c.keep(ours) {
		t.Error("it is served")
	}
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("it is left open")
	}
}

// What a VMM sends is hostile.
func FuzzServe(f *testing.F) {
	hello := []byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00")
	f.Add(append(hello, "\x25\x60\x95\x13\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01x"...))
	f.Add(append(hello, "\x25\x60\x95\x13\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00"...))
	f.Add([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x02\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		dst, err := os.Create(filepath.Join(t.TempDir(), "copy"))
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		c := &Copy{dst: dst, size: 1 << 20, done: make([]uint64, 1)}
		ours, theirs := net.Pipe()
		defer theirs.Close()
		served := make(chan struct{})
		go func() { defer close(served); _ = serveNBD(ours, c); ours.Close() }()
		go io.Copy(io.Discard, theirs)
		_ = theirs.SetWriteDeadline(time.Now().Add(time.Minute))
		_, _ = theirs.Write(sent)
		theirs.Close()
		<-served
		if info, err := dst.Stat(); err != nil || info.Size() > 1<<20 {
			t.Errorf("the copy has become larger: %v %v", info.Size(), err)
		}
	})
}
