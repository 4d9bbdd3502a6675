package proxy

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/orlop/orlop/test/kernel"
)

// useLegacy has the programs of legacy tables found as "iptables" until the test ends.
func useLegacy(t *testing.T) {
	t.Helper()
	kernel.Require(t, kernel.Root, kernel.Command("iptables-legacy"), kernel.Command("ip6tables-legacy"))
	dir := t.TempDir()
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"", "-restore", "-save"} {
			path, err := exec.LookPath(program + "-legacy" + what)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path, filepath.Join(dir, program+what)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// Legacy tables do what the table says, as those of nftables do in TestPackets.
func TestPacketsLegacy(t *testing.T) {
	n := network(t)
	quick(t, n)
	useLegacy(t)
	m := modes[1]
	backend := m.start(t)
	cases := 0
	for _, s := range table {
		if s.only != "" && s.only != m.name {
			continue
		}
		for _, f := range []family{0, 1} {
			cases += n.play(t, f, s, m, backend)
		}
	}
	t.Logf("%d cases", cases)
}
