package nft

import (
	"fmt"
	"os"
	"testing"

	"github.com/orlop/orlop/test/kernel"
)

// The tests change rules, in a network namespace of their own.
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
