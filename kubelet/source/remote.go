package source

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/kubelet/cluster"
	"github.com/orlop/orlop/kubelet/pod"
)

// fetchLimit is the time limit of one GET.
const fetchLimit = 10 * time.Second

// Remote is a manifest at a URL.
type Remote struct {
	URL    string
	Header http.Header // of each request; may be nil
	Period time.Duration
}

// URL follows a manifest until ctx ends. While it can't be fetched, the pods that it last had stay.
func URL(ctx context.Context, from Remote, as Static, sink Sink) {
	l := newList(pod.HTTPSource, sink)
	client := &http.Client{Timeout: fetchLimit}
	for {
		pods, err := from.fetch(ctx, client, as)
		if err == nil {
			l.set(pods)
		} else if ctx.Err() == nil {
			as.Log.Warn("manifest not fetched", "url", from.URL, "err", err)
		}
		timer := time.NewTimer(from.Period)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func (from Remote) fetch(ctx context.Context, client *http.Client, as Static) ([]*v1.Pod, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.URL, nil)
	if err != nil {
		return nil, err
	}
	if from.Header != nil {
		req.Header = from.Header.Clone()
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
	return as.Decode(data, from.URL)
}

// API follows the pods that an API server has bound to the node, until ctx ends.
func API(ctx context.Context, client *cluster.Client, node string, sink Sink) error {
	here := kube.Query{Fields: fields.OneTermEqualSelector("spec.nodeName", node).String()}
	informer := cache.NewSharedInformer(client.Pods.All().Source(here), &v1.Pod{}, 0)
	if err := informer.SetTransform(trim); err != nil { // it fails only for an informer that runs
		return err
	}
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
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		sink.Ready(pod.APISource)
	}
	running.Wait()
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
