// Package check makes one attempt of a probe against a container: an HTTP GET, a TCP connection, a gRPC health check or
// a command. When attempts are made, and how many of them count, is decided by package probe. Lifecycle hooks send
// their HTTP requests by the same rules.
package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Result is what one attempt says.
type Result int

// The results of an attempt. An attempt that could not be made is an error and has no result.
const (
	Unknown Result = iota
	Success
	Warning // a success that somebody should look at
	Failure
)

func (r Result) String() string {
	switch r {
	case Success:
		return "success"
	case Warning:
		return "warning"
	case Failure:
		return "failure"
	}
	return "unknown"
}

// ExecFunc runs a command in a container. Its err is for a command that did not run or did not end: a deadline
// (context.DeadlineExceeded or gRPC's code) if it ran longer than timeout.
type ExecFunc func(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (out []byte, exitCode int, err error)

// Target is what a probe is made against.
type Target struct {
	Container   *v1.Container
	ContainerID string // as the runtime knows it
	PodIP       string
}

// maxOutputBytes of a command or of a response's body are kept, as kubelet does.
const maxOutputBytes = 10 << 10

// Prober makes attempts.
type Prober struct {
	Exec ExecFunc
}

// errNoHandler: API validation does not let such a probe pass; a manifest on disk may have one.
var errNoHandler = errors.New("probe has no handler; set exec, httpGet, tcpSocket or grpc")

// Once makes one attempt within the probe's timeout. output is for people.
func (p *Prober) Once(ctx context.Context, spec *v1.Probe, target Target) (result Result, output string, err error) {
	timeout := time.Duration(max(spec.TimeoutSeconds, 1)) * time.Second
	switch {
	case spec.Exec != nil:
		return p.exec(ctx, spec.Exec, target, timeout)
	case spec.HTTPGet != nil:
		return httpGet(ctx, spec.HTTPGet, target, timeout)
	case spec.TCPSocket != nil:
		return tcp(ctx, spec.TCPSocket, target, timeout)
	case spec.GRPC != nil:
		return grpcHealth(ctx, spec.GRPC, target, timeout)
	}
	return Unknown, "", errNoHandler
}

// NeedsIP is true for a probe that cannot be made before the pod's address is known.
func NeedsIP(spec *v1.Probe) bool {
	switch {
	case spec.HTTPGet != nil:
		return spec.HTTPGet.Host == ""
	case spec.TCPSocket != nil:
		return spec.TCPSocket.Host == ""
	}
	return spec.GRPC != nil
}

func tcp(ctx context.Context, action *v1.TCPSocketAction, target Target, timeout time.Duration) (Result, string, error) {
	port, err := containerPort(action.Port, target.Container)
	if err != nil {
		return Unknown, "", err
	}
	d := dialer()
	d.Timeout = timeout
	conn, err := d.DialContext(ctx, "tcp", address(action.Host, target.PodIP, port))
	if err != nil {
		return Failure, err.Error(), nil
	}
	conn.Close()
	return Success, "", nil
}

// dialer makes connections that leave TIME-WAIT after a second: thousands of probes a minute would use up the ports.
// With zero seconds the peer would see a reset instead of an orderly end (kubernetes#89898).
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctrlErr := c.Control(func(fd uintptr) {
			err = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
		})
		return errors.Join(ctrlErr, err)
	}}
}

func address(host, podIP string, port int) string {
	if host == "" {
		host = podIP
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// containerPort finds a port by its number or by its name among those of the container.
func containerPort(port intstr.IntOrString, c *v1.Container) (int, error) {
	n := port.IntValue()
	if port.Type == intstr.String {
		n = 0
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				n = int(p.ContainerPort)
				break
			}
		}
		if n == 0 {
			return 0, fmt.Errorf("port %q not found; name it in the ports of container %s", port.StrVal, c.Name)
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %d", n)
	}
	return n, nil
}
