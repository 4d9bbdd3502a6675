package cgroup

import "time"

// Stats are counters of one cgroup. A nil pointer means that the kernel or controller does not offer it.
type Stats struct {
	Time      time.Time
	CPU       *CPU
	Memory    *Memory
	Swap      *Swap
	PIDs      *PIDs
	IO        *IO
	Processes uint64 // with their threads, as the kernel counts them
}

// CPU is processor time.
type CPU struct {
	UsageNanos uint64
	PSI        *PSI
}

// Memory in bytes, and counts of page faults. The working set is what can't be had back easily: usage without the
// file pages that are not in active use. Available and Limit are 0 without a limit.
type Memory struct {
	UsageBytes, WorkingSetBytes, AvailableBytes, RSSBytes, PageFaults, MajorPageFaults, LimitBytes uint64
	PSI                                                                                            *PSI
}

// Swap in bytes. Available is 0 without a limit.
type Swap struct{ UsageBytes, AvailableBytes uint64 }

// PIDs counts processes and threads; Limit is 0 without one.
type PIDs struct{ Current, Limit uint64 }

// IO has only pressure.
type IO struct{ PSI *PSI }

// PSI is pressure stall information (cgroup v2, Linux 4.20).
type PSI struct{ Some, Full PSILine }

// PSILine has the total time in microseconds, and shares of the last 10, 60 and 300 seconds in percent.
type PSILine struct {
	TotalMicros          uint64
	Avg10, Avg60, Avg300 float64
}

// unlimited is at least what the kernel writes for no limit on v1: the largest number of whole pages.
const unlimited = 1 << 62

// Read reads the cgroup at dir (see Dir). os.ErrNotExist if it is gone. It is on the hot path of ListContainerStats:
// few opens, no allocation per line.
func (h Host) Read(dir string) (*Stats, error) {
	r := readers.Get().(*reader)
	defer readers.Put(r)
	s := &Stats{Time: time.Now()}
	if h.V2 {
		return s, h.readV2(r, dir, s)
	}
	return s, h.readV1(r, dir, s)
}

func (h Host) readV2(r *reader, dir string, s *Stats) error {
	at, err := r.open(h.path("", dir))
	if err != nil {
		return err
	}
	defer r.close(at)
	if data := r.read(at, "cpu.stat"); data != nil {
		s.CPU = &CPU{UsageNanos: value(data, "usage_usec") * uint64(time.Microsecond), PSI: parsePSI(r.read(at, "cpu.pressure"))}
	}
	if usage, ok := number(r.read(at, "memory.current")); ok {
		limit, _ := number(r.read(at, "memory.max"))
		m := &Memory{UsageBytes: usage, LimitBytes: limit}
		stat := r.read(at, "memory.stat")
		m.RSSBytes, m.PageFaults, m.MajorPageFaults = value(stat, "anon"), value(stat, "pgfault"), value(stat, "pgmajfault")
		m.workingSet(value(stat, "inactive_file"))
		m.PSI = parsePSI(r.read(at, "memory.pressure"))
		s.Memory = m
	}
	if usage, ok := number(r.read(at, "memory.swap.current")); ok {
		limit, limited := number(r.read(at, "memory.swap.max"))
		s.Swap = newSwap(usage, limit, limited)
	}
	s.readPIDs(r, at)
	if psi := parsePSI(r.read(at, "io.pressure")); psi != nil {
		s.IO = &IO{psi}
	}
	return nil
}

func (h Host) readV1(r *reader, dir string, s *Stats) error {
	found := false
	var last error
	for _, part := range []struct {
		controller string
		read       func(r *reader, at int)
	}{
		{"cpuacct", s.readCPUV1}, {"memory", s.readMemoryV1}, {"pids", s.readPIDs},
	} {
		if !h.Controllers[part.controller] {
			continue
		}
		at, err := r.open(h.path(part.controller, dir))
		if err != nil {
			last = err
			continue
		}
		found = true
		part.read(r, at)
		r.close(at)
	}
	if !found {
		return last
	}
	return nil
}

func (s *Stats) readCPUV1(r *reader, at int) {
	if usage, ok := number(r.read(at, "cpuacct.usage")); ok {
		s.CPU = &CPU{UsageNanos: usage}
	}
}

// readMemoryV1 takes the counters that include children ("total_"), as those of v2 do.
func (s *Stats) readMemoryV1(r *reader, at int) {
	usage, ok := number(r.read(at, "memory.usage_in_bytes"))
	if !ok {
		return
	}
	limit, _ := number(r.read(at, "memory.limit_in_bytes"))
	m := &Memory{UsageBytes: usage, LimitBytes: limit}
	stat := r.read(at, "memory.stat")
	m.RSSBytes, m.PageFaults, m.MajorPageFaults = value(stat, "total_rss"), value(stat, "total_pgfault"), value(stat, "total_pgmajfault")
	m.workingSet(value(stat, "total_inactive_file"))
	s.Memory = m
	both, ok := number(r.read(at, "memory.memsw.usage_in_bytes")) // memory and swap
	if !ok {
		return
	}
	bothLimit, limited := number(r.read(at, "memory.memsw.limit_in_bytes"))
	limited = limited && bothLimit < unlimited && m.LimitBytes > 0
	s.Swap = newSwap(both-min(both, usage), bothLimit-min(bothLimit, m.LimitBytes), limited)
}

func (s *Stats) readPIDs(r *reader, at int) {
	if current, ok := number(r.read(at, "pids.current")); ok {
		limit, _ := number(r.read(at, "pids.max"))
		s.PIDs, s.Processes = &PIDs{current, limit}, current
	}
}

func (m *Memory) workingSet(inactiveFile uint64) {
	m.WorkingSetBytes = m.UsageBytes - min(m.UsageBytes, inactiveFile)
	if m.LimitBytes >= unlimited {
		m.LimitBytes = 0
	}
	m.AvailableBytes = m.LimitBytes - min(m.LimitBytes, m.WorkingSetBytes)
}

func newSwap(usage, limit uint64, limited bool) *Swap {
	s := &Swap{UsageBytes: usage}
	if limited {
		s.AvailableBytes = limit - min(limit, usage)
	}
	return s
}
