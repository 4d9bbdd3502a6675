package env

import (
	"context"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

type objects struct{}

func (objects) ConfigMap(_ context.Context, _, name string) (*v1.ConfigMap, error) {
	if name != "cm" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return &v1.ConfigMap{Data: map[string]string{"k": "v", "a.b": "dotted", "=bad": "x"}}, nil
}

func (objects) Secret(_ context.Context, _, name string) (*v1.Secret, error) {
	if name != "s" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	return &v1.Secret{Data: map[string][]byte{"k": []byte("hidden")}}, nil
}

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "": "empty"}
	lookup := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	for in, want := range map[string]string{
		"": "", "x": "x", "$(A)": "1", "a$(A)b$(A)": "a1b1", "$(B)": "$(A)", "$(C)": "$(C)", "$$(A)": "$(A)", "$$$(A)": "$1", "$": "$", "$$": "$",
		"$(A": "$(A", "$A": "$A", "$()": "empty", "$(A) $x $(C) $$": "1 $x $(C) $",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzExpand: without a dollar nothing changes, and a text of doubled dollars means the text.
func FuzzExpand(f *testing.F) {
	f.Add("$(A)")
	f.Add("$$(A) $")
	f.Fuzz(func(t *testing.T, s string) {
		all := func(string) (string, bool) { return "", true }
		if got := Expand(strings.ReplaceAll(s, "$", "$$"), all); got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func environment(t *testing.T, c *v1.Container, services ...*v1.Service) (map[string]string, error) {
	t.Helper()
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"}}
	list, err := Make(t.Context(), Input{
		Pod: p, Container: c, Objects: objects{}, Services: services,
		File: func(_, path, key string) (string, bool, error) { return "from " + path, key == "k", nil },
	})
	out := map[string]string{}
	for _, kv := range list {
		out[kv.Key] = string(kv.Value)
	}
	return out, err
}

func TestMake(t *testing.T) {
	yes := true
	ref := func(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }
	c := &v1.Container{
		EnvFrom: []v1.EnvFromSource{
			{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("cm")}},
			{Prefix: "S_", SecretRef: &v1.SecretEnvSource{LocalObjectReference: ref("s")}},
			{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("absent"), Optional: &yes}},
		},
		Env: []v1.EnvVar{
			{Name: "k", Value: "own"},
			{Name: "NAME", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "BOTH", Value: "$(k) $(S_k) $(WEB_SERVICE_HOST) $(LATER)"},
			{Name: "LATER", Value: "late"},
			{Name: "GONE", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: ref("s"), Key: "x", Optional: &yes}}},
			{Name: "FILE", ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{VolumeName: "v", Path: "f", Key: "k"}}},
		},
	}
	web := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "n"}, Spec: v1.ServiceSpec{
		ClusterIP: "10.0.0.1", Ports: []v1.ServicePort{{Name: "http-x", Port: 80}},
	}}
	other := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: "elsewhere"}, Spec: v1.ServiceSpec{ClusterIP: "10.0.0.2", Ports: web.Spec.Ports}}
	got, err := environment(t, c, web, other)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"k": "own", "a.b": "dotted", "S_k": "hidden", "NAME": "p", "BOTH": "own hidden 10.0.0.1 $(LATER)", "LATER": "late", "FILE": "from f",
		"WEB_SERVICE_HOST": "10.0.0.1", "WEB_SERVICE_PORT": "80", "WEB_SERVICE_PORT_HTTP_X": "80", "WEB_PORT": "tcp://10.0.0.1:80",
		"WEB_PORT_80_TCP": "tcp://10.0.0.1:80", "WEB_PORT_80_TCP_PROTO": "tcp", "WEB_PORT_80_TCP_PORT": "80", "WEB_PORT_80_TCP_ADDR": "10.0.0.1",
	} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	for _, name := range []string{"=bad", "GONE", "OTHER_SERVICE_HOST"} {
		if value, has := got[name]; has {
			t.Errorf("%s = %q should not be there", name, value)
		}
	}
}

func TestMissing(t *testing.T) {
	ref := v1.LocalObjectReference{Name: "cm"}
	for want, c := range map[string]*v1.Container{
		"couldn't find key x in ConfigMap n/cm": {Env: []v1.EnvVar{{Name: "A", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: ref, Key: "x"}}}}},
		`"absent" not found`:                    {EnvFrom: []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "absent"}}}}},
		`key "x" not found in file "f"`:         {Env: []v1.EnvVar{{Name: "A", ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{Path: "f", Key: "x"}}}}},
	} {
		if _, err := environment(t, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
