package term

import (
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
	// Paint returns the colour (an SGR parameter) of a cell; nil means none.
	Paint func(cell string) string
}

// minShrunk is the narrowest that a column is made to save width.
const minShrunk = 8

// Table writes t to stdout. On a terminal its widest columns are shortened until it fits; elsewhere nothing is.
func (t *Term) Table(table Table) error {
	widths := table.widths()
	if cols := t.Width(); cols > 0 {
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
	return t.answer(b.String())
}

func (table Table) widths() []int {
	widths := make([]int, len(table.Columns))
	for i, c := range table.Columns {
		widths[i] = utf8.RuneCountInString(c.Title)
		for _, row := range table.Rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(Sanitize(row[i])))
		}
	}
	return widths
}

// shrink takes width from the widest column that may be shortened until the table fits into cols.
func (table Table) shrink(widths []int, cols int) {
	total := 2 * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > cols; total-- {
		widest := -1
		for i, c := range table.Columns {
			if !c.Fixed && widths[i] > max(minShrunk, utf8.RuneCountInString(c.Title)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
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
			line.WriteString("  ")
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
