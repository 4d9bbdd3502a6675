// Package proxy sends real packets through the rules of the proxy's backends, in a network of namespaces that looks like a
// node among others, and compares with what the Service API promises.
package proxy

import (
	"fmt"
	"os"
	"testing"

	"github.com/orlop/orlop/test/kernel"
)

// Everything happens in a network namespace of the suite's own, which is the node.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || kernel.InOwnNetwork() {
		os.Exit(kernel.Main(m))
	}
	code, err := kernel.OwnNetwork()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}
