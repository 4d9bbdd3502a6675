package child

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// startField is the time at which a process started among those of [statFields], see proc_pid_stat(5).
const startField = 19

// Zombies are the children of this process that have ended and have not been waited for, each with the time at which it
// started: another process with that pid has another one.
func Zombies() (map[int]string, error) {
	lists, err := filepath.Glob("/proc/self/task/*/children") // a child is in the list of the thread that made it
	if err != nil {
		return nil, err
	}
	zombies := map[int]string{}
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended, and its children are another's
		}
		for _, word := range strings.Fields(string(pids)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return nil, err
			}
			if f, err := statFields(pid); err == nil && len(f) > startField && f[0] == "Z" {
				zombies[pid] = f[startField]
			}
		}
	}
	return zombies, nil
}
