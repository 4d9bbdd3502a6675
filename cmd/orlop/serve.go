package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/internal/config"
	"github.com/orlop/orlop/server/imageserver"
	"github.com/orlop/orlop/server/rpc"
	"github.com/orlop/orlop/server/stream"
)

func newServeCommand(flags *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon that serves CRI",
		Long: "Serves the Kubernetes Container Runtime Interface, version 1, on a unix socket until SIGTERM or SIGINT. " +
			"Containers do not notice that it ends, in whatever way, or that it starts again. Its log goes to standard " +
			"error. Under systemd it reports when it is ready, and takes its socket from a socket unit if it has one.",
		Example: "  orlop serve\n  orlop serve --config ./orlop.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load()
			if err != nil {
				return fmt.Errorf("configuration:\n%w", err)
			}
			return serve(cmd.Context(), c, newLogger(c, os.Stderr))
		},
	}
}

// serve runs until ctx is done. What was opened is closed in the reverse order.
func serve(ctx context.Context, c config.Config, log *slog.Logger) (err error) {
	began := time.Now()
	stream.LogLibrary(log)
	in, err := lockInstance(c)
	if err != nil {
		return err
	}
	defer in.release()
	// Listening comes early: who connects while we compare records with the kernel waits, and is not refused.
	listener, err := listen(c.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	n, err := openNode(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()

	g := grpc.NewServer(rpc.Options(log)...)
	cri.RegisterRuntimeServiceServer(g, n.server)
	cri.RegisterImageServiceServer(g, imageserver.New(n.images, n.storage, n.server.ImageInUse))
	g.RegisterService(&adminService, admin{images: n.images, monitor: n.monitor})
	log.Info("serving", "socket", listener.Addr().String(), "version", versionText(), "dur", time.Since(began))
	notify(log, daemon.SdNotifyReady)
	return serveUntil(ctx, g, listener, func() {
		log.Info("stopping; containers go on")
		notify(log, daemon.SdNotifyStopping)
		n.cancelWork()
	})
}

// stopTime is what calls get to answer after what they wait for has been cancelled.
const stopTime = 10 * time.Second

// serveUntil serves until ctx is done, then calls stopping, and ends when all calls have been answered.
func serveUntil(ctx context.Context, g *grpc.Server, l net.Listener, stopping func()) error {
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		g.GracefulStop()
	}()
	stopping()
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		g.Stop() // a client that does not read its answer
		<-stopped
	}
	return <-served
}

// notify tells systemd, where it started us with Type=notify.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd is not told", "state", state, "err", err)
	}
}
