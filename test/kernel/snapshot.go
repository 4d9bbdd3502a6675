// Package kernel is for tests that work on the real kernel: it takes stock of what a test could leave behind, says
// what a test needs from the machine, and runs a whole suite in a network namespace of its own.
package kernel

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Scope says where to look. A machine is shared with other work, so what is nobody's own (mounts, processes) is
// counted only if it names one of Dirs.
type Scope struct {
	// Dirs are the directories that hold all state of what is tested: mounts and pinned namespaces below them count,
	// and so do processes that name one of them in their arguments or environment.
	Dirs []string
	// Cgroups are paths relative to the root of each hierarchy ("/orlop-test-1"), or patterns of them. What is below them
	// counts, and they themselves do.
	Cgroups []string
	// Files are directories of which everything below counts that is there: files, directories, links.
	Files []string
	// Links are directories that are shared with others, of which links count that lead below one of Dirs.
	Links []string
	// Leases are data directories of the host-local IPAM plugin ("/var/lib/cni/networks").
	Leases []string
	// Storage are roots of containers/storage.
	Storage []string
	// Pids are processes whose open descriptors count, and whose descendants count as processes.
	Pids []int
	// Network: links, addresses of bridges and firewall rules of this process's network namespace count.
	Network bool
}

// Snapshot is what was there, by kind. Each thing is named so that the same thing has the same name after a restart:
// no pids, no inode numbers.
type Snapshot map[string][]string

// Kinds of things in a Snapshot.
const (
	Mounts      = "mounts"
	Cgroups     = "cgroups"
	Namespaces  = "pinned namespaces"
	Links       = "links"
	Leases      = "IP leases"
	Processes   = "processes"
	Descriptors = "descriptors"
	Layers      = "layers"
	Files       = "files"
	Rules       = "firewall rules"
)

// Take looks at everything in s. It reads only.
func Take(s Scope) (Snapshot, error) {
	snap := Snapshot{}
	for _, look := range []func(Scope, Snapshot) error{
		mounts, cgroups, leases, processes, descriptors, layers, files, network,
	} {
		if err := look(s, snap); err != nil {
			return nil, err
		}
	}
	for _, things := range snap {
		slices.Sort(things)
	}
	return snap, nil
}

func (s Snapshot) add(kind, name string) { s[kind] = append(s[kind], name) }

// String lists how many things there are of each kind.
func (s Snapshot) String() string {
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%s %d, ", kind, len(s[kind]))
	}
	return strings.TrimSuffix(b.String(), ", ")
}

// Compare says what is in after and not in before ("+") and the other way round ("-"); "" if they are equal. Things
// are counted: two pipes where there was one are a difference.
func Compare(before, after Snapshot) string {
	var b strings.Builder
	kinds := maps.Clone(before)
	maps.Copy(kinds, after)
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		count := map[string]int{}
		for _, name := range before[kind] {
			count[name]--
		}
		for _, name := range after[kind] {
			count[name]++
		}
		for _, name := range slices.Sorted(maps.Keys(count)) {
			if n := count[name]; n != 0 {
				fmt.Fprintf(&b, "%s: %+d %s\n", kind, n, name)
			}
		}
	}
	return b.String()
}
