package node

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/internal/kube/kubetest"
)

// TestLease is made, renewed on what is known of it, and goes with its node.
func TestLease(t *testing.T) {
	server := kubetest.New(t)
	m := manager(&engine{network: true}, connect(t, server), nil)
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	made, err := m.renew(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if made.Namespace != v1.NamespaceNodeLease || *made.Spec.HolderIdentity != "n" || *made.Spec.LeaseDurationSeconds != 40 || made.OwnerReferences[0].UID != m.Registered().UID {
		t.Errorf("%+v", made)
	}
	renewed, err := m.renew(t.Context(), made)
	if err != nil {
		t.Fatal(err)
	}
	if !renewed.Spec.RenewTime.After(made.Spec.RenewTime.Time) || renewed.ResourceVersion == made.ResourceVersion {
		t.Errorf("%+v, before %+v", renewed, made)
	}
	if _, err := m.renew(t.Context(), made); err == nil {
		t.Error("a lease that somebody else renewed was renewed from what was before")
	}
	foreign := server.Objects("leases")[0].(*coordinationv1.Lease)
	foreign.Labels = map[string]string{"mine": "1"}
	server.Set(foreign)
	if got, err := m.renew(t.Context(), nil); err != nil || got.Labels["mine"] != "1" {
		t.Errorf("%+v, %v; what others wrote must stay", got, err)
	}
	server.Break(kubetest.Faults{Refuse: map[string]int{"leases": http.StatusServiceUnavailable}})
	if _, err := m.renew(t.Context(), nil); err == nil {
		t.Error("an API server that is away took it")
	}
}

// TestStatusPatch replaces addresses as a whole: the API would merge them by type.
func TestStatusPatch(t *testing.T) {
	with := func(reason string, addresses ...string) *v1.Node {
		n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: v1.NodeStatus{Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Reason: reason}}}}
		for _, a := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: a})
		}
		return n
	}
	address := func(a string) any { return map[string]any{"type": "InternalIP", "address": a} }
	replace := map[string]any{"$patch": "replace"}
	for _, tt := range []struct {
		name        string
		found, want *v1.Node
		addresses   any
	}{
		{"the same", with("a", "192.0.2.1"), with("b", "192.0.2.1"), nil},
		{"two of one type", with("a", "192.0.2.1"), with("a", "192.0.2.2", "2001:db8::1"), []any{address("192.0.2.2"), address("2001:db8::1"), replace}},
		{"none any more", with("a", "192.0.2.1"), with("a"), []any{replace}},
		{"the first", with("a"), with("a", "192.0.2.1"), []any{address("192.0.2.1")}},
	} {
		patch, err := statusPatch(tt.found, tt.want)
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Status map[string]any }
		if err := json.Unmarshal(patch, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.addresses, got.Status["addresses"]); diff != "" {
			t.Errorf("%s: %s:\n%s", tt.name, patch, diff)
		}
	}
}
