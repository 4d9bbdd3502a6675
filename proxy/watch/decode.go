package watch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// manifest is what a file has of what concerns a proxy.
type manifest struct {
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
	nodes    []*corev1.Node
	cidrs    []*networkingv1.ServiceCIDR
	// unknown are fields that no version known here has. They do no harm: a newer Kubernetes may have written them.
	unknown []error
}

// decode reads objects as YAML or JSON: one or many documents, and lists. Other kinds are left to those whom they concern.
// It gives objects what an API server would have given them, and refuses what it would have refused and that would be a
// riddle later; the error tells the document, the object and the field.
func decode(data []byte) (*manifest, error) {
	m := &manifest{}
	next := documents(data)
	for n := 1; ; n++ {
		document, err := next()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err == nil {
			err = m.document(document, "")
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

// documents are separated by --- in YAML, and by nothing in JSON.
func documents(data []byte) func() ([]byte, error) {
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		decoder := json.NewDecoder(bytes.NewReader(trimmed))
		return func() ([]byte, error) {
			var raw json.RawMessage
			err := decoder.Decode(&raw)
			return raw, err
		}
	}
	return utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))).Read
}

// document reads an object; kind is what it is if it does not say so itself, as in a list of one kind.
func (m *manifest) document(data []byte, kind string) error {
	var says metav1.TypeMeta
	if err := yaml.Unmarshal(data, &says); err != nil {
		return err
	}
	group := says.GroupVersionKind()
	if says.Kind == "" {
		says.Kind, group = kind, groupOf[kind].WithKind(kind)
	}
	if says.Kind == "List" {
		return m.items(data, "")
	}
	known, ours := groupOf[strings.TrimSuffix(says.Kind, "List")]
	if !ours || group.Group != known.Group {
		return nil
	}
	if group.GroupVersion() != known {
		return fmt.Errorf("%s: apiVersion: %q is not known here; write %q", says.Kind, says.APIVersion, known)
	}
	if one, list := strings.CutSuffix(says.Kind, "List"); list {
		return m.items(data, one)
	}
	return m.object(data, says.Kind)
}

// groupOf are the kinds that concern a proxy.
var groupOf = map[string]schema.GroupVersion{
	"Service":       corev1.SchemeGroupVersion,
	"Node":          corev1.SchemeGroupVersion,
	"EndpointSlice": discoveryv1.SchemeGroupVersion,
	"ServiceCIDR":   networkingv1.SchemeGroupVersion,
}

func (m *manifest) items(data []byte, kind string) error {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := yaml.Unmarshal(data, &list); err != nil {
		return err
	}
	for i, item := range list.Items {
		if err := m.document(item, kind); err != nil {
			return fmt.Errorf("items[%d]: %w", i, err)
		}
	}
	return nil
}

func (m *manifest) object(data []byte, kind string) error {
	switch kind {
	case "Service":
		return read(m, data, &m.services, checkService)
	case "EndpointSlice":
		return read(m, data, &m.slices, checkSlice)
	case "ServiceCIDR":
		return read(m, data, &m.cidrs, func(c *networkingv1.ServiceCIDR) error {
			_, err := parseServiceCIDR(c)
			return err
		})
	}
	return read(m, data, &m.nodes, func(n *corev1.Node) error {
		_, err := ParseNode(n)
		return err
	})
}

// objectPointer is a pointer to an object of type T.
type objectPointer[T any] interface {
	*T
	metav1.Object
}

// read adds an object to a list.
func read[T any, P objectPointer[T]](m *manifest, data []byte, to *[]P, check func(P) error) error {
	object := P(new(T))
	if err := yaml.UnmarshalStrict(data, object); err != nil {
		object = P(new(T))
		if lax := yaml.Unmarshal(data, object); lax != nil {
			return lax
		}
		m.unknown = append(m.unknown, fmt.Errorf("%s/%s: %w", object.GetNamespace(), object.GetName(), err))
	}
	if object.GetName() == "" {
		return fmt.Errorf("%T: metadata.name: missing", *object)
	}
	for _, have := range *to {
		if have.GetName() == object.GetName() && have.GetNamespace() == object.GetNamespace() {
			return fmt.Errorf("%T %s/%s: is there twice; remove one", *object, object.GetNamespace(), object.GetName())
		}
	}
	if err := check(object); err != nil {
		return err
	}
	*to = append(*to, object)
	return nil
}
