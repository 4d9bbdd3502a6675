package kubelet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	certificates "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/kernel"
)

const token = "abcdef.0123456789abcdef"

// bootstrapRules let the holders of bootstrap tokens ask for a node's certificate and have it approved, and nodes renew
// theirs, as kubeadm sets a cluster up.
const bootstrapRules = `
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: abcdef
  token-secret: 0123456789abcdef
  usage-bootstrap-authentication: "true"
  auth-extra-groups: system:bootstrappers:test
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-bootstrap}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:node-bootstrapper"}
subjects: [{kind: Group, name: "system:bootstrappers:test", apiGroup: rbac.authorization.k8s.io}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-approve}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:certificates.k8s.io:certificatesigningrequests:nodeclient"}
subjects: [{kind: Group, name: "system:bootstrappers:test", apiGroup: rbac.authorization.k8s.io}]
`

// TestBootstrap: a second node joins with nothing but a token, asks for its certificates, and is ready.
func TestBootstrap(t *testing.T) {
	if os.Getenv("ORLOP_KUBELET") == "real" {
		t.Skip("the real kubelet's own, which needs another cgroup and more ports")
	}
	s := alone(t) // another node would get pods of other tests
	if _, err := s.tryKubectl(bootstrapRules, "-n", "kube-system", "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if err := control.AddToken("joining", token); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(node.dir, "joining")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	own, err := daemon.New(daemon.Options{Dir: filepath.Join(node.dir, "d2"), Subnet: 3}) // a kubelet ends all pods that it does not know
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	}()
	config := strings.NewReplacer("port: 10250", "port: 10260\nhealthzPort: 10258\nserverTLSBootstrap: true\nrotateCertificates: true\ncgroupsPerQOS: false",
		"tlsCertFile", "# ", "tlsPrivateKeyFile", "# ", "staticPodPath", "# ", runtime.Socket(), own.Socket()).Replace(node.config())
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	cmd := exec.Command(node.binary, "--config="+file, "--kubeconfig="+kubeconfig, "--bootstrap-kubeconfig="+control.Kubeconfig("joining"),
		"--root-dir="+filepath.Join(dir, "root"), "--cert-dir="+filepath.Join(dir, "pki"), "--hostname-override=joining", "--node-ip=127.0.0.2",
		"--node-labels=example.com/joined=yes", "--register-with-taints=example.com/new=yes:NoSchedule")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_, _ = s.tryKubectl("", "delete", "node", "joining")
		if err := kernel.UnmountBelow(dir); err != nil { // its root directory, which it shares with pods
			t.Error(err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("its log: %s", text)
		}
	}()
	var n *v1.Node
	s.eventually("the node to be ready", func() (err error) {
		s.approveServing()
		if n, err = control.Client.CoreV1().Nodes().Get(t.Context(), "joining", metav1.GetOptions{}); err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", n.Status.Conditions)
	})
	if n.Labels["example.com/joined"] != "yes" || len(n.Spec.Taints) == 0 {
		t.Errorf("labels %v, taints %v", n.Labels, n.Spec.Taints)
	}
	data, err := os.ReadFile(kubeconfig)
	if err != nil || !strings.Contains(string(data), "kubelet-client-current.pem") {
		t.Errorf("kubeconfig: %s, %v", data, err)
	}
	s.eventually("a serving certificate", func() error {
		s.approveServing()
		_, err := os.Stat(filepath.Join(dir, "pki", "kubelet-server-current.pem"))
		return err
	})
}

// approveServing approves what nodes ask for their servers, which nobody does by himself.
func (s *space) approveServing() {
	requests := control.Client.CertificatesV1().CertificateSigningRequests()
	list, err := requests.List(s.Context(), metav1.ListOptions{})
	if err != nil {
		return
	}
	for i := range list.Items {
		r := &list.Items[i]
		if r.Spec.SignerName != certificates.KubeletServingSignerName || len(r.Status.Conditions) > 0 {
			continue
		}
		r.Status.Conditions = append(r.Status.Conditions, certificates.CertificateSigningRequestCondition{
			Type: certificates.CertificateApproved, Status: v1.ConditionTrue, Reason: "Test",
		})
		_, _ = requests.UpdateApproval(s.Context(), r.Name, r, metav1.UpdateOptions{}) // it is tried again
	}
}
