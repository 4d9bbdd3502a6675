package watch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
)

const serviceYAML = `apiVersion: v1
kind: Service
metadata: {name: a, namespace: ns}
spec:
  clusterIP: 10.96.0.1
  ports: [{port: 80}]
`

const sliceYAML = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, namespace: ns, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: "", port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.1.0.1]}]
`

func write(t *testing.T, dir, file, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func followDir(t *testing.T, dir string) (*recorder, *logText) {
	t.Helper()
	log, text := logOf(t)
	r := run(t, &Directory{Path: dir, Node: Node{Node: model.Node{Name: "here"}}, Log: log})
	r.awaitSynced(t)
	return r, text
}

func TestDirectoryTellsOfWhatIsThereAndOfChanges(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", serviceYAML+"---\n"+sliceYAML)
	write(t, dir, "node.json", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"here"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}
		{"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","metadata":{"name":"k"},"spec":{"cidrs":["10.96.0.0/16"]}}`)
	write(t, dir, "pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n") // somebody else's
	write(t, dir, ".b.yaml.swp", "}")
	write(t, dir, "notes.txt", "}")
	r, text := followDir(t, dir)
	got := r.take()
	slices.Sort(got)
	want := []string{
		"set node here", "set service CIDRs [10.96.0.0/16]", "set service ns/a", "set slice ns/a-1 of ns/a",
		"synced EndpointSlices", "synced Nodes", "synced ServiceCIDRs", "synced Services",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if r.node.Addresses[0].String() != "192.0.2.1" {
		t.Errorf("node is %+v", r.node)
	}
	write(t, dir, "list.yml", "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: b}, spec: {clusterIP: 10.96.0.2, ports: [{port: 1}]}}\n")
	r.await(t, "another file", func() bool { return r.services[model.Name{Namespace: "default", Name: "b"}] != nil })
	write(t, dir, "a.yaml", strings.Replace(serviceYAML, "port: 80", "port: 81", 1))
	r.await(t, "a changed file", func() bool { return r.services[name("a")].Ports[0].Port == 81 && len(r.slices) == 0 })
	if err := os.Remove(filepath.Join(dir, "list.yml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "node.json")); err != nil {
		t.Fatal(err)
	}
	r.await(t, "files gone", func() bool { return len(r.services) == 1 && len(r.cidrs) == 0 && len(r.node.Addresses) == 0 })
	if strings.Contains(text.String(), "ERROR") || strings.Contains(text.String(), "WARN") {
		t.Errorf("log is %s", text)
	}
}

// TestDirectoryKeepsWhatABadFileSaid until it is put right.
func TestDirectoryKeepsWhatABadFileSaid(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", serviceYAML)
	r, text := followDir(t, dir)
	r.take()
	write(t, dir, "a.yaml", strings.Replace(serviceYAML, "clusterIP: 10.96.0.1", "clusterIP: ten", 1))
	r.await(t, "a complaint", func() bool { return strings.Contains(text.String(), "spec.clusterIPs") })
	write(t, dir, "b.yaml", strings.Replace(serviceYAML, "name: a", "name: b", 1))
	r.await(t, "another file", func() bool { return r.services[name("b")] != nil })
	if diff := cmp.Diff([]string{"set service ns/b"}, r.take()); diff != "" {
		t.Errorf("what a.yaml said before must stay:\n%s", diff)
	}
	if n := strings.Count(text.String(), "a.yaml"); n != 1 {
		t.Errorf("%d complaints, want 1:\n%s", n, text)
	}
	write(t, dir, "a.yaml", strings.Replace(serviceYAML, "10.96.0.1", "10.96.0.7", 1))
	r.await(t, "put right", func() bool { return r.services[name("a")].ClusterIPs[0].String() == "10.96.0.7" })
}

func TestDirectoryWithAnObjectInTwoFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "1.yaml", serviceYAML)
	write(t, dir, "2.yaml", strings.Replace(serviceYAML, "10.96.0.1", "10.96.0.2", 1))
	r, text := followDir(t, dir)
	if got := r.services[name("a")].ClusterIPs[0].String(); got != "10.96.0.1" {
		t.Errorf("cluster IP is %s; the first file's must count", got)
	}
	if log := text.String(); !strings.Contains(log, "1.yaml") || !strings.Contains(log, "2.yaml") {
		t.Errorf("log is %s", log)
	}
	if err := os.Remove(filepath.Join(dir, "1.yaml")); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the other file's", func() bool { return r.services[name("a")].ClusterIPs[0].String() == "10.96.0.2" })
}

func TestDirectoryThatIsNotThere(t *testing.T) {
	log, _ := logOf(t)
	d := &Directory{Path: filepath.Join(t.TempDir(), "x"), Log: log}
	if err := d.Run(t.Context(), newRecorder()); err == nil || !strings.Contains(err.Error(), d.Path) {
		t.Errorf("error is %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{serviceYAML + "---\n" + serviceYAML, "document 2: v1.Service ns/a: is there twice"},
		{strings.Replace(serviceYAML, "apiVersion: v1", "apiVersion: v2", 1), `apiVersion: "v2" is not known here; write "v1"`},
		{strings.Replace(serviceYAML, "name: a, ", "", 1), "metadata.name: missing"},
		{strings.Replace(serviceYAML, "name: a", "name: A", 1), `service ns/A: metadata.name: "A"`},
		{strings.Replace(serviceYAML, "  clusterIP: 10.96.0.1\n", "", 1), "spec.clusterIP: missing; no API server allocates one here"},
		{strings.Replace(serviceYAML, "clusterIP: 10.96.0.1", "clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.2]", 1), `spec.clusterIPs[0]: "10.96.0.2" differs`},
		{strings.Replace(serviceYAML, "{port: 80}", "", 1), "spec.ports: empty"},
		{strings.Replace(serviceYAML, "port: 80", "port: eighty", 1), "port"},
		{strings.Replace(serviceYAML, "port: 80", "port: 80000", 1), "spec.ports[0].port"},
		{strings.Replace(serviceYAML, "port: 80", "port: 80, protocol: tcp", 1), "spec.ports[0].protocol"},
		{strings.Replace(serviceYAML, "{port: 80}", "{port: 80}, {port: 81}", 1), "spec.ports[0].name: missing"},
		{strings.Replace(serviceYAML, "{port: 80}", "{name: x, port: 80}, {name: x, port: 81}", 1), `spec.ports[1].name: "x" is another port's`},
		{strings.Replace(serviceYAML, "{port: 80}", "{name: x, port: 80}, {name: y, port: 80}", 1), "spec.ports[1].port: 80/TCP is another port's"},
		{strings.Replace(serviceYAML, "spec:", "spec:\n  type: NodePort", 1), "spec.ports[0].nodePort: missing"},
		{strings.Replace(serviceYAML, "spec:", "spec:\n  type: nodePort", 1), `spec.type: "nodePort" is none of`},
		{strings.Replace(serviceYAML, "spec:", "spec:\n  internalTrafficPolicy: local", 1), `spec.internalTrafficPolicy: "local" is none of`},
		{strings.Replace(serviceYAML, "spec:", "spec:\n  externalTrafficPolicy: local", 1), `spec.externalTrafficPolicy: "local" is none of`},
		{strings.Replace(serviceYAML, "spec:", "spec:\n  sessionAffinity: Client", 1), `spec.sessionAffinity: "Client" is none of`},
		{strings.Replace(sliceYAML, "kubernetes.io/service-name", "x", 1), "kubernetes.io/service-name is missing"},
		{strings.Replace(sliceYAML, "addressType: IPv4", "", 1), "addressType: missing"},
		{strings.Replace(sliceYAML, "10.1.0.1", "fd01::1", 1), "endpoints[0].addresses"},
		{`{"kind":"List","apiVersion":"v1","items":[{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"}}]}`, "items[0]: service default/x: spec.clusterIP"},
		{`{"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","metadata":{"name":"k"},"spec":{"cidrs":["10.96.0.0"]}}`, `spec.cidrs: "10.96.0.0" is not a CIDR`},
		{`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"spec":{"podCIDRs":["x"]}}`, `spec.podCIDRs: "x" is not a CIDR`},
		{`{"kind": "Service"`, "document 1: unexpected EOF"},
		{"a: b: c", "document 1: "},
	} {
		_, err := decode([]byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error is %v, want %s, of:\n%s", err, tt.want, tt.text)
		}
	}
}

func TestDecodeTakes(t *testing.T) {
	for what, text := range map[string]string{
		"nothing":               "",
		"comments":              "# nothing\n---\n# nothing\n",
		"a headless service":    strings.Replace(serviceYAML, "10.96.0.1", "None", 1),
		"an external name":      "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName, externalName: x.example}\n",
		"another Service":       "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n",
		"what it does not know": strings.Replace(serviceYAML, "spec:", "spec:\n  new: x", 1),
	} {
		m, err := decode([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if unknown := what == "what it does not know"; err == nil && (len(m.unknown) == 1) != unknown {
			t.Errorf("%s: unknown is %v", what, m.unknown)
		}
	}
}

// FuzzDecode: whatever files say, objects that are taken can be used without an error.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{serviceYAML, sliceYAML, serviceYAML + "---\n" + sliceYAML, `{"kind":"List","apiVersion":"v1","items":[{}]}`, "kind: NodeList\napiVersion: v1\nitems: [{metadata: {name: n}}]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if err != nil {
			return
		}
		for _, in := range m.services {
			if _, err := model.ParseService(in); err != nil {
				t.Errorf("a service was taken: %v", err)
			}
			if in.Name == "" || in.Namespace == "" {
				t.Errorf("a service without a name was taken: %+v", in)
			}
		}
		for _, in := range m.slices {
			if _, err := model.ParseSlice(in); err != nil {
				t.Errorf("a slice was taken: %v", err)
			}
		}
		for _, s := range (&files{}).reduce(m).services {
			if s.value == nil || len(s.value.ClusterIPs) == 0 {
				t.Errorf("service %s has no address", s.name)
			}
		}
	})
}
