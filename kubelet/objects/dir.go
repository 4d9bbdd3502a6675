package objects

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/orlop/orlop/kubelet/source"
)

// Dir gets objects from a directory of manifests, or a single one: what a lone machine has instead of an API server. Kubelet
// refuses static pods that refer to objects; here they lie beside the pods.
type Dir struct {
	path    string
	changed func(uid types.UID)
	log     *slog.Logger
	last    map[string]map[key]any // by file, what it had when it was last understood

	mu      sync.Mutex
	objects map[key]any
	pods    map[types.UID]map[key]bool // what each pod refers to
}

// FromDir reads the directory; Run follows it. changed is called for each pod that refers to an object that changed. Without
// a path there are no objects.
func FromDir(path string, changed func(uid types.UID), log *slog.Logger) *Dir {
	d := &Dir{path: path, changed: changed, log: log, objects: map[key]any{}, pods: map[types.UID]map[key]bool{}}
	d.read()
	return d
}

const (
	settle = 100 * time.Millisecond // a file is often written in several steps
	period = 20 * time.Second       // to find what could not be watched, such as a directory that was made later
)

// Run follows the directory until ctx ends.
func (d *Dir) Run(ctx context.Context) {
	if d.path == "" {
		return
	}
	changes, closeWatch := source.Watch(d.path, d.log)
	defer closeWatch()
	timer := time.NewTimer(settle) // once more after the watch has begun
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
			timer.Reset(settle)
		case <-timer.C:
			for _, uid := range d.read() {
				d.changed(uid)
			}
			timer.Reset(period)
		}
	}
}

// read reads all files and returns the pods that it concerns. A file that can't be understood is logged, and what was in it
// before stays, as its pods do.
func (d *Dir) read() []types.UID {
	files, err := source.Manifests(d.path)
	if err != nil {
		d.log.Warn("objects not read", "path", d.path, "err", err)
		return nil
	}
	now, last := map[key]any{}, map[string]map[key]any{}
	for _, file := range files {
		found, err := decode(file)
		if err != nil {
			d.log.Warn("objects of a manifest not used", "file", file, "err", err)
			found = d.last[file]
		}
		last[file] = found
		maps.Copy(now, found)
	}
	d.last = last
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.objects
	d.objects = now
	var uids []types.UID
	for uid, keys := range d.pods {
		for k := range keys {
			if !same(old[k], now[k]) {
				uids = append(uids, uid)
				break
			}
		}
	}
	return uids
}

// same compares what two objects hold.
func same(a, b any) bool {
	x, errX := yaml.Marshal(a)
	y, errY := yaml.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// decode reads the objects of a file.
func decode(file string) (map[key]any, error) {
	data, err := source.ReadManifest(file)
	if err != nil {
		return nil, err
	}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	found := map[key]any{}
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err == nil {
			err = decodeOne(document, found)
		}
		if err != nil {
			return nil, err
		}
	}
}

// decodeList reads the objects of a list.
func decodeList(document []byte, into map[key]any) error {
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	err := yaml.Unmarshal(document, &list)
	for _, item := range list.Items {
		err = errors.Join(err, decodeOne(item, into))
	}
	return err
}

// decodeOne reads one document, if it is of a kind that pods refer to.
func decodeOne(document []byte, into map[key]any) error {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	var object metav1.Object
	var name string
	switch kind.Kind {
	case "List":
		return decodeList(document, into)
	case "ConfigMap":
		object, name = &v1.ConfigMap{}, configMapKind
	case "Secret":
		object, name = &v1.Secret{}, secretKind
	case "PersistentVolumeClaim":
		object, name = &v1.PersistentVolumeClaim{}, claimKind
	case "PersistentVolume":
		object, name = &v1.PersistentVolume{}, volumeKind
	case "Service":
		object, name = &v1.Service{}, serviceKind
	case "CSIDriver":
		object, name = &storagev1.CSIDriver{}, driverKind
	default:
		return nil
	}
	if err := yaml.UnmarshalStrict(document, object); err != nil {
		return fmt.Errorf("%s: %w", kind.Kind, err)
	}
	if s, ok := object.(*v1.Secret); ok {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		for k, value := range s.StringData { // as the API server does
			s.Data[k] = []byte(value)
		}
		s.StringData = nil
	}
	if object.GetNamespace() == "" && name != volumeKind && name != driverKind {
		object.SetNamespace(metav1.NamespaceDefault)
	}
	into[key{name, object.GetNamespace(), object.GetName()}] = object
	return nil
}

// Register says which pods to tell of changes.
func (d *Dir) Register(p *v1.Pod) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pods[p.UID] = references(p)
}

// Unregister says that a pod asks for nothing any more.
func (d *Dir) Unregister(uid types.UID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pods, uid)
}

func get[T any](d *Dir, k key) (*T, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if found, ok := d.objects[k].(*T); ok {
		return found, nil
	}
	return nil, notFound(k)
}

// ConfigMap is one of the directory, or an error that apierrors.IsNotFound knows.
func (d *Dir) ConfigMap(_ context.Context, namespace, name string) (*v1.ConfigMap, error) {
	return get[v1.ConfigMap](d, key{configMapKind, namespace, name})
}

// Secret is one of the directory, or an error that apierrors.IsNotFound knows.
func (d *Dir) Secret(_ context.Context, namespace, name string) (*v1.Secret, error) {
	return get[v1.Secret](d, key{secretKind, namespace, name})
}

// PersistentVolumeClaim is one of the directory, or an error that apierrors.IsNotFound knows.
func (d *Dir) PersistentVolumeClaim(_ context.Context, namespace, name string) (*v1.PersistentVolumeClaim, error) {
	return get[v1.PersistentVolumeClaim](d, key{claimKind, namespace, name})
}

// PersistentVolume is one of the directory, or an error that apierrors.IsNotFound knows.
func (d *Dir) PersistentVolume(_ context.Context, name string) (*v1.PersistentVolume, error) {
	return get[v1.PersistentVolume](d, key{volumeKind, "", name})
}

// CSIDriver is one of the directory, or an error that apierrors.IsNotFound knows.
func (d *Dir) CSIDriver(_ context.Context, name string) (*storagev1.CSIDriver, error) {
	return get[storagev1.CSIDriver](d, key{driverKind, "", name})
}

// Services are those of the directory that have a cluster IP, of one namespace.
func (d *Dir) Services(_ context.Context, namespace string) ([]*v1.Service, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*v1.Service
	for k, o := range d.objects {
		if s, ok := o.(*v1.Service); ok && k.namespace == namespace {
			list = append(list, s)
		}
	}
	return list, nil
}

// errNoTokens: tokens are an API server's to give.
var errNoTokens = errors.New("no API server gives service account tokens here; set automountServiceAccountToken: false, or mount a Secret")

// ServiceAccountToken always fails.
func (d *Dir) ServiceAccountToken(_ context.Context, namespace, name string, _ *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return nil, fmt.Errorf("service account %s/%s: %w", namespace, name, errNoTokens)
}
