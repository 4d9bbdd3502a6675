// Package facts is what the probe program tells of the process that it is.
package facts

// Facts are printed as JSON by `probe facts`.
type Facts struct {
	UID, GID    int
	Groups      []int
	Caps        map[string]uint64 // "Inh", "Prm", "Eff", "Bnd", "Amb", as in /proc/self/status
	NoNewPrivs  bool
	Seccomp     int // 0 off, 2 filter
	Namespaces  map[string]string
	Rlimits     map[string][2]uint64 // "nofile": soft, hard
	Cwd         string
	Args        []string
	Env         []string
	Hostname    string
	OOMScoreAdj int
	Umask       int
	Cgroup      string // /proc/self/cgroup
	Mounts      string // /proc/self/mountinfo
	Label       string // of SELinux or AppArmor, /proc/self/attr/current
	Pid         int
	Terminal    bool // standard output is one
}
