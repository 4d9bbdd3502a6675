package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func newStatusCommand(flags *configFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what runs on this node and what is wrong with it",
		Long: "Asks the daemon for its state, its pods and containers, whether its monitor and its network work, and for " +
			"what it could not free yet and tries again. It fails if the daemon does not answer.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show, ok := statusFormats[output]
			if !ok {
				return fmt.Errorf("--output %q: use table or json", output)
			}
			return flags.withClient(func(c *client) error {
				report, err := c.report(cmd.Context())
				if err != nil {
					return err
				}
				return show(report, cmd.OutOrStdout())
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "`FORMAT`: table or json")
	mustMark(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

var statusFormats = map[string]func(*statusReport, io.Writer) error{
	"table": (*statusReport).writeTable,
	"json":  (*statusReport).writeJSON,
}

func (r *statusReport) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// idWidth is how much of an ID is shown: as much as crictl shows, and enough to be given to a command.
const idWidth = 13

func shortID(id string) string { return id[:min(len(id), idWidth)] }

func (r *statusReport) writeTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "%s %s\n", r.Name, r.Version)
	for _, c := range r.Conditions {
		fmt.Fprintf(w, "%s\t%s\n", strings.ToLower(strings.TrimSuffix(c.Type, "Ready")), c.text())
	}
	fmt.Fprintf(w, "monitor\t%s\n", r.Monitor.text())
	if len(r.Pending) > 0 {
		fmt.Fprintf(w, "to free\t%d, see below\n", len(r.Pending))
	}
	if len(r.Pods) > 0 {
		fmt.Fprintf(w, "\nPOD\tNAME\tSTATE\tAGE\tADDRESS\n")
	}
	for _, p := range r.Pods {
		ips := cmp.Or(strings.Join(p.IPs, ", "), "-")
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\t%s\n", shortID(p.ID), p.Namespace, p.Name, p.State, age(p.CreatedAt), ips)
	}
	if slices.ContainsFunc(r.Pods, func(p podReport) bool { return len(p.Containers) > 0 }) {
		fmt.Fprintf(w, "\nCONTAINER\tNAME\tPOD\tSTATE\tAGE\tIMAGE\n")
	}
	for _, p := range r.Pods {
		for _, c := range p.Containers {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", shortID(c.ID), c.Name, p.Name, c.State, age(c.CreatedAt), c.Image)
		}
	}
	if len(r.Pending) > 0 {
		fmt.Fprintf(w, "\nTO FREE\tSTATE\tSINCE\tTRIES\tWHY\n")
	}
	for _, p := range r.Pending {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", p.subject(), p.State, age(p.Since), p.Tries, p.Err)
	}
	return w.Flush()
}

func (c conditionReport) text() string {
	if c.OK {
		return "ready"
	}
	return strings.TrimRight("not ready: "+c.Message, ": ")
}

func (m monitorReport) text() string {
	if m.Err != "" {
		return "does not answer: " + m.Err
	}
	return fmt.Sprintf("answers in %.1f ms, %d running, %d ended", m.AnsweredMillis, m.Running, m.Containers-m.Running)
}

func (p pendingReport) subject() string {
	if p.Container != "" {
		return "container " + shortID(p.Container)
	}
	return "pod " + shortID(p.Pod)
}

// age is rounded to its two largest units at most: what matters is the order of magnitude.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// reportTime bounds the questions whose answer may depend on something that hangs.
const reportTime = 5 * time.Second

func (c *client) report(ctx context.Context) (*statusReport, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	r := new(statusReport)
	for _, ask := range []func(context.Context, *client) error{r.askVersion, r.askStatus, r.askMonitor, r.askPods, r.askContainers} {
		if err := ask(ctx, c); err != nil {
			return nil, err
		}
	}
	return r, nil
}
