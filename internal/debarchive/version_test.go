package debarchive

import "testing"

func TestCompareVersions(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"1", "1", 0},
		{"1.0", "1.00", 0},
		{"1.0", "1.0-0", 0},
		{"0:1", "1", 0},
		{"1-1", "1-01", 0},
		{"6.1.176-1", "6.1.192-2", -1},
		{"6.1.9-1", "6.1.10-1", -1},
		{"1:1", "2", 1},
		{"1.0~rc1", "1.0", -1},
		{"1.0~rc1-1", "1.0-1", -1},
		{"1.0~~", "1.0~", -1},
		{"1.0~~a", "1.0~", -1},
		{"1.0", "1.0a", -1},
		{"1.0a", "1.0+", -1},
		{"1.0a", "1.0b", -1},
		{"1.0Z", "1.0a", -1},
		{"1.0+deb12u1", "1.0+deb12u2", -1},
		{"1.0-1~bpo12+1", "1.0-1", -1},
		{"1.0-1+b1", "1.0-1", 1},
		{"2.0-1-1", "2.0-1-2", -1},
		{"1.2.3-4", "1.2.3", 1},
		{"99999999999999999999999", "100000000000000000000000", -1},
		{"a", "1", 1},
		{"", "~", 1},
		{"7.6p2-4", "7.6-0", 1},
		{"1.0.3-3", "1.0-1", 1},
		{"1.3", "1.2.2-2", 1},
		{"0-pre", "0-pree", -1},
		{"1.1.6r2-2", "1.1.6r-1", 1},
		{"2.6b2-1", "2.6b-2", 1},
		{"98.1p5-1", "98.1-pre2-b6-2", -1},
		{"0.4a6-2", "0.4-1", 1},
	} {
		if got := sign(CompareVersions(tc.a, tc.b)); got != tc.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
		if got := sign(CompareVersions(tc.b, tc.a)); got != -tc.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", tc.b, tc.a, got, -tc.want)
		}
	}
}

func sign(n int) int {
	return min(1, max(-1, n))
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1:2.3-4~a", "1.0+b", "0")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if CompareVersions(a, a) != 0 {
			t.Errorf("%q differs from itself", a)
		}
		if sign(CompareVersions(a, b)) != -sign(CompareVersions(b, a)) {
			t.Errorf("%q and %q have no order", a, b)
		}
		if CompareVersions(a, b) <= 0 && CompareVersions(b, c) <= 0 && CompareVersions(a, c) > 0 {
			t.Errorf("%q <= %q <= %q, but the first is after the last", a, b, c)
		}
	})
}
