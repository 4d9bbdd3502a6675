package main

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/test/images/probe/facts"
)

// collect leaves empty what cannot be read: that is a fact, too.
func collect() facts.Facts {
	f := facts.Facts{
		UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(), Pid: os.Getpid(),
		Caps: map[string]uint64{}, Namespaces: map[string]string{}, Rlimits: map[string][2]uint64{},
		Cgroup: text("/proc/self/cgroup"), Mounts: text("/proc/self/mountinfo"),
		Label: strings.Trim(text("/proc/self/attr/current"), "\x00\n"),
	}
	f.Groups, _ = os.Getgroups()
	f.Cwd, _ = os.Getwd()
	f.Hostname, _ = os.Hostname()
	f.OOMScoreAdj, _ = strconv.Atoi(strings.TrimSpace(text("/proc/self/oom_score_adj")))
	f.Umask = unix.Umask(0)
	_, err := unix.IoctlGetTermios(1, unix.TCGETS)
	f.Terminal = err == nil
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		f.Namespaces[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	for name, number := range map[string]int{
		"core": unix.RLIMIT_CORE, "memlock": unix.RLIMIT_MEMLOCK, "nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC,
	} {
		var limit syscall.Rlimit
		if syscall.Getrlimit(number, &limit) == nil {
			f.Rlimits[name] = [2]uint64{limit.Cur, limit.Max}
		}
	}
	fromStatus(&f)
	return f
}

func fromStatus(f *facts.Facts) {
	lines := bufio.NewScanner(bytes.NewReader([]byte(text("/proc/self/status"))))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch {
		case strings.HasPrefix(key, "Cap"):
			f.Caps[strings.TrimPrefix(key, "Cap")], _ = strconv.ParseUint(value, 16, 64)
		case key == "NoNewPrivs":
			f.NoNewPrivs = value == "1"
		case key == "Seccomp":
			f.Seccomp, _ = strconv.Atoi(value)
		}
	}
}

func text(path string) string {
	raw, _ := os.ReadFile(path)
	return string(raw)
}
