package stats

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/ns"
)

// defaultInterface is the name that CNI plugins give a pod's first interface.
const defaultInterface = "eth0"

// network reads the counters of a pod's interfaces, in its network namespace.
func network(netns string) (*cri.NetworkUsage, error) {
	var table []byte
	err := ns.Do(netns, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("network counters: %w", err)
	}
	return parseNetwork(table, time.Now())
}

// Columns of /proc/net/dev after the name (proc_pid_net(5)).
const (
	rxBytes, rxErrors = 0, 2
	txBytes, txErrors = 8, 10
	columns           = 16
)

// parseNetwork leaves out loopback: its traffic does not leave the pod.
func parseNetwork(table []byte, at time.Time) (*cri.NetworkUsage, error) {
	out := &cri.NetworkUsage{Timestamp: at.UnixNano()}
	for line := range bytes.Lines(table) {
		head, rest, ok := bytes.Cut(line, []byte(":"))
		name := string(bytes.TrimSpace(head))
		if !ok || name == "lo" {
			continue // the two lines of titles have no colon
		}
		fields := bytes.Fields(rest)
		if len(fields) < columns {
			return nil, fmt.Errorf("network counters: %q has %d columns, not %d", name, len(fields), columns)
		}
		var n [columns]uint64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseUint(string(fields[i]), 10, 64); err != nil {
				return nil, fmt.Errorf("network counters: %q: %w", name, err)
			}
		}
		usage := &cri.NetworkInterfaceUsage{
			Name: name, RxBytes: number(n[rxBytes]), RxErrors: number(n[rxErrors]), TxBytes: number(n[txBytes]), TxErrors: number(n[txErrors]),
		}
		if name == defaultInterface {
			out.DefaultInterface = usage
			continue
		}
		out.Interfaces = append(out.Interfaces, usage)
	}
	if out.DefaultInterface == nil && len(out.Interfaces) > 0 {
		out.DefaultInterface, out.Interfaces = out.Interfaces[0], out.Interfaces[1:]
	}
	return out, nil
}
