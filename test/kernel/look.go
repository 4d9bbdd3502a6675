package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// mounts reads /proc/self/mountinfo, see proc_pid_mountinfo(5). A namespace that is pinned is a mount of type nsfs.
func mounts(s Scope, snap Snapshot) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		_, typ, ok := strings.Cut(lines.Text(), " - ")
		if len(fields) < 5 || !ok {
			return fmt.Errorf("mountinfo: no mount point in %q", lines.Text())
		}
		point := fields[4]
		if !below(point, s.Dirs) {
			continue
		}
		kind := Mounts
		if strings.HasPrefix(typ, "nsfs ") {
			kind = Namespaces
		}
		typ, _, _ = strings.Cut(typ, " ")
		snap.add(kind, point+" ("+typ+")")
	}
	return lines.Err()
}

func below(path string, dirs []string) bool {
	for _, dir := range dirs {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

// CgroupRoots are the mount points of all hierarchies: one with cgroup v2, about a dozen with v1.
func CgroupRoots() ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var roots []string
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		_, typ, _ := strings.Cut(line, " - ")
		// Bind mounts of parts of a hierarchy have another root than "/".
		if len(fields) > 4 && fields[3] == "/" && (strings.HasPrefix(typ, "cgroup ") || strings.HasPrefix(typ, "cgroup2 ")) {
			roots = append(roots, fields[4])
		}
	}
	return roots, nil
}

func cgroups(s Scope, snap Snapshot) error {
	roots, err := CgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		for _, pattern := range s.Cgroups {
			tops, err := filepath.Glob(filepath.Join(root, pattern))
			for _, top := range tops {
				err = errors.Join(err, walk(top, func(path string, d fs.DirEntry) {
					if d.IsDir() {
						snap.add(Cgroups, path)
					}
				}))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// walk visits what is below dir, and takes it as empty what vanishes meanwhile.
func walk(dir string, visit func(string, fs.DirEntry)) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		visit(path, d)
		return nil
	})
}

// leases are files whose name is an address; host-local has a lock and last_reserved_ip.* beside them that stay.
func leases(s Scope, snap Snapshot) error {
	for _, dir := range s.Leases {
		err := walk(dir, func(path string, d fs.DirEntry) {
			if net.ParseIP(d.Name()) != nil {
				snap.add(Leases, path)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func files(s Scope, snap Snapshot) error {
	for _, dir := range s.Files {
		err := walk(dir, func(path string, _ fs.DirEntry) {
			if path != dir {
				snap.add(Files, path)
			}
		})
		if err != nil {
			return err
		}
	}
	for _, dir := range s.Links {
		err := walk(dir, func(path string, _ fs.DirEntry) {
			if target, err := os.Readlink(path); err == nil && below(target, s.Dirs) {
				snap.add(Files, path)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// layers lists containers/storage's own directories: a directory for each layer, image and container.
func layers(s Scope, snap Snapshot) error {
	for _, root := range s.Storage {
		for _, sub := range []string{"overlay", "overlay-images", "overlay-containers"} {
			entries, err := os.ReadDir(filepath.Join(root, sub))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			for _, e := range entries {
				// "l" holds short names of the layers and always stays.
				if e.IsDir() && e.Name() != "l" {
					snap.add(Layers, filepath.Join(root, sub, e.Name()))
				}
			}
		}
	}
	return nil
}

// Process is one line of /proc.
type Process struct {
	Pid, Parent int
	State       string // one letter, see proc_pid_stat(5)
	Comm        string
	Args        []string // empty for a zombie
	Environ     string   // separated by NUL; "" if it can't be read
}

// AllProcesses reads /proc. Processes that end meanwhile are left out.
func AllProcesses() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		// The name is in brackets and may hold brackets itself: the last one closes it.
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		rest := strings.Fields(string(stat[end+1:]))
		if open < 0 || len(rest) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(rest[1])
		p := Process{Pid: pid, Parent: parent, State: rest[0], Comm: string(stat[open+1 : end])}
		if raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil && len(raw) > 0 {
			p.Args = strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
		}
		if raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ")); err == nil {
			p.Environ = string(raw)
		}
		all = append(all, p)
	}
	return all, nil
}

func (p Process) names(dirs []string) bool {
	all := strings.Join(p.Args, "\x00") + "\x00" + p.Environ
	for _, dir := range dirs {
		if strings.Contains(all, dir) {
			return true
		}
	}
	return false
}

// Find returns the processes that name dir in their arguments or environment and whose arguments have word among
// them, other than this process.
func Find(dir, word string) ([]Process, error) {
	all, err := AllProcesses()
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, p := range all {
		if p.Pid == os.Getpid() || !p.names([]string{dir}) {
			continue
		}
		for _, a := range p.Args {
			if a == word {
				found = append(found, p)
				break
			}
		}
	}
	return found, nil
}

func processes(s Scope, snap Snapshot) error {
	all, err := AllProcesses()
	if err != nil {
		return err
	}
	parent, comm := map[int]int{}, map[int]string{}
	for _, p := range all {
		parent[p.Pid], comm[p.Pid] = p.Parent, p.Comm
	}
	wanted := map[int]bool{}
	for _, pid := range s.Pids {
		wanted[pid] = true
	}
	descends := func(pid int) bool {
		for ; pid > 1; pid = parent[pid] {
			if wanted[pid] {
				return true
			}
		}
		return false
	}
	for _, p := range all {
		if p.Pid == os.Getpid() || !descends(p.Pid) && !p.names(s.Dirs) {
			continue
		}
		name := strings.Join(p.Args, " ")
		if name == "" {
			name = fmt.Sprintf("[%s] %s, a child of %s", p.Comm, p.State, comm[p.Parent])
		}
		snap.add(Processes, name)
	}
	return nil
}

var numbers = regexp.MustCompile(`\d+`)

// keptFilters is how many compiled seccomp profiles a monitor may keep (oci/runtime/filter).
const keptFilters = 16

// descriptors names an open file by what it is; of sockets and pipes only the kind, as their numbers mean nothing.
func descriptors(s Scope, snap Snapshot) error {
	for _, pid := range s.Pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		filters := 0
		for _, e := range entries {
			target, err := os.Readlink(filepath.Join(dir, e.Name()))
			if err != nil {
				continue
			}
			if strings.HasPrefix(target, "/memfd:seccomp ") {
				if filters++; filters <= keptFilters {
					continue
				}
			}
			if !strings.HasPrefix(target, "/") {
				target = numbers.ReplaceAllString(target, "*")
			}
			snap.add(Descriptors, strings.TrimSpace(string(comm))+": "+target)
		}
	}
	return nil
}

func network(s Scope, snap Snapshot) error {
	if !s.Network {
		return nil
	}
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, l := range links {
		snap.add(Links, l.Name)
	}
	rules, err := Ruleset()
	if err != nil {
		return err
	}
	for _, rule := range rules {
		snap.add(Rules, rule)
	}
	return nil
}

var counters = regexp.MustCompile(`packets \d+ bytes \d+|# handle \d+|\[\d+:\d+\]`)

// Ruleset is every firewall rule of this network namespace that nft shows, and what iptables-legacy shows if it is
// there: its rules are invisible to nft. Without either program it is empty.
func Ruleset() ([]string, error) {
	var rules []string
	table := ""
	for _, args := range [][]string{{"nft", "list", "ruleset"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}} {
		path, err := exec.LookPath(args[0])
		if err != nil {
			continue
		}
		out, err := exec.Command(path, args[1:]...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(counters.ReplaceAllString(line, ""))
			if line == "" || line == "}" || strings.HasPrefix(line, "#") {
				continue
			}
			if strings.HasPrefix(line, "table ") || strings.HasPrefix(line, "*") {
				table = line
			}
			rules = append(rules, table+" "+line)
		}
	}
	return rules, nil
}
