package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// report is what was measured.
type report struct {
	Runtime     string    `json:"runtime"`
	Calls       []row     `json:"calls"`
	Pods        int       `json:"pods"`
	Before      memory    `json:"memory_without_pods"`
	With        memory    `json:"memory_with_pods"`
	IdlePercent float64   `json:"idle_cpu_percent"`
	LogMBps     float64   `json:"log_mb_per_s"`
	PulledMB    float64   `json:"pulled_mb"`
	Pulls       []float64 `json:"pull_s"`
}

// row is one call, or a step of one, in milliseconds.
type row struct {
	Where string  `json:"where"`
	Call  string  `json:"call"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	N     int     `json:"n"`
}

// series collects durations by call.
type series struct {
	where string
	names []string
	took  map[string][]time.Duration
}

func newSeries(where string) *series {
	return &series{where: where, took: map[string][]time.Duration{}}
}

func (s *series) add(call string, began time.Time) { s.put(call, time.Since(began)) }

func (s *series) put(call string, took time.Duration) {
	if s.took[call] == nil {
		s.names = append(s.names, call)
	}
	s.took[call] = append(s.took[call], took)
}

func (s *series) rows() []row {
	var out []row
	for _, name := range s.names {
		took := s.took[name]
		slices.Sort(took)
		at := func(share float64) float64 {
			return took[min(int(share*float64(len(took))), len(took)-1)].Seconds() * 1000
		}
		out = append(out, row{s.where, name, at(0.5), at(0.99), len(took)})
	}
	slices.SortStableFunc(out, func(a, b row) int { // steps of calls after the calls
		return btoi(a.Call[0] == ' ') - btoi(b.Call[0] == ' ')
	})
	return out
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (r report) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n\n", r.Runtime)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NETWORK\tCALL\tP50 ms\tP99 ms\tN")
	for _, c := range r.Calls {
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f\t%d\n", c.Where, c.Call, c.P50, c.P99, c.N)
	}
	t.Flush()
	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "MEMORY\tPROCESSES\tPSS kB\tANONYMOUS kB")
	fmt.Fprintf(t, "without pods\t%d\t%.0f\t%.0f\n", r.Before.Processes, r.Before.PSS, r.Before.Anonymous)
	fmt.Fprintf(t, "with %d pods\t%d\t%.0f\t%.0f\n", r.Pods, r.With.Processes, r.With.PSS, r.With.Anonymous)
	n := float64(max(r.Pods, 1))
	fmt.Fprintf(t, "growth per pod\t\t%.0f\t%.0f\n", (r.With.PSS-r.Before.PSS)/n, (r.With.Anonymous-r.Before.Anonymous)/n)
	t.Flush()
	fmt.Fprintf(w, "\nprocessor time with %d idle pods: %.2f %%\nlog: %.0f MB/s of lines of %d bytes\n", r.Pods, r.IdlePercent, r.LogMBps, lineBytes)
	if len(r.Pulls) > 0 {
		fmt.Fprintf(w, "pull of %.0f MB unpacked: best %.2f s of %.2f\n", r.PulledMB, slices.Min(r.Pulls), r.Pulls)
	}
}
