package qemu

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/hypervisor/qmp"
)

func TestMigrationOf(t *testing.T) {
	stream, err := migrationOf([]byte("QEVM\x00\x00\x00\x03devices\x00"))
	if err != nil {
		t.Fatal(err)
	}
	want := "QEVM\x00\x00\x00\x03" +
		"\x07\x00\x00\x00\x07microvm" +
		"\x05\x1aconfiguration/capabilities\x00\x00\x00\x01\x00\x00\x00\x01\x0fx-ignore-shared" +
		"devices\x00" +
		"\x06\x00\x00\x00\x02{}"
	if string(stream) != want {
		t.Errorf("stream %q", stream)
	}
	for _, bad := range []string{"", "QEVM\x00\x00\x00\x02devices", "something else"} {
		if _, err := migrationOf([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a state", bad)
		}
	}
}

func TestZeroesAreNotWritten(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const unit = 4096
	data := make([]byte, 64*unit+100)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 65 {
		if rng.IntN(2) == 0 {
			data[min(i*unit+rng.IntN(unit), len(data)-1)] = 1
		}
	}
	const at = 3 * unit
	if n, err := (withoutZeroes{f}).WriteAt(data, at); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	if err := f.Truncate(at + int64(len(data))); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got[at:], data) || !bytes.Equal(got[:at], make([]byte, at)) {
		t.Errorf("the file has something else (%v)", err)
	}
	var count counter
	if _, err := (withoutZeroes{&count}).WriteAt(make([]byte, 10*unit), 0); err != nil || count != 0 {
		t.Errorf("%d bytes of zeroes are written, %v", count, err)
	}
}

type counter int

func (c *counter) WriteAt(b []byte, _ int64) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

func TestCannot(t *testing.T) {
	for err, want := range map[error]bool{
		&qmp.Error{Command: "x", Class: "CommandNotFound"}: true,
		&qmp.Error{Command: "x", Class: "GenericError"}:    false,
		errors.New("CommandNotFound"):                      false,
	} {
		if cannot(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
