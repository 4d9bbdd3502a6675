// Package env makes a container's environment: service variables, envFrom and env, in this order, with $(NAME) expanded.
package env

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/downward"
)

// Objects gets what environments refer to.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
}

// Input is what an environment is made of.
type Input struct {
	Pod         *v1.Pod // its status has the IPs of the pod and of the node
	Container   *v1.Container
	Objects     Objects
	Services    []*v1.Service   // of the pod's namespace, and default/kubernetes
	Allocatable v1.ResourceList // for limits that are not set
	// File reads a key of an env file in a volume of the pod (KEP-3721); ok is false if there is no such file or key.
	File func(volume, path, key string) (value string, ok bool, err error)
}

// Make returns the variables sorted by name; later sources win. Errors name the object and key that is missing.
func Make(ctx context.Context, in Input) ([]*cri.KeyValue, error) {
	vars := map[string]string{}
	services := Services(in.Services, in.Pod)
	if err := envFrom(ctx, in, vars); err != nil {
		return nil, err
	}
	if err := own(ctx, in, vars, services); err != nil {
		return nil, err
	}
	for name, value := range services { // the pod's own variables win over those of services
		if _, has := vars[name]; !has {
			vars[name] = value
		}
	}
	out := make([]*cri.KeyValue, 0, len(vars))
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, &cri.KeyValue{Key: name, Value: []byte(vars[name])})
	}
	return out, nil
}

func envFrom(ctx context.Context, in Input, vars map[string]string) error {
	for _, from := range in.Container.EnvFrom {
		var data map[string]string
		var err error
		switch {
		case from.ConfigMapRef != nil:
			data, err = configMap(ctx, in, from.ConfigMapRef)
		case from.SecretRef != nil:
			data, err = secret(ctx, in, from.SecretRef)
		}
		if err != nil {
			return err
		}
		for key, value := range data {
			if name := from.Prefix + key; len(validation.IsRelaxedEnvVarName(name)) == 0 {
				vars[name] = value
			}
		}
	}
	return nil
}

func configMap(ctx context.Context, in Input, ref *v1.ConfigMapEnvSource) (map[string]string, error) {
	cm, err := in.Objects.ConfigMap(ctx, in.Pod.Namespace, ref.Name)
	if missing(err, ref.Optional) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return cm.Data, nil
}

func secret(ctx context.Context, in Input, ref *v1.SecretEnvSource) (map[string]string, error) {
	s, err := in.Objects.Secret(ctx, in.Pod.Namespace, ref.Name)
	if missing(err, ref.Optional) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data := map[string]string{}
	for key, value := range s.Data {
		data[key] = string(value)
	}
	return data, nil
}

// missing is true for an object that is not there and need not be.
func missing(err error, optional *bool) bool {
	return apierrors.IsNotFound(err) && optional != nil && *optional
}

// errAbsent says that a variable is left out.
var errAbsent = errors.New("absent")

func own(ctx context.Context, in Input, vars, services map[string]string) error {
	lookup := func(name string) (string, bool) {
		if value, ok := vars[name]; ok {
			return value, true
		}
		value, ok := services[name]
		return value, ok
	}
	for i := range in.Container.Env {
		e := &in.Container.Env[i]
		value := Expand(e.Value, lookup)
		if e.ValueFrom != nil {
			var err error
			value, err = valueFrom(ctx, in, e.ValueFrom)
			if errors.Is(err, errAbsent) {
				continue
			}
			if err != nil {
				return err
			}
		}
		vars[e.Name] = value
	}
	return nil
}

func valueFrom(ctx context.Context, in Input, from *v1.EnvVarSource) (string, error) {
	switch {
	case from.FieldRef != nil:
		return downward.Field(in.Pod, from.FieldRef.FieldPath)
	case from.ResourceFieldRef != nil:
		return downward.Resource(in.Pod, in.Container.Name, from.ResourceFieldRef, in.Allocatable)
	case from.ConfigMapKeyRef != nil:
		return configMapKey(ctx, in, from.ConfigMapKeyRef)
	case from.SecretKeyRef != nil:
		return secretKey(ctx, in, from.SecretKeyRef)
	case from.FileKeyRef != nil:
		return fileKey(in, from.FileKeyRef)
	}
	return "", errors.New("valueFrom: none of its sources is known here")
}

func configMapKey(ctx context.Context, in Input, ref *v1.ConfigMapKeySelector) (string, error) {
	cm, err := in.Objects.ConfigMap(ctx, in.Pod.Namespace, ref.Name)
	if missing(err, ref.Optional) {
		return "", errAbsent
	}
	if err != nil {
		return "", err
	}
	value, ok := cm.Data[ref.Key]
	if !ok {
		return "", absentKey(ref.Optional, "couldn't find key %s in ConfigMap %s/%s", ref.Key, in.Pod.Namespace, ref.Name)
	}
	return value, nil
}

func secretKey(ctx context.Context, in Input, ref *v1.SecretKeySelector) (string, error) {
	s, err := in.Objects.Secret(ctx, in.Pod.Namespace, ref.Name)
	if missing(err, ref.Optional) {
		return "", errAbsent
	}
	if err != nil {
		return "", err
	}
	value, ok := s.Data[ref.Key]
	if !ok {
		return "", absentKey(ref.Optional, "couldn't find key %s in Secret %s/%s", ref.Key, in.Pod.Namespace, ref.Name)
	}
	return string(value), nil
}

func fileKey(in Input, ref *v1.FileKeySelector) (string, error) {
	value, ok, err := in.File(ref.VolumeName, ref.Path, ref.Key)
	if err != nil {
		return "", fmt.Errorf("fileKeyRef: volume %s: %s: %w", ref.VolumeName, ref.Path, err)
	}
	if !ok {
		return "", absentKey(ref.Optional, "environment variable key %q not found in file %q of volume %s", ref.Key, ref.Path, ref.VolumeName)
	}
	return value, nil
}

func absentKey(optional *bool, format string, args ...any) error {
	if optional != nil && *optional {
		return errAbsent
	}
	return fmt.Errorf(format, args...)
}

// Expand replaces $(NAME) by what lookup finds, and $$ by $; what it does not find stays as it is.
func Expand(s string, lookup func(name string) (string, bool)) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if after, ok := strings.CutPrefix(rest, "$"); ok {
			b.WriteByte('$')
			s = after
			continue
		}
		name, after, ok := reference(rest)
		if !ok {
			b.WriteByte('$')
			s = rest
			continue
		}
		if value, has := lookup(name); has {
			b.WriteString(value)
		} else {
			b.WriteString("$(" + name + ")")
		}
		s = after
	}
}

// reference reads NAME of "(NAME)…".
func reference(s string) (name, after string, ok bool) {
	if !strings.HasPrefix(s, "(") {
		return "", "", false
	}
	return strings.Cut(s[1:], ")")
}

// ExpandAll expands each of list with the variables of a container.
func ExpandAll(list []string, vars []*cri.KeyValue) []string {
	lookup := Lookup(vars)
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Expand(s, lookup)
	}
	return out
}

// Lookup finds a variable of a container.
func Lookup(vars []*cri.KeyValue) func(name string) (string, bool) {
	return func(name string) (string, bool) {
		i, ok := slices.BinarySearchFunc(vars, name, func(kv *cri.KeyValue, name string) int { return cmp.Compare(kv.Key, name) })
		if !ok {
			return "", false
		}
		return string(vars[i].Value), true
	}
}

// Services are the variables by which pods found services before there was DNS, and may still: those of the API server
// always, those of the pod's namespace unless enableServiceLinks is false.
func Services(services []*v1.Service, p *v1.Pod) map[string]string {
	links := p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks
	vars := map[string]string{}
	byName := slices.SortedFunc(slices.Values(services), func(a, b *v1.Service) int { // the pod's own namespace wins
		return cmp.Or(cmp.Compare(btoi(a.Namespace == p.Namespace), btoi(b.Namespace == p.Namespace)), cmp.Compare(a.Name, b.Name))
	})
	for _, s := range byName {
		master := s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes"
		if s.Spec.ClusterIP != "" && s.Spec.ClusterIP != v1.ClusterIPNone && (master || (links && s.Namespace == p.Namespace)) {
			addService(vars, s)
		}
	}
	return vars
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func addService(vars map[string]string, s *v1.Service) {
	if len(s.Spec.Ports) == 0 {
		return
	}
	name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	first := s.Spec.Ports[0]
	vars[name+"_SERVICE_HOST"] = s.Spec.ClusterIP
	vars[name+"_SERVICE_PORT"] = strconv.Itoa(int(first.Port))
	vars[name+"_PORT"] = portURL(s.Spec.ClusterIP, first)
	for _, port := range s.Spec.Ports {
		if port.Name != "" {
			vars[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_"))] = strconv.Itoa(int(port.Port))
		}
		prefix := fmt.Sprintf("%s_PORT_%d_%s", name, port.Port, strings.ToUpper(protocol(port)))
		vars[prefix] = portURL(s.Spec.ClusterIP, port)
		vars[prefix+"_PROTO"] = protocol(port)
		vars[prefix+"_PORT"] = strconv.Itoa(int(port.Port))
		vars[prefix+"_ADDR"] = s.Spec.ClusterIP
	}
}

func portURL(ip string, port v1.ServicePort) string {
	return protocol(port) + "://" + net.JoinHostPort(ip, strconv.Itoa(int(port.Port)))
}

func protocol(port v1.ServicePort) string {
	return strings.ToLower(string(cmp.Or(port.Protocol, v1.ProtocolTCP)))
}
