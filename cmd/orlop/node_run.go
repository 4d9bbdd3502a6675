package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// nodeFlags say what is different from a machine of its own with the files of an installation.
type nodeFlags struct {
	kubeletConfig, proxyConfig string
	kubeconfig, services       string
	kubeletArgs, proxyArgs     []string
}

// kubeletURL is where a kubelet without an API server answers.
const kubeletURL = "http://127.0.0.1:10250"

func newNodeCommand(flags *configFlags) *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run all of a node: the runtime, the kubelet and the proxy",
		Long: "Runs orlop serve, orlop kubelet and orlop proxy, and starts again what ends, until SIGTERM or SIGINT; pods do not notice. " +
			"Without --kubeconfig this is a machine of its own: its pods are those of the manifests that the kubelet's " +
			"configuration names, and its Services those of --services. With systemd, use the three units instead.",
		Example: "  orlop node\n" +
			"  orlop node --kubeconfig /etc/kubernetes/kubelet.conf --kubelet-arg=--node-ip=192.0.2.7",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load()
			if err != nil {
				return fmt.Errorf("configuration:\n%w", err)
			}
			parts, err := f.parts(flags)
			if err != nil {
				return err
			}
			return keepAll(cmd.Context(), parts, newLogger(c, os.Stderr))
		},
	}
	cmd.Flags().StringVar(&f.kubeletConfig, "kubelet-config", "/etc/orlop/kubelet.yaml", "KubeletConfiguration `FILE`")
	cmd.Flags().StringVar(&f.proxyConfig, "proxy-config", "/etc/orlop/proxy.yaml",
		"KubeProxyConfiguration `FILE`; in a cluster it names the proxy's own kubeconfig")
	cmd.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig `FILE` of the kubelet, on a node of a cluster")
	cmd.Flags().StringVar(&f.services, "services", "/etc/orlop/services", "`DIR` of Services, without --kubeconfig")
	cmd.Flags().StringArrayVar(&f.kubeletArgs, "kubelet-arg", nil, "another `ARGUMENT` of orlop kubelet, as --node-ip=192.0.2.7; may be repeated")
	cmd.Flags().StringArrayVar(&f.proxyArgs, "proxy-arg", nil, "another `ARGUMENT` of orlop proxy; may be repeated")
	for _, name := range []string{"kubelet-config", "proxy-config"} {
		mustMark(cmd.MarkFlagFilename(name, "yaml"))
	}
	mustMark(cmd.MarkFlagFilename("kubeconfig"))
	mustMark(cmd.MarkFlagDirname("services"))
	return cmd
}

// part is a program that a node runs, with its arguments from its name on.
type part struct {
	path string
	args []string
}

func (f nodeFlags) parts(c *configFlags) ([]part, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	serve := part{self, []string{"orlop", "serve"}}
	if c.file != "" {
		serve.args = append(serve.args, "--config", c.file)
	}
	if c.dir != "" {
		serve.args = append(serve.args, "--config-dir", c.dir)
	}
	kubelet := []string{"--config", f.kubeletConfig}
	proxy := []string{"--config", f.proxyConfig}
	if f.kubeconfig != "" {
		kubelet = append(kubelet, "--kubeconfig", f.kubeconfig)
	} else {
		proxy = append(proxy, "--services-dir", f.services, "--kubelet-url", kubeletURL)
	}
	parts := []part{serve}
	for i, more := range [][]string{append(kubelet, f.kubeletArgs...), append(proxy, f.proxyArgs...)} {
		path, err := programs[i].find()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{path, append([]string{programs[i].name}, more...)})
	}
	return parts, nil
}

// keepAll returns when all have ended: because ctx is done, or because one of them can't be started.
func keepAll(ctx context.Context, parts []part, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range parts {
		g.Go(func() error { return p.keep(ctx, log) })
	}
	return g.Wait()
}

const (
	infancy      = 5 * time.Second  // who gives up sooner at the first start will not do better at the second
	restartPause = time.Second      // as in the systemd units
	endTime      = 30 * time.Second // for a program that was told to end
)

// keep runs a program until ctx is done.
func (p part) keep(ctx context.Context, log *slog.Logger) error {
	log = log.With("program", p.args[0])
	for first := true; ; first = false {
		began := time.Now()
		err := p.run(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case first && time.Since(began) < infancy && !killed(err):
			return fmt.Errorf("%s ended after %s: %w", p.args[0], time.Since(began).Round(time.Millisecond), err)
		}
		log.Warn("program ended and is started again", "err", err)
		select {
		case <-time.After(restartPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// killed tells whether a program was ended by a signal, which says nothing about how it does.
func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() < 0
}

// run is one life of a program, which ends with this process whatever happens to it.
func (p part) run(ctx context.Context) error {
	runtime.LockOSThread() // the kernel takes the end of this thread for its parent's (prctl(2), PR_SET_PDEATHSIG)
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, p.path)
	cmd.Args, cmd.Stdout, cmd.Stderr = p.args, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endTime
	// A terminal's Ctrl-C is for this process alone, which passes it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Run(); err != nil {
		return err
	}
	return errors.New("exit status 0")
}
