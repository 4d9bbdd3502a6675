package watch

import (
	"os/exec"
	"strings"
	"testing"
)

const manifest = "../../contrib/kubernetes/orlop-proxy.yaml"

func kubectl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(control.Bin.Kubectl, append([]string{"--kubeconfig", control.Kubeconfig("admin")}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// A cluster takes the manifest as it is, with no field that it does not know, and gives its pods the rights that they need.
func TestManifest(t *testing.T) {
	out, err := kubectl(t, "apply", "--dry-run=server", "--validate=strict", "-f", manifest)
	if err != nil || strings.Contains(strings.ToLower(out), "warning") {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"serviceaccount/orlop-proxy", "clusterrolebinding.rbac.authorization.k8s.io/orlop-proxy", "configmap/orlop-proxy", "daemonset.apps/orlop-proxy"} {
		if !strings.Contains(out, want+" created (server dry run)") {
			t.Errorf("no %s in %s", want, out)
		}
	}
	if out, err := kubectl(t, "apply", "-f", manifest); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := kubectl(t, "delete", "-f", manifest); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	const account = "--as=system:serviceaccount:kube-system:orlop-proxy"
	for _, verb := range []string{"list", "watch"} {
		for _, resource := range []string{"services", "endpointslices.discovery.k8s.io", "nodes", "servicecidrs.networking.k8s.io"} {
			if out, err := kubectl(t, "auth", "can-i", verb, resource, account, "--all-namespaces"); err != nil || !strings.HasSuffix(out, "yes") {
				t.Errorf("may not %s %s: %s", verb, resource, out)
			}
		}
	}
	if out, err := kubectl(t, "auth", "can-i", "create", "events.events.k8s.io", account, "--all-namespaces"); err != nil || !strings.HasSuffix(out, "yes") {
		t.Errorf("may not create events: %s", out)
	}
	out, err = kubectl(t, "get", "daemonset", "-n", "kube-system", "-l", "k8s-app=kube-proxy", "-o", "jsonpath={.items[*].spec.template.metadata.labels.k8s-app}")
	if err != nil || out != "kube-proxy" {
		t.Errorf("what tools look for in the pods' labels: %q, %v", out, err)
	}
}
