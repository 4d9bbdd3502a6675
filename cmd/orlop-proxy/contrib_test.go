package main

import (
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/orlop/orlop/proxy/config"
)

// deployment is what contrib/kubernetes/orlop-proxy.yaml holds.
type deployment struct {
	account corev1.ServiceAccount
	binding rbacv1.ClusterRoleBinding
	config  corev1.ConfigMap
	set     appsv1.DaemonSet
}

// readDeployment takes no field that the API doesn't have, which kubectl only warns of.
func readDeployment(t *testing.T) *deployment {
	t.Helper()
	data, err := os.ReadFile("../../contrib/kubernetes/orlop-proxy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := &deployment{}
	objects := map[string]any{"ServiceAccount": &d.account, "ClusterRoleBinding": &d.binding, "ConfigMap": &d.config, "DaemonSet": &d.set}
	for _, text := range strings.Split(string(data), "\n---\n") {
		var typ metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(text), &typ); err != nil {
			t.Fatal(err)
		}
		object := objects[typ.Kind]
		if object == nil {
			t.Fatalf("a %q, which is not known or comes twice", typ.Kind)
		}
		delete(objects, typ.Kind)
		if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
			t.Fatalf("%s: %v", typ.Kind, err)
		}
	}
	if len(objects) > 0 {
		t.Fatalf("missing: %v", objects)
	}
	return d
}

// accepted tells that the configuration is taken as it is, and returns it.
func accepted(t *testing.T, text string) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	c.Default()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if warnings := c.Warnings(); len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	return c
}

func TestDaemonSet(t *testing.T) {
	d := readDeployment(t)
	pod := d.set.Spec.Template
	selector, err := metav1.LabelSelectorAsMap(d.set.Spec.Selector)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range selector {
		if pod.Labels[name] != value {
			t.Errorf("its pods don't have the label %s: %s that it selects by", name, value)
		}
	}
	if pod.Labels["k8s-app"] != "kube-proxy" {
		t.Errorf("labels %v: tools look for k8s-app: kube-proxy", pod.Labels)
	}
	subject := rbacv1.Subject{Kind: "ServiceAccount", Name: d.account.Name, Namespace: d.account.Namespace}
	if !slices.Contains(d.binding.Subjects, subject) || d.binding.RoleRef.Name != "system:node-proxier" || pod.Spec.ServiceAccountName != d.account.Name {
		t.Errorf("account %s, bound %v to %s, pods use %s", d.account.Name, d.binding.Subjects, d.binding.RoleRef.Name, pod.Spec.ServiceAccountName)
	}
	for _, o := range []metav1.Object{&d.account, &d.config, &d.set} {
		if o.GetNamespace() != "kube-system" { // as the priority class asks for
			t.Errorf("%s is in namespace %q", o.GetName(), o.GetNamespace())
		}
	}
	if s := pod.Spec; !s.HostNetwork || s.PriorityClassName != "system-node-critical" || !slices.Contains(s.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("hostNetwork %v, priority class %s, tolerations %v", s.HostNetwork, s.PriorityClassName, s.Tolerations)
	}
}

// The container's command finds what it names.
func TestDaemonSetCommand(t *testing.T) {
	d := readDeployment(t)
	container := d.set.Spec.Template.Spec.Containers[0]
	mounts := map[string]string{} // where the ConfigMap's files are, by volume
	for _, m := range container.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	dir := ""
	for _, v := range d.set.Spec.Template.Spec.Volumes {
		if mounts[v.Name] == "" {
			t.Errorf("volume %s is not mounted", v.Name)
		}
		if v.ConfigMap != nil && v.ConfigMap.Name == d.config.Name {
			dir = mounts[v.Name]
		}
		delete(mounts, v.Name)
	}
	if dir == "" || len(mounts) > 0 {
		t.Fatalf("the configuration is mounted at %q; mounts without a volume: %v", dir, mounts)
	}
	cmd := newCommand()
	if err := cmd.ParseFlags(container.Command[1:]); err != nil {
		t.Fatal(err)
	}
	file := func(path string) string {
		text, ok := d.config.Data[strings.TrimPrefix(path, dir+"/")]
		if !ok {
			t.Fatalf("the ConfigMap has no file for %s", path)
		}
		return text
	}
	c := accepted(t, file(cmd.Flag("config").Value.String()))
	kubeconfig, err := clientcmd.Load([]byte(file(c.ClientConnection.Kubeconfig)))
	if err != nil {
		t.Fatal(err)
	}
	used := kubeconfig.Contexts[kubeconfig.CurrentContext]
	if used == nil || kubeconfig.Clusters[used.Cluster] == nil || kubeconfig.AuthInfos[used.AuthInfo] == nil {
		t.Fatalf("context %q leads nowhere: %+v", kubeconfig.CurrentContext, kubeconfig)
	}
	cluster, user := kubeconfig.Clusters[used.Cluster], kubeconfig.AuthInfos[used.AuthInfo]
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/" // where every pod has it
	if u, err := url.Parse(cluster.Server); err != nil || u.Scheme != "https" {
		t.Errorf("server %q: %v", cluster.Server, err)
	}
	if cluster.CertificateAuthority != account+"ca.crt" || user.TokenFile != account+"token" {
		t.Errorf("CA %q, token %q", cluster.CertificateAuthority, user.TokenFile)
	}
}

// The unit starts the program in a way that it takes, with the configuration that is installed.
func TestUnit(t *testing.T) {
	unit, err := os.ReadFile("../../contrib/systemd/orlop-proxy.service")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(unit), "\nExecStart=")
	line, _, _ = strings.Cut(line, "\n")
	words := strings.Fields(line)
	cmd := newCommand()
	if err := cmd.ParseFlags(words[1:]); err != nil || words[0] != "/usr/local/bin/orlop-proxy" {
		t.Fatalf("%q: %v", line, err)
	}
	if file := cmd.Flag("config").Value.String(); file != "/etc/orlop/proxy.yaml" {
		t.Errorf("--config %s is not what `make install` installs", file)
	}
	sample, err := os.ReadFile("../../contrib/config/proxy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	accepted(t, string(sample))
}
