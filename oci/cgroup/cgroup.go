// Package cgroup names the cgroups of pods and containers, and reads and kills what is in them, on cgroup v1 and v2.
// It never uses D-Bus.
package cgroup

import "time"

// Host is what this machine's cgroups are like; found once at start.
type Host struct {
	V2          bool
	Systemd     bool            // the cgroup driver: systemd, else cgroupfs
	Controllers map[string]bool // those that can be used
}

// Detect looks at /proc and /sys/fs/cgroup.
func Detect(systemdDriver bool) (Host, error) { panic("cgroup: owner fills this in") }

// Path is a container's CgroupsPath as the OCI spec has it: "/parent/orlop-ID" (cgroupfs) or "parent.slice:orlop:ID"
// (systemd), for a pod's cgroup_parent. An empty or malformed parent is an error that names it.
func (h Host) ContainerPath(parent, id string) (string, error) { panic("todo") }

// Dir is the cgroup of a CgroupsPath, or of a pod's cgroup_parent, relative to each hierarchy's root.
func (h Host) Dir(cgroupsPath string) (string, error) { panic("todo") }

// EnsurePod makes the pod's cgroup (cgroup_parent) in each hierarchy where it is missing and returns the
// directories that it made, outermost first; they are what Remove is given later.
func (h Host) EnsurePod(parent string) (made []string, err error) { panic("todo") }

// Remove removes empty cgroups, innermost first, and succeeds for those that are gone or in use by others.
func (h Host) Remove(made []string) error { panic("todo") }

// Stats are counters of one cgroup. A nil pointer means that the kernel or controller does not offer it.
type Stats struct {
	Time      time.Time
	CPU       *CPU
	Memory    *Memory
	Swap      *Swap
	PIDs      *PIDs
	IO        *IO
	Processes uint64
}
type CPU struct {
	UsageNanos uint64
	PSI        *PSI
}
type Memory struct {
	UsageBytes, WorkingSetBytes, AvailableBytes, RSSBytes, PageFaults, MajorPageFaults, LimitBytes uint64
	PSI                                                                                            *PSI
}
type Swap struct{ UsageBytes, AvailableBytes uint64 }
type PIDs struct{ Current, Limit uint64 }
type IO struct{ PSI *PSI }
type PSI struct{ Some, Full PSILine }
type PSILine struct {
	TotalMicros          uint64
	Avg10, Avg60, Avg300 float64
}

// Read reads the cgroup at dir (see Dir). os.ErrNotExist if it is gone. It is on the hot path of ListContainerStats:
// few opens, no allocation per line.
func (h Host) Read(dir string) (*Stats, error) { panic("todo") }
