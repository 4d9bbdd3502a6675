// Command bench measures a CRI runtime as its clients see it: how long the calls of a pod's life take, what pods cost
// in memory, how fast logs are copied and images pulled. It works against any CRI endpoint:
//
//	go run ./test/bench                                     a daemon of its own, images and a registry of its own
//	go run ./test/bench -endpoint unix:///run/containerd/containerd.sock -processes containerd,containerd-shim-runc-v2
//
// The image must have /bin/sh with sleep, head and yes; with an endpoint of somebody else it must be pullable there.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
)

// options say what to measure.
type options struct {
	endpoint     string
	image        string // runs in the pods
	pull         string // is pulled, "" for none
	pods, runs   int
	processes    []string // names of the runtime's own processes
	cgroupParent string
	seccomp      cri.SecurityProfile_ProfileType
	logBytes     int64
	idle         time.Duration
	json         bool
}

func main() {
	var o options
	var processes string
	var unconfined bool
	flag.StringVar(&o.endpoint, "endpoint", "", "CRI `endpoint`; without one a daemon is started")
	flag.StringVar(&o.image, "image", "", "`image` of the pods")
	flag.StringVar(&o.pull, "pull", "", "`image` whose pull is measured")
	flag.IntVar(&o.pods, "pods", 50, "how many pods run while memory and lists are measured")
	flag.IntVar(&o.runs, "runs", 50, "how often each call is measured")
	flag.StringVar(&processes, "processes", "orlop,orlop-conmon", "names of the runtime's own processes")
	flag.StringVar(&o.cgroupParent, "cgroup-parent", "/orlop-bench", "cgroup of the pods, as the runtime's driver wants it")
	flag.Int64Var(&o.logBytes, "log-bytes", 200<<20, "how much a container writes while its log is measured")
	flag.DurationVar(&o.idle, "idle", 20*time.Second, "for how long idle pods are watched")
	flag.BoolVar(&unconfined, "unconfined", false, "run containers without a seccomp profile, as crictl does by default")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()
	o.processes = strings.Split(processes, ",")
	if unconfined {
		o.seccomp = cri.SecurityProfile_Unconfined
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.endpoint == "" {
		own, oerr := startOwn(ctx, &o)
		if oerr != nil {
			return oerr
		}
		defer func() {
			if cerr := own.close(); err == nil {
				err = cerr
			}
		}()
	}
	client, err := criclient.Dial(o.endpoint)
	if err != nil {
		return err
	}
	defer client.Close()
	version, err := client.WaitReady(ctx)
	if err != nil {
		return err
	}
	logs, err := os.MkdirTemp("", "orlop-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(logs)
	b := &bench{options: o, Client: client, logs: logs, report: report{Runtime: version.RuntimeName + " " + version.RuntimeVersion}}
	if err := b.all(ctx); err != nil {
		return err
	}
	if o.json {
		return json.NewEncoder(os.Stdout).Encode(b.report)
	}
	b.report.print(os.Stdout)
	return nil
}

// bench is one run.
type bench struct {
	options
	*criclient.Client
	logs   string
	report report
	pod    int // numbers the pods
}

func (b *bench) all(ctx context.Context) error {
	for _, part := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"pulls", b.pulls}, {"lifecycle on the host network", b.onHost}, {"lifecycle with CNI", b.onCNI},
		{"memory, lists and idle time", b.crowd}, {"logs", b.log},
	} {
		fmt.Fprintln(os.Stderr, "bench:", part.what)
		if err := part.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.what, err)
		}
	}
	return nil
}
