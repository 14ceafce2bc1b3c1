package term

import (
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func modes(t *testing.T, tty *os.File) unix.Termios {
	t.Helper()
	m, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

// Stop ends a read that waits, and what comes later is left for the next reader.
func TestInputStopLeavesTheRest(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	in, err := New(Config{Stdin: r}).Input()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if _, err := w.WriteString("first"); err != nil {
		t.Fatal(err)
	}
	if n, err := in.Read(buf); string(buf[:n]) != "first" || err != nil {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	time.AfterFunc(20*time.Millisecond, in.Stop)
	if n, err := in.Read(buf); n != 0 || err != io.EOF {
		t.Fatalf("stopped read: %d, %v", n, err)
	}
	in.Close()
	if _, err := w.WriteString("rest"); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(buf); string(buf[:n]) != "rest" || err != nil {
		t.Errorf("the next reader got %q, %v", buf[:n], err)
	}
}

func TestInputEnds(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	in, err := New(Config{Stdin: null}).Input()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if n, err := in.Read(make([]byte, 4)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v", n, err)
	}
}
