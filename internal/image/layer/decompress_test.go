package layer

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"banger/internal/fault"
)

func TestDecompress(t *testing.T) {
	plain := pack(t, base()...)
	half := len(plain) / 2
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	xw, err := xz.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := xw.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := xw.Close(); err != nil {
		t.Fatal(err)
	}
	gz := gzipped(t, plain)
	const oci, docker = "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"
	for name, tc := range map[string]struct {
		mediaType string
		data      []byte
		bad       bool
	}{
		"plain":              {oci, plain, false},
		"plain, said gzip":   {oci + "+gzip", plain, false},
		"gzip":               {oci + "+gzip", gz, false},
		"gzip of docker":     {docker + ".gzip", gz, false},
		"foreign":            {"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", gz, false},
		"nondistributable":   {"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", gz, false},
		"with a parameter":   {"Application/vnd.oci.image.layer.v1.tar+gzip; x=y", gz, false},
		"gzip, said nothing": {"", gz, false},
		"gzip of two parts":  {oci + "+gzip", slices.Concat(gzipped(t, plain[:half]), gzipped(t, plain[half:])), false},
		"gzip and padding":   {oci + "+gzip", slices.Concat(gz, make([]byte, 5000)), false},
		"gzip and more":      {oci + "+gzip", slices.Concat(gz, make([]byte, 5000), []byte("x")), true},
		"gzip and half":      {oci + "+gzip", slices.Concat(gz, gz[:5]), true},
		"gzip and nothing":   {oci + "+gzip", slices.Concat(gz, gz[:len(gz)-1]), true},
		"zstd":               {oci + "+zstd", enc.EncodeAll(plain, nil), false},
		"zstd, said gzip":    {docker + ".gzip", enc.EncodeAll(plain, nil), false},
		"zstd of two parts":  {oci + "+zstd", slices.Concat(enc.EncodeAll(plain[:half], nil), enc.EncodeAll(plain[half:], nil)), false},
		"xz":                 {docker, packed.Bytes(), false},
		"cut xz":             {docker, packed.Bytes()[:packed.Len()-20], true},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Decompress(tc.mediaType, bytes.NewReader(tc.data))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if tc.bad {
				if !fault.Is(err, fault.Invalid) {
					t.Errorf("err = %v", err)
				}
			} else if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes, err %v", len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if err := r.Close(); err != nil {
				t.Error("again: ", err)
			}
		})
	}
}
