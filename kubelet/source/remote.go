package source

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/orlop/orlop/kubelet/pod"
)

// fetchLimit is the time limit of one GET.
const fetchLimit = 10 * time.Second

// URL follows a manifest at a URL until ctx ends: it is fetched after every period, with header if that is not nil. While
// it can't be, the pods that it last had stay.
func URL(ctx context.Context, url string, header http.Header, as Static, period time.Duration, sink Sink) {
	l := newList(pod.HTTPSource, sink)
	client := &http.Client{Timeout: fetchLimit}
	for {
		pods, err := fetch(ctx, client, url, header, as)
		if err == nil {
			l.set(pods)
		} else if ctx.Err() == nil {
			as.Log.Warn("manifest not fetched", "url", url, "err", err)
		}
		timer := time.NewTimer(period)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func fetch(ctx context.Context, client *http.Client, url string, header http.Header, as Static) ([]*v1.Pod, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("server answers %s", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxManifest {
		return nil, fmt.Errorf("more than %d bytes", maxManifest)
	}
	return as.Decode(data, url)
}

// API follows the pods that an API server has bound to the node, until ctx ends.
func API(ctx context.Context, client kubernetes.Interface, node string, sink Sink) error {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
		}),
		informers.WithTransform(trim))
	informer := factory.Core().V1().Pods().Informer()
	handle, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { setAPI(sink, o) },
		UpdateFunc: func(_, o any) { setAPI(sink, o) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if p, ok := o.(*v1.Pod); ok {
				sink.Delete(p)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("follow the pods of node %s: %w", node, err)
	}
	factory.Start(ctx.Done())
	if cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		sink.Ready(pod.APISource)
	}
	<-ctx.Done()
	factory.Shutdown()
	return nil
}

func setAPI(sink Sink, o any) {
	if p, ok := o.(*v1.Pod); ok {
		sink.Set(p)
	}
}

// trim drops what is large and never read, before it is kept.
func trim(o any) (any, error) {
	if p, ok := o.(*v1.Pod); ok {
		p.ManagedFields = nil
	}
	return o, nil
}
