package main

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// driverPatience is how long a runtime that starts beside this process is waited for.
const driverPatience = 10 * time.Second

// systemdDriver tells whether pods' cgroups are slices of systemd's: the runtime says which driver it has, since the two must
// have the same one (KEP-4033). A runtime that does not know the question, or does not answer in time, has the configured one.
func systemdDriver(ctx context.Context, r cri.RuntimeServiceClient, configured string, log *slog.Logger) bool {
	ctx, cancel := context.WithTimeout(ctx, driverPatience)
	defer cancel()
	for {
		reply, err := r.RuntimeConfig(ctx, &cri.RuntimeConfigRequest{})
		switch {
		case err == nil && reply.Linux != nil:
			systemd := reply.Linux.CgroupDriver == cri.CgroupDriver_SYSTEMD
			if systemd != (configured == "systemd") {
				log.Info("the runtime's cgroup driver is used, not the configured one", "configured", configured, "used", reply.Linux.CgroupDriver)
			}
			return systemd
		case err == nil, status.Code(err) == codes.Unimplemented:
			return configured == "systemd"
		}
		select {
		case <-ctx.Done():
			log.Warn("runtime did not tell its cgroup driver; the configured one is used", "configured", configured, "err", err)
			return configured == "systemd"
		case <-time.After(100 * time.Millisecond):
		}
	}
}
