package kubelet

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/orlop/orlop/test/daemon"
)

// otherKubelet is the shim where the real kubelet is tested, and the other way round.
func otherKubelet(t *testing.T) *subject {
	t.Helper()
	other := *node
	other.args = slices.DeleteFunc(slices.Clone(node.args), func(arg string) bool { return strings.HasPrefix(arg, "--log-level") })
	if node.binary != control.Bin.Kubelet {
		other.binary = control.Bin.Kubelet
		return &other
	}
	bins, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	other.binary = bins.Kubelet
	return &other
}

// removeTraces removes at the end of the test what the other kubelet leaves for its next start: firewall rules and files of
// its own. What is left of pods stays, to be found.
func removeTraces(t *testing.T) {
	t.Helper()
	chains, tables := firewall(t)
	root := filepath.Join(node.dir, "root")
	had := map[string]bool{"pods": true, "plugins": true, "plugins_registry": true}
	names, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		had[e.Name()] = true
	}
	t.Cleanup(func() {
		nowChains, nowTables := firewall(t)
		for table := range nowTables {
			if !tables[table] {
				nft(t, "delete table "+table)
			}
		}
		for chain, table := range nowChains {
			if chains[chain] == "" && tables[table] {
				nft(t, "delete chain "+chain)
			}
		}
		names, err := os.ReadDir(root)
		for _, e := range names {
			if !had[e.Name()] {
				err = errors.Join(err, os.RemoveAll(filepath.Join(root, e.Name())))
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// firewall is which chains there are, by table, and which tables.
func firewall(t *testing.T) (chains map[string]string, tables map[string]bool) {
	t.Helper()
	chains, tables = map[string]string{}, map[string]bool{}
	table := ""
	for line := range strings.Lines(nft(t, "list chains")) {
		words := strings.Fields(line)
		switch {
		case len(words) > 2 && words[0] == "table":
			table = words[1] + " " + words[2]
			tables[table] = true
		case len(words) > 1 && words[0] == "chain":
			chains[table+" "+words[1]] = table
		}
	}
	return chains, tables
}

func nft(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command("nft", strings.Fields(command)...).CombinedOutput()
	if err != nil {
		t.Errorf("nft %s: %v: %s", command, err, out)
	}
	return string(out)
}

// TestCSIOtherKubelet: what one kind of kubelet has mounted, the other one unmounts.
func TestCSIOtherKubelet(t *testing.T) {
	s := alone(t)
	removeTraces(t)
	d := startDriver(s, storagev1.CSIDriverSpec{}, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	attachVolumes(s, d.Name)
	makeVolume(s, d.Name, "Filesystem")
	s.apply(strings.ReplaceAll(csiSet, "SPACE", s.name))
	other := otherKubelet(t)
	for i, next := range []*subject{other, node} {
		s.kubectl("scale", "statefulset", "db", "--replicas=1")
		s.waitPod("db-0", "ready", ready)
		stage := d.Calls("NodeStageVolume")[0].Request.(*csi.NodeStageVolumeRequest).StagingTargetPath
		if err := control.Kill(logName); err != nil {
			t.Fatal(err)
		}
		if err := next.start(); err != nil {
			t.Fatal(err)
		}
		s.within(2*patience, "the driver on the CSINode", func() error { return listed(s, d.Name) })
		s.kubectl("scale", "statefulset", "db", "--replicas=0")
		s.within(2*patience, "the pod's end", gone(s, "db-0"))
		unstaged(s, d, stage)
		data, err := os.ReadFile(filepath.Join(d.Volume("disk-1"), "part", "starts"))
		if err != nil || strings.Count(string(data), "\n") < i+1 {
			t.Errorf("after %d starts at least the volume has %q, %v", i+1, data, err)
		}
		d.Forget()
	}
}
