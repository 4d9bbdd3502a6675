package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/process"
)

// A restart of the daemon after the programs have been replaced has the monitor go on as the new one: the same keeper, and
// no container notices.
func TestMonitorIsUpgraded(t *testing.T) {
	bins, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "orlop-conmon")
	process.Install(t, bins.Monitor, program)
	d := another(t, nil, func(d *daemon.Daemon) {
		config := filepath.Join(d.Dir, "orlop.toml")
		text, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, fmt.Appendf(nil, "%q", bins.Monitor), fmt.Appendf(nil, "%q", program))
		if err := os.WriteFile(config, text, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	pod := d.Client.Pod(t)
	const total, size = 3000, 100
	writer := pod.Container(t, probe, criclient.Run("/probe", "spam", fmt.Sprint(total), fmt.Sprint(size), "1ms"))
	rest := sleeper(t, pod)
	pid, keeper, worker := rest.Pid(t), d.Pid(daemon.Keeper), d.Pid(daemon.Worker)
	process.Install(t, bins.Monitor, program)
	if err := d.Restart(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := d.Pid(daemon.Keeper); got != keeper {
		t.Errorf("the keeper was %d and is %d", keeper, got)
	}
	if got := d.Pid(daemon.Worker); got == worker || got == 0 {
		t.Errorf("the worker was %d and is %d", worker, got)
	}
	for _, role := range []daemon.Role{daemon.Keeper, daemon.Worker} {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", d.Pid(role))); err != nil || exe != program {
			t.Errorf("%s is %s, %v", role, exe, err)
		}
	}
	if got := rest.Pid(t); got != pid {
		t.Errorf("the first process of a container was %d and is %d", pid, got)
	}
	if got := rest.Exec(t, "echo", "alive"); got != "alive\n" {
		t.Errorf("exec printed %q", got)
	}
	if st := writer.WaitExit(t); st.ExitCode != 0 {
		t.Errorf("writer: exit code %d, %s", st.ExitCode, st.Reason)
	}
	sequence(t, criclient.Lines(writer.Log(t), "stdout"), total, size, 1)
}
