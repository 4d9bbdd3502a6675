// Command orlop-conmon is the monitor: the last parent of all containers of a node. It is started by the daemon, and by
// itself; people have no business with it.
//
//	orlop-conmon keeper --run-dir DIR --exit-dir DIR    holds descriptors, collects exits, starts the worker
//	orlop-conmon worker --run-dir DIR --exit-dir DIR    runs containers, copies logs
//	orlop-conmon version                                the version of what one monitor leaves to the next
//	orlop-conmon init                                   what libcontainer executes in a container
//	/init                                               the first process of a pod that shares its PID namespace
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/keeper"
	"github.com/orlop/orlop/conmon/worker"
	"github.com/orlop/orlop/oci/runtime"
)

func main() {
	runtime.Init() // does not return in a container
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "orlop-conmon:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "version" {
		fmt.Println(conmon.Version)
		return nil
	}
	if len(args) == 0 || (args[0] != "keeper" && args[0] != "worker") {
		return errors.New("it is started by orlop serve, as: orlop-conmon keeper --run-dir DIR --exit-dir DIR")
	}
	var cfg keeper.Config
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&cfg.RunDir, "run-dir", "", "directory of sockets and container states")
	flags.StringVar(&cfg.ExitDir, "exit-dir", "", "directory of exit records")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if cfg.RunDir == "" || cfg.ExitDir == "" {
		return errors.New("--run-dir and --exit-dir must be given")
	}
	log := slog.New(slog.NewTextHandler(logFile{os.Stderr}, nil)).With("process", args[0], "pid", os.Getpid())
	settle(log)
	if args[0] == "worker" {
		return worker.Run(context.Background(), cfg, log)
	}
	handoff, err := keeper.Inherited()
	if err != nil {
		return err
	}
	return keeper.Run(context.Background(), cfg, handoff, log)
}

// settle gives the process what does not depend on who started it.
func settle(log *slog.Logger) {
	unix.Umask(0o022) // execs inherit it
	// All containers depend on this one process, so it is the last to be killed; without the right to say so it is as
	// safe as the daemon.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		log.Debug("out-of-memory score is not lowered", "err", err)
	}
	debug.SetGCPercent(50)
}
