package term

import (
	"strings"
	"unicode/utf8"
)

// Rows writes a table whose rows come one by one. Its columns are as wide as the widest cell so far; on a terminal a line
// ends at its right edge.
type Rows struct {
	t       *Term
	columns []Column
	widths  []int
}

// Rows starts such a table. A column's Least is its width at the beginning.
func (t *Term) Rows(columns []Column) *Rows {
	r := &Rows{t: t, columns: columns, widths: make([]int, len(columns))}
	for i, c := range columns {
		r.widths[i] = max(c.Least, utf8.RuneCountInString(c.Title))
	}
	return r
}

// Header writes the titles.
func (r *Rows) Header() error {
	titles := make([]string, len(r.columns))
	for i, c := range r.columns {
		titles[i] = c.Title
	}
	return r.write(titles, true)
}

// Row writes one row.
func (r *Rows) Row(cells ...string) error { return r.write(cells, false) }

func (r *Rows) write(cells []string, header bool) error {
	for i, cell := range cells {
		r.widths[i] = max(r.widths[i], utf8.RuneCountInString(Sanitize(cell)))
	}
	widths := r.widths
	if cols := r.t.Width(); cols > 0 {
		widths = append([]int(nil), r.widths...)
		left := cols
		for i := range widths {
			widths[i] = max(min(widths[i], left), 0)
			left -= widths[i] + len(gap)
		}
	}
	var b strings.Builder
	r.t.row(&b, Table{Columns: r.columns}, widths, cells, header)
	return r.t.answer(b.String())
}
