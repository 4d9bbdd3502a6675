package api

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/logs"
	"github.com/orlop/orlop/kubelet/pod"
)

// containerLogs serves GET /containerLogs/NAMESPACE/POD/CONTAINER with the parameters of v1.PodLogOptions.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	o, err := logOptions(r.URL.Query())
	if err != nil {
		http.Error(w, `{"message": "Unable to decode query."}`, http.StatusBadRequest)
		return
	}
	if err := validLogOptions(o); err != nil {
		http.Error(w, fmt.Sprintf(`{"message": "Invalid request.", "reason": %q}`, err), http.StatusUnprocessableEntity)
		return
	}
	namespace, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	p := s.cfg.Host.PodByName(namespace, name)
	if p == nil {
		http.Error(w, fmt.Sprintf("pod %q does not exist", name), http.StatusNotFound)
		return
	}
	if c, _ := pod.Container(p, container); c == nil {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", container, name), http.StatusNotFound)
		return
	}
	id, err := loggedContainer(p, container, o.Previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply, err := s.cfg.Runtime.ContainerStatus(r.Context(), &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		s.cfg.Log.Debug("log cannot be found", "container", id, "err", err)
		http.Error(w, "unable to retrieve container logs for "+id, http.StatusBadRequest)
		return
	}
	out := bufio.NewWriter(w)
	read := readOptions(o, out)
	read.Flush = func() {
		out.Flush()
		http.NewResponseController(w).Flush()
	}
	read.Ended = func() bool { return ended(s.cfg.Host.PodByName(namespace, name), container, id) }
	if err := logs.Read(r.Context(), reply.GetStatus().GetLogPath(), read); err != nil {
		s.cfg.Log.Debug("log is cut short", "container", id, "err", err)
		http.Error(w, err.Error(), http.StatusBadRequest) // has no effect on the status if something was written
	}
}

func readOptions(o *v1.PodLogOptions, out *bufio.Writer) logs.Options {
	read := logs.Options{TailLines: o.TailLines, LimitBytes: o.LimitBytes, Timestamps: o.Timestamps, Follow: o.Follow}
	switch {
	case o.SinceSeconds != nil:
		read.Since = time.Now().Add(-time.Duration(*o.SinceSeconds) * time.Second)
	case o.SinceTime != nil:
		read.Since = o.SinceTime.Time
	}
	if o.Stream == nil || *o.Stream != v1.LogStreamStderr {
		read.Stdout = out
	}
	if o.Stream == nil || *o.Stream != v1.LogStreamStdout {
		read.Stderr = out
	}
	return read
}

// logOptions reads the query as the API machinery converts it: a bool is true unless it says "false" or "0".
func logOptions(q url.Values) (*v1.PodLogOptions, error) {
	o := &v1.PodLogOptions{Follow: isSet(q, "follow"), Previous: isSet(q, "previous"), Timestamps: isSet(q, "timestamps")}
	if tail := q.Get("tail"); tail != "" { // of old clients; all is what there is without it
		q.Del("tailLines")
		if tail != "all" {
			q.Set("tailLines", tail)
		}
	}
	for name, into := range map[string]**int64{"tailLines": &o.TailLines, "limitBytes": &o.LimitBytes, "sinceSeconds": &o.SinceSeconds} {
		if !q.Has(name) {
			continue
		}
		n, err := strconv.ParseInt(q.Get(name), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		*into = &n
	}
	if since := q.Get("sinceTime"); since != "" {
		t, err := time.Parse(time.RFC3339, since)
		if err != nil {
			return nil, fmt.Errorf("sinceTime: %w", err)
		}
		o.SinceTime = new(metav1.NewTime(t))
	}
	if q.Has("stream") {
		o.Stream = new(q.Get("stream"))
	}
	return o, nil
}

func isSet(q url.Values, name string) bool {
	return q.Has(name) && q.Get(name) != "0" && !strings.EqualFold(q.Get(name), "false")
}

// validLogOptions has the rules of the API server, for those who ask without it.
func validLogOptions(o *v1.PodLogOptions) error {
	switch {
	case o.TailLines != nil && *o.TailLines < 0:
		return errors.New("tailLines must not be negative")
	case o.LimitBytes != nil && *o.LimitBytes < 1:
		return errors.New("limitBytes must be greater than 0")
	case o.SinceSeconds != nil && o.SinceTime != nil:
		return errors.New("only one of sinceTime and sinceSeconds may be given")
	case o.SinceSeconds != nil && *o.SinceSeconds < 1:
		return errors.New("sinceSeconds must be greater than 0")
	case o.Stream == nil:
		return nil
	case *o.Stream != v1.LogStreamAll && *o.Stream != v1.LogStreamStdout && *o.Stream != v1.LogStreamStderr:
		return fmt.Errorf("stream must be %s, %s or %s", v1.LogStreamAll, v1.LogStreamStdout, v1.LogStreamStderr)
	case *o.Stream != v1.LogStreamAll && o.TailLines != nil:
		return errors.New("tailLines cannot be counted for one stream")
	}
	return nil
}
