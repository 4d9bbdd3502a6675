package main

import (
	"context"
	"fmt"
	"log/slog"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/kubelet/cert"
	"github.com/orlop/orlop/kubelet/cluster"
)

// newClient reaches the API server; nil without a kubeconfig.
func newClient(ctx context.Context, s settings, node string) (*cluster.Client, *rest.Config, error) {
	if s.flags.Kubeconfig == "" {
		return nil, nil, nil
	}
	config, err := cert.Client{
		Node: node, Kubeconfig: s.flags.Kubeconfig, Bootstrap: s.flags.BootstrapKubeconfig, Dir: s.flags.CertDir,
		Rotate: s.config.RotateCertificates, Log: s.log,
	}.Config(ctx)
	if err != nil {
		return nil, nil, err
	}
	config.QPS, config.Burst = float32(*s.config.KubeAPIQPS), int(s.config.KubeAPIBurst)
	config.UserAgent = "orlop-kubelet/" + version
	config.ContentType = s.config.ContentType
	client, err := connect(config)
	if err != nil {
		return nil, nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return client, config, nil
}

func connect(config *rest.Config) (*cluster.Client, error) {
	k, err := kube.New(config)
	if err != nil {
		return nil, err
	}
	return cluster.New(k)
}

// newRecorder sends events to the API server, no more of them than the configuration allows, or on a lone machine to the log.
func newRecorder(s settings, config *rest.Config, node string) (record.EventRecorder, error) {
	if config == nil {
		return logged{s.log}, nil
	}
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = float32(*s.config.EventRecordQPS), int(s.config.EventBurst)
	if config.QPS == 0 {
		config.QPS = -1 // no limit
	}
	client, err := connect(config)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	subjects := runtime.NewScheme() // what events are about
	subjects.AddKnownTypes(v1.SchemeGroupVersion, &v1.Pod{}, &v1.Node{})
	b := record.NewBroadcaster()
	b.StartRecordingToSink(sent{client})
	return b.NewRecorder(subjects, v1.EventSource{Component: "kubelet", Host: node}), nil
}

// sent writes events to an API server.
type sent struct{ client *cluster.Client }

func (s sent) Create(e *v1.Event) (*v1.Event, error) {
	return s.client.Events.In(e.Namespace).Create(context.Background(), e, metav1.CreateOptions{})
}

func (s sent) Update(e *v1.Event) (*v1.Event, error) {
	return s.client.Events.In(e.Namespace).Update(context.Background(), e, metav1.UpdateOptions{})
}

// Patch counts an event that happens again.
func (s sent) Patch(e *v1.Event, patch []byte) (*v1.Event, error) {
	return s.client.Events.In(e.Namespace).Patch(context.Background(), e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
}

// logged writes events to a log.
type logged struct{ log *slog.Logger }

func (l logged) Event(o runtime.Object, kind, reason, message string) {
	level := slog.LevelInfo
	if kind == v1.EventTypeWarning {
		level = slog.LevelWarn
	}
	name := ""
	switch o := o.(type) {
	case *v1.Pod:
		name = o.Namespace + "/" + o.Name
	case *v1.ObjectReference:
		name = o.Namespace + "/" + o.Name + " " + o.FieldPath
	}
	l.log.Log(context.Background(), level, reason, "about", name, "message", message)
}

func (l logged) Eventf(o runtime.Object, kind, reason, format string, args ...any) {
	l.Event(o, kind, reason, fmt.Sprintf(format, args...))
}

func (l logged) AnnotatedEventf(o runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	l.Eventf(o, kind, reason, format, args...)
}
