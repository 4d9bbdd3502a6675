package source

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/orlop/orlop/kubelet/pod"
)

// Static turns manifests into static pods of a node.
type Static struct {
	Node   string
	Source string // pod.FileSource or pod.HTTPSource
	Log    *slog.Logger
}

// Decode reads the pods of a manifest: YAML or JSON, one or many documents, lists too. Other kinds are left to those whom
// they concern. origin tells two manifests with the same pod apart.
func (s Static) Decode(data []byte, origin string) ([]*v1.Pod, error) {
	var pods []*v1.Pod
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		more, err := s.document(document, origin)
		if err != nil {
			return nil, err
		}
		pods = append(pods, more...)
	}
	seen := map[string]bool{}
	for _, p := range pods {
		if seen[pod.FullName(p)] {
			return nil, fmt.Errorf("pod %s: is there twice; rename one", pod.Ref(p))
		}
		seen[pod.FullName(p)] = true
	}
	return pods, nil
}

// document reads one document of a manifest.
func (s Static) document(data []byte, origin string) ([]*v1.Pod, error) {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(data, &kind); err != nil {
		return nil, err
	}
	switch kind.Kind {
	case "Pod":
		p, err := s.pod(data, origin)
		if err != nil {
			return nil, err
		}
		return []*v1.Pod{p}, nil
	case "List", "PodList":
		return s.items(data, kind.Kind, origin)
	}
	return nil, nil
}

func (s Static) items(data []byte, kind, origin string) ([]*v1.Pod, error) {
	var items struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := yaml.Unmarshal(data, &items); err != nil {
		return nil, err
	}
	var pods []*v1.Pod
	for _, item := range items.Items {
		var err error
		var more []*v1.Pod
		if kind == "PodList" { // its items need not say what they are
			var p *v1.Pod
			p, err = s.pod(item, origin)
			more = []*v1.Pod{p}
		} else {
			more, err = s.document(item, origin)
		}
		if err != nil {
			return nil, err
		}
		pods = append(pods, more...)
	}
	return pods, nil
}

// pod reads one pod, and gives it what an API server would have given it.
func (s Static) pod(data []byte, origin string) (*v1.Pod, error) {
	p := &v1.Pod{}
	if err := yaml.UnmarshalStrict(data, p); err != nil {
		p = &v1.Pod{}
		if lax := yaml.Unmarshal(data, p); lax != nil {
			return nil, lax
		}
		s.Log.Warn("manifest has what is not known here", "file", origin, "pod", pod.Ref(p), "err", err)
	}
	p.Status = v1.PodStatus{Phase: v1.PodPending}
	if p.Name == "" {
		return nil, errors.New("metadata.name: missing; name the pod")
	}
	if p.Namespace == "" {
		p.Namespace = metav1.NamespaceDefault
	}
	if p.UID == "" {
		p.UID = s.uid(p, origin)
	}
	p.Name += "-" + strings.ToLower(s.Node) // unique in the cluster, as each node may have the same manifest
	p.Spec.NodeName = s.Node
	setDefaults(p)
	if err := check(p); err != nil {
		return nil, fmt.Errorf("pod %s: %w", pod.Ref(p), err)
	}
	s.annotate(p)
	// A node's taints don't evict what the node itself starts.
	p.Spec.Tolerations = append(p.Spec.Tolerations, v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute})
	return p, nil
}

func (s Static) annotate(p *v1.Pod) {
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[pod.SourceAnnotation] = s.Source
	p.Annotations[pod.HashAnnotation] = string(p.UID)
	p.Annotations[pod.SeenAnnotation] = time.Now().Format(time.RFC3339Nano)
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	p.Status.StartTime = nil
	if p.CreationTimestamp.IsZero() {
		p.CreationTimestamp = now
	}
}

// uid is made of the pod's content, so that a changed manifest is another pod, and an unchanged one the same after a
// restart. An API server takes it as a UID though it has no dashes, as kubelet's have none.
func (s Static) uid(p *v1.Pod, origin string) types.UID {
	content, err := json.Marshal(p)
	if err != nil { // types of the API can always be written
		panic(err)
	}
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%q %q ", s.Node, origin)
	_, _ = h.Write(content)
	return types.UID(hex.EncodeToString(h.Sum(nil))[:32])
}
