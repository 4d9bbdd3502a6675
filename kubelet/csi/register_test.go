package csi

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/orlop/orlop/test/csidriver"
)

// csiNodeDrivers are those that the API server has.
func (s *stand) csiNodeDrivers() []storagev1.CSINodeDriver {
	for _, o := range s.server.Objects("csinodes") {
		return o.(*storagev1.CSINode).Spec.Drivers
	}
	return nil
}

func (s *stand) node() *v1.Node { return s.server.Objects("nodes")[0].(*v1.Node) }

// TestRegistration puts a driver on the CSINode and the Node, and takes it off again with its socket.
func TestRegistration(t *testing.T) {
	s := start(t)
	// One that another Node of this name has left, with a driver that was never here.
	s.server.Set(&storagev1.CSINode{
		ObjectMeta: metav1.ObjectMeta{Name: "node", OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "node", UID: "old"}}},
		Spec:       storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "old", NodeID: "old"}}},
	})
	s.run()
	want := []storagev1.CSINodeDriver{{
		Name: driverName, NodeID: csidriver.NodeID, TopologyKeys: []string{"rack", "zone"}, Allocatable: &storagev1.VolumeNodeResources{Count: new(int32(5))},
	}}
	if diff := cmp.Diff(want, s.csiNodeDrivers()); diff != "" {
		t.Errorf("CSINode (-want +got):\n%s", diff)
	}
	if n := s.node(); n.Labels["rack"] != "7" || n.Annotations[idsAnnotation] != `{"`+driverName+`":"`+csidriver.NodeID+`"}` {
		t.Errorf("node: labels %v, annotations %v", n.Labels, n.Annotations)
	}
	s.until("the driver knows", func() bool { return len(s.driver.Verdicts()) > 0 })
	if v := s.driver.Verdicts()[0]; !v.PluginRegistered || v.Error != "" {
		t.Errorf("the driver was told %v", v)
	}
	s.driver.Stop()
	s.until("the driver is off the CSINode", func() bool { return len(s.csiNodeDrivers()) == 0 })
	s.until("the driver is off the Node", func() bool { return s.node().Annotations[idsAnnotation] == "" })
	if s.node().Labels["rack"] != "7" {
		t.Error("the label is gone, by which volumes were placed")
	}
}

// TestLimit follows what the driver says, if its CSIDriver says that it may change.
func TestLimit(t *testing.T) {
	s := start(t)
	s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.NodeAllocatableUpdatePeriodSeconds = new(int64(1)) })
	s.run()
	s.driver.SetMax(3)
	s.until("the limit is another one", func() bool {
		all := s.csiNodeDrivers()
		return len(all) == 1 && *all[0].Allocatable.Count == 3
	})
}

// TestNodeReplaced: a Node that was deleted takes its CSINode with it, and the next one has the same drivers.
func TestNodeReplaced(t *testing.T) {
	s := start(t)
	s.run()
	if err := s.client.CSINodes.All().Delete(t.Context(), "node", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.server.Set(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "another"}})
	s.until("the driver is on the new CSINode", func() bool { return len(s.csiNodeDrivers()) == 1 })
	if owner := s.server.Objects("csinodes")[0].GetOwnerReferences()[0]; owner.UID != "another" {
		t.Errorf("its owner is %v", owner)
	}
	s.until("the driver is on the new Node", func() bool { return s.node().Labels["rack"] == "7" && s.node().Annotations[idsAnnotation] != "" })
}

// TestKubeletStops leaves the drivers on the CSINode: they run.
func TestKubeletStops(t *testing.T) {
	s := start(t)
	stop := s.run()
	stop()
	if got := s.csiNodeDrivers(); len(got) != 1 {
		t.Errorf("CSINode has %v", got)
	}
}

// TestDriverUpdated: the new one comes before the old one goes, by a socket of another name, and by the same name anew.
func TestDriverUpdated(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	s.run()
	s.publish(volumeOf("a", "v"))
	o := s.driver.Options
	o.Dir, o.Suffix = o.Dir+"-2", "-2"
	next := csidriver.New(o)
	if err := os.Rename(s.driver.RegistrationSocket(), s.driver.RegistrationSocket()+".old"); err != nil { // which is a new one, to those who look
		t.Fatal(err)
	}
	s.until("the driver has registered twice", func() bool { return len(s.driver.Verdicts()) == 2 })
	s.until("once is left", func() bool {
		s.Manager.mu.Lock()
		defer s.Manager.mu.Unlock()
		return len(s.drivers[driverName]) == 1
	})
	s.registered()
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	defer next.Stop()
	s.until("the new one is used", func() bool {
		d, err := s.Manager.driver(driverName)
		return err == nil && d.endpoint == next.Socket()
	})
	s.driver.Stop()
	if err := os.Remove(s.driver.RegistrationSocket() + ".old"); err != nil {
		t.Fatal(err)
	}
	s.unpublish("a")
	if got := next.Order(); !cmp.Equal(got, []string{"NodeUnpublishVolume", "NodeUnstageVolume"}) {
		t.Errorf("the new one was asked for %v", got)
	}
	s.nothingLeft()
	if got := s.csiNodeDrivers(); len(got) != 1 {
		t.Errorf("CSINode has %v", got)
	}
	next.Forget()
	if err := os.Remove(next.RegistrationSocket()); err != nil {
		t.Fatal(err)
	}
	s.until("it is off the list", func() bool { return len(s.csiNodeDrivers()) == 0 })
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	s.registered()
}

// TestCheck refuses what can't be worked with, and says why.
func TestCheck(t *testing.T) {
	good := func() *registration.PluginInfo {
		return &registration.PluginInfo{Type: registration.CSIPlugin, Name: "a.b", SupportedVersions: []string{"0.3.0", "1.0.0"}}
	}
	for _, tt := range []struct {
		change func(*registration.PluginInfo)
		want   string // in the error; "" for none
	}{
		{func(*registration.PluginInfo) {}, ""},
		{func(i *registration.PluginInfo) { i.SupportedVersions = []string{"v1.5.0"} }, ""},
		{func(i *registration.PluginInfo) { i.SupportedVersions = []string{"0.3.0", "2.0.0", "10.0.0"} }, "none is 1.x"},
		{func(i *registration.PluginInfo) { i.SupportedVersions = nil }, "none is 1.x"},
		{func(i *registration.PluginInfo) { i.Type = registration.DevicePlugin }, "type DevicePlugin"},
		{func(i *registration.PluginInfo) { i.Name = "../x" }, "name of driver"},
	} {
		i := good()
		tt.change(i)
		err := check(i)
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v: %v, want %q", i, err, tt.want)
		}
	}
}

// TestRefusedRegistration is told to the driver, and tried again.
func TestRefusedRegistration(t *testing.T) {
	s := start(t)
	s.server.Set(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "node-uid", Labels: map[string]string{"zone": "b"}}})
	s.background(func(ctx context.Context) {
		if err := s.Manager.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := s.driver.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("the driver is refused", func() bool { return len(s.driver.Verdicts()) > 0 })
	if v := s.driver.Verdicts()[0]; v.PluginRegistered || !strings.Contains(v.Error, "zone=a") || !strings.Contains(v.Error, "zone=b") {
		t.Errorf("the driver was told %v", v)
	}
	s.server.Set(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "node-uid"}})
	s.registered()
}

// TestSubdirectory: sockets may be in one, and those of which a name begins with a dot are nobody's. The directory may be
// made anew.
func TestSubdirectory(t *testing.T) {
	s := start(t)
	registry := s.driver.Registry
	s.driver.Registry = filepath.Join(registry, "below")
	s.run()
	var hidden []*csidriver.Driver
	for _, where := range []csidriver.Options{{Name: ".hidden", Registry: registry}, {Name: "below", Registry: filepath.Join(registry, ".hidden")}} {
		where.Dir = s.driver.Dir + "-" + where.Name
		d := csidriver.New(where)
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		defer d.Stop()
		hidden = append(hidden, d)
	}
	if err := os.RemoveAll(registry); err != nil { // is seen after the hidden ones were
		t.Fatal(err)
	}
	s.until("the driver is off the list", func() bool { return len(s.csiNodeDrivers()) == 0 })
	for _, d := range hidden {
		if len(d.Calls("")) > 0 {
			t.Errorf("%s was asked for %v", d.Name, d.Calls(""))
		}
	}
	s.until("the directory is there", func() bool { _, err := os.Stat(registry); return err == nil })
	s.driver.Stop()
	if err := s.driver.Start(); err != nil {
		t.Fatal(err)
	}
	s.registered()
}
