package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"
)

// newPlugin makes a plugin that knows CNI 1.1.
func (n *node) newPlugin(name, script string) {
	n.t.Helper()
	n.plugin(name, script)
	path := filepath.Join(n.BinDirs[0], name)
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), `"1.0.0"]`, `"1.0.0","1.1.0"]`)), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

var newList = strings.ReplaceAll(fakeList, `"cniVersion":"1.0.0"`, `"cniVersion":"1.1.0"`)

// A plugin that became unable to work is found out by the ADD that fails, and asked until it is able to again.
func TestStatus(t *testing.T) {
	n := newNode(t)
	n.newPlugin("fake", `if [ -e $DIR/down ]; then
	[ $CNI_COMMAND = ADD ] && { echo '{"code":999,"msg":"no agent"}'; exit 1; }
	[ $CNI_COMMAND = STATUS ] && { echo '{"code":50,"msg":"the agent is down"}'; exit 1; }
fi
`+fakeScript)
	n.conf("10-fake.conflist", newList)
	network := n.open()
	if err := network.Status(); err != nil {
		t.Fatal(err)
	}
	down := filepath.Join(n.dir(), "down")
	if err := os.WriteFile(down, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := network.Add(t.Context(), pod); err == nil {
		t.Error("added")
	}
	waitFor(t, "the plugin's status", func() bool {
		err := network.Status()
		return err != nil && strings.Contains(err.Error(), "the agent is down")
	})
	if err := os.Remove(down); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the plugin to be asked again", func() bool { return network.Status() == nil })
}

// At start, plugins are told which pods there are, and free the rest.
func TestGC(t *testing.T) {
	n := newNode(t)
	n.newPlugin("fake", fakeScript)
	n.conf("10-fake.conflist", newList)
	if _, err := n.open().Add(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	before := n.said("stdin")
	if err := n.open().Status(); err != nil {
		t.Fatal(err)
	}
	after := strings.TrimPrefix(n.said("stdin"), before)
	if want := `"cni.dev/valid-attachments":[{"containerID":"` + pod.ID + `","ifname":"eth0"}]`; !strings.Contains(after, want) {
		t.Errorf("GC was not told %s:\n%s", want, after)
	}
	if calls := n.said("calls"); strings.Count(calls, "GC ") != 2 || strings.Contains(calls, "DEL ") {
		t.Errorf("calls:\n%s", calls)
	}
	n.conf("10-fake.conflist", strings.Replace(newList, `"name"`, `"disableGC":true,"name"`, 1))
	n.open()
	if calls := n.said("calls"); strings.Count(calls, "GC ") != 2 {
		t.Errorf("calls:\n%s", calls)
	}
}

// Plugins may be in files of their own. DEL knows them although the files are gone.
func TestPluginsInFiles(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	n.plugin("more", strings.ReplaceAll(fakeScript, "$CNI_COMMAND $CNI", "more-$CNI_COMMAND $CNI"))
	n.conf("10-fake.conflist", fakeList)
	network := n.open()
	own := filepath.Join(n.ConfDir, "fake")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	ready := func(plugins int) func() bool {
		return func() bool { return len(network.current.Load().list.Plugins) == plugins && network.Status() == nil }
	}
	waitFor(t, "the directory to be watched", func() bool { return len(network.files.WatchList()) == 2 })
	if err := os.WriteFile(filepath.Join(own, "more.conf"), []byte(`{"type":"more"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the second plugin", ready(2))
	if _, err := network.Add(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(own); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the second plugin to go", ready(1))
	if err := network.Del(t.Context(), pod); err != nil {
		t.Error(err)
	}
	if calls := n.said("calls"); !strings.Contains(calls, "more-ADD ") || !strings.Contains(calls, "more-DEL ") {
		t.Errorf("calls:\n%s", calls)
	}
}

func TestBadConf(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	for name, tt := range map[string]struct{ file, text, want string }{
		"not JSON":       {"1.conflist", `{`, "unexpected end"},
		"no name":        {"1.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"fake"}]}`, "no name"},
		"climbing name":  {"1.conflist", `{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"fake"}]}`, "invalid characters"},
		"empty name":     {"1.conflist", `{"cniVersion":"1.0.0","name":"","plugins":[{"type":"fake"}]}`, "name"},
		"no plugins":     {"1.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`, "plugins"},
		"no type":        {"1.conf", `{"cniVersion":"1.0.0","name":"x"}`, "type"},
		"unknown plugin": {"1.json", `{"cniVersion":"1.0.0","name":"x","type":"nowhere"}`, "nowhere"},
		"climbing type":  {"1.json", `{"cniVersion":"1.0.0","name":"x","type":"../fake"}`, "../fake"},
		"other version":  {"1.json", `{"cniVersion":"1.1.0","name":"x","type":"fake"}`, "version"},
	} {
		n.conf(tt.file, tt.text)
		err := n.open().Status()
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Count(err.Error(), "not ready") != 1 {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
		if err := os.Remove(filepath.Join(n.ConfDir, tt.file)); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzReadConf finds no file that is taken although DEL could not be run from its text later.
func FuzzReadConf(f *testing.F) {
	f.Add([]byte(fakeList), true)
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"single","type":"fake"}`), false)
	f.Add([]byte(`{"cniVersions":["0.3.1","1.1.0"],"name":"x","plugins":[null]}`), true)
	files, err := fsnotify.NewWatcher()
	if err != nil {
		f.Fatal(err)
	}
	defer files.Close()
	f.Fuzz(func(t *testing.T, text []byte, isList bool) {
		n := newNode(t)
		file := filepath.Join(n.ConfDir, map[bool]string{true: "1.conflist", false: "1.conf"}[isList])
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := (&Network{cfg: n.Config, files: files}).readConf(file)
		if err != nil {
			return
		}
		again, err := libcni.NetworkConfFromBytes(list.Bytes)
		if err != nil || again.Name != list.Name || len(again.Plugins) != len(list.Plugins) {
			t.Errorf("%q: %+v, %v; want %+v", text, again, err, list)
		}
	})
}
