package term

import (
	"cmp"
	"strings"
	"unicode/utf8"
)

// Table is an answer in columns.
type Table struct {
	Columns []Column
	Rows    [][]string
}

// Column of a Table.
type Column struct {
	Title string
	Right bool // numbers
	Fixed bool // never shortened
	Least int  // how wide it is at least: for tables that are written again or row by row
	// Rank says in which order columns are left out on a terminal that is too narrow: the highest first, 0 never. Those
	// that are Extra are only shown on a terminal, if there is room and something to show.
	Rank  int
	Extra bool
	// Paint returns the colour (an SGR parameter) of a cell; nil means none.
	Paint func(cell string) string
}

const (
	minShrunk   = 8    // the narrowest that a column is made to save width
	comfortable = 20   // a column that can be shortened is not made narrower than that (or Least) to keep another one
	gap         = "  " // between two columns
)

// Table writes t to stdout. On a terminal columns are left out by rank and its widest columns are shortened until it
// fits; elsewhere nothing is shortened and only the extra columns are left out.
func (t *Term) Table(table Table) error {
	return t.answer(t.render(table))
}

// Lines is what Table would write, line by line, for a Screen. All of it is ASCII if the locale is not one of UTF-8.
func (t *Term) Lines(table Table) []string {
	text := strings.TrimSuffix(t.render(table), "\n")
	if !t.utf8 {
		text = strings.ReplaceAll(text, "…", "~")
	}
	return strings.Split(text, "\n")
}

func (t *Term) render(table Table) string {
	cols := t.Width()
	table = table.choose(cols)
	widths := table.widths()
	if cols > 0 {
		table.shrink(widths, cols)
	}
	var b strings.Builder
	titles := make([]string, len(table.Columns))
	for i, c := range table.Columns {
		titles[i] = c.Title
	}
	t.row(&b, table, widths, titles, true)
	for _, row := range table.Rows {
		t.row(&b, table, widths, row, false)
	}
	return b.String()
}

// choose returns t without the columns that are not to be shown in so many columns of a terminal; 0: no terminal.
func (table Table) choose(cols int) Table {
	widths := table.widths()
	shown := make([]bool, len(table.Columns))
	total := -len(gap)
	for i, c := range table.Columns {
		if shown[i] = !c.Extra || (cols > 0 && !table.empty(i)); shown[i] {
			if !c.Fixed {
				widths[i] = min(widths[i], cmp.Or(c.Least, comfortable))
			}
			total += widths[i] + len(gap)
		}
	}
	for cols > 0 && total > cols {
		last := -1
		for i, c := range table.Columns {
			if shown[i] && c.Rank > 0 && (last < 0 || c.Rank > table.Columns[last].Rank) {
				last = i
			}
		}
		if last < 0 {
			break
		}
		shown[last] = false
		total -= widths[last] + len(gap)
	}
	return table.only(shown)
}

// empty reports whether column i has nothing to show.
func (table Table) empty(i int) bool {
	for _, row := range table.Rows {
		if row[i] != "" && row[i] != "-" {
			return false
		}
	}
	return true
}

// only returns t with the columns that are shown.
func (table Table) only(shown []bool) Table {
	var out Table
	for i, c := range table.Columns {
		if shown[i] {
			out.Columns = append(out.Columns, c)
		}
	}
	for _, row := range table.Rows {
		var cells []string
		for i, cell := range row {
			if shown[i] {
				cells = append(cells, cell)
			}
		}
		out.Rows = append(out.Rows, cells)
	}
	return out
}

func (table Table) widths() []int {
	widths := make([]int, len(table.Columns))
	for i, c := range table.Columns {
		widths[i] = max(c.Least, utf8.RuneCountInString(c.Title))
		for _, row := range table.Rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(Sanitize(row[i])))
		}
	}
	return widths
}

// shrink takes width from the widest column that may be shortened until the table fits into cols: first from what columns
// have beyond the width that choose counted on, then from all.
func (table Table) shrink(widths []int, cols int) {
	total := len(gap) * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	wanted := func(c Column) int { return max(cmp.Or(c.Least, comfortable), utf8.RuneCountInString(c.Title)) }
	least := func(c Column) int { return max(minShrunk, utf8.RuneCountInString(c.Title)) }
	for _, floor := range []func(Column) int{wanted, least} {
		for total > cols && table.narrow(widths, floor) {
			total--
		}
	}
}

// narrow makes the widest column that may be shortened, and is wider than its floor, narrower by one. It reports whether
// there was one.
func (table Table) narrow(widths []int, floor func(Column) int) bool {
	widest := -1
	for i, c := range table.Columns {
		if !c.Fixed && widths[i] > floor(c) && (widest < 0 || widths[i] > widths[widest]) {
			widest = i
		}
	}
	if widest >= 0 {
		widths[widest]--
	}
	return widest >= 0
}

func (t *Term) row(b *strings.Builder, table Table, widths []int, cells []string, header bool) {
	var line strings.Builder
	for i, c := range table.Columns {
		cell := clip(Sanitize(cells[i]), widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if c.Paint != nil && !header {
			cell = t.paint(t.outFD, c.Paint(cells[i]), cell)
		}
		if c.Right {
			cell = pad + cell
		} else {
			cell += pad
		}
		if i > 0 {
			line.WriteString(gap)
		}
		line.WriteString(cell)
	}
	b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
}

// clip shortens s to width characters, with an ellipsis when something was cut.
func clip(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	if width <= 1 {
		return string([]rune(s)[:max(width, 0)])
	}
	return string([]rune(s)[:width-1]) + "…"
}

// Pairs writes names and values, one a line, to stdout. Nothing is shortened: a value is there to be copied.
func (t *Term) Pairs(pairs [][2]string) error {
	width := 0
	for _, p := range pairs {
		width = max(width, utf8.RuneCountInString(p[0]))
	}
	var b strings.Builder
	for _, p := range pairs {
		pad := strings.Repeat(" ", width-utf8.RuneCountInString(p[0]))
		b.WriteString(strings.TrimRight(p[0]+pad+"  "+Sanitize(p[1]), " ") + "\n")
	}
	return t.answer(b.String())
}

// Paint functions for states: green for what is well, yellow for what is on its way, red for what is not.

// PaintBy returns a Paint that looks a cell up.
func PaintBy(good, middling, bad []string) func(string) string {
	colours := map[string]string{}
	for sgr, cells := range map[string][]string{green: good, yellow: middling, red: bad} {
		for _, cell := range cells {
			colours[cell] = sgr
		}
	}
	return func(cell string) string { return colours[cell] }
}
