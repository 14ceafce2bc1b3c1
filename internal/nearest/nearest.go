// Package nearest finds the word that somebody most likely meant to type.
package nearest

// Of returns the candidate closest to word by edit distance, or "" when none is close: more than a third of the word
// would have to change.
func Of(word string, candidates []string) string {
	best, bestDistance := "", max(len(word)/3, 2)+1
	for _, candidate := range candidates {
		if d := distance(word, candidate); d < bestDistance && d < len(candidate) {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// distance is the number of bytes to insert, delete, replace or swap with the neighbour that turns a into b (optimal
// string alignment). It keeps the last two rows of the table.
func distance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
