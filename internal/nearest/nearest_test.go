package nearest

import "testing"

func TestOf(t *testing.T) {
	words := []string{"memory", "cpus", "disk", "image", "dev"}
	for word, want := range map[string]string{
		"memroy": "memory", "cpu": "cpus", "dsik": "disk", "images": "image", "edv": "dev",
		"memory": "memory", "elephant": "", "": "", "x": "",
	} {
		if got := Of(word, words); got != want {
			t.Errorf("Of(%q) = %q, want %q", word, got, want)
		}
	}
	if got := Of("a", nil); got != "" {
		t.Errorf("Of without candidates = %q", got)
	}
}
