package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/test/kernel"
)

// Pods that come and go side by side get addresses of their own, and leave none behind.
func TestManyPodsAtOnce(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.Command("ip"))
	network, leases := bridgeNode(t)
	const pods = 16
	var mu sync.Mutex
	owner := map[netip.Addr]string{}
	var group sync.WaitGroup
	for i := range pods {
		dir := filepath.Join(t.TempDir(), "ns")
		t.Cleanup(func() { _ = ns.Delete(context.Background(), dir) })
		p := Pod{ID: fmt.Sprintf("%064d", i), Name: fmt.Sprintf("web-%d", i), Namespace: "default", NetNS: filepath.Join(dir, "net")}
		group.Go(func() {
			if err := ns.Create(t.Context(), ns.Options{Dir: dir, Net: true}); err != nil {
				t.Error(err)
				return
			}
			got, err := network.Add(t.Context(), p)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if other := owner[got.IPs[0]]; other != "" {
				t.Errorf("%s and %s have the address %s", other, p.Name, got.IPs[0])
			}
			owner[got.IPs[0]] = p.Name
		})
	}
	group.Wait()
	ids, err := network.Attached()
	if err != nil || len(ids) != pods {
		t.Errorf("attached: %v, %v", ids, err)
	}
	for _, id := range ids {
		group.Go(func() { // the second changes nothing
			if err := errors.Join(network.Del(t.Context(), Pod{ID: id}), network.Del(t.Context(), Pod{ID: id})); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	checkNoLeases(t, leases)
	if ids, err := network.Attached(); err != nil || len(ids) != 0 {
		t.Errorf("attached: %v, %v", ids, err)
	}
}

func checkNoLeases(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "10.") {
			t.Errorf("lease %s is left", e.Name())
		}
	}
}
