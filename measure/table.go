//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// A table has a row for each measure and a column for each server, where the first one is what
// the others are compared with. A cell has a figure for each round.
type table struct {
	columns []string
	rows    []string
	figures map[[2]string][]float64 // of a row and a column
}

func (t *table) add(row, column string, figure float64) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	if t.figures == nil {
		t.figures = make(map[[2]string][]float64)
	}
	t.figures[[2]string{row, column}] = append(t.figures[[2]string{row, column}], figure)
}

// print shows the medians, and below them the first column's ratio to each of the others: its
// median over the rounds, and the two quartiles.
func (t *table) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\t"+strings.Join(t.columns, "\t"))
	for _, row := range t.rows {
		medians, ratios := row, "  "+t.columns[0]+" to that"
		first := t.figures[[2]string{row, t.columns[0]}]
		compared := false
		for i, column := range t.columns {
			figures := t.figures[[2]string{row, column}]
			medians += "\t" + quantile(figures, 0.5)
			if i == 0 || len(figures) == 0 || slices.Min(figures) <= 0 {
				ratios += "\t"
				continue
			}
			compared = true
			var ratio []float64
			for round := range figures {
				ratio = append(ratio, first[round]/figures[round])
			}
			ratios += fmt.Sprintf("\t%s (%s–%s)", quantile(ratio, 0.5), quantile(ratio, 0.25), quantile(ratio, 0.75))
		}
		fmt.Fprintln(w, medians)
		if compared {
			fmt.Fprintln(w, ratios)
		}
	}
	w.Flush()
}

// quantile is what that share of the figures is below.
func quantile(figures []float64, share float64) string {
	if len(figures) == 0 {
		return "–"
	}
	sorted := slices.Sorted(slices.Values(figures))
	return fmt.Sprintf("%.3g", sorted[int(share*float64(len(sorted)-1)+0.5)])
}
