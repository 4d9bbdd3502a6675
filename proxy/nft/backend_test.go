package nft

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/test/kernel"
)

func newBackend(t testing.TB) *Backend {
	t.Helper()
	kernel.Require(t, kernel.Root)
	b, err := New(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := Cleanup(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// canonical is what a table holds, without what has no meaning: which slot an endpoint has.
func canonical(t *testing.T, f model.Family) string {
	t.Helper()
	table, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return canonicalOf(table)
}

func canonicalOf(table *Table) string {
	var out []string
	for name, rules := range table.chains {
		for i, rule := range rules {
			line := fmt.Sprintf("chain %s %d:", name, i)
			for _, e := range rule {
				line += fmt.Sprintf(" %T%+v", e, e)
			}
			out = append(out, line)
		}
	}
	for name, set := range table.sets {
		out = append(out, "set "+name)
		slots := strings.HasSuffix(name, "-endpoints") || strings.HasPrefix(name, "slots-")
		for key, e := range set {
			if slots {
				key = key[:len(key)-4]
			}
			out = append(out, fmt.Sprintf("set %s: %x %x %v %s", name, key, e.Val, e.VerdictData, e.Comment))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// After any changes the rules do what the model says, and are those that a fresh start would make.
func TestRandomChanges(t *testing.T) {
	b := newBackend(t)
	for seed := range uint64(3) {
		c := modeltest.New(seed, modeltest.Network())
		if seed == 1 {
			c.Net.AllNodePorts = true
		}
		for range 40 {
			c.Change(20)
		}
		c.State.Commit()
		if err := b.Replace(t.Context(), c.Rules()); err != nil {
			t.Fatal(err)
		}
		agree(t, c)
		for i := range 600 {
			c.Change(20)
			if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
				t.Fatalf("seed %d, change %d: %v", seed, i, err)
			}
			if i%100 == 99 {
				agree(t, c)
			}
		}
		b.dropStale()
		for _, f := range c.Net.Families {
			// Sticky chains list endpoints in the order of their slots.
			before := canonical(t, f)
			fresh := newBackend(t)
			if err := fresh.Replace(t.Context(), c.Rules()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sorted(before), sorted(canonical(t, f))); diff != "" {
				t.Errorf("seed %d, %s: -after changes +fresh: %s", seed, f, diff)
			}
		}
		agree(t, c)
		if err := b.Replace(t.Context(), c.Rules()); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-b.Tampered():
	case <-time.After(5 * time.Second):
		t.Error("the other backend's changes went unnoticed")
	}
}

// sorted is without the numbers of rules in sticky chains, whose order is that of slots.
func sorted(canonical string) []string {
	lines := map[string]bool{}
	for line := range strings.Lines(canonical) {
		if name, rest, ok := strings.Cut(line, ": "); ok && (strings.HasPrefix(name, "chain cluster/") || strings.HasPrefix(name, "chain local/")) {
			name = name[:strings.LastIndex(name, " ")]
			line = name + ": " + rest
		}
		lines[addresses.ReplaceAllString(line, "")] = true
	}
	return slices.Sorted(maps.Keys(lines))
}

// nft must be able to list the tables: people look at them.
func TestListable(t *testing.T) {
	b := newBackend(t)
	kernel.Require(t, kernel.Command("nft"))
	c := modeltest.New(7, modeltest.Network())
	for range 200 {
		c.Change(20)
	}
	c.State.Commit()
	if err := b.Replace(t.Context(), c.Rules()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"numgen random mod 2 map @cluster-endpoints", "@affinity/ns/svc-", "ns/svc-", "masquerade fully-random"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in the list", want)
		}
	}
	if os.Getenv("NFT_LIST") != "" {
		t.Logf("%s", out)
	}
}

// What somebody else does to our tables is told; what we do, and what others do to theirs, is not.
func TestTampered(t *testing.T) {
	b := newBackend(t)
	kernel.Require(t, kernel.Command("nft"))
	c := modeltest.New(1, modeltest.Network())
	for range 50 {
		c.Change(20)
	}
	c.State.Commit()
	replace := func() {
		t.Helper()
		if err := b.Replace(context.Background(), c.Rules()); err != nil {
			t.Fatal(err)
		}
	}
	nft := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nft", args...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v: %s", args, err, out)
		}
	}
	replace()
	nft("add", "table", "ip", "other")
	for range 50 {
		c.Change(20)
		if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	for _, tamper := range [][]string{
		{"add", "chain", "ip", tableName, "x"},
		{"flush", "chain", "ip6", tableName, "services"},
		{"delete", "table", "ip", tableName},
		{"flush", "ruleset"},
	} {
		select {
		case <-b.Tampered():
			t.Fatalf("told before %v", tamper)
		default:
		}
		nft(tamper...)
		select {
		case <-b.Tampered():
		case <-time.After(5 * time.Second):
			t.Fatalf("%v went unnoticed", tamper)
		}
		replace()
		agree(t, c)
	}
}

// addresses are those of pointers in what %+v prints.
var addresses = regexp.MustCompile(`0xc[0-9a-f]+`)
