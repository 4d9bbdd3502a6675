package objects

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/kubelet/cluster"
)

// user is a pod that refers to a ConfigMap and a Secret.
func user(uid string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: uid, Namespace: "shop", UID: types.UID(uid)}}
	p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}}
	p.Spec.Containers = []v1.Container{{EnvFrom: []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "s"}}}}}}
	p.Spec.ImagePullSecrets = []v1.LocalObjectReference{{Name: "pull"}}
	return p
}

func TestReferences(t *testing.T) {
	got := references(user("u"))
	for _, k := range []key{{configMapKind, "shop", "cm"}, {secretKind, "shop", "s"}, {secretKind, "shop", "pull"}} {
		if !got[k] {
			t.Errorf("%v is not among %v", k, got)
		}
	}
	if len(got) != 3 {
		t.Errorf("%v", got)
	}
}

// told collects who was told of a change.
type told chan types.UID

func (c told) wait(t *testing.T, want types.UID) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case uid := <-c:
			if uid == want {
				return
			}
		case <-limit:
			t.Fatalf("%s was not told", want)
		}
	}
}

// TestAPI follows objects for as long as a pod refers to them, and tells the pod of changes.
func TestAPI(t *testing.T) {
	server := kubetest.New(t)
	server.Set(
		&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "shop", ResourceVersion: "1"}, Data: map[string]string{"k": "1"}},
		&v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: v1.ServiceSpec{ClusterIP: "10.0.0.1"}},
		&v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"}, Spec: v1.ServiceSpec{ClusterIP: "10.0.0.2"}},
	)
	client, err := cluster.New(server.Client(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	changes := make(told, 100)
	a := FromAPI(client, func(uid types.UID) { changes <- uid })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	defer func() { cancel(); <-done }()

	a.Register(user("u"))
	cm, err := a.ConfigMap(ctx, "shop", "cm")
	if err != nil || cm.Data["k"] != "1" {
		t.Fatalf("%v, %v", cm, err)
	}
	if _, err := a.Secret(ctx, "shop", "s"); !apierrors.IsNotFound(err) {
		t.Errorf("a Secret that is not there: %v", err)
	}
	changes.wait(t, "u") // of what was seen first
	changed := cm.DeepCopy()
	changed.Data["k"] = "2"
	server.Set(changed)
	changes.wait(t, "u")
	if cm, err = a.ConfigMap(ctx, "shop", "cm"); err != nil || cm.Data["k"] != "2" {
		t.Errorf("after the change: %v, %v", cm, err)
	}
	services, err := a.Services(ctx, "shop")
	if err != nil || len(services) != 2 {
		t.Errorf("services: %v, %v", services, err)
	}
	a.Unregister("u")
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.watched) != 0 {
		t.Errorf("nobody refers to %d objects that are watched", len(a.watched))
	}
}

// TestDir serves what lies beside the manifests, and tells pods of changes.
func TestDir(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm, namespace: shop}\ndata: {k: one}\n---\nkind: Secret\nmetadata: {name: s}\nstringData: {k: v}\n---\nkind: Pod\n")
	write("driver.yaml", "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: d}\nspec: {podInfoOnMount: true}\n")
	write("bad.yaml", "kind: ConfigMap\nmetadata: {name: x}\ndata: [1]\n")
	changes := make(told, 100)
	d := FromDir(dir, func(uid types.UID) { changes <- uid }, slog.New(slog.DiscardHandler))
	d.Register(user("u"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if cm, err := d.ConfigMap(ctx, "shop", "cm"); err != nil || cm.Data["k"] != "one" {
		t.Errorf("%v, %v", cm, err)
	}
	if s, err := d.Secret(ctx, "default", "s"); err != nil || string(s.Data["k"]) != "v" {
		t.Errorf("%v, %v", s, err)
	}
	if driver, err := d.CSIDriver(ctx, "d"); err != nil || !*driver.Spec.PodInfoOnMount {
		t.Errorf("%v, %v", driver, err)
	}
	if _, err := d.ConfigMap(ctx, "default", "x"); !apierrors.IsNotFound(err) {
		t.Errorf("what can't be read: %v", err)
	}
	if _, err := d.ServiceAccountToken(ctx, "shop", "sa", nil); err == nil {
		t.Error("a lone machine gave a token")
	}
	time.Sleep(300 * time.Millisecond) // for the watch to have begun
	write("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm, namespace: shop}\ndata: {k: two}\n")
	changes.wait(t, "u")
	if cm, err := d.ConfigMap(ctx, "shop", "cm"); err != nil || cm.Data["k"] != "two" {
		t.Errorf("after the change: %v, %v", cm, err)
	}
	write("a.yaml", "kind: ConfigMap\nmetadata: {name: cm, namespace: shop}\ndata: [a slip\n")
	write("list.json", `{"kind": "List", "items": [{"kind": "ConfigMap", "metadata": {"name": "listed"}, "data": {"k": "v"}}]}`)
	deadline := time.Now().Add(10 * time.Second)
	for {
		cm, err := d.ConfigMap(ctx, "default", "listed")
		if err == nil && cm.Data["k"] == "v" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("an item of a list: %v, %v", cm, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if cm, err := d.ConfigMap(ctx, "shop", "cm"); err != nil || cm.Data["k"] != "two" {
		t.Errorf("after a slip: %v, %v", cm, err)
	}
}

// TestDirIsFile serves a single manifest, and nothing where there is none.
func TestDirIsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pod")
	if err := os.WriteFile(file, []byte("kind: ConfigMap\nmetadata: {name: cm}\ndata: {k: one}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if cm, err := FromDir(file, nil, log).ConfigMap(t.Context(), "default", "cm"); err != nil || cm.Data["k"] != "one" {
		t.Errorf("%v, %v", cm, err)
	}
	t.Chdir(filepath.Dir(file))
	if _, err := FromDir("", nil, log).ConfigMap(t.Context(), "default", "cm"); !apierrors.IsNotFound(err) {
		t.Errorf("without a path: %v", err)
	}
}
