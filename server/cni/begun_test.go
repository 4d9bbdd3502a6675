package cni

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cutShort leaves what a daemon leaves that dies while a plugin works on ADD.
func cutShort(t *testing.T, n *node) {
	t.Helper()
	network := n.open()
	rt, err := pod.runtimeConf()
	if err != nil {
		t.Fatal(err)
	}
	if err := network.begun.add(network.current.Load().list, rt); err != nil {
		t.Fatal(err)
	}
	network.Close()
}

// What an ADD did that was cut short is undone, also when its configuration is gone meanwhile.
func TestDelAfterCrash(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	n.conf("10-fake.conflist", fakeList)
	cutShort(t, n)
	if err := os.Remove(filepath.Join(n.ConfDir, "10-fake.conflist")); err != nil {
		t.Fatal(err)
	}
	network := n.open()
	if ids, err := network.Attached(); err != nil || !slices.Equal(ids, []string{pod.ID}) {
		t.Fatalf("%v, %v", ids, err)
	}
	if err := network.Del(t.Context(), Pod{ID: pod.ID}); err != nil {
		t.Error(err)
	}
	if got := n.said("calls"); !strings.Contains(got, "DEL "+pod.ID+" eth0") || !strings.Contains(got, "K8S_POD_NAME=web") {
		t.Errorf("calls:\n%s", got)
	}
	if strings.Contains(n.said("stdin"), "prevResult") {
		t.Errorf("DEL of what has no result was given one:\n%s", n.said("stdin"))
	}
	if ids, err := network.Attached(); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v", ids, err)
	}
}

func TestAddAfterCrash(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", fakeScript)
	n.conf("10-fake.conflist", fakeList)
	cutShort(t, n)
	network := n.open()
	if got, err := network.Add(t.Context(), pod); err != nil || len(got.IPs) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	var commands []string
	for line := range strings.Lines(n.said("calls")) {
		commands = append(commands, strings.Fields(line)[0])
	}
	if !slices.Equal(commands, []string{"DEL", "ADD"}) {
		t.Errorf("%v", commands)
	}
	if a, err := network.attachments(pod.ID); err != nil || len(a) != 1 || network.begun.get(pod.ID) != nil {
		t.Errorf("%v, %v", a, err)
	}
}

// A record that was cut short itself is of an ADD that ran no plugin.
func TestBegunTorn(t *testing.T) {
	n := newNode(t)
	network := n.open()
	if err := os.MkdirAll(network.begun.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for id, text := range map[string]string{"a": "", "b": `{"ContainerID":"b","Netw`, "c": `{"ContainerID":"d"}`} {
		if err := os.WriteFile(network.begun.path(id), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := network.Attached(); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v", ids, err)
	}
	for _, id := range []string{"a", "b", "c"} {
		if err := network.Del(t.Context(), Pod{ID: id}); err != nil {
			t.Error(err)
		}
	}
	if ids, err := network.begun.pods(); err != nil || len(ids) != 0 {
		t.Errorf("records are left: %v, %v", ids, err)
	}
}

// A DEL that fails leaves the pod on record, so that it is tried again.
func TestAddAndDelFail(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", `exit 1`)
	n.conf("10-fake.conflist", fakeList)
	network := n.open()
	if _, err := network.Add(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "not undone") {
		t.Errorf("%v", err)
	}
	if err := network.Del(t.Context(), pod); err == nil {
		t.Error("DEL failed, and Del did not")
	}
	if ids, err := network.Attached(); err != nil || !slices.Equal(ids, []string{pod.ID}) {
		t.Errorf("%v, %v", ids, err)
	}
	n.plugin("fake", fakeScript)
	if err := network.Del(t.Context(), pod); err != nil {
		t.Error(err)
	}
	if ids, err := network.Attached(); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v", ids, err)
	}
}

// Plugins that hang for some pods don't keep another pod waiting.
func TestHangingPodsLetOthersPass(t *testing.T) {
	n := newNode(t)
	n.plugin("fake", `case $CNI_COMMAND$CNI_CONTAINERID in ADDslow*) exec sleep 1000;; esac`+"\n"+fakeScript)
	n.conf("10-fake.conflist", fakeList)
	network := n.open()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	for i := range cap(network.turns) {
		go func() {
			slow := pod
			slow.ID = "slow" + string(rune('a'+i))
			_, err := network.Add(ctx, slow)
			left <- err
		}()
	}
	waitFor(t, "all turns to be taken", func() bool { return len(network.turns) == cap(network.turns) })
	if got, err := network.Add(t.Context(), pod); err != nil || len(got.IPs) == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	cancel()
	for range cap(network.turns) {
		if err := <-left; err == nil {
			t.Error("a plugin that hangs gave a result")
		}
	}
	if len(network.turns) != 0 {
		t.Errorf("%d turns are not given back", len(network.turns))
	}
}

func TestTurnIsLimitedByTheCaller(t *testing.T) {
	network := newNode(t).open()
	for range cap(network.turns) {
		network.turns <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := network.turn(ctx); err == nil {
		t.Error("there was a turn")
	}
}
