package imageref

import "testing"

func TestSplitAndAbsolute(t *testing.T) {
	for ref, want := range map[string][3]string{ // kind, rest, absolute
		"debian-bookworm":               {"", "debian-bookworm", "debian-bookworm"},
		"localhost:5000/alpine:test":    {"", "localhost:5000/alpine:test", "localhost:5000/alpine:test"},
		"oci-layout:img:3.19":           {Layout, "img:3.19", "oci-layout:/home/me/img:3.19"},
		"oci-layout:/srv/img":           {Layout, "/srv/img", "oci-layout:/srv/img"},
		"docker-archive:../a.tar":       {DockerArchive, "../a.tar", "docker-archive:/home/a.tar"},
		"bundle:x":                      {Bundle, "x", "bundle:/home/me/x"},
		"bundle:":                       {Bundle, "", "bundle:"},
		"dev.tar.zst":                   {Bundle, "dev.tar.zst", "bundle:/home/me/dev.tar.zst"},
		"./a/dev.tar.zst":               {Bundle, "./a/dev.tar.zst", "bundle:/home/me/a/dev.tar.zst"},
		"https://h/dev.tar.zst":         {Bundle, "https://h/dev.tar.zst", "https://h/dev.tar.zst"},
		"HTTPS://h/dev.tar.zst?token=1": {Bundle, "HTTPS://h/dev.tar.zst?token=1", "HTTPS://h/dev.tar.zst?token=1"},
		"bundle:http://h/x":             {Bundle, "http://h/x", "bundle:http://h/x"},
		"https://h/other":               {"", "https://h/other", "https://h/other"},
		"docker://alpine":               {"", "docker://alpine", "docker://alpine"},
		"oci-layouts:x":                 {"", "oci-layouts:x", "oci-layouts:x"},
	} {
		kind, rest := Split(ref)
		if got := [3]string{kind, rest, Absolute(ref, "/home/me")}; got != want {
			t.Errorf("%q: %q, want %q", ref, got, want)
		}
	}
}
