package conmon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// starter starts the monitor at most once a second: an attempt that fails because another monitor is just starting
// must not become a storm.
type starter struct {
	cfg     Config
	logPath string
	last    time.Time
}

func newStarter(cfg Config) *starter {
	return &starter{cfg: cfg, logPath: filepath.Join(cfg.RunDir, "conmon.log")}
}

// start does not wait for the monitor to listen. If one runs, this one finds it locked and ends.
func (s *starter) start() error {
	if time.Since(s.last) < time.Second {
		return nil
	}
	s.last = time.Now()
	log, err := os.OpenFile(s.logPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(s.cfg.Path, "keeper", "--run-dir", s.cfg.RunDir, "--exit-dir", s.cfg.ExitDir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives us, and our terminal's signals
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("monitor: start %s: %w", s.cfg.Path, err)
	}
	go func() { _ = cmd.Wait() }() // it may end before us
	return nil
}
