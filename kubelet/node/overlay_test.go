package node

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/node/util"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/kubelet/cluster"
)

// change changes the Node as somebody else would.
func change(t *testing.T, client *cluster.Client, how func(n *v1.Node)) {
	t.Helper()
	nodes := client.Nodes.All()
	n, err := nodes.Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	how(n)
	if _, err := nodes.Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestForeignStatus: what others have changed since we last sent a status is not changed back.
func TestForeignStatus(t *testing.T) {
	client := connect(t, kubetest.New(t))
	e := &engine{network: true}
	m := manager(e, client, nil)
	m.refresh(t.Context())
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	network := func(s v1.ConditionStatus, devices string) func(*v1.Node) {
		return func(n *v1.Node) {
			n.Status.Conditions = putCondition(n.Status.Conditions, v1.NodeCondition{Type: v1.NodeNetworkUnavailable, Status: s})
			n.Status.Capacity["example.com/device"] = resource.MustParse(devices)
		}
	}
	change(t, client, network(v1.ConditionTrue, "1"))
	e.network = false
	m.refresh(t.Context())
	m.send(t.Context()) // from here on, we have a copy of the other's condition
	change(t, client, network(v1.ConditionFalse, "2"))
	e.network = true
	m.refresh(t.Context())
	m.send(t.Context())

	n, err := client.Nodes.All().Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, unavailable := util.GetNodeCondition(&n.Status, v1.NodeNetworkUnavailable)
	_, ready := util.GetNodeCondition(&n.Status, v1.NodeReady)
	devices, allocatable := n.Status.Capacity["example.com/device"], n.Status.Allocatable["example.com/device"]
	if unavailable.Status != v1.ConditionFalse || ready.Status != v1.ConditionTrue || devices.String() != "2" || allocatable.String() != "2" {
		t.Errorf("NetworkUnavailable %s, Ready %s, %s devices, of which %s are allocatable; want False, True, 2 and 2",
			unavailable.Status, ready.Status, devices.String(), allocatable.String())
	}
}

// TestTransitionTimes are of what the API server showed.
func TestTransitionTimes(t *testing.T) {
	at := func(minute int) metav1.Time { return metav1.NewTime(time.Date(2030, 1, 1, 0, minute, 0, 0, time.UTC)) }
	for _, tt := range []struct {
		name  string
		found []v1.NodeCondition
		want  metav1.Time
	}{
		{"a new node", nil, at(2)},
		{"a kubelet that restarts", []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, LastTransitionTime: at(1)}}, at(1)},
		{"a change", []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionFalse, LastTransitionTime: at(1)}}, at(2)},
		{"a node that was given up", []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionUnknown, LastTransitionTime: at(3)}}, at(4)},
	} {
		own := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, LastTransitionTime: at(2), LastHeartbeatTime: at(4)}
		if got := putCondition(tt.found, own); len(got) != 1 || got[0].Status != v1.ConditionTrue || !got[0].LastTransitionTime.Equal(&tt.want) {
			t.Errorf("%s: %+v, want it to have changed at %s", tt.name, got, tt.want)
		}
	}
}

// TestCloudAddresses: with a cloud's controller, its addresses stay.
func TestCloudAddresses(t *testing.T) {
	client := connect(t, kubetest.New(t))
	m := manager(&engine{network: true}, client, func(c *Config) { c.CloudProvider = true })
	m.refresh(t.Context())
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []v1.NodeAddress{{Type: v1.NodeExternalIP, Address: "203.0.113.1"}}
	change(t, client, func(n *v1.Node) {
		if len(n.Status.Addresses) != 1 || n.Status.Addresses[0].Type != v1.NodeHostName {
			t.Errorf("before the controller came: %v", n.Status.Addresses)
		}
		n.Status.Addresses = want
	})
	m.refresh(t.Context())
	m.send(t.Context())
	n, _ := client.Nodes.All().Get(t.Context(), "n", metav1.GetOptions{})
	if !slices.Equal(n.Status.Addresses, want) {
		t.Errorf("%v, want %v", n.Status.Addresses, want)
	}
}

// TestGivenAddresses: a cloud's controller is told which addresses the node shall have, and until it has given some, these count.
func TestGivenAddresses(t *testing.T) {
	client := connect(t, kubetest.New(t))
	for _, given := range []bool{true, false} {
		m := manager(&engine{network: true}, client, func(c *Config) { c.CloudProvider, c.GivenIPs = true, given })
		m.refresh(t.Context())
		if err := m.tryRegister(t.Context()); err != nil {
			t.Fatal(err)
		}
		n, err := client.Nodes.All().Get(t.Context(), "n", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ips, has := n.Annotations[givenAnnotation]
		if has != given || (given && (ips != "192.0.2.1" || n.Status.Addresses[0].Address != "192.0.2.1")) {
			t.Errorf("given %v: annotation %q, addresses %v", given, ips, n.Status.Addresses)
		}
	}
}

// TestRefusedCIDR: pod CIDRs are given until the runtime takes them, both families in one, and then no more.
func TestRefusedCIDR(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var given []string
		m := manager(&engine{network: true}, nil, func(c *Config) {
			c.PodCIDR = func(_ context.Context, cidr string) error {
				if given = append(given, cidr); len(given) < 3 {
					return errors.New("not yet")
				}
				return nil
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		m.take(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: v1.NodeSpec{PodCIDR: "10.0.0.0/24", PodCIDRs: []string{"10.0.0.0/24", "fd00::/64"}}})
		m.Run(ctx)
		if want := slices.Repeat([]string{"10.0.0.0/24,fd00::/64"}, 3); !slices.Equal(given, want) {
			t.Errorf("%q, want %q", given, want)
		}
	})
}
