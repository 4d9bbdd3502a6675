package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// teller is a runtime that answers one question, after some failures.
type teller struct {
	cri.RuntimeServiceClient
	failures int
	reply    *cri.RuntimeConfigResponse
	err      error
}

func (r *teller) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest, ...grpc.CallOption) (*cri.RuntimeConfigResponse, error) {
	if r.failures > 0 {
		r.failures--
		return nil, errors.New("connection refused")
	}
	return r.reply, r.err
}

func TestSystemdDriver(t *testing.T) {
	tells := func(d cri.CgroupDriver) *cri.RuntimeConfigResponse {
		return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: d}}
	}
	for _, tt := range []struct {
		name       string
		runtime    teller
		configured string
		want       bool
	}{
		{"the runtime has it", teller{reply: tells(cri.CgroupDriver_SYSTEMD)}, "cgroupfs", true},
		{"the runtime has not", teller{reply: tells(cri.CgroupDriver_CGROUPFS)}, "systemd", false},
		{"the runtime is late", teller{failures: 20, reply: tells(cri.CgroupDriver_SYSTEMD)}, "cgroupfs", true},
		{"an older runtime", teller{err: status.Error(codes.Unimplemented, "unknown method")}, "systemd", true},
		{"a runtime that says nothing of it", teller{reply: &cri.RuntimeConfigResponse{}}, "systemd", true},
		{"no runtime", teller{failures: 1000}, "systemd", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := systemdDriver(t.Context(), &tt.runtime, tt.configured, slog.New(slog.DiscardHandler)); got != tt.want {
					t.Errorf("systemd: %v, want %v", got, tt.want)
				}
			})
		})
	}
}
